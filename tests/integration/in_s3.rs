//! A repository in S3 lives as one in a folder does.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use pgkeep::storage::objects::Scheme;
use rustix::process::Signal;

use crate::chains;
use crate::expiry::sealed;
use crate::support::archive::{archiving, recover_with, small_segments, switch};
use crate::support::checks::{self, Before};
use crate::support::cluster::Options;
use crate::support::faults::{Fault, Faults};
use crate::support::pgkeep::{Running, SERVER, wait_until_copying};
use crate::support::store;
use crate::support::{Cluster, Load, Pgkeep, wait_until};

/// A pgkeep of a cluster, whose repository is in a bucket of its own.
fn of(cluster: &Cluster) -> Pgkeep {
    Pgkeep::of(cluster).in_bucket(&store::endpoint())
}

#[test]
fn a_chain_of_18_under_load_lives_in_s3() {
    let cluster = chains::cluster(18);
    let pgkeep = of(&cluster);
    let pgkeep = pgkeep.encrypting("aes-256-gcm");
    pgkeep.ok(&["check", SERVER]);
    let load = Load::on(&cluster);
    let mut members = Vec::new();
    for number in 0..3 {
        let before = Before::of(&cluster);
        let rounds = load.rounds();
        let backup = match number {
            0 => pgkeep.backup(),
            _ => pgkeep.backup_on("newest"),
        };
        let history = cluster.number("select count(*) from pgbench_history");
        members.push((backup.identifier, before, history));
        wait_until("the relations change", || load.rounds() > rounds + 1);
    }
    load.stop();
    let (newest, before, history) = members.last().unwrap();
    pgkeep.ok(&["annotate", SERVER, newest, "add", "why", "tests"]);
    pgkeep.ok(&["retain", SERVER, newest]);

    // One in the midst of the chain goes, then the full one: each child takes over what it needs.
    for (parent, ..) in [&members[1], &members[0]] {
        let report = pgkeep.ok(&["delete", SERVER, parent]);
        assert_eq!(report.at("Response.Merged.0"), *newest);
    }
    pgkeep.ok(&["verify", SERVER, newest]);
    let info = pgkeep.ok(&["info", SERVER, newest]);
    assert_eq!(info.at("Response.Incremental"), "false");
    assert_eq!(info.at("Response.Keep"), "true");
    let data = pgkeep.restore(newest);
    drop(checks::is_whole(18, &data, before, *history));

    // Nothing is there but that one backup, which standard tools check, and which is a backup in a folder too.
    let found = pgkeep.keys();
    let inside = format!("{SERVER}/backup/{newest}/");
    let gone = [&members[0].0, &members[1].0].map(|gone| format!("{SERVER}/backup/{gone}"));
    let is_of_gone = |key: &String| {
        let mut gone = gone.iter().filter_map(|gone| key.strip_prefix(gone));
        gone.any(|rest| rest == "/backup.info" || rest.starts_with(".building."))
    };
    let is_known = |key: &String| {
        key.starts_with(&inside)
            || is_of_gone(key)
            || key == "repository.version"
            || key.ends_with("lock")
            || key.starts_with("primary/summary/")
    };
    assert!(found.iter().all(is_known), "{found:?}");
    let folder = pgkeep.fetch("");
    let backup = folder.join(inside);
    let parts: Vec<PathBuf> = fs::read_dir(&backup)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    assert_eq!(parts.len(), 1, "{parts:?}");
    checks::sha512sum(&parts[0]);
    let pgkeep = pgkeep.with_base(&folder);
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let data = pgkeep.restore(newest);
    drop(checks::is_whole(18, &data, before, *history));
}

