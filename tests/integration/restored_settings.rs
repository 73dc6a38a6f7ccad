//! What a restored server obeys: the restore, whatever its source was set to.

use std::fs;

use crate::support::archive::{archiving, switch, wait_until_archived};
use crate::support::cluster::{Options, Postmaster};
use crate::support::pgkeep::SERVER;
use crate::support::{Cluster, Pgkeep};

/// Of a cluster that was once recovered by hand, or was a standby; a running primary disregards all of it.
const LEFT_FROM_ANOTHER_LIFE: &str = "
recovery_target_xid = '4711'
recovery_target_action = 'shutdown'
recovery_min_apply_delay = '1h'
primary_conninfo = 'host=/nowhere'
primary_slot_name = 'nobody'
";

fn settings_of_the_sources_file_do_not_decide(major: u32) {
    let (mut cluster, pgkeep) = archiving(
        major,
        &Options::default(),
        |pgkeep| pgkeep,
        Pgkeep::archive_command,
    );
    let touched = cluster.ground().path().join("touched");
    let command = format!("touch {}", touched.display());
    cluster.stop(Postmaster::Fast);
    cluster.set(LEFT_FROM_ANOTHER_LIFE);
    cluster.set(&format!(
        "recovery_end_command = '{command}'\narchive_cleanup_command = '{command}'"
    ));
    cluster.start();
    let backup = pgkeep.backup();
    cluster.sql("insert into quiet (id) values (-7)");
    wait_until_archived(&pgkeep, &switch(&cluster));

    let folder = pgkeep.ground().folder("own");
    let report = pgkeep.ok(&[
        "restore",
        SERVER,
        &backup.identifier,
        folder.to_str().unwrap(),
    ]);
    let own = report.at("Response.Directory");
    let restored = Cluster::restored(major, own.as_ref());
    assert_eq!(report.at("Response.ArchiveMode"), "off");
    assert_eq!(restored.value("show archive_mode"), "off");
    // Its history, and its WAL of that, are none of the source's.
    let archived = pgkeep.archived();
    switch(&restored);
    assert_eq!(
        restored.value("select archived_count + failed_count from pg_stat_archiver"),
        "0"
    );
    assert_eq!(pgkeep.archived(), archived);
    drop(restored);

    let folder = pgkeep.ground().folder("current");
    let report = pgkeep.ok(&[
        "restore",
        SERVER,
        "newest",
        "current",
        folder.to_str().unwrap(),
    ]);
    let current = report.at("Response.Directory");
    let restored = Cluster::restored(major, current.as_ref());
    assert_eq!(
        restored.value("select count(*) from quiet where id = -7"),
        "1"
    );
    drop(restored);
    assert!(!touched.exists(), "the source's command was run");

    // To a moment, where an empty target must not stand in the way.
    let folder = pgkeep.ground().folder("lsn");
    let position = format!("lsn={},action=promote", backup_end(&pgkeep));
    let report = pgkeep.ok(&[
        "restore",
        SERVER,
        "newest",
        &position,
        "--archive-mode",
        "preserve",
        folder.to_str().unwrap(),
    ]);
    assert_eq!(report.at("Response.ArchiveMode"), "preserve");
    let data = report.at("Response.Directory");
    let settings = fs::read_to_string(format!("{data}/postgresql.auto.conf")).unwrap();
    assert!(!settings.contains("archive_mode"), "{settings}");
    let mut restored = Cluster::adopt(major, data.as_ref());
    restored.set("archive_mode = off");
    restored.start();
    restored.wait_until_writable();
}

fn a_replica_obeys_the_restore_alone(major: u32) {
    let mut primary = Cluster::stopped(major, &Options::default());
    primary.set(LEFT_FROM_ANOTHER_LIFE);
    if major < 16 {
        let trigger = primary.ground().file("promote", "");
        primary.set(&format!("promote_trigger_file = '{}'", trigger.display()));
    }
    primary.start();
    let pgkeep = Pgkeep::of(&primary);
    pgkeep.backup();
    let folder = pgkeep.ground().folder("replica");
    let report = pgkeep.ok(&[
        "restore",
        SERVER,
        "newest",
        "replica",
        folder.to_str().unwrap(),
    ]);
    let mut replica = Cluster::adopt(major, report.at("Response.Directory").as_ref());
    replica.start();
    primary.sql("insert into quiet (id) values (-8)");
    replica.catch_up_with(&primary);
    assert_eq!(
        replica.value("select count(*) from quiet where id = -8"),
        "1"
    );
    assert_eq!(replica.value("select pg_is_in_recovery()"), "t");
}

