//! The server over a connection in the replication protocol ("Streaming Replication Protocol").
//!
//! It runs the commands of replication/repl_gram.y and no SQL. What it is here for is BASE_BACKUP, whose stream
//! the server reads, packs and compresses by itself. Sessions come from
//! [`Connector::connect_replication`](crate::server::connect::Connector::connect_replication).

mod archive;
mod base_backup;
mod options;
mod result;

pub use archive::Archive;
pub use base_backup::{BaseBackup, Ending, Tablespace};
pub use options::{BaseBackupOptions, ServerCompression};

use crate::error::{Error, Result};
use crate::pg::version::Major;
use crate::server::connect::{Fault, Wire};
use bytes::BytesMut;
use postgres::error::SqlState;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use result::Budget;

/// A session in the replication protocol; dropping it ends it, and whatever it is in the middle of.
pub struct ReplicationSession {
    wire: Wire,
    /// "host /tmp port 5432 user ann for replication", for messages.
    place: String,
}

/// A command that failed.
#[derive(Debug, Clone)]
pub struct CommandError {
    error: Error,
    code: Option<SqlState>,
}

impl CommandError {
    /// What failed, in words for the operator.
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// The server's code for it (utils/errcodes.txt), if it is the server that says so.
    pub fn sqlstate(&self) -> Option<&str> {
        self.code.as_ref().map(SqlState::code)
    }

    /// Whether the server is well but does not do what was asked for in this way: it was built without that
    /// compression, or does not know it, its level or its workers (backup/basebackup.c,
    /// parse_basebackup_options(); backup/basebackup_zstd.c and its siblings).
    pub fn is_unsupported(&self) -> bool {
        const UNSUPPORTED: [SqlState; 3] = [
            SqlState::FEATURE_NOT_SUPPORTED,
            SqlState::INVALID_PARAMETER_VALUE,
            SqlState::SYNTAX_ERROR,
        ];
        self.code
            .as_ref()
            .is_some_and(|code| UNSUPPORTED.contains(code))
    }

    fn new(doing: &str, fault: Fault) -> CommandError {
        let code = match &fault {
            Fault::Server(report) => Some(report.code.clone()),
            _ => None,
        };
        CommandError {
            error: failure(doing, fault),
            code,
        }
    }
}

/// The error of a command. A folder that the server was about to read may have been dropped just then, with its database or
/// tablespace, and that fails a base backup (storage/file/fd.c, ReadDirExtended): another one need not meet it. WAL that is gone
/// (access/transam/xlog.c, CheckXLogRemoved) will be gone again.
fn failure(doing: &str, fault: Fault) -> Error {
    const KEEP: &str = "raise max_slot_wal_keep_size or, where there is no replication slot for the backup, max_replication_slots or wal_keep_size on the server; then start the backup again";
    let (is_removed, is_gone) = match &fault {
        Fault::Server(report) => (
            report.routine.as_deref() == Some("CheckXLogRemoved"),
            report.code == SqlState::UNDEFINED_FILE,
        ),
        _ => (false, false),
    };
    let error = fault.into_error(doing);
    match (is_removed, is_gone) {
        // Its code is that of any error before.
        (true, _) => error.hint(KEEP),
        (false, true) => error.momentary(),
        (false, false) => error,
    }
}

impl From<Error> for CommandError {
    fn from(error: Error) -> CommandError {
        CommandError { error, code: None }
    }
}

impl From<CommandError> for Error {
    fn from(failed: CommandError) -> Error {
        failed.error
    }
}

impl ReplicationSession {
    pub(in crate::server) fn new(wire: Wire, place: String) -> ReplicationSession {
        ReplicationSession { wire, place }
    }

    /// What the server says its version is, such as "18.1 (Debian 18.1-1)".
    pub fn server_version(&self) -> &str {
        self.wire.server_version().unwrap_or_default()
    }

    /// Its major release; an error of kind Server if it is none of 14 to 18.
    pub fn major(&self) -> Result<Major> {
        let version = self.server_version();
        let digits = version.bytes().take_while(u8::is_ascii_digit).count();
        let number = version[..digits].parse().ok();
        number.and_then(Major::from_number).ok_or_else(|| {
            let shown: String = version.chars().take(40).collect();
            Error::server(format!(
                "the server at {} is of version {shown:?}; pgkeep knows PostgreSQL 14 to 18",
                self.place
            ))
        })
    }

    /// Runs a command and gives the rows of its results, NULL as None: `IDENTIFY_SYSTEM` has one row of the
    /// cluster's identifier, its timeline, its WAL position and NULL; `SHOW` has one of one column.
    ///
    /// A command that the server refuses leaves the session as it was.
    pub fn query(
        &mut self,
        command: &str,
    ) -> std::result::Result<Vec<Vec<Option<String>>>, CommandError> {
        let doing = format!("run {command} at {}", self.place);
        self.send(command)
            .and_then(|()| self.rows())
            .map_err(|fault| CommandError::new(&doing, fault))
    }

