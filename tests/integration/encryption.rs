//! Encrypted backups: whole with the key, useless without it, and every change noticed.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::support::checks::{self, Before};
use crate::support::pgkeep::SERVER;
use crate::support::{Cluster, Load, Pgkeep, account};

/// A pgkeep with a master key in its usual place.
fn encrypting(cluster: &Cluster, cipher: &str) -> Pgkeep {
    let pgkeep = Pgkeep::of(cluster).with("encryption", cipher);
    pgkeep.ok(&["master-key"]);
    pgkeep
}

fn key_file(pgkeep: &Pgkeep) -> PathBuf {
    pgkeep.ground().path().join(".config/pgkeep/master.key")
}

/// Where a key lies that is no longer the current one.
fn kept_key_file(pgkeep: &Pgkeep, fingerprint: &str) -> PathBuf {
    key_file(pgkeep).with_file_name(format!("master.key.{fingerprint}"))
}

fn flip(file: &Path, position: u64) {
    let opened = OpenOptions::new().read(true).write(true).open(file);
    let opened = opened.unwrap();
    let mut byte = [0];
    opened.read_exact_at(&mut byte, position).unwrap();
    byte[0] ^= 0x10;
    opened.write_all_at(&byte, position).unwrap();
}

/// Copies a file as the account that pgkeep runs under.
fn copy(from: &Path, to: &Path) {
    account::run(account::command("cp").arg(from).arg(to));
}

/// Every stored file is encrypted by its name and its header, and none has a piece of a known row in it.
fn assert_unreadable(backup: &Path) {
    for file in checks::files(backup) {
        let name = file.file_name().unwrap().to_str().unwrap();
        if ["backup.info", "backup.sha512"].contains(&name) {
            continue;
        }
        let mut magic = [0; 8];
        File::open(&file).unwrap().read_exact(&mut magic).unwrap();
        assert!(name.ends_with(".aes"), "{}", file.display());
        assert_eq!(&magic, b"PGKEEPAE", "{}", file.display());
    }
    // md5('1'), which is in the table `quiet`, and what begins a backup_label.
    for secret in ["c4ca4238a0b923820dcc509a6f75849b", "START WAL LOCATION"] {
        let mut grep = account::command("grep");
        let found = account::output(grep.args(["-rlaF", secret]).arg(backup));
        assert_eq!(found.status.code(), Some(1), "{secret} is in {found:?}");
    }
}

fn goes_there_and_back(major: u32, cipher: &str, compression: &str) {
    let cluster = Cluster::new(major);
    let before = Before::of(&cluster);
    let pgkeep = encrypting(&cluster, cipher).with("compression", compression);
    let load = Load::on(&cluster);
    let backup = pgkeep.backup();
    let at_most = cluster.number("select count(*) from pgbench_history");
    load.stop();
    checks::sha512sum(&backup.folder);
    assert_unreadable(&backup.folder);
    let listed = pgkeep.ok(&["list-backup", SERVER]);
    assert_eq!(listed.at("Response.Backups.0.Encryption"), cipher);
    assert_eq!(
        pgkeep
            .ok(&["info", SERVER, "newest"])
            .at("Response.Encryption"),
        cipher
    );
    let verified = pgkeep.ok(&["verify", SERVER, "newest", "all"]);
    assert_eq!(verified.at("Response.ContentsChecked"), "true");
    let data = pgkeep.restore("newest");
    checks::is_whole(major, &data, &before, at_most);
}

#[test]
fn a_backup_in_cbc_goes_there_and_back() {
    goes_there_and_back(15, "aes-256-cbc", "zstd");
}

#[test]
fn a_backup_in_ctr_goes_there_and_back() {
    goes_there_and_back(17, "aes-192-ctr", "lz4");
}

#[test]
fn a_backup_in_gcm_goes_there_and_back() {
    goes_there_and_back(17, "aes-256-gcm", "gzip");
}

#[test]
fn a_backup_without_compression_goes_there_and_back() {
    goes_there_and_back(15, "aes-128-cbc", "none");
}

