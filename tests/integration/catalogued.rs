//! What the server says that it has: a backup holds all of it, and nothing that is none of the server's.

use std::fs;
use std::time::Duration;

use crate::support::pgkeep::{SERVER, only_entry};
use crate::support::{Cluster, Pgkeep, checks, wait_until};

fn a_tablespace_or_database_that_is_not_there_fails_a_backup(major: u32) {
    let cluster = Cluster::new(major);
    let folder = cluster.tablespace("fast");
    cluster.sql("create table lies_there (i int) tablespace fast");
    cluster.sql("checkpoint");
    let pgkeep = Pgkeep::of(&cluster);

    // As if its disk were not mounted.
    let version = only_entry(&folder);
    let away = folder.with_extension("away");
    fs::rename(&version, &away).unwrap();
    let error = pgkeep.run(&["backup", SERVER]).failed(5);
    assert!(error.contains("tablespace fast"), "{error}");
    assert!(error.contains(folder.to_str().unwrap()), "{error}");
    fs::rename(&away, &version).unwrap();

    let oid = cluster.value("select oid from pg_database where datname = 'app'");
    let version = cluster.data().join(format!("base/{oid}/PG_VERSION"));
    let away = cluster.ground().path().join("PG_VERSION");
    fs::rename(&version, &away).unwrap();
    let error = pgkeep.run(&["backup", SERVER]).failed(5);
    assert!(error.contains("database app"), "{error}");
    fs::rename(&away, &version).unwrap();

    assert!(pgkeep.ok(&["list-backup", SERVER]).backups().is_empty());
    cluster.assert_nothing_is_left();
    pgkeep.backup();
}

#[test]
fn a_tablespace_or_database_of_14_that_is_not_there_fails_a_backup() {
    a_tablespace_or_database_that_is_not_there_fails_a_backup(14);
}

#[test]
fn a_tablespace_or_database_of_18_that_is_not_there_fails_a_backup() {
    a_tablespace_or_database_that_is_not_there_fails_a_backup(18);
}

#[test]
fn a_server_that_lies_writes_nothing_outside_of_the_repository() {
    let cluster = Cluster::new(17);
    // Both lead out of a data directory, and one there is none of: the server can be made to say that all of them are.
    fs::write(cluster.ground().path().join("pwned"), "x").unwrap();
    cluster
        .sql("alter function pg_catalog.pg_ls_dir(text, boolean, boolean) rename to true_ls_dir");
    let pgkeep = Pgkeep::of(&cluster).with("source", "sql");
    for name in [
        "../pwned",
        "base/../../pwned",
        "./PG_VERSION",
        "/etc/passwd",
        "base//1",
    ] {
        cluster.sql(&format!(
            "create or replace function pg_catalog.pg_ls_dir(text, boolean, boolean) returns setof text language sql as
             $$ select true_ls_dir($1, $2, $3) union all select '{name}' $$"
        ));
        let error = pgkeep.run(&["backup", SERVER]).failed(5);
        assert!(error.contains("cannot be a file of its own"), "{error}");
        assert!(error.contains(name), "{error}");
        let written = checks::tree(pgkeep.ground().path()).into_iter();
        let outside = ["pwned", "passwd"];
        let outside: Vec<_> = written
            .filter(|path| {
                outside
                    .iter()
                    .any(|name| path.to_string_lossy().contains(name))
            })
            .collect();
        assert!(outside.is_empty(), "{outside:?}");
    }
    // The same file twice is no file of a backup either.
    cluster.sql(
        "create or replace function pg_catalog.pg_ls_dir(text, boolean, boolean) returns setof text language sql as
         $$ select true_ls_dir($1, $2, $3) union all select 'PG_VERSION' $$",
    );
    let error = pgkeep.run(&["backup", SERVER]).failed(5);
    assert!(error.contains("PG_VERSION twice"), "{error}");
    assert!(pgkeep.ok(&["list-backup", SERVER]).backups().is_empty());
}

/// A server whose commits wait for a standby that never comes, until this is dropped.
struct CommitsWait<'a>(&'a Cluster);

impl CommitsWait<'_> {
    fn on(cluster: &Cluster) -> CommitsWait<'_> {
        cluster.sql("alter system set synchronous_standby_names = 'nobody'");
        cluster.sql("select pg_reload_conf()");
        let is_set =
            "select setting = 'nobody' from pg_settings where name = 'synchronous_standby_names'";
        wait_until("commits wait", || cluster.value(is_set) == "t");
        CommitsWait(cluster)
    }
}

impl Drop for CommitsWait<'_> {
    fn drop(&mut self) {
        self.0.sql("alter system reset synchronous_standby_names");
        self.0.sql("select pg_reload_conf()");
    }
}

#[test]
fn what_is_being_dropped_is_not_missing() {
    let cluster = Cluster::new(17);
    let folder = cluster.tablespace("fleeting");
    let pgkeep = Pgkeep::of(&cluster);
    std::thread::scope(|scope| {
        let waiting = CommitsWait::on(&cluster);
        // Its folder goes before that is committed.
        let dropping = scope.spawn(|| cluster.sql("drop tablespace fleeting"));
        let link = "select count(*) from pg_ls_dir('pg_tblspc')";
        wait_until("the tablespace is gone from the disk", || {
            cluster.number(link) == 0
        });
        let catalogued = "select count(*) from pg_tablespace where spcname = 'fleeting'";
        assert_eq!(cluster.number(catalogued), 1);
        assert!(fs::read_dir(&folder).unwrap().next().is_none());
        let mut running = pgkeep.spawn(&["backup", SERVER]);
        std::thread::sleep(Duration::from_secs(2));
        assert!(running.is_running(), "it did not wait");
        drop(waiting);
        running.wait().succeeded();
        dropping.join().unwrap();
    });
}
