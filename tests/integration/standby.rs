//! Backups taken from a standby.

use std::fs;

use rustix::process::Signal;

use crate::support::archive::{archiving, small_segments};
use crate::support::checks::{self, Before};
use crate::support::cluster::{Options, Postmaster};
use crate::support::pgkeep::{SERVER, wait_for_pass, wait_until_copying};
use crate::support::{Cluster, Load, Pgkeep, wait_until};

fn a_backup_of_a_standby_under_load_restores(major: u32) {
    let primary = Cluster::new(major);
    let before = Before::of(&primary);
    let standby = primary.standby();
    let load = Load::on(&primary);
    standby.catch_up_with(&primary);
    let pgkeep = Pgkeep::of(&standby).with("max_rate", "24MB");

    let backup = pgkeep.backup();
    let history = primary.number("select count(*) from pgbench_history");
    load.stop();

    standby.assert_nothing_is_left();
    checks::sha512sum(&backup.folder);
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let data = pgkeep.restore("newest");
    assert!(
        !data.join("standby.signal").exists(),
        "the restored cluster would follow the primary"
    );
    let label = fs::read_to_string(data.join("backup_label")).unwrap();
    assert!(label.contains("BACKUP FROM: standby"), "{label}");
    checks::is_whole(major, &data, &before, history);
}

#[test]
fn a_backup_of_a_standby_of_14_under_load_restores() {
    a_backup_of_a_standby_under_load_restores(14);
}

#[test]
fn a_backup_of_a_standby_of_15_under_load_restores() {
    a_backup_of_a_standby_under_load_restores(15);
}

#[test]
fn a_backup_of_a_standby_of_16_under_load_restores() {
    a_backup_of_a_standby_under_load_restores(16);
}

#[test]
fn a_backup_of_a_standby_of_17_under_load_restores() {
    a_backup_of_a_standby_under_load_restores(17);
}

#[test]
fn a_backup_of_a_standby_of_18_under_load_restores() {
    a_backup_of_a_standby_under_load_restores(18);
}

#[test]
fn a_standby_of_a_quiet_primary_is_backed_up_twice() {
    let primary = Cluster::new(16);
    let standby = primary.standby();
    standby.catch_up_with(&primary);
    let before = Before::of(&primary);
    let pgkeep = Pgkeep::of(&standby);
    pgkeep.backup();
    let second = pgkeep.backup();
    let data = pgkeep.restore(&second.identifier);
    checks::is_whole(16, &data, &before, 0);
}

#[test]
fn a_standby_whose_primary_was_shut_down_is_backed_up() {
    // Its last record is the shutdown checkpoint: there is nothing to replay.
    let mut primary = Cluster::new(17);
    let standby = primary.standby();
    let before = Before::of(&primary);
    primary.stop(Postmaster::Fast);
    wait_until("the standby has the last checkpoint", || {
        standby.value("select count(*) from pg_stat_wal_receiver") == "0"
    });
    let pgkeep = Pgkeep::of(&standby);
    pgkeep.backup();
    let data = pgkeep.restore("newest");
    checks::is_whole(17, &data, &before, 0);
}

#[test]
fn a_standby_that_follows_its_primary_to_another_timeline_is_backed_up() {
    for major in crate::support::versions(&[14, 17]) {
        let mut primary = Cluster::new(major);
        let successor = primary.standby();
        let cascading = successor.standby();
        cascading.catch_up_with(&primary);
        let before = Before::of(&primary);
        let pgkeep = Pgkeep::of(&cascading).with("max_rate", "8MB");
        let mut running = pgkeep.spawn(&["backup", SERVER]);
        wait_until_copying(&mut running, &pgkeep);
        running.signal(Signal::STOP);

        primary.stop(Postmaster::Fast);
        successor.sql("select pg_promote()");
        successor.wait_until_writable();
        successor.sql(
            "insert into pgbench_history select 1, 1, 1, 0, now() from generate_series(1, 99)",
        );
        cascading.catch_up_with(&successor);
        running.signal(Signal::CONT);
        running.wait().succeeded();

        let info = pgkeep.ok(&["info", SERVER, "newest"]);
        assert_eq!(info.at("Response.StartTimeline"), "1");
        assert_eq!(info.at("Response.EndTimeline"), "2");
        pgkeep.ok(&["verify", SERVER, "newest"]);
        let data = pgkeep.restore("newest");
        let restored = checks::is_whole(major, &data, &before, i64::MAX);
        assert_eq!(restored.number("select count(*) from pgbench_history"), 99);
    }
}

fn a_standby_that_reads_an_archive_alone_is_backed_up(major: u32) {
    let plainly = |pgkeep| pgkeep;
    let (primary, archive) = archiving(major, &small_segments(), plainly, Pgkeep::archive_command);
    let before = Before::of(&primary);
    let standby = primary.standby();
    let restore_command = archive.restore_command();
    standby.sql("alter system set primary_conninfo = ''");
    standby.sql(&format!(
        "alter system set restore_command = '{restore_command}'"
    ));
    standby.sql("select pg_reload_conf()");
    let load = Load::on(&primary);
    standby.catch_up_with(&primary);
    // The standby itself keeps no WAL from before the last restartpoint.
    let pgkeep = Pgkeep::of(&standby)
        .with_base(archive.base())
        .with("max_rate", "16MB");
    pgkeep.backup();
    // Without a restartpoint in between, the first could not be the parent.
    primary.sql("checkpoint");
    standby.catch_up_with(&primary);
    let second = pgkeep.backup_on("newest");
    let history = primary.number("select count(*) from pgbench_history");
    load.stop();
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let data = pgkeep.restore(&second.identifier);
    checks::is_whole(major, &data, &before, history);
}

