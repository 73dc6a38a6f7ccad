//! The stored files of a backup, each read once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use walkdir::WalkDir;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::parallel::{self, Stop};
use crate::progress::Progress;
use crate::repository::backup_info::BackupInfo;
use crate::repository::checksums::Checksums;
use crate::repository::contents::{self, Contents, Portion};
use crate::repository::layout::{self, BackupFolder, CHECKSUMS, INFO};
use crate::stored::checksum::Sha512Digest;
use crate::stored::coding::Coding;
use crate::stored::reader::read_hashed;
use crate::verify::Finding;
use crate::verify::content::Content;

/// Bytes of plain content that are looked at a time; whole pages.
const PART_BYTES: usize = 256 << 10;

/// A stored file, and what is expected of it.
struct Task<'a> {
    path: &'a str,
    digest: Sha512Digest,
    portion: Option<&'a Portion<'a>>,
}

/// Verifies all stored files against the backup's own lists, and the lists against each other. Without a coding, which is to
/// say without the master key, that is the SHA-512 of each file alone.
pub(super) fn verify(
    folder: &BackupFolder,
    info: &BackupInfo,
    coding: Option<Coding>,
    workers: usize,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Vec<Finding>> {
    let checksums = match contents::read_checksums(folder, info) {
        Ok(checksums) => checksums,
        Err(error) => return Ok(vec![Finding::bad(CHECKSUMS, error.message())]),
    };
    let mut findings = vec![Finding::sound(CHECKSUMS)];
    findings.extend(files_on_disk(folder, &checksums)?);
    let read = |coding| Contents::read_lists(folder, info.clone(), coding);
    let contents = coding.clone().map(read).and_then(|contents| {
        contents
            .inspect_err(|error| {
                let list = layout::file_list(info.suffix());
                findings.push(Finding::bad(list, error.message()));
            })
            .ok()
    });
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
        findings.extend(contents.missing_wal()?.into_iter().map(|segment| {
            let stored = layout::stored_file(&format!("pg_wal/{segment}"), info.suffix());
            Finding::bad(stored, "is missing: the backup needs this WAL segment")
        }));
    }
    findings.extend(
        portions
            .iter()
            .filter(|(path, _)| checksums.get(path).is_none())
            .map(|(path, _)| Finding::bad(path.as_str(), format!("is not in {CHECKSUMS}"))),
    );
    let coding = coding.unwrap_or(Coding::PLAIN);
    let workers = (0..workers).map(|_| Worker {
        folder,
        info,
        coding: &coding,
        progress,
        part: vec![0; PART_BYTES],
        findings: Vec::new(),
    });
    findings.extend(read_all(
        folder,
        &checksums,
        &portions,
        workers.collect(),
        interrupt,
    )?);
    Ok(findings)
}

/// Files that are missing, and files that nobody put there.
fn files_on_disk(folder: &BackupFolder, checksums: &Checksums) -> Result<Vec<Finding>> {
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
    let missing = checksums
        .iter()
        .filter(|(path, _)| !found.contains(*path))
        .map(|(path, _)| Finding::bad(path, "is missing"));
    let extra = found
        .iter()
        .filter(|path| checksums.get(path).is_none() && ![INFO, CHECKSUMS].contains(&path.as_str()))
        .map(|path| Finding::bad(path.as_str(), "does not belong to this backup"));
    Ok(missing.chain(extra).collect())
}

fn read_all(
    folder: &BackupFolder,
    checksums: &Checksums,
    portions: &[(String, Portion<'_>)],
    mut workers: Vec<Worker<'_>>,
    interrupt: &Interrupt,
) -> Result<Vec<Finding>> {
    let by_path: BTreeMap<&str, &Portion<'_>> = portions
        .iter()
        .map(|(path, portion)| (path.as_str(), portion))
        .collect();
    let in_portions = portions.iter().map(|(path, _)| path.as_str());
    let others = checksums
        .iter()
        .map(|(path, _)| path)
        .filter(|path| !by_path.contains_key(path));
    let tasks: Vec<Task<'_>> = in_portions
        .chain(others)
        .filter(|path| folder.stored(path).exists())
        .filter_map(|path| {
            Some(Task {
                path,
                digest: checksums.get(path)?,
                portion: by_path.get(path).copied(),
            })
        })
        .collect();
    parallel::run(
        &mut workers,
        &tasks,
        interrupt,
        |worker, task, stop| worker.verify(task, stop),
        || Ok(()),
    )?;
    Ok(workers
        .into_iter()
        .flat_map(|worker| worker.findings)
        .collect())
}

struct Worker<'a> {
    folder: &'a BackupFolder,
    info: &'a BackupInfo,
    coding: &'a Coding,
    progress: &'a dyn Progress,
    part: Vec<u8>,
    findings: Vec<Finding>,
}

impl Worker<'_> {
    fn verify(&mut self, task: &Task<'_>, stop: &Stop<'_>) -> Result<()> {
        let path = self.folder.stored(task.path);
        let mut content = Content::new(self.info, task.portion);
        let progress = self.progress;
        let read = read_hashed(&path, self.coding, &mut self.part, |part| {
            if !stop.is_set() {
                content.take(part);
                progress.advance(part.len() as u64);
            }
        });
        stop.check()?;
        let finding = match read {
            Err(error) => Finding::bad(task.path, error.message()),
            Ok((digest, _)) if digest != task.digest => Finding::bad(
                task.path,
                format!("its SHA-512 is not the one in {CHECKSUMS}"),
            ),
            Ok((_, Err(why))) => Finding::bad(task.path, format!("cannot be decoded: {why}")),
            Ok((_, Ok(()))) => match content.problem(Path::new(task.path)) {
                Some(problem) => Finding::bad(task.path, problem),
                None => Finding::sound(task.path),
            },
        };
        self.findings.push(finding);
        Ok(())
    }
}