/// With nothing but pgkeep's verbs on single files.
#[test]
fn a_stored_file_can_be_undone_by_itself() {
    let cluster = Cluster::new(17);
    let pgkeep = encrypting(&cluster, "aes-256-cbc");
    let backup = pgkeep.backup();
    let folder = pgkeep.ground().folder("undone");
    let control = folder.join("pg_control.zstd.aes");
    copy(
        &backup.folder.join("data/global/pg_control.zstd.aes"),
        &control,
    );
    let bundle = folder.join("bundle.tar.zstd.aes");
    copy(&backup.folder.join("bundles/000000.tar.zstd.aes"), &bundle);
    for file in [&control, &bundle] {
        let decrypted = pgkeep.ok(&["decrypt", file.to_str().unwrap()]);
        assert_eq!(decrypted.at("Response.Encryption"), "aes-256-cbc");
        pgkeep.ok(&["decompress", &decrypted.at("Response.File")]);
    }
    assert_eq!(fs::read(folder.join("pg_control")).unwrap().len(), 8192);
    let tar = account::run(
        account::command("tar")
            .arg("-tf")
            .arg(folder.join("bundle.tar")),
    );
    assert!(tar.lines().any(|member| member == "PG_VERSION"), "{tar}");
}

#[test]
fn without_the_key_it_is_named_and_nothing_is_restored() {
    let cluster = Cluster::new(17);
    let pgkeep = encrypting(&cluster, "aes-256-gcm");
    let backup = pgkeep.backup();
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    let fingerprint = info.at("Response.MasterKey");
    fs::remove_file(key_file(&pgkeep)).unwrap();

    // What is not encrypted is told as before.
    pgkeep.ok(&["list-backup", SERVER]);
    let info = pgkeep.ok(&["info", SERVER, "newest"]);
    assert_eq!(info.at("Response.MasterKey"), fingerprint);

    let run = pgkeep.run(&["verify", SERVER, "newest", "all"]);
    let error = run.failed(1);
    assert!(error.contains(&fingerprint), "{error}");
    assert!(error.contains("contents were not checked"), "{error}");
    let report = run.report();
    assert_eq!(report.at("Response.ContentsChecked"), "false");
    assert_eq!(report.number("Response.NumberOfFailed"), 0);
    assert!(report.number("Response.NumberOfFiles") > 5);

    let target = pgkeep.ground().folder("target");
    let error = pgkeep
        .run(&["restore", SERVER, "newest", target.to_str().unwrap()])
        .failed(1);
    assert!(error.contains(&fingerprint), "{error}");
    assert!(checks::tree(&target).is_empty());
    let error = pgkeep.run(&["backup", SERVER]).failed(2);
    assert!(error.contains("no master key"), "{error}");
    assert_eq!(pgkeep.ok(&["list-backup", SERVER]).backups().len(), 1);

    // Damage of what lies on disk is found all the same.
    let bundle = backup.folder.join("bundles/000000.tar.zstd.aes");
    flip(&bundle, 1000);
    let error = pgkeep
        .run(&["verify", SERVER, &backup.identifier])
        .failed(3);
    assert!(error.contains("000000.tar.zstd.aes"), "{error}");
}

#[test]
fn a_new_key_leaves_older_backups_readable() {
    let cluster = Cluster::new(17);
    cluster.sql("alter system set summarize_wal = on");
    cluster.sql("select pg_reload_conf()");
    let pgkeep = encrypting(&cluster, "aes-256-cbc");
    let before = Before::of(&cluster);
    let old = pgkeep.backup();
    let error = pgkeep.run(&["master-key"]).failed(1);
    assert!(error.contains("already"), "{error}");
    let fingerprint = pgkeep
        .ok(&["info", SERVER, "newest"])
        .at("Response.MasterKey");
    let made = pgkeep.ok(&["master-key", "--force"]);
    let kept = kept_key_file(&pgkeep, &fingerprint);
    assert_eq!(made.at("Response.Kept"), kept.to_str().unwrap());
    assert_eq!(
        fs::metadata(&kept).unwrap().permissions().mode() & 0o777,
        0o600
    );

    // The parent is read with the old key, the child is written with the new one.
    cluster.sql("create table more as select i from generate_series(1, 9) i");
    let pgkeep = pgkeep.with("encryption", "aes-256-gcm");
    let child = pgkeep.backup_on(&old.identifier);
    let info = pgkeep.ok(&["info", SERVER, &child.identifier]);
    assert_eq!(info.at("Response.Incremental"), "true");
    assert_eq!(info.at("Response.MasterKey"), made.at("Response.MasterKey"));
    for backup in [&old, &child] {
        pgkeep.ok(&["verify", SERVER, &backup.identifier]);
        let data = pgkeep.restore(&backup.identifier);
        checks::is_whole(17, &data, &before, 0);
    }
    fs::remove_file(kept).unwrap();
    for backup in [&old, &child] {
        let target = pgkeep
            .ground()
            .folder(&format!("target-{}", backup.identifier));
        let arguments = [
            "restore",
            SERVER,
            &backup.identifier,
            target.to_str().unwrap(),
        ];
        let error = pgkeep.run(&arguments).failed(1);
        assert!(error.contains(&fingerprint), "{error}");
        let error = pgkeep
            .run(&["verify", SERVER, &backup.identifier])
            .failed(1);
        assert!(error.contains(&fingerprint), "{error}");
    }
}

