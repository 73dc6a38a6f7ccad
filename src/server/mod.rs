//! One PostgreSQL server: over ordinary SQL connections, its disk, and a stream that it compresses.
//!
//! Nothing here knows the repository: it tells what the server is, brackets a
//! backup, lists files and reads them.

mod conflict;
pub mod connect;
pub mod disk;
pub mod facts;
mod links;
pub mod listing;
pub mod permissions;
pub mod pg_wal;
pub mod quiet;
pub mod reading;
pub mod replication;
pub mod reservation;
pub mod session;
pub mod slot;
pub mod source;
mod text;
pub mod wal_end;
mod witness;

use postgres::Client;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::lsn::Lsn;
use crate::server::connect::{Connector, server_error};

/// Connects; an interrupt cancels whatever the connection is waiting for.
pub fn connect(connector: &Connector, interrupt: &Interrupt) -> Result<Client> {
    interrupt.check()?;
    let client = connector.connect()?;
    let token = client.cancel_token();
    let connector = connector.clone();
    interrupt.on_raise(move || {
        // A server that cannot be asked to cancel is gone, and so is the query.
        let _ = connector.cancel(&token);
    });
    Ok(client)
}

/// One run of one server: two sessions that have the same are with the same server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance(String);

/// Which run of which server a session is with. Behind a load balancer, sessions of one backup could be
/// with a primary and its standby.
pub fn instance(client: &mut Client) -> Result<Instance> {
    conflict::repeated(|| client.query_typed_one("SELECT pg_postmaster_start_time()::text", &[]))
        .and_then(|row| row.try_get(0))
        .map(Instance)
        .map_err(|error| server_error("ask when the server was started", &error))
}

/// Whether the server is a standby.
pub fn is_in_recovery(client: &mut Client) -> Result<bool> {
    conflict::repeated(|| client.query_typed_one("SELECT pg_is_in_recovery()", &[]))
        .and_then(|row| row.try_get(0))
        .map_err(|error| server_error("ask whether it is a standby", &error))
}

/// An error where a session is not with the same server as the others.
pub fn check_instance(client: &mut Client, expected: &Instance) -> Result<()> {
    if instance(client)? == *expected {
        return Ok(());
    }
    Err(
        Error::server("the sessions of this backup are with different servers")
            .hint("connect to the server itself, not through a load balancer")
            .momentary(),
    )
}

fn parse_lsn(text: &str) -> Result<Lsn> {
    text.parse().map_err(|_| {
        Error::server(format!(
            "the server gave {text:?} where an LSN was expected"
        ))
    })
}
