//! The WAL of a backup, copied while its files are.
//!
//! What is copied by then, the server may remove: a slot that it gives up costs nothing any more. And a server that is
//! restarted drops the backup's slot, which is a temporary one, and removes with the checkpoint at the end of its recovery all WAL but
//! the last segment (access/transam/xlog.c, RemoveOldXlogFiles). What changed since the pass began is known of the WAL that
//! was read before that.
//!
//! This is for primaries. A standby keeps the WAL from its last restartpoint on when it is restarted, and may change the
//! timeline in the midst of a segment.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use crate::backup::Request;
use crate::backup::hazards::Hazards;
use crate::backup::reserved::removed;
use crate::backup::wal::segment::SegmentCopy;
use crate::backup::wal::unusable;
use crate::error::{Error, Result};
use crate::parallel;
use crate::pg::changed_blocks::ChangedBlocks;
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::wal::{RecordReader, Summarizer};
use crate::rate::RateLimit;
use crate::repository::layout::BackupFolder;
use crate::repository::store::{Store, Stored};
use crate::server::facts::Facts;
use crate::server::pg_wal;
use crate::server::reading::{FileReader, Range, ranges};

/// Between two looks for new WAL: what is written in between is lost where the server dies.
const PAUSE: Duration = Duration::from_millis(200);

/// Copies the WAL from the start of a pass on, as the server writes it.
pub(in crate::backup) struct Following<'a> {
    request: &'a Request<'a>,
    facts: &'a Facts,
    folder: &'a BackupFolder,
    rate: &'a RateLimit,
    start: Lsn,
    timeline: Timeline,
    /// The number of the first segment that is not whole yet.
    next: AtomicU64,
    fault: Mutex<Option<Error>>,
}

/// What was copied while the files were.
#[derive(Default)]
pub(in crate::backup) struct Followed {
    /// The segments that are whole.
    pub(in crate::backup) stored: Stored,
    /// What the records say that were read.
    pub(super) hazards: Hazards,
    /// The segment that is not whole, and the reader that has come to its last byte so far.
    pub(super) begun: Option<(SegmentCopy, RecordReader)>,
}

/// What changed while a pass was made, as far as that is known.
pub(in crate::backup) struct Meanwhile {
    pub(in crate::backup) changed: ChangedBlocks,
    /// Up to where in the WAL; the start of the pass where nothing is known.
    pub(in crate::backup) until: Lsn,
}

impl Meanwhile {
    /// Nothing is known.
    pub(in crate::backup) fn unknown(start: Lsn) -> Meanwhile {
        Meanwhile {
            changed: ChangedBlocks::new(),
            until: start,
        }
    }
}

impl Followed {
    /// Gives up what is not whole.
    pub(in crate::backup) fn discard_begun(&mut self) -> Result<()> {
        self.begun.take().map_or(Ok(()), |(copy, _)| copy.discard())
    }
}

impl<'a> Following<'a> {
    /// Of the pass that began at `start`.
    pub(in crate::backup) fn new(
        request: &'a Request<'a>,
        facts: &'a Facts,
        folder: &'a BackupFolder,
        rate: &'a RateLimit,
        start: Lsn,
        timeline: Timeline,
    ) -> Following<'a> {
        let first = start.segment(facts.control.wal_segment_size);
        Following {
            request,
            facts,
            folder,
            rate,
            start,
            timeline,
            next: AtomicU64::new(first.0),
            fault: Mutex::new(None),
        }
    }

    /// The first segment that the server must have still.
    pub(in crate::backup) fn next(&self) -> SegmentName {
        SegmentName {
            timeline: self.timeline,
            number: SegmentNumber(self.next.load(Ordering::Relaxed)),
        }
    }

    /// An error where no backup can come of this WAL, or it cannot be stored.
    pub(in crate::backup) fn check(&self) -> Result<()> {
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        fault.take().map_or(Ok(()), Err)
    }

    /// Does something, and beside it follows the WAL with a reader, as long as the server gives it: whoever ends the backup
    /// asks for the rest, and tells what is missing.
    pub(in crate::backup) fn beside<T>(
        &self,
        reader: Option<FileReader>,
        work: impl FnOnce() -> T,
    ) -> (T, (Followed, Meanwhile)) {
        let (during, ended) = mpsc::channel::<()>();
        let work = || {
            let _during = during;
            work()
        };
        parallel::both(work, move || match reader {
            Some(reader) => self.run(reader, &ended),
            None => (Followed::default(), Meanwhile::unknown(self.start)),
        })
    }

    /// Follows the WAL until nobody holds the other end of `ended` any more.
    fn run(&self, mut reader: FileReader, ended: &Receiver<()>) -> (Followed, Meanwhile) {
        let outcome = Follower::begin(self).and_then(|mut follower| {
            follower.run(&mut reader, ended)?;
            Ok(follower.end())
        });
        outcome.unwrap_or_else(|error| {
            *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            (Followed::default(), Meanwhile::unknown(self.start))
        })
    }
}

