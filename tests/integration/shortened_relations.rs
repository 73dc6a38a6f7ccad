//! Relations that became shorter and grew again, where PostgreSQL's own incremental backups
//! bring removed rows back, and visibility maps, which they leave behind the times.

use std::fs;
use std::path::Path;

use crate::support::cluster::Options;
use crate::support::{Cluster, Pgkeep, account, checks};

/// A cluster whose table `shrinks` has 1500 full blocks, and nothing that works in the background.
fn cluster_with_a_full_table(major: u32) -> Cluster {
    let mut cluster = Cluster::stopped(major, &Options::default());
    cluster.set("autovacuum = off");
    // Vacuum leaves alone what the background writer has pinned.
    cluster.set("bgwriter_lru_maxpages = 0");
    cluster.set("wal_keep_size = 1GB");
    if major >= 17 {
        cluster.set("summarize_wal = on");
    }
    cluster.start();
    cluster.sql(
        "create table shrinks (id int, body text) with (autovacuum_enabled = off);
         alter table shrinks alter body set storage plain;
         insert into shrinks select i, repeat('x', 4000) from generate_series(1, 3000) i;",
    );
    cluster.sql("vacuum shrinks");
    assert_eq!(blocks(&cluster), 1500);
    cluster
}

fn blocks(cluster: &Cluster) -> i64 {
    cluster.number("select pg_relation_size('shrinks') / 8192")
}

/// The table loses its last 500 blocks.
fn shrink(cluster: &Cluster) {
    cluster.sql("delete from shrinks where id > 2000");
    cluster.sql("vacuum shrinks");
    assert_eq!(blocks(cluster), 1000);
}

/// The table grows, since 16 by more blocks than it has rows for: the WAL tells nothing of the last ones.
fn grow(cluster: &Cluster) {
    let rows: String = (100_001..=100_200)
        .map(|id| format!("{id}\t{}\n", "y".repeat(4000)))
        .collect();
    let file = cluster.ground().file("rows", &rows);
    account::give(&file);
    cluster.sql(&format!("copy shrinks from '{}'", file.display()));
    cluster.sql("checkpoint");
    assert!(
        blocks(cluster) > 1100 || cluster.major < 16,
        "no empty blocks at the end"
    );
}

/// The restored file is the source's, byte for byte, and so are the rows.
fn is_the_same(source: &Cluster, data: &Path) {
    let file = source.file_of("shrinks");
    let (there, here) = (
        fs::read(source.data().join(&file)).unwrap(),
        fs::read(data.join(&file)).unwrap(),
    );
    assert_eq!(there.len(), here.len());
    let differing = (0..there.len() / 8192)
        .find(|block| there[block * 8192..][..8192] != here[block * 8192..][..8192]);
    assert_eq!(differing, None, "a block differs");
    let restored = Cluster::restored(source.major, data);
    assert_eq!(
        restored.sql("select count(*), count(distinct id) from shrinks"),
        [["2200", "2200"]]
    );
}

fn removed_rows_stay_away(major: u32, twice: bool) {
    let cluster = cluster_with_a_full_table(major);
    let pgkeep = Pgkeep::of(&cluster).with("compression", "none");
    let mut chain = vec![pgkeep.backup()];
    shrink(&cluster);
    if twice {
        chain.push(pgkeep.backup_on("newest"));
    }
    grow(&cluster);
    chain.push(pgkeep.backup_on("newest"));
    is_the_same(&cluster, &pgkeep.restore("newest"));
    if major >= 17 {
        let combined = cluster.ground().path().join("combined");
        account::run(
            cluster
                .tool("pg_combinebackup")
                .args(chain.iter().map(|backup| backup.folder.join("data")))
                .arg("-o")
                .arg(&combined),
        );
        is_the_same(&cluster, &combined);
    }
}

#[test]
fn removed_rows_stay_away_on_14() {
    removed_rows_stay_away(14, false);
}

#[test]
fn removed_rows_stay_away_on_16_with_a_backup_in_between() {
    removed_rows_stay_away(16, true);
}

#[test]
fn removed_rows_stay_away_on_17() {
    removed_rows_stay_away(17, false);
}

#[test]
fn removed_rows_stay_away_on_17_with_a_backup_in_between() {
    removed_rows_stay_away(17, true);
}

#[test]
fn removed_rows_stay_away_on_18() {
    removed_rows_stay_away(18, false);
}

#[test]
fn removed_rows_stay_away_on_18_with_a_backup_in_between() {
    removed_rows_stay_away(18, true);
}

fn visibility_maps_are_up_to_date(major: u32) {
    let mut cluster = Cluster::stopped(major, &Options::default());
    cluster.set("autovacuum = off");
    cluster.set("wal_keep_size = 1GB");
    if major >= 17 {
        cluster.set("summarize_wal = on");
    }
    cluster.start();
    cluster.sql(
        "create table seen as select i as id, 'row ' || i as body from generate_series(1, 50000) i",
    );
    cluster.sql("create index on seen (id)");
    cluster.sql("vacuum (freeze) seen");
    cluster.sql("checkpoint");
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    cluster.sql("update seen set body = 'other' where id = 7");
    cluster.sql("delete from seen where id = 9");
    pgkeep.backup_on("newest");

    let data = pgkeep.restore("newest");
    let map = format!("{}_vm", cluster.file_of("seen"));
    assert_eq!(
        fs::read(data.join(&map)).unwrap(),
        fs::read(cluster.data().join(&map)).unwrap()
    );
    let restored = Cluster::restored(major, &data);
    restored.sql("create extension pg_visibility");
    for check in ["pg_check_visible", "pg_check_frozen"] {
        assert_eq!(
            restored.number(&format!("select count(*) from {check}('seen')")),
            0,
            "{check}"
        );
    }
    // An index-only scan believes the map.
    restored.sql("set enable_seqscan = off");
    assert_eq!(
        restored.number("select count(*) from seen where id between 1 and 20"),
        19
    );
    checks::pg_amcheck(&restored);
}

#[test]
fn visibility_maps_are_up_to_date_on_14() {
    visibility_maps_are_up_to_date(14);
}

#[test]
fn visibility_maps_are_up_to_date_on_17() {
    visibility_maps_are_up_to_date(17);
}

#[test]
fn visibility_maps_are_up_to_date_on_18() {
    visibility_maps_are_up_to_date(18);
}
