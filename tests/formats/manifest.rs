//! Manifests against pg_basebackup, which writes them, and pg_verifybackup,
//! which reads them.

use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use pgkeep::pg::history::WalRange;
use pgkeep::pg::manifest::{BACKUP_MANIFEST_FILE, Checksum, Manifest, ManifestWriter, ShaKind};
use pgkeep::pg::version::Major;
use walkdir::WalkDir;

use crate::cluster::{Cluster, text};

crate::for_every_major!(
    pg_verifybackup_accepts_a_written_manifest,
    reads_every_manifest_of_pg_basebackup,
);

fn pg_verifybackup_accepts_a_written_manifest(major: Major) {
    let cluster = Cluster::init(major);
    assert!(cluster.start());
    fs::write(
        cluster.data().join("a \"quoted\" \\ file\twith \u{1} é"),
        "",
    )
    .unwrap();
    let backup = cluster.base_backup(&[]);
    let data = backup.data();
    let path = data.join(BACKUP_MANIFEST_FILE);
    let theirs = fs::read(&path).unwrap();
    let parsed = Manifest::parse(&theirs[..]).unwrap();
    assert_eq!(parsed.version, major.manifest_version());
    let system_identifier: u64 = cluster
        .sql(&["select system_identifier from pg_control_system()"])
        .parse()
        .unwrap();

    // What was read, written again, is the same to the last byte.
    let mut writer = ManifestWriter::new(Vec::new(), parsed.version, system_identifier).unwrap();
    for file in &parsed.files {
        let Checksum::Crc32c(crc32c) = file.checksum else {
            panic!("{file:?}");
        };
        writer
            .file(&file.path, file.size, file.modified_unix_seconds, crc32c)
            .unwrap();
    }
    let ours = writer.finish(&parsed.wal_ranges).unwrap();
    assert_eq!(
        String::from_utf8(ours).unwrap(),
        String::from_utf8(theirs).unwrap()
    );

    // What is made from the files themselves passes, and is what is looked at.
    let made = manifest_of(&data, major, system_identifier, &parsed.wal_ranges);
    fs::write(&path, made).unwrap();
    backup.run("pg_verifybackup", &[text(&data)]);
    for (file, content) in [("PG_VERSION", "13\n"), ("pg_xact/0000", ""), ("added", "")] {
        let before = fs::read(data.join(file)).ok();
        fs::write(data.join(file), content).unwrap();
        let verdict = backup.try_run("pg_verifybackup", &[text(&data)]);
        assert!(!verdict.status.success(), "{file}");
        match before {
            Some(bytes) => fs::write(data.join(file), bytes).unwrap(),
            None => fs::remove_file(data.join(file)).unwrap(),
        }
    }
    backup.run("pg_verifybackup", &[text(&data)]);
    let other = manifest_of(&data, major, system_identifier ^ 1, &parsed.wal_ranges);
    fs::write(&path, other).unwrap();
    let verdict = backup.try_run("pg_verifybackup", &[text(&data)]);
    assert_eq!(verdict.status.success(), major < Major::V17);
}

fn reads_every_manifest_of_pg_basebackup(major: Major) {
    let cluster = Cluster::init(major);
    assert!(cluster.start());
    for (algorithm, kind) in [
        ("NONE", None),
        ("SHA224", Some(ShaKind::Sha224)),
        ("SHA256", Some(ShaKind::Sha256)),
        ("SHA384", Some(ShaKind::Sha384)),
        ("SHA512", Some(ShaKind::Sha512)),
    ] {
        let option = format!("--manifest-checksums={algorithm}");
        let backup = cluster.base_backup(&["--manifest-force-encode", &option]);
        let bytes = fs::read(backup.data().join(BACKUP_MANIFEST_FILE)).unwrap();
        let manifest = Manifest::parse(&bytes[..]).unwrap();
        assert!(manifest.files.len() > 900);
        for file in &manifest.files {
            let metadata = fs::metadata(backup.data().join(&file.path)).unwrap();
            assert_eq!(metadata.len(), file.size, "{}", file.path);
            match (&file.checksum, kind) {
                (Checksum::None, None) => {}
                (Checksum::Sha(found, _), Some(kind)) if *found == kind => {}
                (checksum, _) => panic!("{}: {checksum:?}", file.path),
            }
        }
        let mut damaged = bytes;
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        assert!(Manifest::parse(&damaged[..]).is_err());
    }
}

/// A manifest of the files below a directory as they are.
fn manifest_of(data: &Path, major: Major, system_identifier: u64, ranges: &[WalRange]) -> Vec<u8> {
    let version = major.manifest_version();
    let mut writer = ManifestWriter::new(Vec::new(), version, system_identifier).unwrap();
    for entry in WalkDir::new(data).into_iter().map(Result::unwrap) {
        let path = text(entry.path().strip_prefix(data).unwrap());
        if !entry.file_type().is_file()
            || path == BACKUP_MANIFEST_FILE
            || path.starts_with("pg_wal/")
        {
            continue;
        }
        let bytes = fs::read(entry.path()).unwrap();
        let modified = entry.metadata().unwrap().modified().unwrap();
        let seconds = modified.duration_since(UNIX_EPOCH).unwrap().as_secs();
        writer
            .file(
                path,
                bytes.len() as u64,
                seconds as i64,
                crc32c::crc32c(&bytes),
            )
            .unwrap();
    }
    writer.finish(ranges).unwrap()
}
