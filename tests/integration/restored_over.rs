//! Restores over data directories that are there: `restore --delta`.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use walkdir::WalkDir;

use crate::support::account::{self, is_root};
use crate::support::checks::{self, Before};
use crate::support::cluster::{Options, Postmaster};
use crate::support::pgkeep::SERVER;
use crate::support::random_changes::{Random, rounds};
use crate::support::{Cluster, Pgkeep, wait_until};

const PAGE: u64 = 8192;

/// All of a data directory and of what its links lead to: modes and contents.
fn tree(data: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let entries = WalkDir::new(data).min_depth(1).follow_links(true);
    let entries = entries.into_iter().map(|entry| {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        let content = match metadata.is_file() {
            true => fs::read(entry.path()).unwrap(),
            false => Vec::new(),
        };
        let path = entry.path().strip_prefix(data).unwrap().to_owned();
        (path, (metadata.mode(), content))
    });
    entries.collect()
}

fn assert_same(data: &Path, fresh: &Path) {
    let (data, fresh) = (tree(data), tree(fresh));
    for path in data.keys().chain(fresh.keys()) {
        let (found, expected) = (data.get(path), fresh.get(path));
        assert!(
            found == expected,
            "{} is {:?}, not {:?}",
            path.display(),
            found.map(|(mode, content)| (mode, content.len())),
            expected.map(|(mode, content)| (mode, content.len())),
        );
    }
}

/// A stopped cluster whose WAL lies elsewhere.
fn with_linked_wal(major: u32) -> (Cluster, PathBuf) {
    let cluster = Cluster::stopped(major, &Options::default());
    let (own, wal) = (
        cluster.data().join("pg_wal"),
        cluster.ground().path().join("wal"),
    );
    fs::rename(&own, &wal).unwrap();
    symlink(&wal, &own).unwrap();
    cluster.set("autovacuum = off");
    // An incremental backup reads it there.
    cluster.set("wal_keep_size = 1GB");
    (cluster, wal)
}

#[test]
fn a_servers_own_data_directory_becomes_what_a_restore_writes() {
    let (mut cluster, wal) = with_linked_wal(17);
    cluster.start();
    let data = cluster.data().to_owned();
    cluster.tablespace("outside");
    cluster.sql(
        "create table far tablespace outside as select i, md5(i::text) from generate_series(1, 3000) i;
         create table dropped as select i from generate_series(1, 3000) i",
    );
    let further = cluster.ground().file("further.conf", "further = yes");
    let pgkeep = Pgkeep::of(&cluster).with_server("extra", further.to_str().unwrap());
    pgkeep.backup();
    cluster.sql("update far set i = i + 1 where i % 500 = 0");
    pgkeep.backup_on("newest");
    let before = Before::of(&cluster);
    let fresh = pgkeep.restore_elsewhere("newest");

    assert_told(&pgkeep, &cluster);

    let later = cluster.tablespace("later");
    cluster.sql(
        "update far set i = i + 1 where i % 700 = 0; drop table dropped;
         create table added tablespace later as select i from generate_series(1, 3000) i;
         insert into far select i from generate_series(1, 9000) i; select pg_switch_wal()",
    );
    cluster.sql("create database added");
    let command = [
        "restore",
        SERVER,
        "newest",
        data.to_str().unwrap(),
        "--delta",
    ];
    let refused = |why: &str| {
        let state = checks::state(&data.join("global"));
        let error = pgkeep.run(&command).failed(1);
        assert!(error.contains(why), "{error}");
        assert_eq!(checks::state(&data.join("global")), state);
    };
    refused("a server is running");
    let (pid_file, hidden) = (data.join("postmaster.pid"), data.join("hidden.pid"));
    fs::rename(&pid_file, &hidden).unwrap();
    refused("a server is running");
    fs::rename(&hidden, &pid_file).unwrap();
    cluster.stop(Postmaster::Immediate);
    fs::write(wal.join("stranger"), "somebody else's").unwrap();
    // Of an earlier restore: only the backup's own files are written there.
    let extra = cluster.ground().folder("data-extra");
    cluster.ground().file("data-extra/other", "somebody else's");

    let state = checks::state(&data);
    let told = pgkeep.ok(&[&command[..], &["--dry-run"]].concat());
    assert!(told.number("Response.Differences.ChangedFiles") > 0);
    assert!(told.number("Response.Differences.NewFiles") > 0);
    assert!(told.number("Response.Differences.Removed") > 0);
    assert_eq!(checks::state(&data), state);

    // Killed, at first where it has surely begun.
    let begun = data.join("pg_control.set_aside");
    let mut random = Random::seeded();
    for round in 0..rounds(2) {
        let running = pgkeep.spawn(&command);
        match round {
            0 => wait_until("it has begun", || begun.exists()),
            _ => std::thread::sleep(Duration::from_millis(random.below(400))),
        }
        running.signal(Signal::KILL);
        running.wait();
        if round == 0 {
            assert!(!data.join("global/pg_control").exists());
            assert!(cluster.try_start().is_err());
        }
    }
    let report = pgkeep.ok(&command);
    assert_eq!(report.at("Response.Directory"), data.to_str().unwrap());
    assert!(!begun.exists());
    assert_eq!(fs::read_dir(later).unwrap().count(), 0);
    assert!(
        fs::symlink_metadata(data.join("pg_wal"))
            .unwrap()
            .is_symlink()
    );
    fs::remove_file(wal.join("stranger")).unwrap();
    let written = extra.join(further.strip_prefix("/").unwrap());
    assert_eq!(fs::read(written).unwrap(), fs::read(&further).unwrap());
    assert!(extra.join("other").exists());
    assert_same(&data, &fresh);

    // One page, and no name of it is left to another file.
    let path = WalkDir::new(data.join("base")).into_iter().flatten();
    let path = path
        .map(walkdir::DirEntry::into_path)
        .find(|path| path.is_file() && path.metadata().unwrap().len() > 4 * PAGE);
    let path = path.unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"another", 2 * PAGE + 4000).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let told = pgkeep.ok(&[&command[..], &["--dry-run", "-F", "json"]].concat());
    assert_eq!(told.number("Response.Differences.ChangedFiles"), 1);
    assert_eq!(told.number("Response.Differences.Written"), PAGE);
    let report = match is_root() {
        true => pgkeep
            .run_as_root(&[&command[..], &["-F", "json"]].concat())
            .succeeded(),
        false => pgkeep.ok(&[&command[..], &["-F", "json"]].concat()),
    };
    let of = |key: &str| -> u64 { report.number(&format!("Response.Differences.{key}")) };
    assert_eq!(
        (of("ChangedFiles"), of("NewFiles"), of("Removed")),
        (1, 0, 0)
    );
    let made = [
        "backup_manifest",
        "postgresql.auto.conf",
        "backup_label",
        "global/pg_control",
    ];
    let made: u64 = made
        .iter()
        .map(|name| data.join(name).metadata().unwrap().len())
        .sum();
    assert_eq!(of("Written"), PAGE + made);
    assert_same(&data, &fresh);
    for entry in WalkDir::new(&data).follow_links(true) {
        let owner = entry.unwrap().metadata().unwrap().uid();
        assert_eq!(owner, account::uid());
    }
    let restored = checks::is_whole(17, &data, &before, i64::MAX);
    assert_eq!(restored.number("select count(*) from far"), 3000);
}

