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
use crate::repository::file_list::FileEntry;
use crate::repository::layout::BackupFolder;
use crate::repository::store::Stored;
use crate::server::facts::Facts;
use crate::stored::coding::Suffix;

/// A relation fork's segments: their numbers, and sizes in bytes.
type Segments = BTreeMap<u32, u64>;

/// Takes orphaned segments out of what was copied, and their stored files away.
pub(super) fn drop_orphaned_segments(
    stored: &mut Stored,
    facts: &Facts,
    suffix: Suffix,
    folder: &BackupFolder,
) -> Result<()> {
    let full = u64::from(facts.control.relation_segment_blocks) * PAGE_SIZE as u64;
    let tablespace_directory = facts.version.major.tablespace_directory();
    let relation = |entry: &FileEntry<'_>| {
        let file = RelationFile::parse(entry.path, &tablespace_directory)?;
        let fork = (file.directory.to_owned(), file.relfilenumber, file.fork);
        Some((fork, file.segment))
    };
    // Most relations have one segment, and that is never an orphan.
    let mut forks: HashMap<(String, u32, Fork), Segments> = stored
        .files
        .iter()
        .filter_map(|entry| relation(&entry))
        .filter(|(_, segment)| *segment > 0)
        .map(|(fork, _)| (fork, Segments::new()))
        .collect();
    if forks.is_empty() {
        return Ok(());
    }
    for entry in stored.files.iter() {
        if let Some((fork, segment)) = relation(&entry)
            && let Some(segments) = forks.get_mut(&fork)
        {
            segments.insert(segment, entry.restored_size());
        }
    }
    let whole: HashMap<_, _> = forks
        .into_iter()
        .map(|(fork, segments)| (fork, whole_segments(&segments, full)))
        .collect();
    let is_orphan = |entry: &FileEntry<'_>| {
        relation(entry)
            .is_some_and(|(fork, segment)| whole.get(&fork).is_some_and(|whole| segment >= *whole))
    };
    for path in stored.take_out(is_orphan, suffix, folder)? {
        log::info!("{path}: left out, its relation was truncated meanwhile");
    }
    Ok(())
}

/// How many segments there are up to the first that is not full, or before the first that is missing.
fn whole_segments(segments: &Segments, full: u64) -> u32 {
    let mut expected = 0;
    for (&number, &size) in segments {
        if number != expected {
            break;
        }
        expected += 1;
        if size < full {
            break;
        }
    }
    expected
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(sizes: &[(u32, u64)]) -> u32 {
        whole_segments(&sizes.iter().copied().collect(), 100)
    }

    #[test]
    fn only_what_follows_a_full_segment_stays() {
        assert_eq!(whole(&[(0, 100), (1, 100), (2, 7)]), 3);
        assert_eq!(whole(&[(0, 60), (1, 100), (2, 7)]), 1);
        assert_eq!(whole(&[(0, 100), (2, 7)]), 1);
        assert_eq!(whole(&[(1, 100), (2, 7)]), 0);
        assert_eq!(whole(&[(0, 0)]), 1);
    }
}
