//! A backup with the ones it needs, and what each of its files is rebuilt from.
//!
//! An incremental file holds some blocks of a file that had `length` blocks. The file is rebuilt from
//! the newest backup down to the first that holds it whole: it gets as many blocks as it had in the newest, and each
//! block from the newest backup that has it. But where a file was shorter meanwhile, in any backup in between,
//! what it had beyond that length before is gone: a block of an older backup counts only below the smallest length that
//! the newer ones know of. What no backup gives is zeros. (PostgreSQL's bin/pg_combinebackup/reconstruct.c
//! disregards the lengths in between, and so brings back rows that had been deleted.)

use std::collections::BTreeSet;

use crate::error::{Error, Result};
use crate::pg::changed_blocks::RelationFork;
use crate::pg::exclusion::is_other_fork;
use crate::pg::incremental;
use crate::pg::page::PAGE_SIZE;
use crate::pg::version::Major;
use crate::repository::backup_info::BackupInfo;
use crate::repository::catalogue::{Backup, Catalogue};
use crate::repository::contents::{Contents, visit_list};
use crate::repository::file_list::{Crc32c, FileEntry, FileKind, Files, Listed};
use crate::repository::layout::{self, BackupFolder};
use crate::repository::portions::Portions;
use crate::storage::Place;
use crate::stored::coding::Coding;
use crate::stored::master_key::Keyring;
use crate::stored::reader::{StoredReader, read_whole};

/// A backup and its ancestors, down to a full one.
///
/// Of the ancestors' lists only that is kept which the newest backup's files are rebuilt from.
pub struct Chain {
    /// The backup itself.
    pub newest: Contents,
    /// Its parent first.
    ancestors: Vec<Ancestor>,
    /// The newest backup's files that it does not hold whole, in their order.
    rebuilt: Vec<Rebuilt>,
    /// Of all files, those of one next to each other, in the order of the files and then of the backups.
    layers: Vec<Layer>,
}

struct Ancestor {
    folder: BackupFolder,
    info: BackupInfo,
    coding: Coding,
}

/// A file that is not whole in the newest backup.
#[derive(Debug, Clone, Copy)]
struct Rebuilt {
    /// The file's place in the list of the newest backup.
    place: u32,
    base: Base,
}

/// The whole file that a rebuilt one begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// The backup of the chain that holds it.
    pub member: Member,
    /// The bundle in that backup; `None` for a stored file of its own.
    pub bundle: Option<u32>,
    /// Bytes of plain content.
    pub size: u64,
    /// Of the plain content.
    pub crc32c: Crc32c,
    /// How many of its blocks count at most; those beyond are not the file's any more.
    pub limit: u32,
}

/// An incremental file with blocks that a file is rebuilt from. It is always stored by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// The file's place in the list of the newest backup.
    place: u32,
    /// The backup of the chain that holds it.
    pub member: Member,
    /// How many blocks it holds.
    pub blocks: u32,
    /// Of the incremental file.
    pub crc32c: Crc32c,
    /// Its blocks count below this number.
    pub limit: u32,
}

impl Layer {
    /// Bytes of the incremental file.
    pub fn size(&self) -> u64 {
        incremental::file_size(self.blocks)
    }
}

/// One backup of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member(u32);

impl Member {
    /// The backup itself.
    pub const NEWEST: Member = Member(0);
}

/// A file of the newest backup, and what it is rebuilt from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The file as the newest backup lists it.
    pub file: FileEntry<'a>,
    /// What it begins with.
    pub base: Base,
    /// What changed since then, the newest first.
    pub layers: &'a [Layer],
}

impl Sources<'_> {
    /// Bytes of the file once it is rebuilt.
    pub fn size(&self) -> u64 {
        self.file.restored_size()
    }

    /// Whether the file is its base, as it is stored.
    pub fn is_base(&self) -> bool {
        self.layers.is_empty()
            && self.base.size == self.size()
            && self.base.size <= u64::from(self.base.limit) * PAGE_SIZE as u64
    }

    /// Bytes that must be read to rebuild it.
    fn bytes_to_read(&self) -> u64 {
        self.base.size + self.layers.iter().map(Layer::size).sum::<u64>()
    }
}

/// A file as it is stored.
pub struct Stored<'a> {
    /// Where it lies.
    pub path: Place,
    /// How it is read.
    pub coding: &'a Coding,
}

impl Stored<'_> {
    /// Opens it.
    pub fn open(&self) -> Result<StoredReader> {
        StoredReader::open(&self.path, self.coding)
    }

    /// Reads all of its content.
    pub fn read_whole(&self) -> Result<Vec<u8>> {
        read_whole(&self.path, self.coding)
    }
}

