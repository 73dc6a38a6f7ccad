//! BASE_BACKUP, read as it arrives.
//!
//! Follows backup/basebackup_copy.c and backup/basebackup.c: perform_base_backup(). First come two result sets, of where
//! the backup starts and of the tablespaces; then one CopyOut stream; then a result set of where the backup ends, and
//! the end of the command. Each CopyData message begins with its kind:
//!
//! | kind | what follows |
//! |---|---|
//! | `n` | the archive that begins, and the tablespace's path, both with a zero byte at their end |
//! | `d` | a part of that archive |
//! | `p` | how many bytes the server has read, in eight bytes |
//! | `m` | nothing; the manifest begins, behind the last archive |
//!
//! An archive ends where another begins, or the stream ends.

use super::archive::{Archive, tablespace_of};
use super::options::BaseBackupOptions;
use super::result::{self, Row, number};
use super::{CommandError, ReplicationSession, failure};
use crate::error::{Error, Result};
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::version::Major;
use crate::server::connect::{Fault, Line, MOST_WARNINGS, misplaced};
use crate::stored::compression::Algorithm;
use postgres_protocol::message::backend::{COPY_DATA_TAG, COPY_DONE_TAG, Message};
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The longest message that says which archive begins: a name of up to 100 bytes and a path of up to 1024 (MAXPGPATH).
const ARCHIVE_MESSAGE_BYTES: usize = 4096;

/// Bytes of a message that says how far the server is.
const PROGRESS_BYTES: usize = 8;

/// A tablespace besides those in the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID.
    pub oid: u32,
    /// Where it is on the server. Of one in the data directory itself (`allow_in_place_tablespaces`), relative to that.
    pub location: PathBuf,
}

/// A base backup that the server is sending; dropping it ends it on the server too.
pub struct BaseBackup {
    session: ReplicationSession,
    /// What is done, for messages.
    doing: String,
    algorithm: Algorithm,
    suffix: &'static str,
    start: (Lsn, Timeline),
    tablespaces: Vec<Tablespace>,
    kibibytes: u64,
    /// Archives that did not begin yet; None is the data directory's.
    awaited: Vec<Option<u32>>,
    /// Whether the manifest is still to come.
    awaits_manifest: bool,
    state: State,
}

/// Where in the stream the next byte is.
enum State {
    /// Before the first archive.
    Start,
    /// A part was announced, and nobody has taken it yet.
    Announced(Part),
    /// In a part, so many bytes before the next message.
    Within(usize),
    /// Behind the last part.
    Done,
    /// What was read did not go on.
    Failed(Error),
}

/// What comes of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// That of a tablespace; None of the data directory.
    Archive(Option<u32>),
    /// Behind all archives.
    Manifest,
}

/// A message of the stream.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Begin(Part),
    Data(usize),
    Done,
}

impl ReplicationSession {
    /// Begins a base backup. Waits for the server's checkpoint.
    ///
    /// Fails with [`CommandError::is_unsupported`] where the server does not have the compression, and with an error of
    /// kind Server on PostgreSQL 14, which has another stream and no compression.
    pub fn base_backup(
        mut self,
        options: &BaseBackupOptions,
    ) -> std::result::Result<BaseBackup, CommandError> {
        if self.major()? < Major::V15 {
            let refused = Error::server(format!(
                "the server at {} is PostgreSQL 14, whose base backups pgkeep does not read",
                self.place
            ));
            return Err(refused.hint("read its files over ordinary sessions").into());
        }
        let doing = format!("take a base backup from {}", self.place);
        let failed = |fault| CommandError::new(&doing, fault);
        self.send(&options.command()).map_err(failed)?;
        let start = result::position(&mut self.wire).map_err(failed)?;
        let rows = result::rows(&mut self.wire).map_err(failed)?;
        let (tablespaces, kibibytes) = tablespaces(rows).map_err(failed)?;
        match self.wire.message().map_err(failed)? {
            Message::CopyOutResponse(_) => {}
            _ => return Err(failed(misplaced())),
        }
        let oids = tablespaces.iter().map(|tablespace| Some(tablespace.oid));
        Ok(BaseBackup {
            algorithm: options.compression.algorithm(),
            suffix: options.compression.suffix(),
            start,
            awaited: oids.chain([None]).collect(),
            awaits_manifest: options.with_manifest,
            tablespaces,
            kibibytes,
            state: State::Start,
            session: self,
            doing,
        })
    }
}

/// Ends a base backup from another thread, and whatever waits for more of it.
#[derive(Clone)]
pub struct Ending(Line);

impl Ending {
    /// Ends it.
    pub fn end(&self) {
        self.0.cut();
    }

    /// Whether it was ended.
    pub fn is_ended(&self) -> bool {
        self.0.is_cut()
    }
}

