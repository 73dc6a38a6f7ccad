//! `wal show`: what happened is told as it was done, and the positions that are printed lead to before it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::archive::{archiving, small_segments, switch, wait_until_archived};
use crate::support::cluster::Postmaster;
use crate::support::pgkeep::SERVER;
use crate::support::report::Report;
use crate::support::{Cluster, Pgkeep};

/// A cluster that archives, with the tables `orders` and `items` of a thousand rows each, backed up.
fn shop(major: u32, settings: &[&str]) -> (Cluster, Pgkeep) {
    let (mut cluster, pgkeep) = archiving(
        major,
        &small_segments(),
        |pgkeep| pgkeep,
        Pgkeep::archive_command,
    );
    cluster.stop(Postmaster::Fast);
    for setting in [
        "max_prepared_transactions = 5",
        "autovacuum = off",
        // pg_waldump reads it all.
        "wal_keep_size = 1GB",
    ] {
        cluster.set(setting);
    }
    for setting in settings {
        cluster.set(setting);
    }
    cluster.start();
    for table in ["orders", "items"] {
        cluster.sql(&format!(
            "create table {table} (id int primary key, n int); insert into {table} select i, 0 from generate_series(1, 1000) i"
        ));
    }
    pgkeep.backup();
    (cluster, pgkeep)
}

/// Does something in one transaction, and gives its number.
fn transaction(cluster: &Cluster, sql: &str) -> String {
    let rows = cluster.sql(&format!(
        "begin; {sql}; select pg_current_xact_id(); commit"
    ));
    rows.last().unwrap()[0].clone()
}

fn archive_all(cluster: &Cluster, pgkeep: &Pgkeep) {
    let last = switch(cluster);
    wait_until_archived(pgkeep, &last);
}

fn show(pgkeep: &Pgkeep, arguments: &[&str]) -> Report {
    pgkeep.ok(&[&["-F", "json", "wal", "show", SERVER], arguments].concat())
}

fn list<'a>(report: &'a Report, key: &str) -> Vec<&'a Value> {
    let found = report.find(&format!("Response.{key}"));
    found.and_then(Value::as_array).unwrap().iter().collect()
}

/// What a transaction is told to have done.
fn told<'a>(report: &'a Report, xid: &str) -> &'a Value {
    let committed = list(report, "Transactions");
    let found = committed
        .into_iter()
        .chain(list(report, "RolledBack"))
        .find(|it| it["XID"].as_u64() == xid.parse().ok());
    found.unwrap_or_else(|| panic!("no transaction {xid} in {:#}", report.0))
}

/// Inserted, updated and deleted rows of a relation.
fn rows(transaction: &Value, relation: &str) -> [u64; 3] {
    let relations = transaction["Relations"].as_array();
    let mut relations = relations.into_iter().flatten();
    let found = relations.find(|it| it["Relation"] == relation);
    let found = found.unwrap_or_else(|| panic!("no {relation} in {transaction:#}"));
    ["Inserted", "Updated", "Deleted"].map(|key| found[key].as_u64().unwrap_or_default())
}

/// What was destroyed, each with its name and the transaction.
fn destroyed(report: &Report) -> Vec<(String, String, String)> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    list(report, "Destroyed")
        .into_iter()
        .map(|it| (text(&it["What"]), text(&it["Name"]), text(&it["XID"])))
        .collect()
}

fn position(report: &Report, what: &str, name: &str) -> String {
    let all = list(report, "Destroyed");
    let mut all = all.into_iter();
    let found = all.find(|it| it["What"] == what && it["Name"] == name);
    found.unwrap()["Position"].as_str().unwrap().to_owned()
}

