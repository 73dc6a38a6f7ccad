//! The physical replication slot that keeps WAL on a server until it is archived.
//!
//! All it takes is the attribute REPLICATION.

use postgres::Client;
use postgres::error::SqlState;

use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::server::connect::server_error;

/// A replication slot that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// It keeps all WAL from a position on.
    Keeps(Lsn),
    /// It has never kept any WAL.
    Idle,
    /// The server has given it up.
    Lost(Limit),
}

/// What the server gives a slot up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// It kept too much WAL.
    Size,
    /// It was not in use for too long (18).
    Idle,
}

impl Limit {
    /// The setting that it is.
    pub fn setting(self) -> &'static str {
        match self {
            Limit::Size => "max_slot_wal_keep_size",
            Limit::Idle => "idle_replication_slot_timeout",
        }
    }
}

/// What is wrong with a slot that the server has given up.
pub fn given_up(name: &str, limit: Limit) -> String {
    let why = match limit {
        Limit::Size => "kept more WAL",
        Limit::Idle => "was idle for longer",
    };
    format!(
        "the server has given up the replication slot {name}, because it {why} than {} allows",
        limit.setting()
    )
}

/// Looks a slot up; nothing where there is none of that name.
pub fn find(client: &mut Client, name: &str) -> Result<Option<Slot>> {
    let failed = |error| server_error(&format!("look at the replication slot {name}"), &error);
    let row = client
        .query_opt(
            "SELECT slot_type, restart_lsn::text, wal_status, to_jsonb(s) ->> 'invalidation_reason' \
             FROM pg_replication_slots AS s WHERE slot_name = $1",
            &[&name],
        )
        .map_err(failed)?;
    let Some(row) = row else { return Ok(None) };
    let kind: String = row.try_get(0).map_err(failed)?;
    if kind != "physical" {
        return Err(
            Error::server(format!("the replication slot {name} is a {kind} one")).hint(
                "give wal_slot the name of a physical slot, or a new name with create_slot = yes",
            ),
        );
    }
    let position: Option<String> = row.try_get(1).map_err(failed)?;
    let status: Option<String> = row.try_get(2).map_err(failed)?;
    // A column of 17 and later.
    let reason: Option<String> = row.try_get(3).map_err(failed)?;
    Ok(Some(match (position, status.as_deref()) {
        (_, Some("lost")) if reason.as_deref() == Some("idle_timeout") => Slot::Lost(Limit::Idle),
        (_, Some("lost")) => Slot::Lost(Limit::Size),
        (Some(position), _) => Slot::Keeps(position.parse()?),
        (None, _) => Slot::Idle,
    }))
}

/// Creates a slot that keeps all WAL from now on.
pub fn create(client: &mut Client, name: &str) -> Result<()> {
    client
        .execute("SELECT pg_create_physical_replication_slot($1, true)", &[&name])
        .map(|_| ())
        .map_err(|error| {
            let failure = server_error(&format!("create the replication slot {name}"), &error);
            match error.code() {
                Some(code) if *code == SqlState::CONFIGURATION_LIMIT_EXCEEDED => failure.hint(
                    "raise max_replication_slots on the server and restart it, or drop a slot nobody uses (pg_replication_slots)",
                ),
                _ => failure,
            }
        })
}

/// Drops a slot.
pub fn drop(client: &mut Client, name: &str) -> Result<()> {
    client
        .execute("SELECT pg_drop_replication_slot($1)", &[&name])
        .map(|_| ())
        .map_err(|error| server_error(&format!("drop the replication slot {name}"), &error))
}

/// Lets go of the WAL in front of a position, which must lie behind the one that is kept now and not
/// behind what the server has flushed.
pub fn advance(client: &mut Client, name: &str, position: Lsn) -> Result<()> {
    client
        .execute(
            "SELECT pg_replication_slot_advance($1, $2::text::pg_lsn)",
            &[&name, &position.to_string()],
        )
        .map(|_| ())
        .map_err(|error| {
            let failure = server_error(
                &format!("move the replication slot {name} to {position}"),
                &error,
            );
            match error.code() {
                Some(code) if *code == SqlState::OBJECT_IN_USE => failure.hint(
                    "another program streams by that slot: give pgkeep one of its own (wal_slot)",
                ),
                _ => failure,
            }
        })
}