impl BaseBackup {
    /// What ends it from elsewhere.
    pub fn ending(&self) -> Ending {
        Ending(self.session.wire.line())
    }

    /// Where recovery from this backup starts: the redo position of its checkpoint.
    pub fn start(&self) -> (Lsn, Timeline) {
        self.start
    }

    /// The tablespaces besides those in the data directory, each of which has an archive.
    pub fn tablespaces(&self) -> &[Tablespace] {
        &self.tablespaces
    }

    /// About how many bytes all files have, if that was asked for.
    pub fn size(&self) -> u64 {
        self.kibibytes.saturating_mul(1024)
    }

    /// What the server warned of so far; an error where that is more than is held.
    pub fn warnings(&self) -> Result<&[String]> {
        let warnings = self.session.wire.warnings();
        match warnings.len() < MOST_WARNINGS {
            true => Ok(warnings),
            false => Err(Error::server(format!(
                "the server has warned {MOST_WARNINGS} times during a base backup: \"{}\"",
                warnings.last().map_or("", String::as_str)
            ))
            .hint("see in its log what it warns of")),
        }
    }

    /// The next archive; None behind the last. What was not read of the one before is passed over.
    ///
    /// After a failure every call fails in the same way.
    pub fn next_archive(&mut self) -> Result<Option<Archive<'_>>> {
        let Some(Part::Archive(tablespace)) = self.announcement()? else {
            return Ok(None);
        };
        self.state = State::Within(0);
        Ok(Some(Archive::new(self, tablespace)))
    }

    /// The manifest, if it was asked for: of all files that the archives have. Archives that were not read are passed over.
    pub fn manifest(&mut self) -> Result<Option<impl Read>> {
        while self.next_archive()?.is_some() {}
        let Some(Part::Manifest) = self.announcement()? else {
            return Ok(None);
        };
        self.state = State::Within(0);
        Ok(Some(Archive::new(self, None)))
    }

    /// What comes next, and what was not read of the part before is passed over; nothing behind the last one.
    fn announcement(&mut self) -> Result<Option<Part>> {
        loop {
            match self.state {
                State::Announced(part) => return Ok(Some(part)),
                State::Done => return Ok(None),
                State::Start => match self.event() {
                    Ok(Event::Begin(part)) => self.state = State::Announced(part),
                    Ok(Event::Done) => self.state = State::Done,
                    Ok(Event::Data(_)) => return Err(self.fail(misplaced())),
                    Err(fault) => return Err(self.fail(fault)),
                },
                State::Within(_) => {
                    let passed_over = self.fill()?.len();
                    self.consume(passed_over);
                }
                State::Failed(ref error) => return Err(error.clone()),
            }
        }
    }

    /// Ends the backup and gives the position up to which its WAL is needed. Archives that were not read are passed
    /// over. Pages that the server found to be wrong make it fail.
    pub fn finish(mut self) -> Result<(Lsn, Timeline)> {
        if let Some(mut manifest) = self.manifest()? {
            io::copy(&mut manifest, &mut io::sink())
                .map_err(|error| Error::from_io("read a manifest", &error))?;
        }
        let wire = &mut self.session.wire;
        let ended = result::position(wire).and_then(|position| {
            loop {
                match wire.message()? {
                    Message::CommandComplete(_) => {}
                    Message::ReadyForQuery(_) => return Ok(position),
                    _ => return Err(misplaced()),
                }
            }
        });
        ended.map_err(|fault| failure(&self.doing, fault))
    }

    /// How the archives are compressed.
    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// What has arrived of the archive that was taken last; nothing at its end.
    pub(super) fn fill(&mut self) -> Result<&[u8]> {
        loop {
            match self.state {
                State::Within(0) => match self.event() {
                    Ok(Event::Data(length)) => self.state = State::Within(length),
                    Ok(Event::Begin(part)) => self.state = State::Announced(part),
                    Ok(Event::Done) => self.state = State::Done,
                    Err(fault) => return Err(self.fail(fault)),
                },
                State::Within(_) => break,
                State::Start | State::Announced(_) | State::Done => return Ok(&[]),
                State::Failed(ref error) => return Err(error.clone()),
            }
        }
        let State::Within(length) = self.state else {
            return Ok(&[]);
        };
        match self.session.wire.fill() {
            Ok(arrived) => Ok(&arrived[..arrived.len().min(length)]),
            Err(fault) => Err(fail(&mut self.state, &self.doing, fault)),
        }
    }

    /// Takes bytes that [`BaseBackup::fill`] gave.
    pub(super) fn consume(&mut self, bytes: usize) {
        if let State::Within(length) = &mut self.state {
            let bytes = bytes.min(*length);
            *length -= bytes;
            self.session.wire.consume(bytes);
        }
    }

    fn fail(&mut self, fault: Fault) -> Error {
        fail(&mut self.state, &self.doing, fault)
    }

    /// The next message of the stream that matters; of data, only its length.
    fn event(&mut self) -> std::result::Result<Event, Fault> {
        let wire = &mut self.session.wire;
        loop {
            let header = wire.header()?;
            match header.tag {
                COPY_DATA_TAG => {}
                COPY_DONE_TAG if header.length == 0 => return self.done(),
                _ => match wire.body(header)? {
                    None => continue,
                    Some(_) => return Err(misplaced()),
                },
            }
            let Some(length) = header.length.checked_sub(1) else {
                return Err(Fault::Garbled("a message has no kind".to_owned()));
            };
            let mut kind = [0];
            wire.read_exact(&mut kind)?;
            match kind[0] {
                b'd' => return Ok(Event::Data(length)),
                b'p' if length == PROGRESS_BYTES => wire.read_exact(&mut [0; PROGRESS_BYTES])?,
                b'n' if length <= ARCHIVE_MESSAGE_BYTES => {
                    let mut body = vec![0; length];
                    wire.read_exact(&mut body)?;
                    return self.announced(&body);
                }
                b'm' if length == 0 && self.awaits_manifest && self.awaited.is_empty() => {
                    self.awaits_manifest = false;
                    return Ok(Event::Begin(Part::Manifest));
                }
                b'm' => {
                    let text = "the server sent a manifest that nobody asked for";
                    return Err(Fault::Garbled(text.to_owned()));
                }
                other => {
                    return Err(Fault::Garbled(format!(
                        "the server sent a message of {length} bytes and kind '{}'",
                        char::from(other).escape_default()
                    )));
                }
            }
        }
    }

    /// An archive begins: it is one that is there to come.
    fn announced(&mut self, body: &[u8]) -> std::result::Result<Event, Fault> {
        let mut strings = body.split(|byte| *byte == 0);
        let (name, _path) = match (
            strings.next(),
            strings.next(),
            strings.next(),
            strings.next(),
        ) {
            (Some(name), Some(path), Some([]), None) => (name, path),
            _ => return Err(Fault::Garbled("an archive has no name".to_owned())),
        };
        let awaited = tablespace_of(name, self.suffix).and_then(|tablespace| {
            self.awaited
                .iter()
                .position(|awaited| *awaited == tablespace)
        });
        match awaited {
            Some(place) => {
                let tablespace = self.awaited.swap_remove(place);
                Ok(Event::Begin(Part::Archive(tablespace)))
            }
            None => {
                let shown = &name[..name.len().min(100)];
                Err(Fault::Garbled(format!(
                    "the server sent an archive \"{}\" that does not belong there",
                    shown.escape_ascii()
                )))
            }
        }
    }

    fn done(&mut self) -> std::result::Result<Event, Fault> {
        let left_out = match (self.awaited.is_empty(), self.awaits_manifest) {
            (true, false) => return Ok(Event::Done),
            (true, true) => "the manifest",
            (false, _) => "an archive",
        };
        Err(Fault::Garbled(format!("the server left {left_out} out")))
    }
}

