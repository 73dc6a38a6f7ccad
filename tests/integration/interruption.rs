//! Whatever ends a backup in the midst, the earlier ones are whole, nothing is
//! half there, and the next one works.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::checks::{self, Before};
use crate::support::cluster::{Options, Postmaster};
use crate::support::pgkeep::{Backup, SERVER, wait_until_copying};
use crate::support::small_disk::SmallDisk;
use crate::support::{Cluster, Load, Pgkeep, account};

/// Less than the rest of a backup at 1 MB/s takes, however busy the machine is.
const AT_ONCE: Duration = Duration::from_secs(30);

/// The first backup is whole and the only one listed.
fn assert_only(pgkeep: &Pgkeep, first: &Backup) {
    assert_eq!(
        pgkeep.ok(&["list-backup", SERVER]).backups(),
        [&*first.identifier]
    );
    assert_eq!(
        pgkeep.ok(&["info", SERVER, "newest"]).at("Response.Backup"),
        first.identifier
    );
    checks::sha512sum(&first.folder);
}

/// Every folder among the backups is a listed backup.
fn assert_no_leftovers(pgkeep: &Pgkeep) {
    let mut found: Vec<String> = fs::read_dir(pgkeep.backups())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, pgkeep.ok(&["list-backup", SERVER]).backups());
}

#[test]
fn a_killed_pgkeep_leaves_nothing_that_matters() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let first = pgkeep.backup();
    let pgkeep = pgkeep.with("max_rate", "4MB");
    let load = Load::on(&cluster);
    for pause in [5, 40, 90, 200, 500, 900, 1500] {
        let running = pgkeep.spawn(&["backup", SERVER]);
        std::thread::sleep(Duration::from_millis(pause));
        running.signal(Signal::KILL);
        let run = running.wait();
        assert_eq!(
            run.status.code(),
            None,
            "not killed after {pause} ms: {run:?}"
        );
        assert_only(&pgkeep, &first);
        cluster.assert_nothing_is_left();
    }
    load.stop();
    let before = Before::of(&cluster);
    let pgkeep = pgkeep.with("max_rate", "0");
    let second = pgkeep.backup();
    assert_no_leftovers(&pgkeep);
    pgkeep.ok(&["verify", SERVER, "oldest"]);
    let data = pgkeep.restore(&second.identifier);
    checks::is_whole(17, &data, &before, i64::MAX);
}

#[test]
fn an_interrupted_backup_ends_at_once() {
    for signal in [Signal::INT, Signal::TERM] {
        let cluster = Cluster::new(16);
        let pgkeep = Pgkeep::of(&cluster);
        let first = pgkeep.backup();
        let pgkeep = pgkeep.with("max_rate", "1MB");
        let mut running = pgkeep.spawn(&["backup", SERVER]);
        wait_until_copying(&mut running, &pgkeep);
        let begin = Instant::now();
        running.signal(signal);
        let error = running.wait().failed(1);
        assert!(begin.elapsed() < AT_ONCE, "it took {:?}", begin.elapsed());
        assert!(
            error.contains("interrupt") || error.contains("stopped"),
            "{error}"
        );
        assert_only(&pgkeep, &first);
        cluster.assert_nothing_is_left();
        if signal == Signal::TERM {
            // What a machine that stops leaves is the next one's.
            pgkeep.with("max_rate", "0").backup();
            continue;
        }
        assert_no_leftovers(&pgkeep);
    }
}

#[test]
fn a_backup_that_waits_for_its_server_can_be_stopped() {
    let mut cluster = Cluster::new(15);
    let pgkeep = Pgkeep::of(&cluster);
    let first = pgkeep.backup();
    let pgkeep = pgkeep.with("max_rate", "1MB");
    let mut running = pgkeep.spawn(&["backup", SERVER]);
    wait_until_copying(&mut running, &pgkeep);
    cluster.stop(Postmaster::Killed);
    std::thread::sleep(Duration::from_secs(3));
    assert!(running.is_running(), "it did not wait for the server");
    let begin = Instant::now();
    running.signal(Signal::INT);
    running.wait().failed(1);
    assert!(begin.elapsed() < AT_ONCE, "it took {:?}", begin.elapsed());
    assert_no_leftovers(&pgkeep);
    assert_only(&pgkeep, &first);
}

#[test]
fn a_second_run_meets_the_lock_at_once() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let first = pgkeep.backup();
    let pgkeep = pgkeep.with("max_rate", "1MB");
    let mut running = pgkeep.spawn(&["backup", SERVER]);
    wait_until_copying(&mut running, &pgkeep);
    let begin = Instant::now();
    let error = pgkeep.run(&["backup", SERVER]).failed(4);
    assert!(begin.elapsed() < AT_ONCE);
    assert!(error.contains(&running.id().to_string()), "{error}");
    // Readers need no lock, and do not see what is not finished.
    assert_only(&pgkeep, &first);
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let target = pgkeep.ground().folder("target");
    pgkeep.ok(&["restore", SERVER, "newest", target.to_str().unwrap()]);
    assert!(running.is_running(), "the readers were tried too late");
    running.signal(Signal::INT);
    running.wait().failed(1);
}

#[test]
fn a_full_disk_fails_the_backup_and_no_other() {
    let cluster = Cluster::with(17, &Options::of_default_segments());
    let pgkeep = Pgkeep::of(&cluster).with("compression", "none");
    if !account::is_root() {
        a_file_size_limit_fails_the_backup(&pgkeep);
        return;
    }
    let small = SmallDisk::new("160m");
    let pgkeep = pgkeep.with_base(&small.folder);
    let first = pgkeep.backup();
    cluster
        .sql("create table more as select i, repeat('x', 1000) from generate_series(1, 50000) i");
    let run = pgkeep.run(&["backup", SERVER]);
    let error = run.failed(1);
    assert!(error.to_lowercase().contains("space"), "{error}");
    assert_no_leftovers(&pgkeep);
    assert_only(&pgkeep, &first);
    cluster.assert_nothing_is_left();
    small.grow("400m");
    pgkeep.backup();
    pgkeep.ok(&["verify", SERVER, "newest"]);
    assert_no_leftovers(&pgkeep);
}

/// Nearest to a full disk without root: no file may grow beyond 4 MB.
fn a_file_size_limit_fails_the_backup(pgkeep: &Pgkeep) {
    let run = pgkeep.spawn_in_shell(
        "trap '' XFSZ; ulimit -f 4096; exec \"$@\"",
        &["backup", SERVER],
    );
    run.wait().failed(1);
    assert!(pgkeep.ok(&["list-backup", SERVER]).backups().is_empty());
    assert_no_leftovers(pgkeep);
}

#[test]
fn a_slot_of_somebody_else_and_an_old_backup_session_do_not_disturb() {
    let cluster = Cluster::new(17);
    cluster.sql("select pg_create_physical_replication_slot('theirs')");
    let mut session = cluster.connect("postgres").unwrap();
    session
        .simple_query("select pg_backup_start('theirs', true)")
        .unwrap();
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    session
        .simple_query("select pg_backup_stop(false)")
        .unwrap();
    let data = pgkeep.restore("newest");
    checks::is_whole(17, &data, &before, 0);
    assert_eq!(
        cluster.value("select slot_name from pg_replication_slots"),
        "theirs"
    );
}
