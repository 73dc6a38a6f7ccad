//! The workers: read, check, compress, store.

mod changed;
mod settled;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::backup::Request;
use crate::backup::assembly::{Assembly, Part};
use crate::backup::corruption::{PageCheck, Pages, Suspect, doubtful};
use crate::backup::journal::{Journal, Notes};
use crate::backup::plan::{Plan, PlannedFile, Wanted};
use crate::backup::tasks::Task;
use crate::backup::wal::following::Followed;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::parallel::{self, Stop};
use crate::pg::incremental;
use crate::pg::lsn::Lsn;
use crate::pg::page::PAGE_SIZE;
use crate::progress::Progress;
use crate::rate::RateLimit;
use crate::repository::durable;
use crate::repository::file_list::{Crc32c, Files};
use crate::repository::layout::{self, BUNDLES, BackupFolder};
use crate::repository::store::{SLICE_BYTES, Store, Stored};
use crate::server::reading::{FileReader, Range, ranges};
use crate::stored::bundle::BundleBuilder;
use crate::stored::coding::Suffix;

/// How often a page is looked at again whose checksum stays wrong.
const LOOKS: u32 = 3;

/// Between two of these looks: a write that was under way is over.
const PAUSE: Duration = Duration::from_millis(20);

/// Everything that was copied.
#[derive(Default)]
pub(super) struct Copied {
    /// What lies on disk.
    pub(super) stored: Stored,
    /// Pages whose checksum did not fit.
    pub(super) suspects: Vec<Suspect>,
    /// The newest of all other pages.
    pub(super) newest: Lsn,
    /// The WAL that was copied beside them; its whole segments are among what lies on disk.
    pub(super) followed: Followed,
}

impl Copied {
    /// Adds the WAL.
    pub(super) fn follow(&mut self, mut followed: Followed) {
        self.stored.append(std::mem::take(&mut followed.stored));
        self.followed = followed;
    }
}

/// What the workers share.
pub(super) struct Job<'a> {
    pub(super) plan: &'a Plan,
    pub(super) folder: &'a BackupFolder,
    pub(super) request: &'a Request<'a>,
    /// Where pages carry checksums.
    pub(super) page_check: Option<PageCheck>,
    pub(super) rate: RateLimit,
    pub(super) progress: &'a dyn Progress,
    /// Where what is stored is written down, if that is of use to another backup.
    pub(super) journal: Option<&'a Journal<'a>>,
    /// Blocks of a full segment file.
    pub(super) segment_blocks: u32,
}

impl Job<'_> {
    /// Copies everything with one thread a reader, while this thread runs `watch` every second. What was copied counts
    /// where it ended early too.
    pub(super) fn run(
        &self,
        readers: &mut [FileReader],
        interrupt: &Interrupt,
        watch: impl FnMut() -> Result<()>,
    ) -> Result<(Copied, Result<()>)> {
        let assemblies = Assemblies::new(self);
        let mut workers = readers
            .iter_mut()
            .enumerate()
            .map(|(number, reader)| Worker::new(self, &assemblies, reader, number))
            .collect::<Result<Vec<Worker<'_>>>>()?;
        let outcome = parallel::run_dealt(
            &mut workers,
            |number| self.plan.tasks.get(number),
            interrupt,
            |worker, task, stop| {
                worker.copy(task, stop)?;
                worker.note()
            },
            watch,
        );
        let mut copied = Copied::default();
        for worker in workers {
            copied.stored.append(worker.store.stored);
            copied.suspects.extend(worker.suspects);
            copied.newest = copied.newest.max(worker.pages.newest);
        }
        Ok((copied, outcome))
    }

    /// Creates the folders that will hold something; all of PGDATA's where it is stored as a plain tree.
    pub(super) fn create_folders(&self) -> Result<()> {
        let is_plain = self.request.coding.suffix().is_plain();
        let create = |folder: &str| durable::create_folder(&self.folder.stored(folder));
        let create_stored = |path: &str| create(&layout::stored_file(path, Suffix::PLAIN));
        create_stored("pg_wal")?;
        create_stored("global")?;
        if is_plain {
            let mut directories = self.plan.directories.iter();
            directories.try_for_each(|directory| create_stored(directory))?;
        } else {
            create(BUNDLES)?;
        }
        let mut last = None;
        for file in self.plan.files.iter() {
            let bundled = !is_plain && !file.is_large() && !file.is_extra();
            let parent = file.path.rsplit_once('/').map(|(parent, _)| parent);
            if !bundled && parent != last {
                create_stored(parent.unwrap_or_default())?;
                last = parent;
            }
        }
        Ok(())
    }
}

