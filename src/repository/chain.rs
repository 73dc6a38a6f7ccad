//! A backup with the ones it needs, and what each of its files is rebuilt from.
//!
//! An incremental file holds some blocks of a file that had `length` blocks. The file is rebuilt from
//! the newest backup down to the first that holds it whole: it gets as many blocks as it had in the newest, and each
//! block from the newest backup that has it. But where a file was shorter meanwhile, in any backup in between,
//! what it had beyond that length before is gone: a block of an older backup counts only below the smallest length that
//! the newer ones know of. What no backup gives is zeros. (PostgreSQL's bin/pg_combinebackup/reconstruct.c
//! disregards the lengths in between, and so brings back rows that had been deleted.)

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::pg::changed_blocks::RelationFork;
use crate::pg::exclusion::is_other_fork;
use crate::pg::incremental;
use crate::pg::page::PAGE_SIZE;
use crate::pg::version::Major;
use crate::repository::backup_info::BackupInfo;
use crate::repository::catalogue::{Backup, Catalogue};
use crate::repository::contents::Contents;
use crate::repository::file_list::{Crc32c, FileEntry, FileKind};
use crate::repository::layout::{self, BackupFolder};
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
    /// Of the newest backup's files, in their order.
    origins: Vec<Origin>,
    /// Of all files, those of one next to each other.
    layers: Vec<Layer>,
}

struct Ancestor {
    folder: BackupFolder,
    info: BackupInfo,
    coding: Coding,
}

/// Where a file comes from.
#[derive(Debug, Clone)]
struct Origin {
    base: Base,
    first_layer: usize,
    layers: usize,
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
    pub file: &'a FileEntry,
    /// What it begins with.
    pub base: &'a Base,
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

/// Stored content of the chain that is read in one go.
pub enum Portion<'a> {
    /// A file whose base is stored by itself.
    Alone(Sources<'a>),
    /// Files whose bases are in one bundle.
    Bundle {
        /// The backup of the chain that holds it.
        member: Member,
        /// Its number there.
        number: u32,
        /// In the order of their paths.
        files: Vec<Sources<'a>>,
    },
}

/// A file as it is stored.
pub struct Stored<'a> {
    /// Where it lies.
    pub path: PathBuf,
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
        let files = &newest.list.files;
        let mut descent = Descent::begin(files);
        descent.step(Member::NEWEST, &newest)?;
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for link in catalogue.ancestors(&newest.info)? {
            let contents = Contents::read(link.folder, keys)?;
            if contents.info.checksums != link.info.checksums {
                return Err(Error::failed(format!(
                    "backup {} was replaced while it was being read",
                    link.info.backup
                ))
                .hint("run the same command again"));
            }
            descent.step(Member(ancestors.len() as u32 + 1), &contents)?;
            ancestors.push(Ancestor {
                folder: contents.folder,
                info: contents.info,
                coding: contents.coding,
            });
        }
        let (origins, layers) = descent.finish()?;
        Ok(Chain {
            newest,
            ancestors,
            origins,
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
        let files = std::mem::take(&mut self.newest.list.files);
        let kept = files
            .into_iter()
            .zip(std::mem::take(&mut self.origins))
            .filter(|(file, _)| !is_other_fork(&file.path, init_forks, &tablespace_directory));
        (self.newest.list.files, self.origins) = kept.unzip();
        Ok(())
    }

    /// What is known of a backup of the chain.
    pub fn info(&self, member: Member) -> &BackupInfo {
        match self.ancestor(member) {
            None => &self.newest.info,
            Some(ancestor) => &ancestor.info,
        }
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

    /// Every file of the newest backup, in the order of their paths.
    pub fn files(&self) -> impl Iterator<Item = Sources<'_>> {
        let origins = self.newest.list.files.iter().zip(&self.origins);
        origins.map(|(file, origin)| Sources {
            file,
            base: &origin.base,
            layers: &self.layers[origin.first_layer..][..origin.layers],
        })
    }

    /// All content that the newest backup's files are rebuilt from; those with most to read first.
    pub fn portions(&self) -> Vec<Portion<'_>> {
        let mut alone = Vec::new();
        let mut bundles: BTreeMap<(Member, u32), Vec<Sources<'_>>> = BTreeMap::new();
        for sources in self.files() {
            match sources.base.bundle {
                None => alone.push(sources),
                Some(number) => bundles
                    .entry((sources.base.member, number))
                    .or_default()
                    .push(sources),
            }
        }
        alone.sort_by_key(|sources| std::cmp::Reverse(sources.bytes_to_read()));
        let bundles = bundles
            .into_iter()
            .map(|((member, number), files)| Portion::Bundle {
                member,
                number,
                files,
            });
        alone
            .into_iter()
            .map(Portion::Alone)
            .chain(bundles)
            .collect()
    }
}

