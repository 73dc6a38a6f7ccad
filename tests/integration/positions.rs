//! Restores to positions behind a backup, through archived WAL: each lands exactly where it should.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::archives;
use crate::support::archive::{archiving, small_segments, switch, wait_until_archived};
use crate::support::cluster::Postmaster;
use crate::support::pgkeep::{Run, SERVER, binary};
use crate::support::report::Report;
use crate::support::{Cluster, Pgkeep, leave_the_second, wait_until};

/// A row of the table `marks`, whose greatest number tells how far a cluster has come.
struct Mark {
    /// The transaction that wrote it.
    xid: String,
    /// When that ended, exactly.
    time: String,
    /// A position behind its end.
    behind: String,
}

/// A cluster that archives small segments, with an empty table `marks`.
fn marked(major: u32) -> (Cluster, Pgkeep) {
    let (mut cluster, pgkeep) = archiving(
        major,
        &small_segments(),
        |pgkeep| pgkeep,
        Pgkeep::archive_command,
    );
    cluster.stop(Postmaster::Fast);
    cluster.set("track_commit_timestamp = on");
    cluster.set("max_prepared_transactions = 5");
    // A test expects the numbers of transactions.
    cluster.set("autovacuum = off");
    cluster.start();
    cluster.sql("create table marks (n int)");
    (cluster, pgkeep)
}

fn mark(cluster: &Cluster, n: i32) -> Mark {
    let rows = cluster.sql(&format!(
        "begin; insert into marks values ({n}); select pg_current_xact_id(); commit"
    ));
    committed(cluster, &rows[0][0])
}

/// A transaction that ends in another session, with all in front of its number that a record can have there.
fn mark_prepared(cluster: &Cluster, n: i32) -> Mark {
    let rows = cluster.sql(&format!(
        "create table doomed_{n} (i int); begin; insert into marks values ({n}); select pg_current_xact_id();
         savepoint s; insert into marks values (0); release s; drop table doomed_{n}; prepare transaction 'mark'"
    ));
    cluster.sql("commit prepared 'mark'");
    committed(cluster, &rows[0][0])
}

fn committed(cluster: &Cluster, xid: &str) -> Mark {
    let rows = cluster.sql(&format!(
        "select pg_xact_commit_timestamp('{xid}'::xid), pg_current_wal_insert_lsn()"
    ));
    // Whatever comes next has a later time.
    std::thread::sleep(Duration::from_millis(2));
    Mark {
        xid: xid.to_owned(),
        time: rows[0][0].clone(),
        behind: rows[0][1].clone(),
    }
}

/// Ends the segment that is being written, and waits until it is archived.
fn archive_all(cluster: &Cluster, pgkeep: &Pgkeep) {
    let last = switch(cluster);
    wait_until_archived(pgkeep, &last);
}

/// A new folder to restore to.
fn target(pgkeep: &Pgkeep) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    pgkeep.ground().folder(&format!("to-{number}"))
}

fn try_restore(pgkeep: &Pgkeep, backup: &str, position: &str) -> (Run, PathBuf) {
    let folder = target(pgkeep);
    let run = pgkeep.run(&[
        "restore",
        SERVER,
        backup,
        position,
        folder.to_str().unwrap(),
    ]);
    (run, folder)
}

fn restore(pgkeep: &Pgkeep, backup: &str, position: &str) -> (Report, PathBuf) {
    let (run, _) = try_restore(pgkeep, backup, position);
    let report = run.succeeded();
    let data = PathBuf::from(report.at("Response.Directory"));
    (report, data)
}

/// The error of a restore that must not write anything.
fn refused(pgkeep: &Pgkeep, backup: &str, position: &str, status: i32) -> String {
    let (run, folder) = try_restore(pgkeep, backup, position);
    let error = run.failed(status);
    let entries = fs::read_dir(&folder).unwrap().count();
    assert_eq!(entries, 0, "something was written to {}", folder.display());
    let hint = run.report().find("Outcome.Hint").map(ToString::to_string);
    format!("{error} HINT {}", hint.unwrap_or_default())
}

