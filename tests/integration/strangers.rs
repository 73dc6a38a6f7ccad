//! What lies in a data directory and is none of PostgreSQL's: links, pipes, other people's files.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::support::account::{self, run};
use crate::support::checks::{self, Before};
use crate::support::cluster::{Options, Postmaster};
use crate::support::pgkeep::SERVER;
use crate::support::{Cluster, Pgkeep};

fn write(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "one's own").unwrap();
}

/// What a backup's data directory has besides the files that every one has differently.
fn paths(data: &Path) -> BTreeSet<PathBuf> {
    let volatile = |path: &Path| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        path.starts_with("pg_wal")
            || path.starts_with("pg_stat")
            || name.starts_with("pg_internal.init")
            || ["backup_label", "backup_manifest", "recovery.signal"].contains(&name)
    };
    let tree = checks::tree(data).into_iter();
    tree.map(|path| path.strip_prefix(data).unwrap().to_owned())
        .filter(|path| !volatile(path))
        .collect()
}

#[test]
fn links_that_lead_back_or_out_are_left_out_and_named() {
    for major in crate::support::versions(&[14, 18]) {
        let mut cluster = Cluster::stopped(major, &Options::default());
        // Nothing changes between the two backups.
        cluster.set("autovacuum = off");
        cluster.start();
        cluster.sql("checkpoint");
        let outside = cluster.ground().folder("outside");
        write(&outside.join("secret"));
        write(&outside.join("deep/secret"));
        let data = cluster.data();
        write(&data.join("conf.d/own.conf"));
        write(&data.join("conf.d/inner/16384"));
        let deep = "d/".repeat(40) + "f";
        write(&data.join(&deep));
        let links = [
            ("loop", "."),
            ("16384", ".."),
            ("self", "self"),
            ("dangling", "/nowhere/at/all"),
            ("to_a_file", "/etc/hostname"),
            ("to_a_folder", outside.to_str().unwrap()),
            ("forbidden", "/proc/1/root/x"),
            ("base/loop", "."),
            ("base/1/loop", "../.."),
            ("base/1/77777", ".."),
            ("base/77777", ".."),
            ("base/1/_vm", "/etc/hostname"),
            ("conf.d/loop", ".."),
            ("conf.d/inner/to_a_file", "/etc/hostname"),
            ("pg_xact/loop", ".."),
        ];
        for (link, target) in links {
            symlink(target, data.join(link)).unwrap();
        }
        let before = Before::of(&cluster);
        let pgkeep = Pgkeep::of(&cluster);
        let backup = pgkeep.run(&["backup", SERVER]);
        backup.succeeded();
        for (link, _) in links {
            let warning = format!("left out of the backup: {link}: a symbolic link");
            assert!(backup.stderr.contains(&warning), "{link}: {backup:?}");
        }
        assert_eq!(
            backup.stderr.matches("left out").count(),
            links.len(),
            "{backup:?}"
        );
        let restored = pgkeep.restore("newest");
        let expected = cluster.ground().path().join("pg_basebackup");
        run(cluster
            .tool("pg_basebackup")
            .args(["-X", "none", "-c", "fast", "-D"])
            .arg(&expected));
        assert_eq!(paths(&restored), paths(&expected));
        assert!(restored.join("conf.d/inner/16384").exists());
        assert!(restored.join(deep).exists());
        checks::is_whole(major, &restored, &before, 0);
    }
}

#[test]
fn what_postgresql_knows_is_followed_where_it_was_moved_to() {
    for major in crate::support::versions(&[14, 18]) {
        let mut cluster = Cluster::new(major);
        let tablespace = cluster.tablespace("outside");
        cluster
            .sql("create table far tablespace outside as select i from generate_series(1, 100) i");
        let database =
            cluster.value("select 'base/' || oid from pg_database where datname = 'app'");
        let within = cluster.file_of("far");
        let within = Path::new(&within).parent().unwrap().to_owned();
        cluster.stop(Postmaster::Fast);
        let data = cluster.data().to_owned();
        let other_disk = cluster.ground().folder("other-disk");
        for (number, path) in ["pg_wal", "pg_xact", "postgresql.conf", &database]
            .iter()
            .enumerate()
        {
            let moved = other_disk.join(number.to_string());
            fs::rename(data.join(path), &moved).unwrap();
            symlink(&moved, data.join(path)).unwrap();
        }
        // Links are told from folders beyond links, too.
        fs::create_dir(data.join(&within).join("mine")).unwrap();
        // pg_checksums takes it for a relation.
        fs::write(data.join(&within).join("mine/file"), "").unwrap();
        symlink("..", data.join(&within).join("mine/loop")).unwrap();
        symlink("..", data.join(&within).join("loop")).unwrap();
        symlink("..", data.join(&database).join("loop")).unwrap();
        cluster.start();
        let before = Before::of(&cluster);
        let pgkeep = Pgkeep::of(&cluster);
        let backup = pgkeep.run(&["backup", SERVER]);
        backup.succeeded();
        for link in [
            within.join("mine/loop"),
            within.join("loop"),
            Path::new(&database).join("loop"),
        ] {
            let warning = format!("left out of the backup: {}: ", link.display());
            assert!(backup.stderr.contains(&warning), "{backup:?}");
        }
        assert_eq!(backup.stderr.matches("left out").count(), 3, "{backup:?}");
        cluster.stop(Postmaster::Fast);
        let moved = format!(
            "{}={}",
            tablespace.display(),
            pgkeep.ground().folder("moved").display()
        );
        let restored = pgkeep.restore_with("newest", &["--tablespace", &moved]);
        for path in ["pg_wal", "pg_xact", "postgresql.conf", &database] {
            let kind = fs::symlink_metadata(restored.join(path)).unwrap();
            assert!(!kind.is_symlink(), "{path}");
        }
        assert!(restored.join(&within).join("mine/file").exists());
        let restored = checks::is_whole(major, &restored, &before, 0);
        assert_eq!(restored.number("select count(*) from far"), 100);
        assert_eq!(restored.sql_in("app", "select count(*) from t"), [["1000"]]);
    }
}

