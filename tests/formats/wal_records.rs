//! WAL records of real servers, with pg_waldump as the judge.

use std::collections::BTreeSet;
use std::fs;

use pgkeep::error::Result;
use pgkeep::pg::control::{CONTROL_FILE, ControlFile};
use pgkeep::pg::lsn::{Lsn, Timeline};
use pgkeep::pg::relation::Fork;
use pgkeep::pg::segment::{SegmentName, SegmentSize};
use pgkeep::pg::version::Major;
use pgkeep::pg::wal::{Record, RecordReader};
use proptest::prelude::*;

use crate::cluster::{Cluster, text};

crate::for_every_major!(
    reads_the_records_that_pg_waldump_reads,
    passes_over_a_record_that_a_crash_cut_off,
);

/// Something of every resource manager there is, and of every kind of image.
const WORKLOAD: &[&str] = &[
    "create extension bloom",
    "create extension pageinspect",
    "create sequence s",
    "create table t (i int, j int, t text, p point, r int4range, a int[])",
    "alter table t alter t set storage plain",
    "insert into t select i, nextval('s'), repeat(md5(i::text), 5), point(i, i), int4range(i, i + 5), array[i, i + 1] from generate_series(1, 3000) i",
    "create index on t (i)",
    "create index on t using hash (j)",
    "create index on t using gin (a)",
    "create index on t using gist (p)",
    "create index on t using spgist (r)",
    "create index on t using brin (i)",
    "create index on t using bloom (i, j)",
    "checkpoint",
    "insert into t select i, nextval('s'), 'x', point(i, i), int4range(i, i + 5), array[i] from generate_series(1, 2000) i",
    "set wal_compression = on",
    "checkpoint",
    "update t set j = j + 1 where i % 7 = 0",
    "set wal_compression = lz4",
    "checkpoint",
    "update t set j = j + 1 where i % 7 = 1",
    "set wal_compression = zstd",
    "checkpoint",
    "delete from t where i % 3 = 0",
    "vacuum t",
    "set wal_compression = off",
    "set wal_consistency_checking = 'all'",
    "update t set j = j + 1 where i % 100 = 2",
    "set wal_consistency_checking = ''",
    "delete from t where i > 900",
    "vacuum (freeze) t",
    "checkpoint",
    // Locks of several transactions on a row, subtransactions, a prepared transaction.
    "create table locked (i int primary key)",
    "insert into locked values (1)",
    "create table refers (i int references locked)",
    "begin",
    "select * from locked for key share",
    "savepoint a",
    "update locked set i = i",
    "savepoint b",
    "create table gone as select generate_series(1, 100)",
    "rollback to b",
    "select * from locked for update",
    "commit",
    "begin",
    "create table prepared as select generate_series(1, 100)",
    "select pg_logical_emit_message(true, 'of the transaction', repeat('x', 50000))",
    "prepare transaction 'prepared'",
    "commit prepared 'prepared'",
    "select pg_logical_emit_message(false, 'of none', repeat('x', 3000000))",
    "select pg_replication_origin_create('elsewhere')",
    "select pg_replication_origin_session_setup('elsewhere')",
    "begin",
    "select pg_replication_origin_xact_setup('0/1234', now())",
    "insert into locked values (2)",
    "commit",
    "select pg_replication_origin_session_reset()",
    "select pg_replication_origin_create('nowhere')",
    "select pg_replication_origin_advance('nowhere', '0/1234')",
    "select pg_replication_origin_drop('nowhere')",
    "vacuum full pg_class",
    "create database other",
    "drop database other",
    "set allow_in_place_tablespaces = on",
    "create tablespace place location ''",
    "create table placed tablespace place as select generate_series(1, 100) i",
    "truncate placed",
    "drop table placed",
    "drop tablespace place",
    "create unlogged table u as select generate_series(1, 1000) i",
    "alter table u set logged",
    "select pg_create_restore_point('here')",
    "select pg_switch_wal()",
    "truncate t",
    "insert into t (i) select generate_series(1, 10000)",
    "drop table t",
    // So many transactions that pages of them and of their times are begun.
    "do $$ begin for i in 1..33000 loop begin insert into u values (i); exception when others then null; end; end loop; end $$",
];