/// `--dry-run` tells where all would go and all that speaks against it, and does nothing.
fn assert_told(pgkeep: &Pgkeep, cluster: &Cluster) {
    cluster.sql("create table behind as select 1; select pg_switch_wal()");
    pgkeep.ok(&["wal", "copy", SERVER]);
    let target = pgkeep.ground().path().join("nowhere");
    let command = [
        "restore",
        SERVER,
        "newest",
        "current",
        target.to_str().unwrap(),
    ];
    let told = pgkeep.run(&[&command[..], &["--dry-run"]].concat());
    let told_error = told.failed(1);
    let problems = told
        .report()
        .find("Response.Problems")
        .unwrap()
        .as_array()
        .unwrap()
        .clone();
    // The source is running, the tablespace is its own, and is not empty.
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(told_error.contains("a server is running"), "{told_error}");
    let error = pgkeep.run(&command).failed(1);
    assert!(error.contains("a server is running"), "{error}");

    let moved = pgkeep.ground().path().join("moved");
    let mapping = format!("outside={}", moved.display());
    let told = pgkeep.ok(&[&command[..], &["--dry-run", "--tablespace", &mapping]].concat());
    assert_eq!(told.at("Response.Problems"), "[]");
    assert_eq!(
        told.find("Response.Chain")
            .unwrap()
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(told.at("Response.Places.0.Path"), moved.to_str().unwrap());
    assert!(told.number("Response.ArchivedWal.Segments") > 0);
    let settings = told.at("Response.Settings");
    assert!(settings.contains("wal get"), "{settings}");
    assert_eq!(told.at("Response.SignalFile"), "recovery.signal");
    assert!(!target.exists() && !moved.exists());
}

#[test]
fn a_failed_primary_follows_its_successor() {
    let mut old = Cluster::new(15);
    let successor = old.standby();
    successor.catch_up_with(&old);
    successor.sql("select pg_promote()");
    successor.wait_until_writable();
    old.sql(
        "create table lost as select i from generate_series(1, 3000) i;
         update quiet set id = id + 100000; select pg_switch_wal(); checkpoint",
    );
    successor.sql("create table kept as select i from generate_series(1, 2000) i");
    let pgkeep = Pgkeep::of(&successor);
    pgkeep.backup();
    old.stop(Postmaster::Killed);
    let data = old.data().to_str().unwrap().to_owned();
    let report = pgkeep.ok(&["restore", SERVER, "newest", "replica", &data, "--delta"]);
    assert!(report.number("Response.Differences.SameFiles") > 100);
    successor.sql("insert into kept select i from generate_series(1, 1000) i");
    old.start();
    old.catch_up_with(&successor);
    assert_eq!(old.value("select pg_is_in_recovery()"), "t");
    assert_eq!(old.number("select count(*) from kept"), 3000);
    assert_eq!(old.value("select to_regclass('lost') is null"), "t");
    assert_eq!(
        checks::dump(&old, "quiet"),
        checks::dump(&successor, "quiet")
    );
}
