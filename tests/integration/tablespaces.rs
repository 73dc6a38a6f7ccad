//! Tablespaces: outside, in place, and moved by a restore.

use std::fs;
use std::path::Path;

use crate::support::checks::{self, Before};
use crate::support::cluster::{Options, Postmaster};
use crate::support::pgkeep::SERVER;
use crate::support::{Cluster, Load, Pgkeep};

/// A cluster whose tables `far` and `near` lie in a tablespace of their own and
/// in one within the data directory.
fn cluster_with_tablespaces(major: u32) -> Cluster {
    let mut cluster = Cluster::stopped(major, &Options::default());
    // Nothing else touches the files that a test looks at.
    cluster.set("autovacuum = off");
    cluster.start();
    cluster.tablespace("outside");
    cluster.tablespace("second");
    cluster.sql("create tablespace inplace location ''");
    cluster.sql(
        "create table far tablespace outside as select i, md5(i::text) from generate_series(1, 3000) i;
         create index far_i on far (i) tablespace second;
         create table near tablespace inplace as select i from generate_series(1, 3000) i;
         create unlogged table brief tablespace outside as select i from generate_series(1, 3000) i",
    );
    cluster.sql("create database elsewhere tablespace outside template app");
    cluster
}

fn oid(cluster: &Cluster, tablespace: &str) -> String {
    cluster.value(&format!(
        "select oid from pg_tablespace where spcname = '{tablespace}'"
    ))
}

fn assert_content(cluster: &Cluster) {
    assert_eq!(cluster.number("select count(*) from far"), 3000);
    assert_eq!(
        cluster.value("set enable_seqscan = off; select i from far where i = 2999"),
        "2999"
    );
    assert_eq!(cluster.number("select count(*) from near"), 3000);
    assert_eq!(cluster.number("select count(*) from brief"), 0);
    assert_eq!(
        cluster.sql_in("elsewhere", "select count(*) from t"),
        [["1000"]]
    );
}

fn link(data: &Path, oid: &str) -> std::path::PathBuf {
    fs::read_link(data.join("pg_tblspc").join(oid)).unwrap()
}

#[test]
fn tablespaces_are_restored_where_the_command_says() {
    for major in crate::support::versions(&[14, 17]) {
        let cluster = cluster_with_tablespaces(major);
        let before = Before::of(&cluster);
        let pgkeep = Pgkeep::of(&cluster);
        let load = Load::on(&cluster);
        pgkeep.backup();
        let history = cluster.number("select count(*) from pgbench_history");
        load.stop();

        let outside = pgkeep.ground().path().join("moved-outside");
        let second = pgkeep.ground().folder("moved-second");
        let by_path = format!(
            "{}={}",
            cluster.ground().path().join("outside").display(),
            outside.display()
        );
        let by_oid = format!("{}={}", oid(&cluster, "second"), second.display());
        let data = pgkeep.restore_with(
            "newest",
            &["--tablespace", &by_path, "--tablespace", &by_oid],
        );

        assert_eq!(link(&data, &oid(&cluster, "outside")), outside);
        assert_eq!(link(&data, &oid(&cluster, "second")), second);
        assert!(
            fs::symlink_metadata(data.join("pg_tblspc").join(oid(&cluster, "inplace")))
                .unwrap()
                .is_dir()
        );
        checks::assert_modes(&data, 0o700, 0o600);
        checks::assert_modes(&outside, 0o700, 0o600);
        let restored = checks::is_whole(major, &data, &before, history);
        assert_content(&restored);
        // The source's tablespaces are its own still.
        assert_eq!(cluster.number("select count(*) from far"), 3000);
    }
}

#[test]
fn a_tablespace_that_still_holds_files_is_not_written_over() {
    let mut cluster = cluster_with_tablespaces(18);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let outside = cluster.ground().path().join("outside");
    let target = pgkeep.ground().folder("target");
    let arguments = ["restore", SERVER, "newest", target.to_str().unwrap()];
    // While its server runs, not even by force.
    for force in [&[][..], &["--force"]] {
        let state = checks::state(&outside);
        let error = pgkeep.run(&[&arguments[..], force].concat()).failed(1);
        assert!(error.contains("running"), "{error}");
        assert_eq!(checks::state(&outside), state);
    }
    cluster.stop(Postmaster::Fast);
    let state = checks::state(&outside);
    let error = pgkeep.run(&arguments).failed(1);
    assert!(error.contains(outside.to_str().unwrap()), "{error}");
    assert_eq!(checks::state(&outside), state);
    assert!(
        fs::read_dir(&target).unwrap().next().is_none(),
        "a part of a cluster is left"
    );
}

