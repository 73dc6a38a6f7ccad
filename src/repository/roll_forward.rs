//! How far backups can be rolled forward with the WAL in the archive.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::history::TimelineHistory;
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::recovery::events::TransactionEnd;
use crate::pg::recovery::target::TargetTimeline;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::repository::backup_info::BackupInfo;
use crate::repository::layout::{BackupFolder, ServerFolder};
use crate::repository::wal_archive::{ClusterIdentity, Contiguous, Inventory, WalArchive};
use crate::repository::wal_path::{WalEnd, WalPath};
use crate::stored::master_key::Keyring;

/// The WAL archive of a server, and what it held when it was looked at.
pub struct HeldWal {
    archive: WalArchive,
    inventory: Inventory,
    keys: Keyring,
    /// The ends of WAL that were read, by the last segment's name: many backups share one.
    ends: HashMap<(Timeline, Lsn), WalEnd>,
}

/// The way of recovery from a backup, as far as there is WAL.
pub struct Way<'a> {
    /// The timelines that it goes along.
    pub history: TimelineHistory,
    /// The backup's own WAL, and the archive's behind it.
    pub path: WalPath<'a>,
    /// What recovery would need to go on, where there is more behind it.
    pub missing: Option<MissingWal>,
}

/// WAL that is missing although there is WAL behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingWal {
    /// The first position of it.
    pub start: Lsn,
    /// The position behind it.
    pub end: Lsn,
    /// The name of the first segment that is missing.
    pub first: String,
    /// The name of the last one.
    pub last: String,
}

impl MissingWal {
    /// The segments by their names: one, or the first and the last.
    pub fn segments(&self) -> String {
        if self.first == self.last {
            self.first.clone()
        } else {
            format!("{} … {}", self.first, self.last)
        }
    }
}

/// The last moment to which a backup can be rolled forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RollForward {
    /// The timeline that it ends on.
    pub timeline: Timeline,
    /// The position behind the last record.
    pub lsn: Lsn,
    /// When the last transaction ended, by the server's clock, if one did behind the backup.
    pub time: Option<Timestamp>,
}

/// How far whole segments lead from a backup, going by their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// The position behind them; where the archive has none of them, where the backup ends.
    pub end: Lsn,
    /// Whether an unfinished segment leads on.
    pub goes_on: bool,
    /// The segments that are missing then, although there is WAL behind them.
    pub missing: Option<String>,
}

impl HeldWal {
    /// Looks at the archive of a server; nothing where no WAL was ever stored.
    pub fn look(server: &ServerFolder, keys: Keyring) -> Result<Option<HeldWal>> {
        let Some(archive) = WalArchive::open(server, keys.clone())? else {
            return Ok(None);
        };
        Ok(Some(HeldWal {
            inventory: archive.inventory()?,
            archive,
            keys,
            ends: HashMap::new(),
        }))
    }

    /// The archive itself.
    pub fn archive(&self) -> &WalArchive {
        &self.archive
    }

    /// What the archive held.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// The size of its segments.
    pub fn segment_size(&self) -> SegmentSize {
        self.archive.cluster().segment_size
    }

    /// To which moment a backup can be rolled forward, along the newest timeline that descends from
    /// its own.
    pub fn roll_forward(
        &mut self,
        folder: &BackupFolder,
        info: &BackupInfo,
        interrupt: &Interrupt,
    ) -> Result<RollForward> {
        let history = self.history(info, TargetTimeline::Latest)?;
        self.roll_forward_along(folder, info, history, interrupt)
    }

    /// The same along a history that the backup lies on.
    pub fn roll_forward_along(
        &mut self,
        folder: &BackupFolder,
        info: &BackupInfo,
        history: TimelineHistory,
        interrupt: &Interrupt,
    ) -> Result<RollForward> {
        let way = self.way(folder, info, history)?;
        let last = (way.history.timeline(), way.path.end());
        let end = match self.ends.get(&last) {
            Some(end) => *end,
            None => way.read_end(info, interrupt)?,
        };
        let lsn = end.lsn.max(info.end_lsn);
        let before = Lsn(lsn.0.saturating_sub(1));
        let timeline = way.history.timeline_of(before);
        if end.time.is_some() {
            self.ends.insert(last, end);
        }
        Ok(RollForward {
            timeline,
            lsn,
            time: end.time,
        })
    }

