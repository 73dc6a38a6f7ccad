//! A backup, from the first question to the server to the rename that makes it a backup.

mod assembly;
mod catalogued;
mod changes;
mod connected;
mod copy;
mod corruption;
mod end;
mod finish;
mod hazards;
mod journal;
mod layers;
mod orphans;
mod parent;
mod pass;
mod passes;
mod plan;
pub(crate) mod replicated;
mod reserved;
mod resume;
mod tasks;
mod unlogged;
mod wal;

use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::config::Source;
use crate::error::{Error, Kind, Result};
use crate::interrupt::Interrupt;
use crate::pg::page::PAGE_SIZE;
use crate::progress::Progress;
use crate::repository::backup_info::BackupInfo;
use crate::repository::catalogue::Catalogue;
use crate::repository::identifier::{Identifier, Selector};
use crate::repository::layout::ServerFolder;
use crate::repository::lock::ServerLock;
use crate::repository::staging::{self, Staging};
use crate::server::connect::Connector;
use crate::server::facts::{self, Facts};
use crate::server::reading::FileReader;
use crate::server::session::Checkpoint;
use crate::stored::coding::Coding;
use crate::stored::master_key::Keyring;

use connected::{Connected, Met};
use layers::Layers;
use parent::Parent;
use passes::Passes;
use replicated::{Confined, Replicated};

/// What to back up, whereto and how.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The server's name in the configuration.
    pub server: &'a str,
    /// Its part of the repository.
    pub folder: &'a ServerFolder,
    /// What the user calls this backup.
    pub label: &'a str,
    /// What an incremental backup builds on; `None` for a full one.
    pub parent: Option<ParentRequest<'a>>,
    /// Whether the checkpoint it begins with is hurried.
    pub checkpoint: Checkpoint,
    /// Whether a full backup takes over what one left that died.
    pub resume: bool,
    /// The master keys that its parent and the WAL archive may be encrypted with.
    pub keys: &'a Keyring,
    /// How its files are compressed and encrypted.
    pub coding: &'a Coding,
    /// Connections that read and threads that compress.
    pub workers: usize,
    /// Bytes a second read from the server at most, by all workers together.
    pub max_rate: Option<u64>,
    /// Which way files are read; `None` for the one that suits the server best.
    pub source: Option<Source>,
    /// Further files and folders of the server.
    pub extra: &'a [String],
}

/// Which backup is built on.
#[derive(Debug, Clone, Copy)]
pub struct ParentRequest<'a> {
    /// The backup as the user names it.
    pub selector: &'a Selector,
    /// Whether the backup becomes a full one where it can't be incremental.
    pub or_full: bool,
}

