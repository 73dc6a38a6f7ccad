//! The block maps that are made of the WAL on its way into the archive: they adjoin, and together they say
//! what the server's own summaries say.

use std::fs;
use std::path::Path;

use pgkeep::pg::changed_blocks::{ChangedBlocks, RelationFork, SummaryName};
use pgkeep::pg::lsn::{Lsn, Timeline};
use pgkeep::pg::relation::Fork;
use pgkeep::repository::block_maps::{BlockMaps, StoredMap};
use pgkeep::repository::layout::ServerFolder;
use pgkeep::stored::master_key::Keyring;

use crate::support::archive::{archiving, small_segments, switch, wait_until_archived};
use crate::support::cluster::Postmaster;
use crate::support::pgkeep::SERVER;
use crate::support::{Cluster, Pgkeep, account, installed, wait_until};

const WAL_PAGE: u64 = 8192;

fn maps(pgkeep: &Pgkeep) -> BlockMaps {
    BlockMaps::of(&ServerFolder::new(pgkeep.base(), SERVER))
}

fn names(pgkeep: &Pgkeep) -> Vec<SummaryName> {
    let maps = maps(pgkeep).list().unwrap();
    maps.into_iter().map(|map| map.name).collect()
}

/// Each begins where the one before ended, or behind the header of the page there.
fn assert_adjoining(names: &[SummaryName]) {
    assert!(names.len() > 3, "{names:?}");
    for pair in names.windows(2) {
        let [before, after] = pair else {
            unreachable!()
        };
        let page = before.end.0 - before.end.0 % WAL_PAGE;
        assert!(
            after.start == before.end || after.start.0 == page,
            "{before:?} and {after:?}"
        );
    }
}

/// The start of a segment just begun, in which a checkpoint has its redo pointer: both the server's
/// summaries and our maps are cut there.
fn cut(cluster: &Cluster) -> Lsn {
    let mut redo = Lsn(0);
    wait_until("a checkpoint begins with a segment", || {
        cluster.sql("insert into switched values (1); select pg_switch_wal(); checkpoint");
        redo = cluster
            .value("select redo_lsn from pg_control_checkpoint()")
            .parse()
            .unwrap();
        redo.0 % (1 << 20) == 40
    });
    redo
}

/// What the server's summaries say of a range that they are cut at.
fn summarized(cluster: &Cluster, start: Lsn, end: Lsn) -> ChangedBlocks {
    wait_until("all WAL is summarised", || {
        let query = format!("select summarized_lsn >= '{end}' from pg_get_wal_summarizer_state()");
        cluster.value(&query) == "t"
    });
    let mut all = ChangedBlocks::new();
    let mut position = start;
    for row in cluster.sql(&format!(
        "select tli, start_lsn, end_lsn from pg_available_wal_summaries()
         where start_lsn >= '{start}' and end_lsn <= '{end}' order by start_lsn"
    )) {
        assert_eq!(row[1].parse::<Lsn>().unwrap(), position);
        position = row[2].parse().unwrap();
        let mut one = ChangedBlocks::new();
        let contents = cluster.sql(&format!(
            "select reltablespace, reldatabase, relfilenode, relforknumber, relblocknumber, is_limit_block
             from pg_wal_summary_contents({}, '{}', '{}') order by is_limit_block desc",
            row[0], row[1], row[2]
        ));
        for content in contents {
            let number = |field: usize| content[field].parse::<u32>().unwrap();
            let fork = RelationFork {
                tablespace: number(0),
                database: number(1),
                relfilenumber: number(2),
                fork: Fork::from_number(content[3].parse().unwrap()).unwrap(),
            };
            match content[5].as_str() {
                "t" => one.set_limit(fork, number(4)),
                _ => one.mark(fork, number(4)),
            }
        }
        all.append(one);
    }
    assert_eq!(position, end);
    all
}

