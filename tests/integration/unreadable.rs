//! What cannot be read just now is not taken for what is not there: nothing that it needs goes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::expiry::{again, name};
use crate::support::archive::{archiving, small_segments, switch, wait_until_archived};
use crate::support::pgkeep::{Backup, SERVER};
use crate::support::{Cluster, Pgkeep, checks};

/// Everything in the repository by its path, but the history, to which a run that fails adds as well.
fn all(pgkeep: &Pgkeep) -> BTreeSet<PathBuf> {
    let entries = WalkDir::new(pgkeep.base()).into_iter();
    let paths = entries.map(|entry| entry.unwrap().into_path());
    let is_history = |path: &Path| path.components().any(|part| part.as_os_str() == "history");
    paths.filter(|path| !is_history(path)).collect()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// What comes of `look` while the account may not read a file or folder.
fn while_closed<T>(path: &Path, look: impl FnOnce() -> T) -> T {
    let mode = fs::metadata(path).unwrap().permissions().mode();
    set_mode(path, 0);
    let seen = look();
    set_mode(path, mode);
    seen
}

/// Two old backups, one on the other, with the WAL behind them; then a new one. With the names of the old ones.
fn old_and_new() -> (Cluster, Pgkeep, [String; 2]) {
    let (cluster, pgkeep) = archiving(
        16,
        &small_segments(),
        |pgkeep| pgkeep,
        |pgkeep| pgkeep.archive_command(),
    );
    let full = pgkeep.backup();
    let child = pgkeep.backup_on(&full.identifier);
    let names = [name(40), name(39)];
    again(&pgkeep, &full, &names[0], None);
    let parent = Some((full.identifier.as_str(), names[0].as_str()));
    again(&pgkeep, &child, &names[1], parent);
    for backup in [child, full] {
        fs::remove_dir_all(&backup.folder).unwrap();
    }
    cluster.sql("create table filling (body text) with (autovacuum_enabled = off)");
    for _ in 0..3 {
        cluster.sql("insert into filling select repeat('x', 200) from generate_series(1, 2000)");
        switch(&cluster);
    }
    pgkeep.backup();
    let last = switch(&cluster);
    wait_until_archived(&pgkeep, &last);
    (cluster, pgkeep, names)
}

#[test]
fn nothing_expires_while_anything_cannot_be_read() {
    let (cluster, pgkeep, [full, child]) = old_and_new();
    drop(cluster);
    pgkeep.ok(&["retain", SERVER, &child]);
    let before = all(&pgkeep);
    let server = pgkeep.base().join(SERVER);
    let folder = pgkeep.backups().join(&child);
    for (path, status) in [
        (folder.join("backup.info"), 3),
        (folder.clone(), 3),
        (pgkeep.backups().join(&full), 3),
        (pgkeep.backups(), 1),
        (server.join("wal"), 1),
        (server.join("summary"), 1),
        (server.join("lock"), 1),
        (server.clone(), 1),
        (pgkeep.base().to_owned(), 1),
    ] {
        let run = while_closed(&path, || pgkeep.run(&["expire", SERVER]));
        run.failed(status);
        assert_eq!(all(&pgkeep), before, "{}", path.display());
        if status == 3 {
            let planned = while_closed(&path, || pgkeep.run(&["expire", SERVER, "--dry-run"]));
            planned.failed(status);
        }
    }
    // What is damaged for good goes first, by force, and then the rest.
    let info = folder.join("backup.info");
    let sound = fs::read(&info).unwrap();
    fs::write(&info, &sound[..sound.len() / 2]).unwrap();
    pgkeep.run(&["expire", SERVER]).failed(3);
    assert_eq!(all(&pgkeep), before);
    fs::write(&info, sound).unwrap();
    let report = pgkeep.ok(&["--format", "json", "expire", SERVER]);
    assert_eq!(report.at("Response.Backups"), "[]");
    pgkeep.ok(&["verify", SERVER, &child]);

    pgkeep.ok(&["expunge", SERVER, &child]);
    fs::write(&info, "x").unwrap();
    pgkeep.run(&["expire", SERVER]).failed(3);
    pgkeep.ok(&["delete", SERVER, &child, "--force"]);
    let report = pgkeep.ok(&["--format", "json", "expire", SERVER]);
    assert_eq!(report.at("Response.Backups.0"), full);
    assert_ne!(report.at("Response.WAL"), "[]");
    pgkeep.ok(&["verify", SERVER, "newest"]);
}

#[test]
fn positions_of_another_cluster_say_nothing_about_the_archive() {
    let (cluster, pgkeep, [full, child]) = old_and_new();
    drop(cluster);
    let newest = pgkeep.ok(&["info", SERVER, "newest"]);
    let identifier = newest.at("Response.Backup");
    let folder = pgkeep.backups().join(&identifier);
    let of_this = fs::read_to_string(folder.join("backup.info")).unwrap();
    let line = of_this
        .lines()
        .find(|line| line.starts_with("SystemIdentifier:"));
    let backup = Backup { identifier, folder };
    let other = Some((line.unwrap(), "SystemIdentifier: 1"));
    again(&pgkeep, &backup, &name(1), other);
    for name in [&full, &child, &backup.identifier] {
        fs::remove_dir_all(pgkeep.backups().join(name)).unwrap();
    }
    let before = all(&pgkeep);
    let report = pgkeep.ok(&["--format", "json", "expire", SERVER]);
    assert_eq!(report.at("Response.WAL"), "[]");
    assert_eq!(report.at("Response.BlockMaps"), "[]");
    assert_eq!(all(&pgkeep), before);
}

/// A full backup and one on it.
fn parent_and_child(compression: &str) -> (Pgkeep, [Backup; 2]) {
    let mut cluster = Cluster::stopped(17, &Default::default());
    cluster.set("summarize_wal = on");
    cluster.start();
    let pgkeep = Pgkeep::of(&cluster).with("compression", compression);
    let full = pgkeep.backup();
    cluster.sql("update pgbench_accounts set filler = 'x' where aid % 1000 = 1");
    let child = pgkeep.backup_on(&full.identifier);
    (pgkeep, [full, child])
}

#[test]
fn nothing_is_deleted_that_an_unreadable_backup_may_need() {
    let (pgkeep, [full, child]) = parent_and_child("zstd");
    let other = pgkeep.backups().join(name(3));
    fs::create_dir(&other).unwrap();
    let before = all(&pgkeep);
    let delete = |words: &[&str]| pgkeep.run(&[&["delete", SERVER], words].concat());
    // Nobody knows what the one without backup.info needs.
    let error = delete(&[&full.identifier]).failed(3);
    assert!(error.contains(&name(3)[..8]), "{error}");
    fs::remove_dir(&other).unwrap();
    let before = {
        assert_eq!(all(&pgkeep).len() + 1, before.len());
        all(&pgkeep)
    };
    for path in [child.folder.join("backup.info"), child.folder.clone()] {
        let error = while_closed(&path, || delete(&[&full.identifier])).failed(3);
        assert!(error.contains(&child.identifier), "{error}");
        // The newest one that can be read is not what is meant.
        let error = while_closed(&path, || delete(&["newest", "--force"])).failed(3);
        assert!(error.contains(&child.identifier), "{error}");
        assert_eq!(all(&pgkeep), before);
    }
    // Not by force either, where it is not damaged.
    let largest = checks::files(&full.folder.join("data/base"))
        .into_iter()
        .max_by_key(|file| file.metadata().unwrap().len());
    for path in [
        child.folder.join("backup.files.zstd"),
        child.folder.join("backup.sha512"),
        full.folder.join("backup.files.zstd"),
        full.folder.join("backup.info"),
        full.folder.join("data"),
        largest.unwrap(),
    ] {
        let run = while_closed(&path, || delete(&[&full.identifier, "--force"]));
        run.failed(1);
        assert_eq!(all(&pgkeep), before, "{}", path.display());
    }
    let report = pgkeep.ok(&["--format", "json", "delete", SERVER, &full.identifier]);
    assert_eq!(report.at("Response.Merged.0"), child.identifier);
    pgkeep.ok(&["verify", SERVER, &child.identifier]);
}

#[test]
fn what_cannot_be_read_just_now_is_not_found_damaged() {
    let (pgkeep, [full, child]) = parent_and_child("none");
    let base = full.folder.join("data/base");
    let file = checks::files(&base).remove(0);
    let valid = || {
        let info = pgkeep.ok(&["--format", "json", "info", SERVER, &child.identifier]);
        info.at("Response.Valid")
    };
    for path in [
        file.clone(),
        base.clone(),
        full.folder.join("backup.sha512"),
        full.folder.join("backup.files"),
    ] {
        let run = while_closed(&path, || pgkeep.run(&["verify", SERVER, "newest"]));
        let error = run.failed(1);
        assert!(error.contains("ermission"), "{error}");
        assert_eq!(valid(), "yes", "{}", path.display());
    }
    // A folder whose files can be listed and not be opened.
    let folder = file.parent().unwrap();
    set_mode(folder, 0o400);
    let run = pgkeep.run(&["verify", SERVER, "newest"]);
    set_mode(folder, 0o700);
    run.failed(1);
    assert_eq!(valid(), "yes");
    pgkeep.ok(&["verify", SERVER, "newest"]);
}

#[test]
fn who_takes_the_newest_is_told_of_newer_ones_that_are_not_valid() {
    let (pgkeep, [full, child]) = parent_and_child("zstd");
    let target = pgkeep.ground().folder("target");
    let line = ["restore", SERVER, "newest", target.to_str().unwrap()];
    let run = while_closed(&child.folder, || pgkeep.run(&line));
    let report = run.succeeded();
    assert_eq!(report.at("Response.Backup"), full.identifier);
    assert!(run.stderr.contains(&child.identifier), "{run:?}");
}

#[test]
fn the_name_of_a_new_servers_folder_is_on_disk_before_anything_is_in_it() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let configuration = fs::read_to_string(pgkeep.configuration()).unwrap();
    let second = configuration.replace(&format!("[{SERVER}]"), "[second]");
    pgkeep.configure(&second);
    // A folder that cannot be opened cannot be synced.
    set_mode(pgkeep.base(), 0o300);
    let error = pgkeep.run(&["wal", "copy", "second"]).failed(1);
    set_mode(pgkeep.base(), 0o700);
    let base = pgkeep.base().to_str().unwrap();
    assert!(error.contains("sync") && error.contains(base), "{error}");
    pgkeep.ok(&["wal", "copy", "second"]);
    // Where it was made on disk, it is not synced again.
    set_mode(pgkeep.base(), 0o300);
    pgkeep.ok(&["wal", "copy", "second"]);
    set_mode(pgkeep.base(), 0o700);
}
