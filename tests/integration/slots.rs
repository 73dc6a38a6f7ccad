//! The slot that makes a server keep the WAL of a backup: lost, or not to be had at all.

use std::fs;

use rustix::process::Signal;

use crate::support::checks::{self, Before};
use crate::support::cluster::{Options, Postmaster};
use crate::support::pgkeep::{Running, SERVER, wait_until_copying, wait_until_followed};
use crate::support::{Cluster, Pgkeep, wait_until};

/// A backup that takes as long as a test needs.
fn slow(cluster: &Cluster) -> (Pgkeep, Running) {
    let pgkeep = Pgkeep::of(cluster)
        .with("source", "auto")
        .with("max_rate", "4MB");
    let mut running = pgkeep.spawn(&["backup", SERVER, "-vv"]);
    wait_until_copying(&mut running, &pgkeep);
    (pgkeep, running)
}

/// Writes enough WAL for the segments in front of it to be removed, where nothing keeps them.
fn move_on(cluster: &Cluster) {
    for _ in 0..4 {
        cluster.sql("select pg_logical_emit_message(false, 'x', repeat('x', 3000000)); select pg_switch_wal()");
    }
    cluster.sql("checkpoint; checkpoint");
}

/// A cluster of small segments that removes them as soon as it may.
fn forgetful(major: u32, settings: &str) -> Cluster {
    let options = Options {
        wal_segment_mb: 1,
        ..Options::default()
    };
    let mut cluster = Cluster::stopped(major, &options);
    cluster.set("min_wal_size = 2MB\nmax_wal_size = 2MB\nwal_keep_size = 0");
    cluster.set(settings);
    cluster.start();
    cluster
}

#[test]
fn a_slot_that_times_out_when_idle_is_kept_active_for_as_long_as_a_backup_takes() {
    let mut cluster = Cluster::stopped(18, &Options::default());
    cluster.set("idle_replication_slot_timeout = 2s");
    cluster.start();
    let before = Before::of(&cluster);
    let (pgkeep, mut running) = slow(&cluster);
    // Each checkpoint looks for slots that were idle for longer; one of another session shows when that is.
    let mut other = cluster.connect("postgres").unwrap();
    other
        .simple_query("select pg_create_physical_replication_slot('other', true)")
        .unwrap();
    wait_until("a slot that nobody uses is lost", || {
        cluster.sql("checkpoint");
        assert!(running.is_running(), "the backup ended too early");
        cluster.value("select wal_status from pg_replication_slots where slot_name = 'other'")
            == "lost"
    });
    let run = running.wait();
    run.succeeded();
    assert!(!run.stderr.contains("warn: "), "{run:?}");
    checks::is_whole(18, &pgkeep.restore("newest"), &before, 0);
    cluster.sql("select pg_drop_replication_slot('other')");
    cluster.assert_nothing_is_left();
}

fn a_backup_ends_as_soon_as_its_wal_is_nowhere(major: u32, settings: &str) {
    let cluster = forgetful(major, settings);
    let (pgkeep, running) = slow(&cluster);
    // Too late for what it had not copied.
    running.signal(Signal::STOP);
    move_on(&cluster);
    running.signal(Signal::CONT);
    let run = running.wait();
    let error = run.failed(5);
    assert!(error.contains("the server has removed pg_wal/"), "{run:?}");
    assert!(run.stderr.contains("max_slot_wal_keep_size"), "{run:?}");
    assert!(
        run.stderr.contains("warning") || run.stderr.contains("warn: "),
        "{run:?}"
    );
    assert!(pgkeep.ok(&["list-backup", SERVER]).backups().is_empty());
}

#[test]
fn a_slot_that_may_keep_too_little_ends_a_backup_at_once_of_14() {
    a_backup_ends_as_soon_as_its_wal_is_nowhere(14, "max_slot_wal_keep_size = 1MB");
}

#[test]
fn a_slot_that_may_keep_too_little_ends_a_backup_at_once_of_18() {
    a_backup_ends_as_soon_as_its_wal_is_nowhere(18, "max_slot_wal_keep_size = 1MB");
}

#[test]
fn without_a_slot_wal_that_is_nowhere_ends_a_backup_at_once() {
    a_backup_ends_as_soon_as_its_wal_is_nowhere(16, "max_replication_slots = 0");
}

