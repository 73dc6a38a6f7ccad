//! POSITION of the command line: what a restored cluster becomes, and how far it replays.

use jiff::tz::TimeZone;

use crate::pg::lsn::Timeline;
use crate::pg::recovery::target::{Point, RecoveryTarget, TargetAction, TargetTimeline};
use crate::pg::timestamp;

/// What a restored cluster becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// A primary, on a timeline of its own.
    Primary(Replay),
    /// A standby of the server it was copied from, which replays all it can get.
    Replica(TargetTimeline),
}

/// How far a primary replays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replay {
    /// Through the WAL that the backup itself holds, to where the cluster is consistent.
    OwnWal,
    /// Through all WAL that is held here.
    All(TargetTimeline),
    /// Up to a target.
    UpTo {
        /// Where it stops.
        target: RecoveryTarget,
        /// Whose WAL it follows.
        timeline: TargetTimeline,
        /// What the server does there.
        action: TargetAction,
    },
}

impl Default for Position {
    fn default() -> Position {
        Position::Primary(Replay::OwnWal)
    }
}

impl Position {
    /// Whether archived WAL is of use on the way.
    pub fn wants_archive(&self) -> bool {
        *self != Position::default()
    }

    /// Reads a list of words parted by commas; a comma that is part of a name is written `\,`.
    /// Times without a zone are in `local`. The error says what cannot be meant.
    pub fn parse(text: &str, local: Option<&TimeZone>) -> Result<Position, String> {
        let mut words = Words::default();
        for word in split(text) {
            words.read(word.trim_start(), local)?;
        }
        words.combine()
    }
}

/// The parts of a list, as far as they are read.
#[derive(Default)]
struct Words {
    role: Option<Role>,
    extent: Option<Extent>,
    inclusive: Option<bool>,
    timeline: Option<TargetTimeline>,
    action: Option<TargetAction>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Primary,
    Replica,
}

/// How far: one of these, at most.
enum Extent {
    Immediate,
    Current,
    Name(String),
    Point(Point),
}

