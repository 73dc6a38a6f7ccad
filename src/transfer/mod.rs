//! Backups and archived WAL into another repository, as they are stored there: no key is needed, and nothing is packed anew.
//!
//! Each stored file of a backup is hashed as it passes and compared with the backup's own list, and the backup is published
//! last, as the target's own backups are. So what lies there is what was verified here, and what is cut short is no backup.

mod backup;
mod wal;

use std::collections::BTreeSet;

use crate::config::RepositoryName;
use crate::error::{Error, Kind, Result};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::rate::RateLimit;
use crate::repository::backup_info::BackupInfo;
use crate::repository::catalogue::{Catalogue, Link};
use crate::repository::identifier::{Identifier, Selector};
use crate::repository::layout::ServerFolder;
use crate::repository::lock::ServerLock;
use crate::repository::staging;
use crate::repository::wal_archive::WalArchive;
use crate::stored::master_key::Keyring;

/// A server's part of a repository.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// What the repository is called.
    pub name: RepositoryName,
    /// The part.
    pub folder: &'a ServerFolder,
}

/// Which backups are to be copied.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// One, with all that it needs.
    One(Selector),
    /// All valid ones.
    All,
}

/// What to copy, and whereto.
pub struct Request<'a> {
    /// The server's name.
    pub server: &'a str,
    /// Where it lies.
    pub source: Side<'a>,
    /// Where it shall lie too.
    pub target: Side<'a>,
    /// The backups.
    pub wanted: &'a Wanted,
    /// Whether archived WAL and block maps are copied as well.
    pub wal: bool,
    /// The master keys that WAL may be encrypted with: for what two archives hold under the same name.
    pub keys: &'a Keyring,
    /// The most that is read, in bytes a second.
    pub max_rate: Option<u64>,
    /// Threads that copy.
    pub workers: usize,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Transferred {
    /// Backups that were copied, the oldest first.
    pub backups: Vec<Identifier>,
    /// Those that were there already.
    pub present: Vec<Identifier>,
    /// Those that were not copied, and why.
    pub failed: Vec<(Identifier, Error)>,
    /// Bytes of all that was copied.
    pub bytes: u64,
    /// Files of archived WAL that were copied.
    pub wal: u64,
    /// Block maps that were copied.
    pub block_maps: u64,
}

/// What all parts of the work have in common.
struct Work<'a> {
    request: &'a Request<'a>,
    lock: &'a ServerLock,
    rate: RateLimit,
    progress: &'a dyn Progress,
    interrupt: &'a Interrupt,
}

/// Copies what the target lacks. Where a backup is damaged, the others that do not need it are copied all the same.
pub fn run(
    request: &Request<'_>,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Transferred> {
    let Request { source, target, .. } = request;
    let catalogue = Catalogue::read(request.server, source.folder)?;
    let Choice {
        links: wanted,
        unusable,
    } = choose(request, &catalogue)?;
    let archive = WalArchive::open(source.folder, request.keys.clone())?;
    target.folder.create()?;
    let lock = ServerLock::take(target.folder)?;
    let there = Catalogue::read(request.server, target.folder)?;
    refuse_strangers(request, (&catalogue, archive.as_ref()), &there)?;
    let is_missing = |identifier: &Identifier| there.get(*identifier).is_none();
    let missing = wanted.iter().map(|link| link.info.backup);
    let mut spared: Vec<Identifier> = missing.filter(is_missing).collect();
    // What a backup left that died belongs to the next one.
    spared.extend(staging::unfinished(target.folder, &lock)?);
    staging::remove_leftovers(target.folder, &lock, &spared)?;
    let work = Work {
        request,
        lock: &lock,
        rate: RateLimit::new(request.max_rate),
        progress,
        interrupt,
    };
    let archives = match archive.filter(|_| request.wal) {
        None => None,
        Some(archive) => {
            let keys = request.keys.clone();
            let cluster = archive.cluster();
            let own = WalArchive::claim(target.folder, request.server, cluster, keys)?;
            Some((archive, own))
        }
    };
    let mut transferred = Transferred {
        failed: unusable,
        ..Transferred::default()
    };
    work.copy_backups(&wanted, &there, &mut transferred)?;
    if let Some((archive, own)) = &archives {
        let copied = wal::copy(&work, archive, own)?;
        transferred.wal = copied.wal;
        transferred.block_maps = copied.block_maps;
        transferred.bytes += copied.bytes;
    }
    Ok(transferred)
}

/// The backups that are asked for.
struct Choice<'a> {
    /// Those to copy, each behind those that it needs.
    links: Vec<Link<'a>>,
    /// Those that cannot be used, and why.
    unusable: Vec<(Identifier, Error)>,
}

