//! Clusters in other encodings than UTF-8: what names a file is bytes, and comes back as the same bytes.

use std::fs;
use std::path::Path;

use crate::support::account::{self, run};
use crate::support::cluster::Postmaster;
use crate::support::ground::Ground;
use crate::support::pgkeep::SERVER;
use crate::support::{Cluster, Pgkeep, checks, installed};

/// A running cluster in an encoding.
fn cluster(major: u32, encoding: &str, ground: &Ground) -> Cluster {
    let data = ground.path().join("data");
    run(account::command(installed::binaries(major).join("initdb"))
        .args(["-N", "-U", "postgres", "-A", "trust", "--no-locale", "-E"])
        .args([encoding, "-D"])
        .arg(&data));
    let mut cluster = Cluster::adopt(major, &data);
    cluster.set("fsync = off");
    cluster.start();
    cluster
}

/// Runs SQL whose bytes the server takes as they are.
fn raw_sql(cluster: &Cluster, sql: &str) {
    let mut client = cluster.connect("postgres").unwrap();
    client
        .batch_execute("set client_encoding = 'SQL_ASCII'")
        .unwrap();
    client.batch_execute(sql).unwrap();
}

fn with_names_beyond_ascii(major: u32, encoding: &str) {
    let ground = Ground::new();
    let mut source = cluster(major, encoding, &ground);
    let location = ground.folder("café");
    raw_sql(
        &source,
        &format!(
            "create tablespace \"café\" location '{}'",
            location.display()
        ),
    );
    source.sql("create table t as select i from generate_series(1, 1000) i");
    // Names in Latin-1, which are no UTF-8.
    source.sql("create database plain");
    source.sql(
        "do $$ begin execute format('alter database plain rename to %I', E'caf\\xe9'); end $$",
    );
    source.sql("alter system set log_line_prefix = E'caf\\xe9 '");
    raw_sql(
        &source,
        "create table far tablespace \"café\" as select 1 as i",
    );
    fs::write(source.data().join("été"), "one's own").unwrap();
    let pgkeep = Pgkeep::without_stream(&source);
    pgkeep.ok(&["check", SERVER]);
    let backup = pgkeep.finished(&pgkeep.ok(&["backup", SERVER, "--label", "après-midi"]));
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    let listed = info.at("Response.Tablespaces");
    assert!(listed.contains(location.to_str().unwrap()), "{listed}");
    let child = pgkeep.backup_on(&backup.identifier);
    let settings = fs::read(source.data().join("postgresql.auto.conf")).unwrap();
    let oid = source.value("select max(oid) from pg_tablespace");
    source.stop(Postmaster::Fast);
    for entry in fs::read_dir(&location).unwrap() {
        fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }

    let data = pgkeep.restore(&child.identifier);
    assert_eq!(
        fs::read_link(data.join("pg_tblspc").join(oid)).unwrap(),
        location
    );
    assert_eq!(fs::read(data.join("été")).unwrap(), b"one's own");
    let restored = fs::read(data.join("postgresql.auto.conf")).unwrap();
    let line = settings
        .split(|byte| *byte == b'\n')
        .find(|line| line.contains(&0xe9));
    assert!(
        restored
            .split(|byte| *byte == b'\n')
            .any(|found| Some(found) == line)
    );
    checks::pg_verifybackup(major, &data);
    let restored = Cluster::restored(major, &data);
    assert_eq!(restored.number("select count(*) from t"), 1000);
    assert_eq!(restored.number("select count(*) from far"), 1);
    drop(restored);
    let folder = pgkeep.ground().folder("drill");
    let drilled = pgkeep.ok(&[
        "verify",
        SERVER,
        "newest",
        "--start",
        folder.to_str().unwrap(),
    ]);
    assert_eq!(drilled.at("Response.Drill.NumberOfDatabases"), "4");
}

#[test]
fn a_cluster_in_latin1_restores() {
    for major in crate::support::versions(&[14, 18]) {
        with_names_beyond_ascii(major, "LATIN1");
    }
}

#[test]
fn a_cluster_in_sql_ascii_restores() {
    for major in crate::support::versions(&[14, 18]) {
        with_names_beyond_ascii(major, "SQL_ASCII");
    }
}

#[test]
fn a_tablespace_whose_folder_is_not_named_in_utf8_is_refused() {
    let ground = Ground::new();
    let source = cluster(18, "LATIN1", &ground);
    let folder = ground.path().join("caf");
    run(account::command("bash")
        .args(["-c", "mkdir \"$1\"$'\\xe9'", "bash"])
        .arg(&folder));
    source.sql(&format!(
        "create tablespace fast location E'{}\\xe9'",
        folder.display()
    ));
    let pgkeep = Pgkeep::without_stream(&source);
    for command in ["backup", "check"] {
        let error = pgkeep.run(&[command, SERVER]);
        assert!(
            error.stdout.contains("tablespace fast") && error.stdout.contains("caf\\xe9"),
            "{error:?}"
        );
        assert_eq!(error.status.code(), Some(5), "{error:?}");
    }
    source.assert_nothing_is_left();
    assert!(
        !Path::new(&pgkeep.backups()).exists()
            || fs::read_dir(pgkeep.backups()).unwrap().next().is_none()
    );
}

#[test]
fn names_that_an_encoding_cannot_have_are_left_out() {
    let ground = Ground::new();
    let source = cluster(18, "EUC_JP", &ground);
    fs::write(source.data().join("été"), "one's own").unwrap();
    let pgkeep = Pgkeep::of(&source).with("source", "sql");
    let backup = pgkeep.run(&["backup", SERVER]);
    backup.succeeded();
    assert!(
        backup.stderr.contains("left out of the backup: été: "),
        "{backup:?}"
    );
    Cluster::restored(18, &pgkeep.restore("newest"));
}
