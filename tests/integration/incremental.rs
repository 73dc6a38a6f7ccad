//! Incremental backups: where changes come from, what is sent, and what can't be a parent.

use std::fs;
use std::path::Path;

use crate::support::checks::{self, Before};
use crate::support::cluster::{Options, Postmaster};
use crate::support::pgkeep::SERVER;
use crate::support::{Cluster, Pgkeep, wait_until};

/// A cluster that keeps its WAL, and makes summaries where asked.
fn cluster(major: u32, summaries: bool) -> Cluster {
    let mut cluster = Cluster::stopped(major, &Options::default());
    cluster.set("wal_keep_size = 1GB");
    if summaries {
        cluster.set("summarize_wal = on");
    }
    cluster.start();
    cluster
}

/// Some rows change, a table comes and one goes.
fn change(cluster: &Cluster, round: u32) {
    cluster.sql(&format!(
        "update quiet set id = id where id % 97 = {round};
         create table of_round_{round} as select i from generate_series(1, 5000) i;
         drop table if exists of_round_{};",
        round.saturating_sub(2)
    ));
}

/// There is a summary of the changes, even if that up to the backup's own checkpoint comes too late for it.
pub(super) fn await_summaries(cluster: &Cluster) {
    cluster.sql("checkpoint");
    wait_until("the WAL is summarized", || {
        cluster.value(
            "select summarized_lsn >= redo_lsn from pg_get_wal_summarizer_state(), pg_control_checkpoint()",
        ) == "t"
    });
}

fn changes_are_found(major: u32, summaries: bool, source: &str) {
    let cluster = cluster(major, summaries);
    let pgkeep = Pgkeep::of(&cluster);
    let full = pgkeep.backup();
    let mut parent = full.identifier;
    for round in 1..=3 {
        change(&cluster, round);
        if summaries {
            await_summaries(&cluster);
        }
        let backup = pgkeep.backup_on(&parent);
        let info = pgkeep.ok(&["info", SERVER, &backup.identifier]);
        assert_eq!(info.at("Response.Incremental"), "true");
        assert_eq!(info.at("Response.Parent"), parent);
        let sources = info.at("Response.Source");
        assert!(sources.contains(source), "{sources}");
        pgkeep.ok(&["verify", SERVER, &backup.identifier]);
        parent = backup.identifier;
    }
    let before = Before::of(&cluster);
    let history = cluster.number("select count(*) from pgbench_history");
    let data = pgkeep.restore("newest");
    let restored = checks::is_whole(major, &data, &before, history);
    assert_eq!(restored.number("select count(*) from of_round_3"), 5000);
    assert_eq!(
        restored.value("select to_regclass('of_round_1') is null"),
        "t"
    );
}

#[test]
fn changes_are_found_in_the_wal_of_14() {
    changes_are_found(14, false, "WAL");
}

#[test]
fn changes_are_found_in_the_wal_of_15() {
    changes_are_found(15, false, "WAL");
}

#[test]
fn changes_are_found_in_the_wal_of_16() {
    changes_are_found(16, false, "WAL");
}

#[test]
fn changes_are_found_in_the_wal_of_17() {
    changes_are_found(17, false, "WAL");
}

#[test]
fn changes_are_found_in_the_wal_of_18() {
    changes_are_found(18, false, "WAL");
}

#[test]
fn changes_are_found_in_the_summaries_of_17() {
    changes_are_found(17, true, "WAL summaries");
}

#[test]
fn changes_are_found_in_the_summaries_of_18() {
    changes_are_found(18, true, "WAL summaries");
}

#[test]
fn an_incremental_backup_of_little_is_little() {
    let cluster = cluster(17, true);
    let pgkeep = Pgkeep::of(&cluster).with("compression", "none");
    let full = pgkeep.backup();
    cluster.sql("update pgbench_accounts set filler = 'x' where aid = 1");
    let incremental = pgkeep.backup_on(&full.identifier);
    let stored = |folder: &std::path::Path| -> u64 {
        let files = checks::files(&folder.join("data/base"));
        files
            .iter()
            .map(|file| file.metadata().unwrap().len())
            .sum()
    };
    let (all, little) = (stored(&full.folder), stored(&incremental.folder));
    assert!(little < all / 4, "{little} of {all} bytes");
    checks::sha512sum(&incremental.folder);
}