/// Starts a restored cluster, which must not archive into the same place.
fn start(major: u32, data: &Path) -> Cluster {
    let mut cluster = Cluster::adopt(major, data);
    cluster.set("archive_mode = off");
    cluster.start();
    cluster
}

/// The greatest mark of a restored cluster, once it has come to its end: paused or promoted.
fn landing(major: u32, data: &Path) -> String {
    let cluster = start(major, data);
    wait_until("recovery has ended or paused", || {
        let mut client = cluster.connect("postgres").unwrap();
        let state = client.query_one(
            "select case when pg_is_in_recovery() then pg_get_wal_replay_pause_state() else 'over' end",
            &[],
        );
        // It may end between the question and the answer, which is an error then.
        state.is_ok_and(|row| row.get::<_, &str>(0) != "not paused")
    });
    cluster.value("select max(n) from marks")
}

fn lands_on(major: u32, pgkeep: &Pgkeep, backup: &str, position: &str, n: &str) -> Report {
    let (report, data) = restore(pgkeep, backup, position);
    assert_eq!(landing(major, &data), n, "PostgreSQL {major}, {position}");
    report
}

/// The same by way of an archive, which brings along all the WAL that it takes.
fn unpacked_lands_on(major: u32, pgkeep: &Pgkeep, backup: &str, position: &str, n: &str) {
    let folder = target(pgkeep);
    let report = pgkeep.ok(&[
        "archive",
        SERVER,
        backup,
        position,
        folder.to_str().unwrap(),
    ]);
    let data = archives::unpack(&report, &folder);
    let settings = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
    assert!(
        settings.contains("restore_command = 'false'\n"),
        "{settings}"
    );
    assert_eq!(
        landing(major, &data),
        n,
        "PostgreSQL {major}, {position}, unpacked"
    );
}

/// Marks 1 to 5: three of them behind the first backup, the second one a prepared transaction's with a
/// restore point behind it, and two behind the later backup.
struct Journey {
    major: u32,
    pgkeep: Pgkeep,
    first: String,
    later: String,
    second: Mark,
    third: Mark,
    fourth: Mark,
}

fn journey(major: u32) -> Journey {
    let (cluster, pgkeep) = marked(major);
    let first = pgkeep.backup().identifier;
    leave_the_second();
    mark(&cluster, 1);
    let second = mark_prepared(&cluster, 2);
    cluster.sql("select pg_create_restore_point('between, all')");
    let third = mark(&cluster, 3);
    archive_all(&cluster, &pgkeep);
    let later = pgkeep.backup_on("newest").identifier;
    leave_the_second();
    let fourth = mark(&cluster, 4);
    mark(&cluster, 5);
    archive_all(&cluster, &pgkeep);
    Journey {
        major,
        pgkeep,
        first,
        later,
        second,
        third,
        fourth,
    }
}

impl Journey {
    /// Restores the newest backup that leads to a position, which must be this one, and checks where it lands.
    fn leads(&self, backup: &str, position: &str, n: &str) -> Report {
        let report = lands_on(self.major, &self.pgkeep, "newest", position, n);
        assert_eq!(report.at("Response.Backup"), backup, "{position}");
        report
    }

    fn promoted(&self, backup: &str, position: &str, n: &str) -> Report {
        self.leads(backup, &format!("{position},action=promote"), n)
    }
}

/// What differs between major versions, and what anybody would use.
fn the_main_positions_are_reached_exactly(major: u32) -> Journey {
    let journey = journey(major);
    let xid = &journey.second.xid;
    journey.promoted(&journey.first, &format!("xid={xid},inclusive=off"), "1");
    let time = &journey.fourth.time;
    journey.leads(&journey.later, &format!("time={time}"), "4");
    journey.promoted(&journey.first, r"name=between\, all", "2");
    journey.leads(&journey.later, "current", "5");
    let unpacked = |backup: &str, position: &str, n: &str| {
        unpacked_lands_on(major, &journey.pgkeep, backup, position, n);
    };
    unpacked(&journey.first, &format!("xid={xid},inclusive=off"), "1");
    unpacked("newest", &format!("time={time},action=promote"), "4");
    unpacked(&journey.first, "current", "5");
    journey
}

