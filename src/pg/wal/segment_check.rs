//! Checks a WAL segment by its page headers, its records unread.
//!
//! Where a segment was left early, by pg_switch_wal or at the end of a backup,
//! its last record is a switch and the pages behind that one are zero, headers
//! included (access/transam/xlog.c, CopyXLogRecordToWAL). A crash in between leaves
//! them as they were when the file was recycled. Recovery looks at none of
//! them, and neither does this check. The other records are not read here.

use std::fmt;

use super::page::{Origin, PageDefect, WAL_PAGE_SIZE};
use super::record::{OPERATION, RECORD_HEADER, ResourceManager, XLOG_SWITCH};
use crate::pg::little_endian::u32_at;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::version::Major;

/// Bytes in a record that switches to the next segment: it is nothing but a header.
const SWITCH_RECORD: usize = RECORD_HEADER;

/// A segment being checked while its bytes pass by.
#[derive(Debug)]
pub struct SegmentCheck {
    origin: Origin,
    segment: SegmentName,
    until: Lsn,
    length: u64,
    /// The page whose bytes are coming in.
    page: Vec<u8>,
    /// What is between the headers of the last pages, enough of it to hold the
    /// last record if that is a switch.
    content: Vec<u8>,
    /// Whether it was a switch: what follows says nothing.
    is_left: bool,
    fault: Option<SegmentFault>,
}

impl SegmentCheck {
    /// Expects the whole of `segment`. Pages that begin at `until` or above are
    /// not looked at: the tail of a segment still being written, or of the last
    /// one a backup needs, may be left over from a recycled file.
    pub fn new(
        major: Major,
        system_identifier: u64,
        segment: SegmentName,
        size: SegmentSize,
        until: Lsn,
    ) -> SegmentCheck {
        SegmentCheck {
            origin: Origin {
                major,
                system_identifier,
                segment_size: size,
            },
            segment,
            until,
            length: 0,
            page: Vec::with_capacity(WAL_PAGE_SIZE),
            content: Vec::with_capacity(SWITCH_RECORD + WAL_PAGE_SIZE),
            is_left: false,
            fault: None,
        }
    }

    /// Moves the end of what is looked at, once that is known; no page above it may have come in.
    pub fn ends_at(&mut self, until: Lsn) {
        self.until = until;
    }

    /// Takes the next bytes of the segment, however many.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let missing = WAL_PAGE_SIZE - self.page.len();
            let (now, later) = bytes.split_at(bytes.len().min(missing));
            self.page.extend_from_slice(now);
            self.length += now.len() as u64;
            if self.page.len() == WAL_PAGE_SIZE {
                self.end_page();
            }
            bytes = later;
        }
    }

    /// The verdict, once the segment's last byte was pushed.
    pub fn finish(self) -> Result<(), SegmentFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let size = self.origin.segment_size;
        if self.length != size.bytes() {
            return Err(SegmentFault::Length {
                file_name: self.segment.file_name(size),
                expected: size.bytes(),
                found: self.length,
            });
        }
        Ok(())
    }

    /// Checks the page that has just been filled and makes room for the next.
    fn end_page(&mut self) {
        let page_offset = self.length - WAL_PAGE_SIZE as u64;
        let size = self.origin.segment_size;
        let start = self.segment.number.start(size);
        let address = Lsn(start.0.saturating_add(page_offset));
        // What is beyond the segment is a matter of its length.
        if self.fault.is_none() && address < self.until && page_offset < size.bytes() {
            let checked = self.check_page(address);
            self.fault = checked.err().map(|defect| SegmentFault::Page {
                file_name: self.segment.file_name(size),
                page_offset,
                defect,
            });
        }
        self.page.clear();
    }

    fn check_page(&mut self, address: Lsn) -> Result<(), PageDefect> {
        if self.is_left {
            return Ok(());
        }
        let header = match self.origin.header(&self.page, address) {
            Err(_) if ends_in_switch(&self.content) => {
                self.is_left = true;
                return Ok(());
            }
            header => header?,
        };
        if header.timeline > self.segment.timeline {
            return Err(PageDefect::TimelineAbove {
                highest: self.segment.timeline,
                found: header.timeline,
            });
        }
        let outdated = self.content.len().saturating_sub(SWITCH_RECORD);
        self.content.drain(..outdated);
        let header_length = self.origin.header_length(address);
        self.content.extend_from_slice(&self.page[header_length..]);
        Ok(())
    }
}