#[test]
fn wal_that_is_archived_in_s3_is_recovered_from() {
    let (cluster, pgkeep) = archiving(
        17,
        &small_segments(),
        |pgkeep| pgkeep.in_bucket(&store::endpoint()),
        Pgkeep::archive_command,
    );
    let backup = pgkeep.backup();
    cluster.sql("create table kept (n int); insert into kept select generate_series(1, 1000)");
    let behind = cluster.value("select pg_current_wal_insert_lsn()");
    cluster.sql("truncate kept");
    let last = switch(&cluster);
    let wal = format!("{SERVER}/wal/{last}.zstd");
    wait_until("the last segment is archived", || {
        pgkeep.keys().contains(&wal)
    });

    // Pushed again it is there already; with other content it is refused.
    let segment = cluster.data().join("pg_wal").join(&last);
    let again = pgkeep.run(&["wal", "push", SERVER, segment.to_str().unwrap()]);
    assert!(again.status.success(), "{again:?}");
    let other = pgkeep.ground().folder("other").join(&last);
    let mut content = fs::read(&segment).unwrap();
    *content.last_mut().unwrap() ^= 1;
    fs::write(&other, content).unwrap();
    let error = pgkeep
        .run(&["wal", "push", SERVER, other.to_str().unwrap()])
        .failed(1);
    assert!(error.contains("with other content"), "{error}");

    let list = pgkeep.ok(&["wal", "list", SERVER]);
    assert!(list.find("Response.Gaps.0").is_none());
    let data = pgkeep.restore_with(&backup.identifier, &[]);
    recover_with(&data, &pgkeep.restore_command());
    let all = Cluster::restored(17, &data);
    all.wait_until_writable();
    assert_eq!(all.number("select count(*) from kept"), 0);
    drop(all);

    let folder = pgkeep.ground().folder("to-lsn");
    let position = format!("lsn={behind},action=promote");
    let folder = folder.to_str().unwrap();
    let report = pgkeep.ok(&["restore", SERVER, "newest", &position, folder]);
    let restored = Cluster::restored(17, Path::new(&report.at("Response.Directory")));
    assert_eq!(restored.number("select count(*) from kept"), 1000);
}

#[test]
fn a_backup_lives_in_azure_and_in_googles_store() {
    let cluster = chains::cluster(18);
    for scheme in [Scheme::Azure, Scheme::Google] {
        let endpoint = store::endpoint_of(scheme);
        let pgkeep = Pgkeep::of(&cluster).in_bucket_of(scheme, &endpoint);
        pgkeep.ok(&["check", SERVER]);
        let backup = pgkeep.backup();
        cluster.sql("create table added as select 1");
        let child = pgkeep.backup_on("newest");
        pgkeep.ok(&["delete", SERVER, &backup.identifier]);
        pgkeep.ok(&["verify", SERVER, "newest"]);
        checks::pg_verifybackup(18, &pgkeep.restore(&child.identifier));
        cluster.sql("drop table added");
        pgkeep.ok(&["delete", SERVER, "newest", "--force"]);
        let left = pgkeep.keys();
        let is_of_gone = |key: &&String| {
            key.contains("/backup/2")
                && !key.ends_with("/backup.info")
                && !key.contains(".building.")
        };
        assert_eq!(left.iter().find(is_of_gone), None);
    }
}

/// Starts a backup that takes a while, and waits until it is at work.
fn slow_backup(pgkeep: &Pgkeep) -> Running {
    let mut running = pgkeep.spawn(&["backup", SERVER]);
    wait_until_copying(&mut running, pgkeep);
    running
}

#[test]
fn what_is_cut_short_in_s3_leaves_nothing_for_good() {
    let cluster = Cluster::new(18);
    let pgkeep = of(&cluster);
    let pgkeep = pgkeep.with("max_rate", "4MB");

    // Two at once: the second is told who the first is.
    let running = slow_backup(&pgkeep);
    let error = pgkeep.run(&["backup", SERVER]).failed(4);
    assert!(
        error.contains(&format!("process {} of", running.id())),
        "{error}"
    );
    assert!(pgkeep.ok(&["list-backup", SERVER]).backups().is_empty());
    running.signal(Signal::INT);
    running.wait().failed(1);
    let lock = format!("{SERVER}/lock");
    assert_eq!(pgkeep.keys(), [&*lock, "repository.version"]);

    // The machine knows at once that who held the lock is gone, and the next backup removes all that it left.
    let running = slow_backup(&pgkeep);
    running.signal(Signal::KILL);
    let _ = running.wait();
    let left = pgkeep.keys();
    let mark = left.iter().find(|key| key.contains(".building.")).unwrap();
    let dead = mark.split_once(".building.").unwrap().0.to_owned();
    assert!(pgkeep.ok(&["list-backup", SERVER]).backups().is_empty());
    let pgkeep = pgkeep.with("max_rate", "1GB");
    let backup = pgkeep.backup();
    let inside = format!("{SERVER}/backup/{}/", backup.identifier);
    let info = format!("{dead}/backup.info");
    let is_expected = |key: &&String| {
        let is_known =
            key.ends_with("lock") || *key == "repository.version" || *key == mark || **key == info;
        !key.starts_with(&inside) && !is_known
    };
    let unexpected = |pgkeep: &Pgkeep| pgkeep.keys().iter().filter(is_expected).count();
    assert_eq!(unexpected(&pgkeep), 0, "{:?}", pgkeep.keys());
    pgkeep.ok(&["verify", SERVER, "newest"]);

    // What the dead one had sent arrives late: it makes no backup, and the next writer removes it.
    let store = pgkeep.store();
    assert!(store.create(&info, "late").unwrap().is_none());
    store.put(&format!("{dead}/1/data/late"), "late").unwrap();
    assert_eq!(pgkeep.ok(&["list-backup", SERVER]).backups().len(), 1);
    pgkeep.ok(&["expire", SERVER]);
    assert_eq!(unexpected(&pgkeep), 0, "{:?}", pgkeep.keys());
}

