//! Which backups `retention` keeps.
//!
//! As in pgmoneta: every backup of the last days; of each of the last weeks, the current one included, the last backup made on
//! its Monday; of months the one made on their first day; of years, on theirs. Where no backup was made on
//! that day, the next day of the week, month or year that has one stands for it, where pgmoneta would keep none.
//! Days are those of UTC, as identifiers are.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::num::NonZeroU32;

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};

use crate::config::Retention;
use crate::repository::identifier::Identifier;

/// What retention needs to know of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its name, the time it was made.
    pub identifier: Identifier,
    /// Whether it can be restored.
    pub is_valid: bool,
    /// Whether it is kept from retention.
    pub is_kept: bool,
    /// What it is an increment of.
    pub parent: Option<Identifier>,
}

/// The backups that retention does not keep: each comes before the one it is an increment of. Only valid backups stand for a
/// week, a month or a year; the newest valid one stays whatever its age, and where none is valid all stay. What is needed by a backup
/// that stays, stays.
pub fn expired(backups: &[Candidate], retention: &Retention, now: Timestamp) -> Vec<Identifier> {
    let valid: Vec<Identifier> = backups
        .iter()
        .filter(|backup| backup.is_valid)
        .map(|backup| backup.identifier)
        .collect();
    let Some(newest) = valid.iter().max() else {
        return Vec::new();
    };
    let mut stay: BTreeSet<Identifier> = BTreeSet::from([*newest]);
    let days = SignedDuration::from_hours(24 * i64::from(retention.days.get()));
    let is_recent = |backup: &&Candidate| {
        let made = backup.identifier.time();
        // What has no time was made at none that could be over.
        made.is_none_or(|made| now.duration_since(made) <= days)
    };
    let recent = backups.iter().filter(|one| is_recent(one) || one.is_kept);
    stay.extend(recent.map(|backup| backup.identifier));
    for (begin, end) in periods(retention, TimeZone::UTC.to_datetime(now).date()) {
        stay.extend(representative(&valid, begin, end));
    }
    let mut open: Vec<Identifier> = stay.iter().copied().collect();
    while let Some(identifier) = open.pop() {
        let backup = backups.iter().find(|one| one.identifier == identifier);
        if let Some(parent) = backup.and_then(|backup| backup.parent)
            && stay.insert(parent)
        {
            open.push(parent);
        }
    }
    let expired = backups
        .iter()
        .filter(|backup| !stay.contains(&backup.identifier))
        .copied()
        .collect();
    children_first(expired)
}

/// The weeks, months and years of which one backup each is kept: the first day, and the one behind the last.
fn periods(retention: &Retention, today: Date) -> Vec<(Date, Date)> {
    let number = |number: Option<NonZeroU32>| number.map_or(0, NonZeroU32::get);
    let mut periods = Vec::new();
    let since_monday = i64::from(today.weekday().since(Weekday::Monday));
    let mut add = |last: Option<Date>, length: jiff::Span, count: u32| {
        let mut begin = last;
        for _ in 0..count {
            // Beyond the calendar's end there are no backups.
            let Some(first) = begin else { break };
            periods.extend(first.checked_add(length).ok().map(|end| (first, end)));
            begin = first.checked_sub(length).ok();
        }
    };
    let monday = today.checked_sub(since_monday.days()).ok();
    add(monday, 1.week(), number(retention.weeks));
    add(
        Some(today.first_of_month()),
        1.month(),
        number(retention.months),
    );
    add(
        Some(today.first_of_year()),
        1.year(),
        number(retention.years),
    );
    periods
}

/// The last backup of the first day in a period that has one.
fn representative(valid: &[Identifier], begin: Date, end: Date) -> Option<Identifier> {
    let within = valid
        .iter()
        .filter(|identifier| (begin..end).contains(&identifier.date()));
    within
        .min_by_key(|identifier| (identifier.date(), Reverse(**identifier)))
        .copied()
}

/// Clocks go wrong, so the names alone do not tell who was made on whom.
fn children_first(mut left: Vec<Candidate>) -> Vec<Identifier> {
    let mut ordered = Vec::new();
    left.sort_by_key(|backup| backup.identifier);
    while !left.is_empty() {
        let leaf = left.iter().rposition(|backup| {
            !left
                .iter()
                .any(|other| other.parent == Some(backup.identifier))
        });
        // Those that are each other's parents have no leaf.
        let next = left.remove(leaf.unwrap_or(left.len() - 1));
        ordered.push(next.identifier);
    }
    ordered
}

#[cfg(test)]
mod tests;
