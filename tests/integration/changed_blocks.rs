//! Which blocks changed, as our reading of the WAL has it: the same as the server's own
//! summaries, and all that changed on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use pgkeep::pg::changed_blocks::{ChangedBlocks, RelationFork};
use pgkeep::pg::control::{CONTROL_FILE, ControlFile};
use pgkeep::pg::lsn::Lsn;
use pgkeep::pg::relation::{Fork, RelationFile};
use pgkeep::pg::segment::{SegmentName, SegmentSize};
use pgkeep::pg::version::Major;
use pgkeep::pg::wal::{RecordReader, Summarizer};
use walkdir::WalkDir;

use crate::support::cluster::Postmaster;
use crate::support::random_changes::{Random, RandomChanges, rounds};
use crate::support::{Cluster, Options, wait_until};

/// How often the sessions change things in each test.
const ROUNDS: u32 = 4;

const CHANGES_A_ROUND: u32 = 40;

fn cluster(major: u32, settings: &str) -> Cluster {
    let options = Options {
        wal_segment_mb: 1,
        ..Options::default()
    };
    let mut cluster = Cluster::stopped(major, &options);
    cluster.set(RandomChanges::SETTINGS);
    cluster.set("wal_keep_size = '40GB'");
    cluster.set(settings);
    cluster.start();
    cluster
}

/// What changed, by our reading of the WAL that lies in pg_wal.
fn read(cluster: &Cluster, start: Lsn, end: Lsn) -> ChangedBlocks {
    let control = control(cluster);
    let major = Major::from_number(cluster.major).unwrap();
    let size = control.wal_segment_size;
    let mut reader = RecordReader::new(major, control.system_identifier, size, start);
    let mut summarizer = Summarizer::new(major);
    let segments = segments(&cluster.data().join("pg_wal"), size);
    for number in start.segment(size).0..=end.previous_segment(size).0 {
        let mut bytes = fs::read(&segments[&number]).unwrap();
        let rest = (end.0 - number * size.bytes()).min(size.bytes());
        bytes.truncate(rest as usize);
        reader
            .push(&bytes, &mut |record| summarizer.record(record))
            .unwrap();
    }
    // The next record may begin behind the header of a page.
    assert!(reader.position() <= end && end.0 - reader.position().0 <= 40);
    summarizer.finish().unwrap()
}

/// The newest timeline's file of each segment: where WAL went on on another timeline,
/// that one's begins with a copy of the old one's.
fn segments(directory: &Path, size: SegmentSize) -> BTreeMap<u64, std::path::PathBuf> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .filter_map(|file| SegmentName::parse(file.unwrap().file_name().to_str()?, size))
        .collect();
    names.sort();
    let paths = names
        .into_iter()
        .map(|name| (name.number.0, directory.join(name.file_name(size))));
    paths.collect()
}

fn control(cluster: &Cluster) -> ControlFile {
    ControlFile::parse(&fs::read(cluster.data().join(CONTROL_FILE)).unwrap()).unwrap()
}

/// Compares every summary of the server with our reading of the same WAL.
fn assert_summaries_agree(cluster: &Cluster) {
    cluster.sql("checkpoint");
    let end = cluster.value("select redo_lsn from pg_control_checkpoint()");
    wait_until("all WAL is summarised", || {
        let query = "select summarized_lsn >= $ from pg_get_wal_summarizer_state()";
        cluster.value(&query.replace('$', &format!("'{end}'"))) == "t"
    });
    let names = cluster.sql("select * from pg_available_wal_summaries() order by start_lsn");
    assert!(names.len() > 3, "{} summaries", names.len());
    let mut all = ChangedBlocks::new();
    for name in &names {
        let (start, end) = (name[1].parse().unwrap(), name[2].parse().unwrap());
        let ours = read(cluster, start, end);
        let theirs = cluster.sql(&format!(
            "select reltablespace, reldatabase, relfilenode, relforknumber, is_limit_block, relblocknumber
             from pg_wal_summary_contents({}, '{start}', '{end}')",
            name[0]
        ));
        assert_same(&format!("{name:?}"), &ours, &theirs);
        all.append(ours);
    }
    // All at once, it comes to the same, but for blocks that were shortened away.
    let first = names.first().unwrap()[1].parse().unwrap();
    let last = names.last().unwrap()[2].parse().unwrap();
    let mut at_once = read(cluster, first, last);
    assert_eq!(what_counts(&mut all), what_counts(&mut at_once));
}

