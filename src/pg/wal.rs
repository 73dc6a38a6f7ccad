//! The WAL itself: pages, records and what they say of changed blocks.
//!
//! A segment is checked by its page headers alone ([`SegmentCheck`]) or read record
//! by record ([`RecordReader`]), which checks each record too. A [`Summarizer`] gathers
//! from records which blocks changed, [`Creations`] what replay will make, and a [`DatabaseChange`] is what one
//! says of whole databases.

mod creations;
mod database;
mod fields;
mod first_page;
mod page;
mod reader;
mod record;
mod relations;
mod segment_check;
mod summarizer;
mod tablespace;
#[cfg(test)]
mod testing;

pub use creations::Creations;
pub use database::{DatabaseChange, DatabaseFolder};
pub use first_page::FirstPage;
pub use page::{PageDefect, WAL_PAGE_SIZE, behind_page_header};
pub use reader::RecordReader;
pub use record::{BlockReference, Record, ResourceManager};
pub use relations::{StorageChange, dropped_relations};
pub use segment_check::{SegmentCheck, SegmentFault};
pub use summarizer::{MinimalWal, Summarizer};
pub use tablespace::CreatedTablespace;