/// All the others.
fn every_position_is_reached_exactly(major: u32) {
    let journey = the_main_positions_are_reached_exactly(major);
    let Journey {
        pgkeep,
        first,
        later,
        second,
        third,
        fourth,
        ..
    } = &journey;
    // Without the end of a transaction, recovery lands where the record of that begins.
    let report = journey.promoted(first, &format!("xid={},inclusive=off", second.xid), "1");
    let end_of_second = report.at("Response.TargetLSN");
    journey.leads(first, &format!("xid={}", second.xid), "2");
    let report = journey.leads(first, &format!("lsn={end_of_second}"), "2");
    assert_eq!(report.at("Response.TargetAction"), "pause");
    journey.leads(first, &format!("lsn={end_of_second},inclusive=off"), "1");
    journey.promoted(later, &format!("lsn={}", fourth.behind), "4");

    journey.promoted(first, &format!("time={}", third.time), "3");
    journey.leads(first, &format!("time={},inclusive=off", third.time), "2");

    journey.leads(later, "immediate", "3");
    lands_on(major, pgkeep, first, "current", "5");
}

#[test]
fn every_position_of_14_is_reached_exactly() {
    every_position_is_reached_exactly(14);
}

#[test]
fn the_main_positions_of_15_are_reached_exactly() {
    the_main_positions_are_reached_exactly(15);
}

#[test]
fn the_main_positions_of_16_are_reached_exactly() {
    the_main_positions_are_reached_exactly(16);
}

#[test]
fn the_main_positions_of_17_are_reached_exactly() {
    the_main_positions_are_reached_exactly(17);
}

#[test]
fn every_position_of_18_is_reached_exactly() {
    every_position_is_reached_exactly(18);
}

#[test]
fn a_server_that_shall_shut_down_at_its_target_does() {
    let journey = journey(17);
    let position = format!("xid={},action=shutdown", journey.third.xid);
    let (_, data) = restore(&journey.pgkeep, "newest", &position);
    let mut cluster = Cluster::adopt(17, &data);
    cluster.set("archive_mode = off");
    cluster.set("log_min_messages = log");
    // It may be up for an instant before it reaches the target.
    let _ = cluster.try_start();
    wait_until("it shuts down", || {
        cluster.log().contains("database system is shut down")
    });
    let log = cluster.log();
    assert!(
        log.contains(&format!(
            "recovery stopping after commit of transaction {}",
            journey.third.xid
        )) && log.contains("shutdown at recovery target"),
        "{log}"
    );
}