fn assert_same(name: &str, ours: &ChangedBlocks, theirs: &[Vec<String>]) {
    let mut told: BTreeSet<String> = theirs.iter().map(|row| row.join(" ")).collect();
    assert_eq!(told.len(), theirs.len());
    let mut not_theirs = Vec::new();
    for (fork, changes) in ours.iter() {
        let limit = changes.limit.iter().map(|limit| ("t", *limit));
        for (is_limit, block) in limit.chain(changes.blocks.iter().map(|block| ("f", block))) {
            let RelationFork {
                tablespace,
                database,
                relfilenumber,
                fork,
            } = fork;
            let fork = fork.number();
            let row = format!("{tablespace} {database} {relfilenumber} {fork} {is_limit} {block}");
            if !told.remove(&row) {
                not_theirs.push(row);
            }
        }
    }
    assert!(
        told.is_empty() && not_theirs.is_empty(),
        "{name}: only the server has {told:?}; only we have {not_theirs:?}"
    );
}

/// The limits and the blocks below them.
fn what_counts(changed: &mut ChangedBlocks) -> Vec<(RelationFork, Option<u32>, Vec<u32>)> {
    let counts = changed.iter().map(|(fork, changes)| {
        let below = changes.blocks.range(..changes.limit.unwrap_or(u32::MAX));
        (*fork, changes.limit, below.collect())
    });
    counts.collect()
}

fn agrees_with_the_summaries_of_the_server(major: u32) {
    let mut cluster = cluster(major, "summarize_wal = on");
    let mut changes = RandomChanges::of(&cluster, Random::seeded());
    for _ in 0..rounds(ROUNDS) {
        changes.make(&cluster, CHANGES_A_ROUND);
        changes.restart(&mut cluster);
    }
    assert_summaries_agree(&cluster);
}

fn agrees_across_a_promotion(major: u32) {
    let primary = cluster(major, "summarize_wal = on");
    let standby = primary.standby();
    primary.sql("create table before as select generate_series(1, 100000) i");
    standby.catch_up_with(&primary);
    drop(primary);
    standby.sql("select pg_promote()");
    standby.wait_until_writable();
    let mut changes = RandomChanges::of(&standby, Random::seeded());
    changes.make(&standby, CHANGES_A_ROUND);
    standby.sql("checkpoint");
    assert_eq!(
        standby.value("select timeline_id from pg_control_checkpoint()"),
        "2"
    );
    assert_summaries_agree(&standby);
}

#[test]
fn agrees_with_the_summaries_of_17() {
    agrees_with_the_summaries_of_the_server(17);
}

#[test]
fn agrees_with_the_summaries_of_18() {
    agrees_with_the_summaries_of_the_server(18);
}

/// The blocks of a relation's file, by their checksums, but for those that are
/// reset after a crash.
type Files = BTreeMap<RelationFile<'static>, Vec<u32>>;

fn files(cluster: &Cluster) -> Files {
    let major = Major::from_number(cluster.major).unwrap();
    let mut files = Files::new();
    for entry in WalkDir::new(cluster.data()).follow_links(true) {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(cluster.data()).unwrap();
        // It lives as long as the test.
        let path = path.to_str().unwrap().to_owned().leak();
        let relation = RelationFile::parse(path, &major.tablespace_directory());
        if let Some(relation) = relation {
            let bytes = fs::read(entry.path()).unwrap();
            files.insert(relation, bytes.chunks(8192).map(crc32c::crc32c).collect());
        }
    }
    let unlogged: Vec<RelationFile> = files
        .keys()
        .filter(|file| file.fork == Fork::Init)
        .cloned()
        .collect();
    files.retain(|file, _| {
        file.fork == Fork::Init
            || !unlogged.iter().any(|init| {
                (&init.directory, init.relfilenumber) == (&file.directory, file.relfilenumber)
            })
    });
    files
}

