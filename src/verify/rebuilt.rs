//! The cluster rebuilt from a backup, read back from disk.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use walkdir::WalkDir;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::parallel;
use crate::pg::manifest::{BACKUP_MANIFEST_FILE, Checksum, Manifest, ManifestFile};
use crate::progress::Progress;
use crate::repository::file_list::{Crc32c, FileEntry, FileKind, Files};
use crate::verify::Findings;

const PART_BYTES: usize = 256 << 10;

/// What pg_verifybackup passes over too: a restore writes these by itself.
const NOT_IN_MANIFEST: [&str; 4] = [
    BACKUP_MANIFEST_FILE,
    "postgresql.auto.conf",
    "recovery.signal",
    "standby.signal",
];

/// Checks every file of a rebuilt cluster against its manifest.
pub(super) fn check(
    root: &Path,
    findings: &mut Findings,
    workers: usize,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<()> {
    let path = root.join(BACKUP_MANIFEST_FILE);
    let file = File::open(&path).map_err(|error| Error::io("open", &path, &error))?;
    let manifest: Manifest<Listed> =
        Manifest::collect(file).map_err(|error| error.context(path.display()))?;
    let Listed(mut files) = manifest.files;
    files.sort();
    for path in unlisted(root, &files)? {
        findings.add_bad(&path, "is not in the manifest");
    }
    let mut workers: Vec<Vec<(String, String)>> = (0..workers).map(|_| Vec::new()).collect();
    parallel::run_dealt(
        &mut workers,
        |number| (number < files.len()).then(|| files.get(number)),
        interrupt,
        |problems, file, stop| {
            stop.check()?;
            let problem = problem(&root.join(file.path), file, progress);
            problems.extend(problem.map(|problem| (file.path.to_owned(), problem)));
            Ok(())
        },
        || Ok(()),
    )?;
    for (path, problem) in workers.into_iter().flatten() {
        findings.add_bad(&path, problem);
    }
    Ok(())
}

/// The files of a manifest.
#[derive(Default)]
struct Listed(Files);

impl Extend<ManifestFile> for Listed {
    fn extend<I: IntoIterator<Item = ManifestFile>>(&mut self, files: I) {
        for file in files {
            // A restore writes no other kind of checksum.
            if let Checksum::Crc32c(crc32c) = file.checksum {
                self.0.push(FileEntry {
                    path: &file.path,
                    size: file.size,
                    modified: file.modified_unix_seconds,
                    crc32c: Crc32c(crc32c),
                    bundle: None,
                    kind: FileKind::Whole,
                });
            }
        }
    }
}

/// Files that the manifest does not know.
fn unlisted(root: &Path, listed: &Files) -> Result<Vec<String>> {
    let mut unlisted = Vec::new();
    for entry in WalkDir::new(root).follow_links(true) {
        let entry = entry
            .map_err(|error| Error::failed(format!("cannot read {}: {error}", root.display())))?;
        let path = entry
            .path()
            .strip_prefix(root)
            .unwrap_or(entry.path())
            .to_string_lossy();
        let known = listed.place(&path).is_some()
            || NOT_IN_MANIFEST.contains(&path.as_ref())
            || path.starts_with("pg_wal/");
        if entry.file_type().is_file() && !known {
            unlisted.push(path.into_owned());
        }
    }
    Ok(unlisted)
}

fn problem(path: &Path, expected: FileEntry<'_>, progress: &dyn Progress) -> Option<String> {
    // Recovery settings were added to it.
    if NOT_IN_MANIFEST.contains(&expected.path) {
        return None;
    }
    match read(path, progress) {
        Err(error) => Some(Error::io("read", path, &error).message().to_owned()),
        Ok((size, _)) if size != expected.size => {
            Some(format!("has {size} bytes, not {}", expected.size))
        }
        Ok((_, crc32c)) if expected.crc32c != Crc32c(crc32c) => {
            Some("does not fit its CRC-32C".to_owned())
        }
        Ok(_) => None,
    }
}

fn read(path: &Path, progress: &dyn Progress) -> std::io::Result<(u64, u32)> {
    let mut file = fs::File::open(path)?;
    let mut part = vec![0; PART_BYTES.min(file.metadata()?.len() as usize + 1)];
    let (mut size, mut crc32c) = (0, 0);
    loop {
        let read = file.read(&mut part)?;
        if read == 0 {
            return Ok((size, crc32c));
        }
        size += read as u64;
        crc32c = crc32c::crc32c_append(crc32c, &part[..read]);
        progress.advance(read as u64);
    }
}
