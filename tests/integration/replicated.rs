//! A role that has nothing but the attribute REPLICATION: full backups by it are what all others are.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;

use crate::sources::quiet;
use crate::support::checks::{self, Before};
use crate::support::cluster::{Options, Postmaster};
use crate::support::pgkeep::{SERVER, wait_until_copying};
use crate::support::{Cluster, Load, Pgkeep};

/// As a role that was granted nothing.
fn granted_nothing(cluster: &Cluster) -> Pgkeep {
    cluster.sql("create role streamer login replication");
    let pgkeep = Pgkeep::of(cluster).with("source", "auto");
    pgkeep.with_server("user", "streamer")
}

fn a_backup_of_a_server_under_load_restores(major: u32) {
    let cluster = Cluster::new(major);
    cluster.tablespace("outside");
    cluster.sql("create table far tablespace outside as select i from generate_series(1, 3000) i");
    let before = Before::of(&cluster);
    let pgkeep = granted_nothing(&cluster)
        .with("max_rate", "16MB")
        .with("encryption", "aes-256-gcm");
    pgkeep.ok(&["master-key"]);
    let load = Load::on(&cluster);
    let rounds = load.rounds();
    let backup = pgkeep.backup();
    let history = cluster.number("select count(*) from pgbench_history");
    assert!(load.rounds() > rounds, "nothing changed meanwhile");
    load.stop();
    cluster.assert_nothing_is_left();
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    assert_eq!(info.at("Response.FileSource"), "stream");
    checks::sha512sum(&backup.folder);
    pgkeep.ok(&["verify", SERVER, &backup.identifier]);
    let data = pgkeep.restore_elsewhere("newest");
    let restored = checks::is_whole(major, &data, &before, history);
    assert_eq!(restored.number("select count(*) from far"), 3000);
}

#[test]
fn a_replicated_backup_of_15_under_load_restores() {
    a_backup_of_a_server_under_load_restores(15);
}

#[test]
fn a_replicated_backup_of_16_under_load_restores() {
    a_backup_of_a_server_under_load_restores(16);
}

#[test]
fn a_replicated_backup_of_17_under_load_restores() {
    a_backup_of_a_server_under_load_restores(17);
}

#[test]
fn a_replicated_backup_of_18_under_load_restores() {
    a_backup_of_a_server_under_load_restores(18);
}

fn it_holds_what_a_backup_by_sql_does(major: u32) {
    let cluster = quiet(major);
    // One in the data directory, of which the server does not know that.
    let link = cluster.ground().path().join("link");
    std::os::unix::fs::symlink(cluster.data(), &link).unwrap();
    let within = cluster.data().join("within");
    std::fs::create_dir(&within).unwrap();
    crate::support::account::give(&within);
    let location = link.join("within");
    cluster.sql(&format!(
        "create tablespace within location '{}'",
        location.display()
    ));
    cluster.sql("create table once tablespace within as select i from generate_series(1, 3000) i");
    let pgkeep = granted_nothing(&cluster).with("compression", "none");
    let run = pgkeep.run(&["-v", "backup", SERVER]);
    let streamed = pgkeep.finished(&run.succeeded());
    let said = "full backups only";
    assert!(run.stderr.contains(said), "{run:?}");
    let pgkeep = pgkeep.with_server("user", "postgres");
    pgkeep.ok(&["wal", "copy", SERVER]);
    let by_sql = pgkeep.finished(&pgkeep.ok(&["backup", SERVER, "--source", "sql"]));
    // What differs is that of the backup itself, and what a server writes by the way.
    checks::shell(&format!(
        "diff -r -x pg_wal -x backup_label -x backup_manifest -x pg_control -x pg_logical -x 'pgstat*' {} {} >&2",
        checks::quoted(&by_sql.folder.join("data")),
        checks::quoted(&streamed.folder.join("data"))
    ));
    let before = Before::of(&cluster);
    let restored = pgkeep.restore_elsewhere(&streamed.identifier);
    let restored = checks::is_whole(major, &restored, &before, 0);
    for table in ["far", "near", "once"] {
        let count = format!("select count(*) from {table}");
        assert_eq!(restored.number(&count), 3000);
    }
    // On its second timeline it is as good a server.
    let again = Pgkeep::of(&restored).with("source", "auto");
    let again = again.with_server("user", "streamer");
    again.backup();
    again.ok(&["verify", SERVER, "newest"]);
    let data = again.restore_elsewhere("newest");
    checks::pg_verifybackup(major, &data);
    assert!(data.join("pg_wal/00000002.history").exists());
    assert_eq!(
        Cluster::restored(major, &data).number("select count(*) from once"),
        3000
    );
    // It is as good as any to build on, once the role may read.
    pgkeep.backup_on(&streamed.identifier);
    pgkeep.ok(&["verify", SERVER, "newest"]);
}