fn reads_the_records_that_pg_waldump_reads(major: Major) {
    let cluster = Cluster::init(major);
    cluster.configure(
        "wal_level = logical\ntrack_commit_timestamp = on\nmax_prepared_transactions = 5\n\
         wal_keep_size = '4GB'\nmax_replication_slots = 5\n",
    );
    assert!(cluster.start());
    // Only 15 and later compress by more than one method.
    let statements: Vec<&str> = WORKLOAD
        .iter()
        .filter(|statement| major > Major::V14 || !is_of_later_majors(statement))
        .copied()
        .collect();
    cluster.sql(&statements);
    // Transactions that overlap, so that a row is locked by several.
    let script = cluster.directory("scripts").join("lock.sql");
    fs::write(
        &script,
        "begin; select * from locked where i = 1 for key share; select pg_sleep(0.01);\n\
         insert into refers values (1); commit;",
    )
    .unwrap();
    let root = cluster.data().parent().unwrap().to_owned();
    let arguments = [
        "-h",
        text(&root),
        "-U",
        "postgres",
        "-n",
        "-c",
        "4",
        "-t",
        "5",
        "-f",
    ];
    cluster.run(
        "pgbench",
        &[&arguments[..], &[text(&script), "postgres"]].concat(),
    );

    let wal = Wal::of(&cluster);
    let (records, position) = wal.read(wal.start, 10_000).unwrap();
    let expected = wal.dump(&cluster);
    for (record, expected) in records.iter().zip(&expected) {
        assert_eq!(record, expected);
    }
    assert_eq!(records.len(), expected.len());
    assert!(records.len() > 50_000, "{}", records.len());
    assert!(position == wal.end, "{position} {}", wal.end);
    // All but what no server without standbys or extensions writes.
    let managers: BTreeSet<u8> = records.iter().map(|record| record.manager).collect();
    assert_eq!(managers, (0..=21).collect());

    // From in between, and in pieces of every sort.
    for (index, piece) in [(1, 77), (4000, 8192), (records.len() - 3000, 1)] {
        let (found, end) = wal.read(Lsn(records[index].start.0 - 7), piece).unwrap();
        assert!(found == records[index..], "{index}");
        assert_eq!(end, position);
    }
    survives_damage(&wal, &records);
}

fn is_of_later_majors(statement: &str) -> bool {
    ["lz4", "zstd"].iter().any(|word| statement.ends_with(word))
}

/// No damage makes the reader panic, and no record is handed over that is not
/// there.
fn survives_damage(wal: &Wal, records: &[Line]) {
    let change = (any::<prop::sample::Index>(), any::<u8>(), 1..40_usize);
    let changes = prop::collection::vec(change, 1..4);
    proptest!(ProptestConfig::with_cases(40), |(changes in changes, piece in 1000..1_000_000_usize)| {
        let mut damaged = wal.clone();
        damaged.bytes.truncate(3 << 20);
        let length = damaged.bytes.len();
        for (at, byte, count) in changes {
            let at = at.index(length);
            damaged.bytes[at..length.min(at + count)].fill(byte);
        }
        let mut found = Vec::new();
        let read = damaged.visit(damaged.start, piece, &mut |record| {
            found.push(Line::of(record));
            Ok(())
        });
        prop_assert!(records.starts_with(&found));
        if let Err(error) = read {
            prop_assert!(error.message().contains("in segment 0000000"));
        }
    });
}

fn passes_over_a_record_that_a_crash_cut_off(major: Major) {
    let cluster = Cluster::init(major);
    cluster.configure("wal_keep_size = '1GB'\n");
    assert!(cluster.start());
    cluster.sql(&[
        "select pg_switch_wal()",
        "select pg_logical_emit_message(true, 'long', repeat('x', 900000))",
        "select pg_logical_emit_message(true, 'cut', repeat('x', 600000))",
    ]);
    let last = cluster.sql(&["select pg_walfile_name(pg_current_wal_flush_lsn())"]);
    cluster.stop("immediate");
    fs::remove_file(cluster.data().join("pg_wal").join(last)).unwrap();
    assert!(cluster.start());
    cluster.sql(&["create table t as select generate_series(1, 1000)"]);

    let wal = Wal::of(&cluster);
    let (records, position) = wal.read(wal.start, 10_000).unwrap();
    assert!(records == wal.dump(&cluster));
    assert_eq!(position, wal.end);
    let overwrites = |record: &&Line| (record.manager, record.info) == (0, 0xD0);
    assert_eq!(records.iter().filter(overwrites).count(), 1);
}

/// The WAL of a cluster, up to where it was flushed.
#[derive(Debug, Clone)]
struct Wal {
    major: Major,
    system_identifier: u64,
    size: SegmentSize,
    start: Lsn,
    end: Lsn,
    bytes: Vec<u8>,
}

