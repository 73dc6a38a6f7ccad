//! How stored files are compressed.

use std::fmt;

/// A compression algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// Zstandard.
    #[default]
    Zstd,
    /// gzip.
    Gzip,
    /// LZ4 frames.
    Lz4,
    /// bzip2.
    Bzip2,
    /// Files are stored as they are.
    None,
}

impl Algorithm {
    /// What `compression` may be, for messages.
    pub(super) const ALLOWED: &'static str = "zstd, gzip, lz4, bzip2 or none";

    /// Reads a value of `compression`. pgmoneta's `client-` and `server-` say
    /// where the work is done; here that is always the client.
    pub(super) fn parse(text: &str) -> Option<Algorithm> {
        let name = text.to_ascii_lowercase();
        let name = name
            .strip_prefix("client-")
            .or_else(|| name.strip_prefix("server-"))
            .unwrap_or(&name);
        match name {
            "zstd" | "zst" => Some(Algorithm::Zstd),
            "gzip" | "gz" => Some(Algorithm::Gzip),
            "lz4" => Some(Algorithm::Lz4),
            "bzip2" | "bz2" => Some(Algorithm::Bzip2),
            "none" | "off" => Some(Algorithm::None),
            _ => None,
        }
    }

    /// The levels that the algorithm has; none has levels without compression.
    fn levels(self) -> std::ops::RangeInclusive<i32> {
        match self {
            // zstd.h: ZSTD_minCLevel() and ZSTD_maxCLevel().
            Algorithm::Zstd => -131_072..=22,
            Algorithm::Gzip | Algorithm::Bzip2 => 1..=9,
            Algorithm::Lz4 => 1..=12,
            Algorithm::None => i32::MIN..=i32::MAX,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Algorithm::Zstd => "zstd",
            Algorithm::Gzip => "gzip",
            Algorithm::Lz4 => "lz4",
            Algorithm::Bzip2 => "bzip2",
            Algorithm::None => "none",
        })
    }
}

/// An algorithm with a level that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compression {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Its level; `None` leaves the choice to the writer of stored files.
    /// Always `None` without compression.
    pub level: Option<i32>,
}

impl Compression {
    /// Checks that the algorithm has the level; the error says which it has.
    pub fn new(algorithm: Algorithm, level: Option<i32>) -> Result<Compression, String> {
        let levels = algorithm.levels();
        match level {
            Some(level) if !levels.contains(&level) => Err(format!(
                "a level of {algorithm} between {} and {}",
                levels.start(),
                levels.end()
            )),
            _ => Ok(Compression {
                algorithm,
                level: level.filter(|_| algorithm != Algorithm::None),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_understood() {
        use Algorithm::{Bzip2, Gzip, Lz4, None, Zstd};
        let cases = [
            ("zstd", Zstd),
            ("client-zstd", Zstd),
            ("server-zstd", Zstd),
            ("ZSTD", Zstd),
            ("gzip", Gzip),
            ("server-gzip", Gzip),
            ("lz4", Lz4),
            ("bzip2", Bzip2),
            ("client-bzip2", Bzip2),
            ("bz2", Bzip2),
            ("none", None),
            ("off", None),
        ];
        for (text, expected) in cases {
            assert_eq!(Algorithm::parse(text), Some(expected), "{text}");
        }
        for text in ["", "zip", "client-", "zstd:3"] {
            assert_eq!(Algorithm::parse(text), Option::None, "{text}");
        }
        for (_, algorithm) in cases {
            assert_eq!(Algorithm::parse(&algorithm.to_string()), Some(algorithm));
        }
    }

    #[test]
    fn levels_are_checked_for_the_algorithm() {
        let cases = [
            (Algorithm::Zstd, 22, true),
            (Algorithm::Zstd, -5, true),
            (Algorithm::Zstd, 23, false),
            (Algorithm::Gzip, 9, true),
            (Algorithm::Gzip, 0, false),
            (Algorithm::Gzip, 10, false),
            (Algorithm::Bzip2, 0, false),
            (Algorithm::Lz4, 12, true),
            (Algorithm::Lz4, 13, false),
            (Algorithm::None, 99, true),
        ];
        for (algorithm, level, allowed) in cases {
            let result = Compression::new(algorithm, Some(level));
            assert_eq!(result.is_ok(), allowed, "{algorithm} {level}");
        }
        assert_eq!(
            Compression::new(Algorithm::None, Some(3)).map(|compression| compression.level),
            Ok(None)
        );
    }
}
