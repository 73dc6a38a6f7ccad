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
        let tip = Ancestor {
            timeline: self.timeline,
            end: Lsn(u64::MAX),
        };
        let mut ranges = Vec::new();
        let mut begin = Lsn::default();
        for entry in self.ancestors.iter().chain([&tip]) {
            let is_last = entry.timeline == end_timeline;
            let range = WalRange {
                timeline: entry.timeline,
                start: begin.max(start),
                end: if is_last { stop } else { entry.end.min(stop) },
            };
            if range.start < range.end {
                ranges.push(range);
            }
            if is_last {
                break;
            }
            begin = entry.end;
        }
        // The loop left `begin` where the end timeline begins.
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