/// Whether a file begins with the metapage of an SP-GiST index (access/spgist_private.h).
fn is_spgist_index(cluster: &Cluster, file: &RelationFile) -> bool {
    const PAGE_HEADER: usize = 24;
    const SPGIST_MAGIC_NUMBER: [u8; 4] = 0xBA0B_ABEE_u32.to_le_bytes();
    let content = std::fs::read(cluster.data().join(file.to_string())).unwrap();
    content[PAGE_HEADER..].starts_with(&SPGIST_MAGIC_NUMBER)
}

fn names_all_that_changed_on_disk(major: u32) {
    let mut cluster = cluster(major, "autovacuum = off");
    let mut changes = RandomChanges::of(&cluster, Random::seeded());
    changes.make(&cluster, CHANGES_A_ROUND);
    cluster.sql("checkpoint");
    let start = control(&cluster).checkpoint_redo;
    let before = files(&cluster);
    for _ in 0..rounds(ROUNDS) {
        changes.make(&cluster, CHANGES_A_ROUND);
        changes.restart(&mut cluster);
    }
    changes.make(&cluster, CHANGES_A_ROUND);
    let version = cluster.number("show server_version_num");
    cluster.stop(Postmaster::Fast);
    let changed = read(&cluster, start, control(&cluster).checkpoint);

    // Until then WAL did not tell of all bits that were cleared in a visibility map.
    let tells_of_maps = matches!(version, 170_011..180_000 | 180_006..);
    let (mut rewritten, mut same) = (0, 0);
    for (file, blocks) in files(&cluster) {
        let fork = RelationFork::of(&file).unwrap();
        let is_told = match file.fork {
            Fork::Main | Fork::Init => true,
            Fork::VisibilityMap => tells_of_maps,
            Fork::FreeSpaceMap => false,
        };
        if !is_told || changed.is_recreated(fork.tablespace, fork.database) {
            continue;
        }
        let changes = changed.get(&fork).cloned().unwrap_or_default();
        let Some(earlier) = before.get(&file) else {
            let is_new = changes.limit == Some(0) || file.fork == Fork::VisibilityMap;
            assert!(is_new, "{file} is new, but not in {changes:?}");
            continue;
        };
        assert_eq!(file.segment, 0);
        if blocks.len() < earlier.len() {
            let is_shorter = changes
                .limit
                .is_some_and(|limit| limit <= blocks.len() as u32);
            assert!(
                is_shorter,
                "{file} has {} blocks now, but {changes:?}",
                blocks.len()
            );
        }
        for (block, (now, then)) in (0..).zip(blocks.iter().zip(earlier)) {
            let is_named =
                changes.blocks.contains(block) || changes.limit.is_some_and(|limit| block >= limit);
            // Its metapage remembers without WAL where there was room last (access/spgist/spgutils.c,
            // SpGistUpdateMetaPage); an older one does no harm.
            if block == 0 && !is_named && now != then {
                assert!(
                    is_spgist_index(&cluster, &file),
                    "block 0 of {file} changed, but {changes:?}"
                );
                continue;
            }
            assert!(
                now == then || is_named,
                "block {block} of {file} changed, but {changes:?}"
            );
            rewritten += u32::from(now != then);
            same += u32::from(!is_named);
        }
    }
    assert!(rewritten > 300 && same > 300, "{rewritten} {same}");
}

#[test]
fn agrees_across_a_promotion_of_17() {
    agrees_across_a_promotion(17);
}

#[test]
fn agrees_across_a_promotion_of_18() {
    agrees_across_a_promotion(18);
}

#[test]
fn names_all_that_changed_on_disk_of_14() {
    names_all_that_changed_on_disk(14);
}

#[test]
fn names_all_that_changed_on_disk_of_15() {
    names_all_that_changed_on_disk(15);
}

#[test]
fn names_all_that_changed_on_disk_of_16() {
    names_all_that_changed_on_disk(16);
}

#[test]
fn names_all_that_changed_on_disk_of_17() {
    names_all_that_changed_on_disk(17);
}

#[test]
fn names_all_that_changed_on_disk_of_18() {
    names_all_that_changed_on_disk(18);
}
