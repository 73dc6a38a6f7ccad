//! Which way a server's files are read: what comes of each is the same, and the disk is believed only where it is the server's.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::support::account::{self, is_root};
use crate::support::checks::{self, Before};
use crate::support::cluster::{Options, Postmaster};
use crate::support::link::Link;
use crate::support::pgkeep::{Run, SERVER};
use crate::support::{Cluster, Pgkeep};

/// A server with a tablespace, where nothing changes by itself.
pub fn quiet(major: u32) -> Cluster {
    let mut cluster = Cluster::stopped(major, &Options::default());
    cluster.set("autovacuum = off");
    if major >= 15 {
        cluster.set("allow_in_place_tablespaces = on");
    }
    cluster.start();
    cluster.tablespace("outside");
    cluster.sql("create table far tablespace outside as select i from generate_series(1, 3000) i");
    if major >= 15 {
        // PostgreSQL 15 leaves it out of a base backup.
        cluster.sql("create tablespace inside location ''");
        cluster
            .sql("create table near tablespace inside as select i from generate_series(1, 3000) i");
    }
    cluster.sql("create unlogged table fleeting as select i from generate_series(1, 3000) i");
    // A stranger whose name is not UTF-8.
    let within = cluster.file_of("far");
    let beside = cluster
        .data()
        .join(&within)
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .to_owned();
    fs::write(beside.join(OsStr::from_bytes(b"caf\xe9")), "one's own").unwrap();
    fs::create_dir(cluster.data().join("conf.d")).unwrap();
    fs::write(cluster.data().join("conf.d/own.conf"), "one's own").unwrap();
    fs::write(cluster.data().join("empty"), "").unwrap();
    cluster.sql("checkpoint");
    cluster
}

fn source_of(pgkeep: &Pgkeep, backup: &str) -> String {
    let info = pgkeep.ok(&["info", SERVER, backup]);
    info.at("Response.FileSource")
}

/// What a backup says of why it reads the way it does.
fn reason(run: &Run) -> &str {
    let mut lines = run.stderr.lines();
    lines
        .find(|line| line.contains("the way of the files: "))
        .unwrap_or_else(|| panic!("no reason in {run:?}"))
}

fn every_way_gives_the_same(major: u32) {
    let cluster = quiet(major);
    let pgkeep = Pgkeep::of(&cluster).with("compression", "none");
    let ways: &[&str] = match major {
        14 => &["sql", "direct"],
        _ => &["sql", "direct", "stream"],
    };
    let stored: Vec<PathBuf> = ways
        .iter()
        .map(|source| {
            let report = pgkeep.ok(&["backup", SERVER, "--source", source]);
            let backup = pgkeep.finished(&report);
            assert_eq!(source_of(&pgkeep, &backup.identifier), *source);
            backup.folder.join("data")
        })
        .collect();
    for other in &stored[1..] {
        // What differs is that of the backup itself, and what a server writes by the way.
        checks::shell(&format!(
            "diff -r -x pg_wal -x backup_label -x backup_manifest -x pg_control -x pg_logical -x 'pgstat*' {} {} >&2",
            checks::quoted(&stored[0]),
            checks::quoted(other)
        ));
        assert!(other.join("conf.d/own.conf").exists());
    }
}

#[test]
fn every_way_of_14_gives_the_same() {
    every_way_gives_the_same(14);
}

#[test]
fn every_way_of_15_gives_the_same() {
    every_way_gives_the_same(15);
}

#[test]
fn every_way_of_16_gives_the_same() {
    every_way_gives_the_same(16);
}

#[test]
fn every_way_of_17_gives_the_same() {
    every_way_gives_the_same(17);
}

#[test]
fn every_way_of_18_gives_the_same() {
    every_way_gives_the_same(18);
}

