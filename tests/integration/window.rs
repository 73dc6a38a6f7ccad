//! From when to when any moment can be restored.

use std::fs;

use crate::support::archive::{small_segments, switch};
use crate::support::cluster::Cluster;
use crate::support::pgkeep::SERVER;
use crate::support::report::Report;
use crate::support::{Pgkeep, checks};

fn window(pgkeep: &Pgkeep) -> Report {
    pgkeep.ok(&["-F", "json", "window", SERVER])
}

fn at(report: &Report, key: &str) -> String {
    report.at(&format!("Response.Servers.0.{key}"))
}

#[test]
fn holes_are_told_and_what_is_in_them_cannot_be_restored() {
    let mut cluster = Cluster::stopped(17, &small_segments());
    cluster.set("autovacuum = off");
    cluster.start();
    let pgkeep = Pgkeep::of(&cluster);
    let backup = pgkeep.backup();
    let alone = window(&pgkeep);
    assert_eq!(at(&alone, "Windows.0.FromBackup"), backup.identifier);
    assert_eq!(
        at(&alone, "Windows.0.FromLSN"),
        at(&alone, "Windows.0.ToLSN")
    );

    // In each segment a moment between two commits.
    let mut moments = Vec::new();
    let mut segments = Vec::new();
    for number in 0..4 {
        cluster.sql(&format!("create table a{number} ()"));
        moments.push(cluster.value("select clock_timestamp()"));
        cluster.sql(&format!("create table b{number} ()"));
        segments.push(switch(&cluster));
    }
    pgkeep.ok(&["wal", "copy", SERVER]);
    let whole = window(&pgkeep);
    assert!(whole.find("Response.Servers.0.Windows.1").is_none());
    assert!(whole.find("Response.Servers.0.Holes.0").is_none());
    let is_behind = |time: &str| {
        let line = format!("select timestamptz '{time}' > timestamptz '{}'", moments[3]);
        cluster.value(&line) == "t"
    };
    assert!(is_behind(&at(&whole, "To")), "{:?}", whole.0);
    assert!(at(&whole, "Age").parse::<u64>().unwrap() < 600);
    let (from, to) = (at(&whole, "From"), at(&whole, "To"));
    let line = format!("select timestamptz '{from}' <= timestamptz '{to}'");
    assert_eq!(cluster.value(&line), "t");

    let wal = pgkeep.base().join(SERVER).join("wal");
    let lose = || {
        let lost = checks::files(&wal).into_iter().find(|file| {
            let name = file.file_name().unwrap().to_str().unwrap();
            name.starts_with(&segments[2])
        });
        lost.map(|lost| fs::remove_file(lost).unwrap()).is_some()
    };
    assert!(lose());
    let torn = window(&pgkeep);
    assert_eq!(at(&torn, "Holes.0.Missing"), segments[2]);
    assert!(torn.find("Response.Servers.0.Holes.0.BeforeLSN").is_none());
    assert!(!is_behind(&at(&torn, "To")), "{:?}", torn.0);

    let second = pgkeep.backup();
    pgkeep.run(&["wal", "copy", SERVER]);
    // The server may have had it still.
    lose();
    let mended = window(&pgkeep);
    assert_eq!(at(&mended, "Windows.1.FromBackup"), second.identifier);
    assert_eq!(
        at(&mended, "Holes.0.BeforeLSN"),
        at(&mended, "Windows.1.FromLSN")
    );
    assert_eq!(at(&mended, "Holes.0.AfterTime"), at(&torn, "To"));
    // The restore itself says the same.
    let folder = pgkeep.ground().folder("restored");
    let restore = |moment: &str| {
        let position = format!("time={moment}");
        pgkeep.run(&[
            "restore",
            SERVER,
            "newest",
            &position,
            folder.to_str().unwrap(),
        ])
    };
    restore(&moments[1]).succeeded();
    for lost in &moments[2..] {
        let run = restore(lost);
        assert!(!run.status.success(), "{run:?}");
    }

    let run = pgkeep.run(&["-F", "table", "window"]);
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert!(
        lines[0].starts_with("SERVER") && lines.len() == 4,
        "{run:?}"
    );
    assert!(
        lines[2].contains(&format!("then a hole: {} missing", segments[2])),
        "{run:?}"
    );
    let metrics = pgkeep.run(&["-F", "prometheus", "status"]).stdout;
    assert!(
        metrics.contains("pgkeep_window_holes{server=\"primary\"} 1\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("pgkeep_window_end_timestamp_seconds{"),
        "{metrics}"
    );
    let status = pgkeep.run(&["-F", "json", "status"]).report();
    assert_eq!(at(&status, "Window.To"), at(&mended, "To"));
}
