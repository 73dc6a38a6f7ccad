//! Each kind of damage to a stored backup is found and named.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::support::checks;
use crate::support::pgkeep::{Backup, SERVER};
use crate::support::{Cluster, Pgkeep};

/// A repository of one backup, which can be put back as it was.
struct Kept {
    _cluster: Cluster,
    pgkeep: Pgkeep,
    backup: Backup,
    sound: PathBuf,
}

impl Kept {
    fn new(compression: &str) -> Kept {
        let cluster = Cluster::new(17);
        // All of it is read again for each way to damage some of it.
        cluster.sql("drop database app");
        cluster.sql("truncate pgbench_accounts");
        let pgkeep = Pgkeep::of(&cluster).with("compression", compression);
        let backup = pgkeep.backup();
        pgkeep.ok(&["verify", SERVER, "newest"]);
        let sound = pgkeep.ground().path().join("sound");
        copy(&backup.folder, &sound);
        Kept {
            _cluster: cluster,
            pgkeep,
            backup,
            sound,
        }
    }

    /// Damages the backup, expects `verify` to say so of `named` in both
    /// formats and to change nothing, and puts it back.
    fn finds(&self, what: &str, named: &str, damage: impl FnOnce(&Path)) {
        damage(&self.backup.folder);
        // What was found is noted in backup.info, and nowhere else.
        let state = || {
            let mut state = checks::state(&self.backup.folder);
            state.retain(|(path, ..)| !path.ends_with("backup.info"));
            state
        };
        let before = state();
        for format in ["text", "json"] {
            let run = self
                .pgkeep
                .run(&["--format", format, "verify", SERVER, "newest"]);
            let run = if run.status.code() == Some(1) {
                // A backup.info that cannot be read leaves no newest one.
                self.pgkeep.run(&[
                    "--format",
                    format,
                    "verify",
                    SERVER,
                    &self.backup.identifier,
                ])
            } else {
                run
            };
            assert_eq!(run.status.code(), Some(3), "{what}: {run:?}");
            run.failed(3);
            assert!(
                run.stdout.contains(named),
                "{what}: {named} is not named: {run:?}"
            );
        }
        assert_eq!(state(), before, "{what}: verify changed something");
        fs::remove_dir_all(&self.backup.folder).unwrap();
        copy(&self.sound, &self.backup.folder);
    }
}

fn copy(from: &Path, to: &Path) {
    checks::shell(&format!(
        "cp -a {} {}",
        checks::quoted(from),
        checks::quoted(to)
    ));
}

fn flip(file: &Path, position: u64) {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .unwrap();
    let mut byte = [0];
    opened.read_exact_at(&mut byte, position).unwrap();
    byte[0] ^= 0x10;
    opened.write_all_at(&byte, position).unwrap();
}

fn cut(file: &Path) {
    let length = fs::metadata(file).unwrap().len();
    OpenOptions::new()
        .write(true)
        .open(file)
        .unwrap()
        .set_len(length / 2)
        .unwrap();
}

/// The largest stored file below a folder of the backup, with its name.
fn largest(folder: &Path) -> PathBuf {
    let files = checks::files(folder);
    files
        .into_iter()
        .max_by_key(|file| fs::metadata(file).unwrap().len())
        .unwrap()
}

