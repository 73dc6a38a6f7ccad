//! The WAL itself: segments, pages and records.
//!
//! A segment is checked by its page headers alone ([`SegmentCheck`]) or read record
//! by record ([`RecordReader`]), which checks each record too.

mod page;
mod reader;
mod record;
mod segment_check;
#[cfg(test)]
mod testing;

pub use page::{PageDefect, WAL_PAGE_SIZE};
pub use reader::RecordReader;
pub use record::{BlockReference, Record, ResourceManager};
pub use segment_check::{SegmentCheck, SegmentFault};