impl Words {
    fn read(&mut self, word: &str, local: Option<&TimeZone>) -> Result<(), String> {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key.trim_end(), Some(value)),
            None => (word.trim_end(), None),
        };
        // The name of a restore point may begin and end with blanks.
        let value = match key {
            "name" => value,
            _ => value.map(str::trim),
        };
        match (key, value) {
            ("primary", None) => once(&mut self.role, Role::Primary, TWO_ROLES),
            ("replica", None) => once(&mut self.role, Role::Replica, TWO_ROLES),
            ("current", None) => self.extend(Extent::Current),
            ("immediate", None) => self.extend(Extent::Immediate),
            ("name", Some(name)) => self.extend(Extent::Name(restore_point(name)?)),
            ("xid", Some(digits)) => self.extend(Extent::Point(Point::Xid(xid(digits)?))),
            ("lsn", Some(lsn)) => {
                let lsn = lsn
                    .parse()
                    .map_err(|_| format!("{lsn:?} is not a WAL position such as 16/B374D848"))?;
                self.extend(Extent::Point(Point::Lsn(lsn)))
            }
            ("time", Some(time)) => {
                self.extend(Extent::Point(Point::Time(timestamp::parse(time, local)?)))
            }
            ("inclusive", Some(value)) => {
                let inclusive = match value {
                    "on" => true,
                    "off" => false,
                    _ => return Err("inclusive is on or off".to_owned()),
                };
                once(&mut self.inclusive, inclusive, "inclusive= is there twice")
            }
            ("timeline", Some(value)) => once(
                &mut self.timeline,
                timeline(value)?,
                "timeline= is there twice",
            ),
            ("action", Some(value)) => {
                let action = TargetAction::ALL
                    .into_iter()
                    .find(|action| action.name() == value)
                    .ok_or("action is pause, promote or shutdown")?;
                once(&mut self.action, action, "action= is there twice")
            }
            _ => Err(format!(
                "{word:?} is none of current, immediate, name=, xid=, lsn=, time=, inclusive=, timeline=, action=, primary, replica"
            )),
        }
    }

    fn extend(&mut self, extent: Extent) -> Result<(), String> {
        once(
            &mut self.extent,
            extent,
            "only one of current, immediate, name=, xid=, lsn= and time= can be the target",
        )
    }

    fn combine(self) -> Result<Position, String> {
        if self.role == Some(Role::Replica) {
            return match self.extent {
                None | Some(Extent::Current)
                    if self.inclusive.is_none() && self.action.is_none() =>
                {
                    Ok(Position::Replica(self.timeline.unwrap_or_default()))
                }
                _ => Err(
                    "a replica follows its primary as far as that goes; it stops nowhere before"
                        .to_owned(),
                ),
            };
        }
        let timeline = self.timeline.unwrap_or_default();
        let inclusive = self.inclusive;
        let target = match self.extent {
            Some(Extent::Point(point)) => RecoveryTarget::Point {
                point,
                inclusive: inclusive.unwrap_or(true),
            },
            _ if inclusive.is_some() => {
                return Err("inclusive= goes with xid=, lsn= or time= only".to_owned());
            }
            Some(Extent::Name(name)) => RecoveryTarget::Name(name),
            // At the end of all WAL, and where a backup is consistent, there is nothing else to do.
            _ if self
                .action
                .is_some_and(|action| action != TargetAction::Promote) =>
            {
                return Err(
                    "action=pause and action=shutdown go with name=, xid=, lsn= or time= only: elsewhere the cluster is promoted"
                        .to_owned(),
                );
            }
            Some(Extent::Current) => return Ok(Position::Primary(Replay::All(timeline))),
            None | Some(Extent::Immediate) if self.timeline.is_some() => {
                return Err(
                    "timeline= goes with current, name=, xid=, lsn= or time= only".to_owned(),
                );
            }
            None | Some(Extent::Immediate) => return Ok(Position::default()),
        };
        Ok(Position::Primary(Replay::UpTo {
            target,
            timeline,
            action: self.action.unwrap_or_default(),
        }))
    }
}

const TWO_ROLES: &str = "a cluster is either a primary or a replica";

fn once<T>(place: &mut Option<T>, value: T, twice: &str) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(twice.to_owned()),
    }
}

/// Splits at commas, and takes the backslash from those that are not to split.
fn split(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let letter = match (letter, letters.peek()) {
            ('\\', Some(',')) => letters.next(),
            (',', _) => None,
            _ => Some(letter),
        };
        match (letter, words.last_mut()) {
            (Some(letter), Some(word)) => word.push(letter),
            _ => words.push(String::new()),
        }
    }
    words
}

/// The server gives restore points names of less than MAXFNAMELEN bytes
/// (access/transam/xlogfuncs.c, pg_create_restore_point).
fn restore_point(name: &str) -> Result<String, String> {
    match name.len() {
        1..64 => Ok(name.to_owned()),
        _ => Err("a restore point's name has 1 to 63 bytes".to_owned()),
    }
}

/// With or without the epoch in its upper half, as PostgreSQL takes it.
fn xid(digits: &str) -> Result<u64, String> {
    const FIRST_NORMAL: u32 = 3;
    let xid: Option<u64> = digits.parse().ok();
    xid.filter(|xid| *xid as u32 >= FIRST_NORMAL)
        .ok_or_else(|| format!("{digits:?} is no transaction's number"))
}

