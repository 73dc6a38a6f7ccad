//! From when to when any moment can be restored.
//!
//! A backup is consistent where it ends, and from there on archived WAL leads from moment to moment, as far as there is no
//! gap. Without archived WAL behind it, it is that one moment.

use jiff::{SignedDuration, Timestamp};

use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::pg::history::TimelineHistory;
use crate::pg::lsn::{Lsn, Timeline};
use crate::repository::backup_info::BackupInfo;
use crate::repository::catalogue::Catalogue;
use crate::repository::identifier::Identifier;
use crate::repository::layout::BackupFolder;
use crate::repository::roll_forward::{HeldWal, lies_on};

/// Moments of a timeline without a gap in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The timeline.
    pub timeline: Timeline,
    /// The first backup that leads through it.
    pub backup: Identifier,
    /// The first position.
    pub from: Lsn,
    /// When the server was there, at the latest.
    pub from_time: Option<Timestamp>,
    /// The last position.
    pub to: Lsn,
    /// When the last transaction before it ended; of a backup without archived WAL, when that had ended.
    pub to_time: Option<Timestamp>,
    /// Why the last position cannot be told more closely.
    pub unreadable: Option<String>,
}

/// Moments of a timeline that cannot be restored, though there are some before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    /// The timeline.
    pub timeline: Timeline,
    /// The last position before it, and its time.
    pub after: (Lsn, Option<Timestamp>),
    /// The first position behind it, if there is any, and its time.
    pub before: Option<(Lsn, Option<Timestamp>)>,
    /// The segments that are missing: a name, or the first and the last.
    pub missing: Option<String>,
    /// Backups that would make it smaller, but are not valid.
    pub invalid: Vec<Identifier>,
}

/// All that can be restored of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Windows {
    /// What can be, the timelines in their order, the oldest first; before them backups of another cluster than the archive's.
    pub windows: Vec<Window>,
    /// What cannot be, in the same order.
    pub holes: Vec<Hole>,
}

impl Windows {
    /// What was found, in order, each window with the segments that are missing behind it; before it what has nothing to do
    /// with it.
    fn of(
        found: Vec<(Window, Option<String>)>,
        others: Vec<(Window, Option<String>)>,
        catalogue: &Catalogue,
    ) -> Windows {
        Windows {
            holes: holes(&found, catalogue),
            windows: others
                .into_iter()
                .chain(found)
                .map(|(window, _)| window)
                .collect(),
        }
    }

    /// The last window of the newest timeline: where a server is restored to that is lost.
    pub fn newest(&self) -> Option<&Window> {
        self.windows.last()
    }

    /// The first moment of all.
    pub fn oldest(&self) -> Option<&Window> {
        self.windows.iter().min_by_key(|window| window.from_time)
    }

    /// How much would be lost if the server were lost now: what it did since the last transaction that is here.
    pub fn age(&self, now: Timestamp) -> Option<SignedDuration> {
        let last = self.newest()?.to_time?;
        Some(now.duration_since(last).max(SignedDuration::ZERO))
    }
}

/// A backup that is valid, and where it lies.
type Valid<'a> = (&'a BackupFolder, &'a BackupInfo);

/// A stretch of one timeline, from a backup on as far as there are segments.
struct Stretch<'a> {
    first: &'a BackupInfo,
    /// The newest one in it, from which its end is told with the least to read.
    last: Valid<'a>,
    from: Lsn,
    reach: Lsn,
    missing: Option<String>,
}

/// Finds out what can be restored. Of the WAL no more is read than it takes to find the last transaction of each window.
pub fn look(
    catalogue: &Catalogue,
    held: Option<&mut HeldWal>,
    interrupt: &Interrupt,
) -> Result<Windows> {
    let valid: Vec<Valid<'_>> = catalogue
        .valid()
        .filter_map(|backup| Some((&backup.folder, backup.info.as_ref().ok()?)))
        .collect();
    let moments = |valid: &[Valid<'_>]| -> Vec<(Window, Option<String>)> {
        let each = valid.iter();
        each.map(|(_, info)| (moment(info), None)).collect()
    };
    let Some(held) = held else {
        let mut found = moments(&valid);
        found.sort_by_key(|(window, _)| (window.timeline, window.from));
        return Ok(Windows::of(found, Vec::new(), catalogue));
    };
    let (own, strangers): (Vec<Valid<'_>>, Vec<Valid<'_>>) =
        valid.iter().partition(|(_, info)| held.is_of(info));
    let mut found: Vec<(Window, Option<String>)> = Vec::new();
    let mut timelines = held.inventory().timelines();
    timelines.extend(own.iter().map(|(_, info)| info.end_timeline));
    timelines.sort();
    timelines.dedup();
    for timeline in timelines {
        let history = held.inventory().history(timeline);
        for stretch in stretches(held, &own, &history) {
            let window = window(held, &stretch, &history, interrupt)?;
            match found.last_mut() {
                // An unfinished segment, whose end its name does not tell, leads to the next one.
                Some((before, missing))
                    if before.timeline == timeline && before.to >= window.from =>
                {
                    before.to = before.to.max(window.to);
                    before.to_time = window.to_time;
                    before.unreadable = window.unreadable;
                    *missing = stretch.missing;
                }
                _ => found.push((window, stretch.missing)),
            }
        }
    }
    // Backups of another cluster than the archive's are moments, whose positions say nothing of the others'.
    Ok(Windows::of(found, moments(&strangers), catalogue))
}

