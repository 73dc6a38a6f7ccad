//! Files that are no relations: each whole, and from one moment.
//!
//! Replay does not mend them. `ALTER SYSTEM`, a checkpoint that writes the progress of subscriptions, a person with an editor:
//! what is listed as one file may be another, longer or shorter one when its turn comes, which in a
//! large cluster is hours later. So they are read to their end, and until two looks agree.

use std::time::Duration;

use crate::backup::copy::{Worker, vanished};
use crate::backup::plan::PlannedFile;
use crate::error::Result;
use crate::parallel::Stop;
use crate::repository::file_list::Crc32c;
use crate::repository::store::{SLICE_BYTES, Store};
use crate::server::reading::Range;
use crate::storage::Place;
use crate::stored::writer::{StoredWriter, Written};

/// How often a file is looked at that changes all the time.
const LOOKS: u32 = 4;

/// Between two looks at what is just being written.
const PAUSE: Duration = Duration::from_millis(20);

/// Asked for beyond what a file had when it was last looked at. Where it fills that too it has grown by more.
const ROOM: u64 = 64 << 10;

/// A small file between two looks.
struct Looked {
    file: usize,
    content: Vec<u8>,
}

impl Worker<'_> {
    /// Reads small files whole, each by one row and so from one open file, and hands on those that exist.
    pub(super) fn read_settled(
        &mut self,
        files: Vec<usize>,
        stop: &Stop<'_>,
        keep: &mut impl FnMut(&mut Store<'_>, PlannedFile<'_>, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let job = self.job;
        let planned = |file: usize| job.plan.files.get(file);
        let files = self.read_empty(files, keep)?;
        let mut looked: Vec<Looked> = Vec::new();
        let mut grown = Vec::new();
        for look in 0..LOOKS {
            let before = std::mem::take(&mut looked);
            let wanted: Vec<Range<'_>> = match look {
                0 => files
                    .iter()
                    .map(|&file| to_the_end(planned(file), planned(file).size))
                    .collect(),
                _ => before
                    .iter()
                    .map(|last| to_the_end(planned(last.file), last.content.len() as u64))
                    .collect(),
            };
            let store = &mut self.store;
            self.session.reader()?.read(&wanted, |index, bytes| {
                stop.check()?;
                let last = before.get(index);
                let file = last.map_or_else(|| files[index], |last| last.file);
                if look == 0 {
                    job.progress.advance(planned(file).size);
                }
                let Some(bytes) = bytes else {
                    return vanished(planned(file));
                };
                job.rate.take(bytes.len() as u64, || stop.is_set());
                if bytes.len() as u64 == wanted[index].length {
                    grown.push(file);
                } else if last.is_some_and(|last| last.content == bytes) {
                    keep(store, planned(file), bytes)?;
                } else {
                    looked.push(Looked {
                        file,
                        content: bytes.to_vec(),
                    });
                }
                Ok(())
            })?;
            if looked.is_empty() {
                break;
            }
            if look > 0 {
                std::thread::sleep(PAUSE);
            }
        }
        for Looked { file, content } in looked {
            warn_of_change(planned(file));
            keep(&mut self.store, planned(file), &content)?;
        }
        grown
            .into_iter()
            .try_for_each(|file| self.copy_settled(file, stop))
    }

    /// Hands on files that are still empty, without a read: a pipe or a socket looks like one, and to open a pipe is to
    /// wait for its writer for ever. Gives the others.
    fn read_empty(
        &mut self,
        files: Vec<usize>,
        keep: &mut impl FnMut(&mut Store<'_>, PlannedFile<'_>, &[u8]) -> Result<()>,
    ) -> Result<Vec<usize>> {
        let mut filled = Vec::with_capacity(files.len());
        for file in files {
            let planned = self.job.plan.files.get(file);
            if planned.size > 0 {
                filled.push(file);
                continue;
            }
            match self.session.reader()?.state(planned.path)? {
                None => vanished(planned)?,
                Some(state) if state.size == 0 => keep(&mut self.store, planned, &[])?,
                Some(_) => filled.push(file),
            }
        }
        Ok(filled)
    }

    /// Stores a large file by itself, of any size.
    pub(super) fn copy_settled(&mut self, file: usize, stop: &Stop<'_>) -> Result<()> {
        let planned = self.job.plan.files.get(file);
        let path = self.store.path_of(planned.path);
        let target = self.job.folder.stored(&path);
        target.create_parent()?;
        self.job.progress.advance(planned.size);
        let mut look = 1;
        loop {
            let Some(before) = self.session.reader()?.settled_state(planned.path)? else {
                return vanished(planned);
            };
            let (size, crc32c, written) = self.store_to_the_end(planned, &target, stop)?;
            let is_settled =
                self.session.reader()?.state(planned.path)? == Some(before) && size == before.size;
            if !is_settled && look < LOOKS {
                look += 1;
                target.remove()?;
                continue;
            }
            if !is_settled {
                warn_of_change(planned);
            }
            self.store.stored.add(&path, written);
            self.store
                .stored
                .files
                .push(planned.entry(size, crc32c, None));
            return Ok(());
        }
    }

    /// Stores what a file holds just now: its length, its checksum and what is stored of it.
    fn store_to_the_end(
        &mut self,
        planned: PlannedFile<'_>,
        target: &Place,
        stop: &Stop<'_>,
    ) -> Result<(u64, Crc32c, Written)> {
        let job = self.job;
        let mut writer = StoredWriter::create(target, job.request.coding)?;
        let mut size = 0;
        let mut crc32c = 0;
        loop {
            let slice = Range {
                path: planned.path,
                offset: size,
                length: SLICE_BYTES,
            };
            let plain = &mut self.plain;
            plain.clear();
            self.session.reader()?.append(slice, plain, |_, read| {
                stop.check()?;
                job.rate.take(read, || stop.is_set());
                Ok(())
            })?;
            let has_ended = (plain.len() as u64) < SLICE_BYTES;
            size += plain.len() as u64;
            crc32c = crc32c::crc32c_append(crc32c, plain);
            if !plain.is_empty() {
                self.store
                    .compressor
                    .compress(&self.plain, &mut self.part.frame)?;
                writer.append(&self.part.frame)?;
            }
            if has_ended {
                return Ok((size, Crc32c(crc32c), writer.finish()?));
            }
        }
    }
}

/// A whole file, and whether there is more of it than was known.
fn to_the_end(planned: PlannedFile<'_>, known: u64) -> Range<'_> {
    Range {
        path: planned.path,
        offset: 0,
        length: known + ROOM,
    }
}

fn warn_of_change(planned: PlannedFile<'_>) {
    log::warn!(
        "the server's file {} changes all the time: it is stored as it was at the last look, maybe by halves",
        planned.path
    );
}
