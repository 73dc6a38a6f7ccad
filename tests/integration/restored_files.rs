//! What lies in a restored data directory, and what does not.

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::checks::{self, Before};
use crate::support::cluster::Options;
use crate::support::pgkeep::SERVER;
use crate::support::{Cluster, Pgkeep, account};

#[test]
fn the_backup_label_and_the_manifest_say_the_same_as_info() {
    for major in crate::support::versions(&crate::support::VERSIONS) {
        let cluster = Cluster::new(major);
        let pgkeep = Pgkeep::of(&cluster);
        pgkeep.ok(&["backup", SERVER, "--label", "before the upgrade"]);
        let info = pgkeep.ok(&["--format", "json", "info", SERVER, "newest"]);
        let data = pgkeep.restore("newest");

        let label = fs::read_to_string(data.join("backup_label")).unwrap();
        let start = info.at("Response.StartLSN");
        assert!(
            label.starts_with(&format!("START WAL LOCATION: {start} (file ")),
            "{label}"
        );
        assert!(
            label.contains(&format!(
                "CHECKPOINT LOCATION: {}\n",
                info.at("Response.CheckpointLSN")
            )),
            "{label}"
        );
        assert!(label.contains("LABEL: before the upgrade\n"), "{label}");
        assert!(label.contains(&info.at("Response.WAL")), "{label}");

        let manifest = fs::read_to_string(data.join("backup_manifest")).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        let ranges = manifest["WAL-Ranges"].as_array().unwrap();
        assert_eq!(ranges.len(), 1);
        assert_eq!(ranges[0]["Timeline"], 1);
        assert_eq!(ranges[0]["Start-LSN"], start);
        assert_eq!(ranges[0]["End-LSN"], info.at("Response.EndLSN"));
        let version = if major >= 17 { 2 } else { 1 };
        assert_eq!(manifest["PostgreSQL-Backup-Manifest-Version"], version);
        let identifier = cluster.value("select system_identifier from pg_control_system()");
        if major >= 17 {
            assert_eq!(manifest["System-Identifier"].to_string(), identifier);
        }
    }
}

#[test]
fn files_that_belong_to_one_run_of_a_server_are_left_out() {
    let cluster = Cluster::new(16);
    for file in [
        "standby.signal.old",
        "base/pgsql_tmp_stray",
        "postgresql.auto.conf.tmp",
        "backup_label.old",
    ] {
        let path = cluster.data().join(file);
        fs::write(&path, "x").unwrap();
        account::give(&path);
    }
    let temporary = cluster.data().join("base/pgsql_tmp");
    fs::create_dir_all(&temporary).unwrap();
    fs::write(temporary.join("pgsql_tmp123.0"), "x").unwrap();
    checks::shell(&format!(
        "chown -R --reference={} {}",
        cluster.data().display(),
        temporary.display()
    ));
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let data = pgkeep.restore("newest");
    for gone in [
        "postmaster.pid",
        "postmaster.opts",
        "postgresql.auto.conf.tmp",
        "base/pgsql_tmp_stray",
    ] {
        assert!(!data.join(gone).exists(), "{gone}");
    }
    for empty in [
        "pg_dynshmem",
        "pg_notify",
        "pg_replslot",
        "pg_serial",
        "pg_snapshots",
        "pg_stat_tmp",
        "pg_subtrans",
    ] {
        assert!(checks::tree(&data.join(empty)).is_empty(), "{empty}");
    }
    assert!(data.join("pg_wal/archive_status").is_dir());
    for kept in [
        "PG_VERSION",
        "global/pg_control",
        "global/pg_filenode.map",
        "pg_xact/0000",
        "pg_hba.conf",
    ] {
        assert!(data.join(kept).is_file(), "{kept}");
    }
    let unlogged = cluster.file_of("scratch");
    assert!(
        !data.join(&unlogged).exists(),
        "an unlogged relation was copied"
    );
    assert!(data.join(format!("{unlogged}_init")).is_file());
}

#[test]
fn a_pg_wal_that_is_a_link_is_restored_as_a_folder() {
    let mut cluster = Cluster::stopped(17, &Options::default());
    let elsewhere = cluster.ground().path().join("wal");
    checks::shell(&format!(
        "mv {}/pg_wal {}",
        cluster.data().display(),
        elsewhere.display()
    ));
    symlink(&elsewhere, cluster.data().join("pg_wal")).unwrap();
    cluster.start();
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let data = pgkeep.restore("newest");
    assert!(fs::symlink_metadata(data.join("pg_wal")).unwrap().is_dir());
    checks::is_whole(17, &data, &before, 0);
}

#[test]
fn only_the_wal_that_the_backup_needs_is_kept() {
    let cluster = Cluster::with(17, &Options::of_default_segments());
    let pgkeep = Pgkeep::of(&cluster);
    for _ in 0..5 {
        cluster.sql(
            "insert into quiet select i from generate_series(10000, 10100) i; truncate scratch",
        );
        cluster.sql("delete from quiet where id >= 10000; select pg_switch_wal()");
    }
    pgkeep.backup();
    let data = pgkeep.restore("newest");
    let segments = checks::files(&data.join("pg_wal"));
    let segments: Vec<_> = segments
        .iter()
        .filter(|file| file.metadata().unwrap().len() == 16 << 20)
        .collect();
    assert!((1..=2).contains(&segments.len()), "{segments:?}");
}