#[test]
fn a_key_that_is_not_private_is_refused() {
    let cluster = Cluster::new(17);
    let pgkeep = encrypting(&cluster, "aes-256-ctr");
    pgkeep.backup();
    let key = key_file(&pgkeep);
    let target = pgkeep.ground().folder("target");
    let restore = ["restore", SERVER, "newest", target.to_str().unwrap()];
    for mode in [0o640, 0o604] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        for arguments in [&["backup", SERVER][..], &restore] {
            let error = pgkeep.run(arguments).failed(2);
            assert!(error.contains("open to others"), "{error}");
        }
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
    pgkeep.ok(&["verify", SERVER, "newest"]);
    if account::is_root() {
        std::os::unix::fs::chown(&key, Some(0), Some(0)).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let error = pgkeep.run(&["backup", SERVER]).failed(2);
        assert!(error.contains("belongs to user 0"), "{error}");
    }
}

#[test]
fn the_key_is_found_by_configuration_and_environment() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster).with("encryption", "aes-256-cbc");
    let configured = pgkeep.ground().path().join("configured.key");
    let pgkeep = pgkeep.with("master_key", configured.to_str().unwrap());
    let made = pgkeep.ok(&["master-key"]);
    assert_eq!(made.at("Response.File"), configured.to_str().unwrap());
    pgkeep.backup();
    assert!(!key_file(&pgkeep).exists());

    let other = pgkeep.ground().path().join("other.key");
    let named = [("PGKEEP_MASTER_KEY_FILE", other.to_str().unwrap())];
    let made = pgkeep
        .spawn_bare(&named, &["master-key"])
        .wait()
        .succeeded();
    assert_eq!(made.at("Response.File"), other.to_str().unwrap());
}

/// Whoever changes a stored file may mend backup.sha512 and backup.info too; the encryption is not fooled.
#[test]
fn a_restore_never_takes_a_changed_file() {
    for cipher in ["aes-256-cbc", "aes-256-ctr", "aes-256-gcm"] {
        let cluster = Cluster::new(17);
        let pgkeep = encrypting(&cluster, cipher);
        let backup = pgkeep.backup();
        let largest = checks::files(&backup.folder.join("data"))
            .into_iter()
            .max_by_key(|file| fs::metadata(file).unwrap().len())
            .unwrap();
        let length = fs::metadata(&largest).unwrap().len();
        let name = largest.file_name().unwrap().to_str().unwrap();
        // The salt, and the end, which no decompressor needs.
        for (number, place) in [20, length - 1].into_iter().enumerate() {
            flip(&largest, place);
            let error = pgkeep
                .run(&["verify", SERVER, &backup.identifier])
                .failed(3);
            assert!(error.contains(name), "{error}");
            // Restore reads no SHA-512: it is the encryption that tells.
            let target = pgkeep.ground().folder(&format!("target-{number}"));
            let target_name = target.to_str().unwrap();
            let arguments = ["restore", SERVER, &backup.identifier, target_name];
            let error = pgkeep.run(&arguments).failed(3);
            assert!(error.contains(name), "{error}");
            let is_told = error.contains("the encrypted file was changed");
            assert!(is_told || place == 20, "{error}");
            assert!(checks::tree(&target).is_empty());
            flip(&largest, place);
        }
        pgkeep.ok(&["verify", SERVER, &backup.identifier]);
    }
}
