//! Small files, many together.

use crate::backup::copy::{Worker, vanished};
use crate::backup::plan::{PlannedFile, Wanted};
use crate::error::Result;
use crate::parallel::Stop;
use crate::pg::incremental;
use crate::pg::page::PAGE_SIZE;
use crate::repository::file_list::{Crc32c, Files};
use crate::repository::layout;
use crate::repository::store::Store;
use crate::server::reading::Range;
use crate::stored::bundle::BundleBuilder;

/// A bundle that is being filled.
pub(super) struct Bundle {
    number: u32,
    tar: BundleBuilder,
    members: Files,
}

impl Bundle {
    /// Adds a file of the plan.
    pub(super) fn add(&mut self, planned: PlannedFile<'_>, content: &[u8]) -> Result<()> {
        let crc32c = Crc32c(crc32c::crc32c(content));
        let entry = planned.entry(content.len() as u64, crc32c, Some(self.number));
        self.tar
            .add(&entry.stored_path(), planned.modified, content)?;
        self.members.push(entry);
        Ok(())
    }
}

/// Stores a file of the plan by itself.
pub(super) fn store_alone(
    store: &mut Store<'_>,
    planned: PlannedFile<'_>,
    content: &[u8],
) -> Result<()> {
    let crc32c = Crc32c(crc32c::crc32c(content));
    store.keep(planned.entry(content.len() as u64, crc32c, None), content)
}

impl Worker<'_> {
    /// Reads small files, and stores them as one bundle.
    pub(super) fn copy_bundle(
        &mut self,
        files: &[u32],
        number: u32,
        stop: &Stop<'_>,
    ) -> Result<()> {
        let mut bundle = self.bundle(number, files.len());
        self.read_small(files, stop, |_, planned, content| {
            bundle.add(planned, content)
        })?;
        self.store_bundle(bundle)
    }

    /// Reads small files, and stores each by itself.
    pub(super) fn copy_small(&mut self, files: &[u32], stop: &Stop<'_>) -> Result<()> {
        self.read_small(files, stop, store_alone)
    }

    /// Begins a bundle of so many files, in the memory of `self.plain`.
    pub(super) fn bundle(&mut self, number: u32, files: usize) -> Bundle {
        Bundle {
            number,
            tar: BundleBuilder::new(std::mem::take(&mut self.plain)),
            members: Files::sharing(self.job.plan.files.paths(), files),
        }
    }

    /// Stores a bundle.
    pub(super) fn store_bundle(&mut self, bundle: Bundle) -> Result<()> {
        self.plain = bundle.tar.finish()?;
        let path = layout::bundle(bundle.number, self.job.request.coding.suffix());
        self.store.content(&path, &self.plain)?;
        for member in bundle.members.iter() {
            self.store.stored.files.push(member);
        }
        Ok(())
    }

    /// Reads small files, each in one row, and hands on those that exist. Empty relations and those
    /// that did not change need no row.
    fn read_small(
        &mut self,
        files: &[u32],
        stop: &Stop<'_>,
        mut keep: impl FnMut(&mut Store<'_>, PlannedFile<'_>, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let job = self.job;
        let planned = |file: usize| job.plan.files.get(file);
        let mut filled = Vec::new();
        let mut others = Vec::new();
        for &file in files {
            let file = file as usize;
            let planned = planned(file);
            match planned.wanted {
                Wanted::Blocks(blocks) => {
                    let content = incremental::header(blocks, planned.blocks());
                    keep(&mut self.store, planned, &content)?;
                }
                Wanted::Whole if !planned.is_replayed() => others.push(file),
                Wanted::Whole if planned.size == 0 => keep(&mut self.store, planned, &[])?,
                Wanted::Whole => filled.push(file),
            }
        }
        let wanted: Vec<Range<'_>> = filled
            .iter()
            .map(|&file| Range {
                path: planned(file).path,
                offset: 0,
                length: planned(file).size,
            })
            .collect();
        let store = &mut self.store;
        let pages = &mut self.pages;
        let mut doubtful = Vec::new();
        self.session.reader()?.read(&wanted, |index, bytes| {
            stop.check()?;
            let file = filled[index];
            let planned = planned(file);
            job.progress.advance(planned.size);
            let Some(mut content) = bytes else {
                return vanished(planned);
            };
            let mut suspects = Vec::new();
            if let Some(relation) = planned.relation() {
                content = &content[..content.len() - content.len() % PAGE_SIZE];
                suspects = pages.look_at(file, relation, 0, content);
            }
            job.rate.take(content.len() as u64, || stop.is_set());
            if suspects.is_empty() {
                return keep(store, planned, content);
            }
            doubtful.push((file, content.to_vec(), suspects));
            Ok(())
        })?;
        for (file, mut content, suspects) in doubtful {
            self.look_again(suspects, &mut content, |block| block as usize * PAGE_SIZE)?;
            keep(&mut self.store, planned(file), &content)?;
        }
        self.read_settled(others, stop, &mut keep)
    }
}
