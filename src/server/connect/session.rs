//! What every session is set to before it is used.

use super::server_error;
use crate::config::TargetSession;
use crate::error::{Error, Result};
use postgres::{Client, SimpleQueryMessage};

/// Settings against what a role or database may have: nothing may end or slow a
/// long transfer, and names mean those of `pg_catalog`. A setting that the
/// server's version does not have is left out (`transaction_timeout` came with 17).
/// Text comes as the server has it, without a conversion that could fail or name another file.
/// `set_config` does in one round trip what a SET for each would do.
pub(super) const SETTINGS: &str = "
    SELECT pg_catalog.set_config(name, value, false)
    FROM (VALUES
        ('search_path', 'pg_catalog'),
        ('statement_timeout', '0'),
        ('lock_timeout', '0'),
        ('transaction_timeout', '0'),
        ('idle_in_transaction_session_timeout', '0'),
        ('idle_session_timeout', '0'),
        ('client_encoding', 'SQL_ASCII'),
        ('client_min_messages', 'error'),
        ('standard_conforming_strings', 'on'),
        ('bytea_output', 'hex'),
        ('datestyle', 'ISO, YMD'),
        ('timezone', 'UTC'),
        ('work_mem', '64MB'),
        ('jit', 'off'),
        ('max_parallel_workers_per_gather', '0')
    ) AS setting (name, value)
    WHERE pg_catalog.current_setting(name, true) IS NOT NULL";

/// Checks that the server of a new session is of the wanted kind.
pub(super) fn check(mut client: Client, place: &str, wanted: TargetSession) -> Result<Client> {
    let refusal = match wanted {
        TargetSession::Any | TargetSession::PreferStandby => return Ok(client),
        TargetSession::Primary if shows(&mut client, "in_hot_standby")? => "is a standby",
        TargetSession::Standby if !shows(&mut client, "in_hot_standby")? => "is not a standby",
        TargetSession::ReadWrite if shows(&mut client, "transaction_read_only")? => {
            "does not let sessions write"
        }
        TargetSession::ReadOnly if !shows(&mut client, "transaction_read_only")? => {
            "lets sessions write"
        }
        _ => return Ok(client),
    };
    Err(
        Error::server(format!("the server at {place} {refusal}")).hint(
            "target_session_attrs asks for another kind of server: name one, or unset PGTARGETSESSIONATTRS",
        ),
    )
}

/// A setting of the server is on.
fn shows(client: &mut Client, setting: &str) -> Result<bool> {
    let messages = client
        .simple_query(&format!("SHOW {setting}"))
        .map_err(|error| server_error("see what kind of server it is", &error))?;
    Ok(messages.iter().any(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0) == Some("on"),
        _ => false,
    }))
}