/// After a failover both the old primary and the new one went on: each has a future of its own.
fn both_timelines_are_reached(major: u32) {
    let (mut old, pgkeep) = marked(major);
    old.sql("insert into marks values (0)");
    let backup = pgkeep.backup().identifier;
    leave_the_second();
    let common = mark(&old, 1);
    let mut new = old.standby();
    new.catch_up_with(&old);
    let switched = old.value("select pg_walfile_name(pg_current_wal_insert_lsn())");
    // The two share no WAL from here on.
    new.sql("select pg_promote()");
    new.wait_until_writable();
    let on_second = mark(&new, 20);
    let on_first = mark(&old, 10);
    // It goes on by more than the segment in which the other one left it.
    archive_all(&old, &pgkeep);
    mark(&new, 21);
    mark(&old, 11);
    archive_all(&new, &pgkeep);
    archive_all(&old, &pgkeep);
    new.stop(Postmaster::Fast);
    old.stop(Postmaster::Fast);

    let lands = |position: &str, n: &str| lands_on(major, &pgkeep, "newest", position, n);
    let report = lands("current,timeline=1", "11");
    assert_eq!(report.at("Response.TargetTimeline"), "1");
    let report = lands("current", "21");
    assert_eq!(report.at("Response.TargetTimeline"), "2");
    let warns = |position: &str| {
        let (run, _) = try_restore(&pgkeep, "newest", position);
        run.stderr.contains("recovery leaves timeline 1")
    };
    assert!(warns("current"));
    assert!(!warns("current,timeline=1"));
    lands(
        &format!("time={},timeline=current,action=promote", on_first.time),
        "10",
    );
    lands(&format!("time={},timeline=latest", on_second.time), "20");
    lands(&format!("xid={}", common.xid), "1");
    // Both gave their transactions the same numbers.
    assert_eq!(on_first.xid, on_second.xid);
    lands(&format!("xid={},timeline=1", on_first.xid), "10");
    lands(&format!("xid={}", on_second.xid), "20");

    let unpacked = |position: &str, n: &str| {
        unpacked_lands_on(major, &pgkeep, "newest", position, n);
    };
    unpacked("current,timeline=1", "11");
    unpacked("current", "21");
    unpacked(&format!("xid={}", on_second.xid), "20");

    let error = refused(&pgkeep, "newest", "current,timeline=3", 1);
    assert!(error.contains("no history file of timeline 3"), "{error}");
    let info = pgkeep.ok(&["info", SERVER, &backup]);
    assert_eq!(info.at("Response.RollForwardTimeline"), "2");

    // Without the new timeline's first segment the server would go on along the old one.
    let switched = format!("00000002{}", &switched[8..]);
    let first_segment = pgkeep.wal().join(format!("{switched}.zstd"));
    let aside = pgkeep.ground().path().join(&switched);
    fs::rename(&first_segment, &aside).unwrap();
    let error = refused(&pgkeep, "newest", "current", 3);
    assert!(error.contains(&format!("lacks {switched} from")), "{error}");
    lands(&format!("xid={}", common.xid), "1");
    fs::rename(&aside, &first_segment).unwrap();

    // A backup of the new primary is not on the way of the old one's future.
    new.start();
    let pgkeep = pgkeep.with_server("host", new.socket().to_str().unwrap());
    let second = pgkeep.backup().identifier;
    let report = lands_on(major, &pgkeep, "newest", "current,timeline=1", "11");
    assert_eq!(report.at("Response.Backup"), backup);
    let error = refused(&pgkeep, &second, "current,timeline=1", 1);
    assert!(
        error.contains("does not descend from timeline 2"),
        "{error}"
    );
}

#[test]
fn both_timelines_of_14_are_reached() {
    both_timelines_are_reached(14);
}

#[test]
fn both_timelines_of_17_are_reached() {
    both_timelines_are_reached(17);
}

#[test]
fn a_gap_is_told_before_anything_is_written() {
    let (cluster, pgkeep) = marked(16);
    pgkeep.backup();
    leave_the_second();
    let first = mark(&cluster, 1);
    archive_all(&cluster, &pgkeep);
    let lost = switch(&cluster);
    wait_until_archived(&pgkeep, &lost);
    let second = mark(&cluster, 2);
    cluster.sql("select pg_create_restore_point('behind')");
    archive_all(&cluster, &pgkeep);
    let lost_file = pgkeep.wal().join(format!("{lost}.zstd"));
    fs::remove_file(&lost_file).unwrap();

    for position in [
        "current".to_owned(),
        "name=behind".to_owned(),
        format!("xid={}", second.xid),
        format!("time={}", second.time),
        format!("lsn={}", second.behind),
    ] {
        let error = refused(&pgkeep, "newest", &position, 3);
        assert!(
            error.contains(&format!("the archive lacks {lost} from")),
            "{position}: {error}"
        );
    }
    // What the hint says works.
    let error = refused(&pgkeep, "newest", "current", 3);
    let (_, hint) = error.split_once("lsn=").unwrap();
    let (lsn, _) = hint.split_once(' ').unwrap();
    lands_on(16, &pgkeep, "newest", &format!("lsn={lsn}"), "1");
    lands_on(16, &pgkeep, "newest", &format!("xid={}", first.xid), "1");

    // A later backup is behind the gap.
    pgkeep.backup();
    lands_on(16, &pgkeep, "newest", "current", "2");
}

