//! What to copy.

use crate::backup::changes::Changes;
use crate::backup::tasks::Tasks;
use crate::config::Source;
use crate::pg::control::CONTROL_FILE;
use crate::pg::exclusion::{Exclusion, UnloggedRelations, wal_directories};
use crate::pg::incremental;
use crate::pg::page::PAGE_SIZE;
use crate::pg::paths::{PathPlace, Paths};
use crate::pg::relation::RelationFile;
use crate::pg::slru;
use crate::pg::version::Major;
use crate::repository::file_list::{Crc32c, FileEntry, FileKind};
use crate::repository::store::{BUNDLED_BYTES, SLICE_BYTES};
use crate::server::listing::{Listed, Listing};
use crate::stored::coding::Suffix;

/// A stream has all files of the cluster: it is worth its while where at least one part in so many of it is wanted.
const LEAST_STREAMED: u64 = 4;

/// Everything to copy before `global/pg_control`.
pub(super) struct Plan {
    /// Directories of PGDATA, parents first.
    pub(super) directories: Vec<String>,
    /// The files.
    pub(super) files: PlannedFiles,
    /// The work, the largest files first.
    pub(super) tasks: Tasks,
    /// Bytes to read.
    pub(super) bytes: u64,
    /// Whether the server sends what it can of its own accord.
    pub(super) is_streamed: bool,
}

/// Very many files as they were listed: 40 bytes for each, and its path. Or as they come, where nobody can list them before.
pub(super) struct PlannedFiles {
    /// The one directory of a tablespace that is this server's.
    tablespace_directory: String,
    paths: Paths,
    /// In the order of their paths.
    files: Vec<Compact>,
    /// Those that come without being listed, behind the others.
    arrived: boxcar::Vec<Arrived>,
}

/// A file that was not listed. All of it is stored.
struct Arrived {
    path: Box<str>,
    size: u64,
    modified: i64,
}

/// What there is of a [`PlannedFile`] beside its path.
struct Compact {
    path: PathPlace,
    size: u64,
    modified: i64,
    /// The blocks to read; `None` for the whole file.
    blocks: Option<Box<[u32]>>,
}

/// A file as it was listed.
#[derive(Clone, Copy)]
pub(super) struct PlannedFile<'a> {
    /// Relative to PGDATA, or absolute for a further file of the server.
    pub(super) path: &'a str,
    /// Bytes it has. What it grows by later is in the WAL.
    pub(super) size: u64,
    /// Seconds since 1970.
    pub(super) modified: i64,
    /// What to read of it.
    pub(super) wanted: Wanted<'a>,
    tablespace_directory: &'a str,
}

/// What to read of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted<'a> {
    /// All of it.
    Whole,
    /// These blocks, ascending, counted from the segment's start: the rest is as in the parent.
    Blocks(&'a [u32]),
}

impl PlannedFiles {
    /// None were listed.
    fn unlisted(major: Major) -> PlannedFiles {
        PlannedFiles {
            tablespace_directory: major.tablespace_directory(),
            paths: Paths::default(),
            files: Vec::new(),
            arrived: boxcar::Vec::new(),
        }
    }

    /// How many were listed.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// All paths that were listed.
    pub(super) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The file at a place.
    pub(super) fn get(&self, place: usize) -> PlannedFile<'_> {
        let Some(behind) = place.checked_sub(self.files.len()) else {
            return self.file(&self.files[place]);
        };
        let arrived = &self.arrived[behind];
        PlannedFile {
            path: &arrived.path,
            size: arrived.size,
            modified: arrived.modified,
            wanted: Wanted::Whole,
            tablespace_directory: &self.tablespace_directory,
        }
    }

    /// Adds one that comes without having been listed, and gives its place.
    pub(super) fn arrive(&self, path: &str, size: u64, modified: i64) -> usize {
        let arrived = Arrived {
            path: path.into(),
            size: self.size(path, size),
            modified,
        };
        self.files.len() + self.arrived.push(arrived)
    }

    /// How much of a file is stored. A page that is not whole at the end of a relation is still being added.
    fn size(&self, path: &str, size: u64) -> u64 {
        match RelationFile::parse(path, &self.tablespace_directory) {
            Some(_) => size - size % PAGE_SIZE as u64,
            None => size,
        }
    }

    /// The place of a path.
    fn find(&self, path: &str) -> Option<usize> {
        let files = &self.files;
        files
            .binary_search_by(|file| self.paths.get(file.path).cmp(path))
            .ok()
    }

    /// All that were listed.
    pub(super) fn iter(&self) -> impl Iterator<Item = PlannedFile<'_>> {
        self.files.iter().map(|file| self.file(file))
    }

    fn file<'a>(&'a self, file: &'a Compact) -> PlannedFile<'a> {
        PlannedFile {
            path: self.paths.get(file.path),
            size: file.size,
            modified: file.modified,
            wanted: file.blocks.as_deref().map_or(Wanted::Whole, Wanted::Blocks),
            tablespace_directory: &self.tablespace_directory,
        }
    }

    fn leave_out_unlogged(&mut self) {
        let relations = self.iter().filter_map(|file| file.relation());
        let unlogged = UnloggedRelations::find(relations);
        let mut files = std::mem::take(&mut self.files);
        files.retain(|file| {
            let relation = self.file(file).relation();
            relation.is_none_or(|relation| !unlogged.leave_out(&relation))
        });
        self.files = files;
    }
}

