//! A backup that loses its server goes on with what changed since, once the server is back.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::checks::{self, Before};
use crate::support::cluster::{Options, Postmaster};
use crate::support::link::Link;
use crate::support::pgkeep::{
    Running, SERVER, wait_for_pass, wait_until_copying, wait_until_followed,
};
use crate::support::random_changes::{Random, rounds};
use crate::support::{Cluster, Load, Pgkeep, wait_until};

/// A backup that has copied its largest files, and still has small ones to copy.
fn halfway(pgkeep: &Pgkeep, arguments: &[&str]) -> Running {
    let mut running = pgkeep.spawn(&[&["backup", SERVER, "-vv"], arguments].concat());
    wait_until_copying(&mut running, pgkeep);
    wait_until("the first small files are stored", || {
        assert!(running.is_running(), "the backup ended too early");
        let files = walkdir::WalkDir::new(pgkeep.backups())
            .into_iter()
            .flatten();
        { files }.any(|file| {
            file.path()
                .to_string_lossy()
                .contains("building/1/bundles/0")
        })
    });
    running
}

/// What was copied by the pass with a number, in bytes.
fn copied(stderr: &str, pass: &str) -> f64 {
    let step = format!("{pass}copy files: ");
    let line = stderr.lines().find_map(|line| line.split_once(&step));
    let (_, account) = line.unwrap_or_else(|| panic!("no {step:?} in {stderr}"));
    let size = account.split(' ').next().unwrap();
    let digits = size.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &size[digits.len()..] {
        "GB" => 1e9,
        "MB" => 1e6,
        "kB" => 1e3,
        _ => 1.0,
    };
    digits.parse::<f64>().unwrap() * unit
}

fn assert_second_is_shorter(stderr: &str) {
    let (first, second) = (copied(stderr, ""), copied(stderr, "pass 2: "));
    assert!(second < first, "{second} after {first} bytes: {stderr}");
}

fn assert_same(source: &Cluster, restored: &Cluster, tables: &[&str]) {
    for table in tables {
        assert!(
            checks::dump(restored, table) == checks::dump(source, table),
            "{table}"
        );
    }
}

/// With segments so small that a restart removes nearly all WAL, and no more of it than a test writes.
fn forgetful(major: u32) -> Cluster {
    let options = Options {
        wal_segment_mb: 1,
        ..Options::default()
    };
    let mut cluster = Cluster::stopped(major, &options);
    cluster.set("autovacuum = off");
    cluster.start();
    cluster
}

/// Without an archive or summaries, and with a slot that is gone, only what was read by then tells what changed.
fn a_server_that_is_restarted_costs_a_pass(major: u32, how: Postmaster) {
    let mut cluster = forgetful(major);
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::without_stream(&cluster).with("max_rate", "8MB");
    let mut running = halfway(&pgkeep, &[]);
    cluster.sql("update pgbench_accounts set filler = 'before' where aid < 5000");
    wait_until_followed(&mut running, &cluster);
    cluster.stop(how);
    cluster.start();
    cluster.sql("update pgbench_accounts set filler = 'after' where aid < 500");
    cluster.sql("create table later as select i from generate_series(1, 1000) i");
    let run = running.wait();
    let backup = run.succeeded().at("Response.Backup");
    assert_eq!(run.report().at("Response.Incremental"), "false");
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    assert_eq!(info.at("Response.Passes"), "2");
    assert!(
        run.stderr.contains("pass 1 was broken off"),
        "{}",
        run.stderr
    );
    assert_second_is_shorter(&run.stderr);
    cluster.assert_nothing_is_left();
    pgkeep.ok(&["verify", SERVER, &backup]);
    let restored = checks::is_whole(major, &pgkeep.restore(&backup), &before, 0);
    assert_same(&cluster, &restored, &["pgbench_accounts", "later"]);
}

#[test]
fn a_server_of_14_that_is_killed_costs_a_pass() {
    a_server_that_is_restarted_costs_a_pass(14, Postmaster::Killed);
}

#[test]
fn a_server_of_16_that_is_restarted_costs_a_pass() {
    a_server_that_is_restarted_costs_a_pass(16, Postmaster::Fast);
}

#[test]
fn a_server_of_18_that_is_restarted_at_once_costs_a_pass() {
    a_server_that_is_restarted_costs_a_pass(18, Postmaster::Immediate);
}

