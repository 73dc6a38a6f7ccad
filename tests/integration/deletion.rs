//! Deleting backups: what others need of them they are given first.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::checks::{self, Before};
use crate::support::cluster::Options;
use crate::support::pgkeep::{Backup, SERVER, wait_until_copying};
use crate::support::random_changes::rounds;
use crate::support::{Cluster, Pgkeep};

fn cluster(major: u32) -> Cluster {
    let mut cluster = Cluster::stopped(major, &Options::default());
    cluster.set("wal_keep_size = 1GB");
    if major >= 17 {
        cluster.set("summarize_wal = on");
    }
    cluster.start();
    cluster
}

/// Relations that grow, shrink, change here and there, come and go.
fn change(cluster: &Cluster, round: u32) {
    for statement in [
        format!("update pgbench_accounts set filler = '{round}' where aid % 1000 = {round}"),
        format!("create table of_round_{round} as select i from generate_series(1, 20000) i"),
        format!("delete from quiet where id > {}", 5000 - round * 700),
        "vacuum quiet".to_owned(),
        format!(
            "insert into quiet select i, 'again' from generate_series({0}, {0} + 300) i",
            10_000 * round
        ),
        format!("drop table if exists of_round_{}", round.saturating_sub(2)),
    ] {
        cluster.sql(&statement);
    }
}

/// A full backup, and one on the other so many times.
fn chain(cluster: &Cluster, pgkeep: &Pgkeep, increments: u32) -> Vec<Backup> {
    let mut chain = vec![pgkeep.backup()];
    for round in 1..=increments {
        change(cluster, round);
        let parent = chain.last().unwrap().identifier.clone();
        chain.push(pgkeep.backup_on(&parent));
    }
    chain
}

/// All files of a restored cluster with their content.
fn restored(pgkeep: &Pgkeep, backup: &Backup) -> BTreeMap<PathBuf, Vec<u8>> {
    let data = pgkeep.restore(&backup.identifier);
    let files = checks::files(&data).into_iter().map(|file| {
        let content = fs::read(&file).unwrap();
        (file.strip_prefix(&data).unwrap().to_owned(), content)
    });
    let files = files.collect();
    fs::remove_dir_all(&data).unwrap();
    files
}

/// What is restored is the same, file by file.
fn assert_same(
    before: &BTreeMap<PathBuf, Vec<u8>>,
    after: &BTreeMap<PathBuf, Vec<u8>>,
    backup: &Backup,
) {
    assert!(before.keys().eq(after.keys()), "{}", backup.identifier);
    for (path, content) in before {
        assert!(
            after[path] == *content,
            "{} of {} is another one",
            path.display(),
            backup.identifier
        );
    }
}

fn at(pgkeep: &Pgkeep, backup: &Backup, key: &str) -> String {
    let info = pgkeep.ok(&["--format", "json", "info", SERVER, &backup.identifier]);
    info.at(&format!("Response.{key}"))
}

fn delete(pgkeep: &Pgkeep, backup: &Backup) -> crate::support::report::Report {
    pgkeep.ok(&["--format", "json", "delete", SERVER, &backup.identifier])
}

/// Nothing is among the backups but those that are listed, and each of them is whole.
fn assert_whole(pgkeep: &Pgkeep, backups: &[&Backup]) {
    let mut names: Vec<String> = fs::read_dir(pgkeep.backups())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected: Vec<&str> = backups.iter().map(|one| one.identifier.as_str()).collect();
    assert_eq!(names, expected);
    for backup in backups {
        assert_eq!(at(pgkeep, backup, "Valid"), "yes");
        checks::sha512sum(&backup.folder);
        pgkeep.ok(&["verify", SERVER, &backup.identifier]);
    }
}

