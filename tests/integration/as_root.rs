//! Root restores for the account that will run the server, which may meddle meanwhile.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;
use walkdir::WalkDir;

use crate::support::account::{self, is_root};
use crate::support::checks::{self, Before};
use crate::support::cluster::Options;
use crate::support::pgkeep::{Run, SERVER};
use crate::support::{Cluster, Pgkeep};

/// A server with the tablespace `outside`, and a backup of it.
struct Scene {
    cluster: Cluster,
    pgkeep: Pgkeep,
    before: Before,
    outside: PathBuf,
    identifier: String,
}

fn scene(major: u32) -> Scene {
    let mut cluster = Cluster::stopped(major, &Options::default());
    cluster.set("autovacuum = off");
    cluster.start();
    let outside = cluster.tablespace("outside");
    cluster.sql("create table far tablespace outside as select i from generate_series(1, 3000) i");
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::of(&cluster);
    let identifier = pgkeep.backup().identifier;
    Scene {
        cluster,
        pgkeep,
        before,
        outside,
        identifier,
    }
}

impl Scene {
    fn root_restores(&self, target: &Path, outside: &Path, more: &[&str]) -> Run {
        let mapping = format!("outside={}", outside.display());
        let target = target.to_str().unwrap();
        let arguments = [
            "restore",
            SERVER,
            "newest",
            target,
            "--tablespace",
            &mapping,
        ];
        self.pgkeep.run_as_root(&[&arguments[..], more].concat())
    }

    fn data(&self, target: &Path) -> PathBuf {
        target.join(format!("{SERVER}-{}", self.identifier))
    }

    fn assert_whole(&self, data: &Path) {
        let restored = checks::is_whole(self.cluster.major, data, &self.before, 0);
        assert_eq!(restored.number("select count(*) from far"), 3000);
    }
}

/// A folder that is root's, and that all may enter.
fn roots_folder() -> TempDir {
    tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o755))
        .tempdir()
        .unwrap()
}

/// What is root's: nobody else may change any of it.
fn precious() -> TempDir {
    let folder = roots_folder();
    fs::create_dir(folder.path().join("base")).unwrap();
    for name in ["secret", "base/secret", "PG_VERSION"] {
        fs::write(folder.path().join(name), "of root").unwrap();
    }
    folder
}

/// Names, owners, modes and sizes.
fn state(folder: &Path) -> Vec<(PathBuf, u32, u32, u64)> {
    let mut state: Vec<_> = WalkDir::new(folder)
        .into_iter()
        .map(|entry| {
            let entry = entry.unwrap();
            let metadata = entry.path().symlink_metadata().unwrap();
            let size = if metadata.is_file() {
                metadata.len()
            } else {
                0
            };
            (entry.into_path(), metadata.uid(), metadata.mode(), size)
        })
        .collect();
    state.sort();
    state
}

fn assert_is_the_accounts(folder: &Path) {
    for entry in WalkDir::new(folder) {
        let entry = entry.unwrap();
        let owner = entry.path().symlink_metadata().unwrap().uid();
        assert_eq!(owner, account::uid(), "{}", entry.path().display());
    }
}

#[test]
fn what_root_restores_is_the_accounts_wherever_it_lies() {
    if !is_root() {
        return;
    }
    let scene = scene(17);
    let target = scene.pgkeep.ground().folder("target");
    // Folders that are missing are made, and the server gets there.
    let far = roots_folder();
    let outside = far.path().join("far/away/outside");
    scene.root_restores(&target, &outside, &[]).succeeded();
    let data = scene.data(&target);
    assert_is_the_accounts(&data);
    assert_is_the_accounts(&far.path().join("far"));
    scene.assert_whole(&data);

    // Those that are there are the account's again, whether the restore succeeds or not.
    let largest = checks::files(&scene.pgkeep.backups())
        .into_iter()
        .max_by_key(|file| fs::metadata(file).unwrap().len())
        .unwrap();
    let sound = fs::read(&largest).unwrap();
    let mut damaged = sound.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&largest, damaged).unwrap();
    scene
        .root_restores(&target, &outside, &["--force"])
        .failed(3);
    for folder in [&data, &outside] {
        assert_is_the_accounts(folder);
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
    }
    fs::write(&largest, sound).unwrap();
    scene
        .root_restores(&target, &outside, &["--force"])
        .succeeded();
    assert_is_the_accounts(&data);
    assert_is_the_accounts(&outside);
    scene.assert_whole(&data);
}

#[test]
fn root_makes_no_folder_elsewhere_because_a_backup_says_so() {
    if !is_root() {
        return;
    }
    let mut scene = scene(17);
    scene
        .cluster
        .stop(crate::support::cluster::Postmaster::Fast);
    let target = scene.pgkeep.ground().folder("target");
    let restore = || {
        let arguments = ["restore", SERVER, "newest", target.to_str().unwrap()];
        scene.pgkeep.run_as_root(&arguments)
    };
    let above = scene.outside.parent().unwrap();
    fs::remove_dir_all(&scene.outside).unwrap();
    for missing in [true, false] {
        if !missing {
            fs::create_dir(&scene.outside).unwrap();
        }
        std::os::unix::fs::chown(above, Some(0), Some(0)).unwrap();
        let run = restore();
        let error = run.failed(1);
        assert!(error.contains(scene.outside.to_str().unwrap()), "{error}");
        let hint = run.report().at("Outcome.Hint");
        assert!(hint.contains("install -d"), "{hint}");
        assert_eq!(scene.outside.exists(), !missing);
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    }
    account::give(&scene.outside);
    restore().succeeded();
    account::give(above);
    assert_is_the_accounts(&scene.outside);
}