#[test]
fn an_incremental_backup_that_loses_its_server_stays_one() {
    for compression in ["zstd", "none"] {
        let mut cluster = forgetful(17);
        let pgkeep = Pgkeep::without_stream(&cluster).with("compression", compression);
        pgkeep.backup();
        cluster.sql("update pgbench_accounts set filler = 'changed'");
        cluster.sql(
            "create table added as select i, repeat('x', 500) from generate_series(1, 20000) i",
        );
        let before = Before::of(&cluster);
        let pgkeep = pgkeep.with("max_rate", "6MB");
        let mut running = pgkeep.spawn(&["backup", SERVER, "newest", "-vv"]);
        wait_until_copying(&mut running, &pgkeep);
        std::thread::sleep(Duration::from_secs(1));
        cluster.sql("delete from added where i > 19000");
        wait_until_followed(&mut running, &cluster);
        cluster.stop(Postmaster::Immediate);
        cluster.start();
        cluster.sql("update pgbench_tellers set filler = 'later'");
        let report = running.wait().succeeded();
        assert_eq!(report.at("Response.Incremental"), "true");
        let pgkeep = pgkeep.with("max_rate", "0");
        let info = pgkeep.ok(&["info", SERVER, "newest"]);
        assert_eq!(info.at("Response.Passes"), "2");
        pgkeep.ok(&["verify", SERVER, "newest"]);
        let data = pgkeep.restore("newest");
        let restored = checks::is_whole(17, &data, &before, 0);
        for table in ["pgbench_accounts", "added", "pgbench_tellers"] {
            assert!(
                checks::dump(&restored, table) == checks::dump(&cluster, table),
                "{table}"
            );
        }
        // It is a parent as any other, and what it builds on can go.
        pgkeep.backup_on("newest");
        pgkeep.ok(&["delete", SERVER, "oldest"]);
        pgkeep.ok(&["verify", SERVER, "newest"]);
    }
}

/// Half of an incremental file lies where the layer has one of which nothing changed.
#[test]
fn an_incremental_backup_that_is_broken_off_within_a_file_stays_one() {
    let mut cluster = Cluster::stopped(17, &Options::default());
    cluster.set("autovacuum = off\nwal_keep_size = 1GB");
    cluster.start();
    cluster
        .sql("create table half as select i, md5(i::text) body from generate_series(1, 400000) i");
    // Nobody who reads it later leaves hints on its pages.
    cluster.sql("vacuum half");
    let pgkeep = Pgkeep::without_stream(&cluster).with("compression", "none");
    pgkeep.backup();
    cluster.sql("update half set body = 'changed' where i < 200000");
    let before = Before::of(&cluster);
    let pgkeep = pgkeep.with("max_rate", "8MB");
    let mut running = pgkeep.spawn(&["backup", SERVER, "newest"]);
    wait_until("half of the file is stored", || {
        assert!(running.is_running(), "the backup ended too early");
        let files = walkdir::WalkDir::new(pgkeep.backups())
            .into_iter()
            .flatten();
        { files }.any(|file| {
            let path = file.path().to_string_lossy().into_owned();
            let is_half = file
                .metadata()
                .is_ok_and(|metadata| metadata.len() > 300_000);
            path.contains("building/1/data/base/5/INCREMENTAL.") && is_half
        })
    });
    cluster.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity
          where application_name = 'pgkeep' order by backend_start limit 1",
    );
    let run = running.wait();
    assert_eq!(run.succeeded().at("Response.Incremental"), "true");
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    assert_eq!(info.at("Response.Passes"), "2");
    let pgkeep = pgkeep.with("max_rate", "0");
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let restored = checks::is_whole(17, &pgkeep.restore("newest"), &before, 0);
    assert_same(&cluster, &restored, &["half"]);
}

#[test]
fn a_session_that_is_ended_costs_a_pass() {
    let cluster = Cluster::new(18);
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::without_stream(&cluster).with("max_rate", "4MB");
    let mut running = pgkeep.spawn(&["backup", SERVER]);
    wait_until_copying(&mut running, &pgkeep);
    cluster.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where application_name ilike '%pgkeep%' order by backend_start limit 1",
    );
    running.wait().succeeded();
    cluster.assert_nothing_is_left();
    checks::is_whole(18, &pgkeep.restore("newest"), &before, 0);
}

#[test]
fn a_network_that_is_gone_for_a_while_costs_a_pass() {
    let cluster = Cluster::new(16);
    let before = Before::of(&cluster);
    let link = Link::to(&cluster);
    let pgkeep = Pgkeep::without_stream(&cluster)
        .with("max_rate", "8MB")
        .with_server("host", "127.0.0.1")
        .with_server("port", &link.port.to_string());
    let running = halfway(&pgkeep, &[]);
    link.cut();
    cluster.sql("update pgbench_tellers set filler = 'meanwhile'");
    // In seconds.
    std::thread::sleep(Duration::from_secs(rounds(5).into()));
    link.mend();
    let run = running.wait();
    run.succeeded();
    assert_second_is_shorter(&run.stderr);
    cluster.assert_nothing_is_left();
    let restored = checks::is_whole(16, &pgkeep.restore("newest"), &before, 0);
    assert_same(&cluster, &restored, &["pgbench_tellers"]);
}

