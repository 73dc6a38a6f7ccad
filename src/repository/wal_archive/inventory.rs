//! Which WAL an archive holds, by the names of its files: stretches, gaps, and how far one gets.

use std::collections::{BTreeMap, BTreeSet};

use crate::pg::history::{TimelineHistory, WalRange};
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::wal_file::WalFileKind;

/// What an archive held when it was looked at.
#[derive(Debug, Clone)]
pub struct Inventory {
    size: SegmentSize,
    segments: BTreeSet<SegmentName>,
    partials: BTreeSet<SegmentName>,
    histories: BTreeMap<Timeline, TimelineHistory>,
}

/// Segments that are missing although there is WAL before and behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gap {
    /// The first one that is missing.
    pub first: SegmentName,
    /// The last one.
    pub last: SegmentName,
}

impl Gap {
    /// How many segments are missing.
    pub fn segments(&self) -> u64 {
        self.last.number.0 - self.first.number.0 + 1
    }

    /// Whether a segment is one of those that are missing.
    pub fn contains(&self, segment: SegmentName) -> bool {
        (self.first..=self.last).contains(&segment)
    }
}

/// WAL from a position on, without a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contiguous {
    /// The segments that hold it, in order: those that recovery would ask for.
    pub segments: Vec<SegmentName>,
    /// The position behind it: what is there comes from no whole segment.
    pub end: Lsn,
    /// The unfinished segment that goes on from there, up to a position that its content alone tells.
    pub partial: Option<SegmentName>,
}

