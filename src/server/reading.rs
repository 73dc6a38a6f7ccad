//! Reading the server's files: many ranges of many files a query.

use postgres::error::SqlState;
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::ToSql;
use postgres::{Client, Statement};

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::control::{CONTROL_FILE, CONTROL_FILE_SIZE, ControlFault, ControlFile};
use crate::server::Instance;
use crate::server::conflict;
use crate::server::connect::{Connector, server_error};

/// Bytes of a row: large enough that the cost of a row is little, small enough that the server keeps using
/// the same memory. Rows of 128 and 256 KiB came at 3.2 GB/s over two connections, 64 KiB at 1.6, 512 KiB at 2.0.
pub const ROW_BYTES: u64 = 128 * 1024;

const READ: &str = "SELECT pg_catalog.pg_read_binary_file(r.path, r.start, r.length, true) \
                    FROM unnest($1::text[], $2::int8[], $3::int8[]) AS r(path, start, length)";

/// How a file is just now. Its times are whole seconds (adt/genfile.c, pg_stat_file).
const STATE: &str = "SELECT s.size, floor(extract(epoch FROM s.modification))::int8, \
                            floor(extract(epoch FROM s.change))::int8, \
                            floor(extract(epoch FROM pg_catalog.clock_timestamp()))::int8 \
                     FROM pg_catalog.pg_stat_file($1, true) AS s WHERE s.size IS NOT NULL";

/// What tells a file from what it is once it has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileState {
    /// Its length in bytes.
    pub size: u64,
    /// When its content last changed, in seconds since 1970.
    modified: i64,
    /// When its inode last did, which is later where another file took its name.
    changed: i64,
}

/// How long ago a change must be, in seconds, for another one to give other times: file systems take
/// theirs from a clock that is some milliseconds behind.
const SETTLED_SECONDS: i64 = 2;

/// How often a file is waited for that changes all the time.
const SETTLED_LOOKS: u32 = 5;

/// A part of a file, at most [`ROW_BYTES`] long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range<'a> {
    /// Relative to PGDATA, or absolute.
    pub path: &'a str,
    /// Bytes from the file's start.
    pub offset: u64,
    /// Bytes to read; fewer come where the file ends before.
    pub length: u64,
}

/// The ranges that cover `length` bytes of a file from `offset` on.
pub fn ranges(path: &str, offset: u64, length: u64) -> impl Iterator<Item = Range<'_>> {
    (0..length.div_ceil(ROW_BYTES)).map(move |row| Range {
        path,
        offset: offset + row * ROW_BYTES,
        length: ROW_BYTES.min(length - row * ROW_BYTES),
    })
}

/// A connection that reads files.
pub struct FileReader {
    client: Client,
    read: Statement,
}

impl FileReader {
    /// Opens a connection for reading files.
    pub fn connect(connector: &Connector, interrupt: &Interrupt) -> Result<FileReader> {
        let mut client = super::connect(connector, interrupt)?;
        let read = conflict::repeated(|| client.prepare(READ))
            .map_err(|error| server_error("prepare the reading of files", &error))?;
        Ok(FileReader { client, read })
    }

    /// An error where this session is not with the same server as the others.
    pub fn check_instance(&mut self, expected: &Instance) -> Result<()> {
        super::check_instance(&mut self.client, expected)
    }

