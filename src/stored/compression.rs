//! The compression of stored files: zstd, gzip, lz4, bzip2 or none.

use std::fmt;
use std::io::{self, BufRead, Read, Write};

use serde::{Deserialize, Serialize};
use zstd::zstd_safe::CParameter;

use crate::error::{Error, Result};

/// How stored files are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Zstandard, `.zstd`.
    #[default]
    Zstd,
    /// gzip, `.gz`.
    Gzip,
    /// The LZ4 frame format, `.lz4`.
    Lz4,
    /// bzip2, `.bz2`.
    Bzip2,
    /// Files are stored as they are.
    None,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Algorithm; 5] = [
        Algorithm::Zstd,
        Algorithm::Gzip,
        Algorithm::Lz4,
        Algorithm::Bzip2,
        Algorithm::None,
    ];

    /// What `compression` may be, for messages.
    pub const ALLOWED: &'static str = "zstd, gzip, lz4, bzip2 or none";

    /// Reads an algorithm's name. pgmoneta's `client-` and `server-` say
    /// where the work is done; here that is always the client.
    pub fn parse(text: &str) -> Option<Algorithm> {
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

    /// What a stored file's name ends in, with the dot; empty for none.
    pub fn suffix(self) -> &'static str {
        match self {
            Algorithm::Zstd => ".zstd",
            Algorithm::Gzip => ".gz",
            Algorithm::Lz4 => ".lz4",
            Algorithm::Bzip2 => ".bz2",
            Algorithm::None => "",
        }
    }

    /// Splits a name into what is before the suffix, and the algorithm that this means.
    pub(super) fn split_suffix(name: &str) -> (&str, Algorithm) {
        let compressing = Algorithm::ALL
            .into_iter()
            .filter(|algorithm| *algorithm != Algorithm::None);
        compressing
            .into_iter()
            .find_map(|algorithm| Some((name.strip_suffix(algorithm.suffix())?, algorithm)))
            .unwrap_or((name, Algorithm::None))
    }

    /// The levels it has, and the one it takes by itself.
    fn levels(self) -> Option<Levels> {
        let levels = |range, default| Some(Levels { range, default });
        match self {
            // zstd.h: ZSTD_maxCLevel(); the negative levels compress less than lz4.
            Algorithm::Zstd => levels(1..=22, 3),
            Algorithm::Gzip => levels(1..=9, 6),
            Algorithm::Bzip2 => levels(1..=9, 9),
            Algorithm::Lz4 | Algorithm::None => None,
        }
    }
}

struct Levels {
    range: std::ops::RangeInclusive<i32>,
    default: i32,
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
    level: Option<i32>,
}

impl Compression {
    /// Content is stored as it is.
    pub const NONE: Compression = Compression {
        algorithm: Algorithm::None,
        level: None,
    };

    /// An algorithm with the level it takes by itself.
    pub const fn of(algorithm: Algorithm) -> Compression {
        Compression {
            algorithm,
            level: None,
        }
    }

    /// Checks that the algorithm has the level; the error says which it has.
    /// Without compression any level is fine, and none is taken.
    pub fn new(
        algorithm: Algorithm,
        level: Option<i32>,
    ) -> std::result::Result<Compression, String> {
        let level = level.filter(|_| algorithm != Algorithm::None);
        match (level, algorithm.levels()) {
            (Some(_), None) => Err(format!("left out, as {algorithm} has no levels")),
            (Some(level), Some(Levels { range, .. })) if !range.contains(&level) => Err(format!(
                "a level of {algorithm} between {} and {}",
                range.start(),
                range.end()
            )),
            _ => Ok(Compression { algorithm, level }),
        }
    }

    /// The level in force, where the algorithm has levels.
    pub fn level(self) -> Option<i32> {
        self.level
            .or(self.algorithm.levels().map(|levels| levels.default))
    }
}