fn the_others_stay_as_they_were(major: u32, compression: &str) {
    let cluster = cluster(major);
    let pgkeep = Pgkeep::of(&cluster).with("compression", compression);
    let backups = chain(&cluster, &pgkeep, 3);
    let before = Before::of(&cluster);
    let history = cluster.number("select count(*) from pgbench_history");
    drop(cluster);
    let [full, first, second, third] = &backups[..] else {
        panic!("not four backups");
    };
    let trees: Vec<_> = backups.iter().map(|one| restored(&pgkeep, one)).collect();

    // One in the middle: its child builds on its parent.
    let report = delete(&pgkeep, second);
    assert_eq!(report.at("Response.Merged.0"), third.identifier);
    assert_eq!(at(&pgkeep, third, "Parent"), first.identifier);
    assert_whole(&pgkeep, &[full, first, third]);
    assert_same(&trees[3], &restored(&pgkeep, third), third);
    if compression == "none" {
        checks::pg_verifybackup(major, &third.folder.join("data"));
    }

    // The full one: its child is full.
    pgkeep.ok(&["annotate", SERVER, &first.identifier, "add", "a", "b"]);
    pgkeep.ok(&["retain", SERVER, &first.identifier]);
    delete(&pgkeep, full);
    assert_eq!(at(&pgkeep, first, "Incremental"), "false");
    assert_eq!(at(&pgkeep, first, "Comments"), "a|b");
    assert_eq!(at(&pgkeep, first, "Keep"), "true");
    assert_whole(&pgkeep, &[first, third]);
    assert_same(&trees[1], &restored(&pgkeep, first), first);
    assert_same(&trees[3], &restored(&pgkeep, third), third);
    if compression == "none" {
        checks::pg_verifybackup(major, &first.folder.join("data"));
    }

    // And that of which only one is left.
    pgkeep.ok(&["delete", SERVER, &first.identifier, "--force"]);
    assert_whole(&pgkeep, &[third]);
    assert_same(&trees[3], &restored(&pgkeep, third), third);
    let data = pgkeep.restore("newest");
    checks::is_whole(major, &data, &before, history);
}

#[test]
fn the_others_stay_as_they_were_17_zstd() {
    the_others_stay_as_they_were(17, "zstd");
}

#[test]
fn the_others_stay_as_they_were_17_none() {
    the_others_stay_as_they_were(17, "none");
}

#[test]
fn the_others_stay_as_they_were_15_lz4() {
    the_others_stay_as_they_were(15, "lz4");
}

#[test]
fn every_child_stands_alone_however_it_is_stored() {
    let cluster = cluster(17);
    let mut pgkeep = Pgkeep::of(&cluster);
    pgkeep.ok(&["master-key"]);
    let full = pgkeep.backup();
    // Each child is stored in another way than its parent.
    let ways = [
        ("none", "none"),
        ("zstd", "aes-256-gcm"),
        ("gzip", "none"),
        ("none", "aes-256-cbc"),
    ];
    let mut children = Vec::new();
    for (round, (compression, encryption)) in (1..).zip(ways) {
        change(&cluster, round);
        pgkeep = pgkeep
            .with("compression", compression)
            .with("encryption", encryption);
        children.push(pgkeep.backup_on(&full.identifier));
    }
    drop(cluster);
    let trees: Vec<_> = children.iter().map(|one| restored(&pgkeep, one)).collect();
    let report = delete(&pgkeep, &full);
    let merged = report.find("Response.Merged").unwrap().as_array().unwrap();
    assert_eq!(merged.len(), children.len());
    assert_whole(&pgkeep, &children.iter().collect::<Vec<_>>());
    for ((child, tree), (compression, encryption)) in children.iter().zip(&trees).zip(ways) {
        assert_eq!(at(&pgkeep, child, "Incremental"), "false");
        assert_eq!(at(&pgkeep, child, "Compression"), compression);
        assert_eq!(at(&pgkeep, child, "Encryption"), encryption);
        assert_same(tree, &restored(&pgkeep, child), child);
    }
}

#[test]
fn what_is_dear_is_deleted_by_force_only() {
    let cluster = cluster(15);
    let pgkeep = Pgkeep::of(&cluster);
    let first = pgkeep.backup();
    let refused = |name: &str| pgkeep.run(&["delete", SERVER, name]).failed(1);
    assert!(refused("newest").contains("only valid"));
    let second = pgkeep.backup();
    pgkeep.ok(&["retain", SERVER, &first.identifier]);
    assert!(refused("oldest").contains("is kept"));
    assert!(refused("1999").contains("no backup"));
    delete(&pgkeep, &second);
    assert!(refused("newest").contains("is kept"));

    let pgkeep = pgkeep.with("max_rate", "1MB");
    let mut running = pgkeep.spawn(&["backup", SERVER]);
    wait_until_copying(&mut running, &pgkeep);
    pgkeep
        .run(&["delete", SERVER, "newest", "--force"])
        .failed(4);
    running.signal(Signal::INT);
    running.wait().failed(1);
    pgkeep.ok(&["delete", SERVER, "newest", "--force"]);
    assert!(pgkeep.ok(&["list-backup", SERVER]).backups().is_empty());
}

fn flip(file: &Path) {
    let opened = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .unwrap();
    let middle = opened.metadata().unwrap().len() / 2;
    let mut byte = [0];
    opened.read_exact_at(&mut byte, middle).unwrap();
    byte[0] ^= 1;
    opened.write_all_at(&byte, middle).unwrap();
}

