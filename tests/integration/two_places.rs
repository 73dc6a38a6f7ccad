//! Backups and WAL in several places.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::support::archive::{archiving, small_segments, switch, wait_until_archived};
use crate::support::checks;
use crate::support::pgkeep::{Running, SERVER};
use crate::support::store::{self, Bucket};
use crate::support::{Cluster, Pgkeep, account, wait_until};

/// Where in the bucket it lies.
const FOLDER: &str = "second/keep";

/// Has a place in a bucket too.
fn with_bucket(pgkeep: Pgkeep, name: &str, bucket: &Bucket) -> Pgkeep {
    let keys = store::keys(bucket.scheme(), &store::endpoint(), pgkeep.ground());
    let pgkeep = pgkeep.with(&format!("{name}_base_dir"), &bucket.url(FOLDER));
    keys.iter().fold(pgkeep, |pgkeep, (key, value)| {
        pgkeep.with(&format!("{name}_{key}"), value)
    })
}

/// Has a place in a folder too, which is given.
fn with_folder(pgkeep: Pgkeep, name: &str) -> (PathBuf, Pgkeep) {
    let folder = pgkeep.ground().folder(name);
    let pgkeep = pgkeep.with(&format!("{name}_base_dir"), folder.to_str().unwrap());
    (folder, pgkeep)
}

/// All keys in the bucket's place.
fn keys(bucket: &Bucket) -> Vec<String> {
    let found = bucket.open(FOLDER).list("").unwrap().into_iter();
    found.map(|found| found.key).collect()
}

/// What `list-backup` has of a place.
fn backups(pgkeep: &Pgkeep, place: &str) -> Vec<String> {
    pgkeep
        .ok(&["list-backup", SERVER, "--from", place])
        .backups()
}

#[test]
fn an_encrypted_chain_and_its_wal_go_to_s3_and_come_back() {
    let bucket = Bucket::new();
    let (cluster, pgkeep) = archiving(
        17,
        &small_segments(),
        |pgkeep| with_bucket(pgkeep.encrypting("aes-256-gcm"), "repo2", &bucket),
        Pgkeep::archive_command,
    );
    let pgkeep = pgkeep.with("repo2_retention", "30, 4");
    let full = pgkeep.backup().identifier;
    cluster.sql("create table kept (n int); insert into kept select generate_series(1, 1000)");
    let newest = pgkeep.backup_on("newest").identifier;
    cluster.sql("insert into kept select generate_series(1, 1000)");
    let behind = cluster.value("select pg_current_wal_insert_lsn()");
    cluster.sql("truncate kept");
    wait_until_archived(&pgkeep, &switch(&cluster));
    pgkeep.ok(&["annotate", SERVER, &newest, "add", "why", "tests"]);
    pgkeep.ok(&["retain", SERVER, &newest]);

    // No key is needed for what is stored.
    let key = pgkeep.ground().path().join("master.key");
    let away = pgkeep.ground().path().join("away.key");
    fs::rename(&key, &away).unwrap();
    let copied = pgkeep.ok(&["copy", SERVER, &newest, "--to", "repo2"]);
    assert_eq!(copied.at("Response.Backups.0"), full);
    assert_eq!(copied.at("Response.Backups.1"), newest);
    assert!(copied.number("Response.WAL") > 1);
    let again = pgkeep.ok(&["copy", SERVER, "all", "--to", "repo2"]);
    assert!(again.find("Response.Backups.0").is_none());
    assert_eq!(again.at("Response.Present.1"), newest);
    assert_eq!(again.number("Response.WAL"), 0);
    assert_eq!(again.number("Response.BlockMaps"), 0);
    fs::rename(&away, &key).unwrap();

    // What lies before the first backup is of no use, and was not copied.
    pgkeep.ok(&["expire", SERVER]);
    // All that follows is without the first place.
    let own = pgkeep.base().join(SERVER);
    let gone = pgkeep.ground().path().join("gone");
    fs::rename(&own, &gone).unwrap();
    let info = pgkeep.ok(&["info", SERVER, "newest", "--from", "repo2"]);
    assert_eq!(info.at("Response.Keep"), "true");
    assert_eq!(info.at("Response.Annotations.why"), "tests");
    pgkeep.ok(&["verify", SERVER, "newest", "--from", "repo2"]);
    let expired = pgkeep.ok(&["expire", SERVER, "--from", "repo2", "--dry-run"]);
    assert_eq!(expired.at("Response.Retention"), "30, 4, -, -");
    let folder = pgkeep.ground().folder("to-lsn");
    let position = format!("lsn={behind},action=promote");
    let line = [
        "restore",
        SERVER,
        "newest",
        &position,
        folder.to_str().unwrap(),
        "--from",
        "repo2",
    ];
    let report = pgkeep.ok(&line);
    let restored = Cluster::restored(17, Path::new(&report.at("Response.Directory")));
    restored.wait_until_writable();
    assert_eq!(restored.number("select count(*) from kept"), 2000);
    drop(restored);

    // What was lost comes back as it was, but for what was verified meanwhile.
    let fetched = pgkeep.ok(&["copy", SERVER, "all", "--from", "repo2", "--to", "repo1"]);
    assert_eq!(fetched.at("Response.Backups.1"), newest);
    checks::sha512sum(&pgkeep.backups().join(&full));
    checks::sha512sum(&pgkeep.backups().join(&newest));
    let mut compare = Command::new("diff");
    compare.args([
        "-r",
        "-x",
        "backup.info",
        "-x",
        "*lock",
        "-x",
        "incoming",
        "-x",
        "history",
    ]);
    account::run(compare.arg(&gone).arg(&own));
    pgkeep.ok(&["verify", SERVER, "newest"]);

    // It is no longer the same backup once it stands without its parent.
    pgkeep.ok(&["delete", SERVER, &full]);
    let run = pgkeep.run(&["copy", SERVER, "all", "--to", "repo2"]);
    let error = run.failed(1);
    assert!(error.contains("has other content"), "{error}");
    assert!(run.report().at("Outcome.Hint").contains("--from repo2"));
}