/// Rows that pg_waldump finds inserted, updated and deleted in tables that users made, all together.
fn dumped(cluster: &Cluster, report: &Report) -> [u64; 3] {
    let mut dump = cluster.tool("pg_waldump");
    let (start, end) = (report.at("Response.StartLSN"), report.at("Response.EndLSN"));
    dump.arg("-p").arg(cluster.data().join("pg_wal"));
    dump.args(["-s", &start, "-e", &end]);
    let output = crate::support::account::output(&mut dump);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut counts = [0; 3];
    for line in text.lines().filter(|line| line.starts_with("rmgr: Heap")) {
        // TRUNCATE, for logical decoding alone, is of no block.
        let Some((_, relation)) = line.split_once("rel ") else {
            continue;
        };
        let number = relation.split([' ', ',']).next().unwrap();
        let number = number.rsplit('/').next().unwrap();
        if number.parse::<u32>().unwrap() < 16_384 {
            continue;
        }
        let (_, what) = line.split_once("desc: ").unwrap();
        let words: Vec<&str> = what
            .split([' ', ':', ',', '+'])
            .filter(|it| !it.is_empty())
            .collect();
        let several = || {
            let mut numbers = words.iter().filter_map(|word| word.parse::<u64>().ok());
            numbers.next().unwrap()
        };
        match words[0] {
            "INSERT" => counts[0] += 1,
            "MULTI_INSERT" => counts[0] += several(),
            "UPDATE" | "HOT_UPDATE" => counts[1] += 1,
            "DELETE" => counts[2] += 1,
            _ => {}
        }
    }
    counts
}

fn told_in_all(report: &Report) -> [u64; 3] {
    let mut sum = [0; 3];
    let rolled_back = list(report, "RolledBack");
    for transaction in list(report, "Transactions").into_iter().chain(rolled_back) {
        for relation in transaction["Relations"].as_array().into_iter().flatten() {
            let name = relation["Relation"].as_str().unwrap();
            for (sum, rows) in sum.iter_mut().zip(rows(transaction, name)) {
                *sum += rows;
            }
        }
    }
    sum
}

