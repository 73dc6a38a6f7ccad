//! What a verification found is remembered; and the drill, which starts the rebuilt cluster.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::checks;
use crate::support::pgkeep::{Backup, SERVER, binary};
use crate::support::{Cluster, Pgkeep, account, installed, wait_until};

/// Changes one byte in the middle of a backup's largest stored relation; changes it back when called again.
fn flip_a_byte(backup: &Backup) -> PathBuf {
    let files = checks::files(&backup.folder.join("data/base"));
    let length = |file: &PathBuf| fs::metadata(file).unwrap().len();
    let file = files.into_iter().max_by_key(length).unwrap();
    let middle = length(&file) / 2;
    let opened = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&file)
        .unwrap();
    let mut byte = [0];
    opened.read_exact_at(&mut byte, middle).unwrap();
    byte[0] ^= 1;
    opened.write_all_at(&byte, middle).unwrap();
    file
}

/// The backups that list-backup calls valid.
fn valid(pgkeep: &Pgkeep) -> Vec<String> {
    let report = pgkeep.ok(&["--format", "json", "list-backup", SERVER]);
    let backups = report.find("Response.Backups").unwrap().as_array().unwrap();
    let valid = backups.iter().filter(|backup| backup["Valid"] == "yes");
    valid
        .map(|backup| backup["Backup"].as_str().unwrap().to_owned())
        .collect()
}

/// Pretends that a backup was verified, or made, long ago.
fn forget_verification(backup: &Backup) {
    let path = backup.folder.join("backup.info");
    let text = fs::read_to_string(&path).unwrap();
    let content = text.rsplit_once("Checksum: ").unwrap().0;
    let old = "Verification:\n  Time: 2001-01-01T00:00:00Z\n  Verdict: sound\n";
    let content = match content.split_once("Verification:\n") {
        Some((before, after)) => {
            let after: String = after
                .lines()
                .filter(|line| !line.starts_with("  "))
                .map(|line| format!("{line}\n"))
                .collect();
            format!("{before}{old}{after}")
        }
        None => format!("{content}{old}"),
    };
    fs::write(&path, &content).unwrap();
    let digest = account::run(Command::new("sha512sum").arg(&path));
    fs::write(&path, format!("{content}Checksum: {}\n", &digest[..128])).unwrap();
}

#[test]
fn a_backup_found_damaged_is_not_valid_until_it_is_found_sound() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let older = pgkeep.backup();
    let newer = pgkeep.backup();
    let report = pgkeep.ok(&["verify", SERVER, "newest"]);
    assert_eq!(report.at("Response.Remembered"), "true");
    let info = |name: &str| pgkeep.ok(&["info", SERVER, name]);
    assert_eq!(info("newest").at("Response.Verification.Verdict"), "sound");
    assert!(info("oldest").find("Response.Verification").is_none());

    let damaged = flip_a_byte(&newer);
    pgkeep.run(&["verify", SERVER, "newest"]).failed(3);
    assert_eq!(valid(&pgkeep), [older.identifier.as_str()]);
    assert_eq!(info("newest").at("Response.Backup"), older.identifier);
    let report = info(&newer.identifier);
    assert_eq!(report.at("Response.Valid"), "no");
    assert_eq!(report.at("Response.Verification.Verdict"), "damaged");
    assert_eq!(report.at("Response.Verification.NumberOfFailed"), "1");
    let name = damaged.file_name().unwrap().to_str().unwrap();
    assert!(report.at("Response.Verification.First").contains(name));
    assert!(report.at("Response.Error").contains("damaged"));
    // No backup is built on it.
    let refused = pgkeep.run(&["backup", SERVER, &newer.identifier]);
    assert!(!refused.status.success(), "{refused:?}");

    flip_a_byte(&newer);
    pgkeep.ok(&["verify", SERVER, &newer.identifier]);
    assert_eq!(valid(&pgkeep), [&*older.identifier, &*newer.identifier]);
    // What is left by whoever was killed while noting something is no damage.
    fs::write(newer.folder.join("backup.info.tmp"), "half").unwrap();
    pgkeep.ok(&["verify", SERVER, "newest"]);
}