#[test]
fn a_backup_may_have_several_children() {
    let cluster = cluster(16, false);
    let pgkeep = Pgkeep::of(&cluster);
    let full = pgkeep.backup();
    cluster.sql("insert into quiet (id) values (-1)");
    let one = pgkeep.backup_on(&full.identifier);
    cluster.sql("insert into quiet (id) values (-2)");
    let other = pgkeep.backup_on(&full.identifier);
    for (backup, expected) in [(&full, 0), (&one, 1), (&other, 2)] {
        let restored = Cluster::restored(16, &pgkeep.restore(&backup.identifier));
        assert_eq!(
            restored.number("select count(*) from quiet where id < 0"),
            expected
        );
    }
}

#[test]
fn after_a_failover_the_chain_goes_on() {
    for major in crate::support::versions(&[14, 17]) {
        let mut primary = cluster(major, major >= 17);
        let pgkeep = Pgkeep::of(&primary);
        let standby = primary.standby();
        pgkeep.backup();
        primary.sql("insert into quiet (id) values (-1)");
        primary.sql("checkpoint");
        standby.catch_up_with(&primary);
        primary.stop(Postmaster::Fast);
        standby.sql("select pg_promote()");
        standby.wait_until_writable();
        standby.sql("insert into quiet (id) values (-2)");
        standby.sql("checkpoint");

        let promoted = Pgkeep::of(&standby).with_base(pgkeep.base());
        promoted.backup_on("newest");
        promoted.ok(&["verify", SERVER, "newest"]);
        let data = promoted.restore("newest");
        checks::pg_verifybackup(major, &data);
        let restored = Cluster::restored(major, &data);
        assert_eq!(
            restored.number("select count(*) from quiet where id < 0"),
            2,
            "{major}"
        );
    }
}

#[test]
fn a_standby_has_incremental_backups_too() {
    let primary = cluster(17, false);
    let standby = primary.standby();
    let pgkeep = Pgkeep::of(&standby);
    pgkeep.backup();
    primary.sql("insert into quiet (id) values (-1)");
    primary.sql("checkpoint");
    standby.catch_up_with(&primary);
    standby.sql("checkpoint");
    pgkeep.backup_on("newest");
    let restored = Cluster::restored(17, &pgkeep.restore("newest"));
    assert_eq!(
        restored.number("select count(*) from quiet where id < 0"),
        1
    );
}

#[test]
fn wal_that_is_gone_is_named_and_a_full_backup_helps() {
    let mut cluster = Cluster::stopped(
        15,
        &Options {
            wal_segment_mb: 1,
            ..Options::default()
        },
    );
    cluster.set("max_wal_size = 2MB");
    cluster.set("min_wal_size = 2MB");
    cluster.start();
    let pgkeep = Pgkeep::of(&cluster);
    let full = pgkeep.backup();
    for _ in 0..4 {
        cluster.sql("create table passing as select i, repeat('x', 500) from generate_series(1, 5000) i; drop table passing");
        cluster.sql("checkpoint");
    }
    let start = pgkeep
        .ok(&["info", SERVER, &full.identifier])
        .at("Response.StartLSN");
    let error = pgkeep.run(&["backup", SERVER, &full.identifier]).failed(1);
    assert!(error.contains(&start), "{error}");
    assert_eq!(fs::read_dir(pgkeep.backups()).unwrap().count(), 1);

    let report = pgkeep.ok(&["backup", SERVER, &full.identifier, "--or-full"]);
    assert_eq!(report.at("Response.Incremental"), "false");
}

#[test]
fn without_a_backup_only_or_full_makes_one() {
    let cluster = cluster(17, false);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.run(&["backup", SERVER, "latest"]).failed(1);
    let report = pgkeep.ok(&["backup", SERVER, "latest", "--or-full"]);
    assert_eq!(report.at("Response.Incremental"), "false");
    let report = pgkeep.ok(&["backup", SERVER, "latest", "--or-full"]);
    assert_eq!(report.at("Response.Incremental"), "true");
}

