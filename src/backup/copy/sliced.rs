//! Large files, in slices that several workers read and compress at the same time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::backup::assembly::Assembly;
use crate::backup::copy::{Job, Worker, vanished};
use crate::backup::plan::{PlannedFile, Wanted};
use crate::error::Result;
use crate::parallel::Stop;
use crate::pg::incremental;
use crate::pg::page::PAGE_SIZE;
use crate::repository::layout;
use crate::repository::store::SLICE_BYTES;
use crate::server::reading::Range;

/// The files that are read in slices and not whole yet, by their places in the plan: as many as there are workers, or little more.
pub(super) struct Assemblies<'a> {
    job: &'a Job<'a>,
    open: Mutex<HashMap<usize, Arc<Sliced<'a>>>>,
}

/// A file that is read in slices.
pub(super) struct Sliced<'a> {
    assembly: Assembly<'a>,
    /// What an incremental file begins with.
    header: Vec<u8>,
}

impl<'a> Assemblies<'a> {
    pub(super) fn new(job: &'a Job<'a>) -> Assemblies<'a> {
        Assemblies {
            job,
            open: Mutex::default(),
        }
    }

    /// The one of a file, begun where no other worker has.
    fn get(&self, file: usize) -> Arc<Sliced<'a>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let sliced = open
            .entry(file)
            .or_insert_with(|| Arc::new(self.begin(self.job.plan.files.get(file))));
        Arc::clone(sliced)
    }

    fn begin(&self, file: PlannedFile<'_>) -> Sliced<'a> {
        let request = self.job.request;
        let stored = file.kind().stored_path(file.path).into_owned();
        let stored = layout::stored_file(&stored, request.coding.suffix());
        let path = self.job.folder.stored(&stored);
        let workers = request.workers as u64;
        Sliced {
            assembly: Assembly::new(path, request.coding, file.slices(), workers),
            header: match &file.wanted {
                Wanted::Whole => Vec::new(),
                Wanted::Blocks(blocks) => incremental::header(blocks, file.blocks()),
            },
        }
    }

    /// Forgets one that is whole.
    fn close(&self, file: usize) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(&file);
    }
}

impl Worker<'_> {
    /// Reads one slice of a large file, and stores it.
    pub(super) fn copy_slice(&mut self, file: usize, number: u64, stop: &Stop<'_>) -> Result<()> {
        let job = self.job;
        let planned = job.plan.files.get(file);
        let sliced = self.assemblies.get(file);
        match planned.wanted {
            Wanted::Whole => {
                let offset = number * SLICE_BYTES;
                let length = SLICE_BYTES.min(planned.size - offset);
                self.read_slice(file, offset, length, stop)?;
                self.check_slice(file, offset)?;
            }
            Wanted::Blocks(blocks) => {
                self.read_changed_slice(file, &sliced.header, blocks, number, stop)?;
            }
        }
        drop(sliced);
        self.store_slice(file, number, stop)
    }

    /// Stores `self.plain`, which is one slice of a file.
    pub(super) fn store_slice(&mut self, file: usize, number: u64, stop: &Stop<'_>) -> Result<()> {
        let sliced = self.assemblies.get(file);
        let planned = self.job.plan.files.get(file);
        let expected = SLICE_BYTES.min(planned.stored_size() - number * SLICE_BYTES);
        let plain = &self.plain;
        let part = &mut self.part;
        part.length = plain.len() as u64;
        part.crc32c = crc32c::crc32c(plain);
        part.is_last = part.length < expected;
        part.frame.clear();
        if !plain.is_empty() {
            self.store.compressor.compress(plain, &mut part.frame)?;
        }
        let whole = sliced.assembly.put(number, part, || stop.is_set())?;
        let Some(whole) = whole else {
            return Ok(());
        };
        self.assemblies.close(file);
        let Some(written) = whole.written else {
            return vanished(planned);
        };
        let entry = planned.entry(whole.size, whole.crc32c, None);
        let stored = self.store.path_of(&entry.stored_path());
        self.store.stored.add(&stored, written);
        self.store.stored.files.push(entry);
        Ok(())
    }

    /// Reads a slice of a whole file into `self.plain`, as far as the file goes.
    fn read_slice(&mut self, file: usize, offset: u64, length: u64, stop: &Stop<'_>) -> Result<()> {
        let job = self.job;
        let path = job.plan.files.get(file).path;
        let slice = Range {
            path,
            offset,
            length,
        };
        self.plain.clear();
        self.session
            .reader()?
            .append(slice, &mut self.plain, |wanted, read| {
                stop.check()?;
                job.progress.advance(wanted);
                job.rate.take(read, || stop.is_set());
                Ok(())
            })
    }

    /// Looks at the pages of `self.plain`, which is what there is of a whole file from an offset on.
    pub(super) fn check_slice(&mut self, file: usize, offset: u64) -> Result<()> {
        let Some(relation) = self.job.plan.files.get(file).relation() else {
            return Ok(());
        };
        self.plain
            .truncate(self.plain.len() - self.plain.len() % PAGE_SIZE);
        let first_block = (offset / PAGE_SIZE as u64) as u32;
        let suspects = self.pages.look_at(file, relation, first_block, &self.plain);
        let mut plain = std::mem::take(&mut self.plain);
        let looked = self.look_again(suspects, &mut plain, |block| {
            (block - first_block) as usize * PAGE_SIZE
        });
        self.plain = plain;
        looked
    }
}
