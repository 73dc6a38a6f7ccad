//! Restores past `CREATE TABLESPACE`: nothing of the server's own is touched, whoever asks and however.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::archive::{archiving, small_segments, switch, wait_until_archived};
use crate::support::checks;
use crate::support::cluster::Postmaster;
use crate::support::pgkeep::{Run, SERVER};
use crate::support::report::Report;
use crate::support::{Cluster, Pgkeep, leave_the_second};

/// A server, and a backup of before it made the tablespace `fast`.
struct Scene {
    cluster: Cluster,
    pgkeep: Pgkeep,
    fast: PathBuf,
    /// The last transaction before, and the last of all.
    before: String,
    after: String,
}

fn commit(cluster: &Cluster, statement: &str) -> String {
    let statement = format!("begin; {statement}; select pg_current_xact_id(); commit");
    cluster.sql(&statement).concat().concat()
}

fn scene(major: u32) -> Scene {
    let (mut cluster, pgkeep) = archiving(
        major,
        &small_segments(),
        |pgkeep| pgkeep,
        Pgkeep::archive_command,
    );
    cluster.stop(Postmaster::Fast);
    // Nothing else writes into the tablespace, nor into a template.
    cluster.set("autovacuum = off");
    cluster.start();
    cluster.tablespace("outside");
    cluster.sql("create database moving template app");
    pgkeep.backup();

    let before = commit(&cluster, "create table early (i int)");
    // One in the data directory is the restored cluster's own.
    cluster.sql("create tablespace near location ''");
    let fast = cluster.tablespace("fast");
    cluster.sql("create table far tablespace fast as select i from generate_series(1, 3000) i");
    // Replay copies what there was, not what comes after.
    let strategy = if major == 14 {
        ""
    } else {
        "strategy file_copy"
    };
    cluster.sql(&format!("create database copied template app {strategy}"));
    cluster.sql_in(
        "app",
        "insert into t select i, 'x' from generate_series(1, 1000) i",
    );
    cluster.sql("alter database moving set tablespace outside");
    let after = commit(&cluster, "create table late (i int)");
    cluster.sql("checkpoint");
    let last = switch(&cluster);
    wait_until_archived(&pgkeep, &last);
    Scene {
        cluster,
        pgkeep,
        fast,
        before,
        after,
    }
}

impl Scene {
    fn try_restore(&self, position: &str, more: &[&str]) -> (Run, PathBuf) {
        let ground = self.pgkeep.ground();
        let folder = ground.folder(&format!(
            "to-{}",
            fs::read_dir(ground.path()).unwrap().count()
        ));
        let moved = format!(
            "{}={}",
            self.cluster.ground().path().join("outside").display(),
            folder.join("outside").display()
        );
        let target = folder.to_str().unwrap();
        let arguments = ["restore", SERVER, "newest", position, target];
        let run = self
            .pgkeep
            .run(&[&arguments[..], &["--tablespace", &moved], more].concat());
        (run, folder)
    }

    /// A restore that must not touch anything; gives its error and its hint.
    fn refused(&self, position: &str, more: &[&str], status: i32) -> (String, String) {
        let state = checks::state(&self.fast);
        let (run, folder) = self.try_restore(position, more);
        let error = run.failed(status);
        assert!(error.contains(self.fast.to_str().unwrap()), "{error}");
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
        assert_eq!(checks::state(&self.fast), state);
        (error, run.report().at("Outcome.Hint"))
    }

    fn restored(&self, position: &str, more: &[&str]) -> (Report, Cluster) {
        let (run, _) = self.try_restore(position, more);
        let report = run.succeeded();
        let data = PathBuf::from(report.at("Response.Directory"));
        let mut cluster = Cluster::adopt(self.cluster.major, &data);
        cluster.set("archive_mode = off");
        cluster.start();
        cluster.wait_until_writable();
        (report, cluster)
    }
}

fn assert_all_is_there(cluster: &Cluster, fast: &Path) {
    assert_eq!(cluster.number("select count(*) from far"), 3000);
    let location = "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'";
    assert_eq!(cluster.value(location), fast.to_str().unwrap());
    let count = |database| {
        cluster
            .sql_in(database, "select count(*) from t")
            .concat()
            .concat()
    };
    assert_eq!(
        ["app", "copied", "moving"].map(count),
        ["2000", "1000", "1000"]
    );
    checks::pg_amcheck(cluster);
}

