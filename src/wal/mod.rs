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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pg::changed_blocks::{ChangedBlocks, SummaryName};
    use crate::pg::lsn::{Lsn, Timeline};
    use crate::pg::segment::SegmentSize;
    use crate::pg::version::Major;
    use crate::pg::wal::Creations;
    use crate::repository::layout::ServerFolder;
    use crate::repository::wal_archive::ClusterIdentity;
    use crate::stored::master_key::Keyring;

    #[test]
    fn no_map_is_kept_of_wal_that_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let server = ServerFolder::new(base.path(), "primary");
        let cluster = ClusterIdentity {
            system_identifier: 7,
            major: Major::V17,
            segment_size: SegmentSize::new(1 << 20).unwrap(),
        };
        let archive = WalArchive::claim(&server, "primary", cluster, Keyring::new(None)).unwrap();
        let maps = BlockMaps::of(&server);
        let name = WalFileName::parse("000000010000000000000003").unwrap();
        let map = BlockMap {
            name: SummaryName {
                timeline: Timeline(1),
                start: Lsn(3 << 20),
                end: Lsn(4 << 20),
            },
            system_identifier: 7,
            changed: ChangedBlocks::new(),
            creations: Creations::default(),
        };
        let push = |content: &[u8], coding: &Coding| {
            let mut file = archive.begin(coding).unwrap();
            file.append(content).unwrap();
            let file = file.finish().unwrap();
            admit(&archive, &maps, &name, file, vec![map.clone()], coding)
        };
        let mut theirs = archive.begin(&Coding::PLAIN).unwrap();
        theirs.append(b"theirs").unwrap();
        archive.store(&name, theirs.finish().unwrap()).unwrap();
        for coding in [Coding::PLAIN, Coding::default()] {
            push(b"ours", &coding).unwrap_err();
            assert_eq!(maps.list().unwrap(), []);
        }
        assert_eq!(push(b"theirs", &Coding::PLAIN).unwrap(), Stored::Already);
        assert_eq!(maps.list().unwrap().len(), 1);
    }
}
