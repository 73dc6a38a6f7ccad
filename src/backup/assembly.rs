//! One stored file made of slices that several workers compress.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::error::Result;
use crate::repository::file_list::Crc32c;
use crate::storage::Place;
use crate::stored::coding::Coding;
use crate::stored::writer::{StoredWriter, Written};

/// A slice, compressed.
#[derive(Default)]
pub(super) struct Part {
    /// The compressed frame.
    pub(super) frame: Vec<u8>,
    /// Bytes of plain content in it.
    pub(super) length: u64,
    /// CRC-32C of these.
    pub(super) crc32c: u32,
    /// The file ended before the slice did, so that nothing after it counts.
    pub(super) is_last: bool,
}

/// A whole file, stored.
pub(super) struct Assembled {
    /// Bytes of plain content.
    pub(super) size: u64,
    /// CRC-32C of these.
    pub(super) crc32c: Crc32c,
    /// What lies on disk; `None` where the file turned out not to exist.
    pub(super) written: Option<Written>,
}

/// Puts the slices of a file into their order. A slice that comes before its turn
/// waits here in memory; a worker that is too far ahead waits itself.
pub(super) struct Assembly<'a> {
    target: Place,
    coding: &'a Coding,
    slices: u64,
    ahead: u64,
    state: Mutex<State>,
    advanced: Condvar,
}

#[derive(Default)]
struct State {
    next: u64,
    waiting: BTreeMap<u64, Part>,
    writer: Option<StoredWriter>,
    size: u64,
    crc32c: u32,
    ended: bool,
}

/// How long a worker waits before it looks whether to stop.
const NAP: Duration = Duration::from_millis(100);

impl<'a> Assembly<'a> {
    /// A file of so many slices; parts up to `ahead` of the next one are kept waiting.
    pub(super) fn new(target: Place, coding: &'a Coding, slices: u64, ahead: u64) -> Assembly<'a> {
        Assembly {
            target,
            coding,
            slices,
            ahead,
            state: Mutex::default(),
            advanced: Condvar::new(),
        }
    }

    /// Takes a slice; a frame whose turn it was stays in `part`, to be filled again. The one that completes the file gets the result. `stop` ends a wait: the
    /// backup has failed, so that the slice no longer matters.
    pub(super) fn put(
        &self,
        number: u64,
        part: &mut Part,
        stop: impl Fn() -> bool,
    ) -> Result<Option<Assembled>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while number > state.next + self.ahead {
            if stop() {
                return Ok(None);
            }
            (state, _) = self
                .advanced
                .wait_timeout(state, NAP)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if number == state.next {
            self.append(&mut state, part)?;
            while let Some(waiting) = state.take_next() {
                self.append(&mut state, &waiting)?;
            }
        } else {
            state.waiting.insert(number, std::mem::take(part));
        }
        self.advanced.notify_all();
        if state.next < self.slices {
            return Ok(None);
        }
        let state = std::mem::take(&mut *state);
        Ok(Some(Assembled {
            size: state.size,
            crc32c: Crc32c(state.crc32c),
            written: state.writer.map(StoredWriter::finish).transpose()?,
        }))
    }

    fn append(&self, state: &mut State, part: &Part) -> Result<()> {
        state.next += 1;
        if state.ended {
            return Ok(());
        }
        // Until it is written: after a failure, nothing more is.
        state.ended = true;
        if part.length == 0 {
            return Ok(());
        }
        let mut writer = match state.writer.take() {
            Some(writer) => writer,
            None => StoredWriter::create(&self.target, self.coding)?,
        };
        writer.append(&part.frame)?;
        state.writer = Some(writer);
        state.crc32c = crc32c::crc32c_combine(state.crc32c, part.crc32c, part.length as usize);
        state.size += part.length;
        state.ended = part.is_last;
        Ok(())
    }
}

impl State {
    fn take_next(&mut self) -> Option<Part> {
        let next = self.next;
        self.waiting.remove(&next)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn part(content: &[u8], is_last: bool) -> Part {
        Part {
            frame: content.to_vec(),
            length: content.len() as u64,
            crc32c: crc32c::crc32c(content),
            is_last,
        }
    }

    #[test]
    fn slices_come_together_in_order_whoever_is_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let assembly = Assembly::new(Place::from(&path), &Coding::PLAIN, 3, 8);
        let put = |number, content: &[u8]| {
            assembly
                .put(number, &mut part(content, false), || false)
                .unwrap()
        };
        assert!(put(2, b"cc").is_none());
        assert!(put(0, b"a").is_none());
        let whole = put(1, b"bb").unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"abbcc");
        assert_eq!(whole.size, 5);
        assert_eq!(whole.crc32c, Crc32c(crc32c::crc32c(b"abbcc")));
    }

    #[test]
    fn nothing_after_a_short_slice_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let assembly = Assembly::new(Place::from(&path), &Coding::PLAIN, 3, 8);
        assert!(
            assembly
                .put(0, &mut part(b"a", false), || false)
                .unwrap()
                .is_none()
        );
        assert!(
            assembly
                .put(2, &mut part(b"cc", false), || false)
                .unwrap()
                .is_none()
        );
        let whole = assembly
            .put(1, &mut part(b"b", true), || false)
            .unwrap()
            .unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"ab");
        assert_eq!(whole.size, 2);
    }

    #[test]
    fn a_file_that_does_not_exist_leaves_none() {
        let folder = tempfile::tempdir().unwrap();
        let assembly = Assembly::new(folder.path().join("f").into(), &Coding::PLAIN, 1, 8);
        let whole = assembly
            .put(0, &mut part(b"", true), || false)
            .unwrap()
            .unwrap();
        assert!(whole.written.is_none());
    }

    #[test]
    fn a_worker_too_far_ahead_stops_waiting_when_told() {
        let folder = tempfile::tempdir().unwrap();
        let assembly = Assembly::new(folder.path().join("f").into(), &Coding::PLAIN, 9, 1);
        assert!(
            assembly
                .put(5, &mut part(b"x", false), || true)
                .unwrap()
                .is_none()
        );
    }
}
