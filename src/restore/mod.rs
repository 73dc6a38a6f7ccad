//! From a backup to a data directory that starts.
//!
//! Each file is written once, straight from what is stored, in one backup or in several. `global/pg_control` gets its name only
//! when everything else is on disk, so a restore that was cut short cannot be started.

pub mod databases;
mod directory;
mod existing;
pub mod folder;
pub(crate) mod manifest;
pub mod plan;
pub mod position;
pub mod preview;
mod problems;
mod rebuild;
pub mod recovery;
pub mod replayed;
pub mod restore_command;
mod running;
pub mod selection;
mod space;
pub mod tablespaces;
mod target_file;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod write;

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::control::CONTROL_FILE;
use crate::pg::label::BACKUP_LABEL_FILE;
use crate::pg::manifest::BACKUP_MANIFEST_FILE;
use crate::pg::wal::CreatedTablespace;
use crate::progress::Progress;
use crate::repository::chain::Chain;
use crate::repository::contents::Contents;

use directory::DataDirectory;
use existing::Existing;
use folder::Folder;
use problems::Problems;
use recovery::{Recovery, SETTINGS_FILE, SourceSettings};
use selection::Selection;
use tablespaces::TablespaceMapping;

pub use target_file::Differences;

/// The progress of subscriptions, and of whoever else replicates to the server: a magic number, 16 bytes for each, a
/// checksum (replication/logical/origin.c, CheckPointReplicationOrigin).
const ORIGINS_FILE: &str = "pg_logical/replorigin_checkpoint";

/// Its size while there are none.
const EMPTY_ORIGINS_BYTES: u64 = 8;

/// Which backup to restore, whereto and how.
pub struct Request<'a> {
    /// The backup, with all that it needs.
    pub chain: &'a Chain,
    /// Which of its files come whole.
    pub selection: &'a Selection,
    /// Whether recovery must not mind pages that are none: where it changes what comes as holes.
    pub ignores_invalid_pages: bool,
    /// The folder above the data directory.
    pub target: Target,
    /// How the restored cluster recovers.
    pub recovery: Recovery,
    /// What it keeps of its source's settings.
    pub source_settings: SourceSettings,
    /// Other places for tablespaces.
    pub mappings: &'a [TablespaceMapping],
    /// The tablespaces that recovery will create.
    pub created: &'a [CreatedTablespace],
    /// What the restored server reads while it recovers, besides what is restored.
    pub reads: &'a [PathBuf],
    /// Whether what is there is replaced.
    pub force: bool,
    /// Threads that write.
    pub workers: usize,
}

/// The folder above a data directory.
pub enum Target {
    /// This one, which is made where it is missing.
    Named(PathBuf),
    /// One that is held open.
    Held(Folder),
}

impl Target {
    fn path(&self) -> &Path {
        match self {
            Target::Named(path) => path,
            Target::Held(folder) => folder.path(),
        }
    }

    fn open(&self) -> Result<Folder> {
        match self {
            Target::Named(path) => Folder::create(path),
            Target::Held(folder) => folder.again(),
        }
    }
}

/// Restores a backup; returns the data directory.
pub fn run(
    request: &Request<'_>,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<PathBuf> {
    let contents = &request.chain.newest;
    expect_own_wal(contents)?;
    let tablespaces = tablespaces::place(&contents.info, request.mappings, request.created)?;
    let name = data_directory_name(contents);
    let directory = DataDirectory::claim(
        &request.target,
        &name,
        contents,
        &tablespaces,
        request.created,
        request.reads,
        request.force,
    )?;
    let folder_for = |path: &str| directory.folder_for(path);
    space::check(contents, request.selection, folder_for, |_| 0)?;
    fill(request, &directory, progress, interrupt)?;
    progress.step("sync", None);
    interrupt.check()?;
    directory.complete()?;
    warn_of_folders(request);
    warn_of_subscriptions(request);
    Ok(request.target.path().join(name))
}

/// What a restore over a data directory came to.
pub struct Replaced {
    /// The data directory.
    pub root: PathBuf,
    /// What was different in it.
    pub differences: Differences,
}