    fn send(&mut self, command: &str) -> std::result::Result<(), Fault> {
        let mut message = BytesMut::new();
        frontend::query(command, &mut message)
            .map_err(|error| Fault::Unfit(format!("it cannot be sent: {error}")))?;
        self.wire.send(&message)
    }

    fn rows(&mut self) -> std::result::Result<Vec<Vec<Option<String>>>, Fault> {
        let mut rows = Vec::new();
        let mut budget = Budget::default();
        loop {
            match self.wire.message() {
                Ok(Message::DataRow(row)) => {
                    let values = budget.values(&row)?.into_iter();
                    let texts = values.map(|value| value.map(result::text).transpose());
                    rows.push(texts.collect::<std::result::Result<_, _>>()?);
                }
                Ok(Message::ReadyForQuery(_)) => return Ok(rows),
                Ok(
                    Message::RowDescription(_)
                    | Message::CommandComplete(_)
                    | Message::EmptyQueryResponse,
                ) => {}
                Ok(_) => return Err(crate::server::connect::misplaced()),
                Err(Fault::Server(report)) => {
                    // One that ends the session is the last that is heard of it.
                    let _ = self.wire.until_ready();
                    return Err(Fault::Server(report));
                }
                Err(fault) => return Err(fault),
            }
        }
    }
}

impl Drop for ReplicationSession {
    fn drop(&mut self) {
        let mut message = BytesMut::new();
        frontend::terminate(&mut message);
        // A server that is gone already need not be told.
        let _ = self.wire.send(&message);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::server::connect::testing::{message, wire};

    fn session(said: &[Vec<u8>]) -> ReplicationSession {
        ReplicationSession::new(wire(said.concat()), "host a".to_owned())
    }

    #[test]
    fn rows_of_a_command_are_given_and_of_too_many_none() {
        let row = message(b'D', b"\0\x02\0\0\0\x02on\xff\xff\xff\xff");
        let whole = [row, message(b'C', b"SHOW\0"), message(b'Z', b"I")];
        let rows = session(&whole).query("SHOW x").unwrap();
        assert_eq!(rows, [[Some("on".to_owned()), None]]);

        let long = message(
            b'D',
            &[&b"\0\x01\0\x0f\0\0"[..], &[b'a'; 0xf_0000]].concat(),
        );
        let endless = vec![long; 20];
        let error = session(&endless).query("SHOW x").unwrap_err();
        assert!(error.error().message().contains("too many"), "{error:?}");
    }

    #[test]
    fn malformed_rows_are_refused() {
        let bodies = [
            &b"\0\x01"[..],
            b"\0\x01\0\0\0\x05ab",
            b"\0\x01\0\0\0\x02abc",
            b"\0\x01\x7f\xff\xff\xffab",
            b"\0\x01\0\0\0\x01\xe9",
        ];
        for body in bodies {
            let failed = session(&[message(b'D', body)]).query("SHOW x").unwrap_err();
            assert_eq!(failed.sqlstate(), None, "{body:?}");
            assert!(!failed.error().is_momentary(), "{body:?} {failed:?}");
        }
    }

    #[test]
    fn a_refused_command_has_its_code_and_leaves_the_session() {
        let refused = [
            message(b'E', b"C42601\0Msyntax error\0\0"),
            message(b'Z', b"I"),
            message(b'Z', b"I"),
        ];
        let gone = [
            message(b'E', b"C58P01\0Mcould not open directory\0\0"),
            message(b'Z', b"I"),
        ];
        let error = session(&gone).query("SHOW").unwrap_err();
        assert!(error.error().is_momentary());
        let removed = [
            message(
                b'E',
                b"C58P01\0Mrequested WAL segment\0RCheckXLogRemoved\0\0",
            ),
            message(b'Z', b"I"),
        ];
        let error = session(&removed).query("SHOW").unwrap_err();
        assert!(!error.error().is_momentary());
        let mut session = session(&refused);
        let error = session.query("SHOW").unwrap_err();
        assert_eq!(error.sqlstate(), Some("42601"));
        assert!(!error.error().is_momentary());
        assert!(error.is_unsupported());
        assert_eq!(
            error.error().message(),
            "cannot run SHOW at host a: syntax error"
        );
        assert!(session.query("SHOW x").unwrap().is_empty());
    }

    #[test]
    fn versions_are_understood() {
        let of = |version: &str| {
            let status = [&b"server_version\0"[..], version.as_bytes(), b"\0"].concat();
            let mut session = session(&[message(b'S', &status), message(b'Z', b"I")]);
            session.query("SHOW x").unwrap();
            session.major().ok()
        };
        assert_eq!(of("18.1 (Debian 18.1-1)"), Some(Major::V18));
        assert_eq!(of("17beta2"), Some(Major::V17));
        for unknown in ["", "9.6.1", "x", "99999999999999"] {
            assert_eq!(of(unknown), None, "{unknown}");
        }
    }
}
