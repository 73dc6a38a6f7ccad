//! What to copy, in portions that workers take one after the other.

use std::collections::HashSet;

use crate::backup::changes::Changes;
use crate::pg::control::CONTROL_FILE;
use crate::pg::exclusion::{Exclusion, UnloggedRelations, wal_directories};
use crate::pg::incremental;
use crate::pg::page::PAGE_SIZE;
use crate::pg::relation::RelationFile;
use crate::pg::slru;
use crate::repository::file_list::{Crc32c, FileEntry, FileKind};
use crate::repository::store::{BUNDLED_BYTES, SLICE_BYTES};
use crate::server::facts::Facts;
use crate::server::listing::Listed;
use crate::stored::coding::Suffix;

/// Everything to copy before `global/pg_control`.
pub(super) struct Plan {
    /// Directories of PGDATA, parents first.
    pub(super) directories: Vec<String>,
    /// The files.
    pub(super) files: Vec<PlannedFile>,
    /// The work, the largest files first.
    pub(super) tasks: Vec<Task>,
    /// Bytes to read.
    pub(super) bytes: u64,
}

/// A file as it was listed.
pub(super) struct PlannedFile {
    /// Relative to PGDATA, or absolute for a further file of the server.
    pub(super) path: String,
    /// Bytes it has. What it grows by later is in the WAL.
    pub(super) size: u64,
    /// Seconds since 1970.
    pub(super) modified: i64,
    /// What it is a part of, where it is a relation's.
    pub(super) relation: Option<RelationFile>,
    /// What to read of it.
    pub(super) wanted: Wanted,
}

/// What to read of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it.
    Whole,
    /// These blocks, ascending, counted from the segment's start: the rest is as in the parent.
    Blocks(Vec<u32>),
}

impl PlannedFile {
    /// How much of it is stored.
    pub(super) fn kind(&self) -> FileKind {
        match &self.wanted {
            Wanted::Whole => FileKind::Whole,
            Wanted::Blocks(blocks) => FileKind::Incremental {
                blocks: blocks.len() as u32,
                length: self.blocks(),
            },
        }
    }

    /// What the list of files says of it, once it is stored.
    pub(super) fn entry(&self, size: u64, crc32c: Crc32c, bundle: Option<u32>) -> FileEntry {
        FileEntry {
            path: self.path.clone(),
            size,
            modified: self.modified,
            crc32c,
            bundle,
            kind: self.kind(),
        }
    }

    /// How many blocks it has.
    pub(super) fn blocks(&self) -> u32 {
        (self.size / PAGE_SIZE as u64) as u32
    }

    /// Bytes of the plain content that is stored.
    pub(super) fn stored_size(&self) -> u64 {
        match &self.wanted {
            Wanted::Whole => self.size,
            Wanted::Blocks(blocks) => incremental::file_size(blocks.len() as u32),
        }
    }

    /// Bytes to read from the server.
    fn wanted_bytes(&self) -> u64 {
        match &self.wanted {
            Wanted::Whole => self.size,
            Wanted::Blocks(blocks) => blocks.len() as u64 * PAGE_SIZE as u64,
        }
    }

    /// Whether it is stored by itself wherever anything is bundled. An incremental file in a bundle has no blocks, so that
    /// a restore need not open the bundle for it.
    pub(super) fn is_large(&self) -> bool {
        match &self.wanted {
            Wanted::Whole => self.size > BUNDLED_BYTES,
            Wanted::Blocks(blocks) => !blocks.is_empty(),
        }
    }

    /// Whether it is read in slices. A few blocks of many files are read together.
    pub(super) fn is_sliced(&self) -> bool {
        self.is_large()
            && self.is_replayed()
            && (self.wanted == Wanted::Whole || self.stored_size() > SLICE_BYTES)
    }

    /// Whether replay mends what it becomes while it is being read, so that it may be read in parts
    /// and up to the size that it was listed with: relations, and the state of transactions.
    pub(super) fn is_replayed(&self) -> bool {
        self.relation.is_some() || slru::is_segment(&self.path)
    }

