//! Backups that retention does not keep, and the WAL that no backup needs.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rustix::process::Signal;

use crate::support::archive::{archiving, small_segments, switch, wait_until_archived};
use crate::support::checks;
use crate::support::pgkeep::{Backup, SERVER};
use crate::support::random_changes::rounds;
use crate::support::report::Report;
use crate::support::{Cluster, Pgkeep, account};

/// What a backup made so many days ago is called.
pub(crate) fn name(days: i64) -> String {
    // Some minutes more, so that it is not the name of one that was just made.
    let time = Timestamp::now() - SignedDuration::from_mins(24 * 60 * days + 15);
    time.strftime("%Y%m%d%H%M%S").to_string()
}

/// The same backup again, as if it had been made under this name on this parent.
pub(crate) fn again(pgkeep: &Pgkeep, backup: &Backup, name: &str, parent: Option<(&str, &str)>) {
    let folder = pgkeep.backups().join(name);
    checks::shell(&format!(
        "cp -al {} {}",
        checks::quoted(&backup.folder),
        checks::quoted(&folder)
    ));
    let info = folder.join("backup.info");
    let mut text = fs::read_to_string(&info).unwrap();
    text = text.replace(&backup.identifier, name);
    if let Some((old, new)) = parent {
        text = text.replace(old, new);
    }
    // The old one is linked.
    fs::remove_file(&info).unwrap();
    fs::write(&info, sealed(&text)).unwrap();
    account::give(&info);
}

/// A changed `backup.info` with the checksum that it must have.
pub(crate) fn sealed(info: &str) -> String {
    let content = info.rsplit_once("Checksum: ").unwrap().0;
    let mut command = Command::new("sha512sum");
    let mut running = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = running.stdin.take().unwrap();
    input.write_all(content.as_bytes()).unwrap();
    drop(input);
    let digest = running.wait_with_output().unwrap().stdout;
    let digest = String::from_utf8(digest).unwrap();
    format!("{content}Checksum: {}\n", &digest[..128])
}

/// Two months of backups: a full one every week, and one a day on it. Gives all names, the newest first.
fn two_months(pgkeep: &Pgkeep, full: &Backup, increment: &Backup) -> Vec<String> {
    let mut names = Vec::new();
    for week in 0..9 {
        let first = name(7 * week + 6);
        again(pgkeep, full, &first, None);
        for day in (0..6).rev() {
            let daily = name(7 * week + day);
            let parent = Some((full.identifier.as_str(), first.as_str()));
            again(pgkeep, increment, &daily, parent);
            names.push(daily);
        }
        names.push(first);
    }
    names.sort();
    names.reverse();
    for backup in [increment, full] {
        fs::remove_dir_all(&backup.folder).unwrap();
    }
    names
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::stopped(17, &Default::default());
    cluster.set("summarize_wal = on");
    cluster.start();
    cluster
}

fn history(pgkeep: &Pgkeep) -> Vec<String> {
    let full = pgkeep.backup();
    let increment = pgkeep.backup_on(&full.identifier);
    two_months(pgkeep, &full, &increment)
}

fn listed(report: &Report, key: &str) -> BTreeSet<String> {
    let list = report.find(&format!("Response.{key}")).unwrap();
    let list = list.as_array().unwrap().iter();
    list.map(|one| one.as_str().unwrap().to_owned()).collect()
}

