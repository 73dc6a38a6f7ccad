//! Positions in the WAL: log sequence numbers and timelines
//! (access/xlogdefs.h).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::Error;
use crate::pg::segment::{SegmentNumber, SegmentSize};

/// A byte position in the WAL, counted from the beginning of all WAL.
///
/// Written as PostgreSQL writes it: both halves in upper-case hexadecimal
/// without padding, `16/B374D848`. Zero is PostgreSQL's "no position".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The half in front of the slash.
    pub fn high(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The half behind the slash.
    pub fn low(self) -> u32 {
        self.0 as u32
    }

    /// The segment that holds the byte at this position (XLByteToSeg).
    pub fn segment(self, size: SegmentSize) -> SegmentNumber {
        SegmentNumber(self.0 / size.bytes())
    }

    /// The segment that holds the byte before this position (XLByteToPrevSeg):
    /// the last one needed when this is where the WAL that matters ends.
    pub fn previous_segment(self, size: SegmentSize) -> SegmentNumber {
        SegmentNumber(self.0.saturating_sub(1) / size.bytes())
    }

    /// Bytes between the beginning of the segment and this position.
    pub fn offset_in_segment(self, size: SegmentSize) -> u64 {
        self.0 % size.bytes()
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.high(), self.low())
    }
}

impl FromStr for Lsn {
    type Err = Error;

    /// Accepts what `pg_lsn` accepts (utils/adt/pg_lsn.c, pg_lsn_in_internal):
    /// one to eight hexadecimal digits on either side of a slash.
    fn from_str(text: &str) -> Result<Lsn, Error> {
        text.split_once('/')
            .and_then(|(high, low)| {
                let (high, low) = (half(high)?, half(low)?);
                Some(Lsn(u64::from(high) << 32 | u64::from(low)))
            })
            .ok_or_else(|| {
                Error::failed(format!("\"{text}\" is not a WAL position")).hint(
                    "PostgreSQL writes positions as two hexadecimal numbers, such as 16/B374D848",
                )
            })
    }
}

fn half(digits: &str) -> Option<u32> {
    // from_str_radix alone would also take a sign.
    if digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(digits, 16).ok()
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|error: Error| de::Error::custom(error.message()))
    }
}

/// One line of history of a cluster; every promotion begins a new one. Zero is
/// never a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn written_without_padding() {
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        assert_eq!(Lsn(0x0700_0028).to_string(), "0/7000028");
        assert_eq!("16/b374d848".parse::<Lsn>().unwrap(), Lsn(0x16_B374_D848));
    }

    #[test]
    fn refuses_what_is_no_position() {
        for text in [
            "",
            "/",
            "1",
            "1/",
            "/1",
            "+1/1",
            "1/+1",
            "000000001/0",
            "1/2/3",
            "G/0",
            " 1/2",
        ] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_first_byte_of_a_segment_ends_the_one_before() {
        let size = SegmentSize::new(16 << 20).unwrap();
        let boundary = Lsn(0x0300_0000);
        assert_eq!(boundary.segment(size), SegmentNumber(3));
        assert_eq!(boundary.previous_segment(size), SegmentNumber(2));
        assert_eq!(boundary.offset_in_segment(size), 0);
        let inside = Lsn(0x0300_0028);
        assert_eq!(inside.previous_segment(size), SegmentNumber(3));
        assert_eq!(inside.offset_in_segment(size), 0x28);
    }

    proptest! {
        #[test]
        fn there_and_back(position: u64, timeline: u32) {
            let lsn = Lsn(position);
            prop_assert_eq!(lsn.to_string().parse::<Lsn>().unwrap(), lsn);
            let json = serde_json::to_string(&(lsn, Timeline(timeline))).unwrap();
            prop_assert_eq!(&json, &format!("[\"{lsn}\",{timeline}]"));
            let back: (Lsn, Timeline) = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(back, (lsn, Timeline(timeline)));
        }

        #[test]
        fn never_panics(text: String) {
            let _ = text.parse::<Lsn>();
        }
    }
}