#[test]
fn it_holds_what_a_backup_of_16_by_sql_does() {
    it_holds_what_a_backup_by_sql_does(16);
}

#[test]
fn it_holds_what_a_backup_of_18_by_sql_does() {
    it_holds_what_a_backup_by_sql_does(18);
}

/// A server where autovacuum changes nothing, and a backup that is slow enough to do something meanwhile.
fn unhurried(major: u32) -> (Cluster, Pgkeep) {
    let mut cluster = Cluster::stopped(major, &Options::default());
    cluster.set("autovacuum = off");
    cluster.start();
    let pgkeep = granted_nothing(&cluster).with("max_rate", "12MB");
    (cluster, pgkeep)
}

#[test]
fn what_replay_would_not_do_over_starts_it_anew() {
    let (cluster, pgkeep) = unhurried(17);
    let before = Before::of(&cluster);
    let mut running = pgkeep.spawn(&["backup", SERVER]);
    wait_until_copying(&mut running, &pgkeep);
    cluster.sql("create database copied template app strategy file_copy");
    cluster.sql_in(
        "app",
        "insert into t select i, 'x' from generate_series(1, 1000) i",
    );
    assert!(running.is_running(), "the backup ended too early");
    let run = running.wait();
    run.succeeded();
    assert!(
        run.stderr
            .contains("starting anew: while the backup ran, database copied"),
        "{run:?}"
    );
    cluster.assert_nothing_is_left();
    assert_eq!(std::fs::read_dir(pgkeep.backups()).unwrap().count(), 1);
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let restored = checks::is_whole(17, &pgkeep.restore("newest"), &before, 0);
    for (database, rows) in [("app", "2000"), ("copied", "1000")] {
        assert_eq!(
            restored.sql_in(database, "select count(*) from t")[0][0],
            rows
        );
    }
}

#[test]
fn what_does_not_end_is_named_with_the_grants_that_help() {
    let cluster = Cluster::new(16);
    let pgkeep = granted_nothing(&cluster);
    let folder = cluster.ground().folder("restless");
    let is_over = AtomicBool::new(false);
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                cluster.sql(&format!(
                    "create tablespace restless location '{}'",
                    folder.display()
                ));
                cluster.sql("drop tablespace restless");
            }
        });
        let run = pgkeep.run(&["backup", SERVER]);
        is_over.store(true, Ordering::Relaxed);
        format!("{}{}", run.failed(1), run.stderr)
    });
    for said in [
        "given up after 5 attempts",
        "a tablespace was created in",
        "pg_read_server_files",
    ] {
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(std::fs::read_dir(pgkeep.backups()).unwrap().count(), 0);
}

#[test]
fn a_server_that_was_restarted_is_backed_up_anew_and_a_stopped_backup_leaves_nothing() {
    let (mut cluster, pgkeep) = unhurried(18);
    let before = Before::of(&cluster);
    let mut running = pgkeep.spawn(&["backup", SERVER]);
    wait_until_copying(&mut running, &pgkeep);
    running.signal(Signal::INT);
    running.wait().failed(1);
    cluster.assert_nothing_is_left();
    assert_eq!(std::fs::read_dir(pgkeep.backups()).unwrap().count(), 0);

    let mut running = pgkeep.spawn(&["backup", SERVER]);
    wait_until_copying(&mut running, &pgkeep);
    cluster.stop(Postmaster::Immediate);
    cluster.start();
    let run = running.wait();
    run.succeeded();
    assert!(run.stderr.contains("starting anew"), "{run:?}");
    checks::is_whole(18, &pgkeep.restore("newest"), &before, 0);
}

