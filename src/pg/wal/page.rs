//! The headers of WAL pages (access/xlog_internal.h; the rules are those of
//! XLogReaderValidatePageHeader in access/transam/xlogreader.c).
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

use std::fmt;

use crate::pg::little_endian::{u16_at, u32_at, u64_at};
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::segment::SegmentSize;
use crate::pg::version::Major;

/// Bytes in a WAL page (XLOG_BLCKSZ), as every packager builds PostgreSQL.
pub const WAL_PAGE_SIZE: usize = 8192;

/// Bytes in the header of a page that is not the first of its segment.
pub(super) const SHORT_HEADER: usize = 24;
/// Bytes in the header of a segment's first page.
pub(super) const LONG_HEADER: usize = 40;

const XLP_FIRST_IS_CONTRECORD: u16 = 0x0001;
const XLP_LONG_HEADER: u16 = 0x0002;
const XLP_FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;
const XLP_ALL_FLAGS: u16 = 0x000F;

/// The cluster whose WAL is read: what every header must agree with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    pub(super) major: Major,
    pub(super) system_identifier: u64,
    pub(super) segment_size: SegmentSize,
}

/// Where WAL goes on at a position: at the beginning of a page that is behind its header.
pub fn behind_page_header(position: Lsn, segment_size: SegmentSize) -> Lsn {
    if position.0.is_multiple_of(WAL_PAGE_SIZE as u64) {
        Lsn(position.0 + header_length(position, segment_size) as u64)
    } else {
        position
    }
}

fn header_length(page: Lsn, segment_size: SegmentSize) -> usize {
    if page.offset_in_segment(segment_size) == 0 {
        LONG_HEADER
    } else {
        SHORT_HEADER
    }
}

impl Origin {
    /// Bytes in the header of the page that begins at a position.
    pub(super) fn header_length(&self, page: Lsn) -> usize {
        header_length(page, self.segment_size)
    }

    /// Reads the header of the page that begins at a position, from at least as
    /// many bytes as it has.
    pub(super) fn header(&self, bytes: &[u8], page: Lsn) -> Result<PageHeader, PageDefect> {
        let magic = u16_at(bytes, 0);
        if magic != self.major.wal_page_magic() {
            return Err(PageDefect::Magic {
                expected: self.major.wal_page_magic(),
                found: magic,
            });
        }
        let found = Lsn(u64_at(bytes, 8));
        if found != page {
            return Err(PageDefect::Address {
                expected: page,
                found,
            });
        }
        let flags = u16_at(bytes, 2);
        let is_first = page.offset_in_segment(self.segment_size) == 0;
        if flags & !XLP_ALL_FLAGS != 0 || (flags & XLP_LONG_HEADER != 0) != is_first {
            return Err(PageDefect::Flags(flags));
        }
        let timeline = Timeline(u32_at(bytes, 4));
        if timeline.0 == 0 {
            return Err(PageDefect::NoTimeline);
        }
        if is_first {
            self.check_long_header(bytes)?;
        }
        Ok(PageHeader {
            timeline,
            beginning: if flags & XLP_FIRST_IS_OVERWRITE_CONTRECORD != 0 {
                Beginning::InsteadOfRest
            } else if flags & XLP_FIRST_IS_CONTRECORD != 0 {
                Beginning::Rest(u32_at(bytes, 16))
            } else {
                Beginning::Record
            },
        })
    }

    fn check_long_header(&self, bytes: &[u8]) -> Result<(), PageDefect> {
        let system_identifier = u64_at(bytes, 24);
        if system_identifier != self.system_identifier {
            return Err(PageDefect::SystemIdentifier {
                expected: self.system_identifier,
                found: system_identifier,
            });
        }
        let segment_size = u32_at(bytes, 32);
        if u64::from(segment_size) != self.segment_size.bytes() {
            return Err(PageDefect::SegmentSize {
                expected: self.segment_size.bytes(),
                found: segment_size,
            });
        }
        let page_size = u32_at(bytes, 36);
        if page_size != WAL_PAGE_SIZE as u32 {
            return Err(PageDefect::PageSize(page_size));
        }
        Ok(())
    }
}

/// What the header of a page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageHeader {
    /// Of the first record on the page.
    pub(super) timeline: Timeline,
    pub(super) beginning: Beginning,
}

/// What follows the header of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beginning {
    /// A record.
    Record,
    /// The rest of a record begun on an earlier page, this many bytes, pages after
    /// this one included.
    Rest(u32),
    /// A record, although one begun on an earlier page has not ended: a crash cut
    /// that off, and it counts for nothing.
    InsteadOfRest,
}

/// A field of a WAL page's header that is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageDefect {
    /// The magic number is not this major release's; zero if the page was
    /// never written and the WAL did not leave the segment before it.
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
    /// The page is not zero although the WAL left the segment before it.
    BehindSwitch,
    /// Unknown flags, or a long header where none belongs or the reverse.
    Flags(u16),
    /// The timeline is zero.
    NoTimeline,
    /// The timeline is above the one in the segment's name.
    TimelineAbove {
        /// The one in the segment's name.
        highest: Timeline,
        /// The page's.
        found: Timeline,
    },
    /// The timeline is below that of an earlier page.
    TimelineBelow {
        /// The earlier page's.
        lowest: Timeline,
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
    /// The page goes on with a record that did not begin before it, or not with
    /// one that did, or leaves another number of bytes of it to come.
    Continuation,
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
            PageDefect::BehindSwitch => {
                f.write_str("holds something although the WAL left the segment before it")
            }
            PageDefect::Flags(found) => write!(f, "has the invalid flags {found:04X}"),
            PageDefect::NoTimeline => f.write_str("is of no timeline"),
            PageDefect::TimelineAbove { highest, found } => write!(
                f,
                "is of timeline {found}, which cannot be in a segment of timeline {highest}"
            ),
            PageDefect::TimelineBelow { lowest, found } => write!(
                f,
                "is of timeline {found}, which cannot follow timeline {lowest}"
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
            PageDefect::Continuation => {
                f.write_str("does not go on with the record that the page before it began")
            }
        }
    }
}
