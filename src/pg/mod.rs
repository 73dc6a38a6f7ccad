//! PostgreSQL's own formats, as pure functions of bytes.
//!
//! Nothing here opens a file, speaks to a server or knows pgkeep's repository.
//! Each module names the PostgreSQL source it follows, for majors 14 to 18.
//!
//! PostgreSQL writes integers in the machine's own order. Every machine pgkeep
//! runs on is little-endian, so little-endian is what all these modules read
//! and write; a cluster of the other kind is refused by its control version.

pub mod catalog;
pub mod changed_blocks;
pub mod control;
pub mod exclusion;
pub mod heap_page;
pub mod history;
pub mod incremental;
pub mod label;
pub mod limits;
pub(crate) mod little_endian;
pub mod lsn;
pub mod manifest;
pub mod own_path;
pub mod page;
pub mod paths;
pub mod recovery;
pub mod relation;
pub mod relation_map;
pub mod relative_path;
pub mod segment;
pub mod slru;
pub mod tablespace_map;
pub mod timestamp;
pub mod version;
pub mod wal;
pub mod wal_file;