#[test]
fn of_a_chain_the_one_is_marked_that_is_damaged() {
    let cluster = Cluster::new(17);
    cluster.set("summarize_wal = on");
    let mut cluster = cluster;
    cluster.stop(crate::support::cluster::Postmaster::Fast);
    cluster.start();
    let pgkeep = Pgkeep::of(&cluster);
    let full = pgkeep.backup();
    let child = pgkeep.backup_on("newest");
    let grandchild = pgkeep.backup_on("newest");
    let verdict = |backup: &Backup| {
        let report = pgkeep.ok(&["info", SERVER, &backup.identifier]);
        let verdict = report.find("Response.Verification.Verdict");
        verdict.map(|verdict| verdict.as_str().unwrap().to_owned())
    };
    flip_a_byte(&full);
    let error = pgkeep.run(&["verify", SERVER, "newest"]).failed(3);
    assert!(error.contains(&full.identifier), "{error}");
    assert_eq!(verdict(&full).as_deref(), Some("damaged"));
    assert_eq!(verdict(&child).as_deref(), Some("sound"));
    assert_eq!(verdict(&grandchild).as_deref(), Some("sound"));
    assert!(valid(&pgkeep).is_empty());
    flip_a_byte(&full);
    pgkeep.ok(&["verify", SERVER, &grandchild.identifier]);
    assert_eq!(valid(&pgkeep).len(), 3);
}

#[test]
fn a_verdict_is_remembered_while_a_backup_is_made() {
    let cluster = Cluster::new(15);
    let pgkeep = Pgkeep::of(&cluster);
    let backup = pgkeep.backup();
    let pgkeep = pgkeep.with("max_rate", "1MB");
    let mut running = pgkeep.spawn(&["backup", SERVER]);
    crate::support::pgkeep::wait_until_copying(&mut running, &pgkeep);
    flip_a_byte(&backup);
    pgkeep.run(&["verify", SERVER, "newest"]).failed(3);
    assert!(running.is_running(), "the backup ended too early");
    assert!(valid(&pgkeep).is_empty());
    running.signal(Signal::INT);
    running.wait().failed(1);
}

#[test]
fn what_is_due_is_verified_once() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let backups = [pgkeep.backup(), pgkeep.backup(), pgkeep.backup()];
    drop(cluster);
    for line in [&["verify", "--due"][..], &["verify", "--due", SERVER]] {
        let error = pgkeep.run(line).failed(2);
        assert!(error.contains("verification is not configured"), "{error}");
    }
    let pgkeep = pgkeep.with("verification", "1D");
    let verified = |status: i32| {
        let run = pgkeep.run(&["--format", "json", "verify", "--due"]);
        assert_eq!(run.status.code(), Some(status), "{run:?}");
        let report = run.report();
        assert_eq!(report.at("Outcome.Status"), (status == 0).to_string());
        let backups = report.find("Response.Backups").unwrap().as_array().unwrap();
        backups
            .iter()
            .map(|one| {
                (
                    one["Backup"].as_str().unwrap().to_owned(),
                    one["Valid"] == "yes",
                )
            })
            .collect::<Vec<_>>()
    };
    assert!(verified(0).is_empty(), "backups of today are due");
    for backup in &backups {
        forget_verification(backup);
    }
    flip_a_byte(&backups[1]);
    let named = |number: usize, sound| (backups[number].identifier.clone(), sound);
    assert_eq!(
        verified(3),
        [named(2, true), named(1, false), named(0, true)]
    );
    assert!(verified(0).is_empty(), "what was verified is due still");
    assert_eq!(valid(&pgkeep).len(), 2);
    for backup in &backups[1..] {
        forget_verification(backup);
    }
    flip_a_byte(&backups[1]);
    pgkeep.ok(&["verify", "--due", SERVER]);
    assert_eq!(valid(&pgkeep).len(), 3);
    pgkeep.run(&["verify", "--due", SERVER, "newest"]).failed(2);
}

/// Nothing of a drill is left: no folder, no socket, no server.
fn assert_nothing_is_left(target: &Path) {
    assert_eq!(fs::read_dir(target).unwrap().count(), 0);
    wait_until("no server works there", || {
        let servers = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
            fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(target))
        });
        servers.count() == 0
    });
}

fn drill(pgkeep: &Pgkeep, target: &Path, arguments: &[&str]) -> crate::support::pgkeep::Run {
    let directory = target.to_str().unwrap();
    let line = [
        &["verify", SERVER, "newest", directory, "--start"],
        arguments,
    ];
    pgkeep.run(&line.concat())
}

