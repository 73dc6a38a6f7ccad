//! `wal copy`: everything a server has and the archive has not, and loud where WAL is gone.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::archive::{recover_with, small_segments, switch};
use crate::support::checks;
use crate::support::cluster::Postmaster;
use crate::support::pgkeep::SERVER;
use crate::support::report::Report;
use crate::support::{Cluster, Load, Pgkeep, VERSIONS, versions, wait_until};

/// The segments that a server names as whole, from the first it has on.
fn whole_segments(cluster: &Cluster) -> Vec<String> {
    let rows = cluster.sql(
        "select name from pg_ls_waldir() where name ~ '^[0-9A-F]{24}$' and name < pg_walfile_name(pg_current_wal_flush_lsn()) order by 1",
    );
    rows.into_iter().map(|row| row[0].clone()).collect()
}

fn copy(pgkeep: &Pgkeep) -> Report {
    pgkeep.ok(&["-F", "json", "wal", "copy", SERVER])
}

#[test]
fn one_run_copies_what_there_is_and_the_next_one_nothing() {
    for major in versions(&VERSIONS) {
        let cluster = Cluster::with(major, &small_segments());
        let pgkeep = Pgkeep::of(&cluster);
        for _ in 0..5 {
            switch(&cluster);
        }
        cluster.sql("create table more as select generate_series(1, 1000) i");
        let whole = whole_segments(&cluster);
        let report = copy(&pgkeep);
        assert_eq!(
            report.number("Response.Segments"),
            whole.len() as u64,
            "{major}"
        );
        assert_eq!(
            report.find("Response.Gaps").unwrap(),
            &serde_json::json!([])
        );
        let current = cluster.value("select pg_walfile_name(pg_current_wal_flush_lsn())");
        assert_eq!(report.at("Response.Partial.WAL"), current);
        let mut expected = whole.clone();
        expected.push(format!("{current}.partial"));
        assert_eq!(pgkeep.archived().into_iter().collect::<Vec<_>>(), expected);

        // On an idle server nothing is read again, and nothing written.
        wait_until("nothing was written", || {
            let before = (
                checks::state(&pgkeep.wal()),
                copy(&pgkeep).at("Response.EndLSN"),
            );
            let report = copy(&pgkeep);
            assert_eq!(report.number("Response.Segments"), 0);
            before == (checks::state(&pgkeep.wal()), report.at("Response.EndLSN"))
        });

        switch(&cluster);
        assert_eq!(copy(&pgkeep).number("Response.Segments"), 1);
        let archived = pgkeep.archived();
        assert!(archived.contains(&current) && !archived.contains(&format!("{current}.partial")));
        assert_eq!(pgkeep.incoming(), 0);
    }
}

/// A server that keeps as little WAL as it can.
fn forgetful(major: u32) -> Cluster {
    let mut cluster = Cluster::stopped(major, &small_segments());
    cluster.set("min_wal_size = 2MB");
    cluster.set("max_wal_size = 2MB");
    cluster.set("wal_keep_size = 0");
    cluster.set("autovacuum = off");
    cluster.start();
    cluster
}

/// Writes some segments, and lets the server remove what it need not keep.
fn move_on(cluster: &Cluster) {
    for _ in 0..8 {
        switch(cluster);
    }
    cluster.sql("checkpoint");
    cluster.sql("insert into switched values (2)");
    cluster.sql("checkpoint");
}

fn oldest_on(cluster: &Cluster) -> String {
    cluster.value("select min(name) from pg_ls_waldir() where name ~ '^[0-9A-F]{24}$'")
}

fn gaps(report: &Report) -> usize {
    let gaps = report.find("Response.Gaps").unwrap();
    gaps.as_array().unwrap().len()
}

