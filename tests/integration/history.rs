//! What was run so far, as the repository knows it.

use std::fs;

use serde_json::Value;

use crate::support::archive::{small_segments, switch};
use crate::support::cluster::Cluster;
use crate::support::pgkeep::SERVER;
use crate::support::report::Report;
use crate::support::{Pgkeep, checks, store};

/// The runs that `history` shows, each as command, exit status and backup.
fn runs(pgkeep: &Pgkeep, arguments: &[&str]) -> Vec<(String, u64, Option<String>)> {
    let line = [&["-F", "json", "history"], arguments].concat();
    let report = pgkeep.ok(&line);
    let runs = report
        .find("Response.Runs")
        .and_then(Value::as_array)
        .unwrap();
    let runs = runs.iter().map(|run| {
        let run = Report(run.clone());
        let backup = run.find("Backup").map(|_| run.at("Backup"));
        (run.at("Command"), run.number("ExitStatus"), backup)
    });
    runs.collect()
}

/// Every verb that is noted, on a folder and in a store, and no other; none of them minds what is there.
#[test]
fn each_run_is_noted_with_what_came_of_it() {
    let mut cluster = Cluster::stopped(17, &small_segments());
    cluster.start();
    for in_store in [false, true] {
        let pgkeep = match in_store {
            false => Pgkeep::of(&cluster),
            true => Pgkeep::of(&cluster).in_bucket(&store::endpoint()),
        };
        let name = |text: &str| text.to_owned();
        pgkeep.run(&["verify", SERVER, "newest"]).failed(1);
        let before = runs(&pgkeep, &[]).len();
        assert_eq!(before == 0, !in_store, "a folder may not be mounted");
        let first = pgkeep.backup().identifier;
        let second = pgkeep.backup_on(&first).identifier;
        let history = pgkeep.ok(&["history", "--of", "backup"]);
        assert_eq!(history.at("Response.Runs.0.Status"), "true");
        assert!(history.at("Response.Runs.0.Rate").ends_with("B"));
        pgkeep.run(&["backup", SERVER, "1999"]).failed(1);
        switch(&cluster);
        pgkeep.ok(&["wal", "copy", SERVER]);
        pgkeep.ok(&["list-backup", SERVER]);
        pgkeep.ok(&["info", SERVER, &first]);
        pgkeep.ok(&["verify", SERVER, &second]);
        let folder = pgkeep.ground().folder("target");
        pgkeep.ok(&["restore", SERVER, &second, folder.to_str().unwrap()]);
        pgkeep.ok(&["expire", SERVER, "--dry-run"]);
        pgkeep.ok(&["expire", SERVER]);
        pgkeep.ok(&["delete", SERVER, &first]);
        let noted = [
            (name("backup"), 0, Some(first.clone())),
            (name("backup"), 0, Some(second.clone())),
            (name("backup"), 1, None),
            (name("wal copy"), 0, None),
            (name("verify"), 0, Some(second.clone())),
            (name("restore"), 0, Some(second.clone())),
            (name("expire"), 0, None),
            (name("delete"), 0, Some(first.clone())),
        ];
        assert_eq!(runs(&pgkeep, &[])[before..], noted);
        assert_eq!(runs(&pgkeep, &["pri*", "--last", "2"]), noted[6..]);
        let failed = ["--of", "backup", "--failed", SERVER];
        assert_eq!(runs(&pgkeep, &failed), noted[2..3]);
        let report = pgkeep.ok(&[&["history"], &failed[..]].concat());
        assert!(report.at("Response.Runs.0.Error").contains("1999"));
    }

    // Where it cannot be written, a run is what it was, with a warning.
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let history = pgkeep.base().join(SERVER).join("history");
    let file = checks::files(&history).remove(0);
    let mut content = fs::read(&file).unwrap();
    content.extend(b"{\"run\":\"\x1b[31m\n");
    fs::write(&file, content).unwrap();
    let run = pgkeep.run(&["history"]);
    run.succeeded();
    assert!(
        run.stderr.contains("is skipped, as it is damaged"),
        "{run:?}"
    );
    fs::remove_dir_all(&history).unwrap();
    fs::write(&history, "in the way").unwrap();
    let run = pgkeep.run(&["verify", SERVER, "newest"]);
    run.succeeded();
    assert!(
        run.stderr
            .contains("warn: this run is missing in the history"),
        "{run:?}"
    );
}
