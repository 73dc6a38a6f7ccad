//! Where a restore must not go, and what must not start.

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::cluster::Postmaster;
use crate::support::pgkeep::{SERVER, only_entry};
use crate::support::{Cluster, Pgkeep, account, checks, wait_until};

#[test]
fn a_folder_that_is_not_empty_is_not_written_into() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let backup = pgkeep.backup();
    let target = pgkeep.ground().folder("target");
    let data = target.join(format!("{SERVER}-{}", backup.identifier));
    fs::create_dir(&data).unwrap();
    account::give(&data);
    let mine = data.join("mine");
    fs::write(&mine, "precious").unwrap();

    let arguments = ["restore", SERVER, "newest", target.to_str().unwrap()];
    let error = pgkeep.run(&arguments).failed(1);
    assert!(error.contains(data.to_str().unwrap()), "{error}");
    assert_eq!(fs::read_to_string(&mine).unwrap(), "precious");
    assert_eq!(checks::tree(&target).len(), 2);
}

#[test]
fn force_replaces_a_cluster_but_never_a_running_one() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let target = pgkeep.ground().folder("target");
    let arguments = ["restore", SERVER, "newest", target.to_str().unwrap()];
    let forced = [
        "restore",
        SERVER,
        "newest",
        target.to_str().unwrap(),
        "--force",
    ];
    pgkeep.ok(&arguments);
    let data = only_entry(&target);

    let mut restored = Cluster::restored(17, &data);
    restored.sql("drop table quiet");
    pgkeep.run(&arguments).failed(1);
    let error = pgkeep.run(&forced).failed(1);
    assert!(
        error.contains("running") || error.contains("postmaster.pid"),
        "{error}"
    );
    restored.sql("select 1");
    restored.stop(Postmaster::Fast);

    pgkeep.run(&arguments).failed(1);
    pgkeep.ok(&forced);
    checks::pg_verifybackup(17, &data);
    restored.start();
    assert_eq!(restored.number("select count(*) from quiet"), 5000);
}

#[test]
fn force_takes_no_tablespace_of_another_running_server() {
    let mut cluster = Cluster::new(17);
    let folder = cluster.tablespace("passing");
    cluster.sql("create table there tablespace passing as select generate_series(1, 1000) i");
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    cluster.sql("drop table there");
    cluster.sql("drop tablespace passing");
    cluster.stop(Postmaster::Fast);

    let mut other = Cluster::new(17);
    other.sql(&format!(
        "create tablespace taken location '{}'",
        folder.display()
    ));
    other.sql("create table theirs tablespace taken as select generate_series(1, 1000) i");
    other.sql("checkpoint");
    let target = pgkeep.ground().folder("target");
    let mapping = format!("passing={}", folder.display());
    let forced = [
        "restore",
        SERVER,
        "newest",
        target.to_str().unwrap(),
        "--force",
    ];
    let mapped = [&forced[..], &["--tablespace", &mapping]].concat();
    let state = checks::state(&folder);
    for arguments in [&forced[..], &mapped] {
        let error = pgkeep.run(arguments).failed(1);
        assert!(error.contains(other.data().to_str().unwrap()), "{error}");
        assert_eq!(checks::state(&folder), state);
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    }
    assert_eq!(other.number("select count(*) from theirs"), 1000);
    other.stop(Postmaster::Fast);
    pgkeep.ok(&forced);
}

#[test]
fn a_refused_restore_loses_nothing_and_leaves_nothing() {
    let cluster = Cluster::new(17);
    cluster.tablespace("outside");
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let data = pgkeep.restore_with("newest", &["--tablespace", &outside(&pgkeep, "first")]);
    let target = data.parent().unwrap().to_str().unwrap();
    let state = checks::state(&data);
    // No folder can be made below a file.
    pgkeep.ground().file("file", "");
    for more in [
        outside(&pgkeep, "file/below"),
        outside(&pgkeep, "/proc/outside"),
    ] {
        let arguments = [
            "restore",
            SERVER,
            "newest",
            target,
            "--force",
            "--tablespace",
        ];
        pgkeep.run(&[&arguments[..], &[&more]].concat()).failed(1);
        assert_eq!(checks::state(&data), state, "{more}");
    }
    // A folder that is not empty, and a target that is not there.
    let new = pgkeep.ground().path().join("new/deeper");
    let first = outside(&pgkeep, "first");
    let arguments = [
        "restore",
        SERVER,
        "newest",
        new.to_str().unwrap(),
        "--tablespace",
        &first,
    ];
    pgkeep.run(&arguments).failed(1);
    assert!(!new.parent().unwrap().exists());
}