fn chains_come_from_the_disk_too(major: u32) {
    let cluster = quiet(major);
    let pgkeep = Pgkeep::of(&cluster).with("source", "auto");
    pgkeep.backup();
    pgkeep.ok(&["wal", "copy", SERVER]);
    cluster.sql("update pgbench_accounts set filler = 'changed' where aid % 50 = 0");
    cluster.sql("insert into far select i from generate_series(1, 2000) i");
    let before = Before::of(&cluster);
    let child = pgkeep.backup_on("newest");
    assert_eq!(source_of(&pgkeep, "newest"), "direct");
    assert_eq!(source_of(&pgkeep, "oldest"), "direct");
    pgkeep.ok(&["verify", SERVER, &child.identifier]);
    let restored = pgkeep.restore_elsewhere("newest");
    let restored = checks::is_whole(major, &restored, &before, 0);
    assert_eq!(restored.number("select count(*) from far"), 5000);
    assert_eq!(
        checks::dump(&restored, "pgbench_accounts"),
        checks::dump(&cluster, "pgbench_accounts")
    );
}

#[test]
fn chains_of_14_come_from_the_disk_too() {
    chains_come_from_the_disk_too(14);
}

#[test]
fn chains_of_18_come_from_the_disk_too() {
    chains_come_from_the_disk_too(18);
}

/// Runs pgkeep where something else is mounted over a folder.
fn with_another_over(pgkeep: &Pgkeep, other: &Path, folder: &Path, arguments: &[&str]) -> Run {
    let script = format!(
        "mount --make-rprivate / && mount --bind {} {} && exec setpriv --reuid={} --regid={} --clear-groups \"$@\"",
        other.display(),
        folder.display(),
        account::uid(),
        account::gid()
    );
    let script = format!("exec unshare --mount bash -c '{script}' bash \"$@\"");
    pgkeep.spawn_in_roots_shell(&script, arguments).wait()
}

/// As a container, a snapshot or a copy of the machine has it: the same path, the same identifier, the same `postmaster.pid`.
#[test]
fn a_copy_at_the_same_place_is_not_taken_for_the_data_directory() {
    if !is_root() {
        return;
    }
    let cluster = quiet(18);
    let copy = cluster.ground().path().join("copy");
    checks::shell(&format!(
        "cp -a {} {}",
        checks::quoted(cluster.data()),
        checks::quoted(&copy)
    ));
    cluster.sql("update pgbench_accounts set filler = 'behind the copy'");
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::of(&cluster).with("source", "auto");
    let run = with_another_over(&pgkeep, &copy, cluster.data(), &["-v", "backup", SERVER]);
    run.succeeded();
    assert!(reason(&run).contains("is not the folder that the server works in"));
    assert_eq!(source_of(&pgkeep, "newest"), "sql");
    let pgkeep = pgkeep.with("source", "direct");
    let run = with_another_over(&pgkeep, &copy, cluster.data(), &["backup", SERVER]);
    let error = run.failed(5);
    assert!(error.contains("cannot be read from its disk"), "{error}");
    let restored = checks::is_whole(18, &pgkeep.restore_elsewhere("newest"), &before, 0);
    let behind = "select count(*) from pgbench_accounts where filler = 'behind the copy'";
    assert_eq!(restored.number(behind), cluster.number(behind));
}

#[test]
fn a_tablespace_that_is_another_here_is_read_by_sql() {
    if !is_root() {
        return;
    }
    let cluster = quiet(17);
    let location = cluster
        .value("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'outside'");
    let copy = cluster.ground().path().join("copy");
    // Its times are those of the copy.
    checks::shell(&format!(
        "sleep 1.1; cp -a {} {}",
        location,
        checks::quoted(&copy)
    ));
    let pgkeep = Pgkeep::of(&cluster).with("source", "auto");
    let run = with_another_over(
        &pgkeep,
        &copy,
        Path::new(&location),
        &["-v", "backup", SERVER],
    );
    run.succeeded();
    assert!(reason(&run).contains("is another folder here"), "{run:?}");
    assert_eq!(source_of(&pgkeep, "newest"), "sql");
}

