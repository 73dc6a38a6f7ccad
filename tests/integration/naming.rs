//! The words and digits that name a backup.

use std::fs;

use crate::expiry::{again, name};
use crate::support::pgkeep::SERVER;
use crate::support::{Cluster, Pgkeep};

#[test]
fn a_backup_is_named_by_identifier_prefix_or_word() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let first = pgkeep.backup().identifier;
    // Even within one second each has a name of its own.
    let second = pgkeep.backup().identifier;
    assert!(first < second, "{first}, {second}");
    assert!(
        first.len() == 14 && first.bytes().all(|byte| byte.is_ascii_digit()),
        "{first}"
    );

    let named = |word: &str| pgkeep.ok(&["info", SERVER, word]).at("Response.Backup");
    assert_eq!(named(&first), first);
    assert_eq!(named("newest"), second);
    assert_eq!(named("latest"), second);
    assert_eq!(named("oldest"), first);
    let common = first
        .bytes()
        .zip(second.bytes())
        .take_while(|(a, b)| a == b)
        .count();
    assert_eq!(named(&first[..=common]), first);

    let error = pgkeep.run(&["info", SERVER, &first[..common]]).failed(1);
    assert!(error.contains(&first) && error.contains(&second), "{error}");
    let error = pgkeep.run(&["info", SERVER, "1999"]).failed(1);
    assert!(error.contains("1999"), "{error}");
    for word in ["../..", "new", "", "2024x", "123456789012345"] {
        assert_eq!(
            pgkeep.run(&["info", SERVER, word]).status.code(),
            Some(2),
            "{word:?}"
        );
    }
    for command in ["info", "verify"] {
        pgkeep.ok(&[command, SERVER, "oldest"]);
    }

    assert_eq!(
        pgkeep
            .ok(&["list-backup", SERVER, "--sort", "asc"])
            .backups(),
        [&*first, &second]
    );
    assert_eq!(
        pgkeep
            .ok(&["list-backup", SERVER, "--sort", "desc"])
            .backups(),
        [&*second, &first]
    );
    assert_eq!(
        pgkeep
            .run(&["list-backup", SERVER, "--sort", "size"])
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn a_server_without_backups_has_an_empty_list_and_no_newest() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    assert!(pgkeep.ok(&["list-backup", SERVER]).backups().is_empty());
    assert!(
        !pgkeep.base().join(SERVER).exists(),
        "a reading command made a folder"
    );
    let target = pgkeep.ground().folder("target");
    for arguments in [
        &["info", SERVER, "newest"][..],
        &["verify", SERVER, "oldest"],
        &["restore", SERVER, "newest", target.to_str().unwrap()],
    ] {
        let error = pgkeep.run(arguments).failed(1);
        assert!(error.contains("no") && error.contains("backup"), "{error}");
    }
}

#[test]
fn the_newest_is_the_one_taken_last_whatever_the_clock_said() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let first = pgkeep.backup();
    // It was made when the clock was three days ahead.
    let ahead = name(-3);
    again(&pgkeep, &first, &ahead, None);
    fs::remove_dir_all(&first.folder).unwrap();
    let mut taken = vec![ahead.clone()];
    for _ in 0..2 {
        let run = pgkeep.run(&["backup", SERVER]);
        let identifier = run.succeeded().at("Response.Backup");
        assert!(run.stderr.contains(taken.last().unwrap()), "{run:?}");
        let newest = pgkeep.ok(&["info", SERVER, "newest"]);
        assert_eq!(newest.at("Response.Backup"), identifier);
        taken.push(identifier);
    }
    assert_eq!(pgkeep.ok(&["list-backup", SERVER]).backups(), taken);
    let error = pgkeep.run(&["status", SERVER]).failed(3);
    assert!(error.contains(&ahead), "{error}");
    // The clock is right again.
    for identifier in &taken[..2] {
        pgkeep.ok(&["delete", SERVER, identifier]);
    }
    pgkeep.ok(&["delete", SERVER, &taken[2], "--force"]);
    let run = pgkeep.run(&["backup", SERVER]);
    assert!(run.succeeded().at("Response.Backup") < ahead);
    assert!(run.stderr.is_empty(), "{run:?}");
    pgkeep.ok(&["status", SERVER]);
}