    /// Whether it is the archive of a backup's cluster.
    pub fn is_of(&self, info: &BackupInfo) -> bool {
        ClusterIdentity::of_backup(info) == Some(self.archive.cluster())
    }

    /// How far whole segments lead from a backup along a history that it lies on. Nothing is read.
    pub fn reach(&self, info: &BackupInfo, history: &TimelineHistory) -> Reach {
        let contiguous = self
            .inventory
            .contiguous(history, self.archived_from(info, history));
        Reach {
            end: match contiguous.segments.is_empty() {
                true => info.end_lsn,
                false => contiguous.end,
            },
            goes_on: contiguous.partial.is_some(),
            missing: self
                .missing(history, &contiguous)
                .map(|missing| missing.segments()),
        }
    }

    /// From where on a backup needs archived WAL to be rolled forward.
    pub fn archived_from(&self, info: &BackupInfo, history: &TimelineHistory) -> Lsn {
        begin_of_archived(info, history, self.segment_size())
    }

    /// The history of the timeline that recovery of a backup goes to. The backup must lie on it.
    pub fn history(&self, info: &BackupInfo, wanted: TargetTimeline) -> Result<TimelineHistory> {
        self.refuse_strangers(info)?;
        let history = match wanted {
            TargetTimeline::Current => self.inventory.history(info.end_timeline),
            TargetTimeline::Number(timeline) => self.history_of(info, timeline)?,
            TargetTimeline::Latest => self.latest(info)?,
        };
        self.refuse_contradictions(&history)?;
        Ok(history)
    }

    /// No timeline has WAL of before it began: a history file that says so is not as the server wrote it.
    fn refuse_contradictions(&self, history: &TimelineHistory) -> Result<()> {
        let size = self.segment_size();
        for range in history.path() {
            let Some(first) = self.inventory.segments_of(range.timeline).next() else {
                continue;
            };
            let begun = range.start.segment(size);
            if first.number < begun {
                return Err(Error::damage(format!(
                    "timeline {} began at {}, as {} says, and the first WAL that the archive has of it is {}",
                    range.timeline,
                    range.start,
                    crate::pg::history::file_name(history.timeline()),
                    first.file_name(size)
                ))
                .hint("see which of the two is wrong: the server that began the timeline has the history file in its pg_wal"));
            }
        }
        Ok(())
    }

    fn history_of(&self, info: &BackupInfo, timeline: Timeline) -> Result<TimelineHistory> {
        let history = self.inventory.history(timeline);
        if lies_on(info, &history) {
            return Ok(history);
        }
        let left = history.switch_point(info.end_timeline);
        Err(match left {
            Some(left) => Error::failed(format!(
                "timeline {timeline} left timeline {} at {left}, and backup {} ends behind that, at {}",
                info.end_timeline, info.backup, info.end_lsn
            ))
            .hint("choose a backup that ended before; newest finds it"),
            None if timeline.0 > 1 && !self.inventory.holds_history(timeline) => Error::failed(format!(
                "the archive has no history file of timeline {timeline}, so nobody can tell where it comes from"
            ))
            .hint(format!("it holds {}", self.timelines())),
            None => Error::failed(format!(
                "timeline {timeline} does not descend from timeline {}, which backup {} is on",
                info.end_timeline, info.backup
            ))
            .hint(format!("choose a backup from before the two parted, or another timeline: the archive holds {}", self.timelines())),
        })
    }

