//! The log: on stderr, in a file, in the journal of systemd.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::pgkeep::{SERVER, binary};
use crate::support::{Cluster, Pgkeep, account};

#[test]
fn each_step_is_told_with_amount_and_time() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let backup = pgkeep.run(&["-v", "backup", SERVER]);
    let report = backup.succeeded();
    let copied = backup
        .stderr
        .lines()
        .find(|line| line.contains("copy files: "));
    let copied = copied.unwrap_or_else(|| panic!("{backup:?}"));
    assert!(copied.starts_with("pgkeep: info: copy files: "), "{copied}");
    assert!(
        copied.contains("MB in ") && copied.ends_with("/s"),
        "{copied}"
    );
    assert!(
        backup.stderr.contains("pgkeep: info: finish: "),
        "{backup:?}"
    );
    let made = format!(
        "pgkeep: info: backup {} of primary: ",
        report.at("Response.Backup")
    );
    assert!(backup.stderr.contains(&made), "{backup:?}");
    let plain = pgkeep.run(&["backup", SERVER]);
    assert_eq!(plain.stderr, "", "{plain:?}");
}

#[test]
fn the_log_file_has_what_stderr_has_with_times() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let file = pgkeep.ground().path().join("pgkeep.log");
    let path = file.to_str().unwrap();
    pgkeep.ok(&["-v", "--log-file", path, "backup", SERVER]);
    pgkeep
        .run(&["--log-file", path, "info", SERVER, "1999"])
        .failed(1);
    let log = fs::read_to_string(&file).unwrap();
    let year = |line: &str| line.starts_with("20") && line.contains("Z [");
    assert!(log.lines().all(year), "{log}");
    assert!(log.contains("] info: copy files: "), "{log}");
    assert!(
        log.contains("] error: server primary has no backup 1999\n"),
        "{log}"
    );
    assert!(log.contains("] hint: "), "{log}");
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
}

#[test]
fn the_journal_gets_levels() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let stderr = pgkeep.ground().file("journal", "");
    let metadata = stderr.metadata().unwrap();
    let stream = format!("{}:{}", metadata.dev(), metadata.ino());
    let run = |stream: &str| {
        let mut command = account::command(binary());
        command
            .arg("-c")
            .arg(pgkeep.configuration())
            .args(["info", SERVER, "1999"]);
        command.env("JOURNAL_STREAM", stream);
        command.stderr(fs::File::create(&stderr).unwrap());
        assert_eq!(account::output(&mut command).status.code(), Some(1));
        fs::read_to_string(&stderr).unwrap()
    };
    let journal = run(&stream);
    assert!(
        journal.starts_with("<3>server primary has no backup 1999\n<3>hint: "),
        "{journal}"
    );
    // Of somebody whose stderr it was.
    let plain = run("8:1");
    assert!(plain.starts_with("pgkeep: error: "), "{plain}");
}

#[test]
fn a_log_that_cannot_be_opened_is_wrong_usage() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let error = pgkeep
        .run(&["--log-file", "/nonexistent/log", "check", SERVER])
        .failed(2);
    assert!(error.contains("/nonexistent/log"), "{error}");
}

/// Neither the log nor the progress decides over a backup.
#[test]
fn a_backup_succeeds_though_nobody_can_be_told() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let script = r#"exec "$@" 2>/dev/full"#;
    let line = [
        "-vv",
        "--progress",
        "always",
        "--log-file",
        "/dev/full",
        "backup",
        SERVER,
    ];
    pgkeep.spawn_in_shell(script, &line).wait().succeeded();
}