/// A container may have a volume over any of them.
#[test]
fn a_folder_that_another_is_mounted_over_is_read_by_sql() {
    if !is_root() {
        return;
    }
    let cluster = quiet(16);
    let database = cluster.value("select 'base/' || oid from pg_database where datname = 'app'");
    for (number, folder) in [database.as_str(), "pg_xact", "pg_wal"].iter().enumerate() {
        let folder = cluster.data().join(folder);
        let copy = cluster.ground().path().join(format!("copy-{number}"));
        checks::shell(&format!(
            "sleep 1.1; cp -a {} {}",
            checks::quoted(&folder),
            checks::quoted(&copy)
        ));
        let pgkeep = Pgkeep::of(&cluster).with("source", "auto");
        let run = with_another_over(&pgkeep, &copy, &folder, &["-v", "backup", SERVER]);
        run.succeeded();
        assert!(reason(&run).contains("is another folder here"), "{run:?}");
        assert_eq!(source_of(&pgkeep, "newest"), "sql");
    }
}

/// pgkeep as an account that has nothing to do with the server, besides the groups that it is in.
fn as_daemon(cluster: &Cluster, groups: &str, arguments: &[&str]) -> (Run, String) {
    // The folder of the tests' server is its account's alone.
    fs::set_permissions(cluster.ground().path(), Permissions::from_mode(0o711)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    chown(folder.path(), Some(1), Some(1)).unwrap();
    let pgkeep = Pgkeep::of(cluster)
        .with("source", "auto")
        .with_base(&folder.path().join("keep"));
    let configuration = folder.path().join("pgkeep.conf");
    fs::copy(pgkeep.configuration(), &configuration).unwrap();
    chown(&configuration, Some(1), Some(1)).unwrap();
    // A binary in a folder of root's is out of its reach.
    let script = format!(
        "cp \"$1\" {0}/pgkeep && chmod 755 {0}/pgkeep && shift 3 && exec setpriv --reuid=1 --regid=1 {groups} {0}/pgkeep -c {0}/pgkeep.conf \"$@\"",
        folder.path().display()
    );
    let run = pgkeep.spawn_in_roots_shell(&script, arguments).wait();
    let reason = run.stderr.clone();
    (run, reason)
}

#[test]
fn another_account_reads_the_disk_where_its_group_may() {
    if !is_root() {
        return;
    }
    let options = Options {
        group_access: true,
        ..Options::default()
    };
    let arguments = ["-v", "backup", SERVER];
    let open = Cluster::with(16, &options);
    let ours = format!("--groups={}", account::gid());
    let (run, stderr) = as_daemon(&open, &ours, &arguments);
    run.succeeded();
    assert!(stderr.contains("the way of the files: direct"), "{stderr}");
    let (run, stderr) = as_daemon(&open, "--clear-groups", &arguments);
    run.succeeded();
    assert!(
        stderr.contains("the way of the files: sql (this account cannot"),
        "{stderr}"
    );
    let (run, _) = as_daemon(
        &open,
        "--clear-groups",
        &["backup", SERVER, "--source", "direct"],
    );
    let error = run.failed(5);
    assert!(error.contains("cannot be read from its disk"), "{error}");
}

/// Root could read it, and the account that gets the restored cluster would have it.
#[test]
fn root_reads_nothing_that_the_server_may_not() {
    if !is_root() {
        return;
    }
    let cluster = quiet(15);
    let data = cluster.data();
    let roots = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .unwrap();
    fs::write(roots.path().join("secret"), "of root").unwrap();
    // What belongs to root, and what the server may read all the same.
    fs::write(data.join("of_root"), "for all").unwrap();
    chown(data.join("of_root"), Some(0), Some(0)).unwrap();
    let pgkeep = Pgkeep::of(&cluster)
        .with("source", "direct")
        .with("compression", "none");
    let run = pgkeep.run_as_root(&["backup", SERVER]);
    let backup = pgkeep.finished(&run.succeeded());
    let stored = backup.folder.join("data/of_root");
    assert_eq!(fs::read_to_string(stored).unwrap(), "for all");
    for (name, target) in [
        ("pg_ident.conf", "secret"),
        ("root.crt", "secret"),
        ("pg_twophase", ""),
    ] {
        let place = data.join(name);
        let aside = data.join("aside");
        let was_there = fs::rename(&place, &aside).is_ok();
        symlink(roots.path().join(target), &place).unwrap();
        let run = pgkeep.run_as_root(&["backup", SERVER]);
        assert_ne!(run.status.code(), Some(0), "{name}: {run:?}");
        fs::remove_file(&place).unwrap();
        if was_there {
            fs::rename(&aside, &place).unwrap();
        }
    }
    pgkeep.run_as_root(&["backup", SERVER]).succeeded();
}

#[test]
fn without_a_slot_to_prove_the_disk_by_files_come_by_sql() {
    let mut cluster = Cluster::stopped(18, &Options::default());
    cluster.set("max_replication_slots = 0\nmax_wal_senders = 0");
    cluster.start();
    let pgkeep = Pgkeep::of(&cluster).with("source", "auto");
    let run = pgkeep.run(&["-v", "backup", SERVER]);
    run.succeeded();
    assert!(reason(&run).contains("no replication slot left"), "{run:?}");
    let check = pgkeep.run(&["check", SERVER]);
    assert!(
        check
            .stdout
            .contains("sql (the server has no replication slot left"),
        "{check:?}"
    );
}

/// A load balancer may send the session that streams to a standby, whose files are older.
#[test]
fn a_stream_of_another_server_is_not_taken() {
    let cluster = quiet_without_tablespace(17);
    let standby = cluster.standby();
    let link = Link::to_two(&cluster, &standby);
    let pgkeep = Pgkeep::of(&cluster)
        .with_server("host", "127.0.0.1")
        .with_server("port", &link.port.to_string())
        .with("source", "stream");
    let error = pgkeep.run(&["backup", SERVER]).failed(5);
    assert!(error.contains("is with another server"), "{error}");
    cluster.assert_nothing_is_left();
    // Where it is the same one, all is well.
    let link = Link::to_two(&cluster, &cluster);
    let pgkeep = pgkeep.with_server("port", &link.port.to_string());
    pgkeep.backup();
    assert_eq!(source_of(&pgkeep, "newest"), "stream");
}

fn quiet_without_tablespace(major: u32) -> Cluster {
    let mut cluster = Cluster::stopped(major, &Options::default());
    cluster.set("autovacuum = off\nwal_keep_size = 1GB");
    cluster.start();
    cluster
}

#[test]
fn who_may_not_stream_is_told_what_to_do() {
    let mut cluster = quiet_without_tablespace(16);
    let hba = cluster.data().join("pg_hba.conf");
    fs::write(&hba, "local all all trust\n").unwrap();
    cluster.sql("select pg_reload_conf()");
    let pgkeep = Pgkeep::of(&cluster).with("source", "stream");
    let run = pgkeep.run(&["backup", SERVER]);
    let error = run.failed(5);
    assert!(
        error.contains("cannot stream its files") && error.contains("pg_hba.conf"),
        "{run:?}"
    );
    fs::write(&hba, "local all all trust\nlocal replication all trust\n").unwrap();
    cluster.stop(Postmaster::Fast);
    cluster.set("max_wal_senders = 0\nmax_replication_slots = 2");
    cluster.start();
    let error = pgkeep.run(&["backup", SERVER]).failed(5);
    assert!(error.contains("max_wal_senders"), "{error}");

    let old = quiet_without_tablespace(14);
    let pgkeep = Pgkeep::of(&old).with("source", "stream");
    let error = pgkeep.run(&["backup", SERVER]).failed(5);
    assert!(error.contains("PostgreSQL 14 does not compress"), "{error}");
}

/// An address of another machine: a network namespace of its own, and a link to it.
struct Elsewhere {
    name: String,
    address: String,
}

impl Elsewhere {
    fn new() -> Elsewhere {
        let name = format!("pgkeep{}", std::process::id());
        let subnet = format!(
            "10.{}.{}",
            200 + std::process::id() % 50,
            std::process::id() / 50 % 250
        );
        let elsewhere = Elsewhere {
            address: format!("{subnet}.1"),
            name,
        };
        let Elsewhere { name, address } = &elsewhere;
        checks::shell(&format!(
            "ip netns add {name} && ip link add {name}a type veth peer name {name}b netns {name} \
             && ip addr add {address}/24 dev {name}a && ip link set {name}a up \
             && ip -n {name} addr add {subnet}.2/24 dev {name}b && ip -n {name} link set {name}b up"
        ));
        elsewhere
    }

    /// A pgkeep that knows a cluster by this address, and what leads there.
    fn knowing(&self, cluster: &Cluster) -> (Link, Pgkeep) {
        let link = Link::at(&self.address, cluster);
        let pgkeep = Pgkeep::of(cluster)
            .with_server("host", &self.address)
            .with_server("port", &link.port.to_string())
            .with("source", "auto");
        (link, pgkeep)
    }

    fn run(&self, pgkeep: &Pgkeep, arguments: &[&str]) -> Run {
        let script = format!(
            "exec ip netns exec {} setpriv --reuid={} --regid={} --clear-groups \"$@\"",
            self.name,
            account::uid(),
            account::gid()
        );
        pgkeep.spawn_in_roots_shell(&script, arguments).wait()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // With one end of the link goes the other.
        checks::shell(&format!("ip netns del {}", self.name));
    }
}

#[test]
fn from_another_machine_the_server_compresses_where_it_can() {
    if !is_root() {
        return;
    }
    let elsewhere = Elsewhere::new();
    for (major, expected) in [(14, "sql"), (18, "stream")] {
        let cluster = quiet_without_tablespace(major);
        let before = Before::of(&cluster);
        let (_link, pgkeep) = elsewhere.knowing(&cluster);
        let run = elsewhere.run(&pgkeep, &["-v", "backup", SERVER]);
        run.succeeded();
        assert_eq!(source_of(&pgkeep, "newest"), expected);
        let check = elsewhere.run(&pgkeep, &["check", SERVER]);
        assert!(
            check.stdout.contains(&format!("{expected} (the server")),
            "{check:?}"
        );
        if major == 14 {
            assert!(
                reason(&run).contains("PostgreSQL 14 does not compress"),
                "{run:?}"
            );
            assert!(reason(&run).contains("as large as they are"), "{run:?}");
        }
        checks::is_whole(major, &pgkeep.restore("newest"), &before, 0);
        cluster.sql("update pgbench_accounts set filler = 'changed' where aid % 50 = 0");
        let before = Before::of(&cluster);
        elsewhere
            .run(&pgkeep, &["backup", SERVER, "newest"])
            .succeeded();
        assert_eq!(source_of(&pgkeep, "newest"), "sql");
        checks::is_whole(major, &pgkeep.restore("newest"), &before, 0);
    }
}

/// Nothing on the way need notice.
#[test]
fn a_stream_that_arrives_damaged_is_no_backup() {
    for checksums in [true, false] {
        let options = Options {
            checksums,
            ..Options::default()
        };
        let cluster = Cluster::with(18, &options);
        for place in [100_000, 500_000, 1_000_000, 2_000_000] {
            let link = Link::damaging(&cluster, place);
            let pgkeep = Pgkeep::of(&cluster)
                .with_server("host", "127.0.0.1")
                .with_server("port", &link.port.to_string())
                .with("source", "stream");
            let run = pgkeep.run(&["backup", SERVER]);
            let error = run.failed(5);
            assert!(error.contains("arrived damaged"), "{place}: {error}");
            assert!(run.stderr.contains("TLS"), "{run:?}");
            let left = fs::read_dir(pgkeep.backups()).unwrap().count();
            assert_eq!(left, 0);
        }
        cluster.assert_nothing_is_left();
    }
}

#[test]
fn without_a_sender_to_spare_files_come_by_sql() {
    if !is_root() {
        return;
    }
    let elsewhere = Elsewhere::new();
    let mut cluster = Cluster::stopped(17, &Options::default());
    cluster.set("max_wal_senders = 0");
    cluster.start();
    fs::write(
        cluster.data().join("d".repeat(120)),
        "a name too long for tar",
    )
    .unwrap();
    let (_link, pgkeep) = elsewhere.knowing(&cluster);
    let run = elsewhere.run(&pgkeep, &["-v", "backup", SERVER]);
    run.succeeded();
    assert!(reason(&run).contains("max_wal_senders"), "{run:?}");
    let check = elsewhere.run(&pgkeep, &["check", SERVER]);
    check.succeeded();
    cluster.stop(Postmaster::Fast);
    cluster.set("max_wal_senders = 5");
    cluster.start();
    let run = elsewhere.run(&pgkeep, &["backup", SERVER]);
    run.succeeded();
    assert!(run.stderr.contains("too long for a stream"), "{run:?}");
}
