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
fn cluster_with_a_large_relation() -> Cluster {
    let mut cluster = Cluster::stopped(17, &Options::default());
    cluster.set("autovacuum = off");
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
    let cluster = cluster_with_a_large_relation();
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
    let cluster = cluster_with_a_large_relation();
    let pgkeep = Pgkeep::of(&cluster).with("max_rate", "100MB");
    // Before the backup: its queries would keep the rows from being removed.
    cluster.sql("delete from large where i > 500");
    let mut running = pgkeep.spawn(&["backup", SERVER]);
    wait_until_copying(&mut running, &pgkeep);
    running.signal(Signal::STOP);
    cluster.sql("vacuum large");
    assert!(
        cluster.number("select pg_relation_size('large')") < 1_000_000,
        "not truncated"
    );
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