/// The way down the chain, from each file to its base.
struct Descent<'a> {
    files: &'a [FileEntry],
    bases: Vec<Option<Base>>,
    open: Vec<Open>,
    /// With the place of the file.
    layers: Vec<(usize, Layer)>,
}

/// A file whose base has not been found yet.
struct Open {
    place: usize,
    /// The smallest length that the file had so far.
    limit: u32,
}

impl<'a> Descent<'a> {
    fn begin(files: &'a [FileEntry]) -> Descent<'a> {
        let open = |place| Open {
            place,
            limit: u32::MAX,
        };
        Descent {
            files,
            bases: vec![None; files.len()],
            open: (0..files.len()).map(open).collect(),
            layers: Vec::new(),
        }
    }

    /// Takes from the next older backup what it has of the files that are still open.
    fn step(&mut self, member: Member, contents: &Contents) -> Result<()> {
        for Open { place, limit } in std::mem::take(&mut self.open) {
            let path = &self.files[place].path;
            let damaged = |why: &str| {
                Error::damage(format!(
                    "backup {} cannot be used: {path} {why}",
                    contents.info.backup
                ))
                .hint("use another backup, and make a new full one")
            };
            let stored = contents.list.find(path).ok_or_else(|| {
                damaged("is missing in it, and a later backup holds only what changed of it")
            })?;
            match stored.kind {
                FileKind::Whole => {
                    if limit != u32::MAX && !stored.size.is_multiple_of(PAGE_SIZE as u64) {
                        return Err(damaged("is no whole number of blocks"));
                    }
                    self.bases[place] = Some(Base {
                        member,
                        bundle: stored.bundle,
                        size: stored.size,
                        crc32c: stored.crc32c,
                        limit,
                    });
                }
                FileKind::Incremental { blocks, length } => {
                    let limit = limit.min(length);
                    if stored.size != incremental::file_size(blocks) {
                        return Err(damaged("is an incremental file of an impossible size"));
                    }
                    if blocks > 0 && stored.bundle.is_some() {
                        return Err(damaged("is an incremental file with blocks in a bundle"));
                    }
                    if blocks > 0 {
                        let layer = Layer {
                            member,
                            blocks,
                            crc32c: stored.crc32c,
                            limit,
                        };
                        self.layers.push((place, layer));
                    }
                    self.open.push(Open { place, limit });
                }
            }
        }
        Ok(())
    }

    /// Every file's way, once the last backup of the chain has been looked at.
    fn finish(mut self) -> Result<(Vec<Origin>, Vec<Layer>)> {
        // Stable: those of one file stay in the order of their backups.
        self.layers.sort_by_key(|(place, _)| *place);
        let mut origins = Vec::with_capacity(self.files.len());
        let mut first_layer = 0;
        for (place, (file, base)) in self.files.iter().zip(self.bases).enumerate() {
            let base = base.ok_or_else(|| {
                Error::damage(format!(
                    "no backup of the chain holds {} as a whole",
                    file.path
                ))
                .hint("use another backup, and make a new full one")
            })?;
            let of_file = self.layers[first_layer..]
                .iter()
                .take_while(|(layer_of, _)| *layer_of == place);
            let layers = of_file.count();
            origins.push(Origin {
                base,
                first_layer,
                layers,
            });
            first_layer += layers;
        }
        let layers = self.layers.into_iter().map(|(_, layer)| layer).collect();
        Ok((origins, layers))
    }
}
