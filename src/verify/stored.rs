//! The stored files of a backup, each read once.

use crate::error::{Kind, Result};
use crate::interrupt::Interrupt;
use crate::parallel::{self, Stop};
use crate::progress::Progress;
use crate::repository::catalogue::Link;
use crate::repository::checksums::Checksums;
use crate::repository::contents::{self, Contents};
use crate::repository::layout::{self, BackupFolder, CHECKSUMS, INFO, INFO_BESIDE};
use crate::repository::portions::{Portion, Portions};
use crate::stored::coding::Coding;
use crate::stored::reader::read_hashed;
use crate::verify::content::Content;
use crate::verify::{Findings, Request};

/// Bytes of plain content that are looked at a time; whole pages.
const PART_BYTES: usize = 256 << 10;

/// Not in `backup.sha512`: the last is there after whoever replaced `backup.info` was killed.
const OWN: [&str; 3] = [INFO, CHECKSUMS, INFO_BESIDE];

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
    let found = compare_with_storage(folder, &checksums, &mut findings)?;
    let coding = match info.coding(request.keys) {
        Ok(coding) => Some(coding),
        Err(error) => {
            findings.unchecked = Some(error);
            None
        }
    };
    let contents = match &coding {
        None => None,
        Some(coding) => match Contents::read_list(folder, info.clone(), coding.clone()) {
            Ok(contents) => Some(contents),
            Err(error) if error.kind() != Kind::Damage => return Err(error),
            Err(error) => {
                findings.add_bad(&layout::file_list(info.suffix()), error.message());
                None
            }
        },
    };
    if let Some(contents) = &contents {
        for segment in contents.missing_wal()? {
            let stored = layout::stored_file(&format!("pg_wal/{segment}"), info.suffix());
            findings.add_bad(&stored, "is missing: the backup needs this WAL segment");
        }
    }
    let tasks = Tasks::new(contents.as_ref(), &checksums, &found, &mut findings);
    let bytes = contents
        .as_ref()
        .map(|contents| contents.list.files.iter().map(|file| file.size).sum());
    progress.step(&format!("verify {}", info.backup), bytes);
    // Without the key, files are read as they lie there, and nothing is known of their content.
    let coding = coding.unwrap_or(Coding::PLAIN);
    let mut workers: Vec<Worker<'_>> = (0..request.workers)
        .map(|_| Worker {
            backup,
            checksums: &checksums,
            found: &found,
            coding: &coding,
            progress,
            part: vec![0; PART_BYTES],
            findings: Findings::new(info.backup, request.all),
        })
        .collect();
    parallel::run_dealt(
        &mut workers,
        |number| tasks.get(number),
        interrupt,
        |worker, task, stop| worker.verify(task, stop),
        || Ok(()),
    )?;
    for worker in workers {
        findings.append(worker.findings);
    }
    Ok(findings)
}

/// Finds files that are missing, and files that nobody put there. Tells which are neither, by their places in `checksums`.
fn compare_with_storage(
    folder: &BackupFolder,
    checksums: &Checksums,
    findings: &mut Findings,
) -> Result<Vec<bool>> {
    let mut found = vec![false; checksums.len()];
    for path in folder.place().files()? {
        match checksums.find(&path) {
            Some(place) => found[place] = true,
            None if OWN.contains(&path.as_str()) => {}
            None => findings.add_bad(&path, "does not belong to this backup"),
        }
    }
    for ((path, _), found) in checksums.iter().zip(&found) {
        if !found {
            findings.add_bad(path, "is missing");
        }
    }
    Ok(found)
}

/// The stored files, those of the cluster first.
struct Tasks<'a> {
    of_cluster: Option<(&'a Contents, Portions<u32>)>,
    /// The other ones that are there, by their places among the checksums.
    others: Vec<u32>,
}

/// A stored file.
enum Task<'a> {
    OfCluster(&'a Contents, Portion<'a, u32>),
    Other(usize),
}

impl<'a> Tasks<'a> {
    /// Finds those of the cluster's that are in no line of `checksums`.
    fn new(
        contents: Option<&'a Contents>,
        checksums: &Checksums,
        found: &[bool],
        findings: &mut Findings,
    ) -> Tasks<'a> {
        let of_cluster = contents.map(|contents| (contents, contents.portions()));
        let mut is_other = found.to_vec();
        if let Some((contents, portions)) = &of_cluster {
            for portion in portions.iter() {
                let path = contents.stored(portion);
                match checksums.find(&path) {
                    Some(place) => is_other[place] = false,
                    None => findings.add_bad(&path, format!("is not in {CHECKSUMS}")),
                }
            }
        }
        let others = (0..).zip(is_other).filter(|(_, is_other)| *is_other);
        Tasks {
            of_cluster,
            others: others.map(|(place, _)| place).collect(),
        }
    }

    fn get(&self, number: usize) -> Option<Task<'_>> {
        let Some((contents, portions)) = &self.of_cluster else {
            return self
                .others
                .get(number)
                .map(|place| Task::Other(*place as usize));
        };
        match portions.get(number) {
            Some(portion) => Some(Task::OfCluster(contents, portion)),
            None => {
                let place = self.others.get(number - portions.len())?;
                Some(Task::Other(*place as usize))
            }
        }
    }
}

struct Worker<'a> {
    backup: Link<'a>,
    checksums: &'a Checksums,
    /// Which of them are there.
    found: &'a [bool],
    coding: &'a Coding,
    progress: &'a dyn Progress,
    part: Vec<u8>,
    findings: Findings,
}

impl Worker<'_> {
    fn verify(&mut self, task: Task<'_>, stop: &Stop<'_>) -> Result<()> {
        let (place, mut content) = match task {
            Task::Other(place) => (place, Content::Unknown),
            Task::OfCluster(contents, portion) => {
                let place = self.checksums.find(&contents.stored(portion));
                // That it is missing, here or there, is told already.
                let Some(place) = place.filter(|place| self.found[*place]) else {
                    return Ok(());
                };
                (place, Content::new(contents, portion))
            }
        };
        let (stored, digest) = self.checksums.at(place);
        let path = self.backup.folder.stored(stored);
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
            Ok((read, _)) if read != digest => {
                Some(format!("its SHA-512 is not the one in {CHECKSUMS}"))
            }
            Ok((_, Err(why))) => Some(format!("cannot be decoded: {why}")),
            Ok((_, Ok(()))) => content.problem(stored),
        };
        match problem {
            Some(problem) => self.findings.add_bad(stored, problem),
            None => self.findings.add_sound(stored),
        }
        Ok(())
    }
}
