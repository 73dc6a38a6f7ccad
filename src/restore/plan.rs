//! Which backup leads to a position, and whether all WAL on the way is here.
//!
//! PostgreSQL finds out only when it has replayed everything: that the target lies before the
//! backup is consistent, that WAL is missing, that nothing ever fits the target. So the way is looked at before
//! anything is written: by the names of segments as far as they tell, and for times, for
//! transactions and for restore points in the WAL itself.

use std::fmt;
use std::ops::{ControlFlow, Range};

use jiff::{SignedDuration, Timestamp};

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::history::{self, TimelineHistory};
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::recovery::events::{RestorePoint, TransactionEnd, checkpoint_time};
use crate::pg::recovery::target::{
    self, Point, RecoveryTarget, Stop, TargetAction, TargetTimeline,
};
use crate::pg::timestamp;
use crate::pg::version::Major;
use crate::pg::wal::Record;
use crate::progress::Progress;
use crate::repository::backup_info::BackupInfo;
use crate::repository::catalogue::{Backup, Catalogue};
use crate::repository::identifier::Selector;
use crate::repository::roll_forward::{HeldWal, LeftBehind, Way};
use crate::restore::position::{Position, Replay};
use crate::restore::recovery::Recovery;
use crate::restore::restore_command::WalGet;

/// A backup, and how recovery goes on from it.
pub struct Plan<'a> {
    /// The backup.
    pub backup: &'a Backup,
    /// The way from there.
    pub route: Route,
}

/// The way from a backup to a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Through the WAL in the backup, to where the cluster is consistent.
    OwnWal,
    /// On through archived WAL.
    Archive {
        /// The timeline whose WAL it follows.
        timeline: Timeline,
        /// Where it stops; nothing for the end of all WAL.
        destination: Option<Destination>,
    },
    /// Behind the primary for good, from the archive too where there is one.
    Replica {
        /// Whether there is one.
        from_archive: bool,
        /// The timeline that it stays on; nothing where it follows its primary to the newest one.
        timeline: Option<Timeline>,
    },
}

/// Where recovery stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// What it looks for.
    pub target: RecoveryTarget,
    /// What the server does there.
    pub action: TargetAction,
    /// Where that is.
    pub landing: Landing,
}

/// Where recovery stops, as far as that is known beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Landing {
    /// The position behind the last record that is replayed.
    pub lsn: Option<Lsn>,
    /// When the transaction or the restore point was, by the server's clock.
    pub time: Option<Timestamp>,
}

