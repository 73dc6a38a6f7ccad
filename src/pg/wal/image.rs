//! Images of whole pages in WAL records (access/xlogrecord.h, XLogRecordBlockImageHeader; the rules are those of
//! RestoreBlockImage in access/transam/xlogreader.c).
//!
//! The hole between pd_lower and pd_upper is left out. Compressed images, with `wal_compression`, are those of pglz
//! (common/pg_lzcompress.c), of a block of lz4 or a frame of zstd.

use crate::pg::page::PAGE_SIZE;
use crate::pg::version::Major;

/// How an image is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImageCompression {
    None,
    Pglz,
    Lz4,
    Zstd,
}

impl ImageCompression {
    /// By the bits of bimg_info that say so.
    pub(super) fn of(bits: u8, major: Major) -> ImageCompression {
        match bits {
            0 => ImageCompression::None,
            0x08 if major >= Major::V15 => ImageCompression::Lz4,
            0x10 if major >= Major::V15 => ImageCompression::Zstd,
            _ => ImageCompression::Pglz,
        }
    }
}

/// What a record says of an image before its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ImageHeader {
    pub(super) hole_offset: usize,
    pub(super) hole_length: usize,
    pub(super) compression: ImageCompression,
    /// Whether it is there to be replayed.
    pub(super) is_replayed: bool,
}

impl ImageHeader {
    pub(super) fn with(self, bytes: &[u8]) -> PageImage<'_> {
        PageImage {
            header: self,
            bytes,
        }
    }
}

/// A whole page as a record holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageImage<'a> {
    header: ImageHeader,
    bytes: &'a [u8],
}

impl PageImage<'_> {
    /// The page; nothing where the bytes are not what a server writes.
    pub fn page(&self) -> Option<[u8; PAGE_SIZE]> {
        let ImageHeader {
            hole_offset,
            hole_length,
            compression,
            ..
        } = self.header;
        let stored = PAGE_SIZE.checked_sub(hole_length)?;
        let mut plain = [0; PAGE_SIZE];
        let filled = plain.get_mut(..stored)?;
        match compression {
            ImageCompression::None => filled.copy_from_slice(self.bytes.get(..stored)?),
            ImageCompression::Pglz => pglz(self.bytes, filled)?,
            ImageCompression::Lz4 => {
                let length = lz4_flex::block::decompress_into(self.bytes, filled).ok()?;
                (length == stored).then_some(())?;
            }
            ImageCompression::Zstd => {
                let length = zstd::bulk::decompress_to_buffer(self.bytes, filled).ok()?;
                (length == stored).then_some(())?;
            }
        }
        let mut page = [0; PAGE_SIZE];
        let (front, behind) = plain.get(..stored)?.split_at_checked(hole_offset)?;
        page.get_mut(..hole_offset)?.copy_from_slice(front);
        page.get_mut(hole_offset + hole_length..)?
            .copy_from_slice(behind);
        Some(page)
    }
}

/// Undoes PostgreSQL's own compression (common/pg_lzcompress.c, pglz_decompress): a byte of eight flags, then for each a
/// byte as it is, or where the flag is set a reference back to what is already there, of 2 bytes or 3: the upper half of the
/// first and the second are how far back, the lower half how many bytes beyond three, and where that is 15 the third
/// adds to it.
fn pglz(mut compressed: &[u8], plain: &mut [u8]) -> Option<()> {
    let mut next = || {
        let (byte, left) = compressed.split_first()?;
        compressed = left;
        Some(*byte)
    };
    let mut filled = 0;
    while filled < plain.len() {
        let flags = next()?;
        for bit in 0..8 {
            if filled == plain.len() {
                break;
            }
            if flags >> bit & 1 == 0 {
                plain[filled] = next()?;
                filled += 1;
                continue;
            }
            let (first, second) = (usize::from(next()?), usize::from(next()?));
            let back = (first & 0xF0) << 4 | second;
            let mut length = (first & 0x0F) + 3;
            if length == 18 {
                length += usize::from(next()?);
            }
            let from = filled.checked_sub(back).filter(|_| back > 0)?;
            let end = filled
                .checked_add(length)
                .filter(|end| *end <= plain.len())?;
            // It may reach into what it is just writing.
            for place in 0..end - filled {
                plain[filled + place] = plain[from + place];
            }
            filled = end;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn header(compression: ImageCompression) -> ImageHeader {
        ImageHeader {
            is_replayed: true,
            hole_offset: 100,
            hole_length: 7000,
            compression,
        }
    }

    fn plain() -> Vec<u8> {
        (0..1192_u32).map(|at| (at / 7) as u8).collect()
    }

    #[test]
    fn the_hole_is_put_back() {
        let plain = plain();
        let lz4 = lz4_flex::block::compress(&plain);
        let zstd = zstd::bulk::compress(&plain, 1).unwrap();
        for (compression, bytes) in [
            (ImageCompression::None, &plain),
            (ImageCompression::Lz4, &lz4),
            (ImageCompression::Zstd, &zstd),
        ] {
            let page = header(compression).with(bytes).page().unwrap();
            assert_eq!(page[..100], plain[..100]);
            assert!(page[100..7100].iter().all(|byte| *byte == 0));
            assert_eq!(page[7100..], plain[100..]);
            assert_eq!(header(compression).with(&bytes[1..]).page(), None);
        }
    }

    #[test]
    fn pglz_goes_back_into_what_it_writes() {
        let mut plain = [0; 30];
        // "ab", then 28 bytes from two back: a length of 18 and 10 more.
        pglz(&[0b100, b'a', b'b', 0x0F, 2, 10], &mut plain).unwrap();
        assert_eq!(
            plain,
            *b"abababababababababababababababab"
                .first_chunk::<30>()
                .unwrap()
        );
        assert_eq!(pglz(&[0b1, 0x00, 1], &mut plain), None);
        assert_eq!(pglz(&[0b100, b'a', b'b', 0x0F, 2, 11], &mut plain), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>, hole_offset in 0..9000_usize, hole_length in 0..9000_usize, kind in 0..4_u8) {
            let compression = match kind {
                0 => ImageCompression::None,
                1 => ImageCompression::Pglz,
                2 => ImageCompression::Lz4,
                _ => ImageCompression::Zstd,
            };
            let _ = ImageHeader { hole_offset, hole_length, compression, is_replayed: true }.with(&bytes).page();
        }
    }
}
