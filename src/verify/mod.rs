//! Reading a backup back: every byte of it, and where asked for the cluster rebuilt.
//!
//! Each stored file is read once. Its SHA-512 is compared with `backup.sha512`, what comes out of it
//! with the list of files, pages with their checksums, and WAL with its page headers.

mod content;
mod rebuilt;
pub mod remember;
mod stored;

use std::path::Path;

use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::repository::backup_info::BackupInfo;
use crate::repository::catalogue::Backup;
use crate::repository::layout::INFO;

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

/// Verifies a backup; with `directory` the cluster is rebuilt in there, checked, and removed.
/// The findings are in the order of the files' names.
pub fn run(
    backup: &Backup,
    directory: Option<&Path>,
    workers: usize,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Vec<Finding>> {
    let info = match BackupInfo::read(&backup.folder) {
        Ok(info) => info,
        Err(error) => return Ok(vec![Finding::bad(INFO, error.message())]),
    };
    progress.step("verify", Some(info.restore_size));
    let mut findings = vec![Finding::sound(INFO)];
    findings.extend(stored::verify(
        &backup.folder,
        &info,
        workers,
        progress,
        interrupt,
    )?);
    let is_sound = findings.iter().all(|finding| finding.problem.is_none());
    if let Some(directory) = directory.filter(|_| is_sound) {
        findings.extend(rebuilt::verify(
            &backup.folder,
            directory,
            workers,
            progress,
            interrupt,
        )?);
    }
    findings.sort();
    Ok(findings)
}