#[test]
fn a_standby_goes_on_from_the_same_restartpoint() {
    let primary = Cluster::new(16);
    let standby = primary.standby();
    standby.catch_up_with(&primary);
    let before = Before::of(&primary);
    let pgkeep = Pgkeep::without_stream(&standby).with("max_rate", "8MB");
    let running = halfway(&pgkeep, &[]);
    primary.sql("update pgbench_tellers set filler = 'later'");
    standby.catch_up_with(&primary);
    standby.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name ilike '%pgkeep%'",
    );
    let run = running.wait();
    run.succeeded();
    assert!(!run.stderr.contains("starting anew"), "{}", run.stderr);
    assert_second_is_shorter(&run.stderr);
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let restored = checks::is_whole(16, &pgkeep.restore("newest"), &before, 0);
    assert_same(&primary, &restored, &["pgbench_tellers"]);
}

fn a_standby_that_is_promoted_costs_a_pass(major: u32) {
    let primary = Cluster::new(major);
    let standby = primary.standby();
    standby.catch_up_with(&primary);
    let before = Before::of(&primary);
    let pgkeep = Pgkeep::without_stream(&standby).with("max_rate", "8MB");
    let running = halfway(&pgkeep, &[]);
    standby.sql("select pg_promote()");
    standby.wait_until_writable();
    standby.sql("update pgbench_accounts set filler = 'promoted' where aid < 100");
    let run = running.wait();
    run.succeeded();
    assert_second_is_shorter(&run.stderr);
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    assert_eq!(info.at("Response.Passes"), "2");
    assert_eq!(info.at("Response.FromStandby"), "false");
    assert_eq!(info.at("Response.StartTimeline"), "2");
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let restored = checks::is_whole(major, &pgkeep.restore("newest"), &before, 0);
    assert_same(&standby, &restored, &["pgbench_accounts"]);
}

#[test]
fn a_standby_of_14_that_is_promoted_costs_a_pass() {
    a_standby_that_is_promoted_costs_a_pass(14);
}

#[test]
fn a_standby_of_18_that_is_promoted_costs_a_pass() {
    a_standby_that_is_promoted_costs_a_pass(18);
}

#[test]
fn without_the_wal_since_the_first_pass_a_backup_starts_anew() {
    let mut cluster = forgetful(15);
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::without_stream(&cluster).with("max_rate", "8MB");
    let running = halfway(&pgkeep, &[]);
    running.signal(Signal::STOP);
    cluster.sql("update pgbench_accounts set filler = 'before'");
    cluster.stop(Postmaster::Killed);
    cluster.start();
    running.signal(Signal::CONT);
    let run = running.wait();
    run.succeeded();
    assert!(run.stderr.contains("starting anew: "), "{}", run.stderr);
    let restored = checks::is_whole(15, &pgkeep.restore("newest"), &before, 0);
    assert_same(&cluster, &restored, &["pgbench_accounts"]);
}

/// Kills a full backup that has written down what it stored in its first seconds.
fn killed(pgkeep: &Pgkeep) {
    let mut running = pgkeep.spawn(&["backup", SERVER]);
    wait_until("something is written down", || {
        assert!(running.is_running(), "the backup ended too early");
        let files = walkdir::WalkDir::new(pgkeep.backups())
            .into_iter()
            .flatten();
        { files }.any(|file| file.path().to_string_lossy().contains("/journal/0-2."))
    });
    running.signal(Signal::KILL);
    running.wait();
}

