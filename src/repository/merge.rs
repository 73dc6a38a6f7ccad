//! A backup that takes over what it needs of its parent, so that it stands without it.
//!
//! It becomes what it was plus its parent's part: the child of a full backup becomes full, the child of an
//! incremental one becomes an incremental one on the grandparent. What it restores to stays the same byte for byte.
//! It is built beside the finished backups; what one of the two stores as it is needed is not copied but linked.

mod blocks;
mod content;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::atomic::AtomicU32;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::parallel::{self, Stop};
use crate::pg::history::WalRange;
use crate::pg::label::{
    BACKUP_LABEL_FILE, IncrementalFrom, with_incremental_from, without_incremental_from,
};
use crate::pg::manifest::BACKUP_MANIFEST_FILE;
use crate::pg::page::PAGE_SIZE;
use crate::pg::version::Major;
use crate::progress::Progress;
use crate::repository::backup_info::{BackupInfo, CorruptPage, Increment};
use crate::repository::blocks::{Blocks, check};
use crate::repository::bundling::Bundling;
use crate::repository::checksums::Checksums;
use crate::repository::content_writer::ContentWriter;
use crate::repository::contents::{Contents, check_presence, read_checksums, visit_list};
use crate::repository::file_list::{Crc32c, FileEntry, FileKind, FileList, Files, Listed};
use crate::repository::layout::{self, BUNDLES, BackupFolder};
use crate::repository::portions::{Portion, Portions};
use crate::repository::store::{Sealed, Store, Stored};
use crate::storage::Place;
use crate::stored::bundle::visit_members;
use crate::stored::checksum::Sha512Digest;
use crate::stored::coding::{Coding, Suffix};
use crate::stored::compression::Compression;
use crate::stored::master_key::Keyring;
use crate::stored::reader::read_whole;
use crate::stored::writer::Written;

use blocks::Merged;

/// Written anew, as they tell what the backup is an increment of, and which files it stores.
const OWN: [&str; 2] = [BACKUP_LABEL_FILE, BACKUP_MANIFEST_FILE];

/// A child and its parent, opened.
pub struct Merge {
    child: Opened,
    parent: Opened,
    /// The child's files.
    list: FileList,
    /// What the parent has of those of which the child holds only what changed, in their order.
    older: Vec<Older>,
    /// The WAL that the child needs.
    wal_ranges: Vec<WalRange>,
    /// How the child's files are stored, those of the merged backup too.
    coding: Coding,
    /// Whether the parent's files are stored in the same way, so that they can be linked.
    is_linkable: bool,
}

/// One of the two backups.
struct Opened {
    folder: BackupFolder,
    info: BackupInfo,
    coding: Coding,
    checksums: Checksums,
    /// How many files each of its bundles holds.
    bundled: BTreeMap<u32, usize>,
}

/// A file as the parent has it, in 32 bytes.
struct Older {
    /// The file's place in the child's list.
    place: u32,
    size: u64,
    crc32c: Crc32c,
    /// One more than the bundle's number.
    bundle: Option<NonZeroU32>,
    kind: FileKind,
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
    As(Side, FileEntry<'a>),
    /// The child's blocks over what the parent has.
    Both { parent: FileEntry<'a> },
}

/// A file of the merged backup, whose content is in some stored file.
#[derive(Clone, Copy)]
struct Part<'a> {
    file: FileEntry<'a>,
    origin: Origin<'a>,
}

impl<'a> Part<'a> {
    /// The entry of the stored content that is read first: the older one of two.
    fn read(&self) -> (Side, FileEntry<'a>) {
        match self.origin {
            Origin::As(side, stored) => (side, stored),
            Origin::Both { parent } => (Side::Parent, parent),
        }
    }