#[test]
fn root_says_where_the_account_does_not_get_to() {
    if !is_root() {
        return;
    }
    let scene = scene(17);
    let target = scene.pgkeep.ground().folder("target");
    let closed = roots_folder();
    fs::set_permissions(closed.path(), Permissions::from_mode(0o700)).unwrap();
    let name = closed.path().to_str().unwrap();
    let run = scene.root_restores(&target, &closed.path().join("outside"), &[]);
    run.succeeded();
    assert!(
        run.stderr.contains(&format!("may not enter {name},")),
        "{run:?}"
    );
    let arguments = ["verify", SERVER, "newest", name, "--start"];
    let error = scene.pgkeep.run_as_root(&arguments).failed(1);
    assert!(error.contains(&format!("may not enter {name}")), "{error}");

    // Archived WAL that only root can read.
    scene.pgkeep.ok(&["wal", "copy", SERVER]);
    let wal = scene.pgkeep.wal();
    std::os::unix::fs::chown(&wal, Some(0), Some(0)).unwrap();
    let target = scene.pgkeep.ground().folder("other");
    let mapping = format!("outside={}", target.join("outside").display());
    let target = target.to_str().unwrap();
    let arguments = [
        "restore",
        SERVER,
        "newest",
        "current",
        target,
        "--tablespace",
        &mapping,
    ];
    let run = scene.pgkeep.run_as_root(&arguments);
    run.succeeded();
    let warning = format!("the server's account may not read {}", wal.display());
    assert!(run.stderr.contains(&warning), "{run:?}");
}

/// What a refused restore had taken from the account is the account's again, and as it was.
#[test]
fn a_restore_that_root_is_refused_loses_nothing() {
    if !is_root() {
        return;
    }
    let scene = scene(17);
    let target = scene.pgkeep.ground().folder("target");
    let outside = scene.pgkeep.ground().path().join("outside");
    scene.root_restores(&target, &outside, &[]).succeeded();
    let data = scene.data(&target);
    let before = state(&data);
    let roots = roots_folder();
    let error = scene
        .root_restores(&target, roots.path(), &["--force"])
        .failed(1);
    assert!(error.contains("is not that user's"), "{error}");
    assert_eq!(state(&data), before);
}

/// Does something again and again until a command has ended.
fn while_it_runs(command: impl FnOnce() -> Run, mut meddle: impl FnMut() + Send) -> Run {
    let has_ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !has_ended.load(Ordering::Relaxed) {
                meddle();
            }
        });
        let run = command();
        has_ended.store(true, Ordering::Relaxed);
        run
    })
}

/// Puts a link to root's own in the place of `folder`, as whoever has the folder above it can.
fn replace_by_link(folder: &Path, taken: &Path, precious: &Path) {
    if folder.symlink_metadata().is_ok_and(|found| found.is_dir())
        && fs::rename(folder, taken).is_ok()
    {
        symlink(precious, folder).unwrap();
    }
}

#[test]
fn an_account_that_takes_the_data_directory_away_leads_root_nowhere() {
    if !is_root() {
        return;
    }
    let scene = scene(17);
    let precious = precious();
    let state_before = state(precious.path());
    for force in [false, true] {
        let target = scene.pgkeep.ground().folder(&format!("target-{force}"));
        let outside = scene
            .pgkeep
            .ground()
            .path()
            .join(format!("outside-{force}"));
        let data = scene.data(&target);
        let taken = target.join("taken");
        let mut more = vec![];
        if force {
            scene.root_restores(&target, &outside, &[]).succeeded();
            more.push("--force");
        }
        let restored = while_it_runs(
            || scene.root_restores(&target, &outside, &more),
            || {
                // Root has it while it restores.
                if data.metadata().is_ok_and(|found| found.uid() == 0)
                    && outside
                        .read_dir()
                        .is_ok_and(|mut entries| entries.next().is_some())
                {
                    replace_by_link(&data, &taken, precious.path());
                }
            },
        );
        assert_eq!(state(precious.path()), state_before);
        let error = restored.failed(1);
        assert!(error.contains("was moved away"), "{error}");
        assert!(checks::files(&taken).is_empty());
    }
}

#[test]
fn an_account_that_puts_links_into_a_drill_gains_nothing() {
    if !is_root() {
        return;
    }
    let scene = scene(17);
    let precious = precious();
    let state_before = state(precious.path());
    let directory = scene.pgkeep.ground().folder("drill");
    let scratch = directory.join(format!("{SERVER}-{}.verify", scene.identifier));
    let arguments = [
        "verify",
        SERVER,
        "newest",
        directory.to_str().unwrap(),
        "--start",
    ];
    let verify = || scene.pgkeep.run_as_root(&arguments);

    // Of the folder that is the account's already, each file as soon as it is there.
    for name in [
        "drill.conf",
        "drill_hba.conf",
        "drill_ident.conf",
        "drill.log",
    ] {
        let file = scratch.join(name);
        let secret = precious.path().join("secret");
        while_it_runs(verify, || {
            if file.exists() && fs::remove_file(&file).is_ok() {
                let _ = symlink(&secret, &file);
            }
        });
        assert_eq!(state(precious.path()), state_before, "{name}");
    }
    // The folder itself.
    let taken = directory.join("taken");
    while_it_runs(verify, || {
        replace_by_link(&scratch, &taken, precious.path())
    });
    assert_eq!(state(precious.path()), state_before);
}
