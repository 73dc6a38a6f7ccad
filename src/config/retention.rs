//! How long backups are kept.

use std::fmt;
use std::num::NonZeroU32;

use super::origin::Sourced;
use super::settings::Given;
use crate::error::{Error, Result};

/// How long backups are kept: all of some days, and beyond those one a week for some weeks, one a
/// month for some months, one a year for some years.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Days.
    pub days: NonZeroU32,
    /// Weeks.
    pub weeks: Option<NonZeroU32>,
    /// Months.
    pub months: Option<NonZeroU32>,
    /// Years.
    pub years: Option<NonZeroU32>,
}

/// What `retention` may be, for messages.
pub(super) const ALLOWED: &str = "numbers of days, weeks, months and years, such as \"7\" or \"7, -, 12, 1\": at least one day, up to 4 weeks where there are months, up to 12 months where there are years";

/// pgmoneta's.
const DEFAULT_DAYS: NonZeroU32 = NonZeroU32::new(7).unwrap();

/// A week and its like, beyond which the larger unit says how many are kept.
const MOST_WEEKS_BESIDE_MONTHS: u32 = 4;
const MOST_MONTHS_BESIDE_YEARS: u32 = 12;

/// The four fields of `retention` as one section gives them: days, weeks, months, years.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fields([Option<NonZeroU32>; 4]);

impl Fields {
    /// What holds where nothing is given.
    pub(super) const DEFAULT: Fields = Fields([Some(DEFAULT_DAYS), None, None, None]);

    /// Reads `days, weeks, months, years`; an empty field, `-`, `x` or 0 leaves
    /// that one out, and so does a field that is not there.
    pub(super) fn parse(text: &str) -> Option<Fields> {
        let mut fields = text.split(',').map(|field| match field.trim() {
            "" | "-" | "x" | "X" => Some(None),
            number => number.parse().ok().map(NonZeroU32::new),
        });
        let mut next = || fields.next().unwrap_or(Some(None));
        let parsed = Fields([next()?, next()?, next()?, next()?]);
        fields.next().is_none().then_some(parsed)
    }

    /// A server's fields, and the main section's where it leaves one out: as in pgmoneta.
    pub(super) fn or(self, main: Fields) -> Fields {
        let mut fields = self.0;
        for (own, main) in fields.iter_mut().zip(main.0) {
            *own = own.or(main);
        }
        Fields(fields)
    }

    /// What they come to; nothing where they break pgmoneta's rules.
    pub(super) fn retention(self) -> Option<Retention> {
        let Fields([days, weeks, months, years]) = self;
        let at_most =
            |most: u32, number: Option<NonZeroU32>| number.is_none_or(|n| n.get() <= most);
        let is_valid = (months.is_none() || at_most(MOST_WEEKS_BESIDE_MONTHS, weeks))
            && (years.is_none() || at_most(MOST_MONTHS_BESIDE_YEARS, months));
        is_valid.then_some(Retention {
            days: days?,
            weeks,
            months,
            years,
        })
    }
}

/// What one section says, each field of which goes before the main section's.
pub(super) fn over(own: Given<Fields>, main: Option<&Sourced<Fields>>) -> Given<Fields> {
    match own {
        None => main.cloned(),
        Some(own) => Some(Sourced {
            value: own
                .value
                .or(main.map_or(Fields::DEFAULT, |main| main.value)),
            origin: own.origin,
        }),
    }
}

/// What is given under a key comes to; an error where its fields do not fit each other.
pub(super) fn checked(given: Option<&Sourced<Fields>>, key: &str) -> Result<Option<Retention>> {
    let Some(Sourced { value, origin }) = given else {
        return Ok(None);
    };
    value.retention().map(Some).ok_or_else(|| {
        Error::usage(format!("{origin}: {key} cannot be \"{value}\""))
            .hint(format!("{key} may be {ALLOWED}"))
    })
}

impl Default for Retention {
    fn default() -> Retention {
        Retention {
            days: DEFAULT_DAYS,
            weeks: None,
            months: None,
            years: None,
        }
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.map(|field| match field {
            Some(number) => number.to_string(),
            None => "-".to_owned(),
        });
        f.write_str(&shown.join(", "))
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Fields([Some(self.days), self.weeks, self.months, self.years]).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn retention(text: &str) -> Option<String> {
        Some(Fields::parse(text)?.retention()?.to_string())
    }

    #[test]
    fn fields_may_be_left_out_but_for_the_days() {
        let cases = [
            ("7", Some("7, -, -, -")),
            ("7, -, 12, 1", Some("7, -, 12, 1")),
            ("7,,,2", Some("7, -, -, 2")),
            (" x ,4,X", None),
            ("0", None),
            ("7 days", None),
            ("-1", None),
            ("1,2,3,4,5", None),
        ];
        for (text, expected) in cases {
            assert_eq!(retention(text).as_deref(), expected, "{text}");
        }
        assert_eq!(Retention::default().to_string(), "7, -, -, -");
    }

    #[test]
    fn the_larger_unit_bounds_the_smaller() {
        for (text, is_valid) in [
            ("7, 4, 12", true),
            ("7, 5, 12", false),
            ("7, 52", true),
            ("7, -, 12, 5", true),
            ("7, -, 13, 5", false),
            ("7, -, 120", true),
            ("7, 52, -, 5", true),
        ] {
            assert_eq!(retention(text).is_some(), is_valid, "{text}");
        }
    }

    #[test]
    fn a_server_may_give_some_fields_alone() {
        let parse = |text| Fields::parse(text).unwrap();
        let merged = parse("-, 2").or(parse("7, 4, 12"));
        assert_eq!(merged.to_string(), "7, 2, 12, -");
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_read(fields in any::<[u32; 4]>()) {
            let fields = Fields(fields.map(NonZeroU32::new));
            prop_assert_eq!(Fields::parse(&fields.to_string()), Some(fields));
        }
    }
}
