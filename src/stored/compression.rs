//! The compression of stored files: zstd, gzip, lz4, bzip2 or none.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How stored files are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Zstandard, `.zstd`.
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
    /// Every algorithm, the default first.
    pub const ALL: [Algorithm; 5] = [
        Algorithm::Zstd,
        Algorithm::Gzip,
        Algorithm::Lz4,
        Algorithm::Bzip2,
        Algorithm::None,
    ];

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

    /// The levels it accepts and the one it takes by itself; `None` where it
    /// has no levels.
    pub fn levels(self) -> Option<Levels> {
        match self {
            Algorithm::Zstd => Some(Levels { least: 1, most: 19, default: 3 }),
            Algorithm::Gzip => Some(Levels { least: 1, most: 9, default: 6 }),
            Algorithm::Bzip2 => Some(Levels { least: 1, most: 9, default: 9 }),
            Algorithm::Lz4 | Algorithm::None => None,
        }
    }
}

/// The compression levels of an algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    /// The fastest.
    pub least: i32,
    /// The strongest.
    pub most: i32,
    /// The one taken when none is configured.
    pub default: i32,
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

/// A word that names no compression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownAlgorithm;

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    /// Reads an algorithm by its name, or by one of pgmoneta's words for it.
    fn from_str(word: &str) -> std::result::Result<Algorithm, UnknownAlgorithm> {
        match word.to_ascii_lowercase().as_str() {
            "zstd" | "client-zstd" | "server-zstd" => Ok(Algorithm::Zstd),
            "gzip" | "client-gzip" | "server-gzip" => Ok(Algorithm::Gzip),
            "lz4" | "client-lz4" | "server-lz4" => Ok(Algorithm::Lz4),
            "bzip2" | "bz2" | "client-bzip2" => Ok(Algorithm::Bzip2),
            "none" | "off" => Ok(Algorithm::None),
            _ => Err(UnknownAlgorithm),
        }
    }
}

/// An algorithm with its level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Its level; `None` for the algorithm's default. Checked by [`Compression::new`].
    level: Option<i32>,
}

impl Compression {
    /// An algorithm with a level, where the level fits; `None` where it does not.
    pub fn new(algorithm: Algorithm, level: Option<i32>) -> Option<Compression> {
        let fits = match (level, algorithm.levels()) {
            (None, _) => true,
            (Some(level), Some(levels)) => (levels.least..=levels.most).contains(&level),
            (Some(_), None) => false,
        };
        fits.then_some(Compression { algorithm, level })
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
            Algorithm::Zstd => Some(zstd_compressor(compression).map_err(|error| {
                Error::failed(format!("cannot set up zstd: {error}"))
            })?),
            _ => None,
        };
        Ok(Compressor { compression, zstd })
    }

    /// Appends `plain`, compressed, to `frame`.
    pub fn compress(&mut self, plain: &[u8], frame: &mut Vec<u8>) -> Result<()> {
        self.append_frame(plain, frame).map_err(|error| {
            Error::failed(format!("cannot compress with {}: {error}", self.compression.algorithm))
        })
    }

    fn append_frame(&mut self, plain: &[u8], frame: &mut Vec<u8>) -> io::Result<()> {
        let level = self.compression.level().unwrap_or_default();
        match (self.compression.algorithm, &mut self.zstd) {
            (Algorithm::Zstd, Some(zstd)) => {
                let start = frame.len();
                let bound = zstd::zstd_safe::compress_bound(plain.len());
                frame.resize(start + bound, 0);
                let written = zstd.compress_to_buffer(plain, &mut frame[start..])?;
                frame.truncate(start + written);
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

fn zstd_compressor(compression: Compression) -> io::Result<zstd::bulk::Compressor<'static>> {
    let mut zstd = zstd::bulk::Compressor::new(compression.level().unwrap_or_default())?;
    zstd.include_checksum(true)?;
    Ok(zstd)
}

/// Decompresses what [`Compressor`] wrote, all frames in turn.
pub fn decompress<'a>(algorithm: Algorithm, stored: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match algorithm {
        Algorithm::Zstd => Box::new(zstd::stream::read::Decoder::new(stored)?),
        Algorithm::Gzip => Box::new(flate2::read::MultiGzDecoder::new(stored)),
        Algorithm::Bzip2 => Box::new(bzip2::read::MultiBzDecoder::new(stored)),
        Algorithm::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(stored)),
        Algorithm::None => Box::new(stored),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn levels_are_checked_for_each_algorithm() {
        assert!(Compression::new(Algorithm::Zstd, Some(19)).is_some());
        assert!(Compression::new(Algorithm::Zstd, Some(20)).is_none());
        assert!(Compression::new(Algorithm::Gzip, Some(0)).is_none());
        assert!(Compression::new(Algorithm::None, Some(1)).is_none());
        assert_eq!(Compression::new(Algorithm::Zstd, None).unwrap().level(), Some(3));
    }

    proptest! {
        #[test]
        fn frames_one_after_the_other_read_as_one(
            slices in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 1..5),
        ) {
            for algorithm in Algorithm::ALL {
                let mut compressor = Compressor::new(Compression::new(algorithm, None).unwrap()).unwrap();
                let mut stored = Vec::new();
                for slice in &slices {
                    compressor.compress(slice, &mut stored).unwrap();
                }
                let mut plain = Vec::new();
                decompress(algorithm, &stored[..]).unwrap().read_to_end(&mut plain).unwrap();
                prop_assert_eq!(&plain, &slices.concat(), "{}", algorithm);
            }
        }
    }
}
