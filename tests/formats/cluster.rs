//! A PostgreSQL cluster of any major release, for as long as a test runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use pgkeep::pg::version::Major;

use crate::support::ground::Ground;
use crate::support::{account, initialized, installed};

/// A cluster in a directory of its own, `data` below it, reached through a
/// socket there. Dropped, its server is stopped and its directory removed.
pub(crate) struct Cluster {
    pub(crate) major: Major,
    root: Ground,
}

impl Cluster {
    /// A new cluster with data checksums and the smallest WAL segments, not yet running.
    pub(crate) fn init(major: Major) -> Cluster {
        Cluster::with_segments(major, "--wal-segsize=1")
    }

    /// The same with WAL segments of the size that an option says.
    pub(crate) fn with_segments(major: Major, option: &str) -> Cluster {
        let cluster = Cluster::empty(major);
        initialized::cluster(major.number(), &["-k", option], &cluster.data());
        cluster.configure("autovacuum = off\nfsync = off\nlisten_addresses = ''\n");
        cluster
    }

    /// A running copy of a running cluster, made by pg_basebackup.
    pub(crate) fn base_backup(&self, options: &[&str]) -> Cluster {
        let copy = Cluster::empty(self.major);
        let data = copy.data();
        let mut arguments = vec!["-h", text(self.root.path()), "-U", "postgres"];
        arguments.extend(["-D", text(&data), "-c", "fast", "--no-sync"]);
        arguments.extend(options);
        self.run("pg_basebackup", &arguments);
        copy
    }

    fn empty(major: Major) -> Cluster {
        let root = Ground::new();
        Cluster { major, root }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// A directory beside the data directory.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        self.root.folder(name)
    }

    pub(crate) fn configure(&self, lines: &str) {
        let file = self.data().join("postgresql.conf");
        let before = fs::read_to_string(&file).unwrap();
        fs::write(file, before + lines).unwrap();
    }

    /// Starts the server; false if it refuses.
    pub(crate) fn start(&self) -> bool {
        let socket = format!("-k {}", text(self.root.path()));
        let (data, log) = (self.data(), self.root.path().join("log"));
        let arguments = [
            "-D",
            text(&data),
            "-l",
            text(&log),
            "-o",
            &socket,
            "-w",
            "start",
        ];
        // pg_ctl leaves its output open to the server: do not wait for its end.
        let mut start = self.tool("pg_ctl", &arguments);
        start.stdout(Stdio::null()).stderr(Stdio::null());
        start.status().unwrap().success()
    }

    pub(crate) fn stop(&self, mode: &str) {
        self.run(
            "pg_ctl",
            &["-D", text(&self.data()), "-m", mode, "-w", "stop"],
        );
    }

    /// What the server wrote into its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.root.path().join("log")).unwrap()
    }

    /// Runs statements in one session; the output of the last, unaligned.
    pub(crate) fn sql(&self, statements: &[&str]) -> String {
        let mut arguments = vec!["-h", text(self.root.path()), "-U", "postgres", "-XAtq"];
        arguments.extend(["-v", "ON_ERROR_STOP=1", "-d", "postgres"]);
        let (last, first) = statements.split_last().unwrap();
        for statement in first {
            arguments.extend(["-c", "\\o /dev/null", "-c", statement]);
        }
        arguments.extend(["-c", "\\o", "-c", last]);
        self.run("psql", &arguments)
            .trim_end_matches('\n')
            .to_owned()
    }

    /// Runs one of PostgreSQL's tools, which must succeed; its output.
    pub(crate) fn run(&self, tool: &str, arguments: &[&str]) -> String {
        let output = self.try_run(tool, arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tool} {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn try_run(&self, tool: &str, arguments: &[&str]) -> Output {
        self.tool(tool, arguments).output().unwrap()
    }

    fn tool(&self, tool: &str, arguments: &[&str]) -> Command {
        let binaries = installed::binaries(self.major.number());
        let mut command = account::command(binaries.join(tool));
        command.args(arguments);
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.data().join("postmaster.pid").exists() {
            let data = self.data();
            let _ = self.try_run("pg_ctl", &["-D", text(&data), "-m", "immediate", "stop"]);
        }
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