#[test]
fn what_cannot_be_reached_is_told_before_anything_is_written() {
    let (cluster, pgkeep) = marked(15);
    let before = mark(&cluster, 1);
    let refuses = |backup: &str, position: &str, status: i32, why: &str| {
        let error = refused(&pgkeep, backup, position, status);
        assert!(error.contains(why), "{position}: {error}");
    };
    let first = pgkeep.backup().identifier;
    let meanwhile = mark(&cluster, 2);
    archive_all(&cluster, &pgkeep);
    // The identifiers of two backups differ.
    std::thread::sleep(Duration::from_secs(1));
    let later = pgkeep.backup().identifier;
    mark(&cluster, 3);
    archive_all(&cluster, &pgkeep);
    let info = pgkeep.ok(&["info", SERVER, &later]);
    let reach = info.at("Response.RollForwardLSN");
    assert!(info.find("Response.RollForwardTime").is_some());

    for (backup, why) in [
        ("newest", "no backup that is older"),
        (&first, "restore an earlier backup"),
    ] {
        refuses(backup, &format!("time={}", before.time), 1, why);
        refuses(backup, &format!("lsn={}", before.behind), 1, why);
    }
    for position in [
        format!("time={}", meanwhile.time),
        format!("lsn={}", meanwhile.behind),
    ] {
        let why = format!("backup {later} does not lead to the");
        refuses(&later, &position, 1, &why);
    }
    let ends = format!("ends at {reach}");
    for position in [
        "time=2099-12-31 23:59:59Z",
        "lsn=FF/0",
        "name=never",
        "xid=4000000000",
    ] {
        refuses("newest", position, 1, &ends);
        refuses(&first, position, 1, &ends);
    }
    // Transactions from before the first backup are in no WAL that recovery would read.
    refuses("newest", &format!("xid={}", before.xid), 1, &ends);
    refuses("newest", "time=yesterday", 2, "expected a time");
    refuses(
        "newest",
        "current,timeline=7",
        1,
        "no history file of timeline 7",
    );

    fs::remove_dir_all(pgkeep.wal()).unwrap();
    refuses("newest", "xid=700", 1, "no archived WAL");
    lands_on(15, &pgkeep, "newest", "current", "2");
}

#[test]
fn an_unfinished_segment_is_replayed_as_far_as_it_goes() {
    let (mut cluster, pgkeep) = marked(17);
    pgkeep.backup();
    leave_the_second();
    mark(&cluster, 1);
    archive_all(&cluster, &pgkeep);
    let second = mark(&cluster, 2);
    mark(&cluster, 3);
    let copied = pgkeep.ok(&["wal", "copy", SERVER]);
    let end = copied.at("Response.EndLSN");
    mark(&cluster, 4);
    // Autovacuum could fill the segment, and the server archive it.
    cluster.stop(Postmaster::Immediate);
    lands_on(17, &pgkeep, "newest", "current", "3");
    lands_on(17, &pgkeep, "newest", &format!("xid={}", second.xid), "2");
    lands_on(17, &pgkeep, "newest", &format!("time={}", second.time), "2");
    unpacked_lands_on(17, &pgkeep, "newest", "current", "3");
    unpacked_lands_on(17, &pgkeep, "newest", &format!("xid={}", second.xid), "2");
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    assert_eq!(info.at("Response.RollForwardLSN"), end);
}

