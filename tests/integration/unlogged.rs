//! Unlogged relations whose last file, the one that tells that they are unlogged, is made after a backup has listed all files.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use postgres::Client;
use rustix::process::Signal;

use crate::archives;
use crate::support::archive::{archiving, small_segments, switch, wait_until_archived};
use crate::support::checks;
use crate::support::pgkeep::{Backup, SERVER, wait_until_copying};
use crate::support::{Cluster, Pgkeep, wait_until};

/// An unlogged table, and a function that holds up whoever builds an index with it as long as somebody has a lock.
const TABLES: &str = "
create unlogged table brief as select i from generate_series(1, 1000) i;
create function waits(i int) returns int immutable language plpgsql as $$
begin
    if i = 1 then
        perform pg_advisory_lock_shared(7);
        perform pg_advisory_unlock_shared(7);
    end if;
    return i;
end $$;
";

/// Indexes that are being built until this is told otherwise.
struct Building {
    lock: Client,
    builders: Vec<JoinHandle<()>>,
}

impl Building {
    fn begin(cluster: &Cluster, statements: &[&str]) -> Building {
        let mut lock = cluster.connect("postgres").unwrap();
        lock.batch_execute("select pg_advisory_lock(7)").unwrap();
        let builders = statements.iter().map(|statement| {
            let mut client = cluster.connect("postgres").unwrap();
            let statement = (*statement).to_owned();
            std::thread::spawn(move || client.batch_execute(&statement).unwrap())
        });
        let builders: Vec<_> = builders.collect();
        wait_until("the indexes are being built", || {
            let waiting = "select count(*) from pg_stat_activity where wait_event = 'advisory'";
            cluster.number(waiting) == builders.len() as i64
        });
        Building { lock, builders }
    }

    fn finish(mut self) {
        self.lock
            .batch_execute("select pg_advisory_unlock(7)")
            .unwrap();
        for builder in self.builders {
            builder.join().unwrap();
        }
    }
}

/// A cluster that archives, with a tablespace, and slow backups.
fn cluster(major: u32) -> (Cluster, Pgkeep) {
    let slowly = |pgkeep: Pgkeep| pgkeep.with("max_rate", "16MB");
    let (cluster, pgkeep) = archiving(major, &small_segments(), slowly, Pgkeep::archive_command);
    cluster.sql(TABLES);
    cluster.tablespace("outside");
    (cluster, pgkeep)
}

/// A backup during which an index is finished, after its files were listed.
fn backup_while_finishing(pgkeep: &Pgkeep, arguments: &[&str], building: Building) -> Backup {
    let mut running = pgkeep.spawn(&[&["backup", SERVER], arguments].concat());
    wait_until_copying(&mut running, pgkeep);
    running.signal(Signal::STOP);
    building.finish();
    running.signal(Signal::CONT);
    pgkeep.finished(&running.wait().succeeded())
}

fn archive_all(cluster: &Cluster, pgkeep: &Pgkeep) {
    let last = switch(cluster);
    wait_until_archived(pgkeep, &last);
}

fn restore(cluster: &Cluster, pgkeep: &Pgkeep, backup: &str, position: &str) -> PathBuf {
    let folder = pgkeep.ground().folder(&format!("{backup}-{position}"));
    let moved = format!(
        "{}={}",
        cluster.ground().path().join("outside").display(),
        folder.join("outside").display()
    );
    let target = folder.to_str().unwrap();
    let report = pgkeep.ok(&[
        "restore",
        SERVER,
        backup,
        position,
        target,
        "--tablespace",
        &moved,
    ]);
    let data = PathBuf::from(report.at("Response.Directory"));
    checks::pg_verifybackup(cluster.major, &data);
    data
}

