//! One PostgreSQL server over ordinary SQL connections.
//!
//! Nothing here knows the repository: it tells what the server is, brackets a
//! backup, lists files and reads them.

pub mod connect;
pub mod facts;
pub mod listing;
pub mod permissions;
pub mod reading;
pub mod session;

use postgres::Client;

use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::server::connect::Connector;

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
