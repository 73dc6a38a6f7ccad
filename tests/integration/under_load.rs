//! A backup taken while everything moves restores to one consistent moment.

use crate::support::checks::{self, Before};
use crate::support::pgkeep::SERVER;
use crate::support::random_changes::rounds;
use crate::support::{Cluster, Load, Pgkeep};

/// Slow enough that many relations and some databases come and go meanwhile.
const MAX_RATE: &str = "16MB";

fn a_backup_under_load_restores(major: u32) {
    let cluster = Cluster::new(major);
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::of(&cluster).with("max_rate", MAX_RATE);
    let load = Load::on(&cluster);

    // On a busy machine the load may get too little of it.
    let backups = (0..5).map(|_| {
        let rounds = load.rounds();
        let backup = pgkeep.backup();
        (backup, load.rounds() - rounds)
    });
    let (backup, _) = { backups }
        .find(|(_, rounds)| *rounds > 2)
        .expect("the relations do not change while a backup runs");
    let history = cluster.number("select count(*) from pgbench_history");
    load.stop();

    cluster.assert_nothing_is_left();
    checks::sha512sum(&backup.folder);
    pgkeep.ok(&["verify", SERVER, &backup.identifier]);
    let data = pgkeep.restore(&backup.identifier);
    checks::is_whole(major, &data, &before, history);
}

#[test]
fn a_backup_of_14_under_load_restores() {
    a_backup_under_load_restores(14);
}

#[test]
fn a_backup_of_15_under_load_restores() {
    a_backup_under_load_restores(15);
}

#[test]
fn a_backup_of_16_under_load_restores() {
    a_backup_under_load_restores(16);
}

#[test]
fn a_backup_of_17_under_load_restores() {
    a_backup_under_load_restores(17);
}

#[test]
fn a_backup_of_18_under_load_restores() {
    a_backup_under_load_restores(18);
}

#[test]
fn backups_at_full_speed_under_load_all_restore() {
    let cluster = Cluster::new(17);
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::of(&cluster);
    let load = Load::on(&cluster);
    let backups: Vec<_> = (0..rounds(3))
        .map(|_| {
            let backup = pgkeep.backup();
            (
                backup,
                cluster.number("select count(*) from pgbench_history"),
            )
        })
        .collect();
    load.stop();
    for (backup, history) in backups {
        let data = pgkeep.restore(&backup.identifier);
        checks::is_whole(17, &data, &before, history);
    }
}