/// Limits, and the blocks below them: how WAL is cut decides over the others.
fn what_counts(changed: &ChangedBlocks) -> Vec<(RelationFork, Option<u32>, Vec<u32>)> {
    changed
        .iter()
        .map(|(fork, changes)| {
            let limit = changes.limit.unwrap_or(u32::MAX);
            let blocks = changes.blocks.iter().filter(|block| *block < limit);
            (*fork, changes.limit, blocks.collect())
        })
        .collect()
}

fn change_things(cluster: &Cluster) {
    account::run(cluster.tool("pgbench").args(["-n", "-c", "2", "-t", "300"]));
    cluster.sql(
        "create table wide as select i, repeat(md5(i::text), 60) from generate_series(1, 3000) i;
         create index on wide (i);
         delete from wide where i > 1000",
    );
    cluster.sql("vacuum wide");
    cluster.sql("truncate switched; insert into switched values (1)");
    cluster.sql("create database more template app");
    cluster.sql("drop table wide");
}

fn read(cluster: &Cluster, map: &StoredMap, keys: &Keyring) -> ChangedBlocks {
    let system_identifier = cluster
        .value("select system_identifier from pg_control_system()")
        .parse()
        .unwrap();
    let map = map.read(system_identifier, keys).unwrap();
    map.unwrap().changed
}

fn merged(cluster: &Cluster, maps: &[StoredMap], keys: &Keyring) -> ChangedBlocks {
    let mut all = ChangedBlocks::new();
    for map in maps {
        all.append(read(cluster, map, keys));
    }
    all
}

#[test]
fn maps_of_pushed_and_of_copied_wal_say_what_the_servers_summaries_say() {
    for is_pushed in [true, false] {
        let (mut cluster, pgkeep) = archiving(
            17,
            &small_segments(),
            |pgkeep| pgkeep,
            |pgkeep| match is_pushed {
                true => pgkeep.archive_command(),
                false => "true".to_owned(),
            },
        );
        let pgkeep = pgkeep.encrypting("aes-192-gcm");
        // A key is believed only where it belongs to who reads it.
        let key = pgkeep.ground().path().join("key-of-the-test");
        fs::copy(pgkeep.ground().path().join("master.key"), &key).unwrap();
        let keys = Keyring::new(Some(key));
        cluster.stop(Postmaster::Fast);
        cluster.set("summarize_wal = on");
        cluster.set("autovacuum = off");
        cluster.set("wal_keep_size = '1GB'");
        cluster.start();
        switch(&cluster);
        let start = cut(&cluster);
        change_things(&cluster);
        let end = cut(&cluster);
        let last = switch(&cluster);
        match is_pushed {
            true => wait_until_archived(&pgkeep, &last),
            false => drop(pgkeep.ok(&["wal", "copy", SERVER])),
        }
        assert_adjoining(&names(&pgkeep));
        let mut stored = maps(&pgkeep).list().unwrap();
        stored.retain(|map| start < map.name.end && map.name.start < end);
        let (first, last) = (stored.first().unwrap(), stored.last().unwrap());
        assert!(first.name.start <= start && end <= last.name.end);
        assert!(stored.len() as u64 >= (end.0 - start.0) >> 20);
        let ours = merged(&cluster, &stored, &keys);
        assert_eq!(
            what_counts(&ours),
            what_counts(&summarized(&cluster, start, end))
        );
    }
}

#[test]
fn pg_walsummary_reads_a_map_that_is_stored_plain() {
    let cluster = Cluster::with(17, &small_segments());
    let pgkeep = Pgkeep::of(&cluster).with("compression", "none");
    switch(&cluster);
    change_things(&cluster);
    switch(&cluster);
    pgkeep.ok(&["wal", "copy", SERVER]);
    let stored = maps(&pgkeep).list().unwrap();
    assert!(stored.len() > 3);
    for map in stored {
        let mut tool = account::command(installed::binaries(17).join("pg_walsummary"));
        let said = account::run(tool.arg("--individual").arg(file_of(&map)));
        let blocks = said.lines().filter(|line| line.contains(" block ")).count();
        let read = read(&cluster, &map, &Keyring::new(None));
        let known: u64 = read.iter().map(|(_, changes)| changes.blocks.len()).sum();
        assert_eq!(blocks as u64, known, "{}", map.path);
    }
}

