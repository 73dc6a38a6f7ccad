//! Chains of incremental backups: every member restores, as PostgreSQL's own tool does it, and damage
//! in the midst of a chain is not passed over.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::support::account::{self, run};
use crate::support::checks::{self, Before};
use crate::support::cluster::Options;
use crate::support::pgkeep::{Backup, SERVER};
use crate::support::{Cluster, Load, Pgkeep, installed};

/// Slow enough that relations change while they are being copied.
const MAX_RATE: &str = "32MB";

/// A cluster that keeps its WAL, and summarizes it where it can.
pub(crate) fn cluster(major: u32) -> Cluster {
    let mut cluster = Cluster::stopped(major, &Options::default());
    cluster.set("wal_keep_size = 2GB");
    if major >= 17 {
        cluster.set("summarize_wal = on");
    }
    cluster.start();
    cluster
}

/// A full backup, and incremental ones on one another.
fn chain(pgkeep: &Pgkeep, length: usize, mut between: impl FnMut()) -> Vec<Backup> {
    let mut chain = vec![pgkeep.backup()];
    while chain.len() < length {
        between();
        chain.push(pgkeep.backup_on("newest"));
    }
    chain
}

fn every_member_of_a_chain_under_load_restores(major: u32) {
    let cluster = cluster(major);
    let pgkeep = Pgkeep::of(&cluster).with("max_rate", MAX_RATE);
    let load = Load::on(&cluster);
    let mut members = Vec::new();
    for number in 0..4 {
        let before = Before::of(&cluster);
        let rounds = load.rounds();
        let backup = match number {
            0 => pgkeep.backup(),
            _ => pgkeep.backup_on("newest"),
        };
        let history = cluster.number("select count(*) from pgbench_history");
        members.push((backup, before, history));
        // Something of each kind happens between any two.
        crate::support::wait_until("the relations change", || load.rounds() > rounds + 1);
    }
    load.stop();
    cluster.assert_nothing_is_left();

    pgkeep.ok(&["verify", SERVER, "newest"]);
    for (backup, before, history) in &members {
        checks::sha512sum(&backup.folder);
        let data = pgkeep.restore(&backup.identifier);
        drop(checks::is_whole(major, &data, before, *history));
        fs::remove_dir_all(data).unwrap();
    }
}

#[test]
fn every_member_of_a_chain_of_14_under_load_restores() {
    every_member_of_a_chain_under_load_restores(14);
}

#[test]
fn every_member_of_a_chain_of_15_under_load_restores() {
    every_member_of_a_chain_under_load_restores(15);
}

#[test]
fn every_member_of_a_chain_of_16_under_load_restores() {
    every_member_of_a_chain_under_load_restores(16);
}

#[test]
fn every_member_of_a_chain_of_17_under_load_restores() {
    every_member_of_a_chain_under_load_restores(17);
}

#[test]
fn every_member_of_a_chain_of_18_under_load_restores() {
    every_member_of_a_chain_under_load_restores(18);
}

/// Restored from a plain chain, by us and by the server's own tool, a cluster is the same byte for byte.
fn pg_combinebackup_makes_the_same(major: u32) {
    let cluster = cluster(major);
    let pgkeep = Pgkeep::of(&cluster).with("compression", "none");
    let load = Load::on(&cluster);
    let chain = chain(&pgkeep, 5, || {
        let rounds = load.rounds();
        crate::support::wait_until("the relations change", || load.rounds() > rounds);
    });
    load.stop();
    for member in &chain {
        checks::pg_verifybackup(major, &member.folder.join("data"));
    }
    for end in 2..=chain.len() {
        let combined = pgkeep.ground().path().join(format!("combined-{end}"));
        let mut combine = account::command(installed::binaries(major).join("pg_combinebackup"));
        combine.args(chain[..end].iter().map(|member| member.folder.join("data")));
        run(combine.arg("-o").arg(&combined));
        let restored = pgkeep.restore(&chain[end - 1].identifier);
        assert_same(&contents(&combined), &contents(&restored));
        fs::remove_dir_all(combined).unwrap();
        fs::remove_dir_all(restored).unwrap();
    }
}

/// What a restore writes in its own way: the manifest with its times, how the cluster recovers, and a
/// pg_control that does not start without backup_label.
const OUR_OWN: [&str; 4] = [
    "backup_manifest",
    "global/pg_control",
    "postgresql.auto.conf",
    "recovery.signal",
];

/// Everything in a data directory, files with their content.
fn contents(data: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let entries = checks::tree(data).into_iter().map(|path| {
        let name = path.strip_prefix(data).unwrap().to_owned();
        let content = path.is_file().then(|| fs::read(&path).unwrap());
        (name, content)
    });
    entries
        .filter(|(name, _)| !OUR_OWN.iter().any(|own| name == Path::new(own)))
        .collect()
}

fn assert_same(
    theirs: &BTreeMap<PathBuf, Option<Vec<u8>>>,
    ours: &BTreeMap<PathBuf, Option<Vec<u8>>>,
) {
    let only = |one: &BTreeMap<PathBuf, _>, other: &BTreeMap<PathBuf, _>| -> Vec<PathBuf> {
        let names = one.keys().filter(|name| !other.contains_key(*name));
        names.cloned().collect()
    };
    assert_eq!(only(theirs, ours), Vec::<PathBuf>::new(), "missing");
    assert_eq!(only(ours, theirs), Vec::<PathBuf>::new(), "too many");
    for (name, content) in theirs {
        assert!(ours[name] == *content, "{} differs", name.display());
    }
}