/// Compresses slices, each into a frame that stands by itself. One a worker:
/// what a codec can keep from one slice to the next is kept.
pub struct Compressor {
    compression: Compression,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Compressor {
    /// A compressor for this algorithm and level.
    pub fn new(compression: Compression) -> Result<Compressor> {
        let zstd = match compression.algorithm {
            Algorithm::Zstd => Some(
                zstd_compressor(compression)
                    .map_err(|error| Error::failed(format!("cannot set up zstd: {error}")))?,
            ),
            _ => None,
        };
        Ok(Compressor { compression, zstd })
    }

    /// Puts `plain`, compressed, into `frame` in place of what it held.
    pub fn compress(&mut self, plain: &[u8], frame: &mut Vec<u8>) -> Result<()> {
        frame.clear();
        self.fill_frame(plain, frame).map_err(|error| {
            Error::failed(format!(
                "cannot compress with {}: {error}",
                self.compression.algorithm
            ))
        })
    }

    fn fill_frame(&mut self, plain: &[u8], frame: &mut Vec<u8>) -> io::Result<()> {
        let level = self.compression.level().unwrap_or_default();
        match (self.compression.algorithm, &mut self.zstd) {
            (Algorithm::Zstd, Some(zstd)) => {
                frame.reserve(zstd::zstd_safe::compress_bound(plain.len()));
                zstd.compress_to_buffer(plain, frame)?;
            }
            (Algorithm::Zstd | Algorithm::None, _) => frame.extend_from_slice(plain),
            (Algorithm::Gzip, _) => {
                let level = flate2::Compression::new(level.unsigned_abs());
                let mut gzip = flate2::write::GzEncoder::new(frame, level);
                gzip.write_all(plain)?;
                gzip.finish()?;
            }
            (Algorithm::Bzip2, _) => {
                let level = bzip2::Compression::new(level.unsigned_abs());
                let mut bzip2 = bzip2::write::BzEncoder::new(frame, level);
                bzip2.write_all(plain)?;
                bzip2.finish()?;
            }
            (Algorithm::Lz4, _) => {
                let info = lz4_flex::frame::FrameInfo::new()
                    .block_size(lz4_flex::frame::BlockSize::Max1MB)
                    .content_checksum(true);
                let mut lz4 = lz4_flex::frame::FrameEncoder::with_frame_info(info, frame);
                lz4.write_all(plain)?;
                lz4.finish()?;
            }
        }
        Ok(())
    }
}

/// Levels up to here are chosen for speed. Their window is kept to 2^19 bytes, which with
/// zstd's tables stays in a core's cache: on the pages of pgbench_accounts level 3 then
/// takes 1.9 GB/s in place of 1.3, on its index 0.47 in place of 0.46, and what repeats in pages repeats nearby: the
/// result is 3 % smaller, and 0.2 % larger.
const FAST_LEVELS: i32 = 5;
const FAST_WINDOW_LOG: u32 = 19;

fn zstd_compressor(compression: Compression) -> io::Result<zstd::bulk::Compressor<'static>> {
    let mut zstd = zstd::bulk::Compressor::new(compression.level().unwrap_or_default())?;
    // The other algorithms always have a checksum of the content.
    zstd.set_parameter(CParameter::ChecksumFlag(true))?;
    if compression.level() <= Some(FAST_LEVELS) {
        zstd.set_parameter(CParameter::WindowLog(FAST_WINDOW_LOG))?;
    }
    Ok(zstd)
}

/// Decompresses what [`Compressor`] wrote, all frames in turn.
pub fn decompress<'a>(
    algorithm: Algorithm,
    stored: impl BufRead + 'a,
) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match algorithm {
        Algorithm::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(stored)?),
        Algorithm::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stored)),
        Algorithm::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(stored)),
        Algorithm::Lz4 => Box::new(Lz4Frames(lz4_flex::frame::FrameDecoder::new(stored))),
        Algorithm::None => Box::new(stored),
    })
}

/// The decoder ends at the end of each frame; this goes on to the next.
struct Lz4Frames<R: BufRead>(lz4_flex::frame::FrameDecoder<R>);

impl<R: BufRead> Read for Lz4Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.0.read(buffer)?;
            if read > 0 || buffer.is_empty() || self.0.get_mut().fill_buf()?.is_empty() {
                return Ok(read);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_name_is_understood() {
        use Algorithm::{Bzip2, Gzip, Lz4, None, Zstd};
        let cases = [
            ("client-zstd", Zstd),
            ("server-zstd", Zstd),
            ("ZSTD", Zstd),
            ("server-gzip", Gzip),
            ("client-bzip2", Bzip2),
            ("bz2", Bzip2),
            ("off", None),
        ];
        for (text, expected) in cases {
            assert_eq!(Algorithm::parse(text), Some(expected), "{text}");
        }
        for text in ["", "zip", "client-", "zstd:3"] {
            assert_eq!(Algorithm::parse(text), Option::None, "{text}");
        }
        for algorithm in [Zstd, Gzip, Lz4, Bzip2, None] {
            assert_eq!(Algorithm::parse(&algorithm.to_string()), Some(algorithm));
        }
    }

    #[test]
    fn levels_are_checked_for_the_algorithm() {
        let cases = [
            (Algorithm::Zstd, 22, true),
            (Algorithm::Zstd, 23, false),
            (Algorithm::Gzip, 9, true),
            (Algorithm::Gzip, 0, false),
            (Algorithm::Bzip2, 10, false),
            (Algorithm::Lz4, 1, false),
            (Algorithm::None, 99, true),
        ];
        for (algorithm, level, fits) in cases {
            let checked = Compression::new(algorithm, Some(level));
            assert_eq!(checked.is_ok(), fits, "{algorithm} {level}");
        }
        assert_eq!(Compression::default().level(), Some(3));
        assert_eq!(
            Compression::new(Algorithm::None, Some(3)).unwrap().level(),
            None
        );
    }

    proptest! {
        #![proptest_config(crate::chance::cases(86))]

        #[test]
        fn frames_one_after_the_other_read_as_one(
            slices in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 1..5),
        ) {
            for algorithm in [Algorithm::Zstd, Algorithm::Gzip, Algorithm::Lz4, Algorithm::Bzip2, Algorithm::None] {
                let mut compressor = Compressor::new(Compression::new(algorithm, None).unwrap()).unwrap();
                let mut stored = Vec::new();
                let mut frame = Vec::new();
                for slice in &slices {
                    compressor.compress(slice, &mut frame).unwrap();
                    stored.extend_from_slice(&frame);
                }
                let mut plain = Vec::new();
                decompress(algorithm, &stored[..]).unwrap().read_to_end(&mut plain).unwrap();
                prop_assert!(plain == slices.concat(), "{}", algorithm);
            }
        }
    }
}
