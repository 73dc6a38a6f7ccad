//! Reading the server's files: from its disk, or by SQL, many ranges of many files a query.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use postgres::error::SqlState;
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::{ToSql, Type};
use postgres::{Client, Row, Statement};

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::control::{CONTROL_FILE, CONTROL_FILE_SIZE, ControlFault, ControlFile};
use crate::server::Instance;
use crate::server::conflict;
use crate::server::connect::{Connector, server_error};
use crate::server::disk::{DataDirectory, Opened};
use crate::server::source::Chosen;

/// Bytes of a row: large enough that the cost of a row is little, small enough that the server keeps using
/// the same memory. Rows of 128 and 256 KiB came at 3.2 GB/s over two connections, 64 KiB at 1.6, 512 KiB at 2.0.
pub const ROW_BYTES: u64 = 128 * 1024;

const READ: &str = "SELECT pg_catalog.pg_read_binary_file(r.path, r.start, r.length, true) \
                    FROM unnest($1::text[], $2::int8[], $3::int8[]) AS r(path, start, length)";

/// The same of WAL, which the server need not send as far as it is zeros: behind a switch to another segment that is all the
/// rest of one. NULLs tell of no file.
const READ_WAL: &str = "SELECT pg_catalog.rtrim(content, '\\x00'::bytea), pg_catalog.octet_length(content) \
                        FROM unnest($1::text[], $2::int8[], $3::int8[]) AS r(path, start, length), \
                             pg_catalog.pg_read_binary_file(r.path, r.start, r.length, true) AS content";

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

impl FileState {
    /// That of a file or folder of this machine.
    pub(super) fn of(metadata: &Metadata) -> FileState {
        FileState {
            size: metadata.size(),
            modified: metadata.mtime(),
            changed: metadata.ctime(),
        }
    }

    /// That in a row, from a column on; of no file, NULLs.
    pub(super) fn of_row(row: &Row, column: usize) -> Result<Option<FileState>, postgres::Error> {
        let number = |column: usize| row.try_get::<_, Option<i64>>(column);
        let (size, modified, changed) = (number(column)?, number(column + 1)?, number(column + 2)?);
        Ok(size
            .zip(modified)
            .zip(changed)
            .map(|((size, modified), changed)| FileState {
                // A size below zero is found to be impossible by whoever looks at it.
                size: u64::try_from(size).unwrap_or(u64::MAX),
                modified,
                changed,
            }))
    }
}

/// How long ago a change must be, in seconds, for another one to give other times: file systems take
/// theirs from a clock that is some milliseconds behind.
const SETTLED_SECONDS: i64 = 2;

/// How often a file is waited for that changes all the time.
const SETTLED_LOOKS: u32 = 5;

/// A part of a file; one of many that are read together is at most [`ROW_BYTES`] long.
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

/// A connection that reads files, by queries where they are not at hand.
pub struct FileReader {
    client: Client,
    read: Statement,
    /// Prepared once it is needed.
    read_wal: Option<Statement>,
    disk: Option<Arc<DataDirectory>>,
    /// A row that was not there to be borrowed: what was read from disk, or zeros that the server did not send.
    row: Vec<u8>,
}

impl FileReader {
    /// Opens a connection for reading files.
    pub fn connect(connector: &Connector, interrupt: &Interrupt) -> Result<FileReader> {
        FileReader::new(super::connect(connector, interrupt)?)
    }

    /// Reads files by a connection.
    pub fn new(mut client: Client) -> Result<FileReader> {
        let read = conflict::repeated(|| client.prepare(READ))
            .map_err(|error| server_error("prepare the reading of files", &error))?;
        Ok(FileReader {
            client,
            read,
            read_wal: None,
            disk: None,
            row: Vec::new(),
        })
    }

    /// Reads files the way that was chosen.
    pub fn read_from(&mut self, chosen: &Chosen) {
        self.disk = chosen.disk();
    }