#[test]
fn the_tablespace_of_a_running_server_is_not_shared() {
    for major in crate::support::versions(&[15, 17]) {
        let scene = scene(major);
        for position in ["current", &format!("xid={},action=promote", scene.after)] {
            let (error, _) = scene.refused(position, &[], 1);
            assert!(error.contains("a server is running"), "{error}");
        }
        if major != 17 {
            continue;
        }
        let (_, hint) = scene.refused("current", &["--force"], 1);
        assert!(hint.contains("inclusive=off"), "{hint}");
        let elsewhere = format!("{}=/elsewhere", scene.fast.display());
        scene.refused("current", &["--tablespace", &elsewhere], 2);
        scene.refused("replica", &[], 1);
        leave_the_second();
        let now = scene.cluster.value("select now()");
        let behind = commit(&scene.cluster, "create table latest (i int)");
        let last = switch(&scene.cluster);
        wait_until_archived(&scene.pgkeep, &last);
        scene.refused(&format!("time={now}"), &[], 1);
        scene.refused(&format!("xid={behind}"), &[], 1);

        // Up to there, nothing is the matter.
        let lsn = hint.split(['=', ',']).nth(1).unwrap();
        for position in [
            format!("lsn={lsn},inclusive=off,action=promote"),
            format!("xid={},action=promote", scene.before),
        ] {
            let (report, restored) = scene.restored(&position, &[]);
            assert_eq!(report.find("Response.CreatedTablespaces"), None);
            assert_eq!(restored.number("select count(*) from early"), 0);
        }

        // Whoever unpacks an archive is told.
        let folder = scene.pgkeep.ground().folder("archive");
        let target = folder.to_str().unwrap();
        let run = scene
            .pgkeep
            .run(&["archive", SERVER, "newest", "current", target]);
        assert!(run.stderr.contains(scene.fast.to_str().unwrap()), "{run:?}");
        let path = run.succeeded().at("Response.CreatedTablespaces.0.Path");
        assert_eq!(Path::new(&path), scene.fast);

        // The maps are a shortcut, and no more than that.
        fs::remove_dir_all(scene.pgkeep.base().join(SERVER).join("summary")).unwrap();
        scene.refused("current", &[], 1);
        let (report, _) = scene.restored(&format!("xid={},action=promote", scene.before), &[]);
        assert_eq!(report.find("Response.CreatedTablespaces"), None);
        // What was dropped again may be anybody's by now.
        scene.cluster.sql("drop table far");
        scene.cluster.sql("drop tablespace fast");
        fs::write(scene.fast.join("precious"), "x").unwrap();
        let last = switch(&scene.cluster);
        wait_until_archived(&scene.pgkeep, &last);
        scene.refused("current", &[], 1);
    }
}

fn a_tablespace_is_created_where_it_is_free(major: u32) {
    let mut scene = scene(major);
    scene.cluster.stop(Postmaster::Fast);
    let (error, _) = scene.refused("current", &[], 1);
    assert!(error.contains("is not empty"), "{error}");
    let kept = scene.fast.with_file_name("kept");
    fs::rename(&scene.fast, &kept).unwrap();
    let state = checks::state(&kept);
    let (report, restored) = scene.restored("current", &[]);
    let path = report.at("Response.CreatedTablespaces.0.Path");
    assert_eq!(Path::new(&path), scene.fast);
    assert_all_is_there(&restored, &scene.fast);
    drop(restored);

    // By force, what is there goes.
    let (_, restored) = scene.restored("current", &["--force"]);
    assert_all_is_there(&restored, &scene.fast);
    assert_eq!(checks::state(&kept), state);
}

#[test]
fn a_tablespace_of_14_is_created_where_it_is_free() {
    a_tablespace_is_created_where_it_is_free(14);
}

#[test]
fn a_tablespace_of_18_is_created_where_it_is_free() {
    a_tablespace_is_created_where_it_is_free(18);
}