fn timeline(value: &str) -> Result<TargetTimeline, String> {
    match value {
        "latest" => Ok(TargetTimeline::Latest),
        "current" => Ok(TargetTimeline::Current),
        _ => match value.parse() {
            Ok(number) if number > 0 => Ok(TargetTimeline::Number(Timeline(number))),
            _ => Err("timeline is a number, latest or current".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::pg::lsn::Lsn;

    fn parse(text: &str) -> Result<Position, String> {
        Position::parse(text, Some(&TimeZone::UTC))
    }

    fn up_to(target: RecoveryTarget) -> Position {
        Position::Primary(Replay::UpTo {
            target,
            timeline: TargetTimeline::Latest,
            action: TargetAction::Pause,
        })
    }

    fn point(point: Point, inclusive: bool) -> RecoveryTarget {
        RecoveryTarget::Point { point, inclusive }
    }

    #[test]
    fn a_position_is_a_list_of_words() {
        for text in ["primary", "immediate", "primary, immediate"] {
            assert_eq!(parse(text), Ok(Position::default()), "{text}");
        }
        for text in ["replica", "current,replica"] {
            let latest = Position::Replica(TargetTimeline::Latest);
            assert_eq!(parse(text), Ok(latest), "{text}");
        }
        let first = TargetTimeline::Number(Timeline(1));
        assert_eq!(parse("replica,timeline=1"), Ok(Position::Replica(first)));
        let all = |timeline| Ok(Position::Primary(Replay::All(timeline)));
        assert_eq!(parse("current"), all(TargetTimeline::Latest));
        assert_eq!(
            parse("current,timeline=2"),
            all(TargetTimeline::Number(Timeline(2)))
        );
        assert_eq!(
            parse("current,timeline=current"),
            all(TargetTimeline::Current)
        );
        for (text, target) in [
            ("name=a b", RecoveryTarget::Name("a b".to_owned())),
            (
                r"name=a\,b=c\d",
                RecoveryTarget::Name(r"a,b=c\d".to_owned()),
            ),
            ("xid=4294967300", point(Point::Xid(4_294_967_300), true)),
            (
                "lsn=1/2A,inclusive=off",
                point(Point::Lsn(Lsn(0x1_0000_002A)), false),
            ),
            (
                "inclusive=on, time=2026-11-22 13:10:36",
                point(Point::Time("2026-11-22T13:10:36Z".parse().unwrap()), true),
            ),
        ] {
            assert_eq!(parse(text), Ok(up_to(target)), "{text}");
        }
        assert_eq!(
            parse("lsn=0/1,timeline=3,action=promote,primary"),
            Ok(Position::Primary(Replay::UpTo {
                target: point(Point::Lsn(Lsn(1)), true),
                timeline: TargetTimeline::Number(Timeline(3)),
                action: TargetAction::Promote,
            }))
        );
    }

    #[test]
    fn a_cluster_is_promoted_where_it_stops_anyway() {
        assert_eq!(parse("immediate,action=promote"), Ok(Position::default()));
        assert_eq!(parse("current,action=promote"), parse("current"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (wrong, why) in [
            ("", "none of"),
            ("sideways", "none of"),
            ("lsn", "none of"),
            ("current=1", "none of"),
            ("primary,replica", "either"),
            ("lsn=0/1,xid=7", "only one"),
            ("lsn=0/1,lsn=0/2", "only one"),
            ("current,time=2026-11-22 13:10", "only one"),
            ("lsn=7", "WAL position"),
            ("xid=2", "no transaction"),
            ("xid=-7", "no transaction"),
            ("time=now", "expected a time"),
            ("name=", "1 to 63"),
            ("name=x,inclusive=on", "inclusive="),
            ("current,inclusive=on", "inclusive="),
            ("xid=7,inclusive=maybe", "on or off"),
            ("xid=7,inclusive=on,inclusive=off", "twice"),
            ("action=pause", "action="),
            ("immediate,action=shutdown", "action="),
            ("current,action=pause", "action="),
            ("xid=7,action=stop", "pause, promote"),
            ("timeline=2", "timeline="),
            ("immediate,timeline=2", "timeline="),
            ("current,timeline=0", "a number"),
            ("current,timeline=new", "a number"),
            ("replica,lsn=0/1", "follows its primary"),
            ("replica,immediate", "follows its primary"),
            ("replica,action=promote", "follows its primary"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn every_name_can_be_written(name in "[^\\\\ ][^\\\\]{0,14}[^\\\\ ]") {
            let word = format!("name={}", name.replace(',', "\\,"));
            prop_assume!(name.len() < 64);
            prop_assert_eq!(parse(&word), Ok(up_to(RecoveryTarget::Name(name))));
        }
    }
}