    /// The connection, for questions.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Reads ranges in their order. `consume` gets each one's place in `ranges` and its bytes,
    /// `None` where the file does not exist.
    ///
    /// On a standby, replay may cancel the query; what is left is then asked for again.
    pub fn read<'a>(
        &mut self,
        ranges: &[Range<'a>],
        mut consume: impl FnMut(usize, Option<&[u8]>) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        let mut conflicts = 0;
        while done < ranges.len() {
            let before = done;
            match self.read_from(ranges, &mut done, &mut consume)? {
                Ended::Complete => return Ok(()),
                Ended::Conflict(error) => {
                    conflicts = if done > before { 0 } else { conflicts + 1 };
                    if conflicts == conflict::TRIES {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    fn read_from(
        &mut self,
        ranges: &[Range<'_>],
        done: &mut usize,
        consume: &mut impl FnMut(usize, Option<&[u8]>) -> Result<()>,
    ) -> Result<Ended> {
        let rest = &ranges[*done..];
        let paths: Vec<&str> = rest.iter().map(|range| range.path).collect();
        let starts = int8s(rest.iter().map(|range| range.offset))?;
        let lengths = int8s(rest.iter().map(|range| range.length))?;
        let parameters: [&(dyn ToSql + Sync); 3] = [&paths, &starts, &lengths];
        let first = rest.first().map_or("", |range| range.path);
        let failed = |error: postgres::Error| {
            let failure = server_error(&format!("read {first} and files after it"), &error);
            match error.code() {
                _ if conflict::is_conflict(&error) => Ok(Ended::Conflict(failure)),
                // The role's permissions were checked before; this is the operating system's.
                Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => Err(failure
                    .hint("the server itself may not read that file: correct its owner and mode")),
                _ => Err(failure),
            }
        };
        let mut rows = match self.client.query_raw(&self.read, parameters) {
            Ok(rows) => rows,
            Err(error) => return failed(error),
        };
        loop {
            match rows.next() {
                Err(error) => return failed(error),
                Ok(None) => break,
                Ok(Some(row)) => {
                    let bytes: Option<&[u8]> = row
                        .try_get(0)
                        .map_err(|error| server_error("read files", &error))?;
                    let wanted = &ranges[*done];
                    if bytes.is_some_and(|bytes| bytes.len() as u64 > wanted.length) {
                        return Err(Error::server(format!(
                            "the server gave more of {} than it was asked for",
                            wanted.path
                        )));
                    }
                    consume(*done, bytes)?;
                    *done += 1;
                }
            }
        }
        if *done == ranges.len() {
            Ok(Ended::Complete)
        } else {
            Err(Error::server(format!(
                "the server answered {done} of {} ranges of its files",
                ranges.len()
            )))
        }
    }

    /// Reads a whole file that may be of any size up to `limit` bytes into memory; `None` where it does not exist.
    pub fn read_small_file(&mut self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let mut content = None;
        self.read(
            &[Range {
                path,
                offset: 0,
                length: limit,
            }],
            |_, bytes| {
                content = bytes.map(<[u8]>::to_vec);
                Ok(())
            },
        )?;
        Ok(content)
    }

    /// How a file is just now; `None` where it does not exist.
    pub fn state(&mut self, path: &str) -> Result<Option<FileState>> {
        Ok(self.state_and_age(path)?.map(|(state, _)| state))
    }

    /// How a file is that has not changed for so long that its next change will show in its state; or that still
    /// changes after some seconds. `None` where it does not exist.
    pub fn settled_state(&mut self, path: &str) -> Result<Option<FileState>> {
        let mut looks = 1;
        loop {
            match self.state_and_age(path)? {
                None => return Ok(None),
                Some((state, age)) if age >= SETTLED_SECONDS || looks == SETTLED_LOOKS => {
                    return Ok(Some(state));
                }
                Some(_) => std::thread::sleep(std::time::Duration::from_secs(1)),
            }
            looks += 1;
        }
    }

    fn state_and_age(&mut self, path: &str) -> Result<Option<(FileState, i64)>> {
        let failed = |error: postgres::Error| server_error(&format!("look at {path}"), &error);
        let row = conflict::repeated(|| self.client.query_opt(STATE, &[&path])).map_err(failed)?;
        let Some(row) = row else {
            return Ok(None);
        };
        let number = |column: usize| row.try_get::<_, i64>(column).map_err(failed);
        let state = FileState {
            size: u64::try_from(number(0)?)
                .map_err(|_| Error::server(format!("the server gives {path} a size below zero")))?,
            modified: number(1)?,
            changed: number(2)?,
        };
        Ok(Some((
            state,
            number(3)? - state.modified.max(state.changed),
        )))
    }

    /// Reads `global/pg_control`. The server writes it in place, so a reader may
    /// see half of a write: a bad CRC is read again until it is good or the
    /// same bytes come twice (as common/controldata_utils.c's get_controlfile does for the front end).
    pub fn read_control_file(&mut self) -> Result<(Vec<u8>, ControlFile)> {
        let mut last = Vec::new();
        loop {
            let bytes = self
                .read_small_file(CONTROL_FILE, CONTROL_FILE_SIZE as u64)?
                .ok_or_else(|| Error::server(format!("the server has no {CONTROL_FILE}")))?;
            match ControlFile::parse(&bytes) {
                Ok(control) => return Ok((bytes, control)),
                Err(ControlFault::Checksum { .. }) if bytes != last => {
                    last = bytes;
                    std::thread::sleep(CONTROL_FILE_PAUSE);
                }
                Err(fault) => {
                    return Err(Error::damage(format!("{CONTROL_FILE} of the server: {fault}"))
                        .hint("the cluster itself is damaged; pg_controldata shows what the server can read of it"));
                }
            }
        }
    }
}

/// Between two looks at a control file that was being written.
const CONTROL_FILE_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

enum Ended {
    Complete,
    Conflict(Error),
}

/// SQL has no unsigned integers; no file reaches 2^63 bytes.
fn int8s(values: impl Iterator<Item = u64>) -> Result<Vec<i64>> {
    values
        .map(|value| {
            i64::try_from(value).map_err(|_| Error::failed("a file has an impossible size"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_a_file_once() {
        let parts: Vec<_> = ranges("f", 100, 2 * ROW_BYTES + 7)
            .map(|range| (range.offset, range.length))
            .collect();
        assert_eq!(
            parts,
            [
                (100, ROW_BYTES),
                (100 + ROW_BYTES, ROW_BYTES),
                (100 + 2 * ROW_BYTES, 7)
            ]
        );
        assert_eq!(ranges("f", 0, 0).count(), 0);
    }
}
