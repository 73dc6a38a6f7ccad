//! A filled cluster of each version and kind, made once and then copied.

use std::fs;
use std::path::{Path, PathBuf};

use super::account::run;
use super::cluster::{Cluster, Options, Postmaster};
use super::ground;
use super::installed;

/// Settings of every test cluster. Without fsync, because a test may kill
/// processes but never the machine.
const SETTINGS: &str = "
listen_addresses = ''
fsync = off
wal_init_zero = off
wal_level = replica
max_wal_senders = 10
shared_buffers = 32MB
max_wal_size = 512MB
autovacuum_naptime = 20s
allow_in_place_tablespaces = on
log_checkpoints = off
log_min_messages = warning
restart_after_crash = on
wal_retrieve_retry_interval = 200ms
";

/// What every test cluster holds besides pgbench's tables: `quiet`, that no
/// load ever touches, and `scratch`, whose rows a crash is meant to lose.
const CONTENT: &str = "
create table quiet (id int primary key, body text, wide text, number float8);
alter table quiet alter wide set storage external;
insert into quiet
    select i, md5(i::text), case when i % 50 = 0 then repeat(md5(i::text), 200) end, sqrt(i)
    from generate_series(1, 5000) i;
create index on quiet (body);
create unlogged table scratch as select i, md5(i::text) from generate_series(1, 2000) i;
create index on scratch (i);
";

/// Copies the template of that kind of cluster to `data`.
pub fn copy(major: u32, options: &Options, data: &Path) {
    ground::copy(&template(major, options), data);
}

/// The template's data directory, made by whoever comes first.
fn template(major: u32, options: &Options) -> PathBuf {
    // One from before these lines were changed is not what the tests expect.
    let recipe = crc32c::crc32c(include_bytes!("template.rs"));
    let name = format!(
        "template-{major}-{}-{}-{recipe:x}",
        options.kind(),
        installed::since(major)
    );
    ground::made_once(&name, |data| make(major, options, data))
}

fn make(major: u32, options: &Options, data: &Path) {
    let mut initdb = installed::initdb(major, data);
    initdb.arg(format!("--wal-segsize={}", options.wal_segment_mb));
    if options.checksums {
        initdb.arg("-k");
    } else if major >= 18 {
        initdb.arg("--no-data-checksums");
    }
    if options.group_access {
        initdb.arg("-g");
    }
    run(&mut initdb);
    let configuration = data.join("postgresql.conf");
    let mut settings = fs::read_to_string(&configuration).unwrap();
    settings.push_str(SETTINGS);
    // Each segment is copied into every test's cluster: as few are left as PostgreSQL allows. A standby of
    // theirs may fall behind by more.
    let few = format!("min_wal_size = {}MB", 2 * options.wal_segment_mb);
    // What autovacuum looks at just then, no vacuum frees of what is dead.
    let meanwhile = format!("{settings}{few}\nautovacuum = off\n");
    fs::write(&configuration, meanwhile).unwrap();

    let mut cluster = Cluster::adopt(major, data);
    cluster.start();
    cluster.sql_in("template1", "create extension amcheck");
    cluster.sql("create extension amcheck");
    run(cluster
        .tool("pgbench")
        .args(["-i", "-q", "-s", "1", "postgres"]));
    cluster.sql(CONTENT);
    cluster.sql("create database app");
    cluster.sql_in(
        "app",
        "create table t as select i, md5(i::text) from generate_series(1, 1000) i",
    );
    // Autovacuum must find nothing to do in any of them: databases are copied from app while backups run, and
    // PostgreSQL itself warns of a template that changes then; its WAL would fill segments that a test counts,
    // and its transactions take numbers that a test expects. What analyze writes is vacuumed in turn.
    for database in ["app", "postgres", "template1"] {
        cluster.sql_in(database, "vacuum (freeze, analyze)");
        cluster.sql_in(database, "vacuum (freeze, analyze) pg_statistic");
    }
    cluster.stop(Postmaster::Fast);
    fs::write(configuration, settings).unwrap();
}
