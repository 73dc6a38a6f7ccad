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
    let pgkeep = Pgkeep::of(&cluster);
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

#[test]
fn what_is_being_dropped_is_not_missing() {
    let cluster = Cluster::new(17);
    let folder = cluster.tablespace("fleeting");
    let pgkeep = Pgkeep::of(&cluster);
    // Its folder goes before the transaction is committed, and that waits for a standby which never comes.
    cluster.sql("alter system set synchronous_standby_names = 'nobody'");
    cluster.sql("select pg_reload_conf()");
    std::thread::scope(|scope| {
        let dropping = scope.spawn(|| cluster.sql("drop tablespace fleeting"));
        wait_until("the folder of the tablespace is gone", || {
            fs::read_dir(&folder).unwrap().next().is_none()
        });
        let catalogued = "select count(*) from pg_tablespace where spcname = 'fleeting'";
        assert_eq!(cluster.number(catalogued), 1);
        let mut running = pgkeep.spawn(&["backup", SERVER]);
        wait_until("the backup waits too", || {
            running.is_running()
                && cluster.number(
                    "select count(*) from pg_stat_activity where application_name ~ 'pgkeep'",
                ) > 0
        });
        std::thread::sleep(Duration::from_secs(2));
        assert!(running.is_running(), "it did not wait");
        cluster.sql("alter system reset synchronous_standby_names");
        cluster.sql("select pg_reload_conf()");
        running.wait().succeeded();
        dropping.join().unwrap();
    });
}
