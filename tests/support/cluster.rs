//! A PostgreSQL server of a test: made in a moment, stopped whatever happens.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use postgres::{NoTls, SimpleQueryMessage};
use rustix::process::{Pid, Signal, kill_process};

use super::account::{self, run};
use super::ground::Ground;
use super::{installed, template};

/// What kind of cluster to make.
pub struct Options {
    pub checksums: bool,
    /// 1 where nothing depends on it: the server fills a whole one at every switch, and each is copied, checked and
    /// replayed. 16 is what PostgreSQL makes.
    pub wal_segment_mb: u32,
    pub group_access: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            checksums: true,
            wal_segment_mb: 1,
            group_access: false,
        }
    }
}

impl Options {
    /// With segments of the size that PostgreSQL makes.
    pub fn of_default_segments() -> Options {
        Options {
            wal_segment_mb: 16,
            ..Options::default()
        }
    }

    /// Names the kind, for the template's folder.
    pub fn kind(&self) -> String {
        format!(
            "{}{}{}",
            self.wal_segment_mb,
            if self.checksums { "-checksums" } else { "" },
            if self.group_access { "-group" } else { "" }
        )
    }
}

/// How to end a server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Postmaster {
    /// Cleanly, at once.
    Fast,
    /// Without a checkpoint, so that the next start recovers.
    Immediate,
    /// As the kernel kills: the postmaster and all its children, no warning.
    Killed,
}

/// A cluster and its server, if that runs.
pub struct Cluster {
    pub major: u32,
    data: PathBuf,
    ground: Ground,
    server: Option<Child>,
}

impl Cluster {
    /// A running cluster with the template's content.
    pub fn new(major: u32) -> Cluster {
        Cluster::with(major, &Options::default())
    }

    /// A running cluster of some kind with the template's content.
    pub fn with(major: u32, options: &Options) -> Cluster {
        let mut cluster = Cluster::stopped(major, options);
        cluster.start();
        cluster
    }

    /// The same, not yet started.
    pub fn stopped(major: u32, options: &Options) -> Cluster {
        let ground = Ground::new();
        let data = ground.path().join("data");
        template::copy(major, options, &data);
        Cluster {
            major,
            data,
            ground,
            server: None,
        }
    }

    /// A cluster around a data directory that something else made, not started.
    pub fn adopt(major: u32, data: &Path) -> Cluster {
        Cluster {
            major,
            data: data.to_owned(),
            ground: Ground::new(),
            server: None,
        }
    }

    /// A running cluster that was restored, out of recovery.
    pub fn restored(major: u32, data: &Path) -> Cluster {
        let mut cluster = Cluster::adopt(major, data);
        cluster.start();
        cluster.wait_until_writable();
        cluster
    }