#[test]
fn the_passes_of_a_backup_are_put_together_in_s3() {
    let mut cluster = Cluster::stopped(18, &Options::default());
    // A template that is vacuumed is changed too.
    cluster.set("autovacuum = off");
    cluster.start();
    cluster.tablespace("outside");
    cluster.sql("create database moving template app");
    let before = Before::of(&cluster);
    let pgkeep = of(&cluster).with("max_rate", "12MB");
    let mut running = slow_backup(&pgkeep);
    cluster.sql("alter database moving set tablespace outside");
    assert!(running.is_running(), "the backup ended too early");
    let backup = pgkeep.finished(&running.wait().succeeded());
    let info = pgkeep.ok(&["info", SERVER, &backup.identifier]);
    assert_eq!(info.at("Response.Passes"), "2");
    // What became of the passes is there, and they are not.
    let name = backup.folder.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("merged.0."), "{name}");
    let inside = format!("{SERVER}/backup/{}/", backup.identifier);
    let merged = format!("{inside}{name}/");
    let others = pgkeep
        .keys()
        .into_iter()
        .filter(|key| key.starts_with(&inside) && !key.starts_with(&merged));
    assert_eq!(others.collect::<Vec<_>>(), [format!("{inside}backup.info")]);
    checks::sha512sum(&backup.folder);
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let data = pgkeep.restore_elsewhere("newest");
    let restored = checks::is_whole(18, &data, &before, 0);
    assert_eq!(
        restored.sql_in("moving", "select count(*) from t")[0][0],
        "1000"
    );
}

#[test]
fn who_lost_the_lock_publishes_nothing() {
    let cluster = Cluster::new(18);
    let pgkeep = of(&cluster);
    let pgkeep = pgkeep.with("max_rate", "8MB");
    let lock = format!("{SERVER}/lock");
    let store = pgkeep.store();

    let running = slow_backup(&pgkeep);
    let other =
        "Holder: process 7 of elsewhere\nToken: 7-7\nSeconds: 2\nRenewed: 0\nProcess: null\n";
    store.put(&lock, other.to_owned()).unwrap();
    let error = running.wait().failed(4);
    assert!(error.contains("was lost"), "{error}");
    assert!(pgkeep.ok(&["list-backup", SERVER]).backups().is_empty());
    assert!(pgkeep.keys().contains(&lock), "another's lock was removed");

    // What nobody renews counts for as long as it says.
    let pgkeep = pgkeep.with("max_rate", "1GB");
    store.put(&lock, other.to_owned()).unwrap();
    let error = pgkeep.run(&["backup", SERVER]).failed(4);
    assert!(error.contains("process 7 of elsewhere"), "{error}");
    wait_until("the lock ends", || {
        let run = pgkeep.run(&["backup", SERVER]);
        run.report().at("Outcome.Status") == "true"
    });
    let (content, _) = store.get(&lock, 1000).unwrap().unwrap();
    assert!(String::from_utf8(content).unwrap().contains("nobody"));
}

