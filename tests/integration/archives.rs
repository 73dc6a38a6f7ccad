//! `archive`: one tar that holds what a restore would write.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::checks::{self, Before};
use crate::support::pgkeep::{Run, Running, SERVER, only_entry};
use crate::support::report::Report;
use crate::support::small_disk::SmallDisk;
use crate::support::{Cluster, Load, Pgkeep, account};

/// Makes an archive, which must succeed; gives its report.
fn archive(pgkeep: &Pgkeep, backup: &str, position: &[&str]) -> Report {
    let folder = pgkeep.ground().folder("archives");
    let target = [folder.to_str().unwrap()];
    let arguments = [&["archive", SERVER, backup][..], position, &target].concat();
    let report = pgkeep.ok(&arguments);
    let file = PathBuf::from(report.at("Response.File"));
    assert_eq!(file, only_entry(&folder));
    let name = format!("{SERVER}-{}.tar", report.at("Response.Backup"));
    let found = file.file_name().unwrap().to_str().unwrap();
    assert!(found.starts_with(&name), "{found}");
    assert_eq!(mode(&file), 0o600);
    report
}

/// Unpacks an archive in a folder, as the server's user; gives the data directory.
pub fn unpack(report: &Report, folder: &Path) -> PathBuf {
    let mut tar = account::command("tar");
    let file = report.at("Response.File");
    // Of the compressions there are, tar does not see this one by itself.
    if file.ends_with(".lz4") {
        tar.args(["-I", "lz4"]);
    }
    account::run(tar.args(["-xf", &file, "-C"]).arg(folder));
    folder.join(format!("{SERVER}-{}", report.at("Response.Backup")))
}