    /// The highest number of all that descend from the backup's timeline, as findNewestTimeLine
    /// has it (access/transam/timeline.c). One whose history is lost might be it too.
    fn latest(&self, info: &BackupInfo) -> Result<TimelineHistory> {
        let timelines = self.inventory.timelines();
        let newer = timelines
            .iter()
            .rev()
            .copied()
            .take_while(|timeline| *timeline > info.end_timeline);
        for timeline in newer {
            if !self.inventory.holds_history(timeline) {
                return Err(Error::damage(format!(
                    "the archive holds WAL of timeline {timeline}, but not {}, so nobody can tell whether it goes on from backup {}",
                    crate::pg::history::file_name(timeline),
                    info.backup
                ))
                .hint("put that file into the archive with pgkeep wal push, or say which timeline to follow with timeline="));
            }
            let history = self.inventory.history(timeline);
            if lies_on(info, &history) {
                return Ok(history);
            }
        }
        Ok(self.inventory.history(info.end_timeline))
    }

    /// A timeline that a server which restores a backup takes for the newest one, though it does not descend from the
    /// backup's: the last one before a number without a history file (access/transam/timeline.c, findNewestTimeLine).
    pub fn stray(&self, info: &BackupInfo) -> Option<Timeline> {
        let numbers = (info.end_timeline.0.checked_add(1)?..).map(Timeline);
        let newest = numbers
            .take_while(|timeline| self.inventory.holds_history(*timeline))
            .last()?;
        let is_stray = !lies_on(info, &self.inventory.history(newest));
        is_stray.then_some(newest)
    }

    /// The timelines that a way leaves behind a backup although they go on in the archive, by more than the segment that
    /// each is left in: somebody may be writing them still.
    pub fn left_behind(&self, info: &BackupInfo, history: &TimelineHistory) -> Vec<LeftBehind> {
        let size = self.archive.cluster().segment_size;
        let goes_on = |timeline: Timeline| {
            let left = history.switch_point(timeline)?;
            let last = self.inventory.segments_of(timeline).next_back()?;
            (last.number > left.segment(size)).then(|| LeftBehind {
                timeline,
                left,
                last: last.file_name(size),
            })
        };
        let path = history.path().into_iter().map(|range| range.timeline);
        path.filter(|timeline| *timeline >= info.end_timeline)
            .filter_map(goes_on)
            .collect()
    }

    fn timelines(&self) -> String {
        let timelines: Vec<String> = self
            .inventory
            .timelines()
            .iter()
            .map(|timeline| format!("timeline {timeline}"))
            .collect();
        timelines.join(", ")
    }

    fn refuse_strangers(&self, info: &BackupInfo) -> Result<()> {
        let held = self.archive.cluster();
        match ClusterIdentity::of_backup(info) {
            Some(of_backup) if of_backup == held => Ok(()),
            Some(of_backup) => Err(Error::failed(format!(
                "backup {} is of {of_backup}, and the archive holds the WAL of {held}",
                info.backup
            ))
            .hint("without a position, it is restored with its own WAL alone")),
            None => Err(Error::damage(format!(
                "backup {} is of no known kind",
                info.backup
            ))),
        }
    }