/// The stretches of the last timeline of a history.
fn stretches<'a>(
    held: &HeldWal,
    valid: &[Valid<'a>],
    history: &TimelineHistory,
) -> Vec<Stretch<'a>> {
    let timeline = history.timeline();
    let begin = history.path().last().map_or(Lsn(0), |range| range.start);
    let mut on_it: Vec<Valid<'a>> = valid
        .iter()
        .filter(|(_, info)| lies_on(info, history))
        .copied()
        .collect();
    on_it.sort_by_key(|(_, info)| info.end_lsn);
    let mut stretches: Vec<Stretch<'a>> = Vec::new();
    for (folder, info) in on_it {
        let archived_from = held.archived_from(info, history);
        if let Some(before) = stretches.last_mut()
            && archived_from <= before.reach
        {
            before.last = (folder, info);
            continue;
        }
        let reach = held.reach(info, history);
        let end = reach.end.max(info.end_lsn);
        // From a backup of an older timeline, one may not even get to this one.
        let gets_there = info.end_timeline == timeline || end > begin || reach.goes_on;
        if !gets_there {
            continue;
        }
        stretches.push(Stretch {
            first: info,
            last: (folder, info),
            from: info.end_lsn.max(begin),
            reach: end,
            missing: reach.missing,
        });
    }
    stretches
}

/// The end of a stretch, as the WAL tells it.
fn window(
    held: &mut HeldWal,
    stretch: &Stretch<'_>,
    history: &TimelineHistory,
    interrupt: &Interrupt,
) -> Result<Window> {
    let (folder, last) = stretch.last;
    let consistent = consistent_time(last);
    let mut window = Window {
        timeline: history.timeline(),
        backup: stretch.first.backup,
        from: stretch.from,
        from_time: consistent_time(stretch.first),
        to: stretch.reach,
        to_time: consistent,
        unreadable: None,
    };
    match held.roll_forward_along(folder, last, history.clone(), interrupt) {
        Ok(end) => {
            window.to = end.lsn.max(stretch.from);
            // Without any since, the server was quiet, and the backup itself is the last that is known of.
            window.to_time = end.time.or(consistent);
            // A transaction behind it proves that it was consistent by then.
            let earlier = window.from_time.min(window.to_time);
            window.from_time = window.from_time.and(earlier);
        }
        Err(error) => {
            interrupt.check()?;
            window.unreadable = Some(error.message().to_owned());
        }
    }
    Ok(window)
}

/// What a backup is with its own WAL alone.
fn moment(info: &BackupInfo) -> Window {
    Window {
        timeline: info.end_timeline,
        backup: info.backup,
        from: info.end_lsn,
        from_time: consistent_time(info),
        to: info.end_lsn,
        to_time: consistent_time(info),
        unreadable: None,
    }
}

/// When the server had got to where a backup is consistent, at the latest: when all was done.
fn consistent_time(info: &BackupInfo) -> Option<Timestamp> {
    let took = SignedDuration::from_millis(i64::try_from(info.elapsed).ok()?);
    // The identifier is its beginning to the second.
    let took = took.checked_add(SignedDuration::from_secs(1))?;
    info.backup.time()?.checked_add(took).ok()
}