    /// Bytes of plain content that are read, if any are.
    fn bytes(&self) -> u64 {
        self.read().1.size
            + match self.origin {
                Origin::As(..) => 0,
                Origin::Both { .. } => self.file.size,
            }
    }
}

impl Opened {
    fn new(folder: &BackupFolder, info: BackupInfo, coding: Coding) -> Result<Opened> {
        check_presence(folder, &info)?;
        Ok(Opened {
            checksums: read_checksums(folder, &info)?,
            folder: folder.clone(),
            info,
            coding,
            bundled: BTreeMap::new(),
        })
    }
}

impl Merge {
    /// Opens a child and its parent, whose stored files are all there.
    pub fn open(child: &BackupFolder, parent: &BackupFolder, keys: &Keyring) -> Result<Merge> {
        let contents = Contents::read(child, keys)?;
        let wal_ranges = contents.wal_ranges()?;
        let Contents {
            info, coding, list, ..
        } = contents;
        let mut child = Opened::new(child, info, coding)?;
        for number in list.files.iter().filter_map(|file| file.bundle) {
            *child.bundled.entry(number).or_default() += 1;
        }
        let info = BackupInfo::read(parent)?;
        let coding = info.coding(keys)?;
        let mut parent = Opened::new(parent, info, coding)?;
        let older = read_older(&mut parent, &list)?;
        let level = child.info.compression_level;
        let algorithm = child.coding.compression.algorithm;
        let coding = Coding {
            compression: Compression::new(algorithm, level).unwrap_or(child.coding.compression),
            encryption: child.coding.encryption.clone(),
        };
        let way = |info: &BackupInfo| (info.compression, info.encryption);
        Ok(Merge {
            is_linkable: way(&child.info) == way(&parent.info),
            coding,
            child,
            parent,
            list,
            older,
            wal_ranges,
        })
    }

