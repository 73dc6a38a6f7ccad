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
mod heap;
mod image;
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
pub use heap::{HeapChange, NewRow, RowChange, changed_in_place, new_row};
pub use image::PageImage;
pub use page::{PageDefect, WAL_PAGE_SIZE, behind_page_header};
pub use reader::RecordReader;
pub use record::{BlockContent, BlockReference, Record, ResourceManager};
pub use relations::{StorageChange, dropped_relations, subtransactions};
pub use segment_check::{SegmentCheck, SegmentFault};
pub use summarizer::{MinimalWal, Summarizer};
pub use tablespace::{CreatedTablespace, TablespaceChange};
