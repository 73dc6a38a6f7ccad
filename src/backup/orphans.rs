//! Segments that no longer belong to their relation.
//!
//! A relation of several segments that is truncated while it is copied may leave a first segment from
//! after the truncation beside a second one from before. storage/smgr/md.c takes a segment that is
//! not full for the last, so replay would never see the one behind it, and its
//! rows would come back once the relation grows again. Whatever follows the first segment that is not full is
//! therefore dropped; replay makes again what is needed of it. With this, the order in which segments were read does not matter.

use std::collections::{BTreeMap, HashMap};

use crate::error::Result;
use crate::pg::page::PAGE_SIZE;
use crate::pg::relation::{Fork, RelationFile};
use crate::repository::layout::BackupFolder;
use crate::repository::store::Stored;
use crate::server::facts::Facts;
use crate::stored::coding::Suffix;

/// A relation fork's segments: their numbers, sizes in bytes, and places.
type Segments = BTreeMap<u32, (u64, usize)>;

/// Takes orphaned segments out of what was copied, and their stored files away.
pub(super) fn drop_orphaned_segments(
    stored: &mut Stored,
    facts: &Facts,
    suffix: Suffix,
    folder: &BackupFolder,
) -> Result<()> {
    let full = u64::from(facts.control.relation_segment_blocks) * PAGE_SIZE as u64;
    let tablespace_directory = facts.version.major.tablespace_directory();
    let mut forks: HashMap<(String, u32, Fork), Segments> = HashMap::new();
    for (place, entry) in stored.files.iter().enumerate() {
        if let Some(relation) = RelationFile::parse(&entry.path, &tablespace_directory) {
            forks
                .entry((relation.directory, relation.relfilenumber, relation.fork))
                .or_default()
                .insert(relation.segment, (entry.restored_size(), place));
        }
    }
    let orphans = forks
        .values()
        .flat_map(|segments| orphaned(segments, full))
        .collect();
    for entry in stored.take_out(orphans, suffix, folder)? {
        log::info!(
            "{}: left out, its relation was truncated meanwhile",
            entry.path
        );
    }
    Ok(())
}

/// The places of the segments behind the first that is missing or not full.
fn orphaned(segments: &Segments, full: u64) -> Vec<usize> {
    let mut ended = false;
    let mut orphans = Vec::new();
    for ((&number, &(size, place)), expected) in segments.iter().zip(0..) {
        ended |= number != expected;
        if ended {
            orphans.push(place);
        }
        ended |= size < full;
    }
    orphans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orphans(sizes: &[(u32, u64)]) -> Vec<usize> {
        let segments = sizes
            .iter()
            .enumerate()
            .map(|(place, &(number, size))| (number, (size, place)));
        orphaned(&segments.collect(), 100)
    }

    #[test]
    fn only_what_follows_a_full_segment_stays() {
        assert!(orphans(&[(0, 100), (1, 100), (2, 7)]).is_empty());
        assert_eq!(orphans(&[(0, 60), (1, 100), (2, 7)]), [1, 2]);
        assert_eq!(orphans(&[(0, 100), (2, 7)]), [1]);
        assert_eq!(orphans(&[(1, 100), (2, 7)]), [0, 1]);
        assert!(orphans(&[(0, 0)]).is_empty());
    }
}
