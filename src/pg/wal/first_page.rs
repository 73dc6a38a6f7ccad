//! What the first page of a segment says of the cluster that wrote it.

use super::page::{LONG_HEADER, Origin};
use crate::pg::little_endian::{u16_at, u32_at, u64_at};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentSize;
use crate::pg::version::Major;

/// The fields of a segment's first page that tell whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstPage {
    /// The release that wrote it.
    pub major: Major,
    /// The cluster.
    pub system_identifier: u64,
    /// The size of the cluster's segments.
    pub segment_size: SegmentSize,
    /// Where the segment begins.
    pub address: Lsn,
}

impl FirstPage {
    /// Bytes that tell it.
    pub const BYTES: usize = LONG_HEADER;

    /// Reads the beginning of a segment; nothing where it is none of a release that is known.
    pub fn parse(bytes: &[u8]) -> Option<FirstPage> {
        if bytes.len() < FirstPage::BYTES {
            return None;
        }
        let magic = u16_at(bytes, 0);
        let page = FirstPage {
            major: Major::ALL
                .into_iter()
                .find(|major| major.wal_page_magic() == magic)?,
            system_identifier: u64_at(bytes, 24),
            segment_size: SegmentSize::new(u32_at(bytes, 32).into())?,
            address: Lsn(u64_at(bytes, 8)),
        };
        let origin = Origin {
            major: page.major,
            system_identifier: page.system_identifier,
            segment_size: page.segment_size,
        };
        origin.header(bytes, page.address).ok()?;
        (page.address.offset_in_segment(page.segment_size) == 0).then_some(page)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn header() -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&0xD116_u16.to_le_bytes());
        bytes.extend_from_slice(&2_u16.to_le_bytes());
        bytes.extend_from_slice(&1_u32.to_le_bytes());
        bytes.extend_from_slice(&(5_u64 << 24).to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&77_u64.to_le_bytes());
        bytes.extend_from_slice(&(16_u32 << 20).to_le_bytes());
        bytes.extend_from_slice(&8192_u32.to_le_bytes());
        bytes
    }

    #[test]
    fn tells_the_cluster() {
        let page = FirstPage::parse(&header()).unwrap();
        assert_eq!((page.major, page.system_identifier), (Major::V17, 77));
        assert_eq!(page.segment_size.bytes(), 16 << 20);
        assert_eq!(page.address, Lsn(5 << 24));
        for (at, value) in [(0, 1), (2, 0), (4, 0), (8, 1), (9, 0x20), (35, 0), (37, 0)] {
            let mut bytes = header();
            bytes[at] = value;
            assert_eq!(FirstPage::parse(&bytes), None, "{at}");
        }
        assert_eq!(FirstPage::parse(&header()[..39]), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = FirstPage::parse(&bytes);
        }
    }
}
