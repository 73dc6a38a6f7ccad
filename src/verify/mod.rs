//! Reading a backup back: every byte of it and of those it needs, and where asked for the cluster rebuilt.
//!
//! Each stored file is read once. Its SHA-512 is compared with `backup.sha512`, what comes out of it
//! with the list of files, pages with their checksums, and WAL with its page headers.

mod content;
pub mod drill;
pub mod due;
mod rebuilt;
mod remember;
mod stored;

use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::repository::catalogue::{Backup, Catalogue, Link};
use crate::repository::chain::Chain;
use crate::repository::identifier::Identifier;
use crate::repository::layout::{self, INFO, ServerFolder};
use crate::stored::master_key::Keyring;

use crate::private_server::{self, Scratch};
use crate::restore::recovery::Recovery;
use crate::restore::selection::Selection;
use drill::{Drill, Held};
pub use remember::Remembered;

/// What to verify.
pub struct Request<'a> {
    /// The server's part of the repository.
    pub folder: &'a ServerFolder,
    /// The server's backups.
    pub catalogue: &'a Catalogue,
    /// The one to verify; those it needs are verified with it.
    pub backup: &'a Backup,
    /// The master keys they may be encrypted with.
    pub keys: &'a Keyring,
    /// Whether and how the cluster is rebuilt.
    pub rebuild: Option<Rebuild<'a>>,
    /// Whether sound files are told too.
    pub all: bool,
    /// Threads that read.
    pub workers: usize,
}

/// A cluster that is rebuilt, checked, and removed.
#[derive(Clone, Copy)]
pub struct Rebuild<'a> {
    /// Where.
    pub directory: &'a Path,
    /// Whether and how it is started too.
    pub drill: Option<&'a drill::Request>,
}

/// What a verification showed.
#[derive(Debug)]
pub struct Verified {
    /// What was found of the files.
    pub findings: Findings,
    /// What was seen of the started cluster, where one was to be started and nothing bad was found before.
    pub drill: Option<Held>,
    /// Whether this is noted.
    pub remembered: Remembered,
}

/// What was found of one file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The backup that it is of.
    pub backup: Identifier,
    /// The stored file in the backup's folder, or a file of the rebuilt cluster.
    pub file: String,
    /// What is wrong with it; `None` where it is sound.
    pub problem: Option<String>,
}

/// What was found, of one backup or of several.
#[derive(Debug)]
pub struct Findings {
    /// Whose files are looked at.
    backup: Identifier,
    keep_sound: bool,
    /// How many files were looked at.
    pub checked: u64,
    /// The bad ones, and the sound ones where they were asked for, in the order of backups and names.
    pub files: Vec<Finding>,
    /// Why no more than SHA-512 was looked at, where a master key was not to be had.
    pub unchecked: Option<Error>,
}

impl Findings {
    fn new(backup: Identifier, keep_sound: bool) -> Findings {
        Findings {
            backup,
            keep_sound,
            checked: 0,
            files: Vec::new(),
            unchecked: None,
        }
    }

    /// The bad files.
    pub fn bad(&self) -> impl Iterator<Item = &Finding> {
        self.files
            .iter()
            .filter(|finding| finding.problem.is_some())
    }

    fn add_sound(&mut self, file: &str) {
        self.checked += 1;
        if self.keep_sound {
            self.files.push(Finding {
                backup: self.backup,
                file: file.to_owned(),
                problem: None,
            });
        }
    }

    fn add_bad(&mut self, file: &str, problem: impl Into<String>) {
        self.checked += 1;
        self.files.push(Finding {
            backup: self.backup,
            file: file.to_owned(),
            problem: Some(problem.into()),
        });
    }

    fn append(&mut self, other: Findings) {
        self.checked += other.checked;
        self.files.extend(other.files);
        self.unchecked = self.unchecked.take().or(other.unchecked);
    }
}

/// Verifies a backup and those it needs, and notes in each what was found of it. Of one whose master key
/// is not to be had, only the SHA-512 of what lies on disk can be looked at.
pub fn run(
    request: &Request<'_>,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Verified> {
    let drill = prepare_drill(request)?;
    let mut findings = read_stored(request, progress, interrupt)?;
    let mut held = None;
    if findings.bad().next().is_none()
        && findings.unchecked.is_none()
        && let Some(chain) = read_chain(request, &mut findings)?
        && let Some(rebuild) = &request.rebuild
    {
        let workers = request.workers;
        let host = drill.as_ref().map(Drill::host);
        let scratch = Scratch::create(&chain, rebuild.directory, "verify", host)?;
        let whole = private_server::Rebuild {
            chain: &chain,
            selection: &Selection::default(),
            recovery: Recovery::OwnWal,
            workers,
        };
        let root = scratch.rebuild(&whole, progress, interrupt)?;
        progress.step("read back", Some(chain.newest.info.restore_size));
        rebuilt::check(&root, &mut findings, workers, progress, interrupt)?;
        if let Some(drill) = drill.filter(|_| findings.bad().next().is_none()) {
            held = Some(drill.hold(&root, scratch.folder(), progress, interrupt)?);
        }
    }
    findings.files.sort();
    let remembered = remember::remember(request, &findings, held.as_ref(), interrupt)?;
    Ok(Verified {
        findings,
        drill: held,
        remembered,
    })
}

/// What a drill needs is looked for before hours are spent on reading.
fn prepare_drill<'a>(request: &Request<'a>) -> Result<Option<Drill<'a>>> {
    match (&request.rebuild, &request.backup.info) {
        (Some(rebuild), Ok(info)) => rebuild
            .drill
            .map(|drill| Drill::prepare(drill, info.major_version, rebuild.directory))
            .transpose(),
        _ => Ok(None),
    }
}

/// Reads the stored files of a backup and of those it needs.
fn read_stored(
    request: &Request<'_>,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Findings> {
    let backup = request.backup;
    let mut findings = Findings::new(backup.identifier, request.all);
    let info = match &backup.info {
        Ok(info) => info,
        Err(error) => {
            findings.add_bad(INFO, error.message());
            return Ok(findings);
        }
    };
    let ancestors = match request.catalogue.ancestors(info) {
        Ok(ancestors) => {
            findings.add_sound(INFO);
            ancestors
        }
        Err(error) => {
            findings.add_bad(INFO, error.message());
            Vec::new()
        }
    };
    let newest = Link {
        folder: &backup.folder,
        info,
    };
    findings.append(stored::verify(newest, request, progress, interrupt)?);
    for ancestor in ancestors {
        let mut of_ancestor = Findings::new(ancestor.info.backup, request.all);
        of_ancestor.add_sound(INFO);
        findings.append(of_ancestor);
        findings.append(stored::verify(ancestor, request, progress, interrupt)?);
    }
    Ok(findings)
}

/// The chain that the cluster is rebuilt from; none where it has no base for a file, which is a finding.
fn read_chain(request: &Request<'_>, findings: &mut Findings) -> Result<Option<Chain>> {
    match (
        Chain::read(request.catalogue, request.backup, request.keys),
        &request.backup.info,
    ) {
        (Err(error), Ok(info)) if error.kind() == Kind::Damage => {
            findings.add_bad(&layout::file_list(info.suffix()), error.message());
            Ok(None)
        }
        (chain, _) => chain.map(Some),
    }
}