fn a_backup_that_was_killed_is_taken_over(major: u32, keeps: &str, compression: &str) {
    let mut cluster = Cluster::stopped(major, &Options::default());
    cluster.set(keeps);
    cluster.start();
    let pgkeep = Pgkeep::without_stream(&cluster)
        .with("max_rate", "8MB")
        .with("compression", compression);
    let whole = pgkeep.run(&["backup", SERVER, "-v"]);
    whole.succeeded();
    killed(&pgkeep);
    assert_eq!(pgkeep.ok(&["list-backup", SERVER]).backups().len(), 1);
    // What others tidy up is not theirs.
    pgkeep.ok(&["expire", SERVER]);
    cluster.sql("update pgbench_accounts set filler = 'later' where aid < 500");
    cluster.sql("create table later as select i from generate_series(1, 1000) i");
    let before = Before::of(&cluster);
    let run = pgkeep.run(&["backup", SERVER, "-v"]);
    run.succeeded();
    assert!(run.stderr.contains("taking over"), "{}", run.stderr);
    let (all, rest) = (copied(&whole.stderr, ""), copied(&run.stderr, "pass 2: "));
    assert!(rest < 0.7 * all, "{rest} of {all} bytes: {}", run.stderr);
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    assert_eq!(info.at("Response.Passes"), "2");
    assert_eq!(info.at("Response.Incremental"), "false");
    let pgkeep = pgkeep.with("max_rate", "0");
    pgkeep.ok(&["verify", SERVER, "newest"]);
    checks::sha512sum(&pgkeep.backups().join(info.at("Response.Backup")));
    let restored = checks::is_whole(major, &pgkeep.restore("newest"), &before, 0);
    assert_same(&cluster, &restored, &["pgbench_accounts", "later"]);
    let folders = std::fs::read_dir(pgkeep.backups()).unwrap().count();
    assert_eq!(folders, 2, "something is left");
    pgkeep.backup_on("newest");
    pgkeep.ok(&["verify", SERVER, "newest"]);
}

#[test]
fn a_backup_of_14_that_was_killed_is_taken_over() {
    a_backup_that_was_killed_is_taken_over(14, "wal_keep_size = 1GB", "zstd");
}

#[test]
fn a_backup_of_18_that_was_killed_is_taken_over() {
    a_backup_that_was_killed_is_taken_over(18, "summarize_wal = on", "none");
}

#[test]
fn only_what_is_as_it_was_stored_is_taken_over() {
    let mut cluster = Cluster::stopped(17, &Options::default());
    cluster.set("summarize_wal = on");
    cluster.start();
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::without_stream(&cluster).with("max_rate", "8MB");
    killed(&pgkeep);
    // As a power cut leaves what was never synced.
    let (mut damaged, mut pass) = (0, None);
    for file in walkdir::WalkDir::new(pgkeep.backups())
        .into_iter()
        .flatten()
    {
        let path = file.path();
        let name = path.to_string_lossy().into_owned();
        let is_journal = name.contains("/journal/");
        if let Some(folder) = name.strip_suffix("/journal/backup.info") {
            pass = Some(PathBuf::from(folder));
        }
        if file.file_type().is_file() && (!is_journal || name.contains("/journal/1-")) {
            let length = file.metadata().unwrap().len();
            damaged += 1;
            match damaged % 4 {
                0 => std::fs::write(path, vec![0; length as usize]).unwrap(),
                1 => std::fs::write(path, "").unwrap(),
                2 => std::fs::remove_file(path).unwrap(),
                _ => {}
            }
        }
    }
    assert!(damaged > 4, "there is too little to damage");
    // As one leaves that was killed while it sealed its pass.
    let pass = pass.unwrap();
    std::fs::write(pass.join("backup.files.zstd"), "x").unwrap();
    std::fs::write(pass.join("owed.zstd"), "x").unwrap();
    let pgkeep = pgkeep.with("max_rate", "0");
    let run = pgkeep.run(&["backup", SERVER, "-v"]);
    run.succeeded();
    assert!(run.stderr.contains("taking over"), "{}", run.stderr);
    pgkeep.ok(&["verify", SERVER, "newest"]);
    checks::is_whole(17, &pgkeep.restore("newest"), &before, 0);
}

#[test]
fn a_backup_that_was_killed_is_left_alone_by_who_does_not_want_it() {
    let cluster = Cluster::new(16);
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::without_stream(&cluster).with("max_rate", "8MB");
    killed(&pgkeep);
    let pgkeep = pgkeep.with("max_rate", "0");
    let run = pgkeep.run(&["backup", SERVER, "--no-resume", "-v"]);
    run.succeeded();
    assert!(!run.stderr.contains("taking over"), "{}", run.stderr);
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    assert_eq!(info.at("Response.Passes"), "1");
    assert_eq!(std::fs::read_dir(pgkeep.backups()).unwrap().count(), 1);
    checks::is_whole(16, &pgkeep.restore("newest"), &before, 0);
}

