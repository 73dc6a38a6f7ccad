//! How long backups are kept.

use std::fmt;
use std::num::NonZeroU32;

/// How long backups are kept: one a day for some days, then one a week for
/// some weeks, and so on. With nothing set, backups are kept for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// Days.
    pub days: Option<NonZeroU32>,
    /// Weeks.
    pub weeks: Option<NonZeroU32>,
    /// Months.
    pub months: Option<NonZeroU32>,
    /// Years.
    pub years: Option<NonZeroU32>,
}

impl Retention {
    /// What `retention` may be, for messages.
    pub(super) const ALLOWED: &'static str =
        "numbers of days, weeks, months and years, such as \"7\" or \"7, -, 12, 1\"";

    /// Reads `days, weeks, months, years`; an empty field, `-`, `x` or 0 leaves
    /// that one out, and so does a field that is not there.
    pub(super) fn parse(text: &str) -> Option<Retention> {
        let mut fields = text.split(',').map(|field| match field.trim() {
            "" | "-" | "x" | "X" => Some(None),
            number => number.parse().ok().map(NonZeroU32::new),
        });
        let mut next = || fields.next().unwrap_or(Some(None));
        let retention = Retention {
            days: next()?,
            weeks: next()?,
            months: next()?,
            years: next()?,
        };
        fields.next().is_none().then_some(retention)
    }

    /// Backups are kept for ever.
    pub fn is_unlimited(&self) -> bool {
        *self == Retention::default()
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |field: Option<NonZeroU32>| match field {
            Some(number) => number.to_string(),
            None => "-".to_owned(),
        };
        write!(
            f,
            "{}, {}, {}, {}",
            show(self.days),
            show(self.weeks),
            show(self.months),
            show(self.years)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_may_be_left_out() {
        let cases = [
            ("7", Some("7, -, -, -")),
            ("7, -, 12, 1", Some("7, -, 12, 1")),
            (" x ,4,X", Some("-, 4, -, -")),
            ("7,,,2", Some("7, -, -, 2")),
            ("0", Some("-, -, -, -")),
            ("7 days", None),
            ("-1", None),
            ("1,2,3,4,5", None),
        ];
        for (text, expected) in cases {
            let shown = Retention::parse(text).map(|retention| retention.to_string());
            assert_eq!(shown.as_deref(), expected, "{text}");
        }
        assert!(Retention::default().is_unlimited());
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_read(fields in any::<[u32; 4]>()) {
            let [days, weeks, months, years] = fields.map(NonZeroU32::new);
            let retention = Retention { days, weeks, months, years };
            prop_assert_eq!(Retention::parse(&retention.to_string()), Some(retention));
        }
    }
}