#[test]
fn a_network_that_fails_costs_time_alone() {
    let cluster = Cluster::new(18);
    let faults = Faults::new();
    let pgkeep = Pgkeep::of(&cluster).in_bucket(faults.endpoint());
    faults.delay(Duration::from_millis(2));
    faults.next(2, "PUT", "/data/", Fault::Busy);
    faults.next(1, "PUT", "/bundles/", Fault::Reset);
    faults.next(1, "PUT", "/bundles/", Fault::LostAnswer);
    faults.next(1, "PUT", "/backup.info", Fault::LostAnswer);
    faults.next(1, "PUT", "/lock", Fault::LostAnswer);
    let backup = pgkeep.backup();
    faults.next(1, "GET", "/data/base", Fault::Cut(1000));
    faults.next(1, "GET", "/bundles/", Fault::Cut(10));
    faults.next(1, "GET", "/bundles/", Fault::Busy);
    pgkeep.ok(&["verify", SERVER, &backup.identifier]);
    assert_eq!(faults.left(), 0);
    let data = pgkeep.restore(&backup.identifier);
    checks::pg_verifybackup(18, &data);

    // What the store has to keep yet is told, hinders nobody, and goes once it may.
    let store = pgkeep.store();
    let old = "20200101000000";
    for key in pgkeep.keys().iter().filter(|key| key.contains("/backup/")) {
        let (content, _) = store.get(key, u64::MAX).unwrap().unwrap();
        let content = match key.ends_with("backup.info") {
            true => {
                let info = String::from_utf8(content).unwrap();
                sealed(&info.replace(&backup.identifier, old)).into()
            }
            false => content,
        };
        store
            .put(&key.replace(&backup.identifier, old), content)
            .unwrap();
    }
    pgkeep.ok(&["verify", SERVER, old]);
    faults.next(1000, "POST", "delete", Fault::Refusal(403, "ObjectLocked"));
    let expired = pgkeep.ok(&["expire", SERVER]);
    assert_eq!(expired.at("Response.Retained.Backups.0"), old);
    assert_eq!(pgkeep.ok(&["list-backup", SERVER]).backups().len(), 1);
    pgkeep.backup();
    let is_old = |key: &String| key.contains(old);
    assert!(pgkeep.keys().iter().any(is_old));
    faults.clear();
    let expired = pgkeep.ok(&["expire", SERVER]);
    assert!(expired.find("Response.Retained.Backups.0").is_none());
    let keys = pgkeep.keys();
    let mut left = keys.iter().filter(|key| is_old(key));
    assert!(left.all(|key| key.ends_with("/backup.info") || key.contains(".building.")));
}

/// A request whose answer was given up, and which was made again, reaches the store when all is over.
#[test]
fn what_arrives_late_changes_nothing() {
    let cluster = Cluster::new(18);
    let faults = Faults::new();
    let pgkeep = Pgkeep::of(&cluster).in_bucket(faults.endpoint());
    let elsewhere = pgkeep.ground().folder("elsewhere");
    let pgkeep = pgkeep.with("repo2_base_dir", elsewhere.to_str().unwrap());
    let late = |requests: &[(&str, &str)], arguments: &[&str]| {
        for (method, part) in requests {
            faults.next(1, method, part, Fault::Late);
        }
        pgkeep.ok(arguments);
        assert_eq!(faults.left(), 0);
    };
    let backup = pgkeep.backup().identifier;
    pgkeep.ok(&["copy", SERVER, "all", "--to", "repo2"]);
    let back = ["copy", SERVER, "all", "--from", "repo2", "--to", "repo1"];
    let delete = ["delete", SERVER, &backup, "--force"];
    let (mark, info, sums) = (".building.", "/backup.info", "/backup.sha512");
    // What removes it, before it is there again.
    late(&[("PUT", mark), ("PUT", info), ("POST", "delete")], &delete);
    pgkeep.ok(&back);
    assert_eq!(faults.deliver(), 3);
    assert_eq!(pgkeep.ok(&["list-backup", SERVER]).backups(), [&*backup]);
    pgkeep.ok(&["verify", SERVER, &backup]);
    // What copies it and clears up behind that, before it is removed.
    pgkeep.ok(&delete);
    late(
        &[
            ("PUT", mark),
            ("PUT", sums),
            ("PUT", info),
            ("POST", "delete"),
        ],
        &back,
    );
    pgkeep.ok(&delete);
    assert_eq!(faults.deliver(), 4);
    assert!(pgkeep.ok(&["list-backup", SERVER]).backups().is_empty());
    // The same, and what removes a copy, before another one is made.
    late(&[("PUT", sums), ("POST", "delete")], &back);
    late(&[("POST", "/data/")], &delete);
    pgkeep.ok(&back);
    assert_eq!(faults.deliver(), 3);
    pgkeep.ok(&["verify", SERVER, &backup]);
    checks::pg_verifybackup(18, &pgkeep.restore(&backup));
}

