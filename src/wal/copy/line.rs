//! Segments that come in side by side and are admitted one after the other, the oldest first.
//!
//! So the archive never has a gap that a copy that was cut short left.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::parallel::Stop;
use crate::pg::segment::SegmentName;
use crate::pg::wal_file::WalFileName;
use crate::progress::Progress;
use crate::rate::RateLimit;
use crate::repository::block_maps::BlockMaps;
use crate::repository::incoming::{Finished, Incoming};
use crate::repository::wal_archive::{Stored, WalArchive};
use crate::server::reading::{FileReader, ranges};
use crate::stored::coding::Coding;
use crate::wal::admit;
use crate::wal::examine::Examiner;

/// How many segments may be ahead of the one that is admitted next, and how often it is looked whether they still are.
const AHEAD: usize = 64;
const PACE: Duration = Duration::from_millis(5);

/// Where the files of one server go.
pub(super) struct Destination<'a> {
    pub(super) archive: &'a WalArchive,
    pub(super) block_maps: &'a BlockMaps,
    pub(super) coding: &'a Coding,
    pub(super) rate: &'a RateLimit,
    pub(super) progress: &'a dyn Progress,
}

/// What came of reading a file of the server.
pub(super) enum Fetched {
    /// It is here, and has no name yet.
    Here(Finished),
    /// The server has removed it, or uses it again for later WAL.
    Gone,
}

impl Destination<'_> {
    /// Reads the first `used` bytes of a segment; what is behind is zero.
    pub(super) fn fetch(
        &self,
        reader: &mut FileReader,
        file: &WalFileName,
        used: u64,
        stop: impl Fn() -> Result<()>,
    ) -> Result<Fetched> {
        let path = format!("pg_wal/{file}");
        let wanted: Vec<_> = ranges(&path, 0, used).collect();
        let mut incoming = self.archive.begin(self.coding)?;
        let mut is_there = true;
        let mut read = 0;
        reader.read(&wanted, |row, bytes| {
            stop()?;
            let Some(bytes) = bytes else {
                is_there = false;
                return Ok(());
            };
            read += bytes.len() as u64;
            if bytes.len() as u64 != wanted[row].length {
                is_there = false;
            }
            self.rate.take(bytes.len() as u64, || stop().is_err());
            self.progress.advance(bytes.len() as u64);
            incoming.append(bytes)
        })?;
        if !is_there {
            return Ok(Fetched::Gone);
        }
        let size = self.archive.cluster().segment_size.bytes();
        append_zeros(&mut incoming, size - read)?;
        incoming.finish().map(Fetched::Here)
    }
}

fn append_zeros(incoming: &mut Incoming, mut count: u64) -> Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while count > 0 {
        let now = count.min(ZEROS.len() as u64);
        incoming.append(&ZEROS[..now as usize])?;
        count -= now;
    }
    Ok(())
}

/// The segments on their way in.
pub(super) struct Line<'a> {
    destination: &'a Destination<'a>,
    segments: &'a [SegmentName],
    state: Mutex<State<'a>>,
}

struct State<'a> {
    /// The place in `segments` of the one that is admitted next.
    next: usize,
    waiting: BTreeMap<usize, Fetched>,
    examiner: Examiner<'a>,
    admitted: Vec<SegmentName>,
}

impl<'a> Line<'a> {
    pub(super) fn new(destination: &'a Destination<'a>, segments: &'a [SegmentName]) -> Line<'a> {
        Line {
            destination,
            segments,
            state: Mutex::new(State {
                next: 0,
                waiting: BTreeMap::new(),
                examiner: Examiner::new(destination.archive),
                admitted: Vec::new(),
            }),
        }
    }

    /// Fetches the segment at a place, and admits whatever can be admitted then.
    pub(super) fn work(
        &self,
        reader: &mut FileReader,
        place: usize,
        stop: &Stop<'_>,
    ) -> Result<()> {
        while self.with(|state| place > state.next + AHEAD) {
            stop.check()?;
            std::thread::sleep(PACE);
        }
        let size = self.destination.archive.cluster().segment_size;
        let name = WalFileName::segment(self.segments[place], size);
        let fetched = self
            .destination
            .fetch(reader, &name, size.bytes(), || stop.check())?;
        self.with(|state| {
            state.waiting.insert(place, fetched);
            while let Some(fetched) = state.waiting.remove(&state.next) {
                self.admit(state, fetched)?;
                state.next += 1;
            }
            Ok(())
        })
    }

    fn admit(&self, state: &mut State<'a>, fetched: Fetched) -> Result<()> {
        let segment = self.segments[state.next];
        let Destination {
            archive,
            block_maps,
            coding,
            ..
        } = *self.destination;
        let name = WalFileName::segment(segment, archive.cluster().segment_size);
        let file = match fetched {
            Fetched::Here(file) => file,
            Fetched::Gone => {
                log::warn!("the server has removed WAL segment {name} before it was copied");
                return Ok(());
            }
        };
        let maps = state
            .examiner
            .examine(segment, &mut file.open()?)
            .map_err(|error| unsound(&name, &error))?;
        let stored = admit(archive, block_maps, &name, file, maps, coding)?;
        if stored == Stored::New {
            state.admitted.push(segment);
        }
        Ok(())
    }

    /// The segments that were not in the archive before.
    pub(super) fn into_admitted(self) -> Vec<SegmentName> {
        self.state
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .admitted
    }

    fn with<T>(&self, work: impl FnOnce(&mut State<'a>) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub(super) fn unsound(name: &WalFileName, error: &Error) -> Error {
    Error::damage(format!(
        "WAL segment {name} of the server is not archived: {}",
        error.message()
    ))
    .hint("run the same command again; if it fails again, the server's pg_wal is damaged: make a backup now, and check its disk")
}