#[test]
fn what_is_damaged_or_of_another_cluster_is_not_copied() {
    let cluster = Cluster::new(18);
    let (second, pgkeep) = with_folder(Pgkeep::of(&cluster), "repo2");
    let backup = pgkeep.backup();
    let bundle = backup.folder.join("bundles/000000.tar.zstd");
    let sound = fs::read(&bundle).unwrap();
    let mut damaged = sound.clone();
    damaged[sound.len() / 2] ^= 1;
    fs::write(&bundle, &damaged).unwrap();
    let error = pgkeep
        .run(&["copy", SERVER, "newest", "--to", "repo2"])
        .failed(3);
    assert!(error.contains("bundles/000000.tar.zstd"), "{error}");
    fs::remove_file(&bundle).unwrap();
    let error = pgkeep
        .run(&["copy", SERVER, "all", "--to", "repo2"])
        .failed(3);
    assert!(error.contains("bundles/000000.tar.zstd"), "{error}");
    assert_eq!(backups(&pgkeep, "repo2"), [""; 0]);
    let left = fs::read_dir(second.join(SERVER).join("backup")).unwrap();
    assert_eq!(left.count(), 0);

    fs::write(&bundle, &sound).unwrap();
    account::give(&bundle);
    pgkeep.ok(&["copy", SERVER, "newest", "--to", "repo2"]);
    assert_eq!(backups(&pgkeep, "repo2"), [backup.identifier]);
    let error = pgkeep
        .run(&["copy", SERVER, "all", "--to", "repo1"])
        .failed(2);
    assert!(error.contains("to itself"), "{error}");
    let error = pgkeep
        .run(&["copy", SERVER, "all", "--to", "repo3"])
        .failed(2);
    assert!(error.contains("has no repository repo3"), "{error}");

    let other = Cluster::new(17);
    let pgkeep = Pgkeep::of(&other).with("repo2_base_dir", second.to_str().unwrap());
    pgkeep.backup();
    let error = pgkeep
        .run(&["copy", SERVER, "all", "--to", "repo2"])
        .failed(1);
    assert!(error.contains("of the cluster"), "{error}");
    assert_eq!(backups(&pgkeep, "repo2").len(), 1);
}