#[test]
fn a_backup_of_another_cluster_is_no_parent() {
    let one = cluster(17, false);
    let pgkeep = Pgkeep::of(&one);
    pgkeep.backup();
    let mut other = Cluster::stopped(16, &Options::default());
    other.start();
    let there = Pgkeep::of(&other).with_base(pgkeep.base());
    let error = there.run(&["backup", SERVER, "newest"]).failed(1);
    assert!(error.contains("system identifier"), "{error}");
    let full = there.run(&["backup", SERVER]);
    full.succeeded();
    let warning = "the system identifier of this server is";
    assert!(full.stderr.contains(warning), "{full:?}");
}

#[test]
fn a_backup_from_the_servers_future_is_no_parent() {
    let mut cluster = cluster(17, false);
    let pgkeep = Pgkeep::of(&cluster);
    let past = pgkeep.backup();
    cluster.sql("create table later as select i from generate_series(1, 100000) i");
    let future = pgkeep.backup();
    cluster.stop(Postmaster::Fast);
    let restored = Cluster::restored(17, &pgkeep.restore(&past.identifier));
    let there = Pgkeep::of(&restored).with_base(pgkeep.base());
    let error = there.run(&["backup", SERVER, &future.identifier]).failed(1);
    assert!(error.contains("timeline"), "{error}");
    // The common ancestor will do.
    there.backup_on(&past.identifier);
}

/// The same timeline, the same positions, and other WAL.
#[test]
fn a_server_that_was_set_back_to_a_snapshot_is_noticed() {
    let mut cluster = cluster(16, false);
    let pgkeep = Pgkeep::of(&cluster);
    let snapshot = cluster.ground().path().join("snapshot");
    let copy = |from: &Path, to: &Path| {
        let (from, to) = (checks::quoted(from), checks::quoted(to));
        checks::shell(&format!("rm -rf {to} && cp -a {from} {to}"));
    };
    cluster.stop(Postmaster::Fast);
    copy(cluster.data(), &snapshot);
    cluster.start();
    cluster.sql("create table one as select i from generate_series(1, 1000) i");
    let lost = pgkeep.backup();
    cluster.stop(Postmaster::Immediate);
    copy(&snapshot, cluster.data());
    cluster.start();
    cluster.sql("create table another as select i from generate_series(1, 5000) i");
    let end = pgkeep.ok(&["info", SERVER, "newest"]).at("Response.EndLSN");
    let passed = format!("select pg_current_wal_lsn() > '{end}'");
    while cluster.value(&passed) == "f" {
        cluster.sql("select pg_logical_emit_message(true, 'x', 'x'); select pg_switch_wal()");
    }
    let error = pgkeep.run(&["backup", SERVER, &lost.identifier]).failed(1);
    assert!(error.contains("was set back"), "{error}");
    let report = pgkeep.ok(&["backup", SERVER, "newest", "--or-full"]);
    assert_eq!(report.at("Response.Incremental"), "false");
    pgkeep.backup_on("newest");
}

#[test]
fn a_half_missing_backup_is_no_parent() {
    let cluster = cluster(17, false);
    let pgkeep = Pgkeep::of(&cluster);
    let full = pgkeep.backup();
    fs::remove_file(full.folder.join("bundles/000000.tar.zstd")).unwrap();
    let error = pgkeep.run(&["backup", SERVER, "newest"]).failed(3);
    assert!(error.contains("000000.tar.zstd"), "{error}");
}

#[test]
fn switching_checksums_on_needs_a_full_backup() {
    let mut cluster = Cluster::with(
        16,
        &Options {
            checksums: false,
            ..Options::default()
        },
    );
    cluster.set("wal_keep_size = 1GB");
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    cluster.stop(Postmaster::Fast);
    crate::support::account::run(
        cluster
            .tool("pg_checksums")
            .arg("--enable")
            .arg("-D")
            .arg(cluster.data()),
    );
    cluster.start();
    let error = pgkeep.run(&["backup", SERVER, "newest"]).failed(1);
    assert!(error.contains("checksums"), "{error}");
    pgkeep.ok(&["backup", SERVER, "newest", "--or-full"]);
}
