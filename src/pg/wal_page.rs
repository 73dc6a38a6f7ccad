//! Checks a WAL segment by its page headers (access/xlog_internal.h; the rules
//! are those of XLogReaderValidatePageHeader in access/transam/xlogreader.c).
//!
//! Every page of 8 KiB begins with a header of 24 bytes:
//!
//! ```text
//!  0  u16  xlp_magic      tells the major release
//!  2  u16  xlp_info       flags, the lowest four bits
//!  4  u32  xlp_tli        timeline of the first record on the page
//!  8  u64  xlp_pageaddr   position of the page's first byte
//! 16  u32  xlp_rem_len    bytes left of a record begun on an earlier page
//! 20  u32  padding
//! ```
//!
//! and the first page of a segment, flagged by XLP_LONG_HEADER, goes on with:
//!
//! ```text
//! 24  u64  xlp_sysid         system identifier of the cluster
//! 32  u32  xlp_seg_size      bytes in a segment
//! 36  u32  xlp_xlog_blcksz   bytes in a WAL page
//! ```
//!
//! The records between the headers have checksums of their own; those are not
//! read here.

use std::fmt;

use crate::pg::little_endian::{u16_at, u32_at, u64_at};
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::version::Major;

/// Bytes in a WAL page (XLOG_BLCKSZ), as every packager builds PostgreSQL.
pub const WAL_PAGE_SIZE: usize = 8192;

const SHORT_HEADER: usize = 24;
const LONG_HEADER: usize = 40;
const XLP_LONG_HEADER: u16 = 0x0002;
const XLP_ALL_FLAGS: u16 = 0x000F;

/// A segment being checked while its bytes pass by.
#[derive(Debug)]
pub struct SegmentCheck {
    major: Major,
    system_identifier: u64,
    segment: SegmentName,
    size: SegmentSize,
    until: Lsn,
    length: u64,
    header: [u8; LONG_HEADER],
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
            major,
            system_identifier,
            segment,
            size,
            until,
            length: 0,
            header: [0; LONG_HEADER],
            fault: None,
        }
    }

    /// Takes the next bytes of the segment, however many.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let page_offset = self.length - self.length % WAL_PAGE_SIZE as u64;
            let position = (self.length - page_offset) as usize;
            let header_length = if page_offset == 0 {
                LONG_HEADER
            } else {
                SHORT_HEADER
            };
            let in_header = position < header_length;
            let end = if in_header {
                header_length
            } else {
                WAL_PAGE_SIZE
            };
            let (now, later) = bytes.split_at(bytes.len().min(end - position));
            self.length += now.len() as u64;
            if in_header {
                self.header[position..position + now.len()].copy_from_slice(now);
                if position + now.len() == header_length && self.fault.is_none() {
                    self.fault = self.page_fault(page_offset);
                }
            }
            bytes = later;
        }
    }

    /// The verdict, once the segment's last byte was pushed.
    pub fn finish(self) -> Result<(), SegmentFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if self.length != self.size.bytes() {
            return Err(SegmentFault::Length {
                file_name: self.segment.file_name(self.size),
                expected: self.size.bytes(),
                found: self.length,
            });
        }
        Ok(())
    }

    /// What is wrong with the page whose header has just been filled in.
    fn page_fault(&self, page_offset: u64) -> Option<SegmentFault> {
        let start = self.segment.number.start(self.size);
        // Beyond the last position there is no page; the length will be at fault.
        let address = Lsn(start.0.checked_add(page_offset)?);
        if address >= self.until || page_offset >= self.size.bytes() {
            return None;
        }
        let defect = self.short_header_defect(address).or_else(|| {
            (page_offset == 0)
                .then(|| self.long_header_defect())
                .flatten()
        })?;
        Some(SegmentFault::Page {
            file_name: self.segment.file_name(self.size),
            page_offset,
            defect,
        })
    }

    fn short_header_defect(&self, address: Lsn) -> Option<PageDefect> {
        let magic = u16_at(&self.header, 0);
        if magic != self.major.wal_page_magic() {
            return Some(PageDefect::Magic {
                expected: self.major.wal_page_magic(),
                found: magic,
            });
        }
        let found = Lsn(u64_at(&self.header, 8));
        if found != address {
            return Some(PageDefect::Address {
                expected: address,
                found,
            });
        }
        let flags = u16_at(&self.header, 2);
        let is_first = address == self.segment.number.start(self.size);
        if flags & !XLP_ALL_FLAGS != 0 || (flags & XLP_LONG_HEADER != 0) != is_first {
            return Some(PageDefect::Flags(flags));
        }
        let timeline = Timeline(u32_at(&self.header, 4));
        if timeline.0 == 0 || timeline > self.segment.timeline {
            return Some(PageDefect::Timeline {
                highest: self.segment.timeline,
                found: timeline,
            });
        }
        None
    }

    fn long_header_defect(&self) -> Option<PageDefect> {
        let system_identifier = u64_at(&self.header, 24);
        if system_identifier != self.system_identifier {
            return Some(PageDefect::SystemIdentifier {
                expected: self.system_identifier,
                found: system_identifier,
            });
        }
        let segment_size = u32_at(&self.header, 32);
        if u64::from(segment_size) != self.size.bytes() {
            return Some(PageDefect::SegmentSize {
                expected: self.size.bytes(),
                found: segment_size,
            });
        }
        let page_size = u32_at(&self.header, 36);
        if page_size != WAL_PAGE_SIZE as u32 {
            return Some(PageDefect::PageSize(page_size));
        }
        None
    }
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