/// Starts to copy, and waits until that is at work.
fn slow_copy(pgkeep: &Pgkeep, place: &str, is_at_work: impl Fn() -> bool) -> Running {
    let mut running = pgkeep.spawn(&["copy", SERVER, "all", "--to", place]);
    wait_until("files are copied", || {
        assert!(running.is_running());
        is_at_work()
    });
    running
}

#[test]
fn a_copy_that_is_cut_short_is_gone_on_with() {
    let cluster = Cluster::new(18);
    let bucket = Bucket::new();
    let (second, pgkeep) = with_folder(Pgkeep::of(&cluster), "repo2");
    let pgkeep = with_bucket(pgkeep, "repo3", &bucket);
    let backup = pgkeep.backup().identifier;
    let pgkeep = pgkeep.with("max_rate", "1MB");
    let second = second.join(SERVER).join("backup");
    let part = second.join(format!("{backup}.building/copied"));
    let copied = || -> Vec<PathBuf> {
        let files = walkdir::WalkDir::new(&part).into_iter().flatten();
        let files = files.filter(|entry| entry.file_type().is_file());
        files.map(walkdir::DirEntry::into_path).collect()
    };

    let running = slow_copy(&pgkeep, "repo2", || copied().len() > 4);
    let error = pgkeep
        .run(&["copy", SERVER, "all", "--to", "repo2"])
        .failed(4);
    assert!(error.contains(&running.id().to_string()), "{error}");
    running.signal(Signal::INT);
    running.wait().failed(1);
    assert_eq!(fs::read_dir(&second).unwrap().count(), 0);

    let running = slow_copy(&pgkeep, "repo2", || copied().len() > 20);
    running.signal(Signal::KILL);
    let _ = running.wait();
    assert_eq!(backups(&pgkeep, "repo2"), [""; 0]);
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let left: Vec<(PathBuf, u64)> = copied()
        .into_iter()
        .map(|path| {
            let inode = inode(&path);
            (path, inode)
        })
        .collect();

    let in_s3 = || {
        keys(&bucket)
            .iter()
            .any(|key| key.contains("/copied.") && key.contains("/data/"))
    };
    let running = slow_copy(&pgkeep, "repo3", in_s3);
    running.signal(Signal::KILL);
    let _ = running.wait();
    assert_eq!(backups(&pgkeep, "repo3"), [""; 0]);

    let pgkeep = pgkeep.with("max_rate", "1GB");
    pgkeep.ok(&["copy", SERVER, "all", "--to", "repo2"]);
    let finished = second.join(&backup);
    let is_kept = |(path, before): &&(PathBuf, u64)| {
        inode(&finished.join(path.strip_prefix(&part).unwrap())) == *before
    };
    // What the workers were at was begun anew.
    let kept = left.iter().filter(is_kept).count();
    assert!(
        kept > 0 && kept >= left.len() / 2,
        "{kept} of {}",
        left.len()
    );
    checks::sha512sum(&finished);
    assert_eq!(fs::read_dir(&second).unwrap().count(), 1);

    pgkeep.ok(&["copy", SERVER, "all", "--to", "repo3"]);
    let inside = format!("{SERVER}/backup/{backup}/");
    let is_known = |key: &String| {
        // What was killed may have sent something that is on its way.
        key.starts_with(&inside)
            || key.contains(".building.")
            || key == "repository.version"
            || key.ends_with("lock")
            || key.starts_with("primary/history/")
    };
    assert!(keys(&bucket).iter().all(is_known), "{:?}", keys(&bucket));
    let lists = keys(&bucket);
    let lists = lists.iter().filter(|key| key.ends_with("/backup.sha512"));
    assert_eq!(lists.count(), 1);
    pgkeep.ok(&["verify", SERVER, "newest", "--from", "repo3"]);
    // From one to the other, neither of which is the first.
    let line = ["copy", SERVER, "all", "--from", "repo3", "--to", "repo2"];
    assert_eq!(pgkeep.ok(&line).at("Response.Present.0"), backup);
}