/// The restored server starts, and these indexes are there and can be used.
fn starts(major: u32, data: &Path, indexes: &[&str]) {
    let mut cluster = Cluster::adopt(major, data);
    cluster.set("archive_mode = off");
    cluster.start();
    cluster.wait_until_writable();
    assert_eq!(cluster.number("select count(*) from brief"), 0);
    cluster.sql("insert into brief values (5)");
    let found = cluster.value("set enable_seqscan = off; select i from brief where waits(i) = 5");
    assert_eq!(found, "5");
    let names =
        "select coalesce(string_agg(indexrelid::regclass::text, ' ' order by indexrelid::regclass::text), '') from pg_index
                 where indrelid = 'brief'::regclass and indisvalid";
    assert_eq!(cluster.value(names), indexes.join(" "));
    checks::pg_amcheck(&cluster);
}

fn an_index_that_is_finished_later_does_no_harm(major: u32) -> (Cluster, Pgkeep) {
    let (cluster, pgkeep) = cluster(major);

    // While the backup runs.
    let building = Building::begin(&cluster, &["create index first on brief (waits(i))"]);
    let full = backup_while_finishing(&pgkeep, &[], building);
    let data = restore(&cluster, &pgkeep, &full.identifier, "immediate");
    starts(major, &data, &["first"]);

    // When it has ended: one anew, which has another file then, and one in a tablespace. Both are in it by halves.
    let building = Building::begin(
        &cluster,
        &[
            "reindex index first",
            "create index second on brief (waits(i)) tablespace outside",
        ],
    );
    let increment = pgkeep.backup_on(&full.identifier).identifier;
    building.finish();
    archive_all(&cluster, &pgkeep);
    let data = restore(&cluster, &pgkeep, &increment, "immediate");
    starts(major, &data, &["first"]);
    let data = restore(&cluster, &pgkeep, &increment, "current");
    starts(major, &data, &["first", "second"]);
    (cluster, pgkeep)
}

/// So with an archive, and where the increment has taken over what it needs of its parent.
fn an_index_that_is_finished_later_does_no_harm_anywhere(major: u32) {
    let (cluster, pgkeep) = an_index_that_is_finished_later_does_no_harm(major);
    let folder = pgkeep.ground().folder("unpacked");
    let target = folder.to_str().unwrap();
    let report = pgkeep.ok(&["archive", SERVER, "newest", "current", target]);
    starts(
        major,
        &archives::unpack(&report, &folder),
        &["first", "second"],
    );

    // An increment while which one is finished that its parent holds by halves.
    let building = Building::begin(&cluster, &["create index third on brief (waits(i))"]);
    pgkeep.backup_on("newest");
    backup_while_finishing(&pgkeep, &["newest"], building);
    let building = Building::begin(&cluster, &["cluster brief using first"]);
    pgkeep.backup_on("newest");
    building.finish();
    archive_all(&cluster, &pgkeep);
    let all = ["first", "second", "third"];
    let data = restore(&cluster, &pgkeep, "newest", "immediate");
    starts(major, &data, &all);
    let parents = pgkeep.ok(&["list-backup", SERVER]).backups();
    for parent in parents
        .iter()
        .filter(|parent| Some(*parent) != parents.iter().max())
    {
        pgkeep.ok(&["delete", SERVER, parent]);
    }
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let data = restore(&cluster, &pgkeep, "newest", "current");
    starts(major, &data, &all);
}

#[test]
fn an_index_of_14_that_is_finished_later_does_no_harm_anywhere() {
    an_index_that_is_finished_later_does_no_harm_anywhere(14);
}

#[test]
fn an_index_of_15_that_is_finished_later_does_no_harm() {
    an_index_that_is_finished_later_does_no_harm(15);
}

#[test]
fn an_index_of_16_that_is_finished_later_does_no_harm() {
    an_index_that_is_finished_later_does_no_harm(16);
}

#[test]
fn an_index_of_17_that_is_finished_later_does_no_harm() {
    an_index_that_is_finished_later_does_no_harm(17);
}

#[test]
fn an_index_of_18_that_is_finished_later_does_no_harm_anywhere() {
    an_index_that_is_finished_later_does_no_harm_anywhere(18);
}