    /// The way from a backup along a history that it lies on.
    pub fn way(
        &self,
        folder: &BackupFolder,
        info: &BackupInfo,
        history: TimelineHistory,
    ) -> Result<Way<'_>> {
        let size = self.archive.cluster().segment_size;
        let contiguous = self
            .inventory
            .contiguous(&history, begin_of_archived(info, &history, size));
        let missing = self.missing(&history, &contiguous);
        let archived = self.archived(&history, &contiguous);
        Ok(Way {
            history,
            path: WalPath::of_backup(folder, info, &self.keys)?.then(archived),
            missing,
        })
    }

    /// The way along a history from where a segment begins, with no backup to begin with.
    pub fn way_from(&self, history: TimelineHistory, from: Lsn) -> Way<'_> {
        let contiguous = self.inventory.contiguous(&history, from);
        let missing = self.missing(&history, &contiguous);
        Way {
            path: self.archived(&history, &contiguous),
            history,
            missing,
        }
    }

    /// Where the first segment begins that is held on the way of a history.
    pub fn beginning(&self, history: &TimelineHistory) -> Option<Lsn> {
        let size = self.segment_size();
        let first = SegmentNumber(0);
        let held = |name| self.inventory.holds(name) || self.inventory.holds_partial(name);
        if held(name_on(history, first, size)) {
            return Some(first.start(size));
        }
        let number = self.next_behind(history, first, size)?;
        Some(number.start(size))
    }

    fn archived(&self, history: &TimelineHistory, contiguous: &Contiguous) -> WalPath<'_> {
        let left = contiguous
            .partial
            .and_then(|partial| history.switch_point(partial.timeline));
        WalPath::of_archive(&self.archive, contiguous, left, &self.keys)
    }

    /// What is missing behind contiguous WAL.
    ///
    /// That may be no more than the first segment of the next timeline. Without it, recovery would
    /// not end there: it takes any ancestor's segment instead, and goes on along that
    /// one's WAL (access/transam/xlogrecovery.c, XLogFileReadAnyTLI).
    fn missing(&self, history: &TimelineHistory, contiguous: &Contiguous) -> Option<MissingWal> {
        let size = self.archive.cluster().segment_size;
        let reached = contiguous.end;
        let number = reached.segment(size);
        let next = name_on(history, number, size);
        let before = history.timeline_of(Lsn(reached.0.saturating_sub(1)));
        let lacks_timeline = next.timeline > before && !self.inventory.holds_partial(next);
        let end = match self.next_behind(history, number, size) {
            Some(behind) => behind,
            None if lacks_timeline => number.next(),
            None => return None,
        };
        let last = name_on(history, SegmentNumber(end.0.saturating_sub(1)), size);
        Some(MissingWal {
            start: reached,
            end: end.start(size),
            first: next.file_name(size),
            last: last.file_name(size),
        })
    }

    /// The first segment on the way of a history that is held although this one before is not.
    fn next_behind(
        &self,
        history: &TimelineHistory,
        before: SegmentNumber,
        size: SegmentSize,
    ) -> Option<SegmentNumber> {
        history
            .path()
            .into_iter()
            .flat_map(|range| {
                let last = range.end.previous_segment(size);
                let on_the_way = move |segment: &SegmentName| {
                    segment.number > before
                        && segment.number >= range.start.segment(size)
                        && segment.number <= last
                };
                let whole = self.inventory.segments_of(range.timeline);
                let unfinished = self.inventory.partials_of(range.timeline);
                whole.chain(unfinished).filter(on_the_way)
            })
            .map(|segment| segment.number)
            .min()
    }
}

/// A timeline that goes on where recovery leaves it for another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftBehind {
    /// The timeline.
    pub timeline: Timeline,
    /// Where it is left.
    pub left: Lsn,
    /// The last segment of it that is held.
    pub last: String,
}

impl Way<'_> {
    /// Where the WAL behind a backup ends, and when its last transaction did.
    pub fn read_end(&self, info: &BackupInfo, interrupt: &Interrupt) -> Result<WalEnd> {
        let all = info.end_lsn..Lsn(u64::MAX);
        let major = ClusterIdentity::of_backup(info).map(|cluster| cluster.major);
        self.path.read_end(all, interrupt, &|record| {
            TransactionEnd::of(record, major?).map(|end| end.time)
        })
    }
}

/// Whether a backup is on the way of a history: that did not leave its timeline before it ended.
pub fn lies_on(info: &BackupInfo, history: &TimelineHistory) -> bool {
    let end = Lsn(info.end_lsn.0.saturating_sub(1));
    history.timeline_of(end) == info.end_timeline
}

/// The name of a segment on the way of a history. Where a timeline was left inside of it, the next one's begins with
/// a copy of what it needs of that.
fn name_on(history: &TimelineHistory, number: SegmentNumber, size: SegmentSize) -> SegmentName {
    let last_byte = Lsn(number.next().start(size).0.saturating_sub(1));
    SegmentName {
        timeline: history.timeline_of(last_byte),
        number,
    }
}

