//! WAL summaries of real servers, and ours as PostgreSQL's tools read them.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use pgkeep::pg::changed_blocks::{ChangedBlocks, RelationFork, SummaryName};
use pgkeep::pg::relation::Fork;
use pgkeep::pg::version::Major;

use crate::cluster::{Cluster, text};

#[test]
fn reads_and_writes_the_summaries_of_17() {
    reads_and_writes_summaries(Major::V17);
}

#[test]
fn reads_and_writes_the_summaries_of_18() {
    reads_and_writes_summaries(Major::V18);
}

fn reads_and_writes_summaries(major: Major) {
    let cluster = Cluster::init(major);
    cluster.configure("summarize_wal = on\n");
    assert!(cluster.start());
    cluster.sql(&[
        // More blocks than a list holds, then lists that are not in order.
        "create table wide (i int, t text)",
        "alter table wide alter t set storage plain",
        "insert into wide select i, repeat('x', 7000) from generate_series(1, 5000) i",
        "checkpoint",
        "update wide set i = -i where i % 50 = 3",
        "create unlogged table unlogged as select generate_series(1, 100) i",
        "vacuum wide",
        "delete from wide where i > 1000",
        "vacuum wide",
        "drop table unlogged",
        "create database other strategy file_copy",
        "drop database other",
        "checkpoint",
        "create table last ()",
        "checkpoint",
    ]);
    let end = cluster.sql(&["select redo_lsn from pg_control_checkpoint()"]);
    let is_summarised =
        format!("select summarized_lsn >= '{end}' from pg_get_wal_summarizer_state()");
    while cluster.sql(&[&is_summarised]) != "t" {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }

    let directory = cluster.data().join("pg_wal/summaries");
    let names: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.len() >= 3, "{names:?}");
    let ours = cluster.directory("ours");
    let mut blocks = 0;
    for name in &names {
        let parsed = SummaryName::parse(name).unwrap();
        assert_eq!(parsed.file_name(), *name);
        let bytes = fs::read(directory.join(name)).unwrap();
        let changed = ChangedBlocks::parse(&bytes).unwrap();
        let SummaryName {
            timeline,
            start,
            end,
        } = parsed;
        let by_sql = cluster.sql(&[&format!(
            "select reltablespace, reldatabase, relfilenode, relforknumber,
                    not is_limit_block, relblocknumber
             from pg_wal_summary_contents({timeline}, '{start}', '{end}')
             order by 1, 2, 3, 4, 5, 6"
        )]);
        assert!(lines(&changed) == by_sql.trim_end(), "{name}");

        // What was read, written again, says the same to PostgreSQL.
        fs::write(ours.join(name), changed.to_bytes()).unwrap();
        let theirs = directory.join(name);
        assert_eq!(
            listed(&cluster, text(&ours.join(name))),
            listed(&cluster, text(&theirs))
        );
        blocks += changed
            .iter()
            .map(|(_, changes)| changes.blocks.len())
            .sum::<u64>();
    }
    assert!(blocks > 5000, "{blocks}");
    reads_what_no_server_wrote(&cluster, &ours);
}

/// Blocks and limits that a small cluster never comes to.
fn reads_what_no_server_wrote(cluster: &Cluster, folder: &Path) {
    let fork = |number| RelationFork {
        tablespace: 1663,
        database: 5,
        relfilenumber: 16_384,
        fork: Fork::from_number(number).unwrap(),
    };
    let mut changed = ChangedBlocks::new();
    changed.recreate(1663, 5);
    for block in (0..4095).chain(70_000..74_096).chain(140_000..150_000) {
        changed.mark(fork(0), block);
        changed.mark(fork(2), 4_294_900_000 + block % 60_000);
    }
    changed.set_limit(fork(0), 145_000);
    changed.set_limit(fork(3), 4_294_967_294);
    let ours = folder.join("0000000100000000010000280000000002000028.summary");
    fs::write(&ours, changed.to_bytes()).unwrap();
    let listed = listed(cluster, text(&ours));
    let expected = changed
        .iter()
        .map(|(_, changes)| changes.blocks.len() as usize + changes.limit.iter().count());
    assert_eq!(listed.len(), expected.sum::<usize>());
    for line in [
        "TS 1663, DB 5, REL 0, FORK main: limit 0",
        "TS 1663, DB 5, REL 16384, FORK main: limit 145000",
        "TS 1663, DB 5, REL 16384, FORK main: block 4094",
        "TS 1663, DB 5, REL 16384, FORK main: block 74095",
        "TS 1663, DB 5, REL 16384, FORK main: block 144999",
        "TS 1663, DB 5, REL 16384, FORK vm: block 4294900000",
        "TS 1663, DB 5, REL 16384, FORK init: limit 4294967294",
    ] {
        assert!(listed.iter().any(|listed| listed == line), "{line}");
    }
}

/// What pg_walsummary makes of a file.
fn listed(cluster: &Cluster, path: &str) -> Vec<String> {
    let listed = cluster.run("pg_walsummary", &["--individual", path]);
    let mut lines: Vec<_> = listed.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// A summary as the query above has it.
fn lines(changed: &ChangedBlocks) -> String {
    let mut lines = String::new();
    for (fork, changes) in changed.iter() {
        let limit = changes.limit.iter().map(|limit| ('f', *limit));
        for (is_block, number) in limit.chain(changes.blocks.iter().map(|block| ('t', block))) {
            let RelationFork {
                tablespace,
                database,
                relfilenumber,
                fork,
            } = fork;
            let fork = fork.number();
            writeln!(
                lines,
                "{tablespace}|{database}|{relfilenumber}|{fork}|{is_block}|{number}"
            )
            .unwrap();
        }
    }
    lines.truncate(lines.trim_end().len());
    lines
}