/// The same in a new folder.
fn unpacked(pgkeep: &Pgkeep, report: &Report) -> PathBuf {
    unpack(report, &pgkeep.ground().folder("unpacked"))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Everything below a folder: names, kinds, modes and contents; where links point to is left out.
fn state(folder: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let mut state = Vec::new();
    for path in checks::tree(folder) {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let content = if metadata.is_file() {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        let mode = if metadata.is_symlink() {
            0
        } else {
            metadata.permissions().mode()
        };
        let name = path.strip_prefix(folder).unwrap().to_owned();
        state.push((name, mode, content));
    }
    state
}

/// The same as a restore would have written, tablespaces aside.
fn assert_same(restored: &Path, unpacked: &Path) {
    let (restored, unpacked) = (state(restored), state(unpacked));
    let names = |state: &[(PathBuf, u32, Vec<u8>)]| -> Vec<PathBuf> {
        state.iter().map(|(name, ..)| name.clone()).collect()
    };
    assert_eq!(names(&restored), names(&unpacked));
    for (one, other) in restored.iter().zip(&unpacked) {
        assert_eq!(one.1, other.1, "the mode of {}", one.0.display());
        assert!(one.2 == other.2, "the content of {}", one.0.display());
    }
}

fn an_archive_is_what_a_restore_writes(major: u32, compression: &str, suffix: &str) {
    let cluster = Cluster::new(major);
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::without_stream(&cluster).with("compression", compression);
    let load = Load::on(&cluster);
    let backup = pgkeep.backup();
    let at_most = cluster.number("select count(*) from pgbench_history");
    load.stop();
    let report = archive(&pgkeep, &backup.identifier, &[]);
    let file = report.at("Response.File");
    assert!(file.ends_with(suffix), "{file}");
    let data = unpacked(&pgkeep, &report);
    assert_same(&pgkeep.restore(&backup.identifier), &data);
    checks::is_whole(major, &data, &before, at_most);
}

#[test]
fn an_archive_of_15_is_what_a_restore_writes() {
    an_archive_is_what_a_restore_writes(15, "zstd", ".tar.zstd");
}

#[test]
fn an_archive_of_18_is_what_a_restore_writes() {
    an_archive_is_what_a_restore_writes(18, "none", ".tar");
}

fn a_chain_is_rebuilt_on_the_way(major: u32) {
    let cluster = Cluster::new(major);
    if major >= 17 {
        cluster.sql("alter system set summarize_wal = on");
        cluster.sql("select pg_reload_conf()");
    }
    cluster.sql("create table t as select i, repeat('x', 500) x from generate_series(1, 20000) i");
    let pgkeep = Pgkeep::without_stream(&cluster);
    let mut backup = pgkeep.backup();
    for change in [
        "update t set x = repeat('y', 500) where i % 40 = 0",
        "delete from t where i > 10000",
        "insert into t select i, 'z' from generate_series(30000, 31000) i",
    ] {
        cluster.sql(change);
        cluster.sql("vacuum t");
        backup = pgkeep.backup_on(&backup.identifier);
    }
    let before = Before::of(&cluster);
    let sum = "select sum(i) || ' ' || md5(string_agg(x, ',' order by i)) from t";
    let expected = cluster.value(sum);
    let report = archive(&pgkeep, "newest", &[]);
    assert_eq!(report.at("Response.Incremental"), "true");
    let data = unpacked(&pgkeep, &report);
    assert_same(&pgkeep.restore("newest"), &data);
    let started = checks::is_whole(major, &data, &before, 0);
    assert_eq!(started.value(sum), expected);
}

#[test]
fn a_chain_of_15_is_rebuilt_on_the_way() {
    a_chain_is_rebuilt_on_the_way(15);
}

#[test]
fn a_chain_of_17_is_rebuilt_on_the_way() {
    a_chain_is_rebuilt_on_the_way(17);
}

/// Two tablespaces with a table each, one of them in place.
fn with_tablespaces(major: u32) -> Cluster {
    let cluster = Cluster::new(major);
    cluster.tablespace("outside");
    cluster.sql("create tablespace inplace location ''");
    cluster.sql(
        "create table far tablespace outside as select i from generate_series(1, 3000) i;
         create table near tablespace inplace as select i from generate_series(1, 3000) i",
    );
    cluster
}

fn tablespaces_start_where_an_archive_is_unpacked(major: u32, compression: &str) {
    let cluster = with_tablespaces(major);
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::without_stream(&cluster).with("compression", compression);
    pgkeep.backup();
    let report = archive(&pgkeep, "newest", &[]);
    drop(cluster);
    let data = unpacked(&pgkeep, &report);
    checks::assert_modes(data.parent().unwrap(), 0o700, 0o600);
    let started = checks::is_whole(major, &data, &before, 0);
    let assert_rows = |cluster: &Cluster| {
        assert_eq!(cluster.number("select count(*) from far"), 3000);
        assert_eq!(cluster.number("select count(*) from near"), 3000);
    };
    assert_rows(&started);
    let oid = started.value("select oid from pg_tablespace where spcname = 'outside'");
    let target = fs::read_link(data.join("pg_tblspc").join(&oid)).unwrap();
    let name = data.file_name().unwrap().to_str().unwrap();
    let beside = format!("../../{name}-tablespaces/{oid}");
    assert_eq!(target, PathBuf::from(beside));

    // A backup of what was unpacked is as good as any.
    let again = Pgkeep::of(&started);
    let restored = again.restore(&again.backup().identifier);
    drop(started);
    fs::remove_dir_all(data.parent().unwrap()).unwrap();
    assert_rows(&Cluster::restored(major, &restored));
}

#[test]
fn tablespaces_of_14_start_where_an_archive_is_unpacked() {
    tablespaces_start_where_an_archive_is_unpacked(14, "lz4");
}

#[test]
fn tablespaces_of_17_start_where_an_archive_is_unpacked() {
    tablespaces_start_where_an_archive_is_unpacked(17, "zstd");
}

fn an_encrypted_archive_is_undone_by_decrypt(major: u32, mode: &str, compression: &str) {
    let cluster = Cluster::new(major);
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::of(&cluster)
        .with("compression", compression)
        .encrypting(mode);
    let backup = pgkeep.backup();
    let report = archive(&pgkeep, &backup.identifier, &[]);
    let file = report.at("Response.File");
    assert!(file.ends_with(".aes"), "{file}");
    let plain = pgkeep.ok(&["decrypt", &file]).at("Response.File");
    let folder = pgkeep.ground().folder("unpacked");
    let mut tar = account::command("tar");
    account::run(tar.args(["-xf", &plain, "-C"]).arg(&folder));
    checks::is_whole(major, &only_entry(&folder), &before, 0);
}

#[test]
fn an_archive_encrypted_with_gcm_is_undone_by_decrypt() {
    an_encrypted_archive_is_undone_by_decrypt(15, "aes-256-gcm", "gzip");
}

#[test]
fn an_archive_encrypted_with_cbc_is_undone_by_decrypt() {
    an_encrypted_archive_is_undone_by_decrypt(17, "aes-256-cbc", "zstd");
}

#[test]
fn a_replica_is_archived_with_its_primary_named() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let data = unpacked(&pgkeep, &archive(&pgkeep, "newest", &["replica"]));
    assert!(data.join("standby.signal").exists());
    assert!(!data.join("recovery.signal").exists());
    let settings = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
    assert!(settings.contains("primary_conninfo = "), "{settings}");
}

#[test]
fn the_report_tells_the_file_and_its_bytes() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let backup = pgkeep.backup().identifier;
    let folder = pgkeep.ground().folder("target");
    let target = folder.to_str().unwrap();
    let report = pgkeep.ok(&["-F", "json", "archive", SERVER, &backup[..10], target]);
    assert_eq!(report.at("Header.Command"), "archive");
    assert_eq!(report.at("Request.Directory"), target);
    assert_eq!(report.at("Response.Backup"), backup);
    assert_eq!(report.at("Response.MajorVersion"), "17");
    let file = only_entry(&folder);
    assert_eq!(report.at("Response.File"), file.to_str().unwrap());
    let size = fs::metadata(&file).unwrap().len();
    assert_eq!(report.number("Response.Size"), size);
}