    /// The data directory, where files are read from its disk.
    pub(super) fn disk(&self) -> Option<Arc<DataDirectory>> {
        self.disk.clone()
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
    pub fn read(
        &mut self,
        ranges: &[Range<'_>],
        mut consume: impl FnMut(usize, Option<&[u8]>) -> Result<()>,
    ) -> Result<()> {
        let Some(disk) = self.disk() else {
            return self.ask_for(ranges, &mut consume);
        };
        let mut first = 0;
        for file in ranges.chunk_by(|one, next| one.path == next.path) {
            match disk.file(file[0].path)? {
                Opened::File(opened) => {
                    for (place, range) in (first..).zip(file) {
                        let Range {
                            path,
                            offset,
                            length,
                        } = *range;
                        let length = length as usize;
                        if self.row.len() < length {
                            self.row.resize(length, 0);
                        }
                        let row = &mut self.row[..length];
                        let read = disk.read(&opened, path, offset, row)?;
                        consume(place, Some(&row[..read]))?;
                    }
                }
                Opened::Nothing => {
                    for place in first..first + file.len() {
                        consume(place, None)?;
                    }
                }
                Opened::Others => {
                    self.ask_for(file, &mut |place, bytes| consume(first + place, bytes))?;
                }
            }
            first += file.len();
        }
        Ok(())
    }

    /// Appends a part of a file to `into`, as far as the file goes; one that does not exist has nothing. `told` is told of the
    /// bytes that were asked for, and of those that came.
    pub fn append(
        &mut self,
        part: Range<'_>,
        into: &mut Vec<u8>,
        mut told: impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let Range {
            path,
            offset,
            length,
        } = part;
        if let Some(disk) = self.disk()
            && let Opened::File(opened) = disk.file(path)?
        {
            let read = disk.append(opened, path, offset, length, into)?;
            return told(length, read as u64);
        }
        let rows: Vec<Range<'_>> = ranges(path, offset, length).collect();
        let mut has_ended = false;
        self.read(&rows, |index, bytes| {
            let bytes = bytes.unwrap_or_default();
            if !has_ended {
                into.extend_from_slice(bytes);
            }
            has_ended |= (bytes.len() as u64) < rows[index].length;
            told(rows[index].length, bytes.len() as u64)
        })
    }

    /// Reads ranges by SQL. On a standby, replay may cancel the query; what is left is then asked for again.
    fn ask_for(
        &mut self,
        ranges: &[Range<'_>],
        consume: &mut impl FnMut(usize, Option<&[u8]>) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        let mut conflicts = 0;
        while done < ranges.len() {
            let before = done;
            match self.ask_from(ranges, &mut done, consume)? {
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

    fn ask_from(
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
        let is_wal = rest.iter().all(|range| range.path.starts_with("pg_wal/"));
        let statement = match is_wal {
            true => self.read_wal()?,
            false => self.read.clone(),
        };
        let mut rows = match self.client.query_raw(&statement, parameters) {
            Ok(rows) => rows,
            Err(error) => return failed(error),
        };
        loop {
            match rows.next() {
                Err(error) => return failed(error),
                Ok(None) => break,
                Ok(Some(row)) => {
                    let unfit = |error| server_error("read files", &error);
                    let mut bytes: Option<&[u8]> = row.try_get(0).map_err(unfit)?;
                    let wanted = &ranges[*done];
                    if is_wal && let Some(sent) = bytes {
                        let length: i32 = row.try_get(1).map_err(unfit)?;
                        let length = usize::try_from(length).unwrap_or_default();
                        self.row.clear();
                        self.row.extend_from_slice(sent);
                        // One byte more than was asked for is too many already.
                        self.row.resize(length.min(wanted.length as usize + 1), 0);
                        bytes = Some(&self.row);
                    }
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

    fn read_wal(&mut self) -> Result<Statement> {
        if let Some(statement) = &self.read_wal {
            return Ok(statement.clone());
        }
        let statement = conflict::repeated(|| self.client.prepare(READ_WAL))
            .map_err(|error| server_error("prepare the reading of WAL", &error))?;
        Ok(self.read_wal.insert(statement).clone())
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
        let row = conflict::repeated(|| self.client.query_typed_opt(STATE, &[(&path, Type::TEXT)]))
            .map_err(failed)?;
        let Some(row) = row else {
            return Ok(None);
        };
        let Some(state) = FileState::of_row(&row, 0).map_err(failed)? else {
            return Ok(None);
        };
        if state.size > i64::MAX as u64 {
            return Err(Error::server(format!(
                "the server gives {path} a size below zero"
            )));
        }
        let now: i64 = row.try_get(3).map_err(failed)?;
        Ok(Some((state, now - state.modified.max(state.changed))))
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
pub(super) const CONTROL_FILE_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

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
