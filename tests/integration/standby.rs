//! Backups taken from a standby.

use std::fs;

use crate::support::checks::{self, Before};
use crate::support::cluster::Postmaster;
use crate::support::pgkeep::{SERVER, wait_until_copying};
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
fn a_standby_promoted_meanwhile_fails_the_backup_and_the_next_one_succeeds() {
    for major in [14, 18] {
        let primary = Cluster::new(major);
        let standby = primary.standby();
        standby.catch_up_with(&primary);
        let before = Before::of(&primary);
        let slow = Pgkeep::of(&standby).with("max_rate", "8MB");
        let mut running = slow.spawn(&["backup", SERVER]);
        wait_until_copying(&mut running, &slow);
        standby.sql("select pg_promote()");
        let error = running.wait().failed(5);
        assert!(error.contains("promot"), "{error}");
        assert!(slow.ok(&["list-backup", SERVER]).backups().is_empty());
        standby.assert_nothing_is_left();

        let pgkeep = slow.with("max_rate", "0");
        let backup = pgkeep.backup();
        assert_eq!(
            pgkeep
                .ok(&["info", SERVER, "newest"])
                .at("Response.StartTimeline"),
            "2"
        );
        let data = pgkeep.restore(&backup.identifier);
        checks::is_whole(major, &data, &before, 0);
    }
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
    for major in [14, 17] {
        let mut primary = Cluster::new(major);
        let successor = primary.standby();
        let cascading = successor.standby();
        cascading.catch_up_with(&primary);
        let before = Before::of(&primary);
        let pgkeep = Pgkeep::of(&cascading).with("max_rate", "8MB");
        let mut running = pgkeep.spawn(&["backup", SERVER]);
        wait_until_copying(&mut running, &pgkeep);

        primary.stop(Postmaster::Fast);
        successor.sql("select pg_promote()");
        successor.wait_until_writable();
        successor.sql(
            "insert into pgbench_history select 1, 1, 1, 0, now() from generate_series(1, 99)",
        );
        cascading.catch_up_with(&successor);
        cascading.sql("checkpoint");
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
