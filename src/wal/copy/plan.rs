//! Which segments of a server are copied, and how far each.

use std::collections::BTreeSet;

use crate::pg::history::TimelineHistory;
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::wal::behind_page_header;
use crate::pg::wal_file::{WalFileKind, WalFileName};
use crate::repository::wal_archive::Inventory;
use crate::server::wal_end::WalEnd;

/// What a server has.
pub(super) struct Offer<'a> {
    /// The files in its `pg_wal`.
    pub(super) files: &'a [WalFileName],
    /// How the timeline it is on came to be.
    pub(super) history: &'a TimelineHistory,
    /// The position up to which its WAL is whole.
    pub(super) end: Lsn,
    /// The size of its segments.
    pub(super) size: SegmentSize,
}

/// What is not here yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Whole segments, in their order.
    pub(super) whole: Vec<SegmentName>,
    /// The segments that a timeline was left in, with the file that holds each.
    pub(super) left: Vec<(Unfinished, WalFileName)>,
    /// The segment that is being written.
    pub(super) growing: Option<Unfinished>,
}

/// A segment that ends in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unfinished {
    /// Which one.
    pub(super) segment: SegmentName,
    /// Where it ends.
    pub(super) end: Lsn,
}

/// The timeline that a server is on, and the position up to which the WAL on the way to it is whole.
///
/// A standby does not say which timeline it replays. It is the newest one that has any segment: what is used again for
/// later bears the timeline of the moment too. Where it has received more than it has replayed, that counts
/// if it is certain to be of that timeline.
pub(super) fn reach(end: WalEnd, files: &[WalFileName], size: SegmentSize) -> (Timeline, Lsn) {
    match end {
        WalEnd::Flushed { timeline, end } => (timeline, end),
        WalEnd::Replayed { end, received } => {
            let segments = files
                .iter()
                .filter(|file| file.kind() == WalFileKind::Segment);
            let timeline = segments
                .filter_map(|file| file.segment_name(size))
                .map(|segment| segment.timeline)
                .max()
                .unwrap_or(Timeline(1));
            match received {
                Some((of, received)) if of == timeline => (timeline, end.max(received)),
                _ => (timeline, end),
            }
        }
    }
}

