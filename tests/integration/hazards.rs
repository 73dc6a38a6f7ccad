//! What PostgreSQL would not do over in a restored cluster as it did it while a backup ran: another pass begins behind it.

use crate::support::checks::{self, Before};
use crate::support::cluster::Options;
use crate::support::pgkeep::{SERVER, wait_until_copying};
use crate::support::{Cluster, Pgkeep};

/// Takes a backup while each of the statements, in the database that is named with it, takes its turn. Gives how many
/// passes it took.
fn meanwhile(
    cluster: &Cluster,
    pgkeep: &Pgkeep,
    arguments: &[&str],
    statements: &[(&str, &str)],
) -> u32 {
    let mut running = pgkeep.spawn(&[&["backup", SERVER], arguments].concat());
    wait_until_copying(&mut running, pgkeep);
    for (database, statement) in statements {
        cluster.sql_in(database, statement);
    }
    assert!(running.is_running(), "the backup ended too early");
    running.wait().succeeded();
    passes(pgkeep)
}

fn passes(pgkeep: &Pgkeep) -> u32 {
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    info.at("Response.Passes").parse().unwrap()
}

const CHANGE: &str = "insert into t select i, 'x' from generate_series(1, 1000) i";

/// The newest backup holds what the server did.
fn assert_newest(major: u32, pgkeep: &Pgkeep, before: &Before, tables: &[(&str, i64)]) {
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let data = pgkeep.restore_elsewhere("newest");
    let restored = checks::is_whole(major, &data, before, 0);
    for (database, rows) in tables {
        let count = &restored.sql_in(database, "select count(*) from t")[0][0];
        assert_eq!(*count, rows.to_string(), "of {database}");
    }
}

fn what_replay_would_not_do_over_takes_another_pass(major: u32, strategy: &str, compression: &str) {
    let mut cluster = Cluster::stopped(major, &Options::default());
    // A template that is vacuumed is changed too.
    cluster.set("autovacuum = off");
    cluster.start();
    cluster.tablespace("outside");
    cluster.sql("create database moving template app");
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::of(&cluster)
        .with("max_rate", "12MB")
        .with("compression", compression);
    let moved = [("postgres", "alter database moving set tablespace outside")];
    assert_eq!(meanwhile(&cluster, &pgkeep, &[], &moved), 2);
    assert_newest(major, &pgkeep, &before, &[("app", 1000), ("moving", 1000)]);
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    assert_eq!(info.at("Response.Incremental"), "false");

    let copied = format!("create database copied template app {strategy}");
    let change = [("postgres", copied.as_str()), ("app", CHANGE)];
    assert_eq!(meanwhile(&cluster, &pgkeep, &["newest"], &change), 2);
    let tables = [("app", 2000), ("copied", 1000), ("moving", 1000)];
    assert_newest(major, &pgkeep, &before, &tables);
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    assert_eq!(info.at("Response.Incremental"), "true");

    // Replay would create it where it is.
    let elsewhere = cluster.ground().folder("elsewhere");
    let create = format!(
        "create tablespace elsewhere location '{}'",
        elsewhere.display()
    );
    let created = [("postgres", create.as_str()), ("copied", CHANGE)];
    assert_eq!(meanwhile(&cluster, &pgkeep, &["newest"], &created), 2);
    cluster.sql("create table moved_on tablespace elsewhere as select 1");
    let tables = [("app", 2000), ("copied", 2000), ("moving", 1000)];
    assert_newest(major, &pgkeep, &before, &tables);
    assert_eq!(pgkeep.ok(&["list-backup", SERVER]).backups().len(), 3);
    // The others are still what they were, and nothing of the passes is left.
    pgkeep.ok(&["verify", SERVER, "oldest"]);
    let folders = std::fs::read_dir(pgkeep.backups()).unwrap();
    assert_eq!(folders.count(), 3);
    pgkeep.ok(&["delete", SERVER, "oldest"]);
    assert_newest(major, &pgkeep, &before, &tables);
}

#[test]
fn what_replay_would_not_do_over_takes_another_pass_of_14() {
    what_replay_would_not_do_over_takes_another_pass(14, "", "zstd");
}

#[test]
fn what_replay_would_not_do_over_takes_another_pass_of_17() {
    what_replay_would_not_do_over_takes_another_pass(17, "strategy file_copy", "none");
}

#[test]
fn a_template_that_stays_as_it_was_does_no_harm() {
    let mut cluster = Cluster::stopped(16, &Options::default());
    cluster.set("autovacuum = off");
    cluster.start();
    let pgkeep = Pgkeep::of(&cluster).with("max_rate", "4MB");
    let before = Before::of(&cluster);
    let copied = "create database copied template app strategy file_copy";
    // Nor does a change before.
    let statements = [("app", CHANGE), ("postgres", copied), ("copied", CHANGE)];
    assert_eq!(meanwhile(&cluster, &pgkeep, &[], &statements), 1);
    let data = pgkeep.restore("newest");
    let restored = checks::is_whole(16, &data, &before, 0);
    let count = |database: &str| restored.sql_in(database, "select count(*) from t")[0][0].clone();
    assert_eq!([count("app"), count("copied")], ["2000", "3000"]);
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
    assert_eq!(meanwhile(&cluster, &pgkeep, &[], &statements), 1);
    let data = pgkeep.restore("newest");
    let restored = checks::is_whole(18, &data, &before, 0);
    let count = |database: &str| restored.sql_in(database, "select count(*) from t")[0][0].clone();
    assert_eq!([count("app"), count("copied")], ["0", "1000"]);
}