#[test]
fn a_machine_that_stops_leaves_a_backup_to_the_next_one() {
    let mut cluster = Cluster::stopped(15, &Options::default());
    cluster.set("wal_keep_size = 1GB");
    cluster.start();
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::without_stream(&cluster).with("max_rate", "8MB");
    let running = halfway(&pgkeep, &[]);
    running.signal(Signal::TERM);
    running.wait().failed(1);
    cluster.assert_nothing_is_left();
    // Who gives up what stands on it leaves it as well.
    let mut running = pgkeep.spawn(&["backup", SERVER]);
    wait_for_pass(&mut running, &pgkeep, 2);
    running.signal(Signal::INT);
    running.wait().failed(1);
    let run = pgkeep.run(&["backup", SERVER, "-v"]);
    run.succeeded();
    assert!(run.stderr.contains("taking over"), "{}", run.stderr);
    checks::is_whole(15, &pgkeep.restore("newest"), &before, 0);
}

#[test]
fn a_backup_killed_at_any_moment_is_taken_over() {
    let mut cluster = Cluster::stopped(17, &Options::default());
    cluster.set("wal_keep_size = 1GB");
    cluster.start();
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::without_stream(&cluster).with("max_rate", "32MB");
    let load = Load::on(&cluster);
    let mut random = Random::seeded();
    let mut made = 0;
    for _ in 0..rounds(1) {
        let kills = 1 + random.below(3);
        for _ in 0..kills {
            let running = pgkeep.spawn(&["backup", SERVER]);
            std::thread::sleep(Duration::from_millis(random.below(3500)));
            running.signal(Signal::KILL);
            // It may have been quicker.
            made += usize::from(running.wait().status.success());
            assert_eq!(pgkeep.ok(&["list-backup", SERVER]).backups().len(), made);
        }
        let begin = Instant::now();
        let run = pgkeep.run(&["backup", SERVER, "-v"]);
        let backup = pgkeep.finished(&run.succeeded());
        let history = cluster.number("select count(*) from pgbench_history");
        made += 1;
        let passes = pgkeep.ok(&["info", SERVER, "newest"]).at("Response.Passes");
        let is_taken_over = run.stderr.contains("taking over");
        println!(
            "{kills} kills, then {passes} passes in {:.1} s, taken over: {is_taken_over}",
            begin.elapsed().as_secs_f64()
        );
        pgkeep.ok(&["verify", SERVER, &backup.identifier]);
        let folders = std::fs::read_dir(pgkeep.backups()).unwrap().count();
        assert_eq!(folders, made, "something is left");
        let data = pgkeep.restore(&backup.identifier);
        checks::is_whole(17, &data, &before, history);
        std::fs::remove_dir_all(data).unwrap();
    }
    load.stop();
}

/// What has come of a stream by then is not read again.
#[test]
fn where_no_stream_comes_to_its_end_files_are_read_by_sql() {
    let major = 17;
    let cluster = Cluster::new(major);
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::of(&cluster)
        .with("source", "stream")
        .with("max_rate", "8MB");
    let mut running = pgkeep.spawn(&["backup", SERVER, "-v"]);
    let end = "select pg_terminate_backend(pid) from pg_stat_replication where state = 'backup'";
    while running.is_running() {
        cluster.sql(end);
        std::thread::sleep(Duration::from_millis(50));
    }
    let run = running.wait();
    let backup = run.succeeded().at("Response.Backup");
    assert!(run.stderr.contains("files are read by SQL now"), "{run:?}");
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    assert_eq!(info.at("Response.FileSource"), "sql");
    checks::is_whole(major, &pgkeep.restore(&backup), &before, 0);
}

#[test]
fn a_stream_that_is_broken_off_costs_a_pass() {
    let major = 18;
    let cluster = Cluster::new(major);
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::of(&cluster)
        .with("source", "stream")
        .with("max_rate", "4MB");
    let mut running = pgkeep.spawn(&["backup", SERVER, "-v"]);
    wait_until_copying(&mut running, &pgkeep);
    cluster.sql("update pgbench_accounts set filler = 'meanwhile' where aid % 10 = 0");
    let ended = "select count(pg_terminate_backend(pid)) from pg_stat_activity where backend_type = 'walsender'";
    assert_eq!(cluster.value(ended), "1");
    let run = running.wait();
    let backup = run.succeeded().at("Response.Backup");
    assert!(
        run.stderr
            .contains("pass 1 was broken off: cannot take a base backup"),
        "{run:?}"
    );
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    assert_eq!(info.at("Response.Passes"), "2");
    cluster.assert_nothing_is_left();
    pgkeep.ok(&["verify", SERVER, &backup]);
    let restored = checks::is_whole(major, &pgkeep.restore(&backup), &before, 0);
    assert_same(&cluster, &restored, &["pgbench_accounts"]);
}