    /// Builds the merged backup in a folder, but for `backup.info`.
    pub fn build(
        &mut self,
        folder: &BackupFolder,
        workers: usize,
        progress: &dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<Sealed> {
        let (tasks, bytes) = self.tasks()?;
        self.create_folders(folder)?;
        progress.step(&format!("merge {}", self.child.info.backup), Some(bytes));
        let next_bundle = AtomicU32::new(0);
        let merge = &*self;
        let files = &self.list.files;
        let share = |all: usize| all / workers.max(1);
        let mut workers = (0..workers.max(1))
            .map(|_| {
                let mut store = Store::new(folder, &self.coding)?;
                store.stored.files = Files::sharing(files.paths(), share(files.len()));
                Ok(Worker {
                    merge,
                    folder,
                    progress,
                    bundling: Bundling::new(store, &next_bundle, self.coding.suffix()),
                })
            })
            .collect::<Result<Vec<Worker<'_>>>>()?;
        parallel::run_dealt(
            &mut workers,
            |number| tasks.get(number),
            interrupt,
            |worker, task, stop| worker.work(task, stop),
            || Ok(()),
        )?;
        let stored = workers.into_iter().map(|worker| worker.bundling.finish());
        let stored = stored.collect::<Result<Vec<Stored>>>()?;
        let mut store = Store::new(folder, &self.coding)?;
        self.write_label(&mut store)?;
        let manifest_modified = self.own(BACKUP_MANIFEST_FILE)?.modified;
        // What the two had of the files needs no memory any more.
        self.older = Vec::new();
        let FileList { directories, .. } = std::mem::take(&mut self.list);
        let stored = stored.into_iter().reduce(|mut all, stored| {
            all.append(stored);
            all
        });
        store.stored.append(stored.unwrap_or_default());
        let info = &self.child.info;
        let major = Major::from_number(info.major_version)
            .ok_or_else(|| Error::damage("backup.info has an unknown major version"))?;
        let (identifier, ranges) = (info.system_identifier, &self.wal_ranges);
        store.manifest(manifest_modified, major, identifier, ranges)?;
        store.seal(directories)
    }

    /// What is to be known about the merged backup; `child` is what is known of the child now.
    pub fn info(&self, child: &BackupInfo, sealed: &Sealed) -> BackupInfo {
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
            files_in: None,
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

    fn side(&self, side: Side) -> &Opened {
        match side {
            Side::Child => &self.child,
            Side::Parent => &self.parent,
        }
    }

    /// The file of the merged backup that is at a place in the child's list.
    fn part(&self, place: usize) -> Result<Part<'_>> {
        let file = self.list.files.get(place);
        let number = place as u32;
        let older = self
            .older
            .binary_search_by_key(&number, |older| older.place);
        let parent = older.ok().map(|older| {
            let older = &self.older[older];
            FileEntry {
                size: older.size,
                crc32c: older.crc32c,
                bundle: older.bundle.map(|behind| behind.get() - 1),
                kind: older.kind,
                ..file
            }
        });
        let origin = origin(file, parent)
            .map_err(|error| error.context(format_args!("backup {}", self.parent.info.backup)))?;
        Ok(Part { file, origin })
    }

    /// Every file of the merged backup with its place, but those that are written anew.
    fn parts(&self) -> impl Iterator<Item = Result<(usize, Part<'_>)>> {
        let files = self.list.files.iter().enumerate();
        files
            .filter(|(_, file)| !OWN.contains(&file.path))
            .map(|(place, _)| Ok((place, self.part(place)?)))
    }

    /// The work, and how many bytes are read.
    fn tasks(&self) -> Result<(Portions<(Side, u32)>, u64)> {
        let mut all_bytes = 0;
        let mut wrong = Ok(());
        let parts = self.parts().map_while(|part| match part {
            Ok((place, part)) => {
                let (side, stored) = part.read();
                let bytes = part.bytes();
                all_bytes += bytes;
                Some((place, bytes, stored.bundle.map(|number| (side, number))))
            }
            Err(error) => {
                wrong = Err(error);
                None
            }
        });
        let portions = Portions::new(parts);
        wrong.map(|()| (portions, all_bytes))
    }

    fn can_link(&self, side: Side) -> bool {
        side == Side::Child || self.is_linkable
    }

    /// The folders that will hold something; all of PGDATA's where it is stored as a plain tree.
    fn create_folders(&self, folder: &BackupFolder) -> Result<()> {
        let create = |path: &str| folder.stored(path).create_folder();
        let create_stored = |path: &str| create(&layout::stored_file(path, Suffix::PLAIN));
        if self.coding.suffix().is_plain() {
            let mut directories = self.list.directories.iter();
            directories.try_for_each(|directory| create_stored(directory))?;
        } else {
            create(BUNDLES)?;
        }
        create(layout::DATA)?;
        let mut last = None;
        for part in self.parts() {
            let (_, part) = part?;
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

    /// Writes `backup_label`, which tells of the parent.
    fn write_label(&self, store: &mut Store<'_>) -> Result<()> {
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
        store.file(BACKUP_LABEL_FILE, modified, label.as_bytes())
    }

    /// The child's own file.
    fn own(&self, path: &str) -> Result<FileEntry<'_>> {
        self.list.find(path).ok_or_else(|| {
            Error::damage(format!("backup {} lists no {path}", self.child.info.backup))
        })
    }

    /// The child's own file, and when it was modified.
    fn read_own(&self, path: &str) -> Result<(Vec<u8>, i64)> {
        let file = self.own(path)?;
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
    fn stored(&self, side: Side, file: FileEntry<'_>) -> Place {
        let opened = self.side(side);
        let path = layout::stored_file(&file.stored_path(), opened.coding.suffix());
        opened.folder.stored(&path)
    }
}

/// Reads what the parent has of the files of which the child holds only what changed.
fn read_older(parent: &mut Opened, list: &FileList) -> Result<Vec<Older>> {
    let mut older = Vec::new();
    let mut search = list.files.search_on();
    let Opened {
        folder,
        info,
        coding,
        ..
    } = &*parent;
    let mut bundled = BTreeMap::new();
    visit_list(folder, info, coding, |listed| {
        let Listed::File(file) = listed else {
            return;
        };
        if let Some(number) = file.bundle {
            *bundled.entry(number).or_default() += 1;
        }
        let Some(place) = search.find(file.path) else {
            return;
        };
        if list.files.get(place).kind != FileKind::Whole {
            older.push(Older {
                place: place as u32,
                size: file.size,
                crc32c: file.crc32c,
                bundle: file.bundle.and_then(|number| NonZeroU32::new(number + 1)),
                kind: file.kind,
            });
        }
    })?;
    parent.bundled = bundled;
    older.sort_by_key(|older| older.place);
    Ok(older)
}

/// Where what the merged backup holds of a file comes from. By rule a child holds all blocks that its file has beyond the
/// parent's length; where it might not, both are read, and what is missing becomes zeros, as it does when a
/// chain is restored.
fn origin<'a>(child: FileEntry<'a>, parent: Option<FileEntry<'a>>) -> Result<Origin<'a>> {
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

struct Worker<'a> {
    merge: &'a Merge,
    folder: &'a BackupFolder,
    progress: &'a dyn Progress,
    bundling: Bundling<'a>,
}

impl Worker<'_> {
    fn work(&mut self, task: Portion<'_, (Side, u32)>, stop: &Stop<'_>) -> Result<()> {
        stop.check()?;
        match task {
            Portion::Alone(place) => {
                let part = self.merge.part(place)?;
                self.alone(&part, stop)?;
                self.progress.advance(part.bytes());
            }
            Portion::Bundle((side, number), places) => {
                let parts = places
                    .iter()
                    .map(|place| self.merge.part(*place as usize))
                    .collect::<Result<Vec<Part<'_>>>>()?;
                if self.is_whole(side, number, &parts)
                    && Bundling::is_full(parts.iter().map(|part| part.read().1))
                {
                    self.link_bundle(side, number, &parts)?;
                } else {
                    self.bundle(side, number, &parts, stop)?;
                }
                self.progress.advance(parts.iter().map(Part::bytes).sum());
            }
        }
        Ok(())
    }

    /// Whether nothing else is in a bundle, and nothing of it changes.
    fn is_whole(&self, side: Side, number: u32, parts: &[Part<'_>]) -> bool {
        let as_it_is = |part: &Part<'_>| matches!(part.origin, Origin::As(..));
        self.merge.side(side).bundled.get(&number) == Some(&parts.len())
            && parts.iter().all(as_it_is)
            && self.merge.can_link(side)
    }

    fn alone(&mut self, part: &Part<'_>, stop: &Stop<'_>) -> Result<()> {
        match part.origin {
            Origin::As(side, stored) if self.merge.can_link(side) => {
                let path = self.bundling.store.path_of(&stored.stored_path());
                self.link(side, &path, &path)?;
                self.keep(part, stored, None);
                Ok(())
            }
            Origin::As(side, stored) => {
                let path = self.merge.stored(side, stored);
                self.recode(part, stored, &path, &self.merge.side(side).coding, stop)
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
        stored: FileEntry<'_>,
        path: &Place,
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
            .add(&written.path, written.written);
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
        let mut writer = self.writer(&kind.stored_path(child.path))?;
        merged.write(&mut writer, stop)?;
        let written = writer.finish()?;
        self.bundling.store.stored.files.push(FileEntry {
            path: child.path,
            size: written.size,
            modified: child.modified,
            crc32c: written.crc32c,
            bundle: None,
            kind,
        });
        self.bundling
            .store
            .stored
            .add(&written.path, written.written);
        Ok(())
    }

    fn bundle(
        &mut self,
        side: Side,
        number: u32,
        parts: &[Part<'_>],
        stop: &Stop<'_>,
    ) -> Result<()> {
        let contents = self.merge.side(side);
        let path = layout::bundle(number, contents.coding.suffix());
        let path = contents.folder.stored(&path);
        let tar = read_whole(&path, &contents.coding)?;
        let by_path: BTreeMap<_, _> = parts
            .iter()
            .map(|part| (part.read().1.stored_path(), part))
            .collect();
        let mut left = parts.len();
        visit_members(&path, &tar, |member, content| {
            stop.check()?;
            // The others the merged backup does not need.
            let Some(part) = by_path.get(member) else {
                return Ok(());
            };
            left -= 1;
            let (_, stored) = part.read();
            check(stored, content.len() as u64, crc32c::crc32c(content), &path)?;
            match part.origin {
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
            Err(Error::damage(format!("{path} lacks {left} of its files")))
        }
    }

    fn link_bundle(&mut self, side: Side, number: u32, parts: &[Part<'_>]) -> Result<()> {
        let suffix = self.merge.coding.suffix();
        let new = self.bundling.next_number();
        let (from, to) = (layout::bundle(number, suffix), layout::bundle(new, suffix));
        self.link(side, &from, &to)?;
        for part in parts {
            self.keep(part, part.read().1, Some(new));
        }
        Ok(())
    }

    /// Gives a stored file of one of the two a name in the merged backup too.
    fn link(&mut self, side: Side, from: &str, to: &str) -> Result<()> {
        let contents = self.merge.side(side);
        let (source, target) = (contents.folder.stored(from), self.folder.stored(to));
        target.copy_of(&source)?;
        let written = Written {
            size: target.size()?,
            sha512: digest(contents, from)?,
        };
        self.bundling.store.stored.add(to, written);
        Ok(())
    }

    fn keep(&mut self, part: &Part<'_>, stored: FileEntry<'_>, bundle: Option<u32>) {
        let entry = entry(part, stored, bundle);
        self.bundling.store.stored.files.push(entry);
    }

    fn writer(&self, path: &str) -> Result<ContentWriter> {
        let path = self.bundling.store.path_of(path);
        ContentWriter::create(self.folder, path, &self.merge.coding)
    }
}

/// A file of the merged backup that holds of it what one of the two does.
fn entry<'a>(part: &Part<'_>, stored: FileEntry<'a>, bundle: Option<u32>) -> FileEntry<'a> {
    FileEntry {
        modified: part.file.modified,
        bundle,
        ..stored
    }
}

fn digest(opened: &Opened, path: &str) -> Result<Sha512Digest> {
    opened.checksums.get(path).ok_or_else(|| {
        Error::damage(format!(
            "backup.sha512 of backup {} does not know {path}",
            opened.info.backup
        ))
    })
}