/// Whether some process holds the lock of the file that an archive is written to.
fn is_locked(file: &PathBuf) -> bool {
    let is_incoming = file.extension().is_some_and(|name| name == "incoming");
    let inode = fs::metadata(file).map(|metadata| metadata.ino());
    let locks = fs::read_to_string("/proc/locks").unwrap();
    is_incoming && inode.is_ok_and(|inode| locks.contains(&format!(":{inode} ")))
}

/// Starts to archive into a folder, and stops the process in the midst of it. Under load it may
/// be done before it stops.
fn stopped_at_work(pgkeep: &Pgkeep, arguments: &[&str], folder: &Path) -> Running {
    let mut running = pgkeep.spawn(arguments);
    while running.is_running() && !checks::tree(folder).iter().any(is_locked) {
        std::thread::sleep(Duration::from_millis(1));
    }
    running.signal(Signal::STOP);
    running
}

/// Does something to an archive at work until it ends by that.
fn until_it_fails(
    pgkeep: &Pgkeep,
    arguments: &[&str],
    folder: &Path,
    act: impl Fn(&Running),
) -> Run {
    for _ in 0..20 {
        let running = stopped_at_work(pgkeep, arguments, folder);
        act(&running);
        running.signal(Signal::CONT);
        let run = running.wait();
        if !run.status.success() {
            return run;
        }
        fs::remove_file(only_entry(folder)).unwrap();
    }
    panic!("it was always faster");
}

#[test]
fn what_fails_leaves_no_archive() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let backup = pgkeep.backup();
    let folder = pgkeep.ground().folder("target");
    let arguments = ["archive", SERVER, "newest", folder.to_str().unwrap()];
    let until_it_fails = |act: &dyn Fn(&Running)| {
        let run = until_it_fails(&pgkeep, &arguments, &folder, act);
        (run, checks::tree(&folder).len())
    };

    let (run, left) = until_it_fails(&|running| running.signal(Signal::INT));
    let error = run.failed(1);
    assert!(error.contains("interrupted"), "{error}");
    assert_eq!(left, 0);

    // While one is at work, another one is refused.
    until_it_fails(&|running| {
        // Unless it is done: then its archive is there already.
        let second = pgkeep.run(&arguments);
        if second.status.code() != Some(1) {
            let error = second.failed(4);
            assert!(error.contains("another pgkeep"), "{error}");
        }
        running.signal(Signal::INT);
    });

    // Of a killed one something is left, until the next.
    let (_, left) = until_it_fails(&|running| running.signal(Signal::KILL));
    assert_eq!(left, 1);

    let largest = checks::files(&backup.folder.join("data"))
        .into_iter()
        .max_by_key(|file| fs::metadata(file).unwrap().len())
        .unwrap();
    let sound = fs::read(&largest).unwrap();
    let mut damaged = sound.clone();
    damaged[sound.len() / 2] ^= 1;
    fs::write(&largest, damaged).unwrap();
    let error = pgkeep.run(&arguments).failed(3);
    let name = largest.file_name().unwrap().to_str().unwrap();
    assert!(error.contains(name), "{error}");
    assert!(checks::tree(&folder).is_empty());
    fs::write(&largest, sound).unwrap();

    pgkeep.ok(&arguments);
    let archive = only_entry(&folder);
    let state = checks::state(&folder);
    let error = pgkeep.run(&arguments).failed(1);
    assert!(error.contains(archive.to_str().unwrap()), "{error}");
    assert_eq!(checks::state(&folder), state);
}

#[test]
fn a_full_disk_is_told_and_nothing_is_left() {
    if !account::is_root() {
        return;
    }
    let small = SmallDisk::new("1m");
    let cluster = Cluster::new(17);
    for (encryption, compression) in [("none", "zstd"), ("aes-256-gcm", "none")] {
        let pgkeep = Pgkeep::without_stream(&cluster).with("compression", compression);
        let pgkeep = if encryption == "none" {
            pgkeep
        } else {
            pgkeep.encrypting(encryption)
        };
        pgkeep.backup();
        let target = small.folder.to_str().unwrap();
        let error = pgkeep.run(&["archive", SERVER, "newest", target]).failed(1);
        assert!(error.contains(target), "{error}");
        assert!(error.contains("No space left"), "{error}");
        assert!(checks::tree(&small.folder).is_empty());
    }
}
