//! What PostgreSQL would not do over in a restored cluster as it did it while a backup ran.

use crate::support::checks::{self, Before};
use crate::support::cluster::Options;
use crate::support::pgkeep::{SERVER, wait_until_copying};
use crate::support::{Cluster, Pgkeep};

/// What a backup comes to while each of the statements, in the database that is named with it, takes its turn.
fn meanwhile(
    cluster: &Cluster,
    pgkeep: &Pgkeep,
    statements: &[(&str, &str)],
) -> Result<(), String> {
    let mut running = pgkeep.spawn(&["backup", SERVER]);
    wait_until_copying(&mut running, pgkeep);
    for (database, statement) in statements {
        cluster.sql_in(database, statement);
    }
    assert!(running.is_running(), "the backup ended too early");
    let run = running.wait();
    match run.status.code() {
        Some(0) => Ok(()),
        _ => Err(run.failed(1)),
    }
}

fn what_replay_would_not_do_over_fails_a_backup(major: u32, strategy: &str) {
    let mut cluster = Cluster::stopped(major, &Options::default());
    // A template that is vacuumed is changed too.
    cluster.set("autovacuum = off");
    cluster.start();
    cluster.tablespace("outside");
    cluster.sql("create database moving template app");
    let pgkeep = Pgkeep::of(&cluster).with("max_rate", "4MB");
    let moved = [("postgres", "alter database moving set tablespace outside")];
    let error = meanwhile(&cluster, &pgkeep, &moved).unwrap_err();
    assert!(error.contains("was moved to another tablespace"), "{error}");

    let copied = format!("create database copied template app {strategy}");
    let change = "insert into t select i, 'x' from generate_series(1, 1000) i";
    let error =
        meanwhile(&cluster, &pgkeep, &[("postgres", &copied), ("app", change)]).unwrap_err();
    assert!(error.contains("as a copy of the files of"), "{error}");

    // Replay would create it where it is.
    let elsewhere = cluster.ground().folder("elsewhere");
    let create = format!(
        "create tablespace elsewhere location '{}'",
        elsewhere.display()
    );
    let error = meanwhile(&cluster, &pgkeep, &[("postgres", &create)]).unwrap_err();
    assert!(error.contains(elsewhere.to_str().unwrap()), "{error}");
    cluster.sql("drop tablespace elsewhere");
    assert!(pgkeep.ok(&["list-backup", SERVER]).backups().is_empty());

    // A template that stays as it was does no harm, nor does a change before.
    cluster.sql("drop database copied");
    cluster.sql("drop database moving");
    cluster.sql("drop tablespace outside");
    let before = Before::of(&cluster);
    meanwhile(
        &cluster,
        &pgkeep,
        &[("app", change), ("postgres", &copied), ("copied", change)],
    )
    .unwrap();
    let data = pgkeep.restore("newest");
    let restored = checks::is_whole(major, &data, &before, 0);
    let count = |database: &str| restored.sql_in(database, "select count(*) from t")[0][0].clone();
    assert_eq!([count("app"), count("copied")], ["3000", "4000"]);
}

#[test]
fn what_replay_would_not_do_over_fails_a_backup_of_14() {
    what_replay_would_not_do_over_fails_a_backup(14, "");
}

#[test]
fn what_replay_would_not_do_over_fails_a_backup_of_17() {
    what_replay_would_not_do_over_fails_a_backup(17, "strategy file_copy");
}

#[test]
fn a_copy_that_is_in_the_wal_may_differ_from_its_template() {
    let cluster = Cluster::new(18);
    let pgkeep = Pgkeep::of(&cluster).with("max_rate", "4MB");
    let before = Before::of(&cluster);
    let statements = [
        (
            "postgres",
            "create database copied template app strategy wal_log",
        ),
        ("app", "delete from t"),
    ];
    meanwhile(&cluster, &pgkeep, &statements).unwrap();
    let data = pgkeep.restore("newest");
    let restored = checks::is_whole(18, &data, &before, 0);
    let count = |database: &str| restored.sql_in(database, "select count(*) from t")[0][0].clone();
    assert_eq!([count("app"), count("copied")], ["0", "1000"]);
}