#[test]
fn damage_is_not_merged_into_a_child() {
    let cluster = cluster(17);
    let pgkeep = Pgkeep::of(&cluster);
    let backups = chain(&cluster, &pgkeep, 1);
    let [full, child] = &backups[..] else {
        panic!("not two backups");
    };
    // The largest relation changed, so it must be read.
    let files = checks::files(&full.folder.join("data/base"));
    let largest = files
        .into_iter()
        .max_by_key(|file| file.metadata().unwrap().len())
        .unwrap();
    flip(&largest);
    let line = ["delete", SERVER, &full.identifier];
    let error = pgkeep.run(&line).failed(3);
    let name = largest.file_name().unwrap().to_str().unwrap();
    assert!(
        error.contains(name) && error.contains(&child.identifier),
        "{error}"
    );
    flip(&largest);
    assert_whole(&pgkeep, &[full, child]);
    // What was found damaged and is not read stays marked.
    let stored = checks::files(&full.folder.join("bundles")).remove(0);
    flip(&stored);
    pgkeep.run(&["verify", SERVER, &full.identifier]).failed(3);
    flip(&stored);
    delete(&pgkeep, full);
    assert_eq!(at(&pgkeep, child, "Valid"), "no");
    pgkeep.ok(&["verify", SERVER, &child.identifier]);
    assert_whole(&pgkeep, &[child]);
}

#[test]
fn a_damaged_parent_goes_by_force_and_its_children_with_it() {
    let cluster = cluster(17);
    let pgkeep = Pgkeep::of(&cluster);
    let backups = chain(&cluster, &pgkeep, 2);
    fs::remove_file(checks::files(&backups[0].folder.join("data/base")).remove(0)).unwrap();
    let line = ["delete", SERVER, &backups[0].identifier, "--force"];
    pgkeep.run(&line[..3]).failed(3);
    let report = pgkeep.ok(&line);
    assert_eq!(report.at("Response.Broken.0"), backups[1].identifier);
    assert_eq!(pgkeep.ok(&["list-backup", SERVER]).backups().len(), 2);
    for backup in &backups[1..] {
        assert_eq!(at(&pgkeep, backup, "Valid"), "no");
    }
}

#[test]
fn a_deletion_that_is_killed_leaves_every_other_backup_whole() {
    let cluster = cluster(17);
    let pgkeep = Pgkeep::of(&cluster);
    let backups = chain(&cluster, &pgkeep, 2);
    change(&cluster, 3);
    let branch = pgkeep.backup_on(&backups[0].identifier);
    drop(cluster);
    let [full, first, second] = &backups[..] else {
        panic!("not three backups");
    };
    let others = [first, second, &branch];
    let trees: Vec<_> = others.iter().map(|one| restored(&pgkeep, one)).collect();
    let saved = pgkeep.ground().path().join("saved");
    let put_back = || {
        let _ = fs::remove_dir_all(pgkeep.backups());
        let (saved, backups) = (checks::quoted(&saved), checks::quoted(&pgkeep.backups()));
        checks::shell(&format!("cp -a {saved} {backups}"));
    };
    checks::shell(&format!(
        "cp -a {} {}",
        checks::quoted(&pgkeep.backups()),
        checks::quoted(&saved)
    ));
    let begin = Instant::now();
    delete(&pgkeep, full);
    let mut whole = begin.elapsed();
    let rounds = rounds(5);
    let mut cut_short = 0;
    for round in 0..rounds {
        put_back();
        let running = pgkeep.spawn(&["delete", SERVER, &full.identifier]);
        std::thread::sleep(whole * round / rounds + Duration::from_millis(u64::from(round % 3)));
        running.signal(Signal::KILL);
        match running.wait().status.code() {
            None => cut_short += 1,
            // It takes less than when it was measured.
            Some(_) => whole = whole * 2 / 3,
        }
        for backup in others {
            assert_eq!(at(&pgkeep, backup, "Valid"), "yes", "round {round}");
        }
        // The first is read with the second, which stands on it.
        for backup in [second, &branch] {
            pgkeep.ok(&["verify", SERVER, &backup.identifier]);
        }
        if round % 4 == 1 {
            assert_same(&trees[1], &restored(&pgkeep, second), second);
            assert_same(&trees[2], &restored(&pgkeep, &branch), &branch);
        }
        if full.folder.exists() {
            delete(&pgkeep, full);
        } else {
            // Whoever writes next removes what is left.
            pgkeep.run(&["delete", SERVER, &full.identifier]).failed(1);
            pgkeep.ok(&["delete", SERVER, &branch.identifier]);
            assert_whole(&pgkeep, &[first, second]);
            continue;
        }
        assert_whole(&pgkeep, &others);
    }
    assert!(cut_short > rounds / 4, "only {cut_short} were cut short");
    for (backup, tree) in others.iter().zip(&trees) {
        if backup.folder.exists() {
            assert_same(tree, &restored(&pgkeep, backup), backup);
        }
    }
}
