//! The bracket around a backup: start and stop, on one connection.
//!
//! The server ends the backup when this connection ends, however it ends
//! (access/transam/xlog.c, do_pg_abort_backup).

use postgres::Client;
use postgres::types::Type;

use crate::error::{Error, Result};
use crate::pg::label::BackupLabel;
use crate::pg::lsn::Lsn;
use crate::pg::version::Major;
use crate::server::conflict;
use crate::server::connect::server_error;
use crate::server::parse_lsn;

/// Whether the start waits for a checkpoint spread over time, or for one at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkpoint {
    /// At once, with all the I/O it takes.
    Fast,
    /// As gently as `checkpoint_completion_target` says; takes minutes.
    Spread,
}

/// A backup that the server knows of.
pub struct BackupSession {
    client: Client,
    major: Major,
    from_standby: bool,
    start: Lsn,
}

/// What the server gives at the end of a backup.
#[derive(Debug, Clone)]
pub struct Stopped {
    /// Where the backup ends, as the server says.
    pub lsn: Lsn,
    /// What a standby had applied just before that: up to the end of the last record that was applied
    /// as a whole. Nothing on a primary.
    pub applied: Option<Lsn>,
    /// `backup_label`, byte for byte.
    pub label_file: String,
    /// The same, understood.
    pub label: BackupLabel,
    /// `tablespace_map`, byte for byte; empty without tablespaces.
    pub tablespace_map: String,
}

impl BackupSession {
    /// Starts the backup, whose WAL is reserved: checkpoint, start LSN.
    pub fn start(
        mut client: Client,
        major: Major,
        from_standby: bool,
        label: &str,
        checkpoint: Checkpoint,
    ) -> Result<BackupSession> {
        let start = if major >= Major::V15 {
            "SELECT pg_backup_start($1, $2)::text"
        } else {
            "SELECT pg_start_backup($1, $2, false)::text"
        };
        let fast = checkpoint == Checkpoint::Fast;
        // Cancelled while it waits for the checkpoint, it has not begun (access/transam/xlog.c, do_pg_backup_start).
        let lsn: String = conflict::repeated(|| {
            client.query_typed_one(start, &[(&label, Type::TEXT), (&fast, Type::BOOL)])
        })
        .and_then(|row| row.try_get(0))
        .map_err(|error| server_error("start the backup", &error))?;
        Ok(BackupSession {
            client,
            major,
            from_standby,
            start: parse_lsn(&lsn)?,
        })
    }

    /// Where replay will start: the redo pointer of the backup's checkpoint.
    pub fn start_lsn(&self) -> Lsn {
        self.start
    }

    /// The connection, for questions while the backup runs.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// The position that the server's pages have come to.
    pub fn position(&mut self) -> Result<Lsn> {
        if self.from_standby {
            return Ok(self.applied()?.unwrap_or(self.start));
        }
        let lsn: String = self
            .client
            .query_typed_one("SELECT pg_current_wal_insert_lsn()::text", &[])
            .and_then(|row| row.try_get(0))
            .map_err(|error| server_error("ask for the position in the WAL", &error))?;
        parse_lsn(&lsn)
    }

    /// Ends the backup as if it had never begun.
    pub fn abandon(mut self) -> Result<Client> {
        self.stop()?;
        Ok(self.client)
    }

    /// An error where the backup is void already: the connection is lost, or the standby is none any more.
    pub fn watch(&mut self) -> Result<()> {
        let in_recovery: bool = conflict::repeated(|| {
            self.client
                .query_typed_one("SELECT pg_is_in_recovery()", &[])
        })
        .and_then(|row| row.try_get(0))
        .map_err(|error| server_error("keep the backup's session", &error))?;
        if self.from_standby && !in_recovery {
            return Err(promoted());
        }
        Ok(())
    }

    /// Ends the backup, whose files are all read. Its slot keeps the WAL until that is copied.
    pub fn stop(&mut self) -> Result<Stopped> {
        let applied = match self.from_standby {
            true => self.applied()?,
            false => None,
        };
        let stop = if self.major >= Major::V15 {
            "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(false)"
        } else {
            "SELECT lsn::text, labelfile, spcmapfile FROM pg_stop_backup(false, false)"
        };
        let row = match conflict::repeated(|| self.client.query_typed_one(stop, &[])) {
            Ok(row) => row,
            Err(error) => {
                self.watch()?;
                return Err(server_error("stop the backup", &error));
            }
        };
        self.watch()?;
        let read = |error| server_error("stop the backup", &error);
        let lsn: String = row.try_get(0).map_err(read)?;
        let label_file: String = row.try_get(1).map_err(read)?;
        let label = BackupLabel::parse(&label_file)
            .map_err(|error| error.context("the server's answer to the end of the backup"))?;
        Ok(Stopped {
            lsn: parse_lsn(&lsn)?,
            applied,
            label,
            label_file,
            tablespace_map: row.try_get(2).map_err(read)?,
        })
    }

    fn applied(&mut self) -> Result<Option<Lsn>> {
        let lsn: Option<String> = conflict::repeated(|| {
            self.client
                .query_typed_one("SELECT pg_last_wal_replay_lsn()::text", &[])
        })
        .and_then(|row| row.try_get(0))
        .map_err(|error| server_error("ask how much WAL the standby has applied", &error))?;
        lsn.as_deref().map(parse_lsn).transpose()
    }
}

fn promoted() -> Error {
    Error::server("the standby was promoted while it was being backed up, so this backup is void")
        .hint("start the backup again; the server is a primary now")
        .momentary()
}