impl<'a> PlannedFile<'a> {
    /// What it is a part of, where it is a relation's.
    pub(super) fn relation(&self) -> Option<RelationFile<'a>> {
        RelationFile::parse(self.path, self.tablespace_directory)
    }

    /// How much of it is stored.
    pub(super) fn kind(&self) -> FileKind {
        match self.wanted {
            Wanted::Whole => FileKind::Whole,
            Wanted::Blocks(blocks) => FileKind::Incremental {
                blocks: blocks.len() as u32,
                length: self.blocks(),
            },
        }
    }

    /// What the list of files says of it, once it is stored.
    pub(super) fn entry(&self, size: u64, crc32c: Crc32c, bundle: Option<u32>) -> FileEntry<'a> {
        FileEntry {
            path: self.path,
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
        match self.wanted {
            Wanted::Whole => self.size,
            Wanted::Blocks(blocks) => incremental::file_size(blocks.len() as u32),
        }
    }

    /// Bytes to read from the server.
    fn wanted_bytes(&self) -> u64 {
        match self.wanted {
            Wanted::Whole => self.size,
            Wanted::Blocks(blocks) => blocks.len() as u64 * PAGE_SIZE as u64,
        }
    }

    /// Whether it is stored by itself wherever anything is bundled. An incremental file in a bundle has no blocks, so that
    /// a restore need not open the bundle for it.
    pub(super) fn is_large(&self) -> bool {
        match self.wanted {
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
        self.relation().is_some() || slru::is_segment(self.path)
    }

    /// Whether it may come in a stream, which has files whole and as they were at some moment.
    pub(super) fn can_be_streamed(&self) -> bool {
        self.wanted == Wanted::Whole && self.is_replayed()
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

/// Whether the server's tar takes all these names, of files that the backup has and of others: one that is too long
/// fails a base backup (port/tar.c, tarCreateHeader).
fn names_fit_a_tar(paths: &Paths, listed: &[Listed]) -> bool {
    const LONGEST: usize = 99;
    let mut names = listed.iter().map(|entry| paths.get(entry.path));
    let too_long = names.find(|name| !name.starts_with('/') && name.len() > LONGEST);
    if let Some(name) = too_long {
        log::warn!(
            "files are read by SQL, as the name of {name} is too long for a stream: rename it, or set source = sql"
        );
    }
    too_long.is_none()
}

impl Plan {
    /// Leaves out what a backup leaves out, and deals the rest into tasks.
    pub(super) fn new(
        listing: Listing,
        rules: &Exclusion,
        major: Major,
        suffix: Suffix,
        source: Source,
        changes: Option<&Changes>,
    ) -> Plan {
        let Listing { paths, mut entries } = listing;
        let can_stream = source == Source::Stream && names_fit_a_tar(&paths, &entries);
        // A further file may be listed more than once.
        let path_of = |entry: &Listed| paths.get(entry.path);
        entries.sort_unstable_by(|one, other| path_of(one).cmp(path_of(other)));
        entries
            .dedup_by(|next, one| path_of(next) == path_of(one) && path_of(one).starts_with('/'));
        let mut directories = Vec::new();
        let mut files = PlannedFiles {
            files: Vec::with_capacity(entries.len()),
            ..PlannedFiles::unlisted(major)
        };
        let mut wanted = changes.map(Changes::wanted_blocks);
        for entry in entries {
            let path = paths.get(entry.path);
            let is_extra = path.starts_with('/');
            if entry.is_directory {
                if !is_extra && rules.keeps_directory(path) {
                    directories.push(path.to_owned());
                }
            } else if path != CONTROL_FILE && (is_extra || rules.keeps_file(path)) {
                let relation = RelationFile::parse(path, &files.tablespace_directory);
                let size = files.size(path, entry.size);
                let blocks = match (&mut wanted, &relation) {
                    (Some(wanted), Some(relation)) => wanted.of(path, relation, size),
                    _ => None,
                };
                files.files.push(Compact {
                    path: entry.path,
                    size,
                    modified: entry.modified,
                    blocks,
                });
            }
        }
        files.paths = paths;
        directories.extend(wal_directories(major).iter().map(|path| (*path).to_owned()));
        directories.sort_unstable();
        directories.dedup();
        files.leave_out_unlogged();
        let all: u64 = files.iter().map(|file| file.size).sum();
        let whole = files.iter().filter(PlannedFile::can_be_streamed);
        let whole: u64 = whole.map(|file| file.size).sum();
        let is_streamed = can_stream && whole >= all / LEAST_STREAMED;
        Plan {
            directories,
            bytes: files.iter().map(|file| file.wanted_bytes()).sum(),
            tasks: Tasks::new(
                &files,
                suffix,
                |file| !(is_streamed && files.get(file).can_be_streamed()),
                0,
            ),
            files,
            is_streamed,
        }
    }

    /// Of files that nobody can list: they all come in a stream, about so many bytes of them.
    pub(super) fn unlisted(major: Major, suffix: Suffix, bytes: u64) -> Plan {
        let files = PlannedFiles::unlisted(major);
        Plan {
            directories: Vec::new(),
            bytes,
            tasks: Tasks::new(&files, suffix, |_| false, 0),
            files,
            is_streamed: true,
        }
    }

    /// The place of a file that comes in the stream.
    pub(super) fn streamed(&self, path: &str) -> Option<usize> {
        let place = self.files.find(path)?;
        self.files.get(place).can_be_streamed().then_some(place)
    }

    /// Once it is carried out; the files need no memory any more.
    pub(super) fn into_directories(self) -> Vec<String> {
        self.directories
    }
}

#[cfg(test)]
impl PlannedFiles {
    /// Files that are read whole.
    pub(super) fn whole(files: impl IntoIterator<Item = (impl AsRef<str>, u64)>) -> PlannedFiles {
        let mut planned = PlannedFiles {
            tablespace_directory: String::new(),
            ..PlannedFiles::unlisted(Major::V15)
        };
        for (path, size) in files {
            planned.files.push(Compact {
                path: planned.paths.push(path.as_ref()),
                size,
                modified: 0,
                blocks: None,
            });
        }
        planned
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Instant;

    use super::*;
    use crate::stored::compression::Algorithm;

    const DATABASES: u32 = 300;
    const FILES: u32 = 1_000_000;
    /// Of a large table in each database.
    const SEGMENTS: u32 = 34;

    /// A listing of 10 TB: in each database a table of many full segments, and small relations.
    fn ten_terabytes() -> Listing {
        let mut listing = Listing::default();
        let mut list = |path: &str, size| {
            listing.entries.push(Listed {
                path: listing.paths.push(path),
                size,
                modified: 0,
                is_directory: false,
            });
        };
        for file in 0..FILES {
            let (database, number) = (file % DATABASES + 1, file / DATABASES);
            match number {
                0 => list(&format!("base/{database}/16384"), 1 << 30),
                1..SEGMENTS => list(&format!("base/{database}/16384.{number}"), 1 << 30),
                _ => list(
                    &format!("base/{database}/{}", 16384 + number),
                    8 * PAGE_SIZE as u64,
                ),
            }
        }
        listing
    }

    /// What the whole process has taken at most.
    fn peak_megabytes() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes: u64 = peak
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        kilobytes / 1024
    }

    #[test]
    #[ignore = "measures the memory of the whole process, and so runs by itself: tests/bench/scale"]
    fn ten_terabytes_are_planned_in_little_memory() {
        let suffix = Suffix {
            algorithm: Algorithm::Zstd,
            is_encrypted: false,
        };
        let listing = ten_terabytes();
        let began = Instant::now();
        let rules = Exclusion::new(Major::V17, []);
        let plan = Plan::new(listing, &rules, Major::V17, suffix, Source::Sql, None);
        let tasks = (0..).map_while(|number| plan.tasks.get(number)).count();
        println!(
            "\n10 TB in {FILES} files: planned in {:.2} s, {tasks} tasks, peak memory {} MB",
            began.elapsed().as_secs_f64(),
            peak_megabytes()
        );
        assert!(plan.bytes > 10_000_000_000_000, "{}", plan.bytes);
        assert!(peak_megabytes() < 200);
    }
}