#[test]
fn what_is_copied_already_needs_no_slot() {
    let cluster = forgetful(15, "max_slot_wal_keep_size = 1MB\nmax_wal_size = 1GB");
    let before = Before::of(&cluster);
    let (pgkeep, mut running) = slow(&cluster);
    let started_by = cluster.value("select pg_walfile_name(pg_current_wal_lsn())");
    wait_until("the slot is lost", || {
        assert!(running.is_running(), "the backup ended too early");
        cluster.sql("select pg_logical_emit_message(false, 'x', repeat('x', 300000))");
        wait_until_followed(&mut running, &cluster);
        cluster.sql("checkpoint");
        let oldest = "select min(name) from pg_ls_waldir() where name ~ '^[0-9A-F]{24}$'";
        cluster.value(oldest) > started_by
    });
    let run = running.wait();
    run.succeeded();
    assert!(run.stderr.contains("is lost"), "{run:?}");
    pgkeep.ok(&["verify", SERVER, "newest"]);
    checks::is_whole(15, &pgkeep.restore("newest"), &before, 0);
}

#[test]
fn the_end_of_the_session_of_a_slot_is_not_that_of_the_backup() {
    let cluster = Cluster::new(17);
    let before = Before::of(&cluster);
    let (pgkeep, running) = slow(&cluster);
    cluster.sql("select pg_terminate_backend(active_pid) from pg_replication_slots");
    running.wait().succeeded();
    checks::is_whole(17, &pgkeep.restore("newest"), &before, 0);
}

fn a_backup_needs_no_slot_where_its_wal_stays(major: u32) {
    let mut cluster = Cluster::stopped(major, &Options::default());
    cluster.set("max_replication_slots = 1");
    cluster.start();
    let mut standby = cluster.standby();
    standby.stop(Postmaster::Fast);
    standby.set("max_replication_slots = 0");
    standby.start();
    cluster.sql("select pg_create_physical_replication_slot('theirs')");
    let pgkeep = Pgkeep::of(&cluster).with("source", "auto");
    let before = Before::of(&cluster);
    let check = pgkeep.run(&["check", SERVER]);
    check.succeeded();
    assert!(check.stderr.contains("max_replication_slots"), "{check:?}");
    let run = pgkeep.run(&["backup", SERVER]);
    run.succeeded();
    assert!(run.stderr.contains("max_replication_slots"), "{run:?}");
    checks::is_whole(major, &pgkeep.restore("newest"), &before, 0);

    standby.catch_up_with(&cluster);
    let of_standby = Pgkeep::of(&standby).with("source", "auto");
    of_standby.backup();
    checks::is_whole(major, &of_standby.restore("newest"), &before, 0);
}

#[test]
fn a_backup_of_14_needs_no_slot_where_its_wal_stays() {
    a_backup_needs_no_slot_where_its_wal_stays(14);
}

#[test]
fn a_backup_of_18_needs_no_slot_where_its_wal_stays() {
    a_backup_needs_no_slot_where_its_wal_stays(18);
}

#[test]
fn wal_that_the_server_has_removed_comes_from_the_archive() {
    let cluster = forgetful(17, "max_replication_slots = 0\narchive_mode = on");
    let before = Before::of(&cluster);
    let (pgkeep, running) = slow(&cluster);
    let started_by = cluster.value("select pg_walfile_name(pg_current_wal_lsn())");
    let command = pgkeep.archive_command();
    cluster.sql(&format!("alter system set archive_command = '{command}'"));
    cluster.sql("select pg_reload_conf()");
    running.signal(Signal::STOP);
    wait_until("the server has removed what it had archived", || {
        move_on(&cluster);
        let oldest = "select min(name) from pg_ls_waldir() where name ~ '^[0-9A-F]{24}$'";
        cluster.value(oldest) > started_by
    });
    running.signal(Signal::CONT);
    running.wait().succeeded();
    checks::is_whole(17, &pgkeep.restore("newest"), &before, 0);
}

#[test]
fn what_serves_a_server_goes_on_without_its_log_file() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster).with("source", "auto");
    cluster.sql("select pg_switch_wal()");
    pgkeep.ok(&["wal", "copy", SERVER]);
    let segment = cluster.value("select pg_walfile_name(pg_current_wal_lsn() - 1)");
    let there = cluster.data().join("pg_wal").join(&segment);
    let target = pgkeep.ground().path().join("got");
    let pgkeep = pgkeep.with("log_file", "/nonexistent/pgkeep.log");
    let target_path = target.to_str().unwrap();
    let runs = [
        pgkeep.run(&["wal", "push", SERVER, there.to_str().unwrap()]),
        pgkeep.run(&["wal", "get", SERVER, &segment, target_path]),
    ];
    for run in runs {
        assert_eq!(run.status.code(), Some(0), "{run:?}");
        assert!(run.stderr.contains("/nonexistent/pgkeep.log"), "{run:?}");
    }
    assert!(fs::metadata(&target).unwrap().len() > 0);
    let gone = pgkeep.run(&[
        "wal",
        "get",
        SERVER,
        "0000000900000000000000FF",
        target_path,
    ]);
    assert_eq!(gone.status.code(), Some(1), "{gone:?}");
    pgkeep.run(&["list-backup", SERVER]).failed(2);
}