#[test]
fn a_slot_keeps_the_wal_and_moves_on_past_what_is_here() {
    for major in crate::support::versions(&[14, 17]) {
        let cluster = forgetful(major);
        cluster.sql("create role keeper login");
        switch(&cluster);
        let pgkeep = Pgkeep::of(&cluster)
            .with_server("wal_slot", "keeper")
            .with_server("user", "keeper");
        // What pgkeep permissions prints is all that it takes.
        let run = pgkeep.run(&["permissions", SERVER]);
        cluster.sql(&run.stdout);

        let run = pgkeep.run(&["-F", "json", "wal", "copy", SERVER]);
        let error = run.failed(5);
        assert!(error.contains("no replication slot keeper"), "{error}");
        assert!(
            run.report().number("Response.Segments") > 0,
            "copied all the same"
        );

        let pgkeep = pgkeep.with_server("create_slot", "yes");
        copy(&pgkeep);
        let position = || cluster.value("select restart_lsn from pg_replication_slots");
        let kept =
            || cluster.value("select pg_walfile_name(restart_lsn + 1) from pg_replication_slots");
        for _ in 0..3 {
            let (before, kept_before) = (position(), kept());
            move_on(&cluster);
            assert_eq!(position(), before, "the slot moved by itself");
            assert_eq!(oldest_on(&cluster), kept_before);
            let report = copy(&pgkeep);
            assert_eq!((report.number("Response.Segments"), gaps(&report)), (8, 0));
            let current = cluster.value("select pg_walfile_name(pg_current_wal_flush_lsn())");
            assert_eq!(kept(), current);
            assert_eq!(report.at("Response.SlotLSN"), position());
            cluster.sql("checkpoint");
            assert_eq!(oldest_on(&cluster), current, "the server still keeps it");
        }
        assert_eq!(gaps(&pgkeep.ok(&["-F", "json", "wal", "list", SERVER])), 0);
    }
}

#[test]
fn a_gap_is_told_and_the_copy_goes_on_behind_it() {
    let cluster = forgetful(16);
    let pgkeep = Pgkeep::of(&cluster);
    copy(&pgkeep);
    let before = pgkeep.archived();
    move_on(&cluster);
    // From here on nothing goes, so that there is WAL behind the gap.
    cluster.sql("alter system set wal_keep_size = '1GB'");
    cluster.sql("alter system set max_wal_size = '1GB'");
    cluster.sql("select pg_reload_conf()");
    std::thread::sleep(Duration::from_millis(500));
    switch(&cluster);
    switch(&cluster);
    let run = pgkeep.run(&["-F", "json", "wal", "copy", SERVER]);
    let error = run.failed(3);
    let report = run.report();
    assert_eq!(gaps(&report), 1);
    let (first, last) = (
        report.at("Response.Gaps.0.First"),
        report.at("Response.Gaps.0.Last"),
    );
    assert!(error.contains(&first) && error.contains(&last), "{error}");
    let archived = pgkeep.archived();
    for name in archived.difference(&before) {
        assert!(name.as_str() > last.as_str(), "{name}");
    }
    assert!(report.number("Response.Segments") > 0);

    // It stays known, but it is news only once.
    assert_eq!(gaps(&copy(&pgkeep)), 1);
    let report = pgkeep.ok(&["-F", "json", "wal", "list", SERVER]);
    assert_eq!(report.at("Response.Gaps.0.First"), first);
    // In front of the gap there may be no more than an unfinished segment.
    let parts = report.find("Response.Timelines.0.Parts").unwrap();
    assert!(
        (1..=2).contains(&parts.as_array().unwrap().len()),
        "{parts}"
    );
    let text = pgkeep.run(&["wal", "list", SERVER]);
    assert!(text.stdout.contains(&last), "{}", text.stdout);
}

#[test]
fn a_slot_that_kept_too_much_is_made_anew_and_the_gap_told() {
    a_slot_that_the_server_gave_up_is_made_anew(17, "max_slot_wal_keep_size", "2MB");
}

#[test]
fn a_slot_that_was_idle_for_too_long_is_made_anew_and_the_gap_told() {
    a_slot_that_the_server_gave_up_is_made_anew(18, "idle_replication_slot_timeout", "1s");
}

