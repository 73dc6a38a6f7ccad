//! Timeline history files, `00000002.history`
//! (access/transam/timeline.c, readTimeLineHistory).
//!
//! One line for each ancestor, oldest first: its timeline, a tab, the position
//! where it was left, and free text. Empty lines and lines that begin with `#`
//! mean nothing. Timeline 1 has no such file.

use crate::error::{Error, Result};
use crate::pg::lsn::{Lsn, Timeline};

/// The name of a timeline's history file.
pub fn file_name(timeline: Timeline) -> String {
    format!("{:08X}.history", timeline.0)
}

/// The timeline whose history file has this name; nothing for other names
/// (IsTLHistoryFileName).
pub fn timeline_in_file_name(name: &str) -> Option<Timeline> {
    let digits = name.strip_suffix(".history")?;
    let timeline = Timeline(u32::from_str_radix(digits, 16).ok()?);
    (timeline.0 != 0 && file_name(timeline) == name).then_some(timeline)
}

/// A stretch of WAL on one timeline, from `start` up to but without `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline that the WAL was written on.
    pub timeline: Timeline,
    /// The first position.
    pub start: Lsn,
    /// The position behind the last.
    pub end: Lsn,
}

/// How a timeline came to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: Timeline,
    ancestors: Vec<Ancestor>,
}

/// A timeline and where its child left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ancestor {
    timeline: Timeline,
    end: Lsn,
}

impl TimelineHistory {
    /// The history of a timeline without ancestors, as the first one is.
    pub fn without_ancestors(timeline: Timeline) -> TimelineHistory {
        TimelineHistory {
            timeline,
            ancestors: Vec::new(),
        }
    }

    /// Reads the content of the history file of `timeline`.
    pub fn parse(timeline: Timeline, text: &str) -> Result<TimelineHistory> {
        let mut history = TimelineHistory::without_ancestors(timeline);
        for line in text.lines() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let invalid = |why: &str| {
                Error::damage(format!(
                    "timeline history file {} is damaged: {why}: \"{line}\"",
                    file_name(timeline)
                ))
            };
            let ancestor = ancestor(line)
                .ok_or_else(|| invalid("a line is not a timeline and a switch point"))?;
            let last = history.ancestors.last();
            if last.is_some_and(|last| ancestor.timeline <= last.timeline) {
                return Err(invalid("its timelines do not increase"));
            }
            if last.is_some_and(|last| ancestor.end < last.end) {
                return Err(invalid("its switch points go backwards"));
            }
            if ancestor.timeline >= timeline {
                return Err(invalid("it has an ancestor that is no older"));
            }
            history.ancestors.push(ancestor);
        }
        Ok(history)
    }

    /// The timeline whose history this is.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// All WAL of the history by timelines, the oldest first: from the beginning of WAL to the end
    /// of what can ever be written.
    pub fn path(&self) -> Vec<WalRange> {
        let mut start = Lsn::default();
        let tip = Ancestor {
            timeline: self.timeline,
            end: Lsn(u64::MAX),
        };
        let mut path = Vec::with_capacity(self.ancestors.len() + 1);
        for Ancestor { timeline, end } in self.ancestors.iter().copied().chain([tip]) {
            path.push(WalRange {
                timeline,
                start,
                end,
            });
            start = end;
        }
        path
    }

    /// The timeline it came from, and where it left that; nothing for one without ancestors.
    pub fn parent(&self) -> Option<(Timeline, Lsn)> {
        let Ancestor { timeline, end } = *self.ancestors.last()?;
        Some((timeline, end))
    }

    /// Where the history left a timeline; nothing for the timeline itself and
    /// for those that are no part of the history (tliSwitchPoint).
    pub fn switch_point(&self, timeline: Timeline) -> Option<Lsn> {
        let mut ancestors = self.ancestors.iter();
        let ancestor = ancestors.find(|ancestor| ancestor.timeline == timeline)?;
        Some(ancestor.end)
    }

    /// Whether a timeline is this one or an ancestor of it (tliInHistory).
    pub fn contains(&self, timeline: Timeline) -> bool {
        timeline == self.timeline || self.switch_point(timeline).is_some()
    }

    /// The timeline that the byte at a position was written on
    /// (tliOfPointInHistory).
    pub fn timeline_of(&self, position: Lsn) -> Timeline {
        let mut ancestors = self.ancestors.iter();
        ancestors
            .find(|ancestor| position < ancestor.end)
            .map_or(self.timeline, |ancestor| ancestor.timeline)
    }

    /// The WAL from `start` to `stop` by timelines, the newest first, for a
    /// backup that ended on `end_timeline` (backup/backup_manifest.c,
    /// AddWALInfoToBackupManifest). No range is empty.
    pub fn ranges(&self, start: Lsn, stop: Lsn, end_timeline: Timeline) -> Result<Vec<WalRange>> {
        if !self.contains(end_timeline) {
            return Err(Error::failed(format!(
                "timeline {end_timeline} is no part of the history of timeline {}",
                self.timeline
            )));
        }
        let mut ranges = Vec::new();
        let mut begin = Lsn::default();
        for entry in self.path() {
            let is_last = entry.timeline == end_timeline;
            let range = WalRange {
                timeline: entry.timeline,
                start: entry.start.max(start),
                end: if is_last { stop } else { entry.end.min(stop) },
            };
            if range.start < range.end {
                ranges.push(range);
            }
            if is_last {
                begin = entry.start;
                break;
            }
        }
        if ranges.is_empty() || stop < begin {
            return Err(Error::failed(format!(
                "there is no WAL on timeline {end_timeline} from {start} to {stop}"
            )));
        }
        ranges.reverse();
        Ok(ranges)
    }
}