    /// Whether it is a further file of the server, not one of PGDATA.
    pub(super) fn is_extra(&self) -> bool {
        self.path.starts_with('/')
    }

    /// How many slices it is read in.
    pub(super) fn slices(&self) -> u64 {
        self.stored_size().div_ceil(SLICE_BYTES)
    }
}

/// What a worker does at a time. Numbers are places in [`Plan::files`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Task {
    /// One slice of a large file.
    Slice {
        /// The file.
        file: usize,
        /// Which of its slices, from 0.
        number: u64,
    },
    /// A few blocks of each of some files, each stored by itself.
    Changed {
        /// The files.
        files: Vec<usize>,
    },
    /// A large file that has to be from one moment.
    Settled {
        /// The file.
        file: usize,
    },
    /// Many small files: one bundle, or each stored by itself.
    Small {
        /// The files.
        files: Vec<usize>,
        /// The bundle's number.
        bundle: Option<u32>,
    },
}

impl Plan {
    /// Leaves out what a backup leaves out, and deals the rest into tasks.
    pub(super) fn new(
        listed: Vec<Listed>,
        rules: &Exclusion,
        facts: &Facts,
        suffix: Suffix,
        changes: Option<&Changes>,
    ) -> Plan {
        let tablespace_directory = facts.version.major.tablespace_directory();
        let mut directories = Vec::new();
        let mut files = Vec::new();
        let mut known = HashSet::new();
        for entry in listed {
            let is_extra = entry.path.starts_with('/');
            if entry.is_directory {
                if !is_extra && rules.keeps_directory(&entry.path) {
                    directories.push(entry.path);
                }
            } else if entry.path != CONTROL_FILE
                && (is_extra || rules.keeps_file(&entry.path))
                && (!is_extra || known.insert(entry.path.clone()))
            {
                files.push(planned(entry, &tablespace_directory, changes));
            }
        }
        directories.extend(
            wal_directories(facts.version.major)
                .iter()
                .map(|path| (*path).to_owned()),
        );
        directories.sort_unstable();
        directories.dedup();
        leave_out_unlogged(&mut files);
        Plan {
            directories,
            bytes: files.iter().map(PlannedFile::wanted_bytes).sum(),
            tasks: tasks(&files, suffix),
            files,
        }
    }
}

/// A page that is not whole at the end of a relation is still being added.
fn planned(entry: Listed, tablespace_directory: &str, changes: Option<&Changes>) -> PlannedFile {
    let relation = RelationFile::parse(&entry.path, tablespace_directory);
    let size = match relation {
        Some(_) => entry.size - entry.size % PAGE_SIZE as u64,
        None => entry.size,
    };
    let wanted = match (changes, &relation) {
        (Some(changes), Some(relation)) => changes.wanted(&entry.path, relation, size),
        _ => Wanted::Whole,
    };
    PlannedFile {
        path: entry.path,
        size,
        modified: entry.modified,
        relation,
        wanted,
    }
}

fn leave_out_unlogged(files: &mut Vec<PlannedFile>) {
    let unlogged = UnloggedRelations::find(files.iter().filter_map(|file| file.relation.as_ref()));
    files.retain(|file| {
        file.relation
            .as_ref()
            .is_none_or(|relation| !unlogged.leave_out(relation))
    });
}

