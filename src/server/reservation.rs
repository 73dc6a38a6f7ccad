//! The temporary slot that makes a server keep the WAL a backup needs.
//!
//! It has a session and a thread of its own. A slot that only lies there counts as inactive from its creation on, and
//! `idle_replication_slot_timeout` (18) takes it away at the next checkpoint, be it the one the backup begins with; moved to
//! where it is, a slot is active for a moment (replication/slotfuncs.c, pg_replication_slot_advance). And a server that
//! gives up a slot ends the session that has it (replication/slot.c, InvalidatePossiblyObsoleteSlot), which
//! must not be the one between the backup's start and stop: the WAL may be there for all that.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use postgres::Client;
use postgres::types::Type;

use crate::error::{Error, Result};
use crate::server::conflict;
use crate::server::connect::server_error;
use crate::server::witness::NO_SLOT;

/// A slot that keeps all WAL from its creation on until this is dropped, unless the server gives it up.
pub struct Reservation {
    /// Gone with this, which ends the thread.
    alive: Option<Sender<()>>,
    keeper: Option<JoinHandle<()>>,
    name: String,
    lost: Arc<OnceLock<String>>,
}

/// What comes of asking for a slot.
pub enum Reserved {
    /// There is one.
    Slot(Reservation),
    /// The server has none to give, and why.
    NoSlot(String),
}

impl Reservation {
    /// Makes a slot in a session that is used for nothing else.
    pub fn make(mut client: Client) -> Result<Reserved> {
        let created = client
            .query_one(
                "SELECT slot_name::text FROM pg_create_physical_replication_slot('pgkeep_' || pg_backend_pid(), true, true)",
                &[],
            )
            .and_then(|row| row.try_get(0));
        let name = match created {
            Ok(name) => name,
            Err(error) if error.code().is_some_and(|code| NO_SLOT.contains(code)) => {
                let reason = error.as_db_error().map(|error| error.message().to_owned());
                return Ok(Reserved::NoSlot(reason.unwrap_or_default()));
            }
            Err(error) => {
                return Err(server_error(
                    "reserve the WAL with a temporary replication slot",
                    &error,
                ));
            }
        };
        let pause = renew(&mut client).map_err(|reason| {
            Error::server(format!("cannot keep the replication slot: {reason}"))
        })?;
        let (alive, ended) = mpsc::channel();
        let lost = Arc::new(OnceLock::new());
        let tell = Arc::clone(&lost);
        let keeper = std::thread::spawn(move || keep(client, pause, &ended, &tell));
        Ok(Reserved::Slot(Reservation {
            alive: Some(alive),
            keeper: Some(keeper),
            name,
            lost,
        }))
    }

    /// Whether the server still has the slot, by the word of another session.
    pub fn is_held(&self, client: &mut Client) -> Result<bool> {
        conflict::repeated(|| client.query_typed_one(IS_HELD, &[(&self.name, Type::TEXT)]))
            .and_then(|row| row.try_get(0))
            .map_err(|error| server_error("look for the replication slot of this backup", &error))
    }

    /// Why the server does not keep the slot any more, if that is so.
    pub fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.alive = None;
        if let Some(keeper) = self.keeper.take() {
            // Its only end is the return; a panic there has been told already.
            let _ = keeper.join();
        }
    }
}

/// How long a slot is left alone where no timeout makes it shorter.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How many times within a timeout the slot is made active.
const TIMES_A_TIMEOUT: u32 = 5;

fn keep(mut client: Client, mut pause: Duration, ended: &Receiver<()>, lost: &OnceLock<String>) {
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(pause) {
        match renew(&mut client) {
            Ok(next) => pause = next,
            Err(reason) => {
                lost.get_or_init(|| reason);
                return;
            }
        }
    }
}

/// Between two tries to make a slot active that cannot be moved yet.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

const IS_HELD: &str = "\
SELECT EXISTS (SELECT FROM pg_replication_slots
                WHERE slot_name::text = $1 AND restart_lsn IS NOT NULL AND wal_status <> 'lost')";

/// Moves the slot to where it is, and gives the timeout in seconds.
///
/// A slot begins where a checkpoint that is going on began, which need not be flushed: until then it would be an error to
/// move it (replication/slotfuncs.c, pg_replication_slot_advance), and an error in its session drops a temporary slot
/// (tcop/postgres.c, PostgresMain).
const RENEW: &str = "\
SELECT CASE WHEN restart_lsn <= CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                                     ELSE pg_current_wal_flush_lsn() END
            THEN pg_replication_slot_advance(slot_name, restart_lsn)::text END,
       (SELECT setting::int8 FROM pg_settings WHERE name = 'idle_replication_slot_timeout')
  FROM pg_replication_slots
 WHERE slot_name = 'pgkeep_' || pg_backend_pid() AND restart_lsn IS NOT NULL AND wal_status <> 'lost'";

/// Makes the slot active for a moment, and gives the time in which that must happen again; or says why there is no slot.
fn renew(client: &mut Client) -> std::result::Result<Duration, String> {
    let row = conflict::repeated(|| client.query_typed_opt(RENEW, &[]))
        .map_err(|error| server_error("keep it active", &error).message().to_owned())?
        .ok_or("the server has given it up")?;
    let moved: Option<String> = row.try_get(0).map_err(|error| error.to_string())?;
    let timeout: Option<i64> = row.try_get(1).map_err(|error| error.to_string())?;
    if moved.is_none() {
        return Ok(SHORTEST_PAUSE);
    }
    Ok(
        match timeout.and_then(|seconds| u64::try_from(seconds).ok()) {
            None | Some(0) => LONGEST_PAUSE,
            Some(seconds) => (Duration::from_secs(seconds) / TIMES_A_TIMEOUT).min(LONGEST_PAUSE),
        },
    )
}
