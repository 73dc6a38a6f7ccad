//! A backup that takes over what it needs of its parent, so that it stands without it.
//!
//! It becomes what it was plus its parent's part: the child of a full backup becomes full, the child of an
//! incremental one becomes an incremental one on the grandparent. What it restores to stays the same byte for byte.
//! It is built beside the finished backups; what one of the two stores as it is needed is not copied but linked.

mod blocks;
mod bundling;
mod content;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::parallel::{self, Stop};
use crate::pg::label::{
    BACKUP_LABEL_FILE, IncrementalFrom, with_incremental_from, without_incremental_from,
};
use crate::pg::manifest::{BACKUP_MANIFEST_FILE, Manifest};
use crate::pg::page::PAGE_SIZE;
use crate::pg::version::Major;
use crate::progress::Progress;
use crate::repository::backup_info::{BackupInfo, CorruptPage, Increment};
use crate::repository::blocks::{Blocks, check};
use crate::repository::checksums::Checksums;
use crate::repository::contents::Contents;
use crate::repository::durable;
use crate::repository::file_list::{FileEntry, FileKind};
use crate::repository::layout::{self, BUNDLES, BackupFolder};
use crate::repository::store::{Sealed, Store};
use crate::stored::bundle::visit_members;
use crate::stored::coding::{Coding, Suffix};
use crate::stored::compression::Compression;
use crate::stored::reader::read_whole;
use crate::stored::writer::Written;

use blocks::Merged;
use bundling::Bundling;
use content::ContentWriter;

/// Written anew, as they tell what the backup is an increment of, and which files it stores.
const OWN: [&str; 2] = [BACKUP_LABEL_FILE, BACKUP_MANIFEST_FILE];

/// A child and its parent, opened.
pub(super) struct Merge {
    child: Contents,
    parent: Contents,
    /// How the child's files are stored, those of the merged backup too.
    coding: Coding,
    /// Whether the parent's files are stored in the same way, so that they can be linked.
    is_linkable: bool,
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Child,
    Parent,
}

/// What the merged backup holds of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin<'a> {
    /// What one of the two holds of it.
    As(Side, &'a FileEntry),
    /// The child's blocks over what the parent has.
    Both { parent: &'a FileEntry },
}

/// A file of the merged backup, whose content is in some stored file.
#[derive(Clone, Copy)]
struct Part<'a> {
    file: &'a FileEntry,
    origin: Origin<'a>,
}

impl Part<'_> {
    /// The entry of the stored content that is read first: the older one of two.
    fn read(&self) -> (Side, &FileEntry) {
        match &self.origin {
            Origin::As(side, stored) => (*side, stored),
            Origin::Both { parent } => (Side::Parent, parent),
        }
    }
}

/// Work for one worker.
enum Task<'a> {
    /// A file whose content, or the older part of it, is stored by itself.
    Alone(Part<'a>),
    /// Files of one bundle, by their paths in it.
    Bundle {
        side: Side,
        number: u32,
        parts: BTreeMap<String, Part<'a>>,
        /// Nothing else is in it, and nothing of it changes.
        is_whole: bool,
    },
}

impl Merge {
    /// Opens both. They are child and parent.
    pub(super) fn new(child: Contents, parent: Contents) -> Merge {
        let level = child.info.compression_level;
        let algorithm = child.coding.compression.algorithm;
        let coding = Coding {
            compression: Compression::new(algorithm, level).unwrap_or(child.coding.compression),
            encryption: child.coding.encryption.clone(),
        };
        let way = |info: &BackupInfo| (info.compression, info.encryption);
        Merge {
            is_linkable: way(&child.info) == way(&parent.info),
            coding,
            child,
            parent,
        }
    }

