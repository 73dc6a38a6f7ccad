//! How a server's backups are doing, and what of it a person must look after.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::lifecycle::window::{self, Windows};
use crate::pg::lsn::Lsn;
use crate::pg::version::Version;
use crate::repository::backup_info::{BackupInfo, DrillOutcome};
use crate::repository::catalogue::{Backup, Catalogue};
use crate::repository::identifier::Identifier;
use crate::repository::layout::{BackupFolder, ServerFolder};
use crate::repository::roll_forward::{HeldWal, RollForward};
use crate::server::connect::Connector;
use crate::server::facts;
use crate::size::readable;
use crate::stored::master_key::Keyring;
use crate::verify::due::is_due;

/// Whose status to tell.
pub struct Request<'a> {
    /// The server's name.
    pub server: &'a str,
    /// Its part of the repository.
    pub folder: &'a ServerFolder,
    /// The master keys of its archive.
    pub keys: &'a Keyring,
    /// How old the last verification of a backup may become, where that is configured.
    pub verification: Option<Duration>,
    /// Opens sessions with it; an error where it cannot even be tried.
    pub connector: Result<Connector>,
}

/// How a server's backups are doing.
#[derive(Debug)]
pub struct Status {
    /// The server that answered, or why none did.
    pub server: Result<Version>,
    /// How many backups there are.
    pub backups: u64,
    /// How many of them can be restored.
    pub valid: u64,
    /// The newest of those.
    pub newest: Option<Identifier>,
    /// When any of those was verified last.
    pub verified: Option<Timestamp>,
    /// How many of those were not verified for too long.
    pub due: u64,
    /// The archived WAL, where there is an archive; an error where it cannot be told how far it leads.
    pub wal: Result<Option<Wal>>,
    /// From when to when any moment can be restored; an error where that cannot be told.
    pub restorable: Result<Windows>,
    /// Bytes on disk of all that is held for the server.
    pub held: u64,
    /// Bytes free where that lies; `None` where there is no end of it.
    pub free: Option<u64>,
    /// What a person must look after.
    pub attention: Vec<String>,
}

/// The WAL archive of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wal {
    /// The newest whole segment on the newest timeline.
    pub head: Option<String>,
    /// What is missing between the segments that are held.
    pub gaps: Vec<String>,
    /// It ends before the newest backup, which was made long enough ago for its WAL to be here.
    pub is_behind: bool,
    /// How far one gets from the newest backup.
    pub roll_forward: Option<Range>,
}

/// Positions that can be restored to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The oldest backup from which one gets as far as from the newest.
    pub backup: Identifier,
    /// Where that one is consistent.
    pub from: Lsn,
    /// How far one gets from there.
    pub to: RollForward,
}

/// A valid backup, and where it lies.
type Restorable<'a> = (&'a BackupFolder, &'a BackupInfo);

/// How long the WAL of a backup may take to come into the archive.
const ON_THE_WAY: SignedDuration = SignedDuration::from_hours(1);

/// How far the clocks of machines that make backups may be apart.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_hours(1);

/// Looks at everything. What is wrong with the server or its backups is no error, but part of the status.
pub fn look(request: &Request<'_>, now: Timestamp, interrupt: &Interrupt) -> Result<Status> {
    let catalogue = Catalogue::read(request.server, request.folder)?;
    let valid: Vec<Restorable<'_>> = catalogue
        .valid()
        .filter_map(|backup| Some((&backup.folder, backup.info.as_ref().ok()?)))
        .collect();
    // One look at the archive does for both.
    let mut held = HeldWal::look(request.folder, request.keys.clone());
    let wal = match &mut held {
        Ok(held) => look_at_wal(held.as_mut(), &valid, now, interrupt),
        Err(error) => Err(error.clone()),
    };
    let restorable = held.and_then(|mut held| window::look(&catalogue, held.as_mut(), interrupt));
    let mut status = Status {
        server: reach(request, interrupt),
        backups: catalogue.backups().len() as u64,
        valid: valid.len() as u64,
        newest: valid.last().map(|(_, info)| info.backup),
        verified: valid
            .iter()
            .filter_map(|(_, info)| Some(info.verification.as_ref()?.time))
            .max(),
        due: request.verification.map_or(0, |interval| {
            let due = valid.iter().filter(|(_, info)| is_due(info, interval, now));
            due.count() as u64
        }),
        wal,
        restorable,
        held: request.folder.root().held(interrupt)?,
        free: request.folder.root().room()?,
        attention: Vec::new(),
    };
    status.attention = attention(&status, &catalogue, &valid, now);
    Ok(status)
}

fn reach(request: &Request<'_>, interrupt: &Interrupt) -> Result<Version> {
    let connector = request.connector.as_ref().map_err(Error::clone)?;
    let mut client = crate::server::connect(connector, interrupt)?;
    facts::version(&mut client)
}