impl Route {
    /// What the server must know to take it.
    /// `raised` are settings that the WAL on the way asks for.
    pub fn recovery(
        &self,
        wal_get: &WalGet,
        primary_conninfo: String,
        raised: Vec<(&'static str, u32)>,
    ) -> Result<Recovery> {
        Ok(match self {
            Route::OwnWal => Recovery::OwnWal,
            Route::Archive {
                timeline,
                destination,
            } => Recovery::Archive {
                restore_command: wal_get.to_the_end()?,
                timeline: *timeline,
                target: destination
                    .as_ref()
                    .map(|destination| (destination.target.clone(), destination.action)),
                raised,
            },
            Route::Replica {
                from_archive,
                timeline,
            } => Recovery::Replica {
                primary_conninfo,
                timeline: *timeline,
                raised,
                restore_command: from_archive.then(|| wal_get.whole_segments()).transpose()?,
            },
        })
    }
}

/// The way of a replica. One that is to follow its primary to the newest timeline never gets up where the archive has another
/// that is newer, and no history of its primary's: so it stays on its own.
fn replica(info: &BackupInfo, held: Option<&HeldWal>, wanted: TargetTimeline) -> Result<Route> {
    let newest = match (held, wanted) {
        // What the archive does not tell, its primary does.
        (Some(held), TargetTimeline::Latest) => held.history(info, wanted).ok(),
        (Some(held), _) => Some(held.history(info, wanted)?),
        (None, _) => None,
    };
    let newest = newest.map(|history| history.timeline());
    let stray = held.and_then(|held| held.stray(info));
    let timeline = match (wanted, newest, stray) {
        (TargetTimeline::Current, ..) => Some(info.end_timeline),
        (TargetTimeline::Number(number), ..) => Some(number),
        (TargetTimeline::Latest, Some(own), Some(stray)) => {
            log::warn!(
                "the archive holds timeline {stray}, which does not go on from backup {}: the replica stays on timeline {own}, and \
                 does not follow its primary to another one. For that, move {} out of the archive and set \
                 recovery_target_timeline = 'latest'",
                info.backup,
                history::file_name(stray)
            );
            Some(own)
        }
        (TargetTimeline::Latest, Some(newest), None) if newest > info.end_timeline => {
            log::warn!(
                "the replica follows timeline {newest}, the newest in the archive: where its primary is on another one, say \
                 replica,timeline=NUMBER"
            );
            None
        }
        _ => None,
    };
    Ok(Route::Replica {
        from_archive: held.is_some(),
        timeline,
    })
}

/// Finds the way to a position from the backup that is asked for; where that is the newest, from
/// the newest one that leads there.
pub fn plan<'a>(
    catalogue: &'a Catalogue,
    selector: &Selector,
    position: &Position,
    held: Option<&HeldWal>,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Plan<'a>> {
    let selected = |route| -> Result<Plan<'a>> {
        let backup = catalogue.select(selector)?;
        Ok(Plan { backup, route })
    };
    let (target, timeline) = match position {
        Position::Replica(timeline) => {
            let backup = catalogue.select(selector)?;
            let route = replica(catalogue.check(backup)?, held, *timeline)?;
            return Ok(Plan { backup, route });
        }
        Position::Primary(Replay::OwnWal) => return selected(Route::OwnWal),
        Position::Primary(Replay::All(timeline)) => (None, *timeline),
        Position::Primary(Replay::UpTo {
            target,
            timeline,
            action,
        }) => (Some((target, *action)), *timeline),
    };
    let Some(held) = held else {
        return match (target, timeline) {
            // All the WAL there is is the backup's own.
            (None, TargetTimeline::Latest | TargetTimeline::Current) => selected(Route::OwnWal),
            _ => Err(Error::failed("there is no archived WAL to replay").hint(
                "pgkeep wal copy and pgkeep wal push archive it; without a position, a backup is restored with its own WAL",
            )),
        };
    };
    progress.step("look at the WAL", None);
    let explorer = Explorer {
        held,
        timeline,
        target: target.map(|(target, _)| target),
        interrupt,
    };
    let reached = match selector {
        Selector::Newest => explorer.newest(catalogue)?,
        _ => explorer.named(catalogue, catalogue.select(selector)?)?,
    };
    if timeline == TargetTimeline::Latest {
        warn_of_timelines_left(held, &reached)?;
    }
    let destination = target
        .zip(reached.landing)
        .map(|((target, action), landing)| Destination {
            target: target.clone(),
            action,
            landing,
        });
    Ok(Plan {
        backup: reached.backup,
        route: Route::Archive {
            timeline: reached.timeline,
            destination,
        },
    })
}

/// The newest timeline is not always the one that is wanted: a copy that was started for a look, and archived, has a newer one
/// than the server that goes on.
fn warn_of_timelines_left(held: &HeldWal, reached: &Reached<'_>) -> Result<()> {
    let info = reached.backup.info.as_ref().map_err(Error::clone)?;
    let history = held.history(info, TargetTimeline::Number(reached.timeline))?;
    let landing = reached.landing.and_then(|landing| landing.lsn);
    for LeftBehind {
        timeline,
        left,
        last,
    } in held.left_behind(info, &history)
    {
        if landing.is_none_or(|landing| landing > left) {
            log::warn!(
                "recovery leaves timeline {timeline} at {left} for a newer one, and the archive has more of it, up to {last}: \
                 timeline={timeline} in the position follows that one"
            );
        }
    }
    Ok(())
}

/// Looks at the ways through the archive.
struct Explorer<'a> {
    held: &'a HeldWal,
    timeline: TargetTimeline,
    /// Nothing for the end of all WAL.
    target: Option<&'a RecoveryTarget>,
    interrupt: &'a Interrupt,
}

/// The backup that leads there.
struct Reached<'a> {
    backup: &'a Backup,
    timeline: Timeline,
    /// Nothing at the end of all WAL.
    landing: Option<Landing>,
}

/// Whether the end of WAL or a target is reached from a backup.
enum Verdict {
    Reached(Option<Landing>),
    /// The backup is not consistent there yet.
    TooEarly(Error),
    /// It does not come, as far as there is WAL.
    NotReached(Error),
}

/// A record that recovery stops at.
#[derive(Debug, Clone, Copy)]
struct Found {
    record: Lsn,
    /// The position behind the last record that is replayed.
    landing: Lsn,
    time: Option<Timestamp>,
}

