//! Reading a backup back: every byte of it, and where asked for the cluster rebuilt.
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
use crate::repository::backup_info::BackupInfo;
use crate::repository::catalogue::Backup;
use crate::repository::layout::INFO;
use crate::stored::master_key::Keyring;

/// What was found of one file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The stored file in the backup's folder, or a file of the rebuilt cluster.
    pub file: String,
    /// What is wrong with it; `None` where it is sound.
    pub problem: Option<String>,
}

impl Finding {
    fn sound(file: impl Into<String>) -> Finding {
        Finding {
            file: file.into(),
            problem: None,
        }
    }

    fn bad(file: impl Into<String>, problem: impl Into<String>) -> Finding {
        Finding {
            file: file.into(),
            problem: Some(problem.into()),
        }
    }
}

/// What came of a verification.
pub struct Verified {
    /// What was found, in the order of the files' names.
    pub findings: Vec<Finding>,
    /// Why only the stored files' SHA-512 was looked at, where the master key is not at hand.
    pub unchecked: Option<Error>,
}

/// Verifies a backup; with `directory` the cluster is rebuilt in there, checked, and removed.
/// Without the master key that the backup is encrypted with, only what lies on disk is checked.
pub fn run(
    backup: &Backup,
    keys: &Keyring,
    directory: Option<&Path>,
    workers: usize,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Verified> {
    let info = match BackupInfo::read(&backup.folder) {
        Ok(info) => info,
        Err(error) => {
            return Ok(Verified {
                findings: vec![Finding::bad(INFO, error.message())],
                unchecked: None,
            });
        }
    };
    let (coding, unchecked) = match info.coding(keys) {
        Ok(coding) => (Some(coding), None),
        Err(error) => (None, Some(error)),
    };
    progress.step("verify", Some(info.restore_size));
    let mut findings = vec![Finding::sound(INFO)];
    findings.extend(stored::verify(
        &backup.folder,
        &info,
        coding,
        workers,
        progress,
        interrupt,
    )?);
    let is_sound = findings.iter().all(|finding| finding.problem.is_none());
    if let Some(directory) = directory.filter(|_| is_sound && unchecked.is_none()) {
        findings.extend(rebuilt::verify(
            &backup.folder,
            keys,
            directory,
            workers,
            progress,
            interrupt,
        )?);
    }
    findings.sort();
    Ok(Verified {
        findings,
        unchecked,
    })
}
