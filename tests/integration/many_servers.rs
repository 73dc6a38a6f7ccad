//! One command for many servers.

use std::fs;

use rustix::process::Signal;

use crate::support::cluster::Options;
use crate::support::pgkeep::{Running, SERVER};
use crate::support::report::Report;
use crate::support::{Cluster, Pgkeep, wait_until};

/// A configuration with the cluster as two servers, and one that is not there.
fn configure(pgkeep: &Pgkeep, cluster: &Cluster, more: &str) {
    let host = cluster.socket().display().to_string();
    let base = pgkeep.base().display();
    pgkeep.configure(&format!(
        "[pgkeep]\nbase_dir = {base}\nsource = sql\ncompression_level = 1\n{more}\n\
         [{SERVER}]\nhost = {host}\nuser = postgres\n\
         [gone]\nhost = {host}/gone\nuser = postgres\nport = 1\n\
         [prod-2]\nhost = {host}\nuser = postgres\n"
    ));
}

/// What a report says of each server: its name and exit status.
fn each(report: &Report) -> Vec<(String, u64)> {
    let number = report.number("Response.NumberOfServers");
    let of = |key: &str, server: u64| report.at(&format!("Response.Servers.{server}.{key}"));
    (0..number)
        .map(|server| {
            (
                of("Server", server),
                of("ExitStatus", server).parse().unwrap(),
            )
        })
        .collect()
}

fn building(pgkeep: &Pgkeep) -> usize {
    let servers = [SERVER, "prod-2"].into_iter();
    let folders = servers.map(|server| pgkeep.base().join(server).join("backup"));
    let names = folders.flat_map(|folder| fs::read_dir(folder).into_iter().flatten());
    names
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_str().unwrap().ends_with(".building")
        })
        .count()
}

#[test]
fn one_that_fails_does_not_stop_the_others() {
    let mut cluster = Cluster::stopped(17, &Options::default());
    // What one of the two backs up makes the server remove WAL that the other needs.
    cluster.set("wal_keep_size = '1GB'");
    cluster.start();
    let pgkeep = Pgkeep::of(&cluster);
    configure(&pgkeep, &cluster, "verification = 1S");
    let found = |names: &[(&str, u64)]| -> Vec<(String, u64)> {
        let each = names.iter();
        each.map(|(name, status)| ((*name).to_owned(), *status))
            .collect()
    };
    let all = found(&[(SERVER, 0), ("gone", 5), ("prod-2", 0)]);

    let run = pgkeep.run(&["-F", "json", "backup", "--all", "--jobs", "3"]);
    let error = run.failed(5);
    assert!(
        error.starts_with("1 of 3 servers failed, one of them gone: "),
        "{error}"
    );
    let report = run.report();
    assert_eq!(each(&report), all);
    assert!(report.number("Response.Servers.2.BackupSize") > 1_000_000);
    assert!(run.stderr.contains("gone: pgkeep: error: "), "{run:?}");
    let first = report.at("Response.Servers.0.Backup");
    // Incremental ones, and of those alone that a pattern fits.
    let report = pgkeep.ok(&["backup", "p*", "newest", "--jobs", "1"]);
    assert_eq!(each(&report), found(&[(SERVER, 0), ("prod-2", 0)]));
    assert_eq!(report.at("Response.Servers.0.Parent"), first);
    let run = pgkeep.run(&["backup", "--all", "newest", "--or-full"]);
    run.failed(5);
    assert_eq!(each(&run.report()), all);
    assert_eq!(run.report().at("Response.Servers.2.Incremental"), "true");
    pgkeep.run(&["backup", "x*"]).failed(2);
    pgkeep.run(&["backup", SERVER, "--or-full"]).failed(2);
    pgkeep.run(&["backup", "--all", SERVER]).failed(2);

    for line in [&["check", "--all"][..], &["wal", "copy", "--all"]] {
        let run = pgkeep.run(line);
        run.failed(5);
        assert_eq!(each(&run.report()), all, "{run:?}");
    }
    let verified = pgkeep.ok(&["verify", "--due", "--all"]);
    assert_eq!(
        each(&verified),
        found(&[(SERVER, 0), ("gone", 0), ("prod-2", 0)])
    );
    assert_ne!(verified.at("Response.Servers.0.NumberOfBackups"), "0");
    assert_eq!(verified.at("Response.Servers.1.NumberOfBackups"), "0");
    let expired = pgkeep.ok(&["expire", "--all", "--dry-run"]);
    assert_eq!(expired.at("Response.Servers.1.DryRun"), "true");
    // Each process notes its own run.
    let history = pgkeep.ok(&["-F", "json", "history", "--of", "backup", "prod-*"]);
    assert_eq!(
        history
            .find("Response.Runs")
            .unwrap()
            .as_array()
            .unwrap()
            .len(),
        3
    );

    // Damage is worse than a server that is not there.
    let data = pgkeep.base().join("prod-2/backup");
    for backup in fs::read_dir(data).unwrap() {
        fs::write(backup.unwrap().path().join("backup.sha512"), "damaged").unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let run = pgkeep.run(&["verify", "--due", "*"]);
    let error = run.failed(3);
    assert!(error.contains("prod-2"), "{error}");

    // A table of all, whose comments give no orders to a terminal.
    pgkeep.ok(&["annotate", SERVER, &first, "add", "key", "red\u{1b}[31m"]);
    let run = pgkeep.run(&[
        "-F",
        "tree",
        "list-backup",
        "--columns",
        "server,backup,kind,comment",
    ]);
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert!(lines[0].starts_with("SERVER"), "{run:?}");
    assert!(
        lines[1].contains(&first) && lines[1].contains("full"),
        "{run:?}"
    );
    assert!(lines[1].ends_with("red\\u{1b}[31m"), "{run:?}");
    assert!(
        ["- 2", "─ 2"].iter().any(|drawn| lines[2].contains(drawn)) && lines[2].contains("incr 1"),
        "{run:?}"
    );
    assert!(!run.stdout.contains('\u{1b}'), "{run:?}");
    let status = pgkeep.run(&["-F", "table", "status"]);
    assert_eq!(status.status.code(), Some(3));
    let gone = status
        .stdout
        .lines()
        .find(|line| line.starts_with("gone"))
        .unwrap();
    assert!(gone.contains("no") && gone.contains("0/0"), "{status:?}");
    pgkeep
        .run(&["-F", "table", "info", SERVER, "newest"])
        .failed(2);
}

#[test]
fn all_of_them_end_with_the_one_that_began_them() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    configure(&pgkeep, &cluster, "max_rate = 2MB");
    let slow = || -> Running {
        let mut running = pgkeep.spawn(&["backup", "p*"]);
        wait_until("both are copied", || {
            assert!(running.is_running(), "{:?}", pgkeep.base());
            building(&pgkeep) == 2
        });
        running
    };
    let running = slow();
    running.signal(Signal::INT);
    let run = running.wait();
    let error = run.failed(1);
    assert_eq!(error, "interrupted");
    assert_eq!(
        each(&run.report()),
        [(SERVER.to_owned(), 1), ("prod-2".to_owned(), 1)]
    );
    assert_eq!(building(&pgkeep), 0, "Ctrl-C leaves no trace");

    // What the killed one began ends by itself, in good order, and leaves its servers to others.
    let running = slow();
    running.signal(Signal::KILL);
    drop(running);
    configure(&pgkeep, &cluster, "");
    wait_until("both end", || {
        pgkeep.run(&["backup", "p*"]).status.success()
    });
}
