//! The reports: the tutorial's keys, in YAML and in JSON.

use serde_json::Value;

use crate::support::pgkeep::{SERVER, binary};
use crate::support::report::Report;
use crate::support::{Cluster, Pgkeep};

/// Keys that the tutorial shows for each command's response.
const BACKUP: &[&str] = &[
    "Backup",
    "BackupSize",
    "Compression",
    "Encryption",
    "MajorVersion",
    "MinorVersion",
    "RestoreSize",
    "Server",
    "ServerVersion",
];
const LISTED: &[&str] = &[
    "Backup",
    "BackupSize",
    "Comments",
    "Compression",
    "Encryption",
    "Incremental",
    "Keep",
    "RestoreSize",
    "Server",
    "Valid",
    "WAL",
];
const INFO: &[&str] = &[
    "Backup",
    "BackupSize",
    "CheckpointHiLSN",
    "CheckpointLoLSN",
    "Comments",
    "Compression",
    "Elapsed",
    "Encryption",
    "EndHiLSN",
    "EndLoLSN",
    "EndTimeline",
    "Incremental",
    "Keep",
    "MajorVersion",
    "MinorVersion",
    "NumberOfTablespaces",
    "RestoreSize",
    "Server",
    "ServerVersion",
    "StartHiLSN",
    "StartLoLSN",
    "StartTimeline",
    "Tablespaces",
    "Valid",
    "WAL",
    "StartLSN",
];

fn assert_keys(report: &Report, at: &str, keys: &[&str]) {
    for key in keys {
        assert!(
            report.find(&format!("{at}.{key}")).is_some(),
            "no {at}.{key} in {}",
            report.0
        );
    }
}

fn assert_frame(report: &Report, command: &str, format: &str) {
    assert_eq!(report.at("Header.Command"), command);
    assert_eq!(report.at("Header.Output"), format);
    assert_eq!(report.at("Header.ClientVersion"), env!("CARGO_PKG_VERSION"));
    let timestamp = report.at("Header.Timestamp");
    assert!(
        timestamp.len() == 14 && timestamp.bytes().all(|byte| byte.is_ascii_digit()),
        "{timestamp}"
    );
    let time = report.at("Outcome.Time");
    let shape: String = time
        .chars()
        .map(|c| if c.is_ascii_digit() { '9' } else { c })
        .collect();
    assert_eq!(shape, "99:99:99.999", "{time}");
    assert_eq!(report.at("Request.Server"), SERVER);
}

#[test]
fn every_report_has_the_tutorials_keys_in_both_formats() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    for format in ["text", "json"] {
        let run = |arguments: &[&str]| {
            let mut all = vec!["--format", format];
            all.extend(arguments);
            let run = pgkeep.run(&all);
            assert_eq!(
                run.stdout.trim_start().starts_with('{'),
                format == "json",
                "{run:?}"
            );
            let report = run.succeeded();
            assert_frame(&report, arguments[0], format);
            assert!(
                report.find("Outcome.Error").is_none(),
                "an error in a success: {run:?}"
            );
            report
        };
        let backup = run(&["backup", SERVER]);
        assert_keys(&backup, "Response", BACKUP);
        assert_eq!(backup.at("Response.MajorVersion"), "17");
        let listed = run(&["list-backup", SERVER]);
        assert_keys(
            &listed,
            "Response",
            &[
                "Backups",
                "MajorVersion",
                "MinorVersion",
                "Server",
                "ServerVersion",
            ],
        );
        assert_keys(&listed, "Response.Backups.0", LISTED);
        let info = run(&["info", SERVER, "newest"]);
        assert_keys(&info, "Response", INFO);
        assert_eq!(info.at("Request.Backup"), "newest");
        assert_eq!(info.at("Response.Incremental"), "false");
        let verified = run(&["verify", SERVER, "newest"]);
        assert_eq!(verified.at("Response.Backup"), info.at("Response.Backup"));
        let target = pgkeep.ground().folder(format);
        let restored = run(&["restore", SERVER, "newest", target.to_str().unwrap()]);
        assert!(restored.at("Response").contains(target.to_str().unwrap()));
        assert_eq!(restored.at("Request.Directory"), target.to_str().unwrap());
        run(&["check", SERVER]);
        if format == "json" {
            assert!(
                run(&["permissions", SERVER])
                    .at("Response.SQL")
                    .contains("GRANT")
            );
        }
    }
}

#[test]
fn json_is_for_machines_and_text_for_people() {
    let cluster = Cluster::new(16);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let json = pgkeep.ok(&["--format", "json", "info", SERVER, "newest"]);
    for key in [
        "BackupSize",
        "RestoreSize",
        "MajorVersion",
        "NumberOfTablespaces",
        "EndTimeline",
    ] {
        let value = json.find(&format!("Response.{key}")).unwrap();
        assert!(value.is_u64(), "{key}: {value}");
    }
    assert!(json.number("Response.RestoreSize") > 20_000_000);
    assert!(json.number("Response.BackupSize") < json.number("Response.RestoreSize"));
    let text = pgkeep.run(&["info", SERVER, "newest"]);
    let size = text.succeeded().at("Response.RestoreSize");
    assert!(size.ends_with("MB"), "{size}");

    let on_disk: u64 = crate::support::checks::files(&pgkeep.backups())
        .iter()
        .map(|file| file.metadata().unwrap().len())
        .sum();
    let claimed = json.number("Response.BackupSize");
    assert!(
        claimed.abs_diff(on_disk) < on_disk / 20,
        "{claimed} claimed, {on_disk} on disk"
    );
}