fn ancestor(line: &str) -> Option<Ancestor> {
    let mut fields = line.split_whitespace();
    let timeline = Timeline(fields.next()?.parse().ok()?);
    let end = fields.next()?.parse().ok()?;
    (timeline.0 != 0).then_some(Ancestor { timeline, end })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const FILE: &str = "1\t0/3000000\tno recovery target specified\n\n\
                        # a comment\n2\t0/5000098\tbefore 2026-11-22 13:10:35+00\n";

    fn history() -> TimelineHistory {
        TimelineHistory::parse(Timeline(4), FILE).unwrap()
    }

    fn range(timeline: u32, start: u64, end: u64) -> WalRange {
        WalRange {
            timeline: Timeline(timeline),
            start: Lsn(start),
            end: Lsn(end),
        }
    }

    #[test]
    fn knows_the_timeline_of_a_position() {
        for (position, timeline) in [
            (0, 1),
            (0x02FF_FFFF, 1),
            (0x0300_0000, 2),
            (0x0500_0097, 2),
            (0x0500_0098, 4),
            (u64::MAX, 4),
        ] {
            assert_eq!(history().timeline_of(Lsn(position)), Timeline(timeline));
        }
        assert_eq!(
            TimelineHistory::without_ancestors(Timeline(1)).timeline_of(Lsn(1)),
            Timeline(1)
        );
    }

    #[test]
    fn knows_its_ancestors() {
        let history = history();
        assert_eq!(history.parent(), Some((Timeline(2), Lsn(0x0500_0098))));
        assert_eq!(history.switch_point(Timeline(2)), Some(Lsn(0x0500_0098)));
        assert_eq!(history.switch_point(Timeline(4)), None);
        for (timeline, is_part) in [(1, true), (2, true), (3, false), (4, true), (5, false)] {
            assert_eq!(history.contains(Timeline(timeline)), is_part, "{timeline}");
        }
    }

    #[test]
    fn its_path_goes_through_all_timelines() {
        assert_eq!(
            history().path(),
            [
                range(1, 0, 0x0300_0000),
                range(2, 0x0300_0000, 0x0500_0098),
                range(4, 0x0500_0098, u64::MAX),
            ]
        );
    }

    #[test]
    fn splits_wal_by_timelines_newest_first() {
        let ranges = |start, stop, end_timeline| {
            history()
                .ranges(Lsn(start), Lsn(stop), Timeline(end_timeline))
                .unwrap()
        };
        assert_eq!(
            ranges(0x0200_0028, 0x0600_0000, 4),
            [
                range(4, 0x0500_0098, 0x0600_0000),
                range(2, 0x0300_0000, 0x0500_0098),
                range(1, 0x0200_0028, 0x0300_0000),
            ]
        );
        assert_eq!(
            ranges(0x0500_0098, 0x0600_0000, 4),
            [range(4, 0x0500_0098, 0x0600_0000)]
        );
        assert_eq!(ranges(0x28, 0x100, 1), [range(1, 0x28, 0x100)]);
        // A timeline may go on after its child has left it.
        assert_eq!(
            ranges(0x0200_0028, 0x0700_0000, 2),
            [
                range(2, 0x0300_0000, 0x0700_0000),
                range(1, 0x0200_0028, 0x0300_0000)
            ]
        );
        // A backup that stopped where its last timeline begins needs none of it.
        assert_eq!(
            ranges(0x0400_0000, 0x0500_0098, 4),
            [range(2, 0x0400_0000, 0x0500_0098)]
        );
    }

    #[test]
    fn refuses_ranges_outside_of_the_history() {
        for (start, stop, end_timeline) in [
            (0x28, 0x100, 3),
            (0x100, 0x28, 1),
            (0x28, 0x28, 1),
            (0x28, 0x0400_0000, 4),
        ] {
            let ranges = history().ranges(Lsn(start), Lsn(stop), Timeline(end_timeline));
            assert!(ranges.is_err(), "{start:x} {stop:x} {end_timeline}");
        }
    }

    #[test]
    fn refuses_damaged_files() {
        for text in [
            "one\t0/3000000\t",
            "1",
            "1\t3000000",
            "0\t0/3000000",
            "4\t0/3000000",
            "2\t0/3000000\n1\t0/4000000",
            "1\t0/3000000\n1\t0/4000000",
            "1\t0/4000000\n2\t0/3000000",
        ] {
            let error = TimelineHistory::parse(Timeline(4), text).unwrap_err();
            assert!(error.message().contains("00000004.history"), "{error}");
        }
    }

    #[test]
    fn names_of_history_files() {
        assert_eq!(file_name(Timeline(0x1F)), "0000001F.history");
        for name in [
            "1F.history",
            "0000001f.history",
            "00000000.history",
            "+0000001.history",
            "0000001F",
        ] {
            assert_eq!(timeline_in_file_name(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn file_names_there_and_back(timeline in 1_u32..) {
            let timeline = Timeline(timeline);
            prop_assert_eq!(timeline_in_file_name(&file_name(timeline)), Some(timeline));
        }

        #[test]
        fn never_panics(text: String) {
            let _ = TimelineHistory::parse(Timeline(9), &text);
            let _ = timeline_in_file_name(&text);
        }

        #[test]
        fn ranges_join_without_gaps(
            switches in prop::collection::vec(1_u64..1000, 0..5),
            start in 0_u64..3000,
            length in 1_u64..3000,
        ) {
            let mut history = TimelineHistory::without_ancestors(Timeline(switches.len() as u32 + 1));
            let mut end = 0;
            for (index, switch) in switches.iter().enumerate() {
                end += switch;
                history.ancestors.push(Ancestor { timeline: Timeline(index as u32 + 1), end: Lsn(end) });
            }
            let stop = Lsn(start + length);
            let end_timeline = history.timeline_of(Lsn(stop.0 - 1));
            let ranges = history.ranges(Lsn(start), stop, end_timeline).unwrap();
            prop_assert_eq!(ranges[0].end, stop);
            prop_assert_eq!(ranges[ranges.len() - 1].start, Lsn(start));
            for range in &ranges {
                prop_assert_eq!(history.timeline_of(range.start), range.timeline);
                prop_assert_eq!(history.timeline_of(Lsn(range.end.0 - 1)), range.timeline);
            }
            for pair in ranges.windows(2) {
                prop_assert_eq!(pair[1].end, pair[0].start);
            }
        }
    }
}