#[test]
fn pipes_and_sockets_are_not_waited_for() {
    let cluster = Cluster::new(18);
    let data = cluster.data();
    run(account::command("mkfifo").arg(data.join("pipe")));
    run(account::command("mkfifo").arg(data.join("base/1/pipe")));
    let _socket = UnixListener::bind(data.join(".s.PGSQL.1")).unwrap();
    fs::write(data.join("empty"), "").unwrap();
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::of(&cluster).with("source", "sql");
    pgkeep.backup();
    let restored = pgkeep.restore("newest");
    for path in ["pipe", "base/1/pipe", ".s.PGSQL.1", "empty"] {
        let metadata = fs::symlink_metadata(restored.join(path)).unwrap();
        assert!(metadata.is_file() && metadata.size() == 0, "{path}");
    }
    checks::is_whole(18, &restored, &before, 0);

    // The disk tells them from empty files.
    let pgkeep = pgkeep.with("source", "direct");
    let backup = pgkeep.run(&["backup", SERVER]);
    let backup_report = backup.succeeded();
    let restored = pgkeep.restore(&backup_report.at("Response.Backup"));
    assert!(restored.join("empty").exists());
    for path in ["pipe", "base/1/pipe", ".s.PGSQL.1"] {
        assert!(!restored.join(path).exists(), "{path}");
        let warning = format!("left out of the backup: {path}: neither a file nor a folder");
        assert!(backup.stderr.contains(&warning), "{path}: {backup:?}");
    }
    checks::is_whole(18, &restored, &before, 0);
}

#[test]
fn names_that_are_not_utf8_are_left_out_and_named() {
    for major in crate::support::versions(&[14, 18]) {
        let cluster = Cluster::new(major);
        let data = cluster.data();
        let raw = |name: &[u8]| data.join(OsStr::from_bytes(name));
        write(&raw(b"raw-\xff"));
        write(&raw(b"base/1/\xe9t\xe9"));
        write(&raw(b"caf\xe9/inner"));
        write(&raw("café/inner".as_bytes()));
        // A character that ends too early.
        write(&raw(b"12\xe2\x82"));
        let before = Before::of(&cluster);
        let pgkeep = Pgkeep::of(&cluster);
        let backup = pgkeep.run(&["backup", SERVER]);
        backup.succeeded();
        for name in [
            "raw-\\xff",
            "base/1/\\xe9t\\xe9",
            "caf\\xe9",
            "12\\xe2\\x82",
        ] {
            let warning = format!("left out of the backup: {name}: its name is not UTF-8");
            assert!(backup.stderr.contains(&warning), "{name}: {backup:?}");
        }
        assert_eq!(backup.stderr.matches("left out").count(), 4, "{backup:?}");
        pgkeep.ok(&["verify", SERVER, "newest"]);
        let restored = pgkeep.restore("newest");
        assert!(restored.join("café/inner").exists());
        checks::is_whole(major, &restored, &before, 0);
    }
}

#[test]
fn a_link_without_end_in_a_further_folder_is_told_with_it() {
    let cluster = Cluster::new(17);
    let folder = cluster.ground().folder("further");
    symlink("loop", folder.join("loop")).unwrap();
    let pgkeep = Pgkeep::of(&cluster).with_server("extra", folder.to_str().unwrap());
    let run = pgkeep.run(&["backup", SERVER]);
    assert!(!run.status.success(), "{run:?}");
    let further = format!("the further folder {} cannot", folder.display());
    assert!(run.stderr.contains(&further), "{run:?}");
    let hint = run.report().at("Outcome.Hint");
    assert!(hint.contains("`extra`"), "{hint}");
}