/// The files that are read in slices and not whole yet, by their places in the plan: as many as there are workers, or little more.
struct Assemblies<'a> {
    job: &'a Job<'a>,
    open: Mutex<HashMap<usize, Arc<Sliced<'a>>>>,
}

/// A file that is read in slices.
struct Sliced<'a> {
    assembly: Assembly<'a>,
    /// What an incremental file begins with.
    header: Vec<u8>,
}

impl<'a> Assemblies<'a> {
    fn new(job: &'a Job<'a>) -> Assemblies<'a> {
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

struct Worker<'a> {
    job: &'a Job<'a>,
    assemblies: &'a Assemblies<'a>,
    reader: &'a mut FileReader,
    store: Store<'a>,
    plain: Vec<u8>,
    part: Part,
    pages: Pages<'a>,
    suspects: Vec<Suspect>,
    notes: Option<Notes<'a>>,
}

impl<'a> Worker<'a> {
    fn new(
        job: &'a Job<'a>,
        assemblies: &'a Assemblies<'a>,
        reader: &'a mut FileReader,
        number: usize,
    ) -> Result<Worker<'a>> {
        let mut store = Store::new(job.folder, job.request.coding)?;
        let planned = &job.plan.files;
        let share = planned.len() / job.request.workers.max(1);
        store.stored.files = Files::sharing(planned.paths(), share);
        Ok(Worker {
            job,
            assemblies,
            reader,
            store,
            plain: Vec::with_capacity(SLICE_BYTES as usize),
            part: Part::default(),
            pages: Pages::new(job.page_check.as_ref()),
            suspects: Vec::new(),
            notes: job
                .journal
                .map(|journal| journal.of_worker(number))
                .transpose()?,
        })
    }

    /// Writes down what it stored, now and then.
    fn note(&mut self) -> Result<()> {
        let Some(notes) = self.notes.as_mut().filter(|notes| notes.are_due()) else {
            return Ok(());
        };
        let job = self.job;
        notes.write(
            &self.store.stored,
            self.pages.newest,
            &self.suspects,
            |suspects| doubtful(suspects, job.plan, job.segment_blocks),
        )
    }

    fn copy(&mut self, task: Task<'_>, stop: &Stop<'_>) -> Result<()> {
        match task {
            Task::Slice { file, number } => self.copy_slice(file, number, stop),
            Task::Changed { files } => self.copy_changed(files, stop),
            Task::Settled { file } => self.copy_settled(file, stop),
            Task::Small {
                files,
                bundle: Some(number),
            } => self.copy_bundle(files, number, stop),
            Task::Small {
                files,
                bundle: None,
            } => self.copy_small(files, stop),
        }
    }

    fn copy_slice(&mut self, file: usize, number: u64, stop: &Stop<'_>) -> Result<()> {
        let job = self.job;
        let planned = job.plan.files.get(file);
        let sliced = self.assemblies.get(file);
        let offset = number * SLICE_BYTES;
        let expected = SLICE_BYTES.min(planned.stored_size() - offset);
        match planned.wanted {
            Wanted::Whole => self.read_slice(file, offset, expected, stop)?,
            Wanted::Blocks(blocks) => {
                self.read_changed_slice(file, &sliced.header, blocks, number, stop)?;
            }
        }
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
        let planned = job.plan.files.get(file);
        let wanted: Vec<Range<'_>> = ranges(planned.path, offset, length).collect();
        let plain = &mut self.plain;
        plain.clear();
        let mut ended = false;
        self.reader.read(&wanted, |index, bytes| {
            stop.check()?;
            let bytes = bytes.unwrap_or_default();
            if !ended {
                plain.extend_from_slice(bytes);
            }
            ended |= (bytes.len() as u64) < wanted[index].length;
            job.progress.advance(wanted[index].length);
            job.rate.take(bytes.len() as u64, || stop.is_set());
            Ok(())
        })?;
        let Some(relation) = planned.relation() else {
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

    fn copy_bundle(&mut self, files: &[u32], number: u32, stop: &Stop<'_>) -> Result<()> {
        let mut bundle = BundleBuilder::new(std::mem::take(&mut self.plain));
        let mut members = Files::sharing(self.job.plan.files.paths(), files.len());
        self.read_small(files, stop, |_, planned, content| {
            let crc32c = Crc32c(crc32c::crc32c(content));
            let entry = planned.entry(content.len() as u64, crc32c, Some(number));
            bundle.add(&entry.stored_path(), planned.modified, content)?;
            members.push(entry);
            Ok(())
        })?;
        self.plain = bundle.finish()?;
        let path = layout::bundle(number, self.job.request.coding.suffix());
        self.store.content(&path, &self.plain)?;
        for member in members.iter() {
            self.store.stored.files.push(member);
        }
        Ok(())
    }

    fn copy_small(&mut self, files: &[u32], stop: &Stop<'_>) -> Result<()> {
        self.read_small(files, stop, |store, planned, content| {
            let crc32c = Crc32c(crc32c::crc32c(content));
            store.keep(planned.entry(content.len() as u64, crc32c, None), content)
        })
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
        self.reader.read(&wanted, |index, bytes| {
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

    /// A page with a wrong checksum may have been half written when it was read. It is read again, and what is stored is
    /// the page of the last look; only one that stays as it is, or whose LSN replay must answer for, is remembered. `place` says where in `content` a
    /// block is.
    fn look_again(
        &mut self,
        suspects: Vec<Suspect>,
        content: &mut [u8],
        place: impl Fn(u32) -> usize,
    ) -> Result<()> {
        let job = self.job;
        let Some(check) = &job.page_check else {
            return Ok(());
        };
        let (mut doubtful, remembered): (Vec<Suspect>, Vec<Suspect>) = suspects
            .into_iter()
            .partition(|suspect| check.is_worth_another_look(suspect));
        self.suspects.extend(remembered);
        for look in 0..LOOKS {
            if doubtful.is_empty() {
                break;
            }
            if look > 0 {
                std::thread::sleep(PAUSE);
            }
            let before = std::mem::take(&mut doubtful);
            let wanted: Vec<Range<'_>> = before
                .iter()
                .map(|suspect| Range {
                    path: job.plan.files.get(suspect.file).path,
                    offset: u64::from(suspect.block) * PAGE_SIZE as u64,
                    length: PAGE_SIZE as u64,
                })
                .collect();
            let remembered = &mut self.suspects;
            let pages = &mut self.pages;
            self.reader.read(&wanted, |index, bytes| {
                let Suspect { file, block, .. } = before[index];
                let begin = place(block);
                let stored = &mut content[begin..begin + PAGE_SIZE];
                match bytes {
                    Some(page) if page.len() == PAGE_SIZE => stored.copy_from_slice(page),
                    // Truncated or dropped meanwhile, as replay will do too.
                    _ => stored.fill(0),
                }
                let Some(relation) = job.plan.files.get(file).relation() else {
                    return Ok(());
                };
                let found = pages.look_at(file, relation, block, stored);
                match found.into_iter().next() {
                    Some(suspect) if check.is_worth_another_look(&suspect) => {
                        doubtful.push(suspect)
                    }
                    is_new => remembered.extend(is_new),
                }
                Ok(())
            })?;
        }
        self.suspects.extend(doubtful);
        Ok(())
    }
}

/// A relation that was dropped meanwhile is fine, replay drops it too; what every cluster has is not.
fn vanished(planned: PlannedFile<'_>) -> Result<()> {
    const NEEDED: [&str; 2] = ["PG_VERSION", "global/pg_filenode.map"];
    if NEEDED.contains(&planned.path) || planned.is_extra() {
        return Err(Error::server(format!(
            "the server's file {} vanished during the backup",
            planned.path
        ))
        .momentary());
    }
    Ok(())
}