/// Whether the last thing in the WAL between page headers that is not zero is
/// the record of a switch. Records begin and end at multiples of eight bytes,
/// and the first of this one's last eight is never zero.
fn ends_in_switch(content: &[u8]) -> bool {
    let used = content.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
    let end = used.next_multiple_of(8);
    let Some(start) = end.checked_sub(SWITCH_RECORD) else {
        return false;
    };
    let record = &content[start..end];
    u32_at(record, 0) == SWITCH_RECORD as u32
        && record[16] & OPERATION == XLOG_SWITCH
        && record[17] == ResourceManager::XLOG.0
        && u32_at(record, 20) == crc32c::crc32c(&record[..20])
}

/// The first thing wrong with a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SegmentFault {
    /// A page is not the one that belongs there.
    Page {
        /// The segment's name.
        file_name: String,
        /// Where in the file the page begins, in bytes.
        page_offset: u64,
        /// What its header says wrongly.
        defect: PageDefect,
    },
    /// There were too few bytes, or too many.
    Length {
        /// The segment's name.
        file_name: String,
        /// Bytes in a segment of this cluster.
        expected: u64,
        /// Bytes there were.
        found: u64,
    },
}

impl fmt::Display for SegmentFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SegmentFault::Page {
                file_name,
                page_offset,
                defect,
            } => write!(
                f,
                "the page at offset {page_offset} of WAL segment {file_name} {defect}"
            ),
            SegmentFault::Length {
                file_name,
                expected,
                found,
            } => write!(
                f,
                "WAL segment {file_name} has {found} bytes instead of {expected}"
            ),
        }
    }
}

impl std::error::Error for SegmentFault {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::super::page::SHORT_HEADER;
    use super::*;
    use crate::pg::lsn::Timeline;
    use crate::pg::segment::SegmentNumber;

    const CLUSTER: u64 = 7_710_982_562_572_587_380;

    fn size() -> SegmentSize {
        SegmentSize::new(1 << 20).unwrap()
    }

    fn name() -> SegmentName {
        SegmentName {
            timeline: Timeline(3),
            number: SegmentNumber(7),
        }
    }

    /// A sound segment of timeline 3, whose first pages are still of timeline 2.
    fn segment() -> Vec<u8> {
        let mut bytes = vec![0xA5; size().bytes() as usize];
        let mut address = name().number.start(size()).0;
        for (index, page) in bytes.chunks_mut(WAL_PAGE_SIZE).enumerate() {
            page[..2].copy_from_slice(&0xD110_u16.to_le_bytes());
            page[2..4].copy_from_slice(&u16::to_le_bytes(if index == 0 { 2 } else { 1 }));
            page[4..8].copy_from_slice(&u32::to_le_bytes(if index < 5 { 2 } else { 3 }));
            page[8..16].copy_from_slice(&address.to_le_bytes());
            address += WAL_PAGE_SIZE as u64;
        }
        bytes[24..32].copy_from_slice(&CLUSTER.to_le_bytes());
        bytes[32..36].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        bytes[36..40].copy_from_slice(&8192_u32.to_le_bytes());
        bytes
    }

    fn check(bytes: &[u8], until: Lsn, piece: usize) -> Result<(), SegmentFault> {
        let mut check = SegmentCheck::new(Major::V15, CLUSTER, name(), size(), until);
        for piece in bytes.chunks(piece) {
            check.push(piece);
        }
        check.finish()
    }

    /// The fault after these bytes were put at an offset of a sound segment.
    fn defect(offset: usize, bytes: &[u8]) -> (u64, PageDefect) {
        let mut segment = segment();
        segment[offset..offset + bytes.len()].copy_from_slice(bytes);
        match check(&segment, Lsn(u64::MAX), 100_000).unwrap_err() {
            SegmentFault::Page {
                page_offset,
                defect,
                ..
            } => (page_offset, defect),
            fault => unreachable!("{fault}"),
        }
    }

    #[test]
    fn passes_a_sound_segment_in_pieces_of_any_length() {
        let segment = segment();
        for piece in [1, 7, 24, 40, 8191, 8192, 8193, 65_536, 1 << 20] {
            assert_eq!(check(&segment, Lsn(u64::MAX), piece), Ok(()), "{piece}");
        }
    }

