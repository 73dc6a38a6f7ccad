//! A relation of more than one segment, which is truncated meanwhile.

use std::fs::OpenOptions;
use std::path::Path;

use rustix::process::Signal;

use crate::support::cluster::{Options, Postmaster};
use crate::support::pgkeep::{SERVER, wait_until_copying};
use crate::support::{Cluster, Pgkeep, account, checks};

const GIB: u64 = 1 << 30;

/// A cluster whose table `large` has two segments, with rows in both and empty
/// pages between. The pages are holes, so that it takes no time and no space.
fn cluster_with_a_large_relation(major: u32) -> Cluster {
    let mut cluster = Cluster::stopped(major, &Options::default());
    cluster.set("autovacuum = off\nwal_keep_size = '512MB'");
    // Vacuum leaves alone what the background writer has pinned.
    cluster.set("bgwriter_lru_maxpages = 0");
    cluster.start();
    cluster.sql("create table large (i int, body text)");
    cluster.sql("insert into large select i, repeat('x', 100) from generate_series(1, 1000) i");
    let first = cluster.data().join(cluster.file_of("large"));
    cluster.stop(Postmaster::Fast);
    grow(&first, GIB);
    let second = first.with_extension("1");
    grow(&second, 64 * 8192);
    cluster.start();
    // New rows go to the relation's last page.
    cluster.sql("insert into large select i, repeat('y', 100) from generate_series(1001, 2000) i");
    assert!(cluster.number("select max((ctid::text::point)[0]::bigint) from large") > 131_072);
    cluster.sql("checkpoint");
    cluster
}

fn grow(file: &Path, length: u64) {
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(file)
        .unwrap();
    opened.set_len(length).unwrap();
    account::give(file);
}

fn segment_lengths(data: &Path, file: &str) -> Vec<u64> {
    let first = data.join(file);
    let lengths = [
        first.clone(),
        first.with_extension("1"),
        first.with_extension("2"),
    ];
    lengths
        .iter()
        .filter_map(|path| path.metadata().ok())
        .map(|found| found.len())
        .collect()
}

#[test]
fn a_relation_of_two_segments_restores() {
    let cluster = cluster_with_a_large_relation(17);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let data = pgkeep.restore("newest");
    checks::pg_verifybackup(17, &data);
    let source = cluster.sql("select count(*), sum(i), pg_relation_size('large') from large");
    let mut restored = Cluster::adopt(17, &data);
    restored.start();
    assert_eq!(
        restored.sql("select count(*), sum(i), pg_relation_size('large') from large"),
        source
    );
    assert!(segment_lengths(&data, &restored.file_of("large"))[1] > 0);
}

#[test]
fn a_relation_of_two_segments_that_is_truncated_meanwhile_restores() {
    let cluster = cluster_with_a_large_relation(17);
    let pgkeep = Pgkeep::of(&cluster).with("max_rate", "100MB");
    // Before the backup: its queries would keep the rows from being removed.
    cluster.sql("delete from large where i > 500");
    let mut running = pgkeep.spawn(&["backup", SERVER]);
    wait_until_copying(&mut running, &pgkeep);
    running.signal(Signal::STOP);
    vacuum_to_its_first_pages(&cluster);
    cluster.sql("insert into large select i, 'again' from generate_series(2001, 5000) i");
    running.signal(Signal::CONT);
    running.wait().succeeded();
    pgkeep.ok(&["verify", SERVER, "newest"]);

    let data = pgkeep.restore("newest");
    checks::pg_verifybackup(17, &data);
    let source = cluster.sql("select count(*), sum(i) from large");
    let mut restored = Cluster::adopt(17, &data);
    restored.start();
    assert_eq!(restored.sql("select count(*), sum(i) from large"), source);
    restored.sql("checkpoint");
    let lengths = segment_lengths(&data, &restored.file_of("large"));
    assert!(
        lengths[1..].iter().all(|length| *length == 0) || lengths[0] == GIB,
        "a segment follows a short one: {lengths:?}"
    );
}

fn vacuum_to_its_first_pages(cluster: &Cluster) {
    cluster.sql("vacuum large");
    let size = cluster.number("select pg_relation_size('large')");
    assert!(size < 1_000_000, "not truncated");
}

/// Truncates `large` to its first pages, and lets it grow into its second segment again, further than before. Pages that
/// are zero, which no WAL mentions, are where the rows of the second segment were.
fn truncate_and_grow(cluster: &mut Cluster) {
    cluster.sql("delete from large where i > 500");
    vacuum_to_its_first_pages(cluster);
    let first = cluster.data().join(cluster.file_of("large"));
    cluster.stop(Postmaster::Fast);
    assert_eq!(first.with_extension("1").metadata().unwrap().len(), 0);
    grow(&first, GIB);
    grow(&first.with_extension("1"), 256 * 8192);
    cluster.start();
    cluster.sql("insert into large select i, repeat('z', 100) from generate_series(3001, 4000) i");
    assert!(
        cluster.number("select max((ctid::text::point)[0]::bigint) from large") > 131_072 + 250
    );
}

fn content(cluster: &Cluster) -> Vec<Vec<String>> {
    cluster
        .sql("select count(*), sum(i), sum(hashtext(body)), pg_relation_size('large') from large")
}

#[test]
fn an_incremental_backup_of_a_relation_that_lost_its_second_segment_and_has_one_again_restores() {
    let mut cluster = cluster_with_a_large_relation(18);
    cluster.sql("alter system set summarize_wal = on");
    cluster.sql("select pg_reload_conf()");
    let pgkeep = Pgkeep::of(&cluster);
    let parent = pgkeep.backup();
    truncate_and_grow(&mut cluster);
    super::incremental::await_summaries(&cluster);
    let child = pgkeep.backup_on(&parent.identifier);
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    let source = info.at("Response.Source");
    assert!(source.starts_with("WAL summaries"), "{source}");
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let source = content(&cluster);
    assert_eq!(source[0][0], "1500");
    let data = pgkeep.restore(&child.identifier);
    checks::pg_verifybackup(18, &data);
    let mut restored = Cluster::adopt(18, &data);
    restored.start();
    assert_eq!(content(&restored), source);
}

#[test]
fn an_incremental_backup_of_a_relation_that_loses_its_second_segment_meanwhile_restores() {
    let cluster = cluster_with_a_large_relation(17);
    let pgkeep = Pgkeep::of(&cluster);
    let parent = pgkeep.backup();
    // Enough to copy, so that it takes its time.
    cluster.sql("update pgbench_accounts set filler = 'x'");
    cluster.sql("delete from large where i > 500");
    let pgkeep = pgkeep.with("max_rate", "8MB");
    let mut running = pgkeep.spawn(&["backup", SERVER, &parent.identifier]);
    wait_until_copying(&mut running, &pgkeep);
    running.signal(Signal::STOP);
    vacuum_to_its_first_pages(&cluster);
    cluster.sql("insert into large select i, 'again' from generate_series(2001, 5000) i");
    running.signal(Signal::CONT);
    running.wait().succeeded();
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let data = pgkeep.restore("newest");
    checks::pg_verifybackup(17, &data);
    let source = content(&cluster);
    let mut restored = Cluster::adopt(17, &data);
    restored.start();
    assert_eq!(content(&restored), source);
}
