//! Control files against pg_controldata and the server.

use std::fs;

use pgkeep::pg::control::{CONTROL_FILE, ControlFile, forbid_start_without_label};
use pgkeep::pg::version::Major;

use crate::cluster::{Cluster, text};

crate::for_every_major!(
    says_what_pg_controldata_says,
    a_start_without_label_can_be_forbidden
);

fn says_what_pg_controldata_says(major: Major) {
    let cluster = Cluster::init(major);
    assert_eq!(compare(&cluster), "shut down");
    cluster
        .configure("wal_level = logical\nfull_page_writes = off\nmax_prepared_transactions = 9\n");
    assert!(cluster.start());
    cluster.sql(&[
        "create table t as select generate_series(1, 1000)",
        "checkpoint",
    ]);
    assert_eq!(compare(&cluster), "in production");

    let standby = cluster.base_backup(&["-R"]);
    assert!(standby.start());
    cluster.sql(&[
        "insert into t select generate_series(1, 1000)",
        "checkpoint",
    ]);
    let position = cluster.sql(&["select pg_current_wal_lsn()"]);
    wait_for(
        &standby,
        &format!("select pg_last_wal_replay_lsn() >= '{position}'"),
    );
    standby.sql(&["checkpoint"]);
    assert_eq!(compare(&standby), "in archive recovery");
    standby.stop("fast");
    assert_eq!(compare(&standby), "shut down in recovery");

    cluster.stop("immediate");
    assert_eq!(compare(&cluster), "in production");
}

fn a_start_without_label_can_be_forbidden(major: Major) {
    let cluster = Cluster::init(major);
    assert!(cluster.start());
    let backup = cluster.base_backup(&[]);
    cluster.stop("fast");

    for cluster in [&cluster, &backup] {
        let path = cluster.data().join(CONTROL_FILE);
        let mut bytes = fs::read(&path).unwrap();
        forbid_start_without_label(&mut bytes).unwrap();
        fs::write(&path, &bytes).unwrap();
        compare(cluster);
    }
    assert!(!cluster.start(), "the server started without a label");
    let log = cluster.log();
    assert!(
        log.contains("0/DEAD") || log.contains("could not locate a valid checkpoint"),
        "{log}"
    );
    assert!(backup.start(), "{}", backup.log());
    assert_eq!(backup.sql(&["select pg_is_in_recovery()"]), "f");
}

fn wait_for(cluster: &Cluster, condition: &str) {
    for _ in 0..6000 {
        if cluster.sql(&[condition]) == "t" {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("never true: {condition}");
}

/// Holds every field against pg_controldata's; returns the cluster's state.
fn compare(cluster: &Cluster) -> String {
    let output = cluster.try_run("pg_controldata", &["-D", text(&cluster.data())]);
    let warnings = String::from_utf8(output.stderr).unwrap();
    assert_eq!(warnings, "");
    let output = String::from_utf8(output.stdout).unwrap();
    assert!(!output.contains("WARNING"), "{output}");
    let expected = |name: &str| {
        let line = output.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name}")).trim_start()
    };

    let control =
        ControlFile::parse(&fs::read(cluster.data().join(CONTROL_FILE)).unwrap()).unwrap();
    assert_eq!(control.control_version, cluster.major.control_version());
    assert_eq!(control.catalog_version, cluster.major.catalog_version());
    let yes = |yes| if yes { "yes" } else { "no" }.to_owned();
    let on = |on| if on { "on" } else { "off" }.to_owned();
    for (name, found) in [
        (
            "Database system identifier:",
            control.system_identifier.to_string(),
        ),
        (
            "pg_control version number:",
            control.control_version.to_string(),
        ),
        (
            "Catalog version number:",
            control.catalog_version.to_string(),
        ),
        ("Database cluster state:", control.state.to_string()),
        (
            "Latest checkpoint location:",
            control.checkpoint.to_string(),
        ),
        (
            "Latest checkpoint's REDO location:",
            control.checkpoint_redo.to_string(),
        ),
        (
            "Latest checkpoint's TimeLineID:",
            control.checkpoint_timeline.to_string(),
        ),
        (
            "Latest checkpoint's full_page_writes:",
            on(control.full_page_writes),
        ),
        (
            "Minimum recovery ending location:",
            control.min_recovery_point.to_string(),
        ),
        (
            "Min recovery ending loc's timeline:",
            control.min_recovery_point_timeline.to_string(),
        ),
        (
            "Backup start location:",
            control.backup_start_point.to_string(),
        ),
        ("Backup end location:", control.backup_end_point.to_string()),
        (
            "End-of-backup record required:",
            yes(control.backup_end_required),
        ),
        ("wal_level setting:", control.wal_level.to_string()),
        (
            "max_connections setting:",
            control.limits.max_connections.to_string(),
        ),
        (
            "max_worker_processes setting:",
            control.limits.max_worker_processes.to_string(),
        ),
        (
            "max_wal_senders setting:",
            control.limits.max_wal_senders.to_string(),
        ),
        (
            "max_prepared_xacts setting:",
            control.limits.max_prepared_transactions.to_string(),
        ),
        (
            "max_locks_per_xact setting:",
            control.limits.max_locks_per_transaction.to_string(),
        ),
        ("Database block size:", control.block_size.to_string()),
        (
            "Blocks per segment of large relation:",
            control.relation_segment_blocks.to_string(),
        ),
        ("WAL block size:", control.wal_block_size.to_string()),
        (
            "Bytes per WAL segment:",
            control.wal_segment_size.bytes().to_string(),
        ),
        (
            "Data page checksum version:",
            control.data_checksum_version.to_string(),
        ),
    ] {
        assert_eq!(found, expected(name), "{name}");
    }
    control.state.to_string()
}
