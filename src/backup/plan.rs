//! What to copy.

use std::collections::HashSet;

use crate::backup::changes::Changes;
use crate::backup::tasks::Tasks;
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
    pub(super) tasks: Tasks,
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
            tasks: Tasks::new(&files, suffix),
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