    /// Builds the merged backup in a folder, but for `backup.info`.
    pub(super) fn build(
        &self,
        folder: &BackupFolder,
        workers: usize,
        progress: &dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<Sealed> {
        let parts = self.parts()?;
        self.create_folders(folder, &parts)?;
        let tasks = self.tasks(&parts);
        let bytes = tasks.iter().map(Task::bytes).sum();
        progress.step(&format!("merge {}", self.child.info.backup), Some(bytes));
        let next_bundle = AtomicU32::new(0);
        let mut workers = (0..workers.max(1))
            .map(|_| {
                Ok(Worker {
                    merge: self,
                    folder,
                    progress,
                    bundling: Bundling::new(
                        Store::new(folder, &self.coding)?,
                        &next_bundle,
                        self.coding.suffix(),
                    ),
                })
            })
            .collect::<Result<Vec<Worker<'_>>>>()?;
        parallel::run(
            &mut workers,
            &tasks,
            interrupt,
            |worker, task, stop| worker.work(task, stop),
            || Ok(()),
        )?;
        let mut store = Store::new(folder, &self.coding)?;
        for worker in workers {
            store.stored.append(worker.bundling.finish()?);
        }
        self.write_own(&mut store)?;
        store.seal(self.child.list.directories.clone())
    }

    /// What is to be known about the merged backup; `child` is what is known of the child now.
    pub(super) fn info(&self, child: &BackupInfo, sealed: &Sealed) -> BackupInfo {
        let parent = &self.parent.info;
        let is_newer = |page: &CorruptPage| {
            let same =
                |newer: &&CorruptPage| (&newer.file, newer.block) == (&page.file, page.block);
            child.corrupt.iter().find(same).is_some()
        };
        let older: Vec<CorruptPage> = parent
            .corrupt
            .iter()
            .filter(|page| !is_newer(page))
            .cloned()
            .collect();
        let twice = (parent.corrupt.len() - older.len()) as u64;
        // What was found damaged may have been linked, unread.
        let damaged = [child, parent]
            .into_iter()
            .find(|info| info.check_verdict().is_err());
        BackupInfo {
            incremental: self.increment(),
            backup_size: sealed.bytes,
            number_of_files: sealed.list.files.len() as u64,
            checksums: sealed.checksums.to_string(),
            corrupt_pages: child.corrupt_pages + parent.corrupt_pages.saturating_sub(twice),
            corrupt: [child.corrupt.clone(), older].concat(),
            verification: damaged.and_then(|info| info.verification.clone()),
            drill: None,
            ..child.clone()
        }
    }

    /// What the merged backup is an increment of: what the parent is.
    fn increment(&self) -> Option<Increment> {
        let parents = self.parent.info.incremental.as_ref()?;
        let own = self.child.info.incremental.iter();
        let mut sources = parents.sources.clone();
        sources.extend(own.flat_map(|own| own.sources.iter().copied()));
        sources.sort();
        sources.dedup();
        Some(Increment {
            sources,
            ..parents.clone()
        })
    }

    fn side(&self, side: Side) -> &Contents {
        match side {
            Side::Child => &self.child,
            Side::Parent => &self.parent,
        }
    }

    /// Every file of the merged backup but those that are written anew.
    fn parts(&self) -> Result<Vec<Part<'_>>> {
        let files = self.child.list.files.iter();
        files
            .filter(|file| !OWN.contains(&file.path.as_str()))
            .map(|file| {
                let origin = origin(file, self.parent.list.find(&file.path)).map_err(|error| {
                    error.context(format_args!("backup {}", self.parent.info.backup))
                })?;
                Ok(Part { file, origin })
            })
            .collect()
    }

