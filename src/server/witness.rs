//! Something on a server that nobody could foresee: whoever sees it is with that very server.
//!
//! A container, a snapshot or a standby has the same system identifier, and may have the same paths and names. A temporary
//! replication slot of a random name is one server's alone; as long as it lives it has a folder in `pg_replslot`
//! (replication/slot.c, CreateSlotOnDisk).

use postgres::Client;
use postgres::error::SqlState;
use postgres::types::Type;

use crate::error::{Error, Result};
use crate::server::connect::server_error;

/// All slots are in use, or there are none at all.
pub(super) const NO_SLOT: [SqlState; 2] = [
    SqlState::CONFIGURATION_LIMIT_EXCEEDED,
    SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
];

/// Asks somebody while a slot is there, whose name is told. None where the server has no slot left.
pub(super) fn ask<T>(
    client: &mut Client,
    witness: impl FnOnce(&str) -> Result<T>,
) -> Result<Option<T>> {
    let mut random = [0; 12];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::failed(format!("the system gives no random numbers: {error}")))?;
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let name = format!("pgkeep_{digits}");
    let create = "SELECT pg_create_physical_replication_slot($1, false, true)";
    match client.query_typed(create, &[(&name, Type::NAME)]) {
        Ok(_) => {}
        Err(error) if error.code().is_some_and(|code| NO_SLOT.contains(code)) => return Ok(None),
        Err(error) => return Err(server_error("make a temporary replication slot", &error)),
    }
    let answer = witness(&name);
    client
        .query_typed(
            "SELECT pg_drop_replication_slot($1)",
            &[(&name, Type::NAME)],
        )
        .map_err(|error| server_error("drop a temporary replication slot", &error))?;
    answer.map(Some)
}
