//! Small files, put into new bundles.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::Result;
use crate::repository::file_list::{FileEntry, FileKind, Files};
use crate::repository::layout;
use crate::repository::store::{BUNDLED_BYTES, SLICE_BYTES, Store, Stored};
use crate::stored::bundle::BundleBuilder;
use crate::stored::coding::Suffix;

/// What a member adds to a bundle beside its content.
const OVERHEAD: u64 = 1024;

/// Fills one bundle after the other. One a worker.
pub struct Bundling<'a> {
    /// What stores them, and other files too.
    pub store: Store<'a>,
    next: &'a AtomicU32,
    suffix: Suffix,
    builder: BundleBuilder,
    bytes: u64,
    members: Files,
}

impl<'a> Bundling<'a> {
    /// One that has no bundle yet; `next` is the number of the next one, for all workers.
    pub fn new(store: Store<'a>, next: &'a AtomicU32, suffix: Suffix) -> Bundling<'a> {
        Bundling {
            next,
            suffix,
            builder: BundleBuilder::new(Vec::new()),
            bytes: 0,
            members: Files::sharing(store.stored.files.paths(), 0),
            store,
        }
    }

    /// Whether a file belongs into a bundle. An incremental file with blocks never does.
    pub fn takes(&self, file: FileEntry<'_>) -> bool {
        let has_blocks = matches!(file.kind, FileKind::Incremental { blocks, .. } if blocks > 0);
        !self.suffix.is_plain() && file.size <= BUNDLED_BYTES && !file.is_extra() && !has_blocks
    }

    /// Whether these fill half a bundle at least. Smaller ones are put together anew, or else each merge would leave more of them.
    pub fn is_full<'f>(files: impl Iterator<Item = FileEntry<'f>>) -> bool {
        files.map(|file| file.size + OVERHEAD).sum::<u64>() >= SLICE_BYTES / 2
    }

    /// A number that no bundle has.
    pub fn next_number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds a file to the bundle at hand.
    pub fn add(&mut self, file: FileEntry<'_>, content: &[u8]) -> Result<()> {
        self.builder
            .add(&file.stored_path(), file.modified, content)?;
        self.bytes += file.size + OVERHEAD;
        self.members.push(file);
        if self.bytes >= SLICE_BYTES {
            self.store_bundle()?;
        }
        Ok(())
    }

    /// Stores what is left; the account of all that was stored.
    pub fn finish(mut self) -> Result<Stored> {
        if !self.members.is_empty() {
            self.store_bundle()?;
        }
        Ok(self.store.stored)
    }

    fn store_bundle(&mut self) -> Result<()> {
        let number = self.next_number();
        let builder = std::mem::replace(&mut self.builder, BundleBuilder::new(Vec::new()));
        let tar = builder.finish()?;
        self.store
            .content(&layout::bundle(number, self.suffix), &tar)?;
        self.builder = BundleBuilder::new(tar);
        self.bytes = 0;
        let files = &mut self.store.stored.files;
        let none = Files::sharing(files.paths(), 0);
        for file in std::mem::replace(&mut self.members, none).iter() {
            files.push(FileEntry {
                bundle: Some(number),
                ..file
            });
        }
        Ok(())
    }
}
