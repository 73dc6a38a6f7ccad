//! Holding up those who create, move or drop databases and tablespaces.
//!
//! All of them write to `pg_database` or `pg_tablespace`, and so wait for whoever has a SHARE lock on these. Reading
//! them, as each new session does, is not held up (commands/dbcommands.c, createdb and movedb;
//! commands/tablespace.c, CreateTableSpace). Such a lock takes a superuser, or the privilege MAINTAIN (17 and later).

use std::time::{Duration, Instant};

use postgres::Client;
use postgres::error::SqlState;

use crate::error::Result;
use crate::server::connect::server_error;

/// Holds them up as long as it lives.
pub struct Quiet {
    since: Instant,
    _session: Client,
}

/// How long they are held up at most while files are copied. Autovacuum is too, where it notes how far it has come with a
/// database (commands/vacuum.c, vac_update_datfrozenxid).
const LONGEST: Duration = Duration::from_secs(30);

/// Whoever comes after the lock waits behind it, so it is not waited for long.
const LOCK: &str = "\
BEGIN;
SET LOCAL lock_timeout = '5s';
LOCK TABLE pg_catalog.pg_database, pg_catalog.pg_tablespace IN SHARE MODE;";

impl Quiet {
    /// Takes the locks in a session that is used for nothing else; nothing where it may not, or somebody is at it for longer.
    pub fn take(mut session: Client) -> Result<Option<Quiet>> {
        const REFUSED: [SqlState; 2] = [
            SqlState::INSUFFICIENT_PRIVILEGE,
            SqlState::LOCK_NOT_AVAILABLE,
        ];
        match session.batch_execute(LOCK) {
            Ok(()) => Ok(Some(Quiet {
                since: Instant::now(),
                _session: session,
            })),
            Err(error) if error.code().is_some_and(|code| REFUSED.contains(code)) => Ok(None),
            Err(error) => Err(server_error("lock pg_database and pg_tablespace", &error)),
        }
    }
    /// Whether they are held up for so long that they should be let go.
    pub fn is_long(&self) -> bool {
        self.since.elapsed() > LONGEST
    }
}