#[test]
fn a_rebuilt_cluster_is_started_and_read() {
    for major in crate::support::versions(&[15, 17]) {
        let mut cluster = Cluster::new(major);
        // Settings of the source that would keep the cluster from starting elsewhere, or let it reach out.
        cluster.set("max_prepared_transactions = 10");
        cluster.stop(crate::support::cluster::Postmaster::Fast);
        cluster.start();
        let folder = cluster.tablespace("aside");
        cluster.sql("create table elsewhere tablespace aside as select generate_series(1, 1000) i");
        cluster.sql("create tablespace inplace location ''");
        cluster.sql("create table near tablespace inplace as select generate_series(1, 1000) i");
        for setting in [
            "alter system set shared_preload_libraries = 'no_such_library'",
            "alter system set huge_pages = 'on'",
            "alter database app set session_preload_libraries = 'no_such_library'",
            "create materialized view unread as select 1 with no data",
            "begin; insert into quiet (id) values (-7); prepare transaction 'open'",
            "alter role postgres set statement_timeout = 1",
        ] {
            cluster.sql(setting);
        }
        let pgkeep = Pgkeep::of(&cluster);
        pgkeep.backup();
        drop(cluster);
        drop(folder);
        let target = pgkeep.ground().folder("drill");
        let report = drill(&pgkeep, &target, &[]).succeeded();
        assert_eq!(report.at("Response.Drill.Outcome"), "passed");
        assert_eq!(report.at("Response.Drill.Amcheck"), "run");
        // postgres, app, template1, template0
        assert_eq!(report.at("Response.Drill.NumberOfDatabases"), "4");
        assert!(report.number("Response.Drill.NumberOfRelations") > 4 * 60);
        let version = report.at("Response.Drill.PostgreSQL");
        assert!(version.starts_with(&format!("{major}.")), "{version}");
        assert_nothing_is_left(&target);
        let info = pgkeep.ok(&["info", SERVER, "newest"]);
        assert_eq!(info.at("Response.Drill.Outcome"), "passed");
        assert_eq!(info.at("Response.Verification.Verdict"), "sound");
    }
}

#[test]
fn a_drill_finds_what_checksums_cannot() {
    // The source itself is damaged, and has no checksums.
    let options = crate::support::Options {
        checksums: false,
        ..Default::default()
    };
    let mut cluster = Cluster::with(17, &options);
    let table = cluster.data().join(cluster.file_of("pgbench_tellers"));
    cluster.stop(crate::support::cluster::Postmaster::Fast);
    let opened = fs::OpenOptions::new().write(true).open(&table).unwrap();
    opened.write_all_at(&[0xFF; 24], 0).unwrap();
    cluster.start();
    let pgkeep = Pgkeep::of(&cluster);
    let backup = pgkeep.backup();
    let target = pgkeep.ground().folder("drill");
    let error = drill(&pgkeep, &target, &[]).failed(3);
    assert!(error.contains("pgbench_tellers"), "{error}");
    assert_nothing_is_left(&target);
    // All that was stored is as it was read: the backup stays what it was.
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    assert_eq!(info.at("Response.Backup"), backup.identifier);
    assert_eq!(info.at("Response.Drill.Outcome"), "failed");
    assert_eq!(info.at("Response.Verification.Verdict"), "sound");
}

#[test]
fn a_drill_needs_the_right_server_and_leaves_nothing_when_interrupted() {
    let cluster = Cluster::new(17);
    cluster.sql("create table slow as select repeat('x', 1000) from generate_series(1, 60000)");
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let target = pgkeep.ground().folder("drill");
    let other = installed::binaries(16);
    let error = drill(&pgkeep, &target, &["--bin-dir", other.to_str().unwrap()]).failed(2);
    assert!(error.contains("PostgreSQL 17"), "{error}");
    drill(&pgkeep, &target, &["--bin-dir", "/nonexistent"]).failed(2);
    pgkeep
        .run(&["verify", SERVER, "newest", "--start"])
        .failed(2);
    let own = installed::binaries(17);
    drill(&pgkeep, &target, &["--bin-dir", own.to_str().unwrap()]).succeeded();

    for pause in [0, 60, 400] {
        let directory = target.to_str().unwrap();
        // On a busy machine a drill may be over before it is seen or interrupted.
        let (run, socket) = (0..10)
            .find_map(|_| {
                let mut running = pgkeep.spawn(&["verify", SERVER, "newest", directory, "--start"]);
                let socket = format!("pgkeep-{}-0", running.id());
                let socket = Path::new("/tmp").join(socket);
                wait_until("the server is being started", || {
                    socket.exists() || !running.is_running()
                });
                std::thread::sleep(Duration::from_millis(pause));
                running.signal(Signal::INT);
                let run = running.wait();
                (run.status.code() != Some(0)).then_some((run, socket))
            })
            .expect("no drill was interrupted");
        let error = run.failed(1);
        assert!(error.contains("interrupt"), "{error}");
        assert!(!socket.exists());
        assert_nothing_is_left(&target);
    }
}

#[test]
fn root_runs_a_drill_as_somebody_else() {
    if !account::is_root() {
        return;
    }
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let theirs = pgkeep.ground().folder("drill");
    let ours = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .unwrap();
    for target in [theirs.as_path(), ours.path()] {
        let mut command = Command::new(binary());
        command.arg("-c").arg(pgkeep.configuration());
        command.args(["verify", SERVER, "newest"]).arg(target);
        account::run(command.arg("--start"));
        assert_nothing_is_left(target);
    }
}