fn a_slot_that_the_server_gave_up_is_made_anew(major: u32, limit: &str, value: &str) {
    let mut cluster = forgetful(major);
    cluster.stop(Postmaster::Fast);
    cluster.set(&format!("{limit} = {value}"));
    cluster.start();
    let pgkeep = Pgkeep::of(&cluster)
        .with_server("wal_slot", "keeper")
        .with_server("create_slot", "yes");
    copy(&pgkeep);
    let status = || cluster.value("select wal_status from pg_replication_slots");
    wait_until("the slot is lost", || {
        move_on(&cluster);
        status() == "lost"
    });
    let run = pgkeep.run(&["wal", "copy", SERVER]);
    let error = run.failed(3);
    assert!(error.contains("missing"), "{error}");
    assert!(
        run.stderr.contains(&format!("than {limit} allows")),
        "{run:?}"
    );
    let hint = run.report().at("Outcome.Hint");
    assert!(hint.contains(&format!("raise {limit}")), "{hint}");
    assert_eq!(status(), "reserved");
    copy(&pgkeep);

    let pgkeep = pgkeep.with_server("create_slot", "no");
    wait_until("the slot is lost again", || {
        move_on(&cluster);
        status() == "lost"
    });
    let run = pgkeep.run(&["-F", "json", "wal", "copy", SERVER]);
    run.failed(3);
    let error = pgkeep.run(&["wal", "copy", SERVER]).failed(5);
    assert!(error.contains("given up"), "{error}");
    assert!(error.contains(limit), "{error}");
}

fn assert_reaches(cluster: &Cluster, report: &Report, written: &str) {
    let end = report.at("Response.EndLSN");
    let reaches = cluster.value(&format!("select '{end}'::pg_lsn >= '{written}'"));
    assert_eq!(reaches, "t", "{end} {written}");
}

#[test]
fn a_standby_serves_as_well_as_its_primary_and_its_promotion_is_followed() {
    for major in crate::support::versions(&[14, 18]) {
        let mut primary = Cluster::with(major, &small_segments());
        let standby = primary.standby();
        let pgkeep = Pgkeep::of(&standby);
        let backup = pgkeep.backup();
        for _ in 0..3 {
            switch(&primary);
        }
        primary.sql("create table first as select generate_series(1, 5000) i");
        let written = primary.value("select pg_current_wal_flush_lsn()");
        standby.catch_up_with(&primary);
        let report = copy(&pgkeep);
        assert!(report.number("Response.Segments") >= 3);
        assert_reaches(&primary, &report, &written);
        let name = report.at("Response.Partial.WAL");
        assert!(pgkeep.archived().contains(&format!("{name}.partial")));

        primary.stop(Postmaster::Fast);
        standby.sql("select pg_promote()");
        standby.wait_until_writable();
        standby.sql("create table second as select generate_series(1, 5000) i");
        switch(&standby);
        standby.sql("create table third as select generate_series(1, 5000) i");
        let report = copy(&pgkeep);
        assert_eq!(
            (
                report.at("Response.Timeline"),
                report.number("Response.Histories")
            ),
            ("2".into(), 1)
        );
        assert_eq!(gaps(&report), 0);
        let listed = pgkeep.ok(&["-F", "json", "wal", "list", SERVER]);
        assert_eq!(gaps(&listed), 0);
        assert_eq!(listed.at("Response.Timelines.1.Parent"), "1");
        assert_eq!(
            listed.at("Response.Timelines.1.Parts.0.Backups.0"),
            backup.identifier
        );

        let data = pgkeep.restore("newest");
        recover_with(&data, &format!("{} --partial", pgkeep.restore_command()));
        let restored = Cluster::restored(major, &data);
        for table in ["first", "second", "third"] {
            let count = restored.number(&format!("select count(*) from {table}"));
            assert_eq!(count, 5000, "{table} of {major}");
        }
    }
}