/// The search behind a newer backup, which one behind an older backup need not repeat.
struct Searched {
    timeline: Timeline,
    from: Lsn,
    found: Option<Found>,
}

impl Explorer<'_> {
    /// From a backup that was asked for by its name.
    fn named<'a>(&self, catalogue: &'a Catalogue, backup: &'a Backup) -> Result<Reached<'a>> {
        let info = catalogue.check(backup)?;
        let history = self.held.history(info, self.timeline)?;
        let timeline = history.timeline();
        match self.explore(backup, info, history, &mut None)? {
            Verdict::Reached(landing) => Ok(Reached {
                backup,
                timeline,
                landing,
            }),
            Verdict::TooEarly(error) => {
                Err(error.hint("restore an earlier backup: newest is the one that leads there"))
            }
            Verdict::NotReached(error) => Err(error),
        }
    }

    /// From the newest backup that leads there.
    fn newest<'a>(&self, catalogue: &'a Catalogue) -> Result<Reached<'a>> {
        catalogue.select(&Selector::Newest)?;
        let mut searched = None;
        let mut why = None;
        for backup in catalogue.valid().rev() {
            let info = catalogue.check(backup)?;
            let history = match self.held.history(info, self.timeline) {
                Ok(history) => history,
                Err(error) => {
                    why.get_or_insert(error);
                    continue;
                }
            };
            let timeline = history.timeline();
            match self.explore(backup, info, history, &mut searched)? {
                Verdict::Reached(landing) => {
                    return Ok(Reached {
                        backup,
                        timeline,
                        landing,
                    });
                }
                Verdict::TooEarly(error) => {
                    why = Some(error.hint("no backup that is older leads there"));
                }
                // It may lie between an older backup and this one.
                Verdict::NotReached(error) if self.target.is_some_and(is_searched) => {
                    why.get_or_insert(error);
                }
                Verdict::NotReached(error) => return Err(error),
            }
        }
        Err(why.unwrap_or_else(|| Error::failed("no backup leads there")))
    }

    fn explore(
        &self,
        backup: &Backup,
        info: &BackupInfo,
        history: TimelineHistory,
        searched: &mut Option<Searched>,
    ) -> Result<Verdict> {
        let way = self.held.way(&backup.folder, info, history)?;
        let Some(target) = self.target else {
            return match &way.missing {
                None => Ok(Verdict::Reached(None)),
                Some(_) => self.not_reached(info, &way, "the end of the WAL that is held here"),
            };
        };
        let found = match target {
            RecoveryTarget::Point { point, inclusive } => match point {
                Point::Time(time) => return self.explore_time(info, &way, *time, *inclusive),
                Point::Lsn(lsn) if *lsn < info.end_lsn => {
                    return Ok(too_early(info, target, info.end_lsn));
                }
                Point::Lsn(lsn) => self.first_stop(info, &way, target, *lsn..Lsn(u64::MAX))?,
                Point::Xid(_) => self.search(info, &way, target, searched)?,
            },
            RecoveryTarget::Name(_) => self.search(info, &way, target, searched)?,
        };
        match found {
            None => self.not_reached(info, &way, target),
            Some(found) if found.landing < info.end_lsn => {
                let there = format!("{target}, which is at {}", found.record);
                Ok(too_early(info, there, info.end_lsn))
            }
            Some(found) => Ok(Verdict::Reached(Some(Landing {
                lsn: Some(found.landing),
                time: found.time,
            }))),
        }
    }

    /// Times grow with positions, as far as the server's clock does. So the last transaction tells
    /// whether WAL reaches a time, and the last one in the backup whether that is consistent before it.
    fn explore_time(
        &self,
        info: &BackupInfo,
        way: &Way<'_>,
        time: Timestamp,
        inclusive: bool,
    ) -> Result<Verdict> {
        let target = format!("the time {}", timestamp::text(time));
        let is_past = |moment| target::is_past(moment, time, inclusive);
        if let Some(moment) = self.moment(info, way)?
            && is_past(moment)
        {
            return Ok(too_early(info, target, timestamp::text(moment)));
        }
        match way.read_end(info, self.interrupt)?.time {
            Some(last) if is_past(last) => Ok(Verdict::Reached(Some(Landing::default()))),
            _ => self.not_reached(info, way, target),
        }
    }

    /// The latest moment that the WAL in a backup tells of: what the restored cluster holds is no
    /// younger. Where no transaction ended meanwhile, that is the checkpoint's, of which PostgreSQL notes
    /// the second that it began in.
    fn moment(&self, info: &BackupInfo, way: &Way<'_>) -> Result<Option<Timestamp>> {
        let major = major(info)?;
        let last = |time_of: &dyn Fn(&Record<'_>) -> Option<Timestamp>| {
            let own = info.start_lsn..info.end_lsn;
            way.path.read_end(own, self.interrupt, time_of)
        };
        let transaction = last(&|record| Some(TransactionEnd::of(record, major)?.time))?;
        if transaction.time.is_some() {
            return Ok(transaction.time);
        }
        let checkpoint = last(&checkpoint_time)?.time;
        Ok(checkpoint.and_then(|began| began.checked_add(SECOND).ok()))
    }

    /// Looks for a target in all WAL from the backup's start on.
    fn search(
        &self,
        info: &BackupInfo,
        way: &Way<'_>,
        target: &RecoveryTarget,
        searched: &mut Option<Searched>,
    ) -> Result<Option<Found>> {
        let timeline = way.history.timeline();
        let end = way.path.end();
        let (until, known) = match searched {
            Some(last) if last.timeline == timeline && last.from < end => (last.from, last.found),
            _ => (Lsn(u64::MAX), None),
        };
        let found = self
            .first_stop(info, way, target, info.start_lsn..until)?
            .or(known.filter(|found| found.landing <= end));
        *searched = Some(Searched {
            timeline,
            from: info.start_lsn,
            found,
        });
        Ok(found)
    }

    /// The first record that begins in a range at which recovery stops.
    fn first_stop(
        &self,
        info: &BackupInfo,
        way: &Way<'_>,
        target: &RecoveryTarget,
        range: Range<Lsn>,
    ) -> Result<Option<Found>> {
        let major = major(info)?;
        let mut found = None;
        way.path.read(range.start, self.interrupt, &mut |record| {
            if record.start < range.end {
                found = target.stops_at(record, major).map(|stop| Found {
                    record: record.start,
                    landing: match stop {
                        Stop::Before => record.start,
                        Stop::After => record.end,
                    },
                    time: time_of(record, major),
                });
            }
            if found.is_some() || record.start >= range.end {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        Ok(found)
    }

    fn not_reached(
        &self,
        info: &BackupInfo,
        way: &Way<'_>,
        target: impl fmt::Display,
    ) -> Result<Verdict> {
        let end = way.read_end(info, self.interrupt)?;
        let backup = info.backup;
        let error = match &way.missing {
            Some(missing) => Error::damage(format!(
                "recovery from backup {backup} does not reach {target}: the archive lacks {} from {} to {}",
                missing.segments(),
                missing.start,
                missing.end
            )),
            None => Error::failed(format!(
                "recovery from backup {backup} does not reach {target}: the WAL that is held here ends at {} on timeline {}{}",
                end.lsn,
                way.history.timeline(),
                end.time.map_or_else(String::new, |time| format!(
                    ", its last transaction at {}",
                    timestamp::text(time)
                ))
            )),
        };
        Ok(Verdict::NotReached(match (end.last_record, &way.missing) {
            (Some(last), Some(_)) => {
                error.hint(format!("lsn={last} restores all that is before the gap"))
            }
            (None, Some(_)) => error.hint("restore a backup from behind the gap"),
            (_, None) => error.hint(
                "current restores all of it; timeline=NUMBER looks on another timeline (wal list)",
            ),
        }))
    }
}

const SECOND: SignedDuration = SignedDuration::from_secs(1);

/// Whether a target lies somewhere in WAL that only reading it tells.
fn is_searched(target: &RecoveryTarget) -> bool {
    match target {
        RecoveryTarget::Name(_) => true,
        RecoveryTarget::Point { point, .. } => matches!(point, Point::Xid(_)),
    }
}

fn too_early(
    info: &BackupInfo,
    target: impl fmt::Display,
    consistent: impl fmt::Display,
) -> Verdict {
    Verdict::TooEarly(Error::failed(format!(
        "backup {} does not lead to {target}: it is consistent from {consistent} on",
        info.backup
    )))
}

pub(crate) fn major(info: &BackupInfo) -> Result<Major> {
    Major::from_number(info.major_version)
        .ok_or_else(|| Error::damage("backup.info has an unknown major version"))
}

fn time_of(record: &Record<'_>, major: Major) -> Option<Timestamp> {
    TransactionEnd::of(record, major)
        .map(|end| end.time)
        .or_else(|| RestorePoint::of(record).map(|point| point.time))
}