#[test]
fn further_files_of_the_server_are_stored_with_the_backup() {
    let cluster = Cluster::new(17);
    let folder = cluster.ground().folder("etc");
    fs::create_dir(folder.join("conf.d")).unwrap();
    fs::write(folder.join("conf.d/one.conf"), "one = 1\n").unwrap();
    let single = cluster.ground().file("single.conf", "single = 1\n");
    checks::shell(&format!(
        "chown -R --reference={} {}",
        cluster.data().display(),
        folder.display()
    ));
    let pgkeep = Pgkeep::of(&cluster)
        .with("compression", "none")
        .with_server(
            "extra",
            &format!("{}, {}", folder.display(), single.display()),
        );
    let backup = pgkeep.backup();
    let stored = backup.folder.join("extra");
    let content = |path: &std::path::Path| {
        fs::read_to_string(stored.join(path.strip_prefix("/").unwrap())).unwrap()
    };
    assert_eq!(content(&folder.join("conf.d/one.conf")), "one = 1\n");
    assert_eq!(content(&single), "single = 1\n");
    checks::sha512sum(&backup.folder);
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let data = pgkeep.restore("newest");
    checks::pg_verifybackup(17, &data);

    // They lie beside the data directory, and another restore does not take them away.
    let beside = std::path::PathBuf::from(format!("{}-extra", data.display()));
    let restored = beside.join(single.strip_prefix("/").unwrap());
    assert_eq!(fs::read_to_string(&restored).unwrap(), "single = 1\n");
    fs::rename(&data, data.with_extension("moved")).unwrap();
    let target = data.parent().unwrap().to_str().unwrap();
    let error = pgkeep.run(&["restore", SERVER, "newest", target]).failed(1);
    assert!(error.contains("-extra is not empty"), "{error}");
    assert!(restored.exists(), "a refused restore removed further files");
    pgkeep.ok(&["restore", SERVER, "newest", target, "--force"]);
    assert!(restored.exists());

    let missing = pgkeep.with_server("extra", "/does/not/exist");
    let error = missing.run(&["backup", SERVER]).failed(5);
    assert!(error.contains("/does/not/exist"), "{error}");
}

#[test]
fn a_file_with_an_odd_name_survives() {
    let cluster = Cluster::new(17);
    for name in [
        "with space",
        "quote'd",
        "back\\slash",
        "naïve",
        "INCREMENTAL.config",
        "%p",
        "a\"b",
    ] {
        let path = cluster.data().join(name);
        fs::write(&path, name).unwrap();
        account::give(&path);
    }
    for compression in ["zstd", "none"] {
        let pgkeep = Pgkeep::of(&cluster).with("compression", compression);
        let backup = pgkeep.backup();
        pgkeep.ok(&["verify", SERVER, "newest"]);
        let mut check = account::command("sha512sum");
        account::run(
            check
                .args(["--check", "--strict", "--quiet", "backup.sha512"])
                .current_dir(&backup.folder),
        );
        let data = pgkeep.restore("newest");
        checks::pg_verifybackup(17, &data);
        for name in [
            "with space",
            "quote'd",
            "back\\slash",
            "naïve",
            "INCREMENTAL.config",
            "%p",
            "a\"b",
        ] {
            assert_eq!(fs::read_to_string(data.join(name)).unwrap(), name);
        }
    }
}

#[test]
fn a_restored_cluster_can_be_backed_up_and_restored_again() {
    let cluster = Cluster::new(18);
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let data = pgkeep.restore("newest");
    let restored = Cluster::restored(18, &data);
    let again = Pgkeep::of(&restored);
    again.backup();
    let data = again.restore("newest");
    checks::is_whole(18, &data, &before, 0);
}

#[test]
fn a_further_file_that_would_lie_elsewhere_in_the_repository_is_refused() {
    let cluster = Cluster::new(17);
    let folder = cluster.ground().folder("etc");
    let file = cluster.ground().file("etc/one.conf", "one = 1\n");
    let above = folder.parent().unwrap().display();
    let climbing = "/..".repeat(20);
    for path in [
        format!("{climbing}{}", file.display()),
        format!("{above}/./etc"),
        format!("{above}//etc/one.conf"),
        format!("/{}", file.display()),
        format!("{above}/etc/."),
    ] {
        let pgkeep = Pgkeep::of(&cluster).with_server("extra", &path);
        let run = pgkeep.run(&["backup", SERVER]);
        let error = run.failed(5);
        assert!(error.contains(&path), "{error}");
        assert!(pgkeep.ok(&["list-backup", SERVER]).backups().is_empty());
        let written = checks::files(pgkeep.base());
        let is_its = |file: &std::path::PathBuf| file.to_string_lossy().contains("one.conf");
        assert!(!written.iter().any(is_its), "{written:?}");
    }
    // At the end, a / says no more than that it is a folder.
    let pgkeep = Pgkeep::of(&cluster).with_server("extra", &format!("{}/", folder.display()));
    std::os::unix::fs::symlink("/does/not/exist", folder.join("dangling")).unwrap();
    let backup = pgkeep.run(&["backup", SERVER]);
    backup.succeeded();
    let warning = format!(
        "left out of the backup: {}/dangling: a link that leads to nothing",
        folder.display()
    );
    assert!(backup.stderr.contains(&warning), "{backup:?}");
    pgkeep.ok(&["verify", SERVER, "newest"]);
}