/// What is between windows of a timeline, and behind the last one if there is more WAL.
fn holes(found: &[(Window, Option<String>)], catalogue: &Catalogue) -> Vec<Hole> {
    let mut holes = Vec::new();
    for (number, (window, missing)) in found.iter().enumerate() {
        let next = found.get(number + 1).map(|(next, _)| next);
        let next = next.filter(|next| next.timeline == window.timeline);
        if next.is_none() && missing.is_none() {
            continue;
        }
        let mut hole = Hole {
            timeline: window.timeline,
            after: (window.to, window.to_time),
            before: next.map(|next| (next.from, next.from_time)),
            missing: missing.clone(),
            invalid: Vec::new(),
        };
        let invalid = catalogue.backups().iter().filter(|backup| {
            catalogue.check(backup).is_err()
                && match &backup.info {
                    Ok(info) => info.end_timeline == hole.timeline && hole.has(info.end_lsn),
                    // Of that one nothing is known but when it was begun.
                    Err(_) => hole.has_time(backup.identifier.time()),
                }
        });
        hole.invalid = invalid.map(|backup| backup.identifier).collect();
        holes.push(hole);
    }
    holes
}

impl Hole {
    fn has(&self, position: Lsn) -> bool {
        position > self.after.0 && self.before.is_none_or(|(before, _)| position < before)
    }