impl Offer<'_> {
    /// What of it the archive lacks. A segment that reaches beyond the end, or beyond where its timeline was
    /// left, may hold anything there: it is an older one that is being used again.
    pub(super) fn missing_in(&self, archive: &Inventory) -> Wanted {
        let mut wanted = Wanted {
            whole: Vec::new(),
            left: Vec::new(),
            growing: None,
        };
        let whole_names = self.named(WalFileKind::Segment);
        let partial_names = self.named(WalFileKind::Partial);
        for range in self.history.path() {
            let of_range = |segment: &&SegmentName| {
                segment.timeline == range.timeline
                    && segment.number.next().start(self.size) > range.start
            };
            let limit = range.end.min(self.end);
            let is_whole = |segment: &&SegmentName| segment.number.next().start(self.size) <= limit;
            wanted.whole.extend(
                whole_names
                    .iter()
                    .filter(of_range)
                    .filter(is_whole)
                    .filter(|segment| !archive.holds(**segment)),
            );
            let last = SegmentName {
                timeline: range.timeline,
                number: limit.segment(self.size),
            };
            if archive.holds(last)
                || limit <= behind_page_header(last.number.start(self.size), self.size)
            {
                continue;
            }
            let unfinished = Unfinished {
                segment: last,
                end: limit,
            };
            if range.end <= self.end {
                let file = if partial_names.contains(&last) {
                    WalFileName::partial(last, self.size)
                } else if whole_names.contains(&last) {
                    WalFileName::segment(last, self.size)
                } else {
                    continue;
                };
                if !archive.holds_partial(last) {
                    wanted.left.push((unfinished, file));
                }
            } else if self.history.timeline_of(self.end) == range.timeline
                && whole_names.contains(&last)
            {
                wanted.growing = Some(unfinished);
            }
        }
        wanted
    }

    fn named(&self, kind: WalFileKind) -> BTreeSet<SegmentName> {
        self.files
            .iter()
            .filter(|file| file.kind() == kind)
            .filter_map(|file| file.segment_name(self.size))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pg::segment::SegmentNumber;

    fn size() -> SegmentSize {
        SegmentSize::new(1 << 20).unwrap()
    }

    fn segment(timeline: u32, number: u64) -> SegmentName {
        SegmentName {
            timeline: Timeline(timeline),
            number: SegmentNumber(number),
        }
    }

    fn files(whole: &[(u32, u64)], partial: &[(u32, u64)]) -> Vec<WalFileName> {
        let name = |(timeline, number): &(u32, u64)| segment(*timeline, *number);
        let whole = whole
            .iter()
            .map(name)
            .map(|name| WalFileName::segment(name, size()));
        let partial = partial
            .iter()
            .map(name)
            .map(|name| WalFileName::partial(name, size()));
        whole.chain(partial).collect()
    }

    /// What is wanted for an archive that has nothing: whole, left and growing.
    fn wanted(files: &[WalFileName], history: &TimelineHistory, end: u64) -> Wanted {
        let offer = Offer {
            files,
            history,
            end: Lsn(end),
            size: size(),
        };
        offer.missing_in(&Inventory::new(size()))
    }

    fn unfinished(timeline: u32, number: u64, end: u64) -> Unfinished {
        Unfinished {
            segment: segment(timeline, number),
            end: Lsn(end),
        }
    }

    #[test]
    fn only_what_lies_wholly_below_the_end_is_whole() {
        let first = TimelineHistory::without_ancestors(Timeline(1));
        // Seven and eight are recycled ones.
        let files = files(&[(1, 4), (1, 5), (1, 6), (1, 7), (1, 8)], &[]);
        let at = |end| wanted(&files, &first, end);
        let wanted = at(0x68_0000);
        assert_eq!(wanted.whole, [segment(1, 4), segment(1, 5)]);
        assert_eq!(wanted.growing, Some(unfinished(1, 6, 0x68_0000)));
        assert_eq!(at(0x6F_FFF8).whole.len(), 2);
        // Nothing is in a segment of which nothing but the header is flushed.
        for end in [0x70_0000, 0x70_0028] {
            assert_eq!(at(end).whole.len(), 3);
            assert_eq!(at(end).growing, None);
        }
        assert_eq!(at(0x90_0100).growing, None);
    }

    #[test]
    fn a_timeline_counts_as_far_as_it_was_not_left() {
        let second = TimelineHistory::parse(Timeline(2), "1\t0/580000\tx\n").unwrap();
        let on_server = files(&[(1, 4), (1, 5), (1, 6), (2, 5), (2, 6), (2, 7)], &[]);
        let found = wanted(&on_server, &second, 0x68_0000);
        assert_eq!(found.whole, [segment(1, 4), segment(2, 5)]);
        assert_eq!(
            found.left,
            [(
                unfinished(1, 5, 0x58_0000),
                WalFileName::segment(segment(1, 5), size())
            )]
        );
        assert_eq!(found.growing, Some(unfinished(2, 6, 0x68_0000)));

        // A server that was promoted has renamed it.
        let promoted = files(&[(1, 4), (2, 5)], &[(1, 5)]);
        let found = wanted(&promoted, &second, 0x59_0000);
        assert_eq!(found.whole, [segment(1, 4)]);
        assert_eq!(found.left[0].1.as_str(), "000000010000000000000005.partial");
        assert_eq!(found.growing, Some(unfinished(2, 5, 0x59_0000)));

        // One that has the new timeline's segment already, but has not come there.
        let found = wanted(&on_server, &second, 0x57_0000);
        assert_eq!((found.whole, found.left), (vec![segment(1, 4)], vec![]));
        assert_eq!(found.growing, Some(unfinished(1, 5, 0x57_0000)));
    }

    #[test]
    fn a_standby_is_on_the_newest_timeline_it_has_wal_of() {
        let on_server = files(&[(1, 4), (2, 5)], &[]);
        let replayed = |received| {
            let end = WalEnd::Replayed {
                end: Lsn(100),
                received,
            };
            reach(end, &on_server, size())
        };
        assert_eq!(replayed(None), (Timeline(2), Lsn(100)));
        let received = |timeline, end| Some((Timeline(timeline), Lsn(end)));
        assert_eq!(replayed(received(2, 200)), (Timeline(2), Lsn(200)));
        assert_eq!(replayed(received(1, 200)), (Timeline(2), Lsn(100)));
        assert_eq!(replayed(received(2, 50)), (Timeline(2), Lsn(100)));
    }
}