#[test]
fn a_standby_of_14_that_reads_an_archive_alone_is_backed_up() {
    a_standby_that_reads_an_archive_alone_is_backed_up(14);
}

#[test]
fn a_standby_of_18_that_reads_an_archive_alone_is_backed_up() {
    a_standby_that_reads_an_archive_alone_is_backed_up(18);
}

#[test]
fn a_standby_whose_last_record_is_long_is_backed_up() {
    let primary = Cluster::new(16);
    let standby = primary.standby();
    let before = Before::of(&primary);
    primary.sql("select pg_logical_emit_message(false, 'long', repeat('x', 3000000))");
    wait_until("the record is written", || {
        primary.value("select pg_current_wal_insert_lsn() = pg_current_wal_flush_lsn()") == "t"
    });
    standby.catch_up_with(&primary);
    let pgkeep = Pgkeep::of(&standby);
    let backup = pgkeep.backup();
    let data = pgkeep.restore(&backup.identifier);
    checks::is_whole(16, &data, &before, 0);
}

/// A standby that applies commits late: what comes before one changes files, while the standby's minimum recovery
/// point stays where it was.
fn files_ahead_of_the_minimum_recovery_point(major: u32, database: &str, change: &str) {
    let mut primary = Cluster::stopped(major, &Options::default());
    // The standby would wait in front of its commits.
    primary.set("autovacuum = off");
    primary.start();
    primary.sql("create database passing template app");
    let mut standby = primary.standby();
    standby.catch_up_with(&primary);
    let before = Before::of(&primary);
    // In force from the start; what the background writer writes moves the minimum recovery point.
    standby.stop(Postmaster::Fast);
    standby.set("recovery_min_apply_delay = '1h'\nbgwriter_lru_maxpages = 0");
    standby.start();
    // DROP DATABASE waits until every session has closed its files (storage/ipc/procsignal.c,
    // WaitForProcSignalBarrier), so that the backup must not be held up.
    let pgkeep = Pgkeep::of(&standby).with("max_rate", "4MB");
    let mut running = pgkeep.spawn(&["backup", SERVER]);
    wait_until_copying(&mut running, &pgkeep);
    let oid = primary.value(&format!(
        "select oid from pg_database where datname = '{database}'"
    ));
    let map = standby.data().join(format!("base/{oid}/pg_filenode.map"));
    let old_map = fs::read(&map).unwrap();
    primary.sql_in("app", change);
    let written = primary.value("select pg_current_wal_flush_lsn()");
    wait_until("the standby has the commit", || {
        standby.value(&format!("select pg_last_wal_receive_lsn() >= '{written}'")) == "t"
    });
    wait_until("the files are changed or gone", || {
        fs::read(&map).ok().as_ref() != Some(&old_map)
    });
    assert!(running.is_running(), "the backup ended before the change");
    let backup = running.wait().succeeded().at("Response.Backup");
    let end = pgkeep.ok(&["info", SERVER, "newest"]).at("Response.EndLSN");
    assert_eq!(
        standby.value(&format!("select '{end}' > pg_last_wal_replay_lsn()")),
        "t",
        "the record that comes next may be half applied"
    );

    checks::sha512sum(&pgkeep.backups().join(&backup));
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let data = pgkeep.restore("newest");
    checks::is_whole(major, &data, &before, 0);
}

#[test]
fn a_database_dropped_on_a_standby_before_the_commit_is_not_half_there() {
    for major in crate::support::versions(&[14, 16, 18]) {
        files_ahead_of_the_minimum_recovery_point(major, "passing", "drop database passing");
    }
}

#[test]
fn a_catalog_rewritten_on_a_standby_before_the_commit_is_found() {
    for major in crate::support::versions(&[14, 18]) {
        files_ahead_of_the_minimum_recovery_point(major, "app", "vacuum full pg_class");
    }
}

#[test]
fn a_tablespace_created_since_the_last_restartpoint_is_waited_out() {
    for major in crate::support::versions(&[14, 18]) {
        let primary = Cluster::new(major);
        let standby = primary.standby();
        let before = Before::of(&primary);
        let folder = primary.tablespace("late");
        standby.catch_up_with(&primary);
        let pgkeep = Pgkeep::of(&standby);
        let mut running = pgkeep.spawn(&["backup", SERVER, "-v"]);
        wait_for_pass(&mut running, &pgkeep, 2);
        std::thread::sleep(std::time::Duration::from_secs(3));
        assert!(running.is_running(), "it did not wait for a restartpoint");
        primary.sql("checkpoint");
        let run = running.wait();
        run.succeeded();
        let created = format!("a tablespace was created in {}", folder.display());
        assert!(run.stderr.contains(&created), "{}", run.stderr);
        assert!(
            run.stderr.contains("CHECKPOINT on the primary"),
            "{}",
            run.stderr
        );
        pgkeep.ok(&["verify", SERVER, "newest"]);
        checks::is_whole(major, &pgkeep.restore_elsewhere("newest"), &before, 0);
    }
}