fn backups(pgkeep: &Pgkeep) -> BTreeSet<String> {
    let names = fs::read_dir(pgkeep.backups()).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// All that are left are valid, and the newest is sound to the last byte.
fn assert_sound(pgkeep: &Pgkeep) {
    let report = pgkeep.ok(&["--format", "json", "list-backup", SERVER]);
    for backup in report.find("Response.Backups").unwrap().as_array().unwrap() {
        assert_eq!(backup["Valid"], "yes", "{backup}");
    }
    pgkeep.ok(&["verify", SERVER, "newest"]);
}

#[test]
fn retention_keeps_what_it_says_and_what_that_needs() {
    let cluster = cluster();
    let pgkeep = Pgkeep::of(&cluster).with("retention", "7, 2");
    let names = history(&pgkeep);
    drop(cluster);
    let kept = &names[40];
    pgkeep.ok(&["retain", SERVER, kept]);
    let before = backups(&pgkeep);
    let expire =
        |words: &[&str]| pgkeep.ok(&[&["--format", "json", "expire", SERVER], words].concat());
    let planned = expire(&["--dry-run"]);
    assert_eq!(backups(&pgkeep), before, "a dry run removed something");
    let gone = listed(&planned, "Backups");
    // The last week and what it builds on, the kept one with its full one, and what stands for the week before: by the day
    // and the hour that is none more, a full one, or an incremental one with its full one.
    let stay: BTreeSet<String> = before.difference(&gone).cloned().collect();
    assert!(names[..7].iter().all(|name| stay.contains(name)));
    assert!(stay.contains(kept), "a kept backup would go");
    assert!((9..=11).contains(&stay.len()), "{stay:?}");
    let done = expire(&[]);
    assert_eq!(listed(&done, "Backups"), gone);
    assert_eq!(backups(&pgkeep), stay);
    assert_sound(&pgkeep);
    pgkeep.ok(&["verify", SERVER, kept]);
    assert!(listed(&expire(&[]), "Backups").is_empty());

    // Given back, it goes with what only it needed.
    pgkeep.ok(&["expunge", SERVER, kept]);
    let gone = listed(&expire(&[]), "Backups");
    assert!(gone.contains(kept) && gone.len() == 2, "{gone:?}");
    assert_sound(&pgkeep);
}

#[test]
fn without_a_valid_backup_nothing_goes_and_the_unreadable_stays() {
    let cluster = cluster();
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.ok(&["expire", SERVER]);
    let backup = pgkeep.backup();
    for days in [20, 30, 40] {
        again(&pgkeep, &backup, &name(days), None);
    }
    fs::remove_dir_all(&backup.folder).unwrap();
    let all: Vec<String> = backups(&pgkeep).into_iter().collect();
    for name in &all[..1] {
        let info = pgkeep.backups().join(name).join("backup.info");
        fs::remove_file(&info).unwrap();
        fs::write(&info, "nothing").unwrap();
    }
    let run = pgkeep.run(&["--format", "json", "expire", SERVER]);
    let error = run.failed(3);
    assert!(error.contains(&all[0]), "{error}");
    assert_eq!(
        listed(&run.report(), "Unreadable"),
        BTreeSet::from([all[0].clone()])
    );
    assert_eq!(backups(&pgkeep).len(), 3);
    pgkeep.ok(&["delete", SERVER, &all[0], "--force"]);
    pgkeep.ok(&["expire", SERVER]);
    // The newest valid one is far too old, and stays.
    assert_eq!(backups(&pgkeep), BTreeSet::from([all[2].clone()]));
    let info = pgkeep.backups().join(&all[2]).join("backup.info");
    fs::write(&info, "nothing").unwrap();
    let error = pgkeep.run(&["expire", SERVER]).failed(3);
    assert!(error.contains("no valid backup"), "{error}");
    assert_eq!(backups(&pgkeep).len(), 1);
}

#[test]
fn wal_and_block_maps_go_up_to_where_the_first_backup_begins() {
    let (cluster, pgkeep) = archiving(
        15,
        &small_segments(),
        |pgkeep| pgkeep,
        |pgkeep| pgkeep.archive_command(),
    );
    let fill = || {
        cluster
            .sql("create table if not exists filling (body text) with (autovacuum_enabled = off)");
        for _ in 0..3 {
            cluster
                .sql("insert into filling select repeat('x', 200) from generate_series(1, 2000)");
            switch(&cluster);
        }
    };
    pgkeep.backup();
    fill();
    let old = pgkeep.backup();
    fill();
    let last = switch(&cluster);
    wait_until_archived(&pgkeep, &last);
    for backup in fs::read_dir(pgkeep.backups()).unwrap().flatten() {
        if backup.file_name().to_str() != Some(&old.identifier) {
            fs::remove_dir_all(backup.path()).unwrap();
        }
    }
    let first = pgkeep.ok(&["info", SERVER, "newest"]).at("Response.WAL");
    let held = || -> BTreeSet<String> { pgkeep.archived().into_iter().collect() };
    let before = held();
    let expire =
        |words: &[&str]| pgkeep.ok(&[&["--format", "json", "expire", SERVER], words].concat());
    let planned = expire(&["--dry-run"]);
    assert_eq!(held(), before);
    let gone = listed(&planned, "WAL");
    assert!(gone.len() >= 3, "{gone:?}");
    let maps = listed(&planned, "BlockMaps");
    assert!(maps.len() >= 3, "{maps:?}");
    let done = expire(&[]);
    assert_eq!(listed(&done, "WAL"), gone);
    assert_eq!(listed(&done, "BlockMaps"), maps);
    let after = held();
    assert!(after.contains(&first), "the backup's first segment is gone");
    for name in before.difference(&after) {
        assert!(name[8..24] < first[8..24], "{name} is gone");
    }
    let earlier = after
        .iter()
        .filter(|name| name.len() >= 24 && name[8..24] < first[8..24]);
    assert_eq!(earlier.count(), 0);
    assert!(after.contains(&last));
    pgkeep.ok(&["wal", "list", SERVER]);
    // What changed since is known still.
    cluster.sql("update filling set body = 'y' where ctid = '(0,1)'");
    pgkeep.backup_on(&old.identifier);
    pgkeep.ok(&["verify", SERVER, "newest"]);
}

#[test]
fn an_expiry_that_is_killed_leaves_whole_chains() {
    let cluster = cluster();
    let pgkeep = Pgkeep::of(&cluster).with("retention", "3");
    history(&pgkeep);
    drop(cluster);
    let saved = pgkeep.ground().path().join("saved");
    let put_back = || {
        let _ = fs::remove_dir_all(pgkeep.backups());
        checks::shell(&format!(
            "cp -al {} {}",
            checks::quoted(&saved),
            checks::quoted(&pgkeep.backups())
        ));
    };
    checks::shell(&format!(
        "cp -al {} {}",
        checks::quoted(&pgkeep.backups()),
        checks::quoted(&saved)
    ));
    let begin = Instant::now();
    pgkeep.ok(&["expire", SERVER]);
    let mut whole = begin.elapsed();
    let stay = backups(&pgkeep);
    let rounds = rounds(8);
    let mut cut_short = 0;
    for round in 0..rounds {
        put_back();
        let running = pgkeep.spawn(&["expire", SERVER]);
        std::thread::sleep(whole * round / rounds + Duration::from_millis(u64::from(round % 3)));
        running.signal(Signal::KILL);
        match running.wait().status.code() {
            None => cut_short += 1,
            // It takes less than when it was measured.
            Some(_) => whole = whole * 2 / 3,
        }
        assert_sound(&pgkeep);
        pgkeep.ok(&["expire", SERVER]);
        assert_eq!(backups(&pgkeep), stay, "round {round}");
    }
    assert!(cut_short > rounds / 4, "only {cut_short} were cut short");
}