#[test]
fn a_replica_of_15_obeys_the_restore_alone() {
    a_replica_obeys_the_restore_alone(15);
}

#[test]
fn a_replica_of_18_obeys_the_restore_alone() {
    a_replica_obeys_the_restore_alone(18);
}

#[test]
fn a_copy_that_would_go_on_with_subscriptions_is_told_of() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let said = |position: &[&str]| {
        pgkeep.backup();
        let folder = pgkeep.ground().folder("to");
        let target = folder.to_str().unwrap();
        let run = pgkeep.run(&[&["restore", SERVER, "newest"], position, &[target]].concat());
        run.succeeded();
        fs::remove_dir_all(folder).unwrap();
        run.stderr.contains("subscriptions")
    };
    assert!(!said(&[]));
    cluster.sql("select pg_replication_origin_create('there'); select pg_replication_origin_advance('there', '0/1')");
    assert!(said(&[]));
    assert!(!said(&["replica"]));
}

/// Where the newest backup is consistent.
fn backup_end(pgkeep: &Pgkeep) -> String {
    pgkeep.ok(&["info", SERVER, "newest"]).at("Response.EndLSN")
}

#[test]
fn settings_of_the_file_of_14_do_not_decide() {
    settings_of_the_sources_file_do_not_decide(14);
}

#[test]
fn settings_of_the_file_of_18_do_not_decide() {
    settings_of_the_sources_file_do_not_decide(18);
}

#[test]
fn settings_in_another_encoding_come_back_byte_for_byte() {
    let cluster = Cluster::new(16);
    cluster.sql(
        "create database latin encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0",
    );
    cluster.sql_in("latin", "alter system set log_line_prefix = 'café '");
    let written = fs::read(cluster.data().join("postgresql.auto.conf")).unwrap();
    let line = b"log_line_prefix = 'caf\xe9 '\n";
    let holds = |content: &[u8]| content.windows(line.len()).any(|part| part == line);
    assert!(holds(&written));

    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let data = pgkeep.restore("newest");
    assert!(holds(&fs::read(data.join("postgresql.auto.conf")).unwrap()));
    drop(Cluster::restored(16, &data));

    let folder = pgkeep.ground().folder("archive");
    let report = pgkeep.ok(&["archive", SERVER, "newest", folder.to_str().unwrap()]);
    let unpacked = pgkeep.ground().folder("unpacked");
    crate::support::checks::shell(&format!(
        "zstd -dcq {} | tar -x -C {}",
        report.at("Response.File"),
        unpacked.display()
    ));
    let found = crate::support::checks::files(&unpacked)
        .into_iter()
        .find(|file| file.ends_with("postgresql.auto.conf"))
        .unwrap();
    assert!(holds(&fs::read(found).unwrap()));
}

/// Recovery would pause for good in a server that is set to less than its source was then.
fn what_the_source_was_raised_to_is_raised_too(major: u32) {
    let (mut cluster, pgkeep) = archiving(
        major,
        &Options::default(),
        |pgkeep| pgkeep,
        Pgkeep::archive_command,
    );
    let backup = pgkeep.backup();
    cluster.stop(Postmaster::Fast);
    cluster.set("max_prepared_transactions = 7\nmax_connections = 123");
    cluster.start();
    cluster.sql("insert into quiet (id) values (-9)");
    cluster.sql("select pg_create_restore_point('raised')");
    wait_until_archived(&pgkeep, &switch(&cluster));
    let data = pgkeep.restore(&backup.identifier);
    let text = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
    assert!(!text.contains("max_connections"), "{text}");
    for position in ["current", "name=raised,action=promote"] {
        let folder = pgkeep.ground().folder(position);
        let report = pgkeep.ok(&[
            "restore",
            SERVER,
            &backup.identifier,
            position,
            folder.to_str().unwrap(),
        ]);
        let restored = Cluster::restored(major, report.at("Response.Directory").as_ref());
        let count = "select count(*) from quiet where id = -9";
        assert_eq!(restored.number(count), 1, "{position}");
        assert_eq!(restored.number("show max_prepared_transactions"), 7);
        assert_eq!(restored.number("show max_connections"), 123);
        assert!(!restored.log().contains("recovery has paused"));
    }
}

