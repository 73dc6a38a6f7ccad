//! Pages that are damaged on the server already: reported, counted, kept.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use crate::support::cluster::Postmaster;
use crate::support::pgkeep::SERVER;
use crate::support::{Cluster, Load, Pgkeep, checks};

const PAGE: u64 = 8192;

/// Writes into a page of a table, the server being stopped meanwhile.
fn write_into(cluster: &mut Cluster, table: &str, block: u64, offset: u64, bytes: &[u8]) -> String {
    let file = cluster.file_of(table);
    cluster.stop(Postmaster::Fast);
    let opened = OpenOptions::new()
        .write(true)
        .open(cluster.data().join(&file))
        .unwrap();
    opened.write_all_at(bytes, block * PAGE + offset).unwrap();
    cluster.start();
    file
}

/// A backup that must report these pages and be kept all the same.
fn assert_reported(pgkeep: &Pgkeep, pages: &[(String, u64)]) {
    let run = pgkeep.run(&["backup", SERVER]);
    run.failed(3);
    for (file, block) in pages {
        let said = format!("{}{}", run.stdout, run.stderr);
        assert!(said.contains(file.as_str()), "{file} is not named: {run:?}");
        assert!(
            said.contains(&block.to_string()),
            "block {block} is not named: {run:?}"
        );
    }
    assert_eq!(pgkeep.ok(&["list-backup", SERVER]).backups().len(), 1);
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    assert_eq!(info.at("Response.CorruptPages"), pages.len().to_string());
    for (file, _) in pages {
        assert!(
            info.at("Response").contains(file.as_str()),
            "{file} is not in info"
        );
    }
}

#[test]
fn a_page_with_a_wrong_checksum_is_named_and_counted() {
    for major in crate::support::versions(&[14, 18]) {
        let mut cluster = Cluster::new(major);
        let file = write_into(&mut cluster, "pgbench_accounts", 7, 4000, b"damage");
        let pgkeep = Pgkeep::of(&cluster);
        assert_reported(&pgkeep, &[(file, 7)]);
        // What there is can still be had.
        let data = pgkeep.restore("newest");
        let restored = Cluster::restored(major, &data);
        assert_eq!(restored.number("select count(*) from quiet"), 5000);
    }
}

#[test]
fn verify_names_the_pages_that_were_damaged_on_the_server() {
    let mut cluster = Cluster::new(17);
    let file = write_into(&mut cluster, "pgbench_accounts", 7, 4000, b"damage");
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.run(&["backup", SERVER]).failed(3);
    let run = pgkeep.run(&["verify", SERVER, "newest"]);
    run.failed(3);
    assert!(run.stdout.contains(&file), "{run:?}");
}

#[test]
fn a_page_from_the_future_is_damaged() {
    // Garbage whose first bytes read as an LSN beyond all WAL: not "newer than
    // the backup", so not exempt from the check.
    let mut cluster = Cluster::new(16);
    let file = write_into(&mut cluster, "pgbench_accounts", 3, 0, &[0xff; 8]);
    assert_reported(&Pgkeep::of(&cluster), &[(file, 3)]);
}

#[test]
fn a_page_that_looks_new_but_is_not_empty_is_damaged() {
    let mut cluster = Cluster::new(16);
    // pd_upper = 0 makes a page "new".
    let file = write_into(&mut cluster, "pgbench_accounts", 5, 14, &[0, 0]);
    assert_reported(&Pgkeep::of(&cluster), &[(file, 5)]);
}

#[test]
fn a_page_of_zeros_is_sound() {
    let mut cluster = Cluster::new(17);
    cluster.sql("create table t as select i from generate_series(1, 1000) i");
    write_into(&mut cluster, "t", 0, 0, &[0; PAGE as usize]);
    Pgkeep::of(&cluster).backup();
}

#[test]
fn without_checksums_nothing_is_held_against_a_page() {
    let mut cluster = Cluster::with(
        17,
        &crate::support::Options {
            checksums: false,
            ..Default::default()
        },
    );
    cluster.sql("create table t as select i from generate_series(1, 1000) i");
    write_into(&mut cluster, "t", 1, 4000, b"damage");
    Pgkeep::of(&cluster).backup();
}

#[test]
fn every_damaged_page_is_counted_under_load_too() {
    let mut cluster = Cluster::new(17);
    cluster.sql("create table cold as select i, repeat('x', 500) from generate_series(1, 5000) i");
    cluster.sql("vacuum freeze cold");
    cluster.sql("checkpoint");
    let file = cluster.file_of("cold");
    for block in [0, 9, 100] {
        write_into(&mut cluster, "cold", block, 6000, b"damage");
    }
    cluster.sql("alter table cold set (autovacuum_enabled = off)");
    let load = Load::on(&cluster);
    let pgkeep = Pgkeep::of(&cluster);
    assert_reported(
        &pgkeep,
        &[(file.clone(), 0), (file.clone(), 9), (file, 100)],
    );
    load.stop();
}

#[test]
fn a_later_backup_of_a_mended_server_is_clean() {
    let mut cluster = Cluster::new(17);
    cluster.sql("create table t as select i from generate_series(1, 1000) i");
    write_into(&mut cluster, "t", 1, 4000, b"damage");
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.run(&["backup", SERVER]).failed(3);
    cluster.sql("drop table t; checkpoint");
    let backup = pgkeep.backup();
    assert_eq!(
        pgkeep.ok(&["info", SERVER, "newest"]).at("Response.Backup"),
        backup.identifier
    );
    assert_eq!(pgkeep.ok(&["list-backup", SERVER]).backups().len(), 2);
    checks::sha512sum(&backup.folder);
    assert!(fs::metadata(&backup.folder).unwrap().is_dir());
}
