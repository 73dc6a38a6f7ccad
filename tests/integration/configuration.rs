//! Mistakes in the configuration and in the repository: one sentence, the right
//! status, and nothing changed.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::checks;
use crate::support::pgkeep::SERVER;
use crate::support::{Cluster, Pgkeep};

#[test]
fn a_mistake_is_named_with_file_and_line() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let base = pgkeep.base().display().to_string();
    let host = cluster.socket().display().to_string();
    for (line, text) in [
        (
            3,
            format!("[pgkeep]\nbase_dir = {base}\ncompression = zpaq\n[primary]\nhost = {host}\n"),
        ),
        (
            3,
            format!(
                "[pgkeep]\nbase_dir = {base}\ncompression_level = high\n[primary]\nhost = {host}\n"
            ),
        ),
        (
            3,
            format!("[pgkeep]\nbase_dir = {base}\nworkers = many\n[primary]\nhost = {host}\n"),
        ),
        (
            3,
            format!("[pgkeep]\nbase_dir = {base}\nmax_rate = fast\n[primary]\nhost = {host}\n"),
        ),
        (
            3,
            format!("[pgkeep]\nbase_dir = {base}\nnonsense = 1\n[primary]\nhost = {host}\n"),
        ),
        (
            3,
            format!("[pgkeep]\nbase_dir = {base}\nencryption = rot13\n[primary]\nhost = {host}\n"),
        ),
        (
            3,
            format!("[pgkeep]\nbase_dir = {base}\n[primary]\nuser = postgres\n"),
        ),
        (
            5,
            format!("[pgkeep]\nbase_dir = {base}\n[primary]\nhost = {host}\nport = many\n"),
        ),
        (2, "[pgkeep]\nthis is no line\n".to_owned()),
    ] {
        pgkeep.configure(&text);
        let run = pgkeep.run(&["backup", SERVER]);
        assert_eq!(run.status.code(), Some(2), "line {line} of\n{text}{run:?}");
        let error = run.failed(2);
        assert!(
            error.contains(&format!("pgkeep.conf:{line}")),
            "line {line} of\n{text}{error}"
        );
        assert!(
            checks::tree(pgkeep.base()).is_empty(),
            "something was written for\n{text}"
        );
    }
}

#[test]
fn an_unknown_server_is_refused_with_the_known_ones() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    for command in ["backup", "list-backup", "check"] {
        let error = pgkeep.run(&[command, "replica"]).failed(2);
        assert!(error.contains("replica"), "{error}");
    }
    let run = pgkeep.run(&["backup", "primry"]);
    run.failed(2);
    assert!(
        format!("{}{}", run.stdout, run.stderr).contains(SERVER),
        "{run:?}"
    );
    for name in ["../x", "a/b", ""] {
        assert_eq!(
            pgkeep.run(&["backup", name]).status.code(),
            Some(2),
            "{name:?}"
        );
    }
    assert!(checks::tree(pgkeep.base()).is_empty());
}

#[test]
fn a_configuration_that_is_not_there_is_named() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    fs::remove_file(pgkeep.configuration()).unwrap();
    let error = pgkeep.run(&["backup", SERVER]).failed(2);
    assert!(error.contains("pgkeep.conf"), "{error}");
}

#[test]
fn without_any_configuration_a_first_backup_works() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let environment = [
        ("PGHOST", cluster.socket().to_str().unwrap()),
        ("PGUSER", "postgres"),
    ];
    let run = |arguments: &[&str]| pgkeep.spawn_bare(&environment, arguments).wait();
    run(&["backup", "mine"]).succeeded();
    let kept = pgkeep
        .ground()
        .path()
        .join(".local/share/pgkeep/mine/backup");
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 1);
    checks::assert_modes(&kept, 0o700, 0o600);
    assert_eq!(run(&["list-backup", "mine"]).succeeded().backups().len(), 1);
    let target = pgkeep.ground().folder("target");
    run(&["restore", "mine", "newest", target.to_str().unwrap()]).succeeded();
}

#[test]
fn the_tutorials_configuration_is_taken_as_it_is() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.configure(&format!(
        "[pgmoneta]\nhost = *\nmetrics = 5001\nbase_dir = {}\n\ncompression = zstd\n\nretention = 7\n\n\
         log_type = file\nlog_level = info\nlog_path = {}\n\nunix_socket_dir = /tmp/\n\n\
         [primary]\nhost = {}\nport = 5432\nuser = postgres\nwal_slot = repl\n",
        pgkeep.base().display(),
        pgkeep.ground().path().join("pgmoneta.log").display(),
        cluster.socket().display(),
    ));
    pgkeep.ok(&["backup", SERVER]);
    assert_eq!(pgkeep.ok(&["list-backup", SERVER]).backups().len(), 1);
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    fs::set_permissions(pgkeep.base(), fs::Permissions::from_mode(0o500)).unwrap();
    let error = pgkeep.run(&["backup", SERVER]).failed(1);
    assert!(error.contains(pgkeep.base().to_str().unwrap()), "{error}");
    cluster.assert_nothing_is_left();
    fs::set_permissions(pgkeep.base(), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_repository_of_a_newer_format_is_left_alone() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    fs::write(pgkeep.base().join("repository.version"), "2\n").unwrap();
    let state = checks::state(pgkeep.base());
    let target = pgkeep.ground().folder("target");
    for arguments in [
        &["backup", SERVER][..],
        &["list-backup", SERVER],
        &["info", SERVER, "newest"],
        &["verify", SERVER, "newest"],
        &["restore", SERVER, "newest", target.to_str().unwrap()],
    ] {
        let error = pgkeep.run(arguments).failed(1);
        assert!(error.contains("format 2"), "{error}");
    }
    assert_eq!(checks::state(pgkeep.base()), state);
}

#[test]
fn a_damaged_backup_info_makes_one_backup_invalid_and_no_other() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let sound = pgkeep.backup();
    let damaged = pgkeep.backup();
    for content in ["", "Format: 1\n", "\u{0}\u{1}", "not: [yaml"] {
        fs::write(damaged.folder.join("backup.info"), content).unwrap();
        let list = pgkeep.ok(&["list-backup", SERVER]);
        assert_eq!(list.backups(), [&*sound.identifier, &damaged.identifier]);
        let valid = [
            list.at("Response.Backups.0.Valid"),
            list.at("Response.Backups.1.Valid"),
        ];
        assert_ne!(valid[0], valid[1], "{valid:?}");
        assert_eq!(
            pgkeep.ok(&["info", SERVER, "newest"]).at("Response.Backup"),
            sound.identifier
        );
        let error = pgkeep.run(&["info", SERVER, &damaged.identifier]).failed(3);
        assert!(error.contains("backup.info"), "{error}");
        let target = pgkeep.ground().path().join("target");
        fs::create_dir_all(&target).unwrap();
        crate::support::account::give(&target);
        pgkeep
            .run(&[
                "restore",
                SERVER,
                &damaged.identifier,
                target.to_str().unwrap(),
            ])
            .failed(3);
        assert!(checks::tree(&target).is_empty());
    }
    pgkeep.backup();
}
