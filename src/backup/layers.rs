//! What passes left that did not become a backup: each a part of one, on top of the one before.
//!
//! A layer is stored as a backup is, but for its WAL, its label and its control file, so that the next pass builds on it as an incremental
//! backup does on its parent, and in the end is merged with it. It needs all blocks that changed since the layer was begun.
//! Where a pass was broken off that was built on something itself, its layer has the files that it did not get to as files
//! of which nothing changed, and owes the blocks that it should have read of them.

use std::sync::atomic::AtomicU32;
use std::time::Instant;

use crate::backup::Request;
use crate::backup::finish::{Description, Extent};
use crate::backup::journal;
use crate::backup::parent::Parent;
use crate::backup::pass::Left;
use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::pg::changed_blocks::ChangedBlocks;
use crate::pg::incremental;
use crate::pg::page::PAGE_SIZE;
use crate::progress::Progress;
use crate::repository::backup_info::BackupInfo;
use crate::repository::bundling::Bundling;
use crate::repository::file_list::{Crc32c, FileEntry, FileKind, Files};
use crate::repository::identifier::Identifier;
use crate::repository::layout::BackupFolder;
use crate::repository::merge::Merge;
use crate::repository::staging::Staging;
use crate::repository::store::{Store, Stored};
use crate::server::facts::Facts;
use crate::stored::coding::Coding;
use crate::stored::reader::read_whole;

/// The layers, the first pass's at the bottom.
#[derive(Default)]
pub(super) struct Layers {
    layers: Vec<Layer>,
}

struct Layer {
    folder: BackupFolder,
    /// Blocks that changed before its pass began and that it did not get to, those that were torn or damaged when they
    /// were read, and those that changed meanwhile.
    owed: ChangedBlocks,
}

/// What is known of the backup whatever pass it comes of.
#[derive(Clone, Copy)]
pub(super) struct Whose<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) identifier: Identifier,
    pub(super) began: Instant,
}

impl Layers {
    pub(super) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// What the next pass builds on, where there is any layer.
    pub(super) fn top(&self, request: &Request<'_>, facts: &Facts) -> Result<Option<Parent>> {
        let top = self.layers.last();
        top.map(|layer| Parent::of_layer(&layer.folder, &layer.owed, request.keys, facts))
            .transpose()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.layers.len()
    }

    /// Takes one that is sealed already.
    pub(super) fn take(&mut self, folder: BackupFolder, coding: &Coding) -> Result<()> {
        let path = folder.stored(&owed_file(coding));
        let owed = match path.exists()? {
            true => ChangedBlocks::parse(&read_whole(&path, coding)?)?,
            false => ChangedBlocks::new(),
        };
        self.layers.push(Layer { folder, owed });
        Ok(())
    }

    /// Forgets them all.
    pub(super) fn clear(&mut self) -> Result<()> {
        let mut layers = self.layers.drain(..);
        layers.try_for_each(|layer| layer.folder.place().remove_folder())
    }

    /// Takes what a pass left in a folder. Where it was built on something, and broken off, `base` is that.
    pub(super) fn push(
        &mut self,
        whose: Whose<'_>,
        facts: &Facts,
        folder: BackupFolder,
        left: Left,
        base: Option<Parent>,
    ) -> Result<()> {
        let Whose {
            request,
            identifier,
            began,
        } = whose;
        let Left {
            mut stored,
            is_complete,
            meanwhile,
            timeline,
            newest,
            doubtful,
            increment,
            changed,
        } = left;
        let suffix = request.coding.suffix();
        stored.take_out(|entry| entry.path.starts_with("pg_wal/"), suffix, &folder)?;
        let mut owed = changed.filter(|_| !is_complete).unwrap_or_default();
        owed.append(doubtful);
        owed.append(meanwhile.changed);
        let mut store = Store::new(&folder, request.coding)?;
        if let Some(base) = &base {
            keep_as_before(&mut stored, &base.relations, &folder, request.coding)?;
        }
        store.stored = stored;
        store.content(&owed_file(request.coding), &owed.to_bytes())?;
        let sealed = store.seal(Vec::new())?;
        let description = Description {
            request,
            facts,
            tablespaces: &[],
            // Whatever may be damaged is read again.
            corrupt: Vec::new(),
            increment,
            source: None,
            identifier,
            began,
        };
        let until = meanwhile.until;
        let extent = Extent::of_layer(until, timeline, newest.max(until), facts.in_recovery);
        description.info(extent, &sealed).write(&folder)?;
        journal::remove(&folder)?;
        self.layers.push(Layer { folder, owed });
        Ok(())
    }

    /// Puts the last pass, a backup on top of the layers, and all of them together. Gives the folder of what comes of it.
    pub(super) fn merge(
        &mut self,
        last: BackupFolder,
        staging: &Staging,
        request: &Request<'_>,
        progress: &dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<BackupFolder> {
        let mut upper = last;
        while let Some(layer) = self.layers.pop() {
            let mut merge = Merge::open(&upper, &layer.folder, request.keys)?;
            let merged = staging.part(&format!("merged.{}", self.layers.len()))?;
            let sealed = merge.build(&merged, request.workers, progress, interrupt)?;
            let info = BackupInfo::read(&upper)?;
            merge.info(&info, &sealed).write(&merged)?;
            upper.place().remove_folder()?;
            layer.folder.place().remove_folder()?;
            upper = merged;
        }
        Ok(upper)
    }
}

/// What a layer owes, as a WAL summary; in its folder.
fn owed_file(coding: &Coding) -> String {
    format!("owed{}", coding.suffix())
}

/// Adds relations that a pass did not get to, as files of which nothing changed.
fn keep_as_before(
    stored: &mut Stored,
    relations: &Files,
    folder: &BackupFolder,
    coding: &Coding,
) -> Result<()> {
    stored.files.sort();
    let mut search = stored.files.search_on();
    let missing = relations
        .iter()
        .filter(|relation| search.find(relation.path).is_none());
    let last = stored.files.iter().filter_map(|file| file.bundle).max();
    let next = AtomicU32::new(last.map_or(0, |last| last + 1));
    let mut bundling = Bundling::new(Store::new(folder, coding)?, &next, coding.suffix());
    for relation in missing {
        let length = (relation.restored_size() / PAGE_SIZE as u64) as u32;
        let content = incremental::header(&[], length);
        let entry = FileEntry {
            size: content.len() as u64,
            crc32c: Crc32c(crc32c::crc32c(&content)),
            bundle: None,
            kind: FileKind::Incremental { blocks: 0, length },
            ..relation
        };
        match bundling.takes(entry) {
            true => bundling.add(entry, &content)?,
            false => {
                let path = folder.stored(&bundling.store.path_of(&entry.stored_path()));
                path.create_parent()?;
                // Half of it may be there, if the pass was broken off just then.
                path.remove()?;
                bundling.store.keep(entry, &content)?;
            }
        }
    }
    stored.append(bundling.finish()?);
    Ok(())
}