fn attention(
    status: &Status,
    catalogue: &Catalogue,
    valid: &[Restorable<'_>],
    now: Timestamp,
) -> Vec<String> {
    let mut attention = Vec::new();
    if let Err(error) = &status.server {
        attention.push(format!("the server cannot be asked: {error}"));
    }
    if valid.is_empty() {
        attention.push("there is no valid backup".to_owned());
    }
    for backup in catalogue.backups() {
        if let Err(error) = catalogue.check(backup) {
            let so = match backup.info {
                Ok(_) => "",
                Err(_) => ", and nothing expires while it is here",
            };
            let identifier = backup.identifier;
            attention.push(format!("backup {identifier} is not valid{so}: {error}"));
        }
    }
    let to_come = |backup: &&Backup| {
        let made = backup.identifier.time();
        made.is_some_and(|made| made.duration_since(now) > CLOCKS_DIFFER)
    };
    if let Some(backup) = catalogue.backups().iter().find(to_come) {
        attention.push(format!(
            "backup {} is named after a time to come, until which it does not expire: the clock is wrong, or was when it was made",
            backup.identifier
        ));
    }
    for (_, info) in valid {
        if let Some(drill) = &info.drill
            && let DrillOutcome::Failed { reason } = &drill.outcome
        {
            attention.push(format!(
                "the cluster rebuilt from backup {} failed: {reason}",
                info.backup
            ));
        }
    }
    if status.due > 0 {
        attention.push(format!(
            "{} of {} valid backups were not verified for too long: verify --due does that",
            status.due,
            valid.len()
        ));
    }
    match &status.wal {
        Ok(Some(wal)) => {
            let gaps = wal.gaps.iter();
            attention.extend(gaps.map(|gap| format!("archived WAL is missing: {gap}")));
            if wal.is_behind {
                attention.push(
                    "the archive ends before the newest backup does: look whether archive_command or wal copy is at work".to_owned(),
                );
            }
        }
        Err(error) => attention.push(format!("the archived WAL cannot be read: {error}")),
        Ok(None) => {}
    }
    let mut newest_first = valid.iter().rev().map(|(_, info)| info);
    let full = newest_first.find(|info| info.incremental.is_none());
    if let (Some(full), Some(free)) = (full, status.free)
        && free < full.backup_size
    {
        attention.push(format!(
            "{} are free, and the newest full backup took {}",
            readable(free),
            readable(full.backup_size)
        ));
    }
    attention
}

fn look_at_wal(
    held: Option<&mut HeldWal>,
    valid: &[Restorable<'_>],
    now: Timestamp,
    interrupt: &Interrupt,
) -> Result<Option<Wal>> {
    let Some(held) = held else {
        return Ok(None);
    };
    let inventory = held.inventory();
    let size = held.segment_size();
    // Where no backup begins before it, nobody needs what is missing.
    let first_needed = valid
        .iter()
        .map(|(_, info)| info.start_lsn.segment(size))
        .min();
    let gaps = inventory
        .gaps()
        .into_iter()
        .filter(|gap| first_needed.is_none_or(|first| gap.last.number >= first))
        .map(|gap| match gap.segments() {
            1 => gap.first.file_name(size),
            segments => format!(
                "{} to {} ({segments} segments)",
                gap.first.file_name(size),
                gap.last.file_name(size)
            ),
        })
        .collect();
    let newest_timeline = inventory.timelines().into_iter().rev();
    let head = newest_timeline
        .filter_map(|timeline| inventory.segments_of(timeline).next_back())
        .next();
    let is_behind = valid.last().is_some_and(|(_, newest)| {
        let made = newest.backup.time();
        let reached = head.map(|head| head.number);
        // What a standby is at may stay unfinished for long.
        !newest.from_standby
            && made.is_some_and(|made| now.duration_since(made) > ON_THE_WAY)
            && reached < Some(newest.end_lsn.previous_segment(size))
    });
    Ok(Some(Wal {
        head: head.map(|head| head.file_name(size)),
        gaps,
        is_behind,
        roll_forward: roll_forward(held, valid, interrupt)?,
    }))
}

/// How far one gets from the newest backup; and from which older ones one gets there too.
fn roll_forward(
    held: &mut HeldWal,
    valid: &[Restorable<'_>],
    interrupt: &Interrupt,
) -> Result<Option<Range>> {
    let Some((folder, info)) = valid.last() else {
        return Ok(None);
    };
    let to = held.roll_forward(folder, info, interrupt)?;
    let mut first = info;
    for (folder, info) in valid.iter().rev().skip(1) {
        // From an older one, what is missing or another timeline may be in the way.
        match held.roll_forward(folder, info, interrupt) {
            Ok(reached) if (reached.timeline, reached.lsn) == (to.timeline, to.lsn) => first = info,
            _ => break,
        }
    }
    Ok(Some(Range {
        backup: first.backup,
        from: first.end_lsn,
        to,
    }))
}