#[test]
fn stdout_carries_the_report_and_nothing_else() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    for arguments in [
        &[
            "--progress",
            "always",
            "-v",
            "--format",
            "json",
            "backup",
            SERVER,
        ][..],
        &["-vv", "--format", "json", "list-backup", SERVER],
        &["-q", "--format", "json", "verify", SERVER, "newest"],
    ] {
        let run = pgkeep.run(arguments);
        run.succeeded();
        let parsed: Result<Value, _> = serde_json::from_str(&run.stdout);
        assert!(parsed.is_ok(), "{run:?}");
    }
}

/// cron mails whatever is printed.
#[test]
fn with_q_nothing_is_printed_where_all_is_well() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    for arguments in [
        &["-q", "backup", SERVER][..],
        &["-q", "verify", SERVER, "newest"],
        &["-q", "list-backup", SERVER],
    ] {
        let quiet = pgkeep.run(arguments);
        assert_eq!(quiet.status.code(), Some(0), "{quiet:?}");
        assert_eq!((&*quiet.stdout, &*quiet.stderr), ("", ""), "{quiet:?}");
    }
    let asked_for = pgkeep.run(&["-q", "-F", "json", "info", SERVER, "newest"]);
    asked_for.succeeded();
    let failed = pgkeep.run(&["-q", "info", SERVER, "1999"]);
    failed.failed(1);
    let script = pgkeep.run(&["-q", "permissions", SERVER]);
    assert!(script.stdout.contains("GRANT"), "{script:?}");
}

#[test]
fn a_failure_is_a_report_too() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    for format in ["text", "json"] {
        let run = pgkeep.run(&["--format", format, "info", SERVER, "newest"]);
        let error = run.failed(1);
        assert_frame(&run.report(), "info", format);
        assert!(run.stderr.contains(&error), "{run:?}");
    }
}

#[test]
fn conf_shows_what_is_in_force_and_never_a_secret() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster).with("compression", "lz4");
    let listed = pgkeep.run(&["conf", "ls"]);
    let report = listed.report();
    assert_eq!(listed.status.code(), Some(0), "{listed:?}");
    let response = report.at("Response");
    assert!(response.contains("lz4"), "{response}");
    assert!(response.contains("pgkeep.conf"), "no origin: {response}");
    let got = pgkeep.run(&["--format", "json", "conf", "get", "compression"]);
    assert!(got.succeeded().at("Response").contains("lz4"));
    let unknown = pgkeep.run(&["conf", "get", "nonsense"]);
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    let environment = [
        ("PGPASSWORD", "sesame"),
        ("PGKEEP_CONFIG", pgkeep.configuration().to_str().unwrap()),
    ]
    .map(|(name, value)| (name, value.to_owned()));
    let environment: Vec<(&str, &str)> = environment
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let run = pgkeep.spawn_bare(&environment, &["conf", "ls"]).wait();
    run.succeeded();
    assert!(
        !run.stdout.contains("sesame") && !run.stderr.contains("sesame"),
        "{run:?}"
    );
}

#[test]
fn wrong_usage_exits_with_2() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    for arguments in [
        &["backup"][..],
        &["nonsense"],
        &["--format", "xml", "list-backup", SERVER],
        &["restore", SERVER, "newest"],
        &["backup", SERVER, "--checkpoint", "never"],
        &["-j", "0", "backup", SERVER],
        &[],
    ] {
        let run = pgkeep.run(arguments);
        assert_eq!(run.status.code(), Some(2), "{run:?}");
    }
    let missing = pgkeep.run(&["restore", SERVER, "newest"]).failed(2);
    assert!(
        missing.contains("not provided: <[POSITION] DIRECTORY>"),
        "{missing}"
    );
    let mistyped = pgkeep.run(&["backup", SERVER, "--or-ful"]).report();
    let hint = mistyped.at("Outcome.Hint");
    assert_eq!(hint, "a similar argument exists: '--or-full'");
    assert_eq!(pgkeep.run(&["--help"]).status.code(), Some(0));
}

/// A release build also names the commit it was made of.
#[test]
fn the_version_names_the_commit_and_the_target() {
    let cluster = Cluster::new(17);
    let shown = Pgkeep::of(&cluster).run(&["--version"]);
    assert_eq!(shown.status.code(), Some(0), "{shown:?}");
    let version = concat!("pgkeep ", env!("CARGO_PKG_VERSION"), " (");
    let build = shown.stdout.trim_end().strip_prefix(version);
    let build = build.and_then(|build| build.strip_suffix("-linux-gnu)"));
    let build = build.unwrap_or_else(|| panic!("{shown:?}"));
    let is_release = binary()
        .components()
        .any(|part| part.as_os_str() == "release");
    if is_release {
        let mut git = std::process::Command::new("git");
        git.args(["rev-parse", "--short=10", "HEAD"]);
        let output = git
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        let commit = String::from_utf8(output.stdout).unwrap();
        assert!(
            build.starts_with(commit.trim_end()),
            "{build} is not of {commit}"
        );
    }
}