fn what_was_done_is_told(major: u32, settings: &[&str]) {
    let (cluster, pgkeep) = shop(major, settings);
    let copied = transaction(
        &cluster,
        "copy items from program 'seq 2001 2300 | sed s/$/\\\\t1/'",
    );
    let updated = transaction(&cluster, "update orders set n = 1 where id <= 200");
    let deleted = transaction(&cluster, "delete from orders where id > 900");
    let nested = transaction(
        &cluster,
        "insert into orders values (3000, 1); savepoint a; insert into orders values (3001, 1), (3002, 1);
         rollback to a; savepoint b; delete from orders where id <= 7; release b;
         insert into orders values (3000, 5) on conflict do nothing",
    );
    let prepared = cluster.sql(
        "begin; savepoint a; delete from items where id <= 5; release a; select pg_current_xact_id();
         prepare transaction 'p'",
    );
    cluster.sql("commit prepared 'p'");
    let aborted = cluster.sql(
        "begin; delete from items; alter table items rename to nothing; select pg_current_xact_id(); rollback",
    );
    let after = transaction(&cluster, "delete from items where id = 6");
    // Of these the backup knows nothing.
    let late = transaction(
        &cluster,
        "create table late as select 1 as i from generate_series(1, 42)",
    );
    transaction(
        &cluster,
        "create schema other; create table other.gone (i int)",
    );
    cluster.sql("select pg_create_restore_point('before, all')");
    let truncated = transaction(&cluster, "truncate items");
    let refilled = transaction(&cluster, "insert into items values (1, 1)");
    cluster.sql("vacuum full orders");
    let dropped = transaction(&cluster, "drop table late; drop schema other cascade");
    cluster.sql("create database shed");
    cluster.sql_in(
        "shed",
        "create table tools (i int); insert into tools values (1)",
    );
    // Its old folder is removed, and it is not.
    cluster.tablespace("outside");
    cluster.sql("alter database shed set tablespace outside");
    cluster.sql("drop database shed");
    let last = transaction(
        &cluster,
        "alter table orders rename to sales; update sales set n = 3 where id = 300",
    );
    archive_all(&cluster, &pgkeep);

    let report = show(&pgkeep, &["--rows", "93"]);
    let of = |xid: &str, relation: &str| {
        rows(told(&report, xid), &format!("postgres/public.{relation}"))
    };
    assert_eq!(of(&copied, "items"), [300, 0, 0]);
    assert_eq!(of(&updated, "orders"), [0, 200, 0]);
    assert_eq!(of(&deleted, "orders"), [0, 0, 100]);
    assert_eq!(of(&nested, "orders"), [1, 0, 7]);
    assert_eq!(of(&prepared[0][0], "items"), [0, 0, 5]);
    assert_eq!(told(&report, &prepared[0][0])["Prepared"], true);
    assert_eq!(of(&aborted[0][0], "nothing"), [0, 0, 1295]);
    // Besides, what went back to a savepoint.
    assert_eq!(list(&report, "RolledBack").len(), 2);
    assert_eq!(of(&after, "items"), [0, 0, 1]);
    assert_eq!(of(&late, "late"), [42, 0, 0]);
    assert_eq!(told(&report, &late)["Created"][0], "postgres/public.late");
    assert_eq!(
        told(&report, &truncated)["Truncated"][0],
        "postgres/public.items"
    );
    assert_eq!(of(&refilled, "items"), [1, 0, 0]);
    assert_eq!(
        told(&report, &dropped)["Dropped"].as_array().unwrap().len(),
        2
    );
    assert_eq!(of(&last, "sales"), [0, 1, 0]);
    let transactions = list(&report, "Transactions");
    let rewritten = transactions
        .iter()
        .filter(|it| it["Rewritten"][0] == "postgres/public.orders");
    assert_eq!(rewritten.count(), 1);
    let tools = transactions
        .iter()
        .filter(|it| it["Created"][0] == "shed/public.tools");
    assert_eq!(tools.count(), 1, "{:#}", report.0);

    let found = destroyed(&report);
    let found: Vec<(&str, &str)> = found
        .iter()
        .map(|(what, name, _)| (what.as_str(), name.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            ("DROP DATABASE", "shed"),
            ("DROP", "postgres/public.late"),
            ("DROP", "postgres/other.gone"),
            ("TRUNCATE", "postgres/public.items"),
            ("DELETE", "postgres/public.orders"),
            ("UPDATE", "postgres/public.orders"),
        ]
    );
    let expected = format!("xid={truncated},inclusive=off");
    assert_eq!(
        position(&report, "TRUNCATE", "postgres/public.items"),
        expected
    );
    let points = list(&report, "Events");
    let mut points = points.iter().filter(|it| it["Event"] == "restore point");
    assert_eq!(points.next().unwrap()["Position"], "name=before\\, all");
    let sums = &list(&report, "Relations")[0];
    assert_eq!(sums["Relation"], "postgres/public.orders");
    assert_eq!(
        (&sums["Inserted"], &sums["Updated"], &sums["Deleted"]),
        (&1.into(), &200.into(), &107.into())
    );
    // The judge.
    let dumped = dumped(&cluster, &report);
    assert_eq!(told_in_all(&report), dumped, "{:#}", report.0);

    // In part.
    let part = show(&pgkeep, &["--from", &updated, "--to", &deleted]);
    let xids: Vec<String> = list(&part, "Transactions")
        .iter()
        .map(|it| it["XID"].to_string())
        .collect();
    assert_eq!(xids, [updated.as_str(), &deleted]);
    let part = show(&pgkeep, &["late", &deleted, "--limit", "2"]);
    assert_eq!(part.at("Response.TransactionsOmitted"), "1");
    assert_eq!(part.at("Response.Committed"), "3");
    assert_eq!(destroyed(&part).len(), 2);
    // By a name that it has no more.
    let part = show(&pgkeep, &["public.orders"]);
    assert_eq!(
        rows(told(&part, &updated), "postgres/public.orders"),
        [0, 200, 0]
    );
    let error = pgkeep.run(&["wal", "show", SERVER, "order"]).failed(1);
    assert!(error.contains("no table order is known"), "{error}");
}