/// A replica gets from the archive what its primary has no more, and the rest from the primary.
fn a_replica_catches_up_and_streams(major: u32) {
    let (primary, pgkeep) = marked(major);
    pgkeep.backup();
    mark(&primary, 1);
    archive_all(&primary, &pgkeep);
    for _ in 0..3 {
        archive_all(&primary, &pgkeep);
    }
    primary.sql("checkpoint; checkpoint");
    let (_, data) = restore(&pgkeep, "newest", "replica");
    let oldest = primary.value("select min(name) from pg_ls_waldir()");
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    let behind = info.at("Response.WAL");
    assert!(oldest > behind, "{oldest} is still there, and {behind} too");

    let replica = start(major, &data);
    replica.catch_up_with(&primary);
    wait_until("the replica streams", || {
        primary.value("select count(*) from pg_stat_replication where state = 'streaming'") == "1"
    });
    mark(&primary, 2);
    replica.catch_up_with(&primary);
    assert_eq!(replica.value("select max(n) from marks"), "2");
    assert_eq!(replica.value("select pg_is_in_recovery()"), "t");
}

#[test]
fn a_replica_of_14_catches_up_and_streams() {
    a_replica_catches_up_and_streams(14);
}

#[test]
fn a_replica_of_18_catches_up_and_streams() {
    a_replica_catches_up_and_streams(18);
}

#[test]
fn a_backup_of_a_standby_is_rolled_forward() {
    let (primary, pgkeep) = marked(18);
    let standby = primary.standby();
    mark(&primary, 1);
    standby.catch_up_with(&primary);
    let of_standby = pgkeep.with_server("host", standby.socket().to_str().unwrap());
    of_standby.backup();
    let second = mark(&primary, 2);
    mark(&primary, 3);
    archive_all(&primary, &of_standby);
    lands_on(18, &of_standby, "newest", "current", "3");
    lands_on(
        18,
        &of_standby,
        "newest",
        &format!("time={}", second.time),
        "2",
    );
}

#[test]
fn encrypted_wal_is_replayed_by_a_server_that_knows_nothing_of_the_key() {
    let (cluster, pgkeep) = archiving(
        17,
        &small_segments(),
        |pgkeep| pgkeep.encrypting("aes-256-gcm"),
        Pgkeep::archive_command,
    );
    cluster.sql("create table marks (n int)");
    pgkeep.backup();
    mark_without_time(&cluster, 1);
    cluster.sql("select pg_create_restore_point('here')");
    mark_without_time(&cluster, 2);
    archive_all(&cluster, &pgkeep);
    lands_on(17, &pgkeep, "newest", "name=here", "1");
}

fn mark_without_time(cluster: &Cluster, n: i32) {
    cluster.sql(&format!("insert into marks values ({n})"));
}

#[test]
fn without_a_configuration_the_restored_server_finds_the_archive() {
    let mut cluster = Cluster::stopped(16, &small_segments());
    let pgkeep = Pgkeep::of(&cluster);
    let data_home = pgkeep.ground().folder("it's my data");
    let socket = cluster.socket().to_str().unwrap().to_owned();
    let environment = [
        ("PGHOST", socket.as_str()),
        ("PGUSER", "postgres"),
        ("XDG_DATA_HOME", data_home.to_str().unwrap()),
    ];
    let ok = |arguments: &[&str]| {
        let run = pgkeep.spawn_bare(&environment, arguments).wait();
        assert!(run.status.success(), "{run:?}");
        run
    };
    cluster.start();
    cluster.sql("create table marks (n int)");
    ok(&["backup", "mine"]);
    mark_without_time(&cluster, 1);
    for segment in [switch(&cluster), switch(&cluster)] {
        let path = cluster.data().join("pg_wal").join(segment);
        ok(&["wal", "push", "mine", path.to_str().unwrap()]);
    }
    let folder = target(&pgkeep);
    let run = ok(&[
        "restore",
        "mine",
        "newest",
        "current",
        folder.to_str().unwrap(),
    ]);
    let data = PathBuf::from(run.report().at("Response.Directory"));
    let settings = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
    assert!(settings.contains(binary().to_str().unwrap()), "{settings}");
    assert_eq!(landing(16, &data), "1");
}