fn choose<'a>(request: &Request<'_>, catalogue: &'a Catalogue) -> Result<Choice<'a>> {
    match request.wanted {
        Wanted::One(selector) => {
            let backup = catalogue.select(selector)?;
            let info = catalogue.check(backup)?;
            let mut links = catalogue.ancestors(info)?;
            links.reverse();
            let folder = &backup.folder;
            links.push(Link { folder, info });
            Ok(Choice {
                links,
                unusable: Vec::new(),
            })
        }
        Wanted::All => {
            let (mut links, mut unusable) = (Vec::new(), Vec::new());
            for backup in catalogue.backups() {
                let folder = &backup.folder;
                match catalogue.check(backup) {
                    Ok(info) => links.push(Link { folder, info }),
                    Err(error) => {
                        let error = error.context(format_args!(
                            "backup {} is not copied, as it is not valid",
                            backup.identifier
                        ));
                        unusable.push((backup.identifier, error));
                    }
                }
            }
            Ok(Choice { links, unusable })
        }
    }
}

/// Refuses a target that has nothing of any cluster that the source is of. pg_upgrade makes another cluster, so either may have
/// backups of two.
fn refuse_strangers(
    request: &Request<'_>,
    (catalogue, archive): (&Catalogue, Option<&WalArchive>),
    there: &Catalogue,
) -> Result<()> {
    let of = |catalogue: &Catalogue, archive: Option<&WalArchive>| -> BTreeSet<u64> {
        let backups = catalogue.backups().iter();
        let infos = backups.filter_map(|backup| backup.info.as_ref().ok());
        let archived = archive.map(|archive| archive.cluster().system_identifier);
        infos
            .map(|info| info.system_identifier)
            .chain(archived)
            .collect()
    };
    let target = &request.target;
    let own = WalArchive::open(target.folder, request.keys.clone())?;
    let (here, there) = (of(catalogue, archive), of(there, own.as_ref()));
    match (here.last(), there.last()) {
        (Some(one), Some(other)) if here.is_disjoint(&there) => Err(Error::failed(format!(
            "{} holds backups or WAL of the cluster {other}, and those of {} are of the cluster {one}",
            target.folder.root(),
            request.source.name
        ))
        .hint("give the other cluster a name of its own in the configuration, or another place")),
        _ => Ok(()),
    }
}

impl Work<'_> {
    fn copy_backups(
        &self,
        wanted: &[Link<'_>],
        there: &Catalogue,
        transferred: &mut Transferred,
    ) -> Result<()> {
        let mut held: BTreeSet<Identifier> = BTreeSet::new();
        for link in wanted {
            self.interrupt.check()?;
            let identifier = link.info.backup;
            if there.get(identifier).is_some() {
                match self.check_present(there, link.info) {
                    Ok(()) => {
                        held.insert(identifier);
                        transferred.present.push(identifier);
                    }
                    Err(error) => transferred.failed.push((identifier, error)),
                }
                continue;
            }
            let parent = link.info.incremental.as_ref().map(|made| made.parent);
            if let Some(parent) = parent.filter(|parent| !held.contains(parent)) {
                log::warn!(
                    "backup {identifier} is not copied, as {parent}, which it needs, was not"
                );
                continue;
            }
            match backup::copy(self, link) {
                Ok(bytes) => {
                    held.insert(identifier);
                    transferred.backups.push(identifier);
                    transferred.bytes += bytes;
                }
                Err(error) if error.kind() == Kind::Damage => {
                    self.interrupt.check()?;
                    let error = error.context(format_args!("backup {identifier} was not copied"));
                    transferred.failed.push((identifier, error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// An error where what the target has under a backup's name is not that backup, or is damaged.
    fn check_present(&self, there: &Catalogue, info: &BackupInfo) -> Result<()> {
        let Request { server, target, .. } = self.request;
        let identifier = info.backup;
        let held = there.find(identifier)?;
        let delete = format!("pgkeep delete {server} {identifier} --from {}", target.name);
        let damaged = |error: Error| {
            error
                .context(format_args!("backup {identifier} in {}", target.name))
                .hint(format!(
                    "{delete} removes it, so that it can be copied again"
                ))
        };
        let held = held.info.as_ref().map_err(Error::clone).map_err(damaged)?;
        held.check_verdict().map_err(damaged)?;
        if held.checksums != info.checksums {
            return Err(Error::failed(format!(
                "backup {identifier} in {} has other content than that in {}: what it is an increment of was deleted in one of them",
                target.name, self.request.source.name
            ))
            .hint(format!("{delete} removes it there, so that it can be copied anew")));
        }
        Ok(())
    }
}