/// A field of a WAL page's header that is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageDefect {
    /// The magic number is not this major release's; zero if the page was
    /// never written.
    Magic {
        /// This release's.
        expected: u16,
        /// The page's.
        found: u16,
    },
    /// The page belongs to another position.
    Address {
        /// Where the page is.
        expected: Lsn,
        /// Where it says it is.
        found: Lsn,
    },
    /// Unknown flags, or a long header where none belongs or the reverse.
    Flags(u16),
    /// The timeline is zero, or above the one in the segment's name.
    Timeline {
        /// The one in the segment's name.
        highest: Timeline,
        /// The page's.
        found: Timeline,
    },
    /// The segment belongs to another cluster.
    SystemIdentifier {
        /// This cluster's.
        expected: u64,
        /// The segment's.
        found: u64,
    },
    /// The segment belongs to a cluster with segments of another size.
    SegmentSize {
        /// This cluster's, in bytes.
        expected: u64,
        /// The segment's, in bytes.
        found: u32,
    },
    /// The segment belongs to a cluster with WAL pages of another size, this
    /// one in bytes.
    PageSize(u32),
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

impl fmt::Display for PageDefect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PageDefect::Magic { expected, found } => {
                write!(
                    f,
                    "has the magic number {found:04X} instead of {expected:04X}"
                )
            }
            PageDefect::Address { expected, found } => {
                write!(f, "belongs to position {found} instead of {expected}")
            }
            PageDefect::Flags(found) => write!(f, "has the invalid flags {found:04X}"),
            PageDefect::Timeline { highest, found } => write!(
                f,
                "is of timeline {found}, which cannot be in a segment of timeline {highest}"
            ),
            PageDefect::SystemIdentifier { expected, found } => {
                write!(f, "is of the cluster {found} instead of {expected}")
            }
            PageDefect::SegmentSize { expected, found } => write!(
                f,
                "is of a cluster with WAL segments of {found} bytes instead of {expected}"
            ),
            PageDefect::PageSize(found) => write!(
                f,
                "is of a cluster with WAL pages of {found} bytes instead of {WAL_PAGE_SIZE}"
            ),
        }
    }
}

impl std::error::Error for SegmentFault {}