fn outside(pgkeep: &Pgkeep, folder: &str) -> String {
    format!("outside={}", pgkeep.ground().path().join(folder).display())
}

#[test]
fn the_servers_own_data_directory_is_never_a_target() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let backup = pgkeep.backup();
    let target = pgkeep.ground().folder("target");
    let link = target.join(format!("{SERVER}-{}", backup.identifier));
    symlink(cluster.data(), &link).unwrap();
    for force in [&[][..], &["--force"]] {
        let mut arguments = vec!["restore", SERVER, "newest", target.to_str().unwrap()];
        arguments.extend(force);
        pgkeep.run(&arguments).failed(1);
    }
    assert_eq!(cluster.number("select count(*) from quiet"), 5000);
}

#[test]
fn an_aborted_restore_does_not_start() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let mut seen = 0;
    for attempt in 0..8 {
        let target = pgkeep.ground().folder(&format!("aborted-{attempt}"));
        let mut running = pgkeep.spawn(&["restore", SERVER, "newest", target.to_str().unwrap()]);
        // Earlier and later in the course of it.
        wait_until("there is something", || {
            checks::tree(&target).len() > 1 + 150 * attempt || !running.is_running()
        });
        running.signal(rustix::process::Signal::KILL);
        let killed = running.wait().status.code().is_none();
        let data = only_entry(&target);
        if killed {
            if data.join("global/pg_control").exists() {
                // It was about to end.
                checks::pg_verifybackup(17, &data);
                continue;
            }
            seen += 1;
            let mut half = Cluster::adopt(17, &data);
            half.try_start().expect_err("half a cluster starts");
            // Nor does it stand in the way of the next attempt.
            pgkeep.ok(&[
                "restore",
                SERVER,
                "newest",
                target.to_str().unwrap(),
                "--force",
            ]);
        }
    }
    assert!(seen > 0, "no restore was interrupted in the midst");
}

#[test]
fn an_interrupted_restore_says_so_and_leaves_nothing_that_starts() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster).with("max_rate", "0");
    pgkeep.backup();
    let target = pgkeep.ground().folder("target");
    let mut running = pgkeep.spawn(&[
        "-j",
        "1",
        "restore",
        SERVER,
        "newest",
        target.to_str().unwrap(),
    ]);
    wait_until("the restore has begun", || {
        !running.is_running() || checks::tree(&target).len() > 3
    });
    running.signal(rustix::process::Signal::INT);
    let run = running.wait();
    if run.status.code() != Some(0) {
        run.failed(1);
        for entry in fs::read_dir(&target).unwrap() {
            let mut cluster = Cluster::adopt(17, &entry.unwrap().path());
            cluster.try_start().expect_err("half a cluster starts");
        }
    }
}

#[test]
fn a_restored_cluster_without_its_backup_label_does_not_start() {
    for major in crate::support::versions(&crate::support::VERSIONS) {
        let cluster = Cluster::new(major);
        let pgkeep = Pgkeep::of(&cluster);
        pgkeep.backup();
        let data = pgkeep.restore("newest");
        fs::remove_file(data.join("backup_label")).unwrap();
        let mut restored = Cluster::adopt(major, &data);
        let log = restored
            .try_start()
            .expect_err("it starts, with silent damage");
        assert!(log.contains("checkpoint"), "{log}");
    }
}

#[test]
fn a_target_that_cannot_be_written_is_named() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let closed = pgkeep.ground().folder("closed");
    checks::shell(&format!("chmod 0500 {}", checks::quoted(&closed)));
    let error = pgkeep
        .run(&["restore", SERVER, "newest", closed.to_str().unwrap()])
        .failed(1);
    assert!(error.contains(closed.to_str().unwrap()), "{error}");
}