    /// A running standby that streams from this cluster.
    pub fn standby(&self) -> Cluster {
        let ground = Ground::new();
        let data = ground.path().join("data");
        let mut backup = self.tool("pg_basebackup");
        backup
            .args(["-R", "-X", "stream", "-c", "fast", "-N", "-D"])
            .arg(&data);
        run(&mut backup);
        let mut standby = Cluster {
            major: self.major,
            data,
            ground,
            server: None,
        };
        standby.start();
        standby
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The folder of the server's socket.
    pub fn socket(&self) -> &Path {
        self.ground.path()
    }

    /// The cluster's own ground, where its tablespaces may lie.
    pub fn ground(&self) -> &Ground {
        &self.ground
    }

    /// Adds a line to postgresql.conf; takes effect at the next start.
    pub fn set(&self, line: &str) {
        let file = self.data.join("postgresql.conf");
        let mut settings = fs::read_to_string(&file).unwrap();
        settings.push_str(line);
        settings.push('\n');
        fs::write(file, settings).unwrap();
    }

    /// Starts the server and waits until it takes connections.
    pub fn start(&mut self) {
        let give_up = Instant::now() + super::PATIENCE;
        while let Err(log) = self.try_start() {
            // The last of a killed server's processes can take a moment to be gone.
            let is_early = log.contains("pre-existing shared memory block");
            if !is_early || Instant::now() > give_up {
                panic!("PostgreSQL {} does not start:\n{log}", self.major);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Starts the server; its log if it ends instead of taking connections.
    pub fn try_start(&mut self) -> Result<(), String> {
        let log = File::create(self.log_file()).unwrap();
        let mut postgres = account::command(installed::binaries(self.major).join("postgres"));
        postgres.arg("-D").arg(&self.data);
        postgres.args(["-c", "listen_addresses=", "-c", "port=5432", "-c"]);
        postgres.arg(format!(
            "unix_socket_directories={}",
            self.socket().display()
        ));
        postgres
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let mut server = postgres.spawn().unwrap();
        let give_up = Instant::now() + super::PATIENCE;
        loop {
            if server.try_wait().unwrap().is_some() {
                return Err(self.log());
            }
            if self.connect("postgres").is_ok() {
                self.server = Some(server);
                return Ok(());
            }
            if Instant::now() > give_up {
                self.server = Some(server);
                return Err(format!(
                    "no connection within {:?}\n{}",
                    super::PATIENCE,
                    self.log()
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// True if the server has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        let server = self.server.as_mut();
        let has_ended = server.is_none_or(|server| server.try_wait().unwrap().is_some());
        if has_ended {
            self.server = None;
        }
        has_ended
    }

    /// Stops the server.
    pub fn stop(&mut self, how: Postmaster) {
        let Some(mut server) = self.server.take() else {
            return;
        };
        let postmaster = pid(server.id());
        match how {
            Postmaster::Fast => kill_process(postmaster, Signal::INT).unwrap(),
            Postmaster::Immediate => kill_process(postmaster, Signal::QUIT).unwrap(),
            Postmaster::Killed => {
                let children = children_of(server.id());
                let _ = kill_process(postmaster, Signal::KILL);
                for child in children {
                    let _ = kill_process(child, Signal::KILL);
                }
            }
        }
        server.wait().unwrap();
    }

    /// The server's log since its last start.
    pub fn log(&self) -> String {
        let mut log = Vec::new();
        if let Ok(mut file) = File::open(self.log_file()) {
            file.read_to_end(&mut log).unwrap();
        }
        String::from_utf8_lossy(&log).into_owned()
    }

    fn log_file(&self) -> PathBuf {
        self.ground.path().join("log")
    }

    /// A connection to one of its databases.
    pub fn connect(&self, database: &str) -> Result<postgres::Client, postgres::Error> {
        postgres::Config::new()
            .host_path(self.socket())
            .port(5432)
            .user("postgres")
            .dbname(database)
            .application_name("test")
            .connect(NoTls)
    }

    /// Runs SQL in the database postgres; the rows of all its results.
    pub fn sql(&self, sql: &str) -> Vec<Vec<String>> {
        self.sql_in("postgres", sql)
    }

    /// Runs SQL in a database; the rows of all its results, NULL as "".
    pub fn sql_in(&self, database: &str, sql: &str) -> Vec<Vec<String>> {
        let messages = self
            .connect(database)
            .and_then(|mut client| client.simple_query(sql))
            .unwrap_or_else(|error| panic!("{sql}: {error:?}\n{}", self.log()));
        let mut rows = Vec::new();
        for message in messages {
            if let SimpleQueryMessage::Row(row) = message {
                rows.push(
                    (0..row.len())
                        .map(|i| row.get(i).unwrap_or_default().to_owned())
                        .collect(),
                );
            }
        }
        rows
    }

    /// The one value that a query gives.
    pub fn value(&self, sql: &str) -> String {
        match &self.sql(sql)[..] {
            [row] if row.len() == 1 => row[0].clone(),
            rows => panic!("{sql}: not one value but {rows:?}"),
        }
    }

    /// A number that a query gives.
    pub fn number(&self, sql: &str) -> i64 {
        self.value(sql).parse().unwrap()
    }

    /// A program of this PostgreSQL version that connects to this server.
    pub fn tool(&self, name: &str) -> Command {
        let mut command = account::command(installed::binaries(self.major).join(name));
        command
            .env("PGHOST", self.socket())
            .env("PGPORT", "5432")
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command
    }

    /// Makes a tablespace in a folder beside the data directory, and gives the
    /// folder.
    pub fn tablespace(&self, name: &str) -> PathBuf {
        let folder = self.ground.folder(name);
        self.sql(&format!(
            "create tablespace {name} location '{}'",
            folder.display()
        ));
        folder
    }

    /// Waits until this standby has replayed all that `primary` wrote so far.
    pub fn catch_up_with(&self, primary: &Cluster) {
        let written = primary.value("select pg_current_wal_flush_lsn()");
        super::wait_until("the standby has caught up", || {
            self.value(&format!("select pg_last_wal_replay_lsn() >= '{written}'")) == "t"
        });
    }

    /// Waits until the server is out of recovery.
    pub fn wait_until_writable(&self) {
        super::wait_until("recovery has ended", || {
            self.value("select pg_is_in_recovery()") == "f"
        });
    }

    /// The path, relative to the data directory, of a relation's first file.
    pub fn file_of(&self, relation: &str) -> String {
        self.value(&format!("select pg_relation_filepath('{relation}')"))
    }

    /// What an ended backup must not leave behind on a server: a slot, a backup
    /// session, an open connection.
    pub fn assert_nothing_is_left(&self) {
        super::wait_until("no connection of pgkeep is left", || {
            self.value(
                "select count(*) from pg_stat_activity
                 where pid <> pg_backend_pid() and application_name ilike '%pgkeep%'",
            ) == "0"
        });
        // PostgreSQL 14 takes a session off that list before it drops its slot.
        super::wait_until("no slot is left", || {
            self.value("select count(*) from pg_replication_slots") == "0"
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() && self.server.is_some() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(15)..];
            eprintln!(
                "the end of the log of PostgreSQL {}:\n{}",
                self.major,
                end.join("\n")
            );
        }
        self.stop(Postmaster::Immediate);
    }
}

/// A process of ours by its number.
pub fn pid(id: u32) -> Pid {
    Pid::from_raw(id.try_into().unwrap()).unwrap()
}

/// The processes whose parent is `parent`.
fn children_of(parent: u32) -> Vec<Pid> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let is_child = status.lines().any(|line| {
            line.strip_prefix("PPid:")
                .is_some_and(|id| id.trim() == parent.to_string())
        });
        if is_child
            && let Some(id) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
        {
            children.push(pid(id));
        }
    }
    children
}
