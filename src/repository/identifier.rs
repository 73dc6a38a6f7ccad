//! Names of backups, and the words a user picks one with.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, DateTime};
use jiff::{Timestamp, ToSpan, tz::TimeZone};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const FORMAT: &str = "%Y%m%d%H%M%S";

/// A backup's identifier: the UTC time it started, `YYYYMMDDHHMMSS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identifier(DateTime);

impl Identifier {
    /// The identifier of a backup that starts at this time, to the second.
    pub fn at(time: Timestamp) -> Identifier {
        let time = TimeZone::UTC.to_datetime(time);
        Identifier(time.with().subsec_nanosecond(0).build().unwrap_or(time))
    }

    /// The second behind it, unless it is the calendar's last.
    pub fn next(self) -> Option<Identifier> {
        self.0.checked_add(1.second()).ok().map(Identifier)
    }

    /// The time it stands for.
    pub fn time(self) -> Option<Timestamp> {
        TimeZone::UTC.to_timestamp(self.0).ok()
    }

    /// The day of that time in UTC.
    pub fn date(self) -> Date {
        self.0.date()
    }

    /// Its fourteen digits as a number.
    pub fn number(self) -> u64 {
        self.to_string().parse().unwrap_or_default()
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.strftime(FORMAT))
    }
}

/// A text that is no identifier of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoIdentifier;

impl fmt::Display for NoIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no backup identifier (YYYYMMDDHHMMSS)")
    }
}

impl FromStr for Identifier {
    type Err = NoIdentifier;

    fn from_str(text: &str) -> Result<Identifier, NoIdentifier> {
        if text.len() != 14 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NoIdentifier);
        }
        DateTime::strptime(FORMAT, text)
            .map(Identifier)
            .map_err(|_| NoIdentifier)
    }
}

impl Serialize for Identifier {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Identifier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Identifier, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// How a user names a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// `newest` or `latest`: the newest valid one.
    Newest,
    /// `oldest`: the oldest valid one.
    Oldest,
    /// An identifier, or its first digits.
    Prefix(String),
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(word: &str) -> Result<Selector, String> {
        match word {
            "newest" | "latest" => Ok(Selector::Newest),
            "oldest" => Ok(Selector::Oldest),
            digits
                if !digits.is_empty()
                    && digits.len() <= 14
                    && digits.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                Ok(Selector::Prefix(digits.to_owned()))
            }
            _ => Err("expected an identifier (YYYYMMDDHHMMSS), its first digits, newest, latest or oldest".to_owned()),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Selector::Newest => "newest",
            Selector::Oldest => "oldest",
            Selector::Prefix(digits) => digits,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_identifier_is_the_second_the_backup_started() {
        let time: Timestamp = "2024-09-28T06:56:44.987Z".parse().unwrap();
        let identifier = Identifier::at(time);
        assert_eq!(identifier.to_string(), "20240928065644");
        assert_eq!("20240928065644".parse(), Ok(identifier));
        assert_eq!(identifier.number(), 20_240_928_065_644);
        let last: Identifier = "20241231235959".parse().unwrap();
        assert_eq!(last.next().unwrap().to_string(), "20250101000000");
        assert_eq!("99991231235959".parse::<Identifier>().unwrap().next(), None);
        for wrong in [
            "",
            "2024",
            "20241328065644",
            "2024092806564x",
            "20240928065644.building",
        ] {
            assert_eq!(wrong.parse::<Identifier>(), Err(NoIdentifier), "{wrong}");
        }
    }

    #[test]
    fn a_selector_is_a_word_or_digits() {
        assert_eq!("latest".parse(), Ok(Selector::Newest));
        assert_eq!("oldest".parse(), Ok(Selector::Oldest));
        assert_eq!("2024".parse(), Ok(Selector::Prefix("2024".to_owned())));
        assert!("../x".parse::<Selector>().is_err());
        assert!("".parse::<Selector>().is_err());
    }
}
