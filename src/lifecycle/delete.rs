//! Deleting a backup. What its children need of it they are given first.
//!
//! At every moment each other backup is whole: a child is replaced in one step by one that stands without its
//! parent, and only when all children stand alone the parent goes.

use crate::error::{Error, Kind, Result};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::repository::backup_info::BackupInfo;
use crate::repository::catalogue::{Backup, Catalogue};
use crate::repository::identifier::{Identifier, Selector};
use crate::repository::layout::ServerFolder;
use crate::repository::lock::{InfoLock, ServerLock};
use crate::repository::merge::Merge;
use crate::repository::staging::{self, Staging};
use crate::stored::master_key::Keyring;

/// Which backup to delete.
pub struct Request<'a> {
    /// The server's name.
    pub server: &'a str,
    /// Its part of the repository.
    pub folder: &'a ServerFolder,
    /// The backup.
    pub backup: &'a Selector,
    /// The master keys that it and its children may be encrypted with.
    pub keys: &'a Keyring,
    /// Whether to delete what is kept, the last valid one, and one whose children are damaged.
    pub force: bool,
    /// Threads that merge.
    pub workers: usize,
}

/// What came of it.
#[derive(Debug)]
pub struct Deleted {
    /// The backup that is gone.
    pub backup: Identifier,
    /// Its children, which stand without it now.
    pub merged: Vec<Identifier>,
    /// Its children that were damaged, or that its own damage keeps from standing without it.
    pub broken: Vec<Identifier>,
}

/// Deletes a backup.
pub fn run(
    request: &Request<'_>,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Deleted> {
    let folder = request.folder;
    let identifier = Catalogue::read(request.server, folder)?
        .select(request.backup)?
        .identifier;
    let lock = ServerLock::take(folder)?;
    // What a backup left that died belongs to the next one.
    let unfinished = staging::unfinished(folder, &lock)?;
    staging::remove_leftovers(folder, &lock, unfinished.as_slice())?;
    let catalogue = Catalogue::read(request.server, folder)?;
    let backup = catalogue.find(identifier)?;
    check_readable(request, &catalogue, identifier)?;
    if !request.force {
        check_dispensable(&catalogue, backup)?;
    }
    let mut deleted = Deleted {
        backup: identifier,
        merged: Vec::new(),
        broken: Vec::new(),
    };
    for child in children(&catalogue, identifier) {
        match merge(request, backup, child, &lock, progress, interrupt) {
            Ok(()) => deleted.merged.push(child.identifier),
            Err(error) if error.kind() == Kind::Damage && request.force => {
                log::warn!(
                    "backup {} cannot be used any more: {error}",
                    child.identifier
                );
                deleted.broken.push(child.identifier);
            }
            Err(error) => {
                // Whoever has the lock by now may have removed what was read.
                lock.check()?;
                return Err(error.context(format_args!(
                    "backup {} cannot be made to stand without backup {identifier}",
                    child.identifier
                )));
            }
        }
    }
    progress.step("delete", None);
    let info_lock = InfoLock::take(folder, interrupt)?;
    staging::delete(folder, identifier, &lock, &info_lock)?;
    Ok(deleted)
}

/// Refuses while another backup cannot be read, which may be a child, or the newest one.
fn check_readable(
    request: &Request<'_>,
    catalogue: &Catalogue,
    identifier: Identifier,
) -> Result<()> {
    let is_chosen = !matches!(request.backup, Selector::Prefix(_));
    let mut others = catalogue
        .unreadable()
        .filter(|(name, _)| *name != identifier);
    let Some((other, error)) = others.next().filter(|_| is_chosen || !request.force) else {
        return Ok(());
    };
    let server = request.server;
    if is_chosen {
        return Err(Error::damage(format!(
            "nobody can tell whether backup {identifier} is the {} one, as backup {other} cannot be read: {error}",
            request.backup
        ))
        .hint("name the backup by its identifier"));
    }
    Err(Error::damage(format!(
        "nobody can tell whether backup {other} needs backup {identifier}: {error}"
    ))
    .hint(format!(
        "make it readable to this user; if it is damaged for good, pgkeep delete {server} {other} --force removes it"
    )))
}

/// Refuses what nobody should delete by mistake.
fn check_dispensable(catalogue: &Catalogue, backup: &Backup) -> Result<()> {
    let identifier = backup.identifier;
    let refused = |why: String| Err(Error::failed(why).hint("--force deletes it all the same"));
    match &backup.info {
        Err(error) => refused(format!(
            "whether backup {identifier} is kept cannot be read: {error}"
        )),
        Ok(info) if info.keep => Err(Error::failed(format!("backup {identifier} is kept"))
            .hint("expunge gives it back to retention; --force deletes it all the same")),
        Ok(_) => {
            let mut valid = catalogue.valid().map(|valid| valid.identifier);
            if valid.next() == Some(identifier) && valid.next().is_none() {
                return refused(format!("backup {identifier} is the only valid one"));
            }
            Ok(())
        }
    }
}

fn children(catalogue: &Catalogue, parent: Identifier) -> impl Iterator<Item = &Backup> {
    catalogue.backups().iter().filter(move |backup| {
        let info = backup.info.as_ref().ok();
        info.and_then(|info| info.incremental.as_ref())
            .is_some_and(|increment| increment.parent == parent)
    })
}

/// Replaces a child by one that stands without its parent.
fn merge(
    request: &Request<'_>,
    parent: &Backup,
    child: &Backup,
    lock: &ServerLock,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<()> {
    let mut merge = Merge::open(&child.folder, &parent.folder, request.keys)?;
    let staging = Staging::begin(request.folder, lock, child.identifier)?;
    let sealed = merge.build(staging.folder(), request.workers, progress, interrupt)?;
    staging.sync()?;
    interrupt.check()?;
    // What a verification finds meanwhile must not be lost, nor be written over what replaces the backup.
    let info_lock = InfoLock::take(request.folder, interrupt)?;
    let info = BackupInfo::read(&child.folder)?;
    merge.info(&info, &sealed).write(staging.folder())?;
    staging.replace(&info_lock)
}

#[cfg(test)]
mod tests;
