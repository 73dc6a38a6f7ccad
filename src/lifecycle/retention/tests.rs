#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use jiff::civil::DateTime;
use proptest::prelude::*;

use super::*;

fn identifier(text: &str) -> Identifier {
    text.parse().unwrap()
}

fn at(text: &str) -> Timestamp {
    identifier(text).time().unwrap()
}

fn retention(numbers: [u32; 4]) -> Retention {
    let [days, weeks, months, years] = numbers.map(NonZeroU32::new);
    Retention {
        days: days.unwrap(),
        weeks,
        months,
        years,
    }
}

fn valid(name: &str) -> Candidate {
    Candidate {
        identifier: identifier(name),
        is_valid: true,
        is_kept: false,
        parent: None,
    }
}

/// The names of those that stay.
fn stay(backups: &[Candidate], numbers: [u32; 4], now: &str) -> Vec<String> {
    let expired = expired(backups, &retention(numbers), at(now));
    backups
        .iter()
        .filter(|backup| !expired.contains(&backup.identifier))
        .map(|backup| backup.identifier.to_string())
        .collect()
}

#[test]
fn days_are_counted_back_from_now() {
    let backups = ["20261115115959", "20261115120000", "20261122000000"].map(valid);
    assert_eq!(
        stay(&backups, [7, 0, 0, 0], "20261122120000"),
        ["20261115120000", "20261122000000"]
    );
}

#[test]
fn mondays_firsts_of_months_and_of_years_are_kept_longer() {
    // 2026-11-02, -09 and -16 are Mondays.
    let backups = [
        "20250101060000",
        "20260102060000",
        "20260930060000",
        "20261001050000",
        "20261001060000",
        "20261002060000",
        "20261026060000",
        "20261102060000",
        "20261103060000",
        "20261109060000",
        "20261115060000",
        "20261117060000",
        "20261121060000",
    ]
    .map(valid);
    let now = "20261122120000";
    let newest = "20261121060000";
    assert_eq!(stay(&backups, [1, 0, 0, 0], now)[..1], [newest.to_owned()]);
    // This week's and the two before: nothing was made on this Monday, so Tuesday's stands for it.
    assert_eq!(
        stay(&backups, [2, 3, 0, 0], now),
        ["20261102060000", "20261109060000", "20261117060000", newest]
    );
    assert_eq!(
        stay(&backups, [2, 0, 3, 0], now),
        ["20260930060000", "20261001060000", "20261102060000", newest]
    );
    assert_eq!(
        stay(&backups, [2, 0, 0, 2], now),
        ["20250101060000", "20260102060000", newest]
    );
}

#[test]
fn what_is_needed_or_kept_or_the_only_one_stays() {
    let mut backups = [
        "20260101000000",
        "20260102000000",
        "20260103000000",
        "20260201000000",
        "20260202000000",
    ]
    .map(valid);
    backups[1].parent = Some(backups[0].identifier);
    backups[2].parent = Some(backups[1].identifier);
    let now = "20261122000000";
    assert_eq!(stay(&backups, [1, 0, 0, 0], now), ["20260202000000"]);
    backups[1].is_kept = true;
    assert_eq!(
        stay(&backups, [1, 0, 0, 0], now),
        ["20260101000000", "20260102000000", "20260202000000"]
    );
    // The newest one is not valid: the one before it is the last that can be restored.
    backups[4].is_valid = false;
    assert_eq!(
        stay(&backups, [1, 0, 0, 0], now)[2..],
        ["20260201000000".to_owned()]
    );
    // Without a valid backup nothing goes.
    for backup in &mut backups {
        backup.is_valid = false;
    }
    assert_eq!(stay(&backups, [1, 0, 0, 0], now).len(), 5);
}

#[test]
fn children_go_before_their_parents_whatever_the_clock_said() {
    let mut backups = ["20260101000000", "20260102000000", "20260103000000"].map(valid);
    backups[0].parent = Some(backups[2].identifier);
    backups[2].parent = Some(backups[1].identifier);
    let all = [&backups[..], &[valid("20261122000000")]].concat();
    let expired = expired(&all, &retention([1, 0, 0, 0]), at("20261122000000"));
    assert_eq!(
        expired,
        [0, 2, 1].map(|place: usize| backups[place].identifier)
    );
    // Those that are each other's ancestors go too.
    let mut all = all;
    all[1].parent = Some(all[0].identifier);
    let expired = super::expired(&all, &retention([1, 0, 0, 0]), at("20261122000000"));
    assert_eq!(expired.len(), 3);
}

/// A backup of the history: when, whether it is valid and kept, and how many before it is its parent.
type Made = (u32, u32, bool, bool, Option<u8>);

fn history() -> impl Strategy<Value = Vec<Made>> {
    let made = (
        0..1500_u32,
        0..86_400_u32,
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.05),
        prop::option::of(0..4_u8),
    );
    prop::collection::vec(made, 0..60)
}

fn numbers() -> impl Strategy<Value = [u32; 4]> {
    (1..20_u32, 0..5_u32, 0..13_u32, 0..4_u32)
        .prop_map(|(days, weeks, months, years)| [days, weeks, months, years])
}

const FIRST_DAY: DateTime = DateTime::constant(2022, 11, 1, 0, 0, 0, 0);

fn name(day: u32, second: u32) -> Identifier {
    let time = FIRST_DAY + i64::from(day).days() + i64::from(second).seconds();
    Identifier::at(TimeZone::UTC.to_timestamp(time).unwrap())
}