/// The first position that no segment in the backup itself serves. A primary left its last
/// segment, so that the backup has the whole of it; unless another timeline went on inside of it.
fn begin_of_archived(info: &BackupInfo, history: &TimelineHistory, size: SegmentSize) -> Lsn {
    let next = info.end_lsn.previous_segment(size).next().start(size);
    let is_left = history
        .switch_point(info.end_timeline)
        .is_some_and(|left| left < next);
    if info.from_standby || is_left {
        info.end_lsn
    } else {
        next
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::pg::wal_file::WalFileName;
    use crate::repository::backup_info::tests::example;
    use crate::stored::coding::Coding;

    const SIZE: u64 = 16 << 20;

    /// A backup on timeline 1 that ends in segment 5, and an archive of names alone.
    struct Place {
        _base: tempfile::TempDir,
        folder: BackupFolder,
        info: BackupInfo,
        held: HeldWal,
    }

    fn place(files: &[(&str, &str)]) -> Place {
        let base = tempfile::tempdir().unwrap();
        let server = ServerFolder::new(base.path(), "primary");
        let mut info = example("20240928065644");
        info.wal_segment_size = SIZE;
        info.start_lsn = Lsn(5 * SIZE + 0x28);
        info.end_lsn = Lsn(5 * SIZE + 0x100);
        let cluster = ClusterIdentity::of_backup(&info).unwrap();
        let keys = Keyring::new(None);
        let archive = WalArchive::claim(&server, "primary", cluster, keys.clone()).unwrap();
        for (name, content) in files {
            let mut file = archive.begin(&Coding::PLAIN).unwrap();
            file.append(content.as_bytes()).unwrap();
            let name = WalFileName::parse(name).unwrap();
            archive.store(&name, file.finish().unwrap()).unwrap();
        }
        let folder = server.backup(info.backup);
        let segment = folder.stored("data/pg_wal/000000010000000000000005");
        segment.create_parent().unwrap();
        segment.replace(b"").unwrap();
        Place {
            _base: base,
            folder,
            info,
            held: HeldWal::look(&server, keys).unwrap().unwrap(),
        }
    }

    impl Place {
        fn timeline(&self, wanted: TargetTimeline) -> Result<u32> {
            Ok(self.held.history(&self.info, wanted)?.timeline().0)
        }

        fn missing(&self, wanted: TargetTimeline) -> Option<(String, u64, u64)> {
            let history = self.held.history(&self.info, wanted).unwrap();
            let way = self.held.way(&self.folder, &self.info, history).unwrap();
            let missing = way.missing?;
            Some((
                missing.segments(),
                missing.start.0 / SIZE,
                missing.end.0 / SIZE,
            ))
        }
    }

    const SIX: (&str, &str) = ("000000010000000000000006", "");
    const SEVEN: (&str, &str) = ("000000010000000000000007", "");
    const NINE: (&str, &str) = ("000000010000000000000009", "");
    /// Timeline 2 left timeline 1 in segment 7; timeline 3 did in segment 5, before the backup's end.
    const SECOND: (&str, &str) = ("00000002.history", "1\t0/7000100\tx\n");
    const THIRD: (&str, &str) = ("00000003.history", "1\t0/5000080\tx\n");

    #[test]
    fn the_newest_timeline_that_descends_from_the_backup_is_followed() {
        let latest = |files: &[_]| place(files).timeline(TargetTimeline::Latest).unwrap();
        assert_eq!(latest(&[SIX]), 1);
        assert_eq!(latest(&[SIX, SECOND]), 2);
        assert_eq!(latest(&[SIX, SECOND, THIRD]), 2);
        let place = place(&[SIX, SECOND, THIRD]);
        assert_eq!(place.timeline(TargetTimeline::Current).unwrap(), 1);
        assert_eq!(
            place.timeline(TargetTimeline::Number(Timeline(2))).unwrap(),
            2
        );
    }

    #[test]
    fn a_timeline_that_goes_on_is_not_left_in_silence() {
        let left_behind = |files: &[_], wanted| {
            let place = place(files);
            let history = place.held.history(&place.info, wanted).unwrap();
            let left = place.held.left_behind(&place.info, &history);
            let each = left.into_iter().map(|left| (left.timeline.0, left.last));
            each.collect::<Vec<_>>()
        };
        let eight = ("000000010000000000000008", "");
        let latest = |files: &[_]| left_behind(files, TargetTimeline::Latest);
        assert_eq!(latest(&[SIX, SEVEN, SECOND]), []);
        assert_eq!(
            latest(&[SIX, SEVEN, eight, SECOND]),
            [(1, eight.0.to_owned())]
        );
        let current = left_behind(&[SIX, SEVEN, eight, SECOND], TargetTimeline::Current);
        assert_eq!(current, []);
    }

    #[test]
    fn a_timeline_the_backup_is_not_on_is_refused() {
        let place = place(&[SIX, SECOND, THIRD, ("000000040000000000000009", "")]);
        for (timeline, why) in [
            (3, "left timeline 1 at 0/5000080"),
            (4, "no history file"),
            (5, "no history file"),
        ] {
            let wanted = TargetTimeline::Number(Timeline(timeline));
            let error = place.timeline(wanted).unwrap_err();
            assert!(error.message().contains(why), "{error}");
        }
        // Nobody can tell whether it is not the newest one that descends.
        let error = place.timeline(TargetTimeline::Latest).unwrap_err();
        assert!(error.message().contains("00000004.history"), "{error}");
    }

    #[test]
    fn what_is_missing_is_told_by_name() {
        let latest = |files: &[_]| place(files).missing(TargetTimeline::Latest);
        assert_eq!(latest(&[]), None);
        assert_eq!(latest(&[SIX, SEVEN]), None);
        assert_eq!(
            latest(&[SEVEN]),
            Some(("000000010000000000000006".to_owned(), 6, 7))
        );
        assert_eq!(
            latest(&[SIX, NINE]).map(|missing| missing.0),
            Some("000000010000000000000007 … 000000010000000000000008".to_owned())
        );
        // What is unfinished leads nowhere without what is before it.
        assert_eq!(
            latest(&[("000000010000000000000007.partial", "")]),
            Some(("000000010000000000000006".to_owned(), 6, 7))
        );
        // The first timeline's segments behind the switch are not on the way, but recovery would take them.
        let first_of_second = "000000020000000000000007".to_owned();
        assert_eq!(
            latest(&[SIX, SEVEN, NINE, SECOND]),
            Some((first_of_second.clone(), 7, 8))
        );
        for second in [
            "000000020000000000000007",
            "000000020000000000000007.partial",
        ] {
            assert_eq!(latest(&[SIX, SEVEN, NINE, SECOND, (second, "")]), None);
        }
        let second = ("000000020000000000000008", "");
        assert_eq!(
            latest(&[SIX, second, SECOND]),
            Some((first_of_second, 7, 8))
        );
    }

    #[test]
    fn what_the_archive_begins_with_is_a_way_without_a_backup() {
        let beginning = |files: &[_], timeline| {
            let place = place(files);
            let history = place.held.inventory().history(Timeline(timeline));
            let from = place.held.beginning(&history)?;
            let missing = place.held.way_from(history, from).missing;
            Some((from.0 / SIZE, missing.map(|missing| missing.segments())))
        };
        let first = ("000000010000000000000000", "");
        let gap = Some("000000010000000000000008".to_owned());
        assert_eq!(beginning(&[], 1), None);
        assert_eq!(beginning(&[SIX, SEVEN], 1), Some((6, None)));
        assert_eq!(beginning(&[SEVEN, NINE], 1), Some((7, gap)));
        assert_eq!(beginning(&[first], 1), Some((0, None)));
        // What is behind where the first timeline was left, is not on the way.
        assert_eq!(beginning(&[NINE, SECOND], 2), None);
    }

    #[test]
    fn another_clusters_archive_is_no_way() {
        let mut place = place(&[SIX]);
        place.info.system_identifier += 1;
        let error = place.timeline(TargetTimeline::Latest).unwrap_err();
        assert!(error.message().contains("holds the WAL of"), "{error}");
    }
}