    #[test]
    fn finds_each_wrong_field() {
        let third = 3 * WAL_PAGE_SIZE;
        assert_eq!(
            defect(third, &[0x0D, 0xD1]),
            (
                third as u64,
                PageDefect::Magic {
                    expected: 0xD110,
                    found: 0xD10D
                }
            )
        );
        assert_eq!(defect(third + 2, &[0x11]).1, PageDefect::Flags(0x11));
        assert_eq!(defect(third + 2, &[0x03]).1, PageDefect::Flags(0x03));
        assert_eq!(defect(2, &[0x00]), (0, PageDefect::Flags(0x00)));
        assert_eq!(defect(third + 4, &[0]).1, PageDefect::NoTimeline);
        assert_eq!(
            defect(third + 4, &[4]).1,
            PageDefect::TimelineAbove {
                highest: Timeline(3),
                found: Timeline(4)
            }
        );
        assert_eq!(
            defect(third + 8, &[0x00, 0x80]).1,
            PageDefect::Address {
                expected: Lsn(0x70_6000),
                found: Lsn(0x70_8000)
            }
        );
        assert!(matches!(
            defect(24, &[0]).1,
            PageDefect::SystemIdentifier {
                expected: CLUSTER,
                ..
            }
        ));
        assert!(matches!(
            defect(34, &[0]).1,
            PageDefect::SegmentSize { found: 0, .. }
        ));
        assert_eq!(defect(37, &[0x40]).1, PageDefect::PageSize(16_384));
    }

    #[test]
    fn names_the_file_and_the_place() {
        let mut segment = segment();
        segment[8192..16_384].fill(0);
        let fault = check(&segment, Lsn(u64::MAX), 8192).unwrap_err();
        assert_eq!(
            fault.to_string(),
            "the page at offset 8192 of WAL segment 000000030000000000000007 \
             has the magic number 0000 instead of D110"
        );
    }

    #[test]
    fn looks_only_at_pages_that_begin_before_the_end() {
        let mut segment = segment();
        segment[2 * WAL_PAGE_SIZE..].fill(0);
        assert_eq!(check(&segment, Lsn(0x70_4000), 8192), Ok(()));
        assert!(check(&segment, Lsn(0x70_4001), 8192).is_err());
    }

    /// A sound segment that was left by a switch whose record ends this many
    /// bytes into the content of its third page.
    fn switched(end: usize) -> Vec<u8> {
        let mut record = [0; SWITCH_RECORD];
        record[0] = 24;
        record[8..16].copy_from_slice(&0x70_1234_u64.to_le_bytes());
        record[16] = XLOG_SWITCH;
        let checksum = crc32c::crc32c(&record[..20]);
        record[20..].copy_from_slice(&checksum.to_le_bytes());
        let mut segment = segment();
        let content = 2 * WAL_PAGE_SIZE + SHORT_HEADER;
        segment[content + end..].fill(0);
        let (earlier, later) = record.split_at(SWITCH_RECORD.saturating_sub(end));
        segment[content + end - later.len()..content + end].copy_from_slice(later);
        let page_end = 2 * WAL_PAGE_SIZE;
        segment[page_end - earlier.len()..page_end].copy_from_slice(earlier);
        segment
    }

    #[test]
    fn only_a_switch_may_be_followed_by_anything() {
        for end in [8, 16, 24, 32, 8168] {
            let segment = switched(end);
            assert_eq!(check(&segment, Lsn(u64::MAX), 8192), Ok(()), "{end}");
            for offset in [end - 1, end - 8] {
                let mut damaged = segment.clone();
                damaged[2 * WAL_PAGE_SIZE + SHORT_HEADER + offset] ^= 1;
                let fault = check(&damaged, Lsn(u64::MAX), 8192).unwrap_err();
                assert!(
                    matches!(
                        fault,
                        SegmentFault::Page {
                            page_offset: 24_576,
                            ..
                        }
                    ),
                    "{fault}"
                );
            }
        }
        let mut recycled = switched(8168);
        recycled[40_000..900_000].fill(1);
        assert_eq!(check(&recycled, Lsn(u64::MAX), 8192), Ok(()));
    }

    #[test]
    fn counts_the_bytes() {
        let mut segment = segment();
        segment.push(0);
        for (bytes, found) in [
            (&segment[..1 << 20], None),
            (&segment[..(1 << 20) - 1], Some((1 << 20) - 1)),
            (&segment[..], Some((1 << 20) + 1)),
            (&[][..], Some(0)),
        ] {
            let expected = found.map(|found| SegmentFault::Length {
                file_name: "000000030000000000000007".to_owned(),
                expected: 1 << 20,
                found,
            });
            assert_eq!(check(bytes, Lsn(u64::MAX), 8192).err(), expected);
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>, number: u64, piece in 1_usize..100) {
            let segment = SegmentName { timeline: Timeline(1), number: SegmentNumber(number) };
            let mut check = SegmentCheck::new(Major::V18, 1, segment, size(), Lsn(u64::MAX));
            bytes.chunks(piece).for_each(|piece| check.push(piece));
            prop_assert!(check.finish().is_err());
        }
    }
}
