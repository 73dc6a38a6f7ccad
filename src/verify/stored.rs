//! The stored files of a backup, each read once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use walkdir::WalkDir;

use crate::error::{Error, Kind, Result};
use crate::interrupt::Interrupt;
use crate::parallel::{self, Stop};
use crate::progress::Progress;
use crate::repository::catalogue::Link;
use crate::repository::checksums::Checksums;
use crate::repository::contents::{self, Contents, Portion};
use crate::repository::layout::{self, BackupFolder, CHECKSUMS, INFO, INFO_BESIDE};
use crate::stored::checksum::Sha512Digest;
use crate::stored::coding::Coding;
use crate::stored::reader::read_hashed;
use crate::verify::content::Content;
use crate::verify::{Findings, Request};

/// Bytes of plain content that are looked at a time; whole pages.
const PART_BYTES: usize = 256 << 10;

/// Not in `backup.sha512`: the last is there after whoever replaced `backup.info` was killed.
const OWN: [&str; 3] = [INFO, CHECKSUMS, INFO_BESIDE];

/// A stored file, and what is expected of it.
struct Task<'a> {
    path: &'a str,
    digest: Sha512Digest,
    portion: Option<&'a Portion<'a>>,
}

/// Verifies all stored files of one backup against its own lists, and the lists against each other.
pub(super) fn verify(
    backup: Link<'_>,
    request: &Request<'_>,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Findings> {
    let Link { folder, info } = backup;
    let mut findings = Findings::new(info.backup, request.all);
    let checksums = match contents::read_checksums(folder, info) {
        Ok(checksums) => checksums,
        Err(error) if error.kind() != Kind::Damage => return Err(error),
        Err(error) => {
            findings.add_bad(CHECKSUMS, error.message());
            return Ok(findings);
        }
    };
    findings.add_sound(CHECKSUMS);
    compare_with_disk(folder, &checksums, &mut findings)?;
    let coding = match info.coding(request.keys) {
        Ok(coding) => Some(coding),
        Err(error) => {
            findings.unchecked = Some(error);
            None
        }
    };
    let contents = match &coding {
        None => None,
        Some(coding) => match Contents::read_lists(folder, info.clone(), coding.clone()) {
            Ok(contents) => Some(contents),
            Err(error) if error.kind() != Kind::Damage => return Err(error),
            Err(error) => {
                findings.add_bad(&layout::file_list(info.suffix()), error.message());
                None
            }
        },
    };
    let portions: Vec<(String, Portion<'_>)> = contents
        .iter()
        .flat_map(|contents| {
            contents
                .portions()
                .into_iter()
                .map(|portion| (contents.stored(&portion), portion))
        })
        .collect();
    if let Some(contents) = &contents {
        for segment in contents.missing_wal()? {
            let stored = layout::stored_file(&format!("pg_wal/{segment}"), info.suffix());
            findings.add_bad(&stored, "is missing: the backup needs this WAL segment");
        }
    }
    for (path, _) in &portions {
        if checksums.get(path).is_none() {
            findings.add_bad(path, format!("is not in {CHECKSUMS}"));
        }
    }
    let bytes = contents
        .as_ref()
        .map(|contents| contents.list.files.iter().map(|file| file.size).sum());
    progress.step(&format!("verify {}", info.backup), bytes);
    // Without the key, files are read as they lie there, and nothing is known of their content.
    let coding = coding.unwrap_or(Coding::PLAIN);
    let mut workers: Vec<Worker<'_>> = (0..request.workers)
        .map(|_| Worker {
            backup,
            coding: &coding,
            progress,
            part: vec![0; PART_BYTES],
            findings: Findings::new(info.backup, request.all),
        })
        .collect();
    parallel::run(
        &mut workers,
        &tasks(folder, &checksums, &portions),
        interrupt,
        |worker, task, stop| worker.verify(task, stop),
        || Ok(()),
    )?;
    for worker in workers {
        findings.append(worker.findings);
    }
    Ok(findings)
}

/// Every stored file that is not missing, those of the cluster first.
fn tasks<'a>(
    folder: &BackupFolder,
    checksums: &'a Checksums,
    portions: &'a [(String, Portion<'a>)],
) -> Vec<Task<'a>> {
    let by_path: BTreeMap<&str, &Portion<'_>> = portions
        .iter()
        .map(|(path, portion)| (path.as_str(), portion))
        .collect();
    let in_portions = portions.iter().map(|(path, _)| path.as_str());
    let others = checksums
        .iter()
        .map(|(path, _)| path)
        .filter(|path| !by_path.contains_key(path));
    in_portions
        .chain(others)
        .filter(|path| !matches!(folder.stored(path).try_exists(), Ok(false)))
        .filter_map(|path| {
            Some(Task {
                path,
                digest: checksums.get(path)?,
                portion: by_path.get(path).copied(),
            })
        })
        .collect()
}

/// Finds files that are missing, and files that nobody put there.
fn compare_with_disk(
    folder: &BackupFolder,
    checksums: &Checksums,
    findings: &mut Findings,
) -> Result<()> {
    let mut found = BTreeSet::new();
    for entry in WalkDir::new(folder.path()) {
        let entry = entry.map_err(|error| {
            Error::failed(format!(
                "cannot read the folder {}: {error}",
                folder.path().display()
            ))
        })?;
        if !entry.file_type().is_dir()
            && let Ok(path) = entry.path().strip_prefix(folder.path())
        {
            found.insert(path.to_string_lossy().into_owned());
        }
    }
    for (path, _) in checksums.iter().filter(|(path, _)| !found.contains(*path)) {
        findings.add_bad(path, "is missing");
    }
    for path in &found {
        if checksums.get(path).is_none() && !OWN.contains(&path.as_str()) {
            findings.add_bad(path, "does not belong to this backup");
        }
    }
    Ok(())
}

struct Worker<'a> {
    backup: Link<'a>,
    coding: &'a Coding,
    progress: &'a dyn Progress,
    part: Vec<u8>,
    findings: Findings,
}

impl Worker<'_> {
    fn verify(&mut self, task: &Task<'_>, stop: &Stop<'_>) -> Result<()> {
        let Link { folder, info } = self.backup;
        let path = folder.stored(task.path);
        let mut content = Content::new(info, task.portion);
        let progress = self.progress;
        let read = read_hashed(&path, self.coding, &mut self.part, |part| {
            if !stop.is_set() {
                content.take(part);
                progress.advance(part.len() as u64);
            }
        });
        stop.check()?;
        let problem = match read {
            // What cannot be read just now is not found to be damaged.
            Err(error) if error.kind() != Kind::Damage => return Err(error),
            Err(error) => Some(error.message().to_owned()),
            Ok((digest, _)) if digest != task.digest => {
                Some(format!("its SHA-512 is not the one in {CHECKSUMS}"))
            }
            Ok((_, Err(why))) => Some(format!("cannot be decoded: {why}")),
            Ok((_, Ok(()))) => content.problem(Path::new(task.path)),
        };
        match problem {
            Some(problem) => self.findings.add_bad(task.path, problem),
            None => self.findings.add_sound(task.path),
        }
        Ok(())
    }
}