    fn has_time(&self, time: Option<Timestamp>) -> bool {
        let before = self.before.and_then(|(_, time)| time);
        time > self.after.1 && (before.is_none() || time < before)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::pg::wal_file::WalFileName;
    use crate::repository::backup_info::tests::example;
    use crate::repository::backup_info::{Verdict, Verification};
    use crate::repository::layout::ServerFolder;
    use crate::repository::wal_archive::{ClusterIdentity, WalArchive};
    use crate::stored::coding::Coding;
    use crate::stored::master_key::Keyring;

    const SIZE: u64 = 16 << 20;

    /// A server with backups that end in these segments, one a day, those that are negative damaged; and an archive of names alone,
    /// which tell all but times.
    fn restorable(ends: &[i64], archive: &[&str], change: impl Fn(&mut BackupInfo)) -> Windows {
        let base = tempfile::tempdir().unwrap();
        let server = ServerFolder::new(base.path(), "primary");
        server.create().unwrap();
        let keys = Keyring::new(None);
        let mut infos = Vec::new();
        for (day, end) in ends.iter().enumerate() {
            let mut info = example(&format!("2026010{}000000", day + 1));
            info.wal_segment_size = SIZE;
            info.start_lsn = Lsn(end.unsigned_abs() * SIZE + 0x28);
            info.end_lsn = Lsn(end.unsigned_abs() * SIZE + 0x100);
            info.elapsed = 9000;
            info.verification = (*end < 0).then(|| Verification {
                time: Timestamp::now(),
                verdict: Verdict::Damaged {
                    failed_files: 1,
                    first: "base/1".to_owned(),
                },
            });
            change(&mut info);
            infos.push(info);
        }
        if !archive.is_empty() {
            let cluster = ClusterIdentity::of_backup(&infos[0]).unwrap();
            let stored = WalArchive::claim(&server, "primary", cluster, keys.clone()).unwrap();
            for name in archive {
                let mut file = stored.begin(&Coding::PLAIN).unwrap();
                if *name == "00000002.history" {
                    file.append(b"1\t0/7000100\tx\n").unwrap();
                }
                let name = WalFileName::parse(name).unwrap();
                stored.store(&name, file.finish().unwrap()).unwrap();
            }
        }
        for info in infos {
            let backup = server.backup(info.backup);
            backup.place().create_folder().unwrap();
            info.write(&backup).unwrap();
        }
        let catalogue = Catalogue::read("primary", &server).unwrap();
        let mut held = HeldWal::look(&server, keys).unwrap();
        look(&catalogue, held.as_mut(), &Interrupt::default()).unwrap()
    }

    /// The windows by timeline and segments, a backup's own end as such a segment and a half.
    fn windows(found: &Windows) -> Vec<(u32, f64, f64)> {
        let place = |lsn: Lsn| match lsn.0 % SIZE {
            0 => (lsn.0 / SIZE) as f64,
            _ => (lsn.0 / SIZE) as f64 + 0.5,
        };
        let each = found.windows.iter();
        each.map(|window| (window.timeline.0, place(window.from), place(window.to)))
            .collect()
    }

    /// The segments of timeline 1 with these numbers.
    fn segments(numbers: &[u64]) -> Vec<String> {
        let name = |number: &u64| format!("0000000100000000{number:08X}");
        numbers.iter().map(name).collect()
    }

    fn names(segments: &[String]) -> Vec<&str> {
        segments.iter().map(String::as_str).collect()
    }

    #[test]
    fn archived_wal_joins_backups_to_one_window() {
        let archive = segments(&[6, 7, 8, 9, 10, 11, 12]);
        let found = restorable(&[5, 10], &names(&archive), |_| {});
        assert_eq!(windows(&found), [(1, 5.5, 13.0)]);
        assert_eq!(found.holes, []);
        let first = &found.windows[0];
        assert_eq!(first.backup.to_string(), "20260101000000");
        // To the second behind all that it took.
        assert_eq!(first.from_time.unwrap().to_string(), "2026-01-01T00:00:10Z");
    }

    #[test]
    fn a_missing_segment_is_a_hole_up_to_the_next_valid_backup() {
        let archive = segments(&[6, 7, 9, 10, 11, 12]);
        let found = restorable(&[5, 10], &names(&archive), |_| {});
        assert_eq!(windows(&found), [(1, 5.5, 8.0), (1, 10.5, 13.0)]);
        assert_eq!(found.holes.len(), 1);
        let hole = &found.holes[0];
        assert_eq!(hole.missing.as_deref(), Some("000000010000000000000008"));
        assert_eq!(hole.after.0, Lsn(8 * SIZE));
        assert_eq!(hole.before.unwrap().0, Lsn(10 * SIZE + 0x100));
        assert!(hole.invalid.is_empty());
        assert_eq!(found.newest().unwrap().from, Lsn(10 * SIZE + 0x100));
        assert_eq!(found.oldest().unwrap().from, Lsn(5 * SIZE + 0x100));

        let found = restorable(&[5, -10, 11], &names(&archive), |_| {});
        assert_eq!(windows(&found), [(1, 5.5, 8.0), (1, 11.5, 13.0)]);
        assert_eq!(found.holes[0].invalid[0].to_string(), "20260102000000");

        // Nothing leads to what is behind.
        let found = restorable(&[5, -10], &names(&archive), |_| {});
        assert_eq!(windows(&found), [(1, 5.5, 8.0)]);
        assert_eq!((found.holes.len(), found.holes[0].before), (1, None));
        let behind_the_newest = segments(&[6, 7, 8, 9, 10, 12]);
        let found = restorable(&[5, 10], &names(&behind_the_newest), |_| {});
        // Of the newest no WAL of its own is made up, which is where this one ends.
        assert_eq!(windows(&found), [(1, 5.5, 10.5)]);
        let missing = found.holes[0].missing.as_deref();
        assert_eq!(missing, Some("00000001000000000000000B"));
    }

    #[test]
    fn without_archived_wal_a_backup_is_one_moment() {
        let found = restorable(&[5, 10], &[], |_| {});
        assert_eq!(windows(&found), [(1, 5.5, 5.5), (1, 10.5, 10.5)]);
        let now: Timestamp = "2026-01-02T00:01:10Z".parse().unwrap();
        assert_eq!(found.age(now), Some(SignedDuration::from_secs(60)));
        assert_eq!((found.holes.len(), &found.holes[0].missing), (1, &None));
        // Its own WAL fills a gap of the archive, for itself alone.
        let archive = segments(&[6, 7, 8, 9]);
        let found = restorable(&[5, 11], &names(&archive), |_| {});
        assert_eq!(windows(&found), [(1, 5.5, 10.0), (1, 11.5, 11.5)]);
        // Another cluster's WAL leads nowhere.
        let found = restorable(&[5, 8], &names(&archive), |info| {
            info.system_identifier += u64::from(info.backup.to_string().starts_with("20260102"));
        });
        assert_eq!(windows(&found), [(1, 8.5, 8.5), (1, 5.5, 10.0)]);
        assert_eq!(found.holes, []);
        assert_eq!(restorable(&[-5], &[], |_| {}), Windows::default());
    }

    #[test]
    fn each_timeline_has_its_window() {
        let mut archive = segments(&[6, 7, 8]);
        archive.extend(
            [
                "00000002.history",
                "000000020000000000000007",
                "000000020000000000000008",
            ]
            .map(str::to_owned),
        );
        let found = restorable(&[5], &names(&archive), |_| {});
        assert_eq!(windows(&found), [(1, 5.5, 9.0), (2, 7.5, 9.0)]);
        // From a backup behind where the timelines parted, there is no way to the second.
        let found = restorable(&[8], &names(&archive), |_| {});
        assert_eq!(windows(&found), [(1, 8.5, 8.5)]);
    }
}
