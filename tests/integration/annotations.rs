//! Comments on backups, and keeping backups from retention.

use std::fs;

use rustix::process::Signal;

use crate::support::checks;
use crate::support::pgkeep::{SERVER, wait_until_copying};
use crate::support::report::Report;
use crate::support::{Cluster, Pgkeep};

fn annotations(report: &Report) -> &serde_json::Value {
    report.find("Response.Annotations").unwrap()
}

#[test]
fn comments_are_added_updated_and_removed_as_in_the_tutorial() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let backup = pgkeep.backup();
    drop(cluster);
    let shown = || {
        pgkeep
            .ok(&["info", SERVER, "newest"])
            .at("Response.Comments")
    };
    let annotate = |words: &[&str]| pgkeep.run(&[&["annotate", SERVER, "newest"], words].concat());

    let report = annotate(&["add", "mykey", "mycomment"]).succeeded();
    assert_eq!(report.at("Request.Action"), "add");
    assert_eq!(report.at("Response.Comments"), "mykey|mycomment");
    assert_eq!(shown(), "mykey|mycomment");
    let listed = pgkeep.ok(&["list-backup", SERVER]);
    assert_eq!(listed.at("Response.Backups.0.Comments"), "mykey|mycomment");
    let error = annotate(&["add", "mykey", "again"]).failed(1);
    assert!(error.contains("mykey"), "{error}");
    annotate(&["update", "mykey", "mynewcomment"]).succeeded();
    assert_eq!(shown(), "mykey|mynewcomment");
    annotate(&["update", "other", "x"]).failed(1);
    annotate(&["remove", "other"]).failed(1);
    annotate(&["remove", "mykey"]).succeeded();
    assert_eq!(shown(), "");

    for wrong in [
        &["add", "mykey"][..],
        &["update", "mykey"],
        &["remove", "mykey", "mycomment"],
        &["add", "", "x"],
        &["replace", "mykey", "x"],
    ] {
        annotate(wrong).failed(2);
    }
    pgkeep
        .run(&["annotate", SERVER, "1999", "add", "a", "b"])
        .failed(1);
    pgkeep.ok(&["verify", SERVER, "newest"]);
    checks::sha512sum(&backup.folder);
}

#[test]
fn any_text_comes_back_in_both_formats() {
    let cluster = Cluster::new(15);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    drop(cluster);
    let texts = [
        ("a|b,c\\", "x|y,z\\|"),
        ("two\nlines", "# no: comment\n\n  - at all\n"),
        ("true", "'single' \"double\" `back`"),
        ("007", "{a: [b]}"),
        ("é\u{1F418}", "\t\u{1}\u{7f}\u{85}\u{2028}"),
        ("-x", ""),
    ];
    for (key, comment) in texts {
        pgkeep.ok(&["annotate", SERVER, "newest", "add", "--", key, comment]);
    }
    for format in ["text", "json"] {
        let report = pgkeep.ok(&["--format", format, "info", SERVER, "newest"]);
        let found = annotations(&report);
        assert_eq!(found.as_object().unwrap().len(), texts.len(), "{format}");
        for (key, comment) in texts {
            assert_eq!(found[key].as_str(), Some(comment), "{format}: {key}");
        }
    }
    let report = pgkeep.ok(&["--format", "json", "info", SERVER, "newest"]);
    let comments = report.at("Response.Comments");
    assert!(comments.contains(r"a\|b\,c\\|x\|y\,z\\\|,"), "{comments}");
}

#[test]
fn a_backup_is_kept_and_given_back() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let backup = pgkeep.backup();
    for (command, kept) in [("retain", "true"), ("expunge", "false")] {
        for cascade in [false, true] {
            let mut line = vec![command, SERVER, "newest"];
            if cascade {
                line.insert(1, "--cascade");
            }
            let report = pgkeep.ok(&line);
            assert_eq!(report.at("Response.Keep"), kept);
            assert_eq!(report.at("Response.Cascade"), cascade.to_string());
            assert_eq!(report.at("Response.Backups.0"), backup.identifier);
            let info = pgkeep.ok(&["info", SERVER, "newest"]);
            assert_eq!(info.at("Response.Keep"), kept);
        }
    }
    pgkeep.ok(&["verify", SERVER, "newest"]);

    // Whoever writes needs the lock; a backup at work has it.
    let pgkeep = pgkeep.with("max_rate", "1MB");
    let mut running = pgkeep.spawn(&["backup", SERVER]);
    wait_until_copying(&mut running, &pgkeep);
    let before = fs::read(backup.folder.join("backup.info")).unwrap();
    pgkeep.run(&["retain", SERVER, "newest"]).failed(4);
    pgkeep
        .run(&["annotate", SERVER, "newest", "add", "a", "b"])
        .failed(4);
    assert!(running.is_running(), "the writers were tried too late");
    assert_eq!(fs::read(backup.folder.join("backup.info")).unwrap(), before);
    running.signal(Signal::INT);
    running.wait().failed(1);
}
