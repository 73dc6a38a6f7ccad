//! `pg_filenode.map`: the files of catalogs that pg_class cannot tell of (utils/cache/relmapper.c).
//!
//! ```text
//!  0  u32  magic, 0x592717
//!  4  u32  how many
//!  8  u32  catalog's OID, u32  its number among the files; each
//! ```
//!
//! Behind the place for 62 or, since 16, 64 of them comes a checksum; in the WAL, in records 0x00 of the resource manager:
//!
//! ```text
//!  0  u32  database, zero for the shared ones; u32  tablespace; u32  bytes; the file
//! ```

use crate::pg::little_endian::u32_at;
use crate::pg::wal::{Record, ResourceManager};

/// The name of the file in the folder of each database and in `global`.
pub const RELATION_MAP_FILE: &str = "pg_filenode.map";

const MAGIC: u32 = 0x0059_2717;
const MAPPINGS: usize = 8;
const OPERATION: u8 = 0xF0;

/// Which file a catalog is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationMap(Vec<(u32, u32)>);

impl RelationMap {
    /// Reads the file; nothing if it is none.
    pub fn parse(content: &[u8]) -> Option<RelationMap> {
        let header = content.get(..MAPPINGS)?;
        if u32_at(header, 0) != MAGIC {
            return None;
        }
        let (mappings, _) = content.get(MAPPINGS..)?.as_chunks::<8>();
        let mappings = mappings.get(..u32_at(header, 4) as usize)?;
        let mapping = |mapping: &[u8; 8]| (u32_at(mapping, 0), u32_at(mapping, 4));
        Some(RelationMap(mappings.iter().map(mapping).collect()))
    }

    /// A new map that a record brings, with its database.
    pub fn of(record: &Record<'_>) -> Option<(u32, RelationMap)> {
        if record.resource_manager != ResourceManager::RELATION_MAP || record.info & OPERATION != 0
        {
            return None;
        }
        let (header, content) = record.main_data.split_at_checked(12)?;
        Some((u32_at(header, 0), RelationMap::parse(content)?))
    }

    /// The number of a catalog's file.
    pub fn relfilenumber(&self, catalog: u32) -> Option<u32> {
        let mut mappings = self.0.iter();
        let (_, relfilenumber) = mappings.find(|(oid, _)| *oid == catalog)?;
        Some(*relfilenumber)
    }

    /// The numbers of all files that it tells of.
    pub fn relfilenumbers(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|(_, relfilenumber)| *relfilenumber)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_map_tells_files() {
        let words = [MAGIC, 2, 1259, 16_390, 1249, 1249, 7];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let map = RelationMap::parse(&bytes).unwrap();
        assert_eq!(map.relfilenumber(1259), Some(16_390));
        assert_eq!(map.relfilenumber(1255), None);
        assert_eq!(RelationMap::parse(&bytes[..20]), None);
        assert_eq!(RelationMap::parse(&bytes[4..]), None);
    }

    proptest! {
        #[test]
        fn never_panics(rest: Vec<u8>) {
            let _ = RelationMap::parse(&[&MAGIC.to_le_bytes()[..], &rest].concat());
        }
    }
}
