//! How the backups are doing, for people, programs and a collector of metrics.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use crate::support::archive::{archiving, small_segments, switch, wait_until_archived};
use crate::support::checks;
use crate::support::cluster::Postmaster;
use crate::support::pgkeep::{Run, SERVER};
use crate::support::{Cluster, Pgkeep};

fn status(pgkeep: &Pgkeep) -> Run {
    pgkeep.run(&["--format", "json", "status"])
}

/// The metrics by their names, once their form is checked.
fn metrics(run: &Run) -> BTreeMap<String, u64> {
    let mut metrics = BTreeMap::new();
    let mut known = Vec::new();
    for line in run.stdout.lines() {
        if let Some(about) = line.strip_prefix("# TYPE ") {
            known.push(about.strip_suffix(" gauge").unwrap().to_owned());
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let name = name.trim_end_matches(&format!("{{server=\"{SERVER}\"}}"));
            assert_eq!(known.last().unwrap(), name, "{run:?}");
            metrics.insert(name.to_owned(), value.parse().unwrap());
        }
    }
    metrics
}

#[test]
fn what_needs_a_person_is_told_by_the_exit_status() {
    let mut cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let error = status(&pgkeep).failed(3);
    assert!(error.contains("no valid backup"), "{error}");
    let backup = pgkeep.backup();
    let report = status(&pgkeep).succeeded();
    let at = |key: &str| report.at(&format!("Response.Servers.0.{key}"));
    assert_eq!(at("Server"), SERVER);
    assert_eq!(at("Reachable"), "true");
    assert!(at("PostgreSQL").starts_with("17."));
    assert_eq!(at("Newest"), backup.identifier);
    assert!(at("Age").parse::<u64>().unwrap() < 600);
    let held: u64 = at("Held").parse().unwrap();
    let size: u64 = checks::files(&backup.folder)
        .iter()
        .map(|file| file.metadata().unwrap().len())
        .sum();
    assert!(
        (size..size * 2 + 10_000_000).contains(&held),
        "{held}, {size}"
    );
    assert!(report.find("Response.Servers.0.WAL").is_none());
    let text = pgkeep.run(&["status", SERVER]);
    assert!(
        text.succeeded()
            .at("Response.Servers.0.Free")
            .ends_with('B')
    );

    // A damaged one, and one that was not verified for too long.
    let pgkeep = pgkeep.with("verification", "1S");
    std::thread::sleep(Duration::from_millis(1100));
    let error = status(&pgkeep).failed(3);
    assert!(error.contains("not verified"), "{error}");
    let pgkeep = pgkeep.with("verification", "1W");
    status(&pgkeep).succeeded();
    let second = pgkeep.backup();
    fs::remove_file(checks::files(&second.folder.join("data/base")).remove(0)).unwrap();
    pgkeep.run(&["verify", SERVER, "newest"]).failed(3);
    let error = status(&pgkeep).failed(3);
    assert!(error.contains(&second.identifier), "{error}");
    pgkeep.ok(&["delete", SERVER, &second.identifier]);
    status(&pgkeep).succeeded();

    cluster.stop(Postmaster::Fast);
    let begin = Instant::now();
    let run = status(&pgkeep);
    assert!(begin.elapsed() < Duration::from_secs(100));
    run.failed(3);
    assert_eq!(run.report().at("Response.Servers.0.Reachable"), "false");
    assert_eq!(
        run.report().at("Response.Servers.0.Newest"),
        backup.identifier
    );
}

#[test]
fn archived_wal_is_told_with_its_gaps() {
    let (cluster, pgkeep) = archiving(
        17,
        &small_segments(),
        |pgkeep| pgkeep,
        |pgkeep| pgkeep.archive_command(),
    );
    let backup = pgkeep.backup();
    pgkeep.backup();
    let mut segments = Vec::new();
    for _ in 0..4 {
        cluster.sql("create table t (); drop table t");
        segments.push(switch(&cluster));
    }
    wait_until_archived(&pgkeep, &segments[3]);
    let report = status(&pgkeep).succeeded();
    let at = |key: &str| report.at(&format!("Response.Servers.0.WAL.{key}"));
    assert_eq!(at("Head"), segments[3]);
    assert_eq!(at("FromBackup"), backup.identifier);
    let metrics_before = metrics(&pgkeep.run(&["--format", "prometheus", "status"]));
    assert!(
        metrics_before["pgkeep_roll_forward_end_lsn"]
            > metrics_before["pgkeep_roll_forward_start_lsn"]
    );
    assert_eq!(metrics_before["pgkeep_wal_gaps"], 0);

    let missing = pgkeep.base().join(SERVER).join("wal");
    let missing = checks::files(&missing)
        .into_iter()
        .find(|file| {
            let name = file.file_name().unwrap().to_str().unwrap();
            name.starts_with(&segments[1]) && !name.contains(".backup")
        })
        .unwrap();
    fs::remove_file(missing).unwrap();
    let error = status(&pgkeep).failed(3);
    assert!(error.contains(&segments[1]), "{error}");
    let after = metrics(&pgkeep.run(&["--format", "prometheus", "status"]));
    assert_eq!(after["pgkeep_wal_gaps"], 1);
    assert!(after["pgkeep_roll_forward_end_lsn"] < metrics_before["pgkeep_roll_forward_end_lsn"]);
}

#[test]
fn metrics_are_for_a_textfile_collector() {
    let cluster = Cluster::new(15);
    let pgkeep = Pgkeep::of(&cluster);
    let prometheus = |line: &[&str]| pgkeep.run(&[&["--format", "prometheus"], line].concat());
    let run = prometheus(&["status"]);
    assert_eq!(run.status.code(), Some(3));
    let none = metrics(&run);
    assert_eq!((none["pgkeep_up"], none["pgkeep_attention"]), (1, 1));
    assert!(!none.contains_key("pgkeep_newest_backup_timestamp_seconds"));
    pgkeep.backup();
    let run = prometheus(&["status", SERVER]);
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    let one = metrics(&run);
    assert_eq!((one["pgkeep_backups"], one["pgkeep_backups_valid"]), (1, 1));
    let now = one["pgkeep_status_timestamp_seconds"];
    assert!(now - one["pgkeep_newest_backup_timestamp_seconds"] < 600);

    let run = prometheus(&["list-backup", SERVER]);
    assert_eq!(run.status.code(), Some(2));
    assert!(
        run.stdout.lines().all(|line| line.starts_with("# ")),
        "{run:?}"
    );
}