    /// The work, the largest files first.
    fn tasks<'a>(&'a self, parts: &[Part<'a>]) -> Vec<Task<'a>> {
        let mut alone = Vec::new();
        let mut bundles: BTreeMap<(Side, u32), BTreeMap<String, Part<'a>>> = BTreeMap::new();
        for part in parts {
            let (side, stored) = part.read();
            match stored.bundle {
                None => alone.push(Task::Alone(*part)),
                Some(number) => {
                    let members = bundles.entry((side, number)).or_default();
                    members.insert(stored.stored_path().into_owned(), *part);
                }
            }
        }
        alone.sort_by_key(|task| std::cmp::Reverse(task.bytes()));
        let mut held: BTreeMap<(Side, u32), usize> = BTreeMap::new();
        for side in [Side::Child, Side::Parent] {
            let bundled = self.side(side).list.files.iter();
            for number in bundled.filter_map(|file| file.bundle) {
                *held.entry((side, number)).or_default() += 1;
            }
        }
        let bundles = bundles.into_iter().map(|((side, number), parts)| {
            let as_it_is = |part: &Part<'_>| matches!(part.origin, Origin::As(..));
            Task::Bundle {
                is_whole: held.get(&(side, number)) == Some(&parts.len())
                    && parts.values().all(as_it_is)
                    && self.can_link(side),
                side,
                number,
                parts,
            }
        });
        alone.into_iter().chain(bundles).collect()
    }

    fn can_link(&self, side: Side) -> bool {
        side == Side::Child || self.is_linkable
    }

    /// The folders that will hold something; all of PGDATA's where it is stored as a plain tree.
    fn create_folders(&self, folder: &BackupFolder, parts: &[Part<'_>]) -> Result<()> {
        let create = |path: &str| durable::create_folder(&folder.stored(path));
        let create_stored = |path: &str| create(&layout::stored_file(path, Suffix::PLAIN));
        if self.coding.suffix().is_plain() {
            let mut directories = self.child.list.directories.iter();
            directories.try_for_each(|directory| create_stored(directory))?;
        } else {
            create(BUNDLES)?;
        }
        create(layout::DATA)?;
        let mut last = None;
        for part in parts {
            let (_, stored) = part.read();
            let parent = part.file.path.rsplit_once('/').map(|(parent, _)| parent);
            let is_alone = stored.bundle.is_none() || matches!(part.origin, Origin::Both { .. });
            if let Some(parent) = parent.filter(|_| is_alone && parent != last) {
                create_stored(parent)?;
                last = Some(parent);
            }
        }
        Ok(())
    }

    /// Writes what tells of the other files and of the parent.
    fn write_own(&self, store: &mut Store<'_>) -> Result<()> {
        let (label, modified) = self.read_own(BACKUP_LABEL_FILE)?;
        let label = String::from_utf8(label)
            .map_err(|_| Error::damage(format!("{BACKUP_LABEL_FILE} is no text")))?;
        let label = match &self.parent.info.incremental {
            None => without_incremental_from(&label),
            Some(increment) => with_incremental_from(
                &label,
                IncrementalFrom {
                    lsn: increment.from_lsn,
                    timeline: increment.from_timeline,
                },
            ),
        };
        store.file(BACKUP_LABEL_FILE, modified, label.as_bytes())?;
        let (manifest, modified) = self.read_own(BACKUP_MANIFEST_FILE)?;
        let ranges = Manifest::parse(&manifest[..])?.wal_ranges;
        let info = &self.child.info;
        let major = Major::from_number(info.major_version)
            .ok_or_else(|| Error::damage("backup.info has an unknown major version"))?;
        store.manifest(modified, major, info.system_identifier, &ranges)
    }

    /// The child's own file, and when it was modified.
    fn read_own(&self, path: &str) -> Result<(Vec<u8>, i64)> {
        let file = self.child.list.find(path).ok_or_else(|| {
            Error::damage(format!("backup {} lists no {path}", self.child.info.backup))
        })?;
        let stored = self.stored(Side::Child, file);
        let content = read_whole(&stored, &self.child.coding)?;
        check(
            file,
            content.len() as u64,
            crc32c::crc32c(&content),
            &stored,
        )?;
        Ok((content, file.modified))
    }

    /// Where a file that is stored by itself lies.
    fn stored(&self, side: Side, file: &FileEntry) -> PathBuf {
        let contents = self.side(side);
        let path = layout::stored_file(&file.stored_path(), contents.coding.suffix());
        contents.folder.stored(&path)
    }
}

/// Where what the merged backup holds of a file comes from. By rule a child holds all blocks that its file has beyond the
/// parent's length; where it might not, both are read, and what is missing becomes zeros, as it does when a
/// chain is restored.
fn origin<'a>(child: &'a FileEntry, parent: Option<&'a FileEntry>) -> Result<Origin<'a>> {
    let FileKind::Incremental { blocks, length } = child.kind else {
        return Ok(Origin::As(Side::Child, child));
    };
    let parent = parent.ok_or_else(|| {
        Error::damage(format!(
            "{} is missing in it, and its child holds only what changed of it",
            child.path
        ))
    })?;
    let bytes = u64::from(length) * PAGE_SIZE as u64;
    Ok(match parent.kind {
        FileKind::Whole if blocks == 0 && parent.size == bytes => Origin::As(Side::Parent, parent),
        FileKind::Incremental {
            blocks: 0,
            length: before,
        } if length <= before => Origin::As(Side::Child, child),
        FileKind::Incremental { length: before, .. } if blocks == 0 && length == before => {
            Origin::As(Side::Parent, parent)
        }
        _ => Origin::Both { parent },
    })
}

impl Task<'_> {
    /// Bytes of plain content that are read, if any are.
    fn bytes(&self) -> u64 {
        let of = |part: &Part<'_>| {
            part.read().1.size
                + match part.origin {
                    Origin::As(..) => 0,
                    Origin::Both { .. } => part.file.size,
                }
        };
        match self {
            Task::Alone(part) => of(part),
            Task::Bundle { parts, .. } => parts.values().map(of).sum(),
        }
    }
}