#[test]
fn pg_combinebackup_of_17_makes_the_same() {
    pg_combinebackup_makes_the_same(17);
}

#[test]
fn pg_combinebackup_of_18_makes_the_same() {
    pg_combinebackup_makes_the_same(18);
}

/// The incremental file of pgbench_accounts in a plain backup, which has blocks.
fn incremental_accounts(cluster: &Cluster, backup: &Backup) -> PathBuf {
    let file = PathBuf::from(cluster.file_of("pgbench_accounts"));
    let name = file.file_name().unwrap().to_str().unwrap();
    let incremental = file.with_file_name(format!("INCREMENTAL.{name}"));
    let stored = backup.folder.join("data").join(incremental);
    assert!(fs::metadata(&stored).unwrap().len() > 8192);
    stored
}

/// A plain chain of three; in each a few blocks of pgbench_accounts are changed.
fn plain_chain(cluster: &Cluster, pgkeep: &Pgkeep) -> Vec<Backup> {
    let mut round = 0;
    chain(pgkeep, 3, || {
        round += 1;
        cluster.sql(&format!(
            "update pgbench_accounts set filler = 'x' where aid % 9973 = {round}"
        ));
    })
}

#[test]
fn one_flipped_byte_in_the_midst_of_a_chain_is_named() {
    let cluster = cluster(17);
    let pgkeep = Pgkeep::of(&cluster).with("compression", "none");
    let chain = plain_chain(&cluster, &pgkeep);
    let damaged = incremental_accounts(&cluster, &chain[1]);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&damaged)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 8192 + 5000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 8192 + 5000).unwrap();

    let error = pgkeep.run(&["verify", SERVER, "newest"]).failed(3);
    let name = damaged.file_name().unwrap().to_str().unwrap();
    assert!(
        error.contains(name) && error.contains(&chain[1].identifier),
        "{error}"
    );
    let folder = pgkeep.ground().folder("damaged");
    let error = pgkeep
        .run(&[
            "restore",
            SERVER,
            &chain[2].identifier,
            folder.to_str().unwrap(),
        ])
        .failed(3);
    assert!(error.contains(name), "{error}");
    assert_eq!(checks::files(&folder), Vec::<PathBuf>::new());
    // What does not need it is as good as ever.
    pgkeep.ok(&["verify", SERVER, &chain[0].identifier]);
}

#[test]
fn without_its_parent_a_backup_is_not_valid() {
    let cluster = cluster(18);
    let pgkeep = Pgkeep::of(&cluster).with("compression", "none");
    let chain = plain_chain(&cluster, &pgkeep);
    let aside = pgkeep.ground().path().join("aside");
    fs::rename(&chain[1].folder, &aside).unwrap();

    let list = pgkeep.ok(&["list-backup", SERVER]);
    assert_eq!(list.at("Response.Backups.0.Valid"), "yes");
    assert_eq!(list.at("Response.Backups.1.Valid"), "no");
    assert_eq!(list.at("Response.Backups.1.Parent"), chain[1].identifier);
    let why = list.at("Response.Backups.1.Error");
    assert!(
        why.contains(&chain[1].identifier) && why.contains(&chain[2].identifier),
        "{why}"
    );
    let newest = pgkeep.ok(&["info", SERVER, "newest"]);
    assert_eq!(newest.at("Response.Backup"), chain[0].identifier);
    let info = pgkeep.ok(&["info", SERVER, &chain[2].identifier]);
    assert_eq!(info.at("Response.Valid"), "no");
    let folder = pgkeep.ground().folder("orphan");
    for command in [
        vec!["verify", SERVER, &chain[2].identifier],
        vec!["backup", SERVER, &chain[2].identifier],
        vec![
            "restore",
            SERVER,
            &chain[2].identifier,
            folder.to_str().unwrap(),
        ],
    ] {
        let error = pgkeep.run(&command).failed(3);
        assert!(error.contains(&chain[1].identifier), "{error}");
    }

    fs::rename(&aside, &chain[1].folder).unwrap();
    pgkeep.ok(&["verify", SERVER, "newest", folder.to_str().unwrap()]);
    let restored = Cluster::restored(18, &pgkeep.restore("newest"));
    assert_eq!(
        restored.number("select count(*) from pgbench_accounts where filler = 'x'"),
        cluster.number("select count(*) from pgbench_accounts where filler = 'x'")
    );
}

#[test]
fn members_of_a_chain_may_be_compressed_in_different_ways() {
    let cluster = cluster(17);
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    for compression in ["none", "lz4", "gzip"] {
        cluster.sql("update pgbench_accounts set filler = 'x' where aid % 9973 = 1");
        cluster.sql("vacuum full pgbench_branches");
        let other = Pgkeep::of(&cluster)
            .with("compression", compression)
            .with_base(pgkeep.base());
        other.backup_on("newest");
    }
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let data = pgkeep.restore("newest");
    checks::is_whole(17, &data, &before, 0);
}