#[test]
fn what_takes_more_is_refused_with_the_grants() {
    let cluster = Cluster::new(18);
    let pgkeep = granted_nothing(&cluster);
    let grant = "GRANT pg_read_server_files TO \"streamer\"";
    let refused = |pgkeep: &Pgkeep, arguments: &[&str], why: &str| {
        let run = pgkeep.run(arguments);
        let error = run.failed(5);
        assert!(error.contains(why), "{run:?}");
        assert!(run.stderr.contains(grant), "{run:?}");
    };
    for source in ["sql", "direct"] {
        let arguments = ["backup", SERVER, "--source", source];
        refused(
            &pgkeep,
            &arguments,
            "lacks membership of the role pg_read_server_files",
        );
    }
    refused(&pgkeep, &["wal", "copy", SERVER], "pg_read_server_files");
    refused(
        &pgkeep,
        &["backup", SERVER, "newest"],
        "an incremental backup takes more",
    );
    let run = pgkeep.run(&["backup", SERVER, "newest", "--or-full"]);
    let info = run.succeeded();
    assert_eq!(info.at("Response.Incremental"), "false");
    assert!(
        run.stderr
            .contains("making a full backup: the role streamer lacks"),
        "{run:?}"
    );

    let check = pgkeep.ok(&["check", SERVER]).at("Response");
    for said in [
        "and can do without",
        "full backups only",
        "pgkeep permissions primary",
    ] {
        assert!(check.contains(said), "{check}");
    }
    let with_extra = pgkeep.with_server("extra", "/etc/hostname");
    refused(
        &with_extra,
        &["backup", SERVER],
        "`extra` files do not come",
    );

    let standby = cluster.standby();
    let pgkeep = Pgkeep::of(&standby).with("source", "auto");
    let pgkeep = pgkeep.with_server("user", "streamer");
    refused(
        &pgkeep,
        &["backup", SERVER],
        "a standby's own base backup can end too early",
    );
    refused(
        &pgkeep,
        &["check", SERVER],
        "a standby's own base backup can end too early",
    );

    cluster.sql("alter role streamer noreplication");
    let pgkeep = Pgkeep::of(&cluster).with("source", "stream");
    let pgkeep = pgkeep.with_server("user", "streamer");
    refused(
        &pgkeep,
        &["backup", SERVER],
        "lacks the attribute REPLICATION",
    );
}

#[test]
fn older_servers_are_refused_what_they_cannot_send() {
    let fourteen = Cluster::new(14);
    let pgkeep = granted_nothing(&fourteen);
    let run = pgkeep.run(&["backup", SERVER]);
    assert!(run.failed(5).contains("PostgreSQL 15 and later"), "{run:?}");
    assert!(run.stderr.contains("pg_stop_backup"), "{run:?}");
    pgkeep.run(&["check", SERVER]).failed(5);

    // It has a tablespace that PostgreSQL 15 leaves out.
    let fifteen = quiet(15);
    let pgkeep = granted_nothing(&fifteen);
    let run = pgkeep.run(&["backup", SERVER]);
    assert!(
        run.failed(5).contains("leaves tablespace inside"),
        "{run:?}"
    );
    assert!(run.stderr.contains("pg_read_server_files"), "{run:?}");
}

#[test]
fn what_the_server_leaves_out_or_has_damaged_is_found() {
    let mut cluster = Cluster::new(17);
    let damaged = cluster.file_of("pgbench_accounts");
    cluster.stop(Postmaster::Fast);
    let file = cluster.data().join(&damaged);
    checks::shell(&format!(
        "printf damage | dd of={} bs=1 seek=61344 conv=notrunc status=none",
        checks::quoted(&file)
    ));
    cluster.start();
    let pgkeep = granted_nothing(&cluster);
    let run = pgkeep.run(&["backup", SERVER]);
    run.failed(3);
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    assert_eq!(info.at("Response.CorruptPages"), "1");
    assert!(info.at("Response").contains(&damaged), "{damaged}");

    // As on another disk.
    let relation = cluster.file_of("quiet");
    for (number, moved) in [relation.as_str(), "pg_xact"].iter().enumerate() {
        cluster.stop(Postmaster::Fast);
        let elsewhere = cluster.ground().path().join(number.to_string());
        let (here, elsewhere) = (cluster.data().join(moved), checks::quoted(&elsewhere));
        let here = checks::quoted(&here);
        checks::shell(&format!(
            "mv {here} {elsewhere} && ln -s {elsewhere} {here}"
        ));
        cluster.start();
        let run = pgkeep.run(&["backup", SERVER]);
        assert!(run.failed(5).contains(&format!("lacks {moved}")), "{run:?}");
        assert!(run.stderr.contains("pg_read_server_files"), "{run:?}");
        checks::shell(&format!("rm {here} && mv {elsewhere} {here}"));
    }
}
