//! A server that archives its WAL with pgkeep, and what lies in the archive then.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cluster::{Cluster, Options};
use super::pgkeep::{Pgkeep, SERVER, binary};
use super::{account, wait_until};

/// Small segments, so that there are many.
pub fn small_segments() -> Options {
    Options {
        wal_segment_mb: 1,
        ..Options::default()
    }
}

/// A running cluster with the pgkeep that its `archive_command` calls.
pub fn archiving(
    major: u32,
    options: &Options,
    prepare: impl Fn(Pgkeep) -> Pgkeep,
    command: impl Fn(&Pgkeep) -> String,
) -> (Cluster, Pgkeep) {
    let mut cluster = Cluster::stopped(major, options);
    let pgkeep = prepare(Pgkeep::of(&cluster));
    let command = command(&pgkeep).replace('\'', "''");
    cluster.set("archive_mode = on");
    cluster.set(&format!("archive_command = '{command}'"));
    cluster.start();
    (cluster, pgkeep)
}

impl Pgkeep {
    /// Encrypts what is stored from now on.
    pub fn encrypting(self, mode: &str) -> Pgkeep {
        let key = self.ground().path().join("master.key");
        let pgkeep = self.with("master_key", key.to_str().unwrap());
        pgkeep.ok(&["master-key"]);
        pgkeep.with("encryption", mode)
    }

    /// What a server calls to archive a file.
    pub fn archive_command(&self) -> String {
        format!(
            "{} -c {} wal push {SERVER} %p",
            binary().display(),
            self.configuration().display()
        )
    }

    /// What a server calls to get a file back.
    pub fn restore_command(&self) -> String {
        format!(
            "{} -c {} wal get {SERVER} %f %p",
            binary().display(),
            self.configuration().display()
        )
    }

    /// The folder of the archived WAL.
    pub fn wal(&self) -> PathBuf {
        self.base().join(SERVER).join("wal")
    }

    /// The names in PostgreSQL of the archived files.
    pub fn archived(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.wal()).into_iter().flatten().flatten();
        let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
        let names = files.map(|entry| entry.file_name().into_string().unwrap());
        let inside = format!("{SERVER}/wal/");
        let keys = self.keys().into_iter();
        let names = names.chain(keys.filter_map(|key| Some(key.strip_prefix(&inside)?.to_owned())));
        names
            .filter(|name| name != "archive.info")
            .map(|name| {
                let name = name.strip_suffix(".aes").unwrap_or(&name);
                name.strip_suffix(".zstd").unwrap_or(name).to_owned()
            })
            .collect()
    }

    /// Files that are half written, in the archive and among the block maps.
    pub fn incoming(&self) -> usize {
        let folders = ["wal", "summary"].map(|name| self.base().join(SERVER).join(name));
        let entries = folders.map(|folder| fs::read_dir(folder.join("incoming")));
        entries.into_iter().flatten().flatten().count()
    }

    /// Runs pgkeep with a data directory as the working directory, as a server does.
    pub fn output_in(&self, folder: &Path, arguments: &[&str]) -> std::process::Output {
        let mut command: Command = account::command(binary());
        command
            .env("HOME", self.ground().path())
            .current_dir(folder);
        command.arg("-c").arg(self.configuration()).args(arguments);
        account::output(&mut command)
    }
}

/// Ends the segment that is being written, and gives its name.
pub fn switch(cluster: &Cluster) -> String {
    cluster.sql("create table if not exists switched (i int); insert into switched values (1)");
    cluster.value("select pg_walfile_name(pg_switch_wal())")
}

/// Waits until the server has archived a segment.
pub fn wait_until_archived(pgkeep: &Pgkeep, segment: &str) {
    wait_until(&format!("{segment} is archived"), || {
        pgkeep.archived().contains(segment)
    });
}

/// Lets a restored cluster recover from the archive, to its end.
pub fn recover_with(data: &Path, restore_command: &str) {
    let path = data.join("postgresql.auto.conf");
    let settings = fs::read_to_string(&path).unwrap();
    let kept = settings.lines().filter(|line| {
        !line.starts_with("restore_command") && !line.starts_with("recovery_target")
    });
    let mut settings: String = kept.map(|line| format!("{line}\n")).collect();
    settings.push_str(&format!(
        "restore_command = '{}'\nrecovery_target_timeline = 'latest'\n",
        restore_command.replace('\'', "''")
    ));
    fs::write(path, settings).unwrap();
}