#[test]
fn copies_that_are_killed_leave_no_gap_and_nothing_half() {
    let cluster = Cluster::with(17, &small_segments());
    let pgkeep = Pgkeep::of(&cluster)
        .with("max_rate", "24MB")
        .encrypting("aes-128-ctr");
    pgkeep.backup();
    cluster.sql("select pg_create_physical_replication_slot('kept', true)");
    let load = Load::on(&cluster);
    for pause in [20, 100, 300, 700] {
        let running = pgkeep.spawn(&["wal", "copy", SERVER]);
        std::thread::sleep(Duration::from_millis(pause));
        running.signal(Signal::KILL);
        running.wait();
        let report = pgkeep.ok(&["-F", "json", "wal", "list", SERVER]);
        assert_eq!(gaps(&report), 0);
    }
    let pgkeep = pgkeep.with("max_rate", "0");
    // What the load writes meanwhile is followed, to the last transaction.
    let following = pgkeep.spawn(&["-F", "json", "wal", "copy", SERVER, "--follow", "4s"]);
    std::thread::sleep(Duration::from_secs(2));
    wait_until("the load has written enough", || {
        whole_segments(&cluster).len() > 12
    });
    load.stop();
    wait_until("what pgbench had begun has ended", || {
        cluster.value("select count(*) from pg_stat_activity where application_name = 'pgbench'")
            == "0"
    });
    let history = cluster.number("select count(*) from pgbench_history");
    let written = cluster.value("select pg_current_wal_flush_lsn()");
    assert_eq!(gaps(&following.wait().succeeded()), 0);
    let report = copy(&pgkeep);
    assert_eq!(pgkeep.incoming(), 0);
    assert_reaches(&cluster, &report, &written);

    // What is still on the server is the same here.
    let mut compared = 0;
    for name in whole_segments(&cluster) {
        let target = pgkeep.ground().path().join("segment");
        let run = pgkeep.run(&["wal", "get", SERVER, &name, target.to_str().unwrap()]);
        if run.status.code() == Some(0) {
            let original = fs::read(cluster.data().join("pg_wal").join(&name)).unwrap();
            assert!(fs::read(&target).unwrap() == original, "{name}");
            compared += 1;
        }
    }
    assert!(compared > 10, "{compared}");
    drop(cluster);

    let data = pgkeep.restore("newest");
    recover_with(&data, &format!("{} --partial", pgkeep.restore_command()));
    let restored = Cluster::restored(17, &data);
    assert_eq!(
        restored.number("select count(*) from pgbench_history"),
        history
    );
    checks::assert_invariant(&restored);
}

#[test]
fn one_copies_at_a_time_and_a_backup_does_not_mind() {
    let cluster = Cluster::with(17, &small_segments());
    let pgkeep = Pgkeep::of(&cluster);
    let following = pgkeep.spawn(&["-F", "json", "wal", "copy", SERVER, "--follow", "1H"]);
    wait_until("the first copy is at work", || {
        !pgkeep.archived().is_empty()
    });
    let error = pgkeep.run(&["wal", "copy", SERVER]).failed(4);
    assert!(error.contains(&following.id().to_string()), "{error}");
    pgkeep.backup();
    let segment = switch(&cluster);
    let path = cluster.data().join("pg_wal").join(&segment);
    pgkeep.ok(&["-F", "json", "wal", "push", SERVER, path.to_str().unwrap()]);
    cluster.sql("create table of_the_next (i int)");
    let next = cluster.value("select pg_walfile_name(pg_current_wal_flush_lsn())");
    wait_until("the whole segments before are copied", || {
        pgkeep.archived().contains(&format!("{next}.partial"))
    });
    // Asked to end, it says what it did.
    following.signal(Signal::TERM);
    let report = following.wait().succeeded();
    assert!(report.number("Response.Segments") > 0);
    copy(&pgkeep);
}

#[test]
fn a_server_that_restarts_is_followed_on() {
    let mut cluster = Cluster::with(16, &small_segments());
    let pgkeep = Pgkeep::of(&cluster);
    let following = pgkeep.spawn(&["-F", "json", "wal", "copy", SERVER, "--follow", "1H"]);
    wait_until("the first copy is at work", || {
        !pgkeep.archived().is_empty()
    });
    cluster.stop(Postmaster::Immediate);
    std::thread::sleep(Duration::from_millis(1500));
    cluster.start();
    let segment = switch(&cluster);
    wait_until("the copy goes on", || pgkeep.archived().contains(&segment));
    following.signal(Signal::INT);
    assert_eq!(gaps(&following.wait().succeeded()), 0);

    cluster.stop(Postmaster::Fast);
    pgkeep
        .run(&["wal", "copy", SERVER, "--follow", "1H"])
        .failed(5);
}