fn fail(state: &mut State, doing: &str, fault: Fault) -> Error {
    let error = failure(doing, fault);
    *state = State::Failed(error.clone());
    error
}

/// The tablespaces; the data directory is one of the rows (backup/basebackup_copy.c, SendTablespaceList()). And how many KiB
/// they have, as far as the server says.
fn tablespaces(rows: Vec<Row>) -> std::result::Result<(Vec<Tablespace>, u64), Fault> {
    let garbled = || Fault::Garbled("the server's list of tablespaces is malformed".to_owned());
    let mut has_base = false;
    let mut tablespaces: Vec<Tablespace> = Vec::new();
    let mut kibibytes: u64 = 0;
    for row in rows {
        let Ok([oid, location, size]) = <[_; 3]>::try_from(row) else {
            return Err(garbled());
        };
        if let Some(size) = size {
            let size = number(&size).ok_or_else(garbled)?;
            kibibytes = kibibytes.saturating_add(size);
        }
        match (oid, location) {
            (None, None) if !has_base => has_base = true,
            (Some(oid), Some(location)) if !location.is_empty() => {
                let oid = number(&oid).filter(|oid| *oid != 0).ok_or_else(garbled)?;
                if tablespaces.iter().any(|other| other.oid == oid) {
                    return Err(garbled());
                }
                let location = PathBuf::from(OsString::from_vec(location));
                tablespaces.push(Tablespace { oid, location });
            }
            _ => return Err(garbled()),
        }
    }
    match has_base {
        true => Ok((tablespaces, kibibytes)),
        false => Err(garbled()),
    }
}

#[cfg(test)]
mod tests;
