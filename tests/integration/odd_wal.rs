//! WAL that few servers ever write: what is found in it is right all the same.

use std::fs;
use std::path::Path;

use crate::support::archive::small_segments;
use crate::support::checks::{self, Before};
use crate::support::cluster::Postmaster;
use crate::support::pgkeep::SERVER;
use crate::support::{Cluster, Pgkeep};

fn keeping_wal(major: u32) -> (Cluster, Pgkeep) {
    let mut cluster = Cluster::stopped(major, &small_segments());
    cluster.set("wal_keep_size = 1GB");
    cluster.start();
    let pgkeep = Pgkeep::of(&cluster);
    (cluster, pgkeep)
}

/// A server that crashed while it wrote a record, and finds no more than the record's beginning, writes
/// OVERWRITE_CONTRECORD where the rest would be, and goes on.
fn a_record_that_a_crash_cut_off_does_not_end_the_wal(major: u32) {
    let (mut cluster, pgkeep) = keeping_wal(major);
    let full = pgkeep.backup().identifier;
    cluster.sql("update quiet set id = id where id % 97 = 1");
    let first = cluster.value("select pg_walfile_name(pg_current_wal_insert_lsn())");
    cluster.sql(
        "select pg_logical_emit_message(false, '', repeat('x', 3000000)); select pg_create_restore_point('behind')",
    );
    cluster.stop(Postmaster::Killed);
    let mut lost = Vec::new();
    for entry in fs::read_dir(cluster.data().join("pg_wal")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.len() == first.len() && name > first {
            fs::remove_file(entry.path()).unwrap();
            lost.push(name);
        }
    }
    cluster.start();
    cluster.sql("create table later as select i from generate_series(1, 5000) i");
    let next = lost.iter().min().unwrap();
    let mut dump = cluster.tool("pg_waldump");
    let path = cluster.data().join("pg_wal").join(next);
    let said = String::from_utf8(dump.arg(path).output().unwrap().stdout).unwrap();
    assert!(said.contains("OVERWRITE_CONTRECORD"), "{said}");

    // What changed is found in the server's WAL, and in the archive's.
    let before = Before::of(&cluster);
    let history = cluster.number("select count(*) from pgbench_history");
    let assert_restored = |data: &Path| {
        let restored = checks::is_whole(major, data, &before, history);
        assert_eq!(restored.number("select count(*) from later"), 5000);
    };
    pgkeep.backup_on(&full);
    assert_restored(&pgkeep.restore("newest"));
    pgkeep.ok(&["wal", "copy", SERVER]);
    let child = pgkeep.backup_on(&full).identifier;
    let info = pgkeep.ok(&["info", SERVER, &child]);
    assert!(
        info.at("Response.Source").contains("block maps"),
        "{}",
        info.at("Response.Source")
    );
    assert_restored(&pgkeep.restore("newest"));
    // PostgreSQL's own replay agrees.
    let folder = pgkeep.ground().folder("current");
    let report = pgkeep.ok(&[
        "restore",
        SERVER,
        &full,
        "current",
        folder.to_str().unwrap(),
    ]);
    let rolled = Cluster::restored(major, report.at("Response.Directory").as_ref());
    assert_eq!(rolled.number("select count(*) from later"), 5000);
}

#[test]
fn a_record_of_14_that_a_crash_cut_off_does_not_end_the_wal() {
    a_record_that_a_crash_cut_off_does_not_end_the_wal(14);
}

#[test]
fn a_record_of_18_that_a_crash_cut_off_does_not_end_the_wal() {
    a_record_that_a_crash_cut_off_does_not_end_the_wal(18);
}

/// Its files have the same names as those of the database before, and other content.
fn a_database_of_an_oid_that_another_had_before_is_itself(major: u32, strategy: &str) {
    let (cluster, pgkeep) = keeping_wal(major);
    let create = format!("create database again template app oid 99999 strategy {strategy}");
    cluster.sql(&create);
    cluster.sql_in("again", "delete from t; create table old (i int)");
    let full = pgkeep.backup().identifier;
    cluster.sql("drop database again");
    cluster.sql(&create);
    let before = Before::of(&cluster);
    let history = cluster.number("select count(*) from pgbench_history");
    pgkeep.backup_on(&full);
    let restored = checks::is_whole(major, &pgkeep.restore("newest"), &before, history);
    let found = "select count(*), to_regclass('old') is null from t";
    assert_eq!(restored.sql_in("again", found), [["1000", "t"]]);
}

#[test]
fn a_database_copied_by_wal_with_an_oid_that_another_had_is_itself() {
    a_database_of_an_oid_that_another_had_before_is_itself(15, "wal_log");
}

#[test]
fn a_database_copied_by_file_with_an_oid_that_another_had_is_itself() {
    a_database_of_an_oid_that_another_had_before_is_itself(18, "file_copy");
}