#[test]
fn tablespaces_go_back_to_where_they_were() {
    let mut cluster = cluster_with_tablespaces(16);
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let outside = cluster.ground().path().join("outside");
    let oid_outside = oid(&cluster, "outside");
    cluster.stop(Postmaster::Fast);
    for folder in ["outside", "second"] {
        for entry in fs::read_dir(cluster.ground().path().join(folder)).unwrap() {
            fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
    }
    let data = pgkeep.restore("newest");
    assert_eq!(link(&data, &oid_outside), outside);
    let restored = checks::is_whole(16, &data, &before, 0);
    assert_content(&restored);
}

#[test]
fn a_tablespace_inside_the_data_directory_is_stored_once() {
    let cluster = Cluster::new(15);
    let data = cluster.data().to_owned();
    is_stored_once(&cluster, &data);
    // Whatever links its location leads through.
    let cluster = Cluster::new(15);
    let link = cluster.ground().path().join("link");
    std::os::unix::fs::symlink(cluster.data(), &link).unwrap();
    is_stored_once(&cluster, &link);
}

fn is_stored_once(cluster: &Cluster, data: &Path) {
    let inside = data.join("inside");
    fs::create_dir(&inside).unwrap();
    crate::support::account::give(&inside);
    cluster.sql(&format!(
        "create tablespace inside location '{}'",
        inside.display()
    ));
    cluster.sql("create table t tablespace inside as select i from generate_series(1, 100) i");
    let file = cluster.file_of("t");
    let name = file.rsplit('/').next().unwrap();
    let pgkeep = Pgkeep::of(cluster).with("compression", "none");
    let backup = pgkeep.backup();
    let found = checks::files(&backup.folder.join("data"));
    let copies = found
        .iter()
        .filter(|path| path.file_name().is_some_and(|found| found == name))
        .count();
    assert_eq!(copies, 1, "{name}");
    let moved = pgkeep.ground().folder("moved");
    let data = pgkeep.restore_with(
        "newest",
        &[
            "--tablespace",
            &format!("{}={}", inside.display(), moved.display()),
        ],
    );
    let restored = Cluster::restored(15, &data);
    assert_eq!(restored.number("select count(*) from t"), 100);
}

#[test]
fn info_names_the_tablespaces() {
    let cluster = cluster_with_tablespaces(17);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    assert_eq!(info.at("Response.NumberOfTablespaces"), "3");
    let listed = info.at("Response.Tablespaces");
    let outside = cluster.ground().path().join("outside");
    assert!(listed.contains(outside.to_str().unwrap()), "{listed}");
}

#[test]
fn a_tablespace_that_the_backup_does_not_have_is_refused() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let target = pgkeep.ground().folder("target");
    for mapping in [
        "/nowhere=/tmp/x",
        "99999=/tmp/x",
        "nonsense",
        "16385=relative",
    ] {
        let run = pgkeep.run(&[
            "restore",
            SERVER,
            "newest",
            target.to_str().unwrap(),
            "--tablespace",
            mapping,
        ]);
        assert_eq!(run.status.code(), Some(2), "{run:?}");
    }
    assert!(fs::read_dir(&target).unwrap().next().is_none());
}

#[test]
fn neither_a_link_nor_one_folder_in_another_is_restored_into() {
    let cluster = cluster_with_tablespaces(18);
    let pgkeep = Pgkeep::of(&cluster);
    let backup = pgkeep.backup();
    let target = pgkeep.ground().folder("target");
    let root = target.join(format!("{SERVER}-{}", backup.identifier));
    let refused = |status: i32, moved: &Path, why: &str| {
        let mut arguments = vec!["restore".to_owned(), SERVER.to_owned(), "newest".to_owned()];
        arguments.push(target.display().to_string());
        for name in ["outside", "second"] {
            let moved = format!("{name}={}", moved.join(name).display());
            arguments.extend(["--tablespace".to_owned(), moved]);
        }
        arguments.push("--force".to_owned());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let error = pgkeep.run(&arguments).failed(status);
        assert!(error.contains(why), "{error}");
    };
    refused(2, &root, "in one another");
    let link = pgkeep.ground().path().join("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let by_link = link.join(root.file_name().unwrap());
    refused(2, &by_link, "in one another");
    assert!(fs::read_dir(&target).unwrap().next().is_none());
    let elsewhere = pgkeep.ground().folder("elsewhere");
    std::os::unix::fs::symlink(&elsewhere, &root).unwrap();
    refused(1, &pgkeep.ground().folder("others"), "is a symbolic link");
    assert!(fs::read_dir(&elsewhere).unwrap().next().is_none());
}

#[test]
fn verify_rebuilds_tablespaces_too_checks_them_and_removes_everything() {
    let cluster = cluster_with_tablespaces(16);
    let pgkeep = Pgkeep::of(&cluster);
    let backup = pgkeep.backup();
    let folder = pgkeep.ground().folder("rebuilt");
    let path = folder.to_str().unwrap();
    let report = pgkeep.ok(&["verify", SERVER, "newest", path, "all"]);
    assert_eq!(report.at("Request.Directory"), path);
    assert_eq!(report.at("Response.Valid"), "yes");
    assert_eq!(
        fs::read_dir(&folder).unwrap().count(),
        0,
        "something stayed"
    );

    // What is damaged in the repository is found before anything is rebuilt.
    let manifest = backup.folder.join("data/backup_manifest.zstd");
    let mut content = fs::read(&manifest).unwrap();
    content[20] ^= 1;
    fs::write(&manifest, content).unwrap();
    let error = pgkeep.run(&["verify", SERVER, "newest", path]).failed(3);
    assert!(error.contains("backup_manifest"), "{error}");
    assert_eq!(
        fs::read_dir(&folder).unwrap().count(),
        0,
        "something stayed"
    );
}