impl Inventory {
    /// Nothing yet, of segments of this size.
    pub fn new(size: SegmentSize) -> Inventory {
        Inventory {
            size,
            segments: BTreeSet::new(),
            partials: BTreeSet::new(),
            histories: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, kind: WalFileKind, segment: SegmentName) {
        match kind {
            WalFileKind::Segment => self.segments.insert(segment),
            WalFileKind::Partial => self.partials.insert(segment),
            WalFileKind::History | WalFileKind::BackupHistory => false,
        };
    }

    pub(super) fn add_history(&mut self, history: TimelineHistory) {
        self.histories.insert(history.timeline(), history);
    }

    /// Whether a segment is there as a whole.
    pub fn holds(&self, segment: SegmentName) -> bool {
        self.segments.contains(&segment)
    }

    /// Whether a segment is there unfinished.
    pub fn holds_partial(&self, segment: SegmentName) -> bool {
        self.partials.contains(&segment)
    }

    /// Whether a timeline's history file is there.
    pub fn holds_history(&self, timeline: Timeline) -> bool {
        self.histories.contains_key(&timeline)
    }

    /// How a timeline came to be; without ancestors where its history file is not there.
    pub fn history(&self, timeline: Timeline) -> TimelineHistory {
        self.histories
            .get(&timeline)
            .cloned()
            .unwrap_or_else(|| TimelineHistory::without_ancestors(timeline))
    }

    /// The timelines of which there is any WAL, or a history, in order.
    pub fn timelines(&self) -> Vec<Timeline> {
        let segments = self.segments.iter().chain(&self.partials);
        let timelines: BTreeSet<Timeline> = segments
            .map(|segment| segment.timeline)
            .chain(self.histories.keys().copied())
            .collect();
        timelines.into_iter().collect()
    }

    /// The whole segments of a timeline, in order.
    pub fn segments_of(&self, timeline: Timeline) -> impl DoubleEndedIterator<Item = SegmentName> {
        self.segments.range(all_of(timeline)).copied()
    }

    /// The unfinished segments of a timeline, in order.
    pub fn partials_of(&self, timeline: Timeline) -> impl DoubleEndedIterator<Item = SegmentName> {
        self.partials.range(all_of(timeline)).copied()
    }

    /// The whole segments of a timeline as runs without a gap: each one's first and last.
    pub fn runs_of(&self, timeline: Timeline) -> Vec<(SegmentName, SegmentName)> {
        let mut runs: Vec<(SegmentName, SegmentName)> = Vec::new();
        for segment in self.segments_of(timeline) {
            match runs.last_mut() {
                Some((_, last)) if last.number.next() == segment.number => *last = segment,
                _ => runs.push((segment, segment)),
            }
        }
        runs
    }

    /// The WAL on the path of a history from a position on, as far as it is here.
    ///
    /// The segment in which a timeline was left comes from the newest timeline that has it, as recovery would
    /// take it: it begins with a copy of the older one's (access/transam/xlogrecovery.c, XLogFileReadAnyTLI).
    pub fn contiguous(&self, history: &TimelineHistory, from: Lsn) -> Contiguous {
        let mut found = Contiguous {
            segments: Vec::new(),
            end: from,
            partial: None,
        };
        let path = history.path();
        let mut number = from.segment(self.size);
        while let Some((segment, end)) = self.newest_on(&path, number, &self.segments)
            && end > found.end
        {
            found.segments.push(segment);
            found.end = end;
            if end < number.next().start(self.size) {
                break;
            }
            number = number.next();
        }
        found.partial = self
            .newest_on(&path, number, &self.partials)
            .and_then(|(segment, end)| (end > found.end).then_some(segment));
        found
    }

    /// The file of the newest timeline on a path that has this segment, and how far it serves that path.
    fn newest_on(
        &self,
        path: &[WalRange],
        number: SegmentNumber,
        among: &BTreeSet<SegmentName>,
    ) -> Option<(SegmentName, Lsn)> {
        let (start, behind) = (number.start(self.size), number.next().start(self.size));
        path.iter()
            .rev()
            .filter(|range| range.start < behind && range.end > start)
            .map(|range| {
                let segment = SegmentName {
                    timeline: range.timeline,
                    number,
                };
                (segment, range.end.min(behind))
            })
            .find(|(segment, _)| among.contains(segment))
    }

    /// Every gap: segments that are missing on the way to one that is here, from any other one
    /// that is here. Where the archive begins, nothing is missing before.
    pub fn gaps(&self) -> Vec<Gap> {
        let mut all: Vec<Gap> = self
            .timelines()
            .into_iter()
            .flat_map(|timeline| self.gaps_on_the_way_to(timeline))
            .collect();
        all.sort();
        let mut gaps: Vec<Gap> = Vec::new();
        for gap in all {
            // The same gap may lie on the way to several timelines, as far as each goes.
            match gaps.last_mut() {
                Some(before)
                    if before.last >= gap.first && before.last.timeline == gap.first.timeline =>
                {
                    before.last = before.last.max(gap.last);
                }
                _ => gaps.push(gap),
            }
        }
        gaps
    }

    fn gaps_on_the_way_to(&self, timeline: Timeline) -> Vec<Gap> {
        let mut gaps = Vec::new();
        let Some(newest) = self.end_of(timeline) else {
            return gaps;
        };
        let mut anything_before = false;
        for range in self.history(timeline).path() {
            // The segment in which a timeline was left is the next one's.
            let begin = range.start.segment(self.size);
            let end = range.end.segment(self.size).min(newest).max(begin);
            let within = |segment: &SegmentName| (begin..end).contains(&segment.number);
            // Where there was an unfinished segment once, the whole one is missing.
            let mut held: BTreeMap<SegmentNumber, bool> = BTreeMap::new();
            let partials = self.partials_of(range.timeline).filter(within);
            held.extend(partials.map(|segment| (segment.number, false)));
            let whole = self.segments_of(range.timeline).filter(within);
            held.extend(whole.map(|segment| (segment.number, true)));
            let mut expected = begin;
            for (number, is_whole) in held.into_iter().chain([(end, false)]) {
                if anything_before && expected < number {
                    gaps.push(Gap {
                        first: SegmentName {
                            timeline: range.timeline,
                            number: expected,
                        },
                        last: SegmentName {
                            timeline: range.timeline,
                            number: SegmentNumber(number.0 - 1),
                        },
                    });
                }
                anything_before |= number < end;
                expected = if is_whole { number.next() } else { number };
            }
        }
        gaps
    }

    /// The segment up to which, but without, a timeline should be here.
    fn end_of(&self, timeline: Timeline) -> Option<SegmentNumber> {
        let whole = self.segments_of(timeline).next_back();
        let partial = self.partials_of(timeline).next_back();
        let behind = whole.map(|segment| segment.number.next());
        behind.max(partial.map(|segment| segment.number))
    }
}

fn all_of(timeline: Timeline) -> std::ops::RangeInclusive<SegmentName> {
    let bound = |number| SegmentName {
        timeline,
        number: SegmentNumber(number),
    };
    bound(0)..=bound(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const MEBIBYTE: u64 = 1 << 20;

    fn segment(timeline: u32, number: u64) -> SegmentName {
        SegmentName {
            timeline: Timeline(timeline),
            number: SegmentNumber(number),
        }
    }

    fn inventory(segments: &[(u32, u64)], histories: &[(u32, &str)]) -> Inventory {
        let mut inventory = Inventory::new(SegmentSize::new(MEBIBYTE).unwrap());
        for (timeline, number) in segments {
            inventory.add(WalFileKind::Segment, segment(*timeline, *number));
        }
        for (timeline, text) in histories {
            let history = TimelineHistory::parse(Timeline(*timeline), text).unwrap();
            inventory.add_history(history);
        }
        inventory
    }

    fn gaps(inventory: &Inventory) -> Vec<(u32, u64, u64)> {
        let tuple = |gap: Gap| {
            assert_eq!(gap.first.timeline, gap.last.timeline);
            (gap.first.timeline.0, gap.first.number.0, gap.last.number.0)
        };
        inventory.gaps().into_iter().map(tuple).collect()
    }

    #[test]
    fn a_gap_is_what_is_missing_in_between() {
        let mut archive = inventory(&[(1, 3), (1, 4), (1, 7), (1, 9)], &[]);
        assert_eq!(gaps(&archive), [(1, 5, 6), (1, 8, 8)]);
        assert_eq!(
            archive.runs_of(Timeline(1)),
            [
                (segment(1, 3), segment(1, 4)),
                (segment(1, 7), segment(1, 7)),
                (segment(1, 9), segment(1, 9)),
            ]
        );
        // What is unfinished begins behind what must be here.
        archive.add(WalFileKind::Partial, segment(1, 12));
        assert_eq!(gaps(&archive), [(1, 5, 6), (1, 8, 8), (1, 10, 11)]);
        assert_eq!(gaps(&inventory(&[], &[])), []);
        // Where one was unfinished, it should be whole since.
        let mut begun = inventory(&[], &[]);
        begun.add(WalFileKind::Partial, segment(1, 4));
        assert_eq!(gaps(&begun), []);
        begun.add(WalFileKind::Partial, segment(1, 6));
        assert_eq!(gaps(&begun), [(1, 4, 5)]);
        begun.add(WalFileKind::Segment, segment(1, 4));
        assert_eq!(gaps(&begun), [(1, 5, 5)]);
    }

    /// Timeline 2 left timeline 1 inside segment 5.
    const SECOND: (u32, &str) = (2, "1\t0/580000\tx\n");

    #[test]
    fn the_segment_of_a_switch_is_needed_on_the_new_timeline_only() {
        let whole = [(1, 3), (1, 4), (2, 5), (2, 6)];
        assert_eq!(gaps(&inventory(&whole, &[SECOND])), []);
        // Without the history nobody can tell that one led to the other.
        assert_eq!(gaps(&inventory(&[(1, 3), (2, 5)], &[])), []);
        assert_eq!(gaps(&inventory(&[(1, 3), (2, 5)], &[SECOND])), [(1, 4, 4)]);
        assert_eq!(gaps(&inventory(&[(1, 4), (2, 6)], &[SECOND])), [(2, 5, 5)]);
        // The archive may begin on the new timeline.
        assert_eq!(gaps(&inventory(&[(2, 6), (2, 7)], &[SECOND])), []);
        // The old timeline went on; each gap is told once.
        let both = [(1, 2), (1, 8), (2, 5)];
        assert_eq!(gaps(&inventory(&both, &[SECOND])), [(1, 3, 7)]);
        // A timeline that was left in the segment it began in.
        let third = (3, "1\t0/580000\tx\n2\t0/590000\tx\n");
        let quick = [(1, 4), (3, 5), (3, 6)];
        assert_eq!(gaps(&inventory(&quick, &[SECOND, third])), []);
    }

    #[test]
    fn contiguous_wal_follows_the_history() {
        let mut archive = inventory(
            &[(1, 3), (1, 4), (1, 5), (1, 6), (2, 5), (2, 6), (2, 8)],
            &[SECOND],
        );
        let on = |archive: &Inventory, timeline, from| {
            archive.contiguous(&archive.history(Timeline(timeline)), Lsn(from))
        };
        let found = on(&archive, 2, 0x38_0000);
        let path = [segment(1, 3), segment(1, 4), segment(2, 5), segment(2, 6)];
        assert_eq!(
            (found.segments.as_slice(), found.end),
            (&path[..], Lsn(0x70_0000))
        );
        assert_eq!(found.partial, None);
        assert_eq!(on(&archive, 1, 0x38_0000).end, Lsn(0x70_0000));
        // Nothing is here from there on.
        assert_eq!(on(&archive, 2, 0x70_0000).end, Lsn(0x70_0000));
        assert_eq!(on(&archive, 1, 0).segments, []);

        archive.add(WalFileKind::Partial, segment(2, 7));
        assert_eq!(on(&archive, 2, 0x38_0000).partial, Some(segment(2, 7)));
        assert_eq!(on(&archive, 1, 0x38_0000).partial, None);

        // Without its first segment, the new timeline is not reached.
        archive.segments.remove(&segment(2, 5));
        let found = on(&archive, 2, 0x38_0000);
        assert_eq!(found.segments.last(), Some(&segment(1, 5)));
        assert_eq!(found.end, Lsn(0x58_0000));
        archive.add(WalFileKind::Partial, segment(2, 5));
        assert_eq!(on(&archive, 2, 0x38_0000).partial, Some(segment(2, 5)));
        archive.segments.remove(&segment(1, 5));
        assert_eq!(on(&archive, 2, 0x38_0000).end, Lsn(0x50_0000));
    }

    proptest! {
        /// Two timelines, the second one left the first in segment `switch`.
        #[test]
        fn without_gaps_the_whole_path_is_contiguous(
            first: HashSet<u8>, second: HashSet<u8>, switch in 1_u64..250,
        ) {
            let text = format!("1\t0/{:X}\tx\n", switch * MEBIBYTE + 99);
            let first = first.into_iter().map(u64::from).filter(|number| *number < switch);
            let second = second.into_iter().map(u64::from).filter(|number| *number >= switch);
            let held: Vec<(u32, u64)> =
                first.map(|number| (1, number)).chain(second.map(|number| (2, number))).collect();
            let mut archive = inventory(&held, &[(2, &text)]);
            // What is told to be missing is not there, and nothing is missing once it is.
            for gap in archive.gaps() {
                for number in gap.first.number.0..=gap.last.number.0 {
                    let missing = segment(gap.first.timeline.0, number);
                    prop_assert!(!archive.holds(missing));
                    archive.add(WalFileKind::Segment, missing);
                }
            }
            prop_assert_eq!(archive.gaps(), []);
            if let Some(newest) = archive.segments.last() {
                let oldest = held.iter().map(|(_, number)| *number).min().unwrap();
                let history = archive.history(newest.timeline);
                let found = archive.contiguous(&history, SegmentNumber(oldest).start(archive.size));
                prop_assert_eq!(found.end, newest.number.next().start(archive.size));
            }
        }
    }
}