#[test]
fn what_was_done_is_told_of_14() {
    what_was_done_is_told(14, &["wal_compression = on"]);
}

#[test]
fn what_was_done_is_told_of_15() {
    what_was_done_is_told(15, &["wal_compression = lz4"]);
}

#[test]
fn what_was_done_is_told_of_16() {
    what_was_done_is_told(16, &["wal_level = logical"]);
}

#[test]
fn what_was_done_is_told_of_17() {
    what_was_done_is_told(17, &[]);
}

#[test]
fn what_was_done_is_told_of_18() {
    what_was_done_is_told(18, &["wal_compression = zstd"]);
}

/// The cluster that a restore to a position makes, open for writing.
fn restored(pgkeep: &Pgkeep, position: &str) -> Cluster {
    let folder = pgkeep.ground().folder(&position.replace('/', "-"));
    let position = format!("{position},action=promote");
    let folder = folder.to_str().unwrap();
    let report = pgkeep.ok(&["restore", SERVER, "newest", &position, folder]);
    let data = PathBuf::from(report.at("Response.Directory"));
    let mut cluster = Cluster::adopt(17, &data);
    cluster.set("archive_mode = off");
    cluster.start();
    cluster.wait_until_writable();
    cluster
}

#[test]
fn the_positions_that_are_told_lead_to_before_it() {
    let (cluster, pgkeep) = shop(17, &[]);
    cluster.sql("create database shed");
    cluster.sql_in("shed", "create table tools as select 1");
    // An incremental backup has the names as well.
    pgkeep.backup_on("newest");
    cluster.sql("insert into orders values (5000, 1)");
    cluster.sql("drop database shed");
    cluster.sql("delete from orders");
    cluster.sql("drop table orders");
    archive_all(&cluster, &pgkeep);
    let report = show(&pgkeep, &[]);
    let found: BTreeMap<String, String> = destroyed(&report)
        .into_iter()
        .map(|(what, name, _)| (what.clone(), position(&report, &what, &name)))
        .collect();
    assert_eq!(found.len(), 3, "{:#}", report.0);

    let before_delete = restored(&pgkeep, &found["DELETE"]);
    assert_eq!(before_delete.number("select count(*) from orders"), 1001);
    let before_drop = restored(&pgkeep, &found["DROP"]);
    assert_eq!(before_drop.number("select count(*) from orders"), 0);
    let before_all = restored(&pgkeep, &found["DROP DATABASE"]);
    assert_eq!(
        before_all.sql_in("shed", "select count(*) from tools")[0][0],
        "1"
    );
}

#[test]
fn a_gap_and_what_crosses_it_are_told() {
    let (cluster, pgkeep) = shop(18, &[]);
    let before = transaction(&cluster, "delete from orders where id = 1");
    archive_all(&cluster, &pgkeep);
    transaction(&cluster, "delete from orders where id = 2");
    let lost = switch(&cluster);
    wait_until_archived(&pgkeep, &lost);
    let behind = transaction(&cluster, "delete from orders where id = 3");
    archive_all(&cluster, &pgkeep);
    fs::remove_file(pgkeep.wal().join(format!("{lost}.zstd"))).unwrap();
    let report = show(&pgkeep, &["orders"]);
    assert_eq!(report.at("Response.Gaps.0.First"), lost);
    for xid in [&before, &behind] {
        assert_eq!(
            rows(told(&report, xid), "postgres/public.orders"),
            [0, 0, 1]
        );
    }
    assert_eq!(list(&report, "Transactions").len(), 2);

    // What is damaged does not hide the rest.
    let next = pgkeep
        .archived()
        .into_iter()
        .find(|name| *name > lost)
        .unwrap();
    let damaged = pgkeep.wal().join(format!("{next}.zstd"));
    let content = fs::read(&damaged).unwrap();
    fs::write(&damaged, &content[..content.len() / 2]).unwrap();
    let run = pgkeep.run(&["-F", "json", "wal", "show", SERVER, "orders"]);
    run.failed(3);
    told(&run.report(), &before);
    fs::write(&damaged, content).unwrap();

    // With no backup before it, names come from one behind.
    let xid = transaction(&cluster, "delete from orders where id = 4");
    archive_all(&cluster, &pgkeep);
    fs::remove_dir_all(pgkeep.backups()).unwrap();
    pgkeep.backup();
    let report = show(&pgkeep, &["--from", &before]);
    assert_eq!(
        rows(told(&report, &xid), "postgres/public.orders"),
        [0, 0, 1]
    );
    assert_eq!(report.find("Response.Backup"), None);
    let error = pgkeep
        .run(&["wal", "show", SERVER, "--from", "never"])
        .failed(1);
    assert!(error.contains("restore point \"never\""), "{error}");
}

