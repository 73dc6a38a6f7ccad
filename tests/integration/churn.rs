//! Backups of a server whose databases and tablespaces come, move and go all the time: each succeeds, and is right.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use crate::support::checks::{self, Before};
use crate::support::load::patiently;
use crate::support::pgkeep::SERVER;
use crate::support::random_changes::rounds;
use crate::support::{Cluster, Load, Options, Pgkeep};

/// What autovacuum does of itself it does within a second here, and so it visits the templates while they are copied.
const SETTINGS: &str =
    "autovacuum_naptime = 1s\nautovacuum_vacuum_threshold = 1\nwal_keep_size = 1GB";

/// Rows of the table in the template, and by how many it grows after each copy.
const TEMPLATE_ROWS: i64 = 1000;
const GROWTH: i64 = 10;

/// Whose backups are made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The one where all that is done.
    Primary,
    /// One that follows. What is done is not held up for it, so there must be a moment now and then between one checkpoint of the
    /// primary and the next in which nothing of it is done; and replay would make tablespaces in the folders of the primary's.
    Standby,
}

/// Between two rounds, for a standby.
const PAUSE: Duration = Duration::from_secs(1);

/// Does all that replay would not do over, without a pause, until it is told to stop.
fn churn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    cluster: &'scope Cluster,
    source: Source,
    stop: &'scope AtomicBool,
) -> ScopedJoinHandle<'scope, u32> {
    scope.spawn(move || {
        let mut client = cluster.connect("postgres").unwrap();
        let mut round = 0;
        while !stop.load(Ordering::Relaxed) {
            round += 1;
            let strategy = match (cluster.major, round % 3) {
                (14, _) => "",
                (_, 0) => "strategy wal_log",
                _ => "strategy file_copy",
            };
            let mut run = |statement: String| patiently(&mut client, &statement).unwrap();
            run(format!("create database c{round} template app {strategy}"));
            cluster.sql_in(
                "app",
                &format!("insert into t select i, 'x' from generate_series(1, {GROWTH}) i"),
            );
            run(format!("alter database c{round} set tablespace aside"));
            if round % 2 == 0 {
                run(format!("alter database c{round} set tablespace pg_default"));
            }
            if source == Source::Primary {
                let folder = cluster.ground().folder(&format!("e{round}"));
                run(format!(
                    "create tablespace e{round} location '{}'",
                    folder.display()
                ));
                run(format!(
                    "create table e{round} tablespace e{round} as select 1"
                ));
                run(format!("drop table e{round}"));
                run(format!("drop tablespace e{round}"));
            }
            if round > 1 {
                run(format!("drop database c{}", round - 1));
            }
            if source == Source::Standby {
                std::thread::sleep(PAUSE);
            }
        }
        round
    })
}

/// Stops the churn, also where a test fails.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Backups of a server, while all that goes on.
fn backups_amid_churn(primary: &Cluster, server: &Cluster, source: Source) {
    let before = Before::of(primary);
    let pgkeep = Pgkeep::of(server);
    let load = Load::on(primary);
    let stop = AtomicBool::new(false);
    let made = std::thread::scope(|scope| {
        let churn = churn(scope, primary, source, &stop);
        let stopping = Stopping(&stop);
        let mut made = Vec::new();
        for number in 0..=rounds(1) {
            if source == Source::Standby {
                // A restartpoint, without which the backup before could not be the parent.
                primary.sql("checkpoint");
                server.catch_up_with(primary);
            }
            let arguments: &[&str] = match number % 3 {
                0 => &["backup", SERVER],
                _ => &["backup", SERVER, "newest"],
            };
            let run = pgkeep.run(arguments);
            let backup = pgkeep.finished(&run.succeeded());
            let history = primary.number("select count(*) from pgbench_history");
            let passes = pgkeep.ok(&["info", SERVER, "newest"]).at("Response.Passes");
            println!("{} took {passes} passes", backup.identifier);
            made.push((backup, history));
        }
        drop(stopping);
        println!("{} rounds of churn", churn.join().unwrap());
        made
    });
    load.stop();
    for (backup, history) in &made {
        pgkeep.ok(&["verify", SERVER, &backup.identifier]);
        let data = pgkeep.restore_elsewhere(&backup.identifier);
        let restored = checks::is_whole(server.major, &data, &before, *history);
        for database in restored.sql("select datname from pg_database where datname ~ '^c[0-9]+$'")
        {
            let round: i64 = database[0][1..].parse().unwrap();
            let rows = &restored.sql_in(&database[0], "select count(*) from t")[0][0];
            let expected = TEMPLATE_ROWS + (round - 1) * GROWTH;
            assert_eq!(*rows, expected.to_string(), "in {}", database[0]);
        }
    }
}

fn backups_of_a_primary_amid_churn_restore(major: u32) {
    let mut cluster = Cluster::stopped(major, &Options::default());
    cluster.set(SETTINGS);
    cluster.start();
    cluster.tablespace("aside");
    backups_amid_churn(&cluster, &cluster, Source::Primary);
}

fn backups_of_a_standby_amid_churn_restore(major: u32) {
    let mut cluster = Cluster::stopped(major, &Options::default());
    cluster.set(SETTINGS);
    cluster.set("allow_in_place_tablespaces = on");
    cluster.start();
    cluster.sql("create tablespace aside location ''");
    let standby = cluster.standby();
    standby.catch_up_with(&cluster);
    backups_amid_churn(&cluster, &standby, Source::Standby);
}

#[test]
fn backups_amid_churn_restore() {
    for major in crate::support::versions(&churned(&[18])) {
        backups_of_a_primary_amid_churn_restore(major);
    }
}

#[test]
fn backups_of_a_standby_amid_churn_restore_too() {
    for major in crate::support::versions(&churned(&[16])) {
        backups_of_a_standby_amid_churn_restore(major);
    }
}

/// Some versions, or all where there is time.
fn churned(usual: &[u32]) -> Vec<u32> {
    match rounds(0) {
        0 => usual.to_vec(),
        _ => crate::support::VERSIONS.to_vec(),
    }
}