impl Chain {
    /// Reads the lists of a backup and of all that it needs. They are one chain, and every file has a base in it.
    pub fn read(catalogue: &Catalogue, backup: &Backup, keys: &Keyring) -> Result<Chain> {
        let newest = Contents::read(&backup.folder, keys)?;
        let mut descent = Descent::begin(&newest)?;
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for link in catalogue.ancestors(&newest.info)? {
            let info = BackupInfo::read(link.folder)?;
            if info.checksums != link.info.checksums {
                return Err(Error::failed(format!(
                    "backup {} was replaced while it was being read",
                    link.info.backup
                ))
                .hint("run the same command again"));
            }
            let ancestor = Ancestor {
                coding: info.coding(keys)?,
                folder: link.folder.clone(),
                info,
            };
            descent.step(Member(ancestors.len() as u32 + 1), &ancestor)?;
            ancestors.push(ancestor);
        }
        let (rebuilt, layers) = descent.finish()?;
        Ok(Chain {
            newest,
            ancestors,
            rebuilt,
            layers,
        })
    }

    /// Leaves out the files of unlogged relations that are not of these, their init forks: as if the newest
    /// backup did not hold them.
    pub fn leave_out_unlogged(&mut self, init_forks: &BTreeSet<RelationFork>) -> Result<()> {
        if init_forks.is_empty() {
            return Ok(());
        }
        let major = Major::from_number(self.newest.info.major_version)
            .ok_or_else(|| Error::damage("backup.info has an unknown major version"))?;
        let tablespace_directory = major.tablespace_directory();
        let mut places = Vec::new();
        let mut kept = 0;
        self.newest.list.files.retain(|file| {
            let is_kept = !is_other_fork(file.path, init_forks, &tablespace_directory);
            places.push(is_kept.then_some(kept));
            kept += u32::from(is_kept);
            is_kept
        });
        let moved = |place: &mut u32| match places[*place as usize] {
            Some(kept) => {
                *place = kept;
                true
            }
            None => false,
        };
        self.rebuilt.retain_mut(|file| moved(&mut file.place));
        self.layers.retain_mut(|layer| moved(&mut layer.place));
        Ok(())
    }

    /// What is known of a backup of the chain.
    pub fn info(&self, member: Member) -> &BackupInfo {
        match self.ancestor(member) {
            None => &self.newest.info,
            Some(ancestor) => &ancestor.info,
        }
    }

    /// What is known of all its backups, the newest first.
    pub fn infos(&self) -> impl Iterator<Item = &BackupInfo> {
        let ancestors = self.ancestors.iter().map(|ancestor| &ancestor.info);
        std::iter::once(&self.newest.info).chain(ancestors)
    }

    /// Where a backup of the chain lies.
    pub fn folder(&self, member: Member) -> &BackupFolder {
        match self.ancestor(member) {
            None => &self.newest.folder,
            Some(ancestor) => &ancestor.folder,
        }
    }

    /// How the stored files of a backup of the chain are read.
    pub fn coding(&self, member: Member) -> &Coding {
        match self.ancestor(member) {
            None => &self.newest.coding,
            Some(ancestor) => &ancestor.coding,
        }
    }

    /// A stored file of a backup of the chain, by its path in PGDATA.
    pub fn stored(&self, member: Member, path: &str) -> Stored<'_> {
        let coding = self.coding(member);
        let stored = layout::stored_file(path, coding.suffix());
        Stored {
            path: self.folder(member).stored(&stored),
            coding,
        }
    }

    /// A bundle of a backup of the chain, by its number.
    pub fn bundle(&self, member: Member, number: u32) -> Stored<'_> {
        let coding = self.coding(member);
        let stored = layout::bundle(number, coding.suffix());
        Stored {
            path: self.folder(member).stored(&stored),
            coding,
        }
    }

    fn ancestor(&self, member: Member) -> Option<&Ancestor> {
        let above = (member.0 as usize).checked_sub(1)?;
        Some(&self.ancestors[above])
    }

    /// The file at a place in the newest backup's list.
    pub fn sources(&self, place: usize) -> Sources<'_> {
        let number = place as u32;
        let rebuilt = self.rebuilt.binary_search_by_key(&number, |it| it.place);
        self.sources_of(place, rebuilt.ok().map(|at| &self.rebuilt[at]))
    }

    fn sources_of(&self, place: usize, rebuilt: Option<&Rebuilt>) -> Sources<'_> {
        let file = self.newest.list.files.get(place);
        match rebuilt {
            None => Sources {
                file,
                base: Base::of(Member::NEWEST, &file, u32::MAX),
                layers: &[],
            },
            Some(Rebuilt { place, base }) => {
                let first = self.layers.partition_point(|layer| layer.place < *place);
                let behind = self.layers.partition_point(|layer| layer.place <= *place);
                Sources {
                    file,
                    base: *base,
                    layers: &self.layers[first..behind],
                }
            }
        }
    }

    /// Every file of the newest backup, in the order of their paths.
    pub fn files(&self) -> impl Iterator<Item = Sources<'_>> {
        let mut rebuilt = self.rebuilt.iter().peekable();
        (0..self.newest.list.files.len()).map(move |place| {
            let rebuilt = rebuilt.next_if(|rebuilt| rebuilt.place as usize == place);
            self.sources_of(place, rebuilt)
        })
    }

    /// All content that these of the newest backup's files are rebuilt from, by the files' places; those with most to read first.
    pub fn portions(&self, is_wanted: impl Fn(usize) -> bool) -> Portions<(Member, u32)> {
        let wanted = self
            .files()
            .enumerate()
            .filter(|(place, _)| is_wanted(*place));
        Portions::new(wanted.map(|(place, sources)| {
            let base = sources.base;
            let bundle = base.bundle.map(|number| (base.member, number));
            (place, sources.bytes_to_read(), bundle)
        }))
    }
}