#[test]
fn each_timeline_is_shown_and_its_positions_say_so() {
    let mut old = Cluster::stopped(16, &small_segments());
    old.set("wal_keep_size = 1GB");
    old.start();
    let pgkeep = Pgkeep::of(&old).encrypting("aes-256-gcm");
    old.sql("create table orders (id int); insert into orders select generate_series(1, 1000)");
    pgkeep.backup();
    // With no archive, there is the backup's own WAL.
    show(&pgkeep, &["orders"]);

    let common = transaction(&old, "delete from orders where id <= 100");
    let mut new = old.standby();
    new.catch_up_with(&old);
    new.sql("select pg_promote()");
    new.wait_until_writable();
    let on_first = transaction(&old, "delete from orders where id <= 300");
    let on_second = transaction(&new, "delete from orders where id <= 400");
    let mut open = new.connect("postgres").unwrap();
    open.batch_execute("begin; delete from orders").unwrap();
    switch(&new);
    pgkeep.ok(&["wal", "copy", SERVER]);
    let pgkeep = pgkeep.with_server("host", new.socket().to_str().unwrap());
    pgkeep.ok(&["wal", "copy", SERVER]);
    drop(open);
    new.stop(Postmaster::Fast);
    old.stop(Postmaster::Fast);

    // Both gave their transactions the same numbers.
    assert_eq!(on_first, on_second);
    let name = "postgres/public.orders";
    let report = show(&pgkeep, &["--rows", "150"]);
    assert_eq!(rows(told(&report, &common), name), [0, 0, 100]);
    assert_eq!(rows(told(&report, &on_second), name), [0, 0, 300]);
    let expected = format!("xid={on_second},inclusive=off");
    assert_eq!(position(&report, "DELETE", name), expected);
    let events = list(&report, "Events");
    let promotion = events.iter().find(|it| it["Event"] == "promotion").unwrap();
    assert_eq!(
        (&promotion["Timeline"], &promotion["Parent"]),
        (&2.into(), &1.into())
    );
    assert_eq!(rows(list(&report, "Running")[0], name), [0, 0, 600]);

    let report = show(&pgkeep, &["--rows", "150", "--timeline", "1"]);
    assert_eq!(rows(told(&report, &on_first), name), [0, 0, 200]);
    let expected = format!("xid={on_first},inclusive=off,timeline=1");
    assert_eq!(position(&report, "DELETE", name), expected);
    let error = pgkeep
        .run(&["wal", "show", SERVER, "--timeline", "7"])
        .failed(1);
    assert!(error.contains("nothing of timeline 7"), "{error}");

    // By time, to the microsecond.
    let time = told(&report, &on_first)["Time"]
        .as_str()
        .unwrap()
        .to_owned();
    let from = |time: &str| {
        let report = show(&pgkeep, &["--timeline", "1", "--from", time, "orders"]);
        list(&report, "Transactions").len()
    };
    assert_eq!(from(&time), 1);
    let to = show(&pgkeep, &["--timeline", "1", "--to", &time, "orders"]);
    assert_eq!(told(&to, &on_first)["Time"], time.as_str());
    let ago = show(&pgkeep, &["--from", "1D", "--destroyed"]);
    assert_eq!(ago.find("Response.Transactions"), None);
}