/// Makes a backup.
pub fn run(
    request: &Request<'_>,
    connector: &Connector,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<BackupInfo> {
    let began = Instant::now();
    request.folder.create()?;
    let lock = ServerLock::take(request.folder)?;
    progress.step("connect", None);
    let met = Met::meet(connector, interrupt)?;
    let lack = replicated::lack_to_bear(request, &met)?;
    let unfinished = staging::unfinished(request.folder, &lock)?;
    // The server's own base backups are made in one piece.
    let unfinished = unfinished.filter(|_| request.resume && lack.is_none());
    let removed = staging::remove_leftovers(request.folder, &lock, unfinished.as_slice())?;
    // An incremental backup leaves it to the next full one.
    let unfinished = unfinished.filter(|_| request.parent.is_none());
    if removed > 0 {
        log::info!(
            "removed {removed} unfinished backup(s) of {}",
            request.server
        );
    }
    if let Some(lack) = lack {
        let confined = Confined::open(request, &lack, met, connector, interrupt)?;
        warn_of_another_cluster(request, &confined.facts)?;
        let identifier = free_identifier(request.folder)?;
        let replicated = Replicated {
            request,
            connector,
            progress,
            interrupt,
            identifier,
            began,
            staging: Staging::begin(request.folder, &lock, identifier)?,
            lack,
        };
        return replicated.run(confined);
    }
    let connected = Connected::open(request, met, connector, interrupt)?;
    warn_of_another_cluster(request, &connected.facts)?;
    let identifier = free_identifier(request.folder)?;
    let passes = Passes {
        request,
        connector,
        progress,
        interrupt,
        identifier,
        began,
        staging: match unfinished {
            None => Staging::begin(request.folder, &lock, identifier)?,
            Some(left) => Staging::take_over(request.folder, &lock, left, identifier)?,
        },
        layers: Layers::default(),
        reserved: None,
        hazard: None,
        unquiet: 0,
        lost_streams: 0,
        made: 0,
        number: 0,
        stands_on_another: false,
    };
    passes.run(connected, unfinished)
}

impl ParentRequest<'_> {
    /// An error, or a full backup where that will do too. What the server refuses is no reason for one.
    fn unless_full<T>(&self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(found) => Ok(Some(found)),
            Err(error) if self.or_full && matches!(error.kind(), Kind::Failed | Kind::Damage) => {
                log::warn!("making a full backup: {}", error.message());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn open_parent(request: &Request<'_>, wanted: &ParentRequest<'_>, facts: &Facts) -> Result<Parent> {
    let catalogue = Catalogue::read(request.server, request.folder)?;
    let backup = catalogue.select(wanted.selector)?;
    Parent::open(&catalogue, backup, request.keys, facts)
}

/// What no permission mends.
pub fn check_facts(facts: &Facts) -> Result<()> {
    if facts.wal_level == "minimal" {
        return Err(Error::server(
            "the server runs with wal_level = minimal, which no backup can be made of",
        )
        .hint("set wal_level = replica on the server and restart it"));
    }
    if facts.control.block_size as usize != PAGE_SIZE {
        return Err(Error::server(format!(
            "the server was built with pages of {} bytes, and pgkeep knows those of {PAGE_SIZE}",
            facts.control.block_size
        )));
    }
    let expected = facts.version.major.catalog_version();
    if facts.control.catalog_version != expected {
        return Err(Error::server(format!(
            "the server has catalog version {}, and PostgreSQL {} as released has {expected}",
            facts.control.catalog_version,
            facts.version.major.number()
        ))
        .hint("pgkeep backs up released versions only, no betas"));
    }
    Ok(())
}

/// Backups of two clusters under one name are most likely a mistake; pg_upgrade makes another cluster, too.
fn warn_of_another_cluster(request: &Request<'_>, facts: &Facts) -> Result<()> {
    let catalogue = Catalogue::read(request.server, request.folder)?;
    let own = facts.control.system_identifier;
    if let Some(newest) = catalogue.newest_info()
        && newest.system_identifier != own
    {
        log::warn!(
            "the system identifier of this server is {own}, that of backup {} is {}: where it was not upgraded with pg_upgrade, \
             another cluster is backed up under the name {}: correct `host` and `port`, or give it a name of its own",
            newest.backup,
            newest.system_identifier,
            request.server
        );
    }
    Ok(())
}

/// The second in which the backup starts; the next one where that is taken.
///
/// Backups are in the order of their names everywhere, so a new one's must come last. Where the clock says that others
/// were made later than now, it was or is wrong, and this one is named after the last of them.
fn free_identifier(folder: &ServerFolder) -> Result<Identifier> {
    loop {
        let now = Identifier::at(Timestamp::now());
        let finished = staging::finished(folder)?.into_iter();
        let last = finished.map(|(identifier, _)| identifier).max();
        match last {
            Some(last) if now < last => {
                let next = last.next().ok_or_else(|| {
                    Error::failed(format!("no backup can be made after backup {last}"))
                        .hint("delete that one; the clock was wrong when it was made")
                })?;
                log::warn!(
                    "this backup becomes {next}, as the clock says {now}, and backup {last} must not seem to be newer: see which clock is wrong"
                );
                return Ok(next);
            }
            _ if last != Some(now) && !staging::is_marked(folder, now)? => return Ok(now),
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Directories that are kept without their content: the server's log, and
/// tablespaces whose location is inside the data directory, which would be copied twice. `by_another_name` finds
/// what of these the location itself does not tell.
fn emptied_directories(
    facts: &Facts,
    tablespaces: &[facts::TablespaceLocation],
    mut by_another_name: impl FnMut(&str) -> Result<Option<String>>,
) -> Result<Vec<String>> {
    let inside = |path| relative_to_data_directory(path, facts.data_directory.as_deref());
    let mut emptied: Vec<String> = inside(&facts.log_directory).into_iter().collect();
    for tablespace in tablespaces.iter().filter(|one| !one.is_in_place()) {
        emptied.extend(match inside(&tablespace.location) {
            Some(directory) => Some(directory),
            None => by_another_name(&tablespace.location)?,
        });
    }
    Ok(emptied)
}

/// The path below the data directory of a location that reaches it by other links than the server's setting: one of
/// the folders it leads through has the same `postmaster.pid`, by its size and times.
fn inside_by_another_name(location: &str, reader: &mut FileReader) -> Result<Option<String>> {
    const LOCK_FILE: &str = "postmaster.pid";
    let Some(own) = reader.state(LOCK_FILE)? else {
        return Ok(None);
    };
    for (end, _) in location.match_indices('/').skip(1) {
        let (folder, below) = location.split_at(end);
        if reader.state(&format!("{folder}/{LOCK_FILE}"))? == Some(own) {
            return Ok(relative_to_data_directory(below, Some("/")));
        }
    }
    Ok(None)
}

fn relative_to_data_directory(path: &str, data_directory: Option<&str>) -> Option<String> {
    if !path.starts_with('/') {
        return Some(path.trim_start_matches("./").to_owned());
    }
    let root = data_directory?.trim_end_matches('/');
    let inside = path.strip_prefix(root)?.strip_prefix('/')?;
    Some(inside.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_inside_the_data_directory_is_known_by_its_relative_path() {
        let relative = |path| relative_to_data_directory(path, Some("/data/17/"));
        assert_eq!(relative("log"), Some("log".to_owned()));
        assert_eq!(relative("/data/17/ts/fast/"), Some("ts/fast".to_owned()));
        assert_eq!(relative("/data/170/ts"), None);
        assert_eq!(relative_to_data_directory("/data/17/ts", None), None);
    }
}
