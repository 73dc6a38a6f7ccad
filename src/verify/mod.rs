//! Reading a backup back: every byte of it and of those it needs, and where asked for the cluster rebuilt.
//!
//! Each stored file is read once. Its SHA-512 is compared with `backup.sha512`, what comes out of it
//! with the list of files, pages with their checksums, and WAL with its page headers.

mod content;
mod rebuilt;
mod stored;

use std::path::Path;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::repository::catalogue::{Backup, Catalogue, Link};
use crate::repository::chain::Chain;
use crate::repository::identifier::Identifier;
use crate::repository::layout::{self, INFO};
use crate::stored::master_key::Keyring;

/// What to verify.
pub struct Request<'a> {
    /// The server's backups.
    pub catalogue: &'a Catalogue,
    /// The one to verify; those it needs are verified with it.
    pub backup: &'a Backup,
    /// The master keys they may be encrypted with.
    pub keys: &'a Keyring,
    /// Where the cluster is rebuilt, checked, and removed.
    pub directory: Option<&'a Path>,
    /// Whether sound files are told too.
    pub all: bool,
    /// Threads that read.
    pub workers: usize,
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

/// Verifies a backup and those it needs. Of one whose master key is not to be had, only the
/// SHA-512 of what lies on disk can be looked at.
pub fn run(
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
    if findings.bad().next().is_none() && findings.unchecked.is_none() {
        match Chain::read(request.catalogue, backup, request.keys) {
            Err(error) => findings.add_bad(&layout::file_list(info.suffix()), error.message()),
            Ok(chain) => {
                if let Some(directory) = request.directory {
                    let rebuilt =
                        rebuilt::verify(&chain, directory, request.workers, progress, interrupt)?;
                    findings.append(rebuilt);
                }
            }
        }
    }
    findings.files.sort();
    Ok(findings)
}