/// Makes of a data directory that is there what a restore would write, and writes only what differs. It is the one that the
/// target is, or that an earlier restore of the backup has made there.
pub fn run_over(
    request: &Request<'_>,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Replaced> {
    let contents = &request.chain.newest;
    let (mut directory, root) = existing_directory(request, false)?;
    progress.step("look at what is there", None);
    let survey = directory.survey(contents, &made(request))?;
    let folder_for = |path: &str| directory.folder_for(path);
    space::check(contents, request.selection, folder_for, |device| {
        survey.held(device)
    })?;
    interrupt.check()?;
    directory.begin(survey)?;
    fill(request, &directory, progress, interrupt)?;
    progress.step("sync", None);
    interrupt.check()?;
    let differences = directory.differences()?;
    directory.complete()?;
    warn_of_folders(request);
    warn_of_subscriptions(request);
    Ok(Replaced { root, differences })
}

/// A data directory that is there, for which all holds that is asked for.
fn existing_directory(
    request: &Request<'_>,
    only_looks: bool,
) -> std::result::Result<(DataDirectory, PathBuf), Problems> {
    let contents = &request.chain.newest;
    expect_own_wal(contents)?;
    let existing = Existing::find(request.target.path(), &contents.info)?;
    let root = existing.folder.path().to_owned();
    let mappings = existing.mappings(&contents.info, request.mappings);
    let tablespaces = tablespaces::place(&contents.info, &mappings, request.created)?;
    let directory = DataDirectory::over(
        existing,
        contents,
        &tablespaces,
        request.created,
        request.reads,
        only_looks,
    )?;
    Ok((directory, root))
}

/// What a new data directory is called.
fn data_directory_name(contents: &Contents) -> String {
    format!("{}-{}", contents.info.server, contents.info.backup)
}

/// The files that every restore makes itself.
fn made(request: &Request<'_>) -> [&'static str; 5] {
    [
        CONTROL_FILE,
        BACKUP_LABEL_FILE,
        BACKUP_MANIFEST_FILE,
        SETTINGS_FILE,
        request.recovery.signal_file(),
    ]
}

/// Writes all that belongs into a data directory, but for the name of `global/pg_control`.
fn fill(
    request: &Request<'_>,
    directory: &DataDirectory,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<()> {
    let contents = &request.chain.newest;
    directory.create_folders(&contents.list.directories)?;
    let bytes = request.selection.bytes(request.chain);
    progress.step("restore", Some(bytes));
    let mut written = write::write_files(
        request.chain,
        request.selection,
        directory,
        request.workers,
        progress,
        interrupt,
    )?;
    recovery::write_settings(
        directory,
        &contents.info,
        &request.recovery,
        (request.source_settings, &written.settings),
        request.ignores_invalid_pages,
    )?;
    manifest::write(
        request.chain,
        request.selection,
        directory,
        &mut written.changed,
    )?;
    let keeps_settings = request.source_settings != SourceSettings::LeftOut;
    if let Some(line) = written.other_data_directory.filter(|_| keeps_settings) {
        log::warn!(
            "the restored postgresql.conf says {line}: a server that is started with it opens that folder, not the restored one. \
             Remove the line before you start it"
        );
    }
    Ok(())
}

/// What the started server writes outside of what was restored.
fn warn_of_folders(request: &Request<'_>) {
    for CreatedTablespace { oid, folder, .. } in request.created {
        log::warn!(
            "recovery will create tablespace {oid} in {}: keep that folder empty until then",
            folder.display()
        );
    }
    let source = request.chain.newest.info.data_directory.as_deref();
    let is_on_this_machine =
        source.is_some_and(|source| Path::new(source).join("postmaster.pid").exists());
    if matches!(request.recovery, Recovery::Replica { .. }) && is_on_this_machine {
        log::warn!(
            "the replica will create each tablespace in the folder where its primary creates it: as both are on this machine, \
             create none outside of the data directory"
        );
    }
}

/// What the started server does to others. A standby runs no subscription, nor does the server of a drill.
fn warn_of_subscriptions(request: &Request<'_>) {
    let is_on_its_own = !matches!(request.recovery, Recovery::Replica { .. })
        && request.source_settings != SourceSettings::LeftOut;
    let progress = request.chain.newest.list.find(ORIGINS_FILE);
    if is_on_its_own && progress.is_some_and(|file| file.size > EMPTY_ORIGINS_BYTES) {
        log::warn!(
            "the source has subscriptions, and the restored server goes on with them: a copy that is started beside its source \
             takes away what the source has yet to get. For such a copy, set max_logical_replication_workers = 0 before its start"
        );
    }
}

/// An error where a backup lacks WAL that it needs to become consistent.
pub(crate) fn expect_own_wal(contents: &Contents) -> Result<()> {
    let missing = contents.missing_wal()?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::damage(format!(
        "backup {} lacks the WAL it needs to become consistent: {}",
        contents.info.backup,
        missing.join(", ")
    ))
    .hint("restore another backup"))
}