#[test]
fn a_map_goes_on_across_a_promotion_and_is_cut_there() {
    let (mut primary, pgkeep) = archiving(
        16,
        &small_segments(),
        |pgkeep| pgkeep,
        Pgkeep::archive_command,
    );
    let standby = primary.standby();
    switch(&primary);
    primary.sql("create table first as select generate_series(1, 20000) i");
    standby.catch_up_with(&primary);
    primary.stop(Postmaster::Fast);
    standby.sql("select pg_promote()");
    standby.wait_until_writable();
    standby.sql("create table second as select generate_series(1, 20000) i");
    let last = switch(&standby);
    wait_until_archived(&pgkeep, &last);
    let names = names(&pgkeep);
    assert_adjoining(&names);
    let history = fs::read_to_string(pgkeep.wal().join("00000002.history")).unwrap();
    let switch = history.split_whitespace().nth(1).unwrap();
    let switch: Lsn = switch.parse().unwrap();
    let first = names
        .iter()
        .rfind(|name| name.timeline == Timeline(1))
        .unwrap();
    let second = names
        .iter()
        .find(|name| name.timeline == Timeline(2))
        .unwrap();
    assert!(
        second.start == switch && first.end.0 - switch.0 <= 40,
        "{switch} {names:?}"
    );
}

#[test]
fn a_map_is_believed_of_its_own_wal_alone() {
    let (cluster, pgkeep) = archiving(
        16,
        &small_segments(),
        |pgkeep| pgkeep.with("compression", "none"),
        Pgkeep::archive_command,
    );
    let full = pgkeep.backup();
    switch(&cluster);
    cluster.sql("create table changed as select i from generate_series(1, 60000) i; create table other (i int)");
    let last = switch(&cluster);
    wait_until_archived(&pgkeep, &last);
    let increment = || {
        let backup = pgkeep.backup_on(&full.identifier);
        let info = pgkeep.ok(&["info", SERVER, &backup.identifier]);
        info.at("Response.Source")
    };
    assert!(increment().contains("block maps"));
    // No more are made.
    cluster.sql("alter system set archive_command = 'false'");
    cluster.sql("select pg_reload_conf()");
    switch(&cluster);
    crate::support::wait_until("archiving fails", || {
        cluster.value("select failed_count > 0 from pg_stat_archiver") == "t"
    });

    let stored = maps(&pgkeep).list().unwrap();
    let (first, last) = (stored.first().unwrap(), stored.last().unwrap());
    let aside = file_of(first).with_file_name("aside");
    fs::rename(file_of(first), &aside).unwrap();
    fs::rename(file_of(last), file_of(first)).unwrap();
    fs::rename(&aside, file_of(last)).unwrap();
    let run = pgkeep.run(&["backup", SERVER, &full.identifier]);
    let error = run.failed(3);
    let is_named = |map: &StoredMap| error.contains(&map.path.to_string());
    assert!(is_named(first) || is_named(last), "{error}");
    let hint = run.report().at("Outcome.Hint");
    assert!(hint.contains("remove it"), "{hint}");

    // One that does not say what it is of is not asked. Its last bytes would say so.
    for map in &stored {
        let mut content = fs::read(file_of(map)).unwrap();
        content.truncate(content.len() - 8);
        fs::write(file_of(map), content).unwrap();
    }
    assert!(!increment().contains("block maps"));
}

/// Where a map lies on this machine.
fn file_of(map: &StoredMap) -> &Path {
    map.path.local().unwrap()
}