#[test]
fn what_the_source_of_15_was_raised_to_is_raised_too() {
    what_the_source_was_raised_to_is_raised_too(15);
}

#[test]
fn what_the_source_of_18_was_raised_to_is_raised_too() {
    what_the_source_was_raised_to_is_raised_too(18);
}

#[test]
fn a_tablespace_in_place_needs_no_setting_of_the_source() {
    for major in crate::support::versions(&[14, 17]) {
        let mut cluster = Cluster::stopped(major, &Options::default());
        cluster.set("allow_in_place_tablespaces = off");
        cluster.start();
        let mut session = cluster.connect("postgres").unwrap();
        for sql in [
            "set allow_in_place_tablespaces = on",
            "create tablespace own location ''",
            "create table inside tablespace own as select i from generate_series(1, 100) i",
        ] {
            session.simple_query(sql).unwrap();
        }
        let pgkeep = Pgkeep::of(&cluster);
        pgkeep.backup();
        let restored = Cluster::restored(major, &pgkeep.restore("newest"));
        assert_eq!(restored.number("select count(*) from inside"), 100);
    }
}

#[test]
fn a_restore_point_may_have_any_name() {
    let (cluster, pgkeep) = archiving(
        18,
        &Options::default(),
        |pgkeep| pgkeep,
        Pgkeep::archive_command,
    );
    pgkeep.backup();
    let name = "it's\n\\n";
    cluster.sql(&format!(
        "select pg_create_restore_point('{}')",
        name.replace('\'', "''")
    ));
    wait_until_archived(&pgkeep, &switch(&cluster));
    let position = format!("name={name},action=promote");
    let folder = pgkeep.ground().folder("named");
    let report = pgkeep.ok(&[
        "restore",
        SERVER,
        "newest",
        &position,
        folder.to_str().unwrap(),
    ]);
    let restored = Cluster::restored(18, report.at("Response.Directory").as_ref());
    assert!(
        restored
            .log()
            .contains("recovery stopping at restore point")
    );
}

/// A copy was promoted from a backup of before the last failover, and archives to the same place.
#[test]
fn a_replica_does_not_take_another_history_for_its_primarys() {
    let (cluster, pgkeep) = archiving(
        17,
        &Options::default(),
        |pgkeep| pgkeep,
        Pgkeep::archive_command,
    );
    let first = pgkeep.backup();
    wait_until_archived(&pgkeep, &switch(&cluster));
    let promoted = |name: &str| {
        let folder = pgkeep.ground().folder(name);
        let target = folder.to_str().unwrap();
        let arguments = ["--archive-mode", "preserve"];
        let position = "current,timeline=1";
        let command = ["restore", SERVER, &first.identifier, position, target];
        let report = pgkeep.ok(&[&command[..], &arguments].concat());
        Cluster::restored(17, report.at("Response.Directory").as_ref())
    };
    drop(cluster);
    let primary = promoted("primary");
    wait_until_archived(&pgkeep, "00000002.history");
    let mut other = promoted("other");
    wait_until_archived(&pgkeep, "00000003.history");
    other.stop(Postmaster::Fast);
    let pgkeep = pgkeep.with_server("host", primary.socket().to_str().unwrap());
    pgkeep.backup();
    let folder = pgkeep.ground().folder("replica");
    let run = pgkeep.run(&[
        "restore",
        SERVER,
        "newest",
        "replica",
        folder.to_str().unwrap(),
    ]);
    let report = run.succeeded();
    assert!(
        run.stderr.contains("timeline 3, which does not go on"),
        "{run:?}"
    );
    let mut replica = Cluster::adopt(17, report.at("Response.Directory").as_ref());
    replica.start();
    primary.sql("insert into quiet (id) values (-10)");
    replica.catch_up_with(&primary);

    // From a backup that the other history does go on from, its primary's is said.
    let folder = pgkeep.ground().folder("told");
    let target = folder.to_str().unwrap();
    let position = "replica,timeline=2";
    let report = pgkeep.ok(&["restore", SERVER, &first.identifier, position, target]);
    let mut told = Cluster::adopt(17, report.at("Response.Directory").as_ref());
    told.start();
    told.catch_up_with(&primary);

    // A history that is not as it was leads nowhere.
    wait_until_archived(&pgkeep, &switch(&primary));
    let stored = pgkeep.wal().join("00000002.history");
    assert!(stored.exists());
    let folder = pgkeep.ground().folder("elsewhere");
    let target = folder.to_str().unwrap();
    let command = [
        "restore",
        SERVER,
        &first.identifier,
        "current,timeline=2",
        target,
    ];
    for (content, why) in [
        ("", "does not say where"),
        (
            "1\t7/0\tno recovery target specified\n",
            "the first WAL that",
        ),
    ] {
        fs::write(&stored, content).unwrap();
        let error = pgkeep.run(&command).failed(3);
        assert!(error.contains(why), "{error}");
        assert!(fs::read_dir(&folder).unwrap().next().is_none());
    }
}

