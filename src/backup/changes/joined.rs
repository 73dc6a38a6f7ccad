//! What the chunks of a range of WAL tell, put together in their order while they are read.
//!
//! What a chunk tells stays in memory only until those before it have told theirs, so that a range of any length costs no more
//! than what changed in all of it. That each chunk begins where the one before ended proves that no record was missed.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::parallel::Stop;
use crate::pg::changed_blocks::ChangedBlocks;
use crate::pg::history::WalRange;
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentSize;
use crate::pg::wal::behind_page_header;

/// How many chunks may be ahead of the one that is joined next, and how often it is looked whether they still are.
const AHEAD: usize = 16;
const PACE: Duration = Duration::from_millis(5);

/// What a chunk has told.
pub(super) struct Told {
    /// Where its first record begins.
    pub(super) start: Lsn,
    /// Where the record after its last one begins.
    pub(super) end: Lsn,
    /// What its records changed.
    pub(super) changed: ChangedBlocks,
}

/// All chunks up to the first that has not told yet.
pub(super) struct Joined {
    range: WalRange,
    size: SegmentSize,
    state: Mutex<State>,
}

struct State {
    /// The number of the chunk that is joined next.
    next: usize,
    waiting: BTreeMap<usize, Option<Told>>,
    /// Where the record begins that has to come next.
    position: Lsn,
    changed: ChangedBlocks,
}

impl Joined {
    /// Of a range whose first record begins where it does.
    pub(super) fn new(range: WalRange, size: SegmentSize) -> Joined {
        Joined {
            range,
            size,
            state: Mutex::new(State {
                next: 0,
                waiting: BTreeMap::new(),
                position: range.start,
                changed: ChangedBlocks::new(),
            }),
        }
    }

    /// Waits until a chunk is near enough to the one that is joined next.
    pub(super) fn wait_for_turn(&self, number: usize, stop: &Stop<'_>) -> Result<()> {
        while self.with(|state| number > state.next + AHEAD) {
            stop.check()?;
            std::thread::sleep(PACE);
        }
        Ok(())
    }

    /// Takes what a chunk told; nothing where no record begins in it, as one may be longer than a chunk.
    pub(super) fn take(&self, number: usize, told: Option<Told>) -> Result<()> {
        self.with(|state| {
            state.waiting.insert(number, told);
            while let Some(told) = state.waiting.remove(&state.next) {
                state.next += 1;
                if let Some(told) = told {
                    self.append(state, told)?;
                }
            }
            Ok(())
        })
    }

    fn append(&self, state: &mut State, told: Told) -> Result<()> {
        let position = state.position;
        if told.start != behind_page_header(position, self.size) {
            return Err(Error::damage(format!(
                "the WAL of timeline {} has no records from {position} to {}",
                self.range.timeline, told.start
            )));
        }
        state.position = told.end;
        state.changed.append(told.changed);
        Ok(())
    }

    /// What changed in all of the range, which must have been read to its end.
    pub(super) fn finish(self) -> Result<ChangedBlocks> {
        let state = self
            .state
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let (range, position) = (self.range, state.position);
        if behind_page_header(position, self.size) != behind_page_header(range.end, self.size) {
            return Err(Error::damage(format!(
                "the WAL of timeline {} ends at {position}, and not at {}",
                range.timeline, range.end
            )));
        }
        Ok(state.changed)
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pg::changed_blocks::RelationFork;
    use crate::pg::lsn::Timeline;
    use crate::pg::relation::Fork;

    const FORK: RelationFork = RelationFork {
        tablespace: 1663,
        database: 5,
        relfilenumber: 16_384,
        fork: Fork::Main,
    };

    fn joined() -> Joined {
        let range = WalRange {
            timeline: Timeline(1),
            start: Lsn(1000),
            end: Lsn(4000),
        };
        Joined::new(range, SegmentSize::new(16 << 20).unwrap())
    }

    fn told(start: u64, end: u64, change: impl FnOnce(&mut ChangedBlocks)) -> Option<Told> {
        let mut changed = ChangedBlocks::new();
        change(&mut changed);
        Some(Told {
            start: Lsn(start),
            end: Lsn(end),
            changed,
        })
    }

    #[test]
    fn chunks_are_joined_in_their_order_as_soon_as_they_adjoin() {
        let joined = joined();
        // Blocks of later WAL stay, though what is before them shortened the relation.
        joined
            .take(2, told(3000, 4000, |later| later.mark(FORK, 7)))
            .unwrap();
        joined.take(1, None).unwrap();
        assert_eq!(joined.with(|state| state.waiting.len()), 2);
        joined
            .take(0, told(1000, 3000, |first| first.set_limit(FORK, 5)))
            .unwrap();
        assert_eq!(joined.with(|state| state.waiting.len()), 0);
        let changed = joined.finish().unwrap();
        let changes = changed.get(&FORK).unwrap();
        assert_eq!(changes.limit, Some(5));
        assert!(changes.blocks.contains(7));
    }

    #[test]
    fn a_gap_and_an_early_end_are_damage() {
        let gap = joined();
        gap.take(1, told(3000, 4000, |_| {})).unwrap();
        let error = gap.take(0, told(1000, 2000, |_| {})).unwrap_err();
        assert!(error.message().contains("has no records from"), "{error}");
        let short = joined();
        short.take(0, told(1000, 3000, |_| {})).unwrap();
        let error = short.finish().unwrap_err();
        assert!(error.message().contains("and not at"), "{error}");
    }
}