fn tasks(files: &[PlannedFile], suffix: Suffix) -> Vec<Task> {
    let (mut large, small): (Vec<usize>, Vec<usize>) =
        (0..files.len()).partition(|&file| files[file].is_large());
    large.sort_by_key(|&file| std::cmp::Reverse(files[file].stored_size()));
    let (sliced, others): (Vec<usize>, Vec<usize>) =
        large.into_iter().partition(|&file| files[file].is_sliced());
    let (changed, settled): (Vec<usize>, Vec<usize>) = others
        .into_iter()
        .partition(|&file| files[file].is_replayed());
    let mut tasks: Vec<Task> = sliced
        .into_iter()
        .flat_map(|file| (0..files[file].slices()).map(move |number| Task::Slice { file, number }))
        .collect();
    tasks.extend(settled.into_iter().map(|file| Task::Settled { file }));
    let changed = portions(files, changed).into_iter();
    tasks.extend(changed.map(|files| Task::Changed { files }));
    let (extra, data): (Vec<usize>, Vec<usize>) =
        small.into_iter().partition(|&file| files[file].is_extra());
    let bundled = !suffix.is_plain();
    for (number, files) in (0..).zip(portions(files, data)) {
        let bundle = bundled.then_some(number);
        tasks.push(Task::Small { files, bundle });
    }
    for files in portions(files, extra) {
        tasks.push(Task::Small {
            files,
            bundle: None,
        });
    }
    tasks
}

/// Tar's own part of a bundle: a header a file, and what fills its last block.
const BUNDLE_OVERHEAD: u64 = 1024;

fn portions(files: &[PlannedFile], small: Vec<usize>) -> Vec<Vec<usize>> {
    let mut portions = Vec::new();
    let mut portion = Vec::new();
    let mut bytes = 0;
    for file in small {
        portion.push(file);
        bytes += files[file].stored_size() + BUNDLE_OVERHEAD;
        if bytes >= SLICE_BYTES {
            portions.push(std::mem::take(&mut portion));
            bytes = 0;
        }
    }
    if !portion.is_empty() {
        portions.push(portion);
    }
    portions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stored::compression::Algorithm;

    const ZSTD: Suffix = Suffix {
        algorithm: Algorithm::Zstd,
        is_encrypted: false,
    };

    fn files(sizes: &[u64]) -> Vec<PlannedFile> {
        let file = |(number, &size): (usize, &u64)| PlannedFile {
            path: format!("base/5/{}", number + 1),
            size,
            modified: 0,
            relation: None,
            wanted: Wanted::Whole,
        };
        sizes.iter().enumerate().map(file).collect()
    }

    #[test]
    fn large_files_come_first_in_slices_and_small_ones_in_bundles() {
        let tasks = tasks(
            &files(&[8192, SLICE_BYTES + 1, 0, 2 * SLICE_BYTES + 8192]),
            ZSTD,
        );
        let slice = |file, number| Task::Slice { file, number };
        assert_eq!(
            tasks,
            [
                slice(3, 0),
                slice(3, 1),
                slice(3, 2),
                slice(1, 0),
                slice(1, 1),
                Task::Small {
                    files: vec![0, 2],
                    bundle: Some(0)
                },
            ]
        );
    }

    #[test]
    fn what_is_encrypted_is_bundled_without_compression_too() {
        let suffix = Suffix {
            is_encrypted: true,
            ..Suffix::PLAIN
        };
        let tasks = tasks(&files(&[8192]), suffix);
        assert!(matches!(
            tasks[..],
            [Task::Small {
                bundle: Some(0),
                ..
            }]
        ));
    }

    #[test]
    fn without_compression_nothing_is_bundled() {
        let tasks = tasks(&files(&[8192]), Suffix::PLAIN);
        assert_eq!(
            tasks,
            [Task::Small {
                files: vec![0],
                bundle: None
            }]
        );
    }

    #[test]
    fn many_small_files_fill_several_bundles_of_bounded_size() {
        let tasks = tasks(&files(&[BUNDLED_BYTES; 100]), ZSTD);
        let bundles: Vec<&Vec<usize>> = tasks
            .iter()
            .filter_map(|task| match task {
                Task::Small {
                    files,
                    bundle: Some(_),
                } => Some(files),
                _ => None,
            })
            .collect();
        assert!(bundles.len() > 1);
        assert!(
            bundles
                .iter()
                .all(|files| files.len() as u64 * BUNDLED_BYTES <= SLICE_BYTES + BUNDLED_BYTES)
        );
        assert_eq!(bundles.iter().map(|files| files.len()).sum::<usize>(), 100);
    }
}