#[test]
fn no_restore_goes_past_wal_that_recovery_does_not_pass() {
    let (mut cluster, pgkeep) = archiving(
        16,
        &Options::default(),
        |pgkeep| pgkeep,
        Pgkeep::archive_command,
    );
    pgkeep.backup();
    cluster.sql("insert into quiet (id) values (-11)");
    cluster.sql("select pg_create_restore_point('before ')");
    let settings = |level: &str, others: &str| format!("wal_level = {level}\n{others}");
    cluster.stop(Postmaster::Fast);
    cluster.set(&settings(
        "minimal",
        "max_wal_senders = 0\narchive_mode = off",
    ));
    cluster.start();
    cluster.sql("insert into quiet (id) values (-12)");
    cluster.stop(Postmaster::Fast);
    cluster.set(&settings(
        "replica",
        "max_wal_senders = 10\narchive_mode = on",
    ));
    cluster.start();
    cluster.sql("select pg_create_restore_point('after')");
    wait_until_archived(&pgkeep, &switch(&cluster));
    pgkeep.ok(&["wal", "copy", SERVER]);
    let folder = pgkeep.ground().folder("minimal");
    let target = folder.to_str().unwrap();
    for position in ["current", "name=after"] {
        let error = pgkeep
            .run(&["restore", SERVER, "newest", position, target])
            .failed(1);
        assert!(error.contains("wal_level = minimal"), "{error}");
    }
    let error = pgkeep.run(&["restore", SERVER, "newest", "name=before", target]);
    error.failed(1);
    let position = "name=before ,action=promote";
    let report = pgkeep.ok(&["restore", SERVER, "newest", position, target]);
    let restored = Cluster::restored(16, report.at("Response.Directory").as_ref());
    let count = "select count(*) from quiet where id in (-11, -12)";
    assert_eq!(restored.number(count), 1);
}

#[test]
fn a_configuration_that_names_another_data_directory_is_told_of() {
    let mut cluster = Cluster::stopped(15, &Options::default());
    let line = format!("data_directory = '{}'", cluster.data().display());
    cluster.set(&line);
    cluster.set("hot_standby = off");
    cluster.start();
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let folder = pgkeep.ground().folder("named");
    let run = pgkeep.run(&["restore", SERVER, "newest", folder.to_str().unwrap()]);
    run.succeeded();
    assert!(run.stderr.contains(&line), "{run:?}");
    // Nor is the repository a place to restore to.
    let backups = pgkeep.backups();
    let inside = backups.to_str().unwrap();
    let error = pgkeep.run(&["restore", SERVER, "newest", inside]).failed(2);
    assert!(error.contains("lies in the repository"), "{error}");
    // Beside the servers' folders there may be the only room that is left.
    let beside = pgkeep.base().join("restored");
    pgkeep.ok(&["restore", SERVER, "newest", beside.to_str().unwrap()]);
}