fn candidates(history: &[Made]) -> Vec<Candidate> {
    let mut by_name = BTreeMap::new();
    for (day, second, is_valid, is_kept, parent) in history {
        by_name.insert(name(*day, *second), (*is_valid, *is_kept, *parent));
    }
    let names: Vec<Identifier> = by_name.keys().copied().collect();
    let mut backups: Vec<Candidate> = Vec::new();
    for (place, (identifier, (is_valid, is_kept, parent))) in by_name.into_iter().enumerate() {
        let parent = parent.and_then(|back| place.checked_sub(usize::from(back) + 1));
        let is_valid = is_valid && parent.is_none_or(|parent| backups[parent].is_valid);
        backups.push(Candidate {
            identifier,
            is_valid,
            is_kept,
            parent: parent.map(|parent| names[parent]),
        });
    }
    backups
}

/// The same in a plainer way: each day back from today, with the week, month and year that it is in.
fn model(backups: &[Candidate], numbers: [u32; 4], now: Timestamp) -> BTreeSet<Identifier> {
    let mut stay: BTreeSet<Identifier> = BTreeSet::new();
    let Some(newest) = backups.iter().rev().find(|backup| backup.is_valid) else {
        return backups.iter().map(|backup| backup.identifier).collect();
    };
    stay.insert(newest.identifier);
    for backup in backups {
        let age = now.as_second() - backup.identifier.time().unwrap().as_second();
        if backup.is_kept || age <= i64::from(numbers[0]) * 86_400 {
            stay.insert(backup.identifier);
        }
    }
    let today = TimeZone::UTC.to_datetime(now).date();
    let monday: fn(Date) -> i64 = |day| {
        // 1970-01-05 was a Monday.
        let epoch = jiff::civil::date(1970, 1, 5);
        i64::from((day - epoch).get_days()).div_euclid(7)
    };
    let month: fn(Date) -> i64 = |day| i64::from(day.year()) * 12 + i64::from(day.month()) - 1;
    let year: fn(Date) -> i64 = |day| i64::from(day.year());
    for (count, unit) in numbers[1..].iter().zip([monday, month, year]) {
        let mut of_unit: BTreeMap<i64, (Date, Identifier)> = BTreeMap::new();
        for backup in backups.iter().filter(|backup| backup.is_valid) {
            let day = backup.identifier.date();
            let best = of_unit.entry(unit(day)).or_insert((day, backup.identifier));
            if day == best.0 {
                best.1 = best.1.max(backup.identifier);
            }
        }
        for (number, (_, identifier)) in of_unit {
            let ago = unit(today) - number;
            if (0..i64::from(*count)).contains(&ago) {
                stay.insert(identifier);
            }
        }
    }
    loop {
        let before = stay.len();
        for backup in backups {
            if stay.contains(&backup.identifier) {
                stay.extend(backup.parent);
            }
        }
        if stay.len() == before {
            return stay;
        }
    }
}

proptest! {
    #![proptest_config(crate::chance::cases(170))]

    #[test]
    fn the_model_and_retention_agree(history in history(), numbers in numbers(), later in 0..400_u32) {
        let backups = candidates(&history);
        let now = name(1500 + later, 40_000).time().unwrap();
        let gone = expired(&backups, &retention(numbers), now);
        let stay: BTreeSet<Identifier> = backups
            .iter()
            .map(|backup| backup.identifier)
            .filter(|identifier| !gone.contains(identifier))
            .collect();
        prop_assert_eq!(&stay, &model(&backups, numbers, now));

        // At every step what is left is whole, and doing it again changes nothing.
        let mut left = backups.clone();
        for identifier in gone {
            left.retain(|backup| backup.identifier != identifier);
            let names: BTreeSet<Identifier> = left.iter().map(|one| one.identifier).collect();
            for backup in left.iter().filter(|backup| backup.is_valid) {
                prop_assert!(backup.parent.is_none_or(|parent| names.contains(&parent)));
            }
        }
        prop_assert!(left.iter().any(|backup| backup.is_valid) || !backups.iter().any(|backup| backup.is_valid));
        prop_assert!(expired(&left, &retention(numbers), now).is_empty());
    }

    #[test]
    fn what_is_expired_every_night_is_what_would_be_expired_at_once(
        gaps in prop::collection::vec(prop_oneof![8 => Just(1_u32), 1 => 2..40_u32], 1..250),
        second in 0..86_000_u32,
        fulls in 1..9_usize,
        numbers in numbers(),
    ) {
        let mut all: Vec<Candidate> = Vec::new();
        let mut left: Vec<Candidate> = Vec::new();
        let mut day = 0;
        for (number, gap) in gaps.into_iter().enumerate() {
            let parent = (number % fulls > 0).then(|| all[number - 1].identifier);
            let backup = Candidate {
                identifier: name(day, second),
                is_valid: true,
                is_kept: false,
                parent,
            };
            all.push(backup);
            left.push(backup);
            for _ in 0..gap {
                let gone = expired(&left, &retention(numbers), name(day, 86_399).time().unwrap());
                left.retain(|backup| !gone.contains(&backup.identifier));
                day += 1;
            }
        }
        let now = name(day - 1, 86_399).time().unwrap();
        let gone = expired(&all, &retention(numbers), now);
        all.retain(|backup| !gone.contains(&backup.identifier));
        prop_assert_eq!(left, all);
    }
}
