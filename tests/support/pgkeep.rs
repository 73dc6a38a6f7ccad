//! The pgkeep that was just built, with a configuration and a repository of its own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pgkeep::pg::lsn::Lsn;
use pgkeep::storage::objects::{ObjectStore, Scheme};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use super::cluster::{Cluster, pid};
use super::report::Report;
use super::store::{self, Bucket};
use super::{PATIENCE, account, checks, ground::Ground, wait_until};

/// The name that the tests' one server has in the configuration.
pub const SERVER: &str = "primary";

/// Which way files are read where a test does not say: a third of the tests take each, always the same third, unless
/// `PGKEEP_TEST_SOURCE` says otherwise. PostgreSQL 14 streams nothing.
fn source(major: u32) -> String {
    let source = std::env::var("PGKEEP_TEST_SOURCE").unwrap_or_else(|_| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default();
        let sum: usize = name.bytes().map(usize::from).sum();
        ["direct", "sql", "stream"][sum % 3].to_owned()
    });
    match (source.as_str(), major) {
        ("stream", 14) => "sql".to_owned(),
        _ => source,
    }
}

/// One installation: binary, configuration file, repository.
pub struct Pgkeep {
    ground: Ground,
    base: PathBuf,
    global: Vec<(String, String)>,
    server: Vec<(String, String)>,
    runs: AtomicU32,
    bucket: Option<Bucket>,
}

/// The folder in a bucket that a repository is in.
pub const FOLDER: &str = "all/keep";

impl Pgkeep {
    /// One that knows a cluster as the server `primary`, as a superuser.
    pub fn of(cluster: &Cluster) -> Pgkeep {
        let ground = Ground::new();
        let base = ground.folder("keep");
        let host = cluster.socket().display().to_string();
        let pgkeep = Pgkeep {
            ground,
            base,
            global: vec![("source".into(), source(cluster.major))],
            server: vec![("host".into(), host), ("user".into(), "postgres".into())],
            runs: AtomicU32::new(0),
            bucket: None,
        };
        pgkeep.write_configuration();
        match std::env::var("PGKEEP_TEST_STORAGE").as_deref() {
            Ok("s3" | "az" | "gs") => pgkeep.in_bucket(&store::endpoint()),
            _ => pgkeep,
        }
    }

    /// Keeps the backups in a bucket, which is reached at an endpoint.
    pub fn in_bucket(self, endpoint: &str) -> Pgkeep {
        self.in_bucket_of(store::chosen(), endpoint)
    }

    /// The same in a store of some kind.
    pub fn in_bucket_of(self, scheme: Scheme, endpoint: &str) -> Pgkeep {
        let bucket = Bucket::of(scheme);
        let mut pgkeep = self.with_base(Path::new(&bucket.url(FOLDER)));
        for (key, value) in store::keys(scheme, endpoint, &pgkeep.ground) {
            pgkeep = pgkeep.with(&key, &value);
        }
        pgkeep.bucket = Some(bucket);
        pgkeep
    }

    /// Has the bucket keep versions from now on.
    pub fn keep_versions(&self) {
        self.bucket.as_ref().unwrap().keep_versions();
    }

    /// The names of all that the repository's bucket holds, in order, without the history, to which every run adds; none where
    /// it is in a folder.
    pub fn keys(&self) -> Vec<String> {
        let found = self.bucket.iter().map(|bucket| bucket.open(FOLDER));
        let found = found.flat_map(|store| store.list("").unwrap());
        let of_history = format!("{SERVER}/history/");
        let keys = found.map(|found| found.key);
        let mut keys: Vec<String> = keys.filter(|key| !key.starts_with(&of_history)).collect();
        keys.sort();
        keys
    }

    /// The repository in the bucket.
    pub fn store(&self) -> ObjectStore {
        self.bucket.as_ref().unwrap().open(FOLDER)
    }