struct Follower<'a> {
    following: &'a Following<'a>,
    store: Store<'a>,
    copy: SegmentCopy,
    records: RecordReader,
    hazards: Hazards,
    summarizer: Summarizer,
    plain: Vec<u8>,
}

impl<'a> Follower<'a> {
    fn begin(following: &'a Following<'a>) -> Result<Follower<'a>> {
        let Following {
            request,
            facts,
            folder,
            ..
        } = *following;
        let store = Store::new(folder, request.coding)?;
        let major = facts.version.major;
        Ok(Follower {
            following,
            copy: SegmentCopy::begin(following.next(), facts, folder, request.coding, &store)?,
            store,
            records: RecordReader::new(
                major,
                facts.control.system_identifier,
                facts.control.wal_segment_size,
                following.start,
            ),
            hazards: Hazards::default(),
            summarizer: Summarizer::new(major),
            plain: Vec::new(),
        })
    }

    fn run(&mut self, reader: &mut FileReader, ended: &Receiver<()>) -> Result<()> {
        loop {
            let has_more = match self.read(reader, ended) {
                Ok(has_more) => has_more,
                Err(error) => {
                    log::debug!("the WAL is not followed any more: {error}");
                    return Ok(());
                }
            };
            let is_new = !self.plain.is_empty();
            self.take()?;
            if is_new && !has_more {
                log::debug!("the WAL is copied up to {}", self.records.awaited());
            }
            let pause = match has_more {
                true => Duration::ZERO,
                false => PAUSE,
            };
            if !matches!(ended.recv_timeout(pause), Err(RecvTimeoutError::Timeout)) {
                return Ok(());
            }
        }
    }

    /// Reads the next bytes into `self.plain`, as far as the server has flushed them and a slice goes. Gives whether there is more.
    fn read(&mut self, reader: &mut FileReader, ended: &Receiver<()>) -> Result<bool> {
        self.plain.clear();
        let flushed = pg_wal::flushed(reader.client())?;
        let new = flushed.0.saturating_sub(self.records.awaited().0);
        let Some((offset, missing)) = self.copy.missing() else {
            return Ok(false);
        };
        let wanted: Vec<Range<'_>> = ranges(&self.copy.path, offset, missing.min(new)).collect();
        let (plain, rate) = (&mut self.plain, self.following.rate);
        reader.read(&wanted, |place, bytes| {
            let bytes = bytes.unwrap_or_default();
            if (bytes.len() as u64) < wanted[place].length {
                return Err(removed(wanted[place].path));
            }
            plain.extend_from_slice(bytes);
            rate.take(bytes.len() as u64, || is_over(ended));
            Ok(())
        })?;
        Ok(new > missing)
    }

    /// Stores them, and reads their records.
    fn take(&mut self) -> Result<()> {
        let Following {
            request,
            facts,
            folder,
            ref next,
            ..
        } = *self.following;
        let major = facts.version.major;
        let (hazards, summarizer) = (&mut self.hazards, &mut self.summarizer);
        self.records
            .push(&self.plain, &mut |record| {
                hazards.record(major, record)?;
                summarizer.record(record)
            })
            .map_err(|fault| unusable(fault.message()))?;
        self.copy.push(&self.plain, &mut self.store)?;
        if self.copy.missing().is_none() {
            next.fetch_add(1, Ordering::Relaxed);
            let name = self.following.next();
            let copy = SegmentCopy::begin(name, facts, folder, request.coding, &self.store)?;
            let whole = std::mem::replace(&mut self.copy, copy);
            whole.finish(Timestamp::now().as_second(), &mut self.store)?;
        }
        Ok(())
    }

    fn end(self) -> (Followed, Meanwhile) {
        let until = self.records.position();
        let meanwhile = match self.summarizer.finish() {
            Ok(changed) => Meanwhile { changed, until },
            Err(_) => Meanwhile::unknown(self.following.start),
        };
        let followed = Followed {
            stored: self.store.stored,
            hazards: self.hazards,
            begun: Some((self.copy, self.records)),
        };
        (followed, meanwhile)
    }
}

fn is_over(ended: &Receiver<()>) -> bool {
    matches!(ended.try_recv(), Err(TryRecvError::Disconnected))
}