impl Base {
    fn of(member: Member, file: &FileEntry<'_>, limit: u32) -> Base {
        Base {
            member,
            bundle: file.bundle,
            size: file.size,
            crc32c: file.crc32c,
            limit,
        }
    }
}

/// The way down the chain, from each file to its base.
struct Descent<'a> {
    files: &'a Files,
    /// The files whose base is in an older backup, in their order.
    older: Vec<Older>,
    layers: Vec<Layer>,
}

/// A file that is not whole in the newest backup.
struct Older {
    place: u32,
    /// The smallest length that the file had so far.
    limit: u32,
    /// The last backup that had the file.
    seen: Member,
    base: Option<Base>,
}

impl<'a> Descent<'a> {
    fn begin(newest: &'a Contents) -> Result<Descent<'a>> {
        let mut descent = Descent {
            files: &newest.list.files,
            older: Vec::new(),
            layers: Vec::new(),
        };
        for (place, file) in (0..).zip(descent.files.iter()) {
            if file.kind != FileKind::Whole {
                let mut older = Older {
                    place,
                    limit: u32::MAX,
                    seen: Member::NEWEST,
                    base: None,
                };
                descent
                    .take(Member::NEWEST, &file, &mut older)
                    .map_err(|why| damaged(&newest.info, file.path, why))?;
                descent.older.push(older);
            }
        }
        Ok(descent)
    }

    /// Takes from the next older backup what it has of the files that are still open.
    fn step(&mut self, member: Member, ancestor: &Ancestor) -> Result<()> {
        let info = &ancestor.info;
        let mut older = std::mem::take(&mut self.older);
        let mut search = self.files.search_on();
        let mut wrong = Ok(());
        visit_list(&ancestor.folder, info, &ancestor.coding, |listed| {
            let Listed::File(stored) = listed else {
                return;
            };
            let Some(place) = search.find(stored.path) else {
                return;
            };
            let found = older.binary_search_by_key(&(place as u32), |file| file.place);
            let Some(file) = found.ok().map(|found| &mut older[found]) else {
                return;
            };
            if file.base.is_none()
                && file.seen != member
                && let Err(why) = self.take(member, &stored, file)
                && wrong.is_ok()
            {
                wrong = Err(damaged(info, stored.path, why));
            }
        })?;
        wrong?;
        self.older = older;
        let mut open = self.older.iter().filter(|file| file.base.is_none());
        match open.find(|file| file.seen != member) {
            None => Ok(()),
            Some(file) => Err(damaged(
                info,
                self.files.get(file.place as usize).path,
                "is missing in it, and a later backup holds only what changed of it",
            )),
        }
    }

    /// Takes what one backup has of a file.
    fn take(
        &mut self,
        member: Member,
        stored: &FileEntry<'_>,
        file: &mut Older,
    ) -> std::result::Result<(), &'static str> {
        file.seen = member;
        match stored.kind {
            FileKind::Whole => {
                if !stored.size.is_multiple_of(PAGE_SIZE as u64) {
                    return Err("is no whole number of blocks");
                }
                file.base = Some(Base::of(member, stored, file.limit));
            }
            FileKind::Incremental { blocks, length } => {
                file.limit = file.limit.min(length);
                if stored.size != incremental::file_size(blocks) {
                    return Err("is an incremental file of an impossible size");
                }
                if blocks > 0 && stored.bundle.is_some() {
                    return Err("is an incremental file with blocks in a bundle");
                }
                if blocks > 0 {
                    self.layers.push(Layer {
                        place: file.place,
                        member,
                        blocks,
                        crc32c: stored.crc32c,
                        limit: file.limit,
                    });
                }
            }
        }
        Ok(())
    }

    /// Every file's way, once the last backup of the chain has been looked at.
    fn finish(mut self) -> Result<(Vec<Rebuilt>, Vec<Layer>)> {
        // Stable: those of one file stay in the order of their backups.
        self.layers.sort_by_key(|layer| layer.place);
        let rebuilt = self.older.into_iter().map(|Older { place, base, .. }| {
            let base = base.ok_or_else(|| {
                Error::damage(format!(
                    "no backup of the chain holds {} as a whole",
                    self.files.get(place as usize).path
                ))
                .hint("use another backup, and make a new full one")
            })?;
            Ok(Rebuilt { place, base })
        });
        Ok((rebuilt.collect::<Result<_>>()?, self.layers))
    }
}

/// An error of what a backup of the chain lists.
fn damaged(info: &BackupInfo, path: &str, why: &str) -> Error {
    Error::damage(format!(
        "backup {} cannot be used: {path} {why}",
        info.backup
    ))
    .hint("use another backup, and make a new full one")
}
