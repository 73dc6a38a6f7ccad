//! WAL on its way into the archive and out of it again.
//!
//! [`push`] takes one file from a server's `archive_command`, [`copy`] fetches what is not here yet,
//! [`get`] serves a server's `restore_command`, and [`list`] says what there is. Whatever comes in is
//! read back record by record before it counts, and what its blocks changed is noted in a block map.

mod beside;
pub mod copy;
mod examine;
pub mod gap;
pub mod get;
pub mod list;
mod partial;
pub mod push;
pub mod show;

use crate::error::Result;
use crate::pg::wal_file::WalFileName;
use crate::repository::block_maps::{BlockMap, BlockMaps};
use crate::repository::incoming::Finished;
use crate::repository::wal_archive::{Stored, WalArchive};
use crate::stored::coding::Coding;

/// Stores a segment that was found sound, and then its block maps: never before, as other WAL of that name may come first, or
/// come after this one was given up, and would lie beside maps of which nobody could tell that they are of this. Without
/// maps it is stored as well: until they are there, the WAL itself is read.
fn admit(
    archive: &WalArchive,
    block_maps: &BlockMaps,
    name: &WalFileName,
    file: Finished,
    maps: Vec<BlockMap>,
    coding: &Coding,
) -> Result<Stored> {
    let stored = archive.store(name, file)?;
    for map in maps {
        if let Err(error) = block_maps.store(&map, coding, archive.keys()) {
            log::warn!("there is no block map of {name}: {error}");
        }
    }
    Ok(stored)
}