impl Wal {
    fn of(cluster: &Cluster) -> Wal {
        let control = fs::read(cluster.data().join(CONTROL_FILE)).unwrap();
        let control = ControlFile::parse(&control).unwrap();
        let size = control.wal_segment_size;
        let end = cluster.sql(&["checkpoint", "select pg_switch_wal()"]);
        let end: Lsn = end.parse().unwrap();
        // The end of the record that switched.
        let end = Lsn(end.0.next_multiple_of(size.bytes()));
        let directory = cluster.data().join("pg_wal");
        let files = fs::read_dir(&directory).unwrap();
        let names = files.filter_map(|file| {
            SegmentName::parse(file.unwrap().file_name().to_str().unwrap(), size)
        });
        let first = names.map(|name| name.number).min().unwrap();
        let mut bytes = Vec::new();
        for number in first.0..end.segment(size).0 {
            let name = SegmentName {
                timeline: Timeline(1),
                number: pgkeep::pg::segment::SegmentNumber(number),
            };
            bytes.extend(fs::read(directory.join(name.file_name(size))).unwrap());
        }
        Wal {
            major: cluster.major,
            system_identifier: control.system_identifier,
            size,
            start: first.start(size),
            end,
            bytes,
        }
    }

    fn visit(
        &self,
        from: Lsn,
        piece: usize,
        visit: &mut dyn FnMut(&Record<'_>) -> Result<()>,
    ) -> Result<Lsn> {
        let mut reader = RecordReader::new(self.major, self.system_identifier, self.size, from);
        let skipped = from.segment(self.size).start(self.size).0 - self.start.0;
        for bytes in self.bytes[skipped as usize..].chunks(piece) {
            reader.push(bytes, visit)?;
        }
        Ok(reader.position())
    }

    fn read(&self, from: Lsn, piece: usize) -> Result<(Vec<Line>, Lsn)> {
        let mut lines = Vec::new();
        let position = self.visit(from, piece, &mut |record| {
            lines.push(Line::of(record));
            Ok(())
        })?;
        Ok((lines, position))
    }

    /// What pg_waldump finds in the same WAL.
    fn dump(&self, cluster: &Cluster) -> Vec<Line> {
        let directory = cluster.data().join("pg_wal");
        let (start, end) = (self.start.to_string(), self.end.to_string());
        let managers = cluster.run("pg_waldump", &["--rmgr=list"]);
        let managers: Vec<&str> = managers.lines().collect();
        cluster
            .run(
                "pg_waldump",
                &["-p", text(&directory), "-s", &start, "-e", &end],
            )
            .lines()
            .map(|line| Line::parse(line, &managers))
            .collect()
    }
}

/// What pg_waldump says of a record, and what more is asked of ours alone.
#[derive(Debug, Clone)]
struct Line {
    start: Lsn,
    manager: u8,
    xid: u32,
    /// Tablespace, database, relation, fork, block, whether there is an image.
    blocks: Vec<(u32, u32, u32, Fork, u32, bool)>,
    info: u8,
}

impl PartialEq for Line {
    fn eq(&self, other: &Line) -> bool {
        let told = |line: &Line| (line.start, line.manager, line.xid);
        told(self) == told(other) && self.blocks == other.blocks
    }
}

impl Line {
    fn of(record: &Record<'_>) -> Line {
        let blocks = record.blocks.iter().map(|reference| {
            let fork = reference.fork;
            (
                fork.tablespace,
                fork.database,
                fork.relfilenumber,
                fork.fork,
                reference.block,
                reference.has_image,
            )
        });
        Line {
            start: record.start,
            manager: record.resource_manager.0,
            xid: record.xid,
            blocks: blocks.collect(),
            info: record.info & 0xF0,
        }
    }

    /// `rmgr: Heap len (rec/tot): 54/ 8150, tx: 7, lsn: 0/1, prev 0/0, desc: INSERT …,
    /// blkref #0: rel 1663/5/2619 fork vm blk 5 FPW, …`
    fn parse(line: &str, managers: &[&str]) -> Line {
        let behind = |text: &str| {
            let (_, rest) = line.split_once(text).unwrap_or_else(|| panic!("{line}"));
            rest.trim_start().split([' ', ',']).next().unwrap()
        };
        let manager = managers.iter().position(|name| *name == behind("rmgr: "));
        let blocks = line.split("blkref #").skip(1).map(|block| {
            let words: Vec<&str> = block.split([' ', ',']).collect();
            assert_eq!(words[1], "rel", "{line}");
            let mut relation = words[2].split('/').map(|number| number.parse().unwrap());
            let mut relation = || relation.next().unwrap();
            let (fork, rest) = match words[3] {
                "fork" => (words[4], &words[5..]),
                _ => ("main", &words[3..]),
            };
            let forks = ["main", "fsm", "vm", "init"];
            let fork = forks.iter().position(|name| *name == fork).unwrap();
            assert_eq!(rest[0], "blk", "{line}");
            (
                relation(),
                relation(),
                relation(),
                Fork::ALL[fork],
                rest[1].parse().unwrap(),
                rest.get(2) == Some(&"FPW"),
            )
        });
        Line {
            start: behind("lsn: ").parse().unwrap(),
            manager: manager.unwrap() as u8,
            xid: behind("tx: ").parse().unwrap(),
            blocks: blocks.collect(),
            info: 0,
        }
    }
}