fn name(file: &Path) -> String {
    file.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn damage_to_a_plain_backup_is_found_and_named() {
    damage_is_found_and_named("none");
}

#[test]
fn damage_to_a_compressed_backup_is_found_and_named() {
    damage_is_found_and_named("zstd");
}

fn damage_is_found_and_named(compression: &str) {
    let kept = Kept::new(compression);
    let base = kept.backup.folder.join("data/base");
    let relation = largest(&base);
    let middle = fs::metadata(&relation).unwrap().len() / 2;
    let wal = largest(&kept.backup.folder.join("data/pg_wal"));
    let in_place = |file: &Path| file.to_owned();

    kept.finds("a flipped bit", &name(&relation), |_| {
        flip(&relation, middle)
    });
    kept.finds("a flipped bit in the last byte", &name(&relation), |_| {
        flip(&relation, fs::metadata(&relation).unwrap().len() - 1);
    });
    kept.finds("a cut file", &name(&relation), |_| cut(&relation));
    kept.finds("an emptied file", &name(&relation), |_| {
        fs::write(&relation, "").unwrap()
    });
    kept.finds("a missing file", &name(&relation), |_| {
        fs::remove_file(&relation).unwrap()
    });
    kept.finds("a grown file", &name(&relation), |_| {
        let length = fs::metadata(&relation).unwrap().len();
        let opened = OpenOptions::new().write(true).open(&relation).unwrap();
        opened.write_all_at(b"more", length).unwrap();
    });
    kept.finds("an extra file", "stranger", |folder| {
        fs::write(folder.join("data/base/stranger"), "hello").unwrap();
    });
    kept.finds("a missing WAL segment", &name(&wal), |_| {
        fs::remove_file(&wal).unwrap()
    });
    kept.finds("a damaged WAL segment", &name(&wal), |_| {
        flip(&in_place(&wal), 50)
    });
    kept.finds("a changed backup.sha512", "backup.sha512", |folder| {
        flip(&folder.join("backup.sha512"), 3)
    });
    kept.finds("a missing backup.sha512", "backup.sha512", |folder| {
        fs::remove_file(folder.join("backup.sha512")).unwrap();
    });
    kept.finds("a damaged list of files", "backup.files", |folder| {
        let list = checks::files(folder)
            .into_iter()
            .find(|file| name(file).starts_with("backup.files"))
            .unwrap();
        let middle = fs::metadata(&list).unwrap().len() / 2;
        flip(&list, middle);
    });
    kept.finds(
        "a damaged manifest",
        "backup_manifest",
        |folder| match checks::files(folder)
            .into_iter()
            .find(|file| name(file).starts_with("backup_manifest"))
        {
            Some(manifest) => flip(&manifest, 30),
            None => panic!("no backup_manifest is stored by itself"),
        },
    );
    kept.finds("a damaged backup.info", "backup.info", |folder| {
        flip(&folder.join("backup.info"), 20)
    });
    if compression != "none" {
        let bundle = largest(&kept.backup.folder.join("bundles"));
        kept.finds("a flipped bit in a bundle", &name(&bundle), |_| {
            flip(&bundle, 100)
        });
        kept.finds("a missing bundle", &name(&bundle), |_| {
            fs::remove_file(&bundle).unwrap()
        });
    }
}

#[test]
fn a_page_damaged_before_it_was_stored_is_found_by_its_own_checksum() {
    // The file, its checksums and the list agree with each other; only the page
    // does not agree with itself.
    let kept = Kept::new("none");
    let relation = largest(&kept.backup.folder.join("data/base"));
    let relative = relation
        .strip_prefix(&kept.backup.folder)
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    flip(&relation, 8192 * 3 + 5000);
    let sum = crate::support::account::run(std::process::Command::new("sha512sum").arg(&relation));
    let sums = kept.backup.folder.join("backup.sha512");
    let text = fs::read_to_string(&sums).unwrap();
    let lines = text
        .lines()
        .map(|line| match line.ends_with(&format!(" {relative}")) {
            true => format!("{}  {relative}", &sum[..128]),
            false => line.to_owned(),
        });
    let changed = lines.collect::<Vec<_>>().join("\n") + "\n";
    assert_ne!(changed, text);
    fs::write(&sums, changed).unwrap();
    checks::sha512sum(&kept.backup.folder);
    let run = kept.pgkeep.run(&["verify", SERVER, "newest"]);
    run.failed(3);
    assert!(
        run.stdout.contains(&name(&relation)) || run.stdout.contains("backup.sha512"),
        "{run:?}"
    );
}

#[test]
fn verify_all_lists_every_file() {
    let kept = Kept::new("zstd");
    let failed = kept
        .pgkeep
        .ok(&["--format", "json", "verify", SERVER, "newest"]);
    let all = kept
        .pgkeep
        .run(&["--format", "json", "verify", SERVER, "newest", "all"]);
    all.succeeded();
    let relation = largest(&kept.backup.folder.join("data/base"));
    assert!(all.stdout.contains(&name(&relation)), "{all:?}");
    assert!(!failed.0.to_string().contains(&name(&relation)));
}

#[test]
fn verify_needs_no_server() {
    let Kept {
        _cluster: cluster,
        pgkeep,
        ..
    } = Kept::new("lz4");
    drop(cluster);
    pgkeep.ok(&["verify", SERVER, "newest"]);
    pgkeep.ok(&["list-backup", SERVER]);
    pgkeep.restore("newest");
}

#[test]
fn a_restore_of_a_damaged_backup_fails_and_leaves_nothing_that_starts() {
    let kept = Kept::new("zstd");
    let relation = largest(&kept.backup.folder.join("data/base"));
    flip(&relation, fs::metadata(&relation).unwrap().len() / 2);
    let target = kept.pgkeep.ground().folder("target");
    let error = kept
        .pgkeep
        .run(&["restore", SERVER, "newest", target.to_str().unwrap()])
        .failed(3);
    assert!(error.contains(&name(&relation)), "{error}");
    for entry in fs::read_dir(&target).unwrap() {
        let mut cluster = Cluster::adopt(17, &entry.unwrap().path());
        cluster.try_start().expect_err("half a cluster starts");
    }
}
