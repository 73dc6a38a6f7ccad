//! Whether the server still has the WAL that the backup needs.
//!
//! A replication slot makes it keep that. A server that has none to give, or has given it up, may keep the WAL
//! all the same (`wal_keep_size`, a checkpoint that is long in coming), and what it has removed the archive may hold. So the
//! lack of a slot is a warning, and only WAL that is nowhere is an error, as soon as it can be seen.

use postgres::Client;

use crate::backup::Request;
use crate::backup::wal::following::Following;
use crate::error::{Error, Result};
use crate::pg::segment::SegmentSize;
use crate::pg::wal_file::WalFileName;
use crate::repository::wal_archive::WalArchive;
use crate::server::pg_wal;
use crate::server::reservation::{Reservation, Reserved};
use crate::server::session::BackupSession;

/// The WAL from the backup's start on.
pub(super) struct ReservedWal {
    slot: Option<Reservation>,
}

/// Ticks of the watch between two looks for the WAL where no slot keeps it.
const TICKS_A_LOOK: u32 = 25;

/// Looks after the WAL while files are copied.
pub(super) struct Watch<'a> {
    /// What keeps it.
    pub(super) reserved: &'a mut ReservedWal,
    /// Whose archive may hold it.
    pub(super) request: &'a Request<'a>,
    /// What is copied of it already.
    pub(super) following: &'a Following<'a>,
    /// How long its segments are.
    pub(super) size: SegmentSize,
    /// How often it was looked after.
    pub(super) ticks: u32,
}

impl ReservedWal {
    /// Asks for a slot, in a session that is used for nothing else; without one there is a warning.
    pub(super) fn reserve(client: Client) -> Result<ReservedWal> {
        match Reservation::make(client)? {
            Reserved::Slot(slot) => Ok(ReservedWal { slot: Some(slot) }),
            Reserved::NoSlot(reason) => {
                log::warn!(
                    "no replication slot is to be had ({reason}), so nothing makes the server keep the WAL of this backup; it fails if that is removed before its end and not in the archive. Raise max_replication_slots on the server and restart it, or drop a slot nobody uses"
                );
                Ok(ReservedWal { slot: None })
            }
        }
    }

    /// Whether the server keeps the WAL still, as far as it ever has.
    pub(super) fn is_held(&self, client: &mut Client) -> Result<bool> {
        match &self.slot {
            None => Ok(true),
            Some(slot) => slot.is_held(client),
        }
    }

    /// Forgets a slot that the server has given up, with a warning.
    pub(super) fn note_loss(&mut self) {
        if let Some(reason) = self.slot.as_ref().and_then(Reservation::lost) {
            log::warn!(
                "the replication slot of this backup is lost: {reason}. {GIVEN_UP}; the backup goes on as long as its WAL is there"
            );
            self.slot = None;
        }
    }
}

/// What takes a slot away.
const GIVEN_UP: &str = "The server ends the session of a slot that keeps more WAL than max_slot_wal_keep_size allows, or is idle for longer than idle_replication_slot_timeout";

impl Watch<'_> {
    /// An error where neither the server nor the archive has WAL that is still to be copied, or what was copied cannot be used.
    pub(super) fn tick(&mut self, session: &mut BackupSession) -> Result<()> {
        self.following.check()?;
        self.reserved.note_loss();
        if self.reserved.slot.is_some() {
            return Ok(());
        }
        self.ticks += 1;
        if self.ticks % TICKS_A_LOOK != 1 {
            return Ok(());
        }
        let next = self.following.next();
        let held = pg_wal::segments(session.client(), self.size)?;
        // The oldest goes first.
        if held.iter().any(|segment| segment.number == next.number) {
            return Ok(());
        }
        let name = WalFileName::segment(next, self.size);
        let archive = WalArchive::open(self.request.folder, self.request.keys.clone())?;
        if let Some(archive) = archive
            && archive.find(&name)?.is_some()
        {
            return Ok(());
        }
        Err(removed(&format!("pg_wal/{}", next.file_name(self.size))))
    }
}

/// WAL that is nowhere.
pub(super) fn removed(what: &str) -> Error {
    Error::server(format!(
        "the server has removed {what}, which this backup needs, and the archive does not hold it"
    ))
    .hint("raise max_slot_wal_keep_size or, where there is no replication slot for the backup, max_replication_slots or wal_keep_size on the server; or archive its WAL (pgkeep wal push). Then start the backup again")
}