/// Besides what is stored, a command makes no more requests than these, whatever there is of the cluster.
#[test]
fn few_requests_are_made_besides_those_for_what_is_stored() {
    // Others delete one by one.
    let cluster = Cluster::new(18);
    let faults = Faults::to(Scheme::S3);
    let pgkeep = Pgkeep::of(&cluster).in_bucket_of(Scheme::S3, faults.endpoint());
    let requests = |arguments: &[&str]| {
        let methods = ["GET", "HEAD", "PUT", "POST", "DELETE"];
        let all = || -> u64 { methods.iter().map(|method| faults.count(method)).sum() };
        let before = all();
        pgkeep.run(arguments).succeeded();
        all() - before
    };
    let folder = pgkeep.ground().folder("restored");
    let folder = folder.to_str().unwrap();
    let backup = requests(&["backup", SERVER]);
    let stored = pgkeep
        .keys()
        .iter()
        .filter(|key| key.contains("/1."))
        .count() as u64;
    let found = [
        ("backup", backup - stored, 26),
        (
            "verify",
            requests(&["verify", SERVER, "newest"]).saturating_sub(stored),
            18,
        ),
        (
            "restore",
            requests(&["restore", SERVER, "newest", folder]).saturating_sub(stored),
            8,
        ),
        ("list-backup", requests(&["list-backup", SERVER]), 3),
        ("expire", requests(&["expire", SERVER]), 12),
        (
            "delete",
            requests(&["delete", SERVER, "newest", "--force"]),
            25,
        ),
    ];
    let too_many: Vec<_> = found.iter().filter(|(_, made, most)| made > most).collect();
    assert!(too_many.is_empty(), "{found:?}");
}

#[test]
fn what_the_store_refuses_is_told_with_its_cure() {
    let cluster = Cluster::new(18);
    let faults = Faults::new();
    let pgkeep = Pgkeep::of(&cluster).in_bucket(faults.endpoint());
    faults.next(
        1,
        "PUT",
        "/primary/lock",
        Fault::Refusal(403, "AccessDenied"),
    );
    let run = pgkeep.run(&["backup", SERVER]);
    let error = run.failed(5);
    assert!(error.contains("AccessDenied"), "{error}");
    let hint = run.report().at("Outcome.Hint");
    let permission = match store::chosen() {
        Scheme::S3 => "s3:PutObject",
        Scheme::Azure => "Storage Blob Data Contributor",
        Scheme::Google => "storage.objects.create",
    };
    assert!(hint.contains(permission), "{hint}");
    let nowhere = format!("{}no-such-bucket/keep", store::chosen().prefix());
    let error = pgkeep
        .with_base(Path::new(&nowhere))
        .run(&["check", SERVER])
        .failed(5);
    assert!(error.contains("no-such-bucket"), "{error}");
}

#[test]
fn a_bucket_that_keeps_versions_gives_back_what_was_deleted() {
    let (cluster, pgkeep) = archiving(
        16,
        &small_segments(),
        |pgkeep| {
            let pgkeep = pgkeep.in_bucket(&store::endpoint());
            pgkeep.keep_versions();
            pgkeep
        },
        Pgkeep::archive_command,
    );
    let full = pgkeep.backup();
    cluster.sql("create table kept (n int); insert into kept select generate_series(1, 1000)");
    let child = pgkeep.backup_on("newest");
    cluster.sql("insert into kept select generate_series(1001, 2000)");
    let last = switch(&cluster);
    let wal = format!("{SERVER}/wal/{last}.zstd");
    wait_until("the last segment is archived", || {
        pgkeep.keys().contains(&wal)
    });
    // The store's clock says no more than seconds of when something was written.
    let then = Timestamp::now().strftime("%F %T+00").to_string();
    std::thread::sleep(Duration::from_millis(1100));

    // Somebody destroys all of it.
    let held = pgkeep.keys();
    pgkeep.ok(&["delete", SERVER, &child.identifier]);
    pgkeep.store().delete(&held).unwrap();
    drop(cluster);
    pgkeep.run(&["info", SERVER, "newest"]).failed(1);
    let past = ["--as-of", &then];
    let info = pgkeep.ok(&[&["info", SERVER, "newest"], &past[..]].concat());
    assert_eq!(info.at("Response.Backup"), child.identifier);
    pgkeep.ok(&[&["verify", SERVER, "newest"], &past[..]].concat());
    let list = pgkeep.ok(&[&["wal", "list", SERVER], &past[..]].concat());
    assert!(list.find("Response.Gaps.0").is_none());

    // It is restored with the WAL of then, and put back.
    let restored = |options: &[&str]| {
        let folder = pgkeep.ground().folder(&format!("with-{}", options.len()));
        let folder = folder.to_str().unwrap();
        let wanted = ["restore", SERVER, "newest", "current", folder];
        let report = pgkeep.ok(&[&wanted[..], options].concat());
        let restored = Cluster::restored(16, Path::new(&report.at("Response.Directory")));
        restored.wait_until_writable();
        assert_eq!(restored.number("select count(*) from kept"), 2000);
    };
    restored(&past);
    let report = pgkeep.ok(&[&["copy", SERVER, "all", "--to", "repo1"], &past[..]].concat());
    assert_eq!(report.at("Response.Backups.0"), full.identifier);
    pgkeep.ok(&["verify", SERVER, &child.identifier]);
    restored(&[]);
}
