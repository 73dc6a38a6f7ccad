//! The units for systemd, which judges them itself where it is installed.

use std::fs;
use std::path::Path;

use crate::support::pgkeep::{SERVER, binary};
use crate::support::{Cluster, Pgkeep, account};

#[test]
fn the_units_are_what_systemd_takes() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster).with("verification", "1W");
    let folder = pgkeep.ground().folder("units");
    let report = pgkeep.ok(&["units", SERVER, folder.to_str().unwrap()]);
    let written = report.find("Response.Units").unwrap().as_array().unwrap();
    assert_eq!(written.len(), 10, "{written:?}");
    let service = fs::read_to_string(folder.join("pgkeep-primary-full.service")).unwrap();
    let line = format!(
        "ExecStart={} -v -c {} backup primary\n",
        binary().display(),
        pgkeep.configuration().display()
    );
    assert!(service.contains(&line), "{service}");
    let folders = format!("ReadWritePaths={}\n", pgkeep.base().display());
    assert!(service.contains(&folders), "{service}");
    // What is there must be seen: the cluster's socket, or the program.
    let is_private = ![pgkeep.base(), binary()]
        .iter()
        .any(|path| path.starts_with("/tmp"));
    let private = format!("PrivateTmp={}\n", if is_private { "yes" } else { "no" });
    assert!(service.contains(&private), "{service}");

    if !Path::new("/usr/bin/systemd-analyze").exists() {
        eprintln!("SKIPPED: systemd-analyze is not installed here");
        return;
    }
    let mut analyze = account::command("systemd-analyze");
    analyze.args(["verify", "--man=no"]);
    for unit in written {
        analyze.arg(unit.as_str().unwrap());
    }
    let output = account::output(&mut analyze);
    let complaints = String::from_utf8_lossy(&output.stderr);
    let ours = complaints.lines().filter(|line| line.contains("pgkeep-"));
    assert_eq!(ours.collect::<Vec<_>>(), [""; 0], "{complaints}");
    assert!(output.status.success(), "{complaints}");
}

#[test]
fn units_are_printed_for_reading_first() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let shown = pgkeep.run(&["units", SERVER]);
    assert_eq!(shown.status.code(), Some(0), "{shown:?}");
    for line in [
        "# pgkeep-primary-incremental.timer\n",
        "OnCalendar=Mon..Sat 01:00\n",
        "Persistent=true\n",
    ] {
        assert!(shown.stdout.contains(line), "{line} in {shown:?}");
    }
}

#[test]
fn files_of_somebody_else_are_not_replaced() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let folder = pgkeep.ground().folder("units");
    let units = ["units", SERVER, folder.to_str().unwrap()];
    pgkeep.ok(&units);
    pgkeep.ok(&units);
    let own = folder.join("pgkeep-primary-full.timer");
    fs::write(&own, "[Timer]\nOnCalendar=hourly\n").unwrap();
    let error = pgkeep.run(&units).failed(1);
    assert!(error.contains("pgkeep-primary-full.timer"), "{error}");
    assert_eq!(
        fs::read_to_string(&own).unwrap(),
        "[Timer]\nOnCalendar=hourly\n"
    );
}

/// systemd passes no environment on.
#[test]
fn what_comes_from_the_environment_is_named() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let text = format!(
        "[pgkeep]\nbase_dir = {}\n[primary]\nhost = {}\n",
        pgkeep.base().display(),
        cluster.socket().display()
    );
    pgkeep.configure(&text);
    let configuration = pgkeep.configuration();
    let with_file = [
        ("PGKEEP_CONFIG", configuration.to_str().unwrap()),
        ("PGUSER", "postgres"),
    ];
    let shown = pgkeep.spawn_bare(&with_file, &["units", SERVER]).wait();
    assert!(
        shown.stderr.contains("primary.user comes from $PGUSER"),
        "{shown:?}"
    );
    let without = pgkeep
        .spawn_bare(&[("PGHOST", "/tmp")], &["units", "mine"])
        .wait();
    let error = without.failed(2);
    assert!(error.contains("configuration file"), "{error}");
}