struct Worker<'a> {
    merge: &'a Merge,
    folder: &'a BackupFolder,
    progress: &'a dyn Progress,
    bundling: Bundling<'a>,
}

impl Worker<'_> {
    fn work(&mut self, task: &Task<'_>, stop: &Stop<'_>) -> Result<()> {
        stop.check()?;
        match task {
            Task::Alone(part) => self.alone(part, stop)?,
            Task::Bundle {
                side,
                number,
                parts,
                is_whole,
            } => {
                if *is_whole && Bundling::is_full(parts.values().map(|part| part.read().1)) {
                    self.link_bundle(*side, *number, parts.values())?;
                } else {
                    self.bundle(*side, *number, parts, stop)?;
                }
            }
        }
        self.progress.advance(task.bytes());
        Ok(())
    }

    fn alone(&mut self, part: &Part<'_>, stop: &Stop<'_>) -> Result<()> {
        match &part.origin {
            Origin::As(side, stored) if self.merge.can_link(*side) => {
                let path = self.bundling.store.path_of(&stored.stored_path());
                self.link(*side, &path, &path)?;
                self.keep(part, stored, None);
                Ok(())
            }
            Origin::As(side, stored) => {
                let path = self.merge.stored(*side, stored);
                self.recode(part, stored, &path, &self.merge.side(*side).coding, stop)
            }
            Origin::Both { parent } => {
                let path = self.merge.stored(Side::Parent, parent);
                let segment_blocks = self.merge.parent.info.relation_segment_blocks;
                let older = Blocks::open(parent, &path, &self.merge.parent.coding, segment_blocks)?;
                self.merge_blocks(part, older, stop)
            }
        }
    }

    /// Stores what the other backup stores in another way.
    fn recode(
        &mut self,
        part: &Part<'_>,
        stored: &FileEntry,
        path: &std::path::Path,
        coding: &Coding,
        stop: &Stop<'_>,
    ) -> Result<()> {
        if self.bundling.takes(stored) {
            let content = read_whole(path, coding)?;
            check(stored, content.len() as u64, crc32c::crc32c(&content), path)?;
            return self.bundling.add(entry(part, stored, None), &content);
        }
        let mut writer = self.writer(&stored.stored_path())?;
        content::copy(stored, path, coding, &mut writer, stop)?;
        let written = writer.finish()?;
        self.bundling
            .store
            .stored
            .add(written.path, written.written);
        self.keep(part, stored, None);
        Ok(())
    }

    /// Stores the child's blocks over the parent's.
    fn merge_blocks(&mut self, part: &Part<'_>, older: Blocks<'_>, stop: &Stop<'_>) -> Result<()> {
        let merge = self.merge;
        let child = part.file;
        let path = merge.stored(Side::Child, child);
        let newer = match child.kind {
            // Its length is all that it tells, and the list has that.
            FileKind::Incremental { blocks: 0, .. } => None,
            _ => Some(Blocks::open(
                child,
                &path,
                &merge.child.coding,
                merge.child.info.relation_segment_blocks,
            )?),
        };
        let merged = Merged::new(older, newer, child.restored_size());
        let kind = merged.kind();
        let mut writer = self.writer(&kind.stored_path(&child.path))?;
        merged.write(&mut writer, stop)?;
        let written = writer.finish()?;
        self.bundling.store.stored.files.push(FileEntry {
            path: child.path.clone(),
            size: written.size,
            modified: child.modified,
            crc32c: written.crc32c,
            bundle: None,
            kind,
        });
        self.bundling
            .store
            .stored
            .add(written.path, written.written);
        Ok(())
    }

    fn bundle(
        &mut self,
        side: Side,
        number: u32,
        parts: &BTreeMap<String, Part<'_>>,
        stop: &Stop<'_>,
    ) -> Result<()> {
        let contents = self.merge.side(side);
        let path = layout::bundle(number, contents.coding.suffix());
        let path = contents.folder.stored(&path);
        let tar = read_whole(&path, &contents.coding)?;
        let mut left = parts.len();
        visit_members(&path, &tar, |member, content| {
            stop.check()?;
            // The others the merged backup does not need.
            let Some(part) = parts.get(member) else {
                return Ok(());
            };
            left -= 1;
            let (_, stored) = part.read();
            check(stored, content.len() as u64, crc32c::crc32c(content), &path)?;
            match &part.origin {
                Origin::As(..) if self.bundling.takes(stored) => {
                    self.bundling.add(entry(part, stored, None), content)
                }
                Origin::As(..) => self.bundling.store.keep(entry(part, stored, None), content),
                Origin::Both { parent } => {
                    let segment_blocks = contents.info.relation_segment_blocks;
                    let older = Blocks::of_memory(parent, content, &path, segment_blocks)?;
                    self.merge_blocks(part, older, stop)
                }
            }
        })?;
        if left == 0 {
            Ok(())
        } else {
            Err(Error::damage(format!(
                "{} lacks {left} of its files",
                path.display()
            )))
        }
    }

    fn link_bundle<'p>(
        &mut self,
        side: Side,
        number: u32,
        parts: impl Iterator<Item = &'p Part<'p>>,
    ) -> Result<()> {
        let suffix = self.merge.coding.suffix();
        let new = self.bundling.next_number();
        let (from, to) = (layout::bundle(number, suffix), layout::bundle(new, suffix));
        self.link(side, &from, &to)?;
        for part in parts {
            self.keep(part, part.read().1, Some(new));
        }
        Ok(())
    }

    /// Gives a stored file of one of the two a name in the merged backup too; where the file
    /// system cannot do that, it is copied.
    fn link(&mut self, side: Side, from: &str, to: &str) -> Result<()> {
        let contents = self.merge.side(side);
        let (source, target) = (contents.folder.stored(from), self.folder.stored(to));
        if fs::hard_link(&source, &target).is_err() {
            fs::copy(&source, &target).map_err(|error| {
                Error::io(&format!("copy {} to", source.display()), &target, &error)
            })?;
        }
        let written = Written {
            size: fs::metadata(&target)
                .map_err(|error| Error::io("look at", &target, &error))?
                .len(),
            sha512: digest(&contents.checksums, from, contents)?,
        };
        self.bundling.store.stored.add(to.to_owned(), written);
        Ok(())
    }

    fn keep(&mut self, part: &Part<'_>, stored: &FileEntry, bundle: Option<u32>) {
        let entry = entry(part, stored, bundle);
        self.bundling.store.stored.files.push(entry);
    }

    fn writer(&self, path: &str) -> Result<ContentWriter> {
        let path = self.bundling.store.path_of(path);
        ContentWriter::create(self.folder, path, &self.merge.coding)
    }
}

/// A file of the merged backup that holds of it what one of the two does.
fn entry(part: &Part<'_>, stored: &FileEntry, bundle: Option<u32>) -> FileEntry {
    FileEntry {
        modified: part.file.modified,
        bundle,
        ..stored.clone()
    }
}

fn digest(
    checksums: &Checksums,
    path: &str,
    contents: &Contents,
) -> Result<crate::stored::checksum::Sha512Digest> {
    checksums.get(path).ok_or_else(|| {
        Error::damage(format!(
            "backup.sha512 of backup {} does not know {path}",
            contents.info.backup
        ))
    })
}

#[cfg(test)]
mod tests;