    /// Gets what lies below a folder of the bucket into a new one of this machine.
    pub fn fetch(&self, below: &str) -> PathBuf {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let folder = self.ground.folder(&format!("fetched-{number}"));
        let store = self.store();
        for found in store.list(below).unwrap() {
            let path = folder.join(&found.key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut reader = store.open_read(&found.key).unwrap().unwrap();
            std::io::copy(&mut reader, &mut File::create(path).unwrap()).unwrap();
        }
        checks::tree(&folder)
            .iter()
            .for_each(|path| account::give(path));
        folder.join(below)
    }

    /// The same for a test that must know which files come first, and how fast, or how much WAL there is: a stream has its own
    /// order, and switches to new segments.
    pub fn without_stream(cluster: &Cluster) -> Pgkeep {
        let pgkeep = Pgkeep::of(cluster);
        match source(cluster.major).as_str() {
            "stream" => pgkeep.with("source", "sql"),
            _ => pgkeep,
        }
    }

    /// Sets a key of the section `[pgkeep]`.
    pub fn with(mut self, key: &str, value: &str) -> Pgkeep {
        set(&mut self.global, key, value);
        self.write_configuration();
        self
    }

    /// Sets a key of the server's section.
    pub fn with_server(mut self, key: &str, value: &str) -> Pgkeep {
        set(&mut self.server, key, value);
        self.write_configuration();
        self
    }

    /// Keeps the backups in another folder.
    pub fn with_base(mut self, base: &Path) -> Pgkeep {
        base.clone_into(&mut self.base);
        self.write_configuration();
        self
    }

    fn write_configuration(&self) {
        let mut text = format!("[pgkeep]\nbase_dir = {}\n", self.base.display());
        for (key, value) in &self.global {
            text.push_str(&format!("{key} = {value}\n"));
        }
        let is_of_compression = |(key, _): &&(String, String)| key.starts_with("compression");
        let mut chosen = self.global.iter().chain(&self.server);
        if !chosen.any(|setting| is_of_compression(&setting)) {
            // Who does not say how, does not care: half the time of zstd's own level.
            text.push_str("compression_level = 1\n");
        }
        text.push_str(&format!("\n[{SERVER}]\n"));
        for (key, value) in &self.server {
            text.push_str(&format!("{key} = {value}\n"));
        }
        self.configure(&text);
    }

    /// Replaces the configuration file by any text.
    pub fn configure(&self, text: &str) {
        self.ground.file("pgkeep.conf", text);
    }

    /// The configuration file.
    pub fn configuration(&self) -> PathBuf {
        self.ground.path().join("pgkeep.conf")
    }

    /// Its own ground, for restored clusters and the like.
    pub fn ground(&self) -> &Ground {
        &self.ground
    }

    /// The folder `base_dir`.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The folder that holds the finished backups.
    pub fn backups(&self) -> PathBuf {
        self.base.join(SERVER).join("backup")
    }

    /// Runs a command line to its end.
    pub fn run(&self, arguments: &[&str]) -> Run {
        self.spawn(arguments).wait()
    }

    /// Runs a command line that must succeed; gives its report.
    pub fn ok(&self, arguments: &[&str]) -> Report {
        self.run(arguments).succeeded()
    }

    /// Takes a full backup, which must succeed.
    pub fn backup(&self) -> Backup {
        self.backup_with(&[])
    }

    /// Takes an incremental backup, which must succeed.
    pub fn backup_on(&self, parent: &str) -> Backup {
        self.backup_with(&[parent])
    }

    fn backup_with(&self, arguments: &[&str]) -> Backup {
        self.finished(&self.ok(&[&["backup", SERVER], arguments].concat()))
    }

    /// The backup that a report is of.
    pub fn finished(&self, report: &Report) -> Backup {
        let identifier = report.at("Response.Backup");
        let folder = match self.bucket {
            None => self.backups().join(&identifier),
            Some(_) => {
                let backup = self.fetch(&format!("{SERVER}/backup/{identifier}"));
                let entries = fs::read_dir(backup).unwrap();
                let mut folders = entries
                    .map(|entry| entry.unwrap().path())
                    .filter(|path| path.is_dir());
                folders.next().unwrap()
            }
        };
        Backup { folder, identifier }
    }

    /// Restores a backup into a new folder; gives the data directory.
    pub fn restore(&self, backup: &str) -> PathBuf {
        self.restore_with(backup, &[])
    }

    /// The same with further arguments.
    pub fn restore_with(&self, backup: &str, arguments: &[&str]) -> PathBuf {
        let number = self.runs.load(Ordering::Relaxed);
        let folder = self.ground.folder(&format!("restored-{number}"));
        let mut all = vec!["restore", SERVER, backup, folder.to_str().unwrap()];
        all.extend(arguments);
        let report = self.ok(&all);
        folder.join(format!("{SERVER}-{}", report.at("Response.Backup")))
    }

    /// Restores a backup with tablespaces of its own, beside the server that it is of.
    pub fn restore_elsewhere(&self, backup: &str) -> PathBuf {
        let number = self.runs.load(Ordering::Relaxed);
        let info = self.ok(&["info", SERVER, backup]);
        let tablespaces = info.find("Response.Tablespaces").and_then(Value::as_object);
        let mut arguments = Vec::new();
        for (name, about) in tablespaces.into_iter().flatten() {
            if about["Path"] != "in place" {
                let folder = self.ground.folder(&format!("{name}-{number}"));
                let moved = format!("{name}={}", folder.display());
                arguments.extend(["--tablespace".to_owned(), moved]);
            }
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.restore_with(backup, &arguments)
    }

    /// Starts a command line.
    pub fn spawn(&self, arguments: &[&str]) -> Running {
        let mut command = self.command(binary());
        command.arg("-c").arg(self.configuration());
        self.spawn_command(command.args(arguments))
    }

    /// Runs a command line as root, which the test must be.
    pub fn run_as_root(&self, arguments: &[&str]) -> Run {
        self.spawn_as_root(arguments).wait()
    }

    /// Starts a command line as root.
    pub fn spawn_as_root(&self, arguments: &[&str]) -> Running {
        let mut command = self.command(binary());
        command.uid(0).gid(0).arg("-c").arg(self.configuration());
        self.spawn_command(command.args(arguments))
    }

    /// Starts a shell script that sees pgkeep's command line as `"$@"`.
    pub fn spawn_in_shell(&self, script: &str, arguments: &[&str]) -> Running {
        let mut command = self.command("bash");
        command.args(["-c", script, "bash"]).arg(binary());
        command.arg("-c").arg(self.configuration());
        self.spawn_command(command.args(arguments))
    }

    /// The same as root.
    pub fn spawn_in_roots_shell(&self, script: &str, arguments: &[&str]) -> Running {
        let mut command = self.command("bash");
        command
            .uid(0)
            .gid(0)
            .args(["-c", script, "bash"])
            .arg(binary());
        command.arg("-c").arg(self.configuration());
        self.spawn_command(command.args(arguments))
    }

    /// Starts the binary without `-c`: only what the test gives it.
    pub fn spawn_bare(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Running {
        let mut command = self.command(binary());
        command.envs(environment.iter().copied());
        self.spawn_command(command.args(arguments))
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = account::command(program);
        command.env("HOME", self.ground.path());
        // Of a machine with other things to do, a session can take longer than anybody waits by default.
        command.env("PGCONNECT_TIMEOUT", "120");
        command
    }

    fn spawn_command(&self, command: &mut Command) -> Running {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let stdout = self.ground.path().join(format!("stdout-{number}"));
        let stderr = self.ground.path().join(format!("stderr-{number}"));
        command
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).unwrap())
            .stderr(File::create(&stderr).unwrap());
        Running {
            line: format!("{command:?}"),
            child: command.spawn().unwrap(),
            stdout,
            stderr,
        }
    }
}

/// A finished backup.
pub struct Backup {
    pub identifier: String,
    pub folder: PathBuf,
}

/// A pgkeep at work.
pub struct Running {
    line: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(pid(self.child.id()), signal);
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// True while it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Run {
        let give_up = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > give_up {
                let _ = self.child.kill();
                let _ = self.child.wait();
                panic!(
                    "{} hangs:\n{}",
                    self.line,
                    fs::read_to_string(&self.stderr).unwrap()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Run {
            status,
            stdout: fs::read_to_string(&self.stdout).unwrap(),
            stderr: fs::read_to_string(&self.stderr).unwrap(),
            line: std::mem::take(&mut self.line),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a command line came to.
pub struct Run {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    line: String,
}

impl Run {
    /// The report.
    pub fn report(&self) -> Report {
        assert!(!self.stdout.is_empty(), "no report from {self:?}");
        Report::parse(&self.stdout)
    }

    /// Checks that it succeeded; gives its report.
    pub fn succeeded(&self) -> Report {
        assert_eq!(self.status.code(), Some(0), "{self:?}");
        let report = self.report();
        assert_eq!(report.at("Outcome.Status"), "true", "{self:?}");
        report
    }

    /// Checks that it failed with this exit status and one sentence; gives that.
    pub fn failed(&self, status: i32) -> String {
        assert_eq!(self.status.code(), Some(status), "{self:?}");
        let report = self.report();
        assert_eq!(report.at("Outcome.Status"), "false", "{self:?}");
        let error = report.at("Outcome.Error");
        assert!(!error.is_empty() && !error.contains("panicked"), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        assert!(!self.stderr.is_empty(), "nothing on stderr: {self:?}");
        error
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {}\n--- stdout\n{}\n--- stderr\n{}",
            self.line, self.status, self.stdout, self.stderr
        )
    }
}

fn set(section: &mut Vec<(String, String)>, key: &str, value: &str) {
    section.retain(|(found, _)| found != key);
    section.push((key.into(), value.into()));
}

/// The one thing in a folder.
pub fn only_entry(folder: &Path) -> PathBuf {
    let entries: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    match &entries[..] {
        [entry] => entry.clone(),
        _ => panic!("not one entry in {}: {entries:?}", folder.display()),
    }
}

/// The binary under test, just built or named by `PGKEEP_TEST_BINARY`, where the
/// unprivileged account can run it: the folder of the build may be in a home that
/// only root may enter.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<(PathBuf, Option<Ground>)> = OnceLock::new();
    let (path, _) = BINARY.get_or_init(|| {
        let built = std::env::var_os("PGKEEP_TEST_BINARY").map_or_else(
            || PathBuf::from(env!("CARGO_BIN_EXE_pgkeep")),
            PathBuf::from,
        );
        let runs = account::command(&built).arg("--version").output();
        if runs.is_ok_and(|output| output.status.success()) {
            return (built, None);
        }
        let ground = Ground::new();
        let copy = ground.path().join("pgkeep");
        fs::copy(&built, &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        (copy, Some(ground))
    });
    path
}

/// Waits until a running backup is in the midst of copying: some of it is on
/// disk, in a folder that is no backup yet.
pub fn wait_until_copying(running: &mut Running, pgkeep: &Pgkeep) {
    wait_until("the backup is copying", || {
        assert!(
            running.is_running(),
            "the backup ended before it was seen at work"
        );
        if pgkeep.bucket.is_some() {
            let keys = pgkeep.keys();
            let mut building = keys.iter().filter_map(|key| key.split_once(".building."));
            return building.any(|(backup, _)| {
                let first = format!("{backup}/1.");
                keys.iter().any(|key| key.starts_with(&first))
            });
        }
        let folders = fs::read_dir(pgkeep.backups()).into_iter().flatten();
        folders.flatten().any(|folder| {
            let files = walkdir::WalkDir::new(folder.path()).into_iter().flatten();
            !folder.path().join("backup.info").exists()
                && files.filter(|file| file.file_type().is_file()).count() > 0
        })
    });
}

/// Waits until a running backup has copied all WAL of a primary, as its log tells with `-vv`.
pub fn wait_until_followed(running: &mut Running, cluster: &Cluster) {
    let written = position(&cluster.value("select pg_current_wal_flush_lsn()"));
    wait_until("the WAL is copied", || {
        assert!(running.is_running(), "the backup ended before that");
        let stderr = fs::read_to_string(&running.stderr).unwrap();
        let mut told = stderr
            .lines()
            .filter_map(|line| line.split_once("copied up to "));
        told.any(|(_, lsn)| position(lsn) >= written)
    });
}

fn position(lsn: &str) -> u64 {
    let lsn: Lsn = lsn.parse().unwrap();
    lsn.0
}

/// Waits until a backup has got to the pass with a number.
pub fn wait_for_pass(running: &mut Running, pgkeep: &Pgkeep, number: u32) {
    wait_until("the backup makes another pass", || {
        assert!(running.is_running(), "the backup ended before that pass");
        let part = format!("/{number}/");
        if pgkeep.bucket.is_some() {
            return pgkeep.keys().iter().any(|key| key.contains(&part));
        }
        let folders = fs::read_dir(pgkeep.backups()).into_iter().flatten();
        folders
            .flatten()
            .any(|folder| folder.path().join(number.to_string()).exists())
    });
}
