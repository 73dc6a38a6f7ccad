//! What the server sends of its own accord: files in the order in which it comes across them.
//!
//! A thread takes the stream apart as it comes, and the workers check, compress and store what is in it. They read nothing
//! of these files themselves, but pages that are looked at again.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::backup::copy::small::store_alone;
use crate::backup::copy::sums::{Summed, Sums, arrived_damaged};
use crate::backup::copy::{Job, Worker};
use crate::backup::plan::{Plan, PlannedFile};
use crate::backup::tasks::{BUNDLE_OVERHEAD, Task, Tasks};
use crate::error::Result;
use crate::parallel::Stop;
use crate::pg::page::PAGE_SIZE;
use crate::repository::store::{SLICE_BYTES, Store};
use crate::server::replication::{BaseBackup, Ending};

/// A stream, and who knows what is in it.
pub(in crate::backup) struct Arriving<'a> {
    pub(in crate::backup) backup: BaseBackup,
    pub(in crate::backup) sorting: &'a mut dyn Sorting,
}

/// Tells what becomes of the entries of a stream.
pub(in crate::backup) trait Sorting: Send {
    /// What becomes of the next one, whose content may be read here.
    fn sort(&mut self, entry: Sent<'_>, content: &mut dyn Read) -> Result<Sorted>;

    /// All of it has come but its end.
    fn end(&mut self, stream: BaseBackup) -> Result<()>;
}

/// An entry of a stream.
#[derive(Debug, Clone, Copy)]
pub(in crate::backup) struct Sent<'a> {
    /// Relative to PGDATA; nothing where it is not UTF-8.
    pub(in crate::backup) path: Option<&'a str>,
    /// Its last part, whatever that is.
    pub(in crate::backup) name: &'a [u8],
    pub(in crate::backup) is_file: bool,
    pub(in crate::backup) is_directory: bool,
    pub(in crate::backup) size: u64,
    /// Seconds since 1970.
    pub(in crate::backup) modified: i64,
}

/// What becomes of an entry.
#[derive(Debug, Clone, Copy)]
pub(in crate::backup) enum Sorted {
    /// A worker stores the file at this place in the plan.
    Stored(usize),
    /// The one at this place was read by whoever sorts.
    Taken(usize),
    /// It is passed over.
    PassedOver,
}

/// What is listed in a plan, and can come in a stream, is stored.
impl Sorting for &Plan {
    fn sort(&mut self, entry: Sent<'_>, _content: &mut dyn Read) -> Result<Sorted> {
        let listed = entry.path.filter(|_| entry.is_file);
        let place = listed.and_then(|path| self.streamed(path));
        Ok(place.map_or(Sorted::PassedOver, Sorted::Stored))
    }

    fn end(&mut self, stream: BaseBackup) -> Result<()> {
        // Files that the server leaves out are read otherwise, and so is the WAL up to its end.
        stream.finish().map(|_| ())
    }
}

/// What a worker does next.
pub(super) enum Work<'a> {
    /// Read something, and store it.
    Read(Task<'a>),
    /// Store what has arrived.
    Arrived(Arrived),
}

/// A part of the stream.
pub(super) enum Arrived {
    /// One slice of a large file; an incomplete one is the file's end, and an empty one behind that.
    Slice {
        /// The file's place in the plan.
        file: usize,
        /// Which of its slices, from 0.
        number: u64,
        content: Vec<u8>,
    },
    /// Many small files.
    Small {
        /// The bundle's number, where they are bundled.
        bundle: Option<u32>,
        /// The places of the files in the plan, and of their content.
        files: Vec<(usize, Range<usize>)>,
        content: Vec<u8>,
    },
}

/// Deals out what has arrived, and what is to be read.
pub(super) struct Dealer<'a> {
    tasks: &'a Tasks,
    next: AtomicUsize,
    /// What was to arrive, and did not: known behind the end of the stream.
    missed: &'a OnceLock<Tasks>,
    next_missed: AtomicUsize,
    arriving: Option<Mutex<Receiver<Result<Arrived>>>>,
    /// Memory that goes back to whoever takes the stream apart.
    done_with: Sender<Vec<u8>>,
    ending: Option<Ending>,
}

/// Does something that is dealt out to workers, beside a stream that is taken apart for them.
pub(super) fn beside<T>(
    job: &Job<'_>,
    stream: Option<Arriving<'_>>,
    work: impl FnOnce(&Dealer<'_>) -> T,
) -> T {
    let missed = &OnceLock::new();
    let (arrived, arriving) = mpsc::sync_channel(job.request.workers);
    let (done_with, again) = mpsc::channel();
    let dealer = Dealer {
        tasks: &job.plan.tasks,
        next: AtomicUsize::new(0),
        missed,
        next_missed: AtomicUsize::new(0),
        arriving: stream.is_some().then(|| Mutex::new(arriving)),
        done_with,
        ending: stream.as_ref().map(|stream| stream.backup.ending()),
    };
    std::thread::scope(|scope| {
        if let Some(stream) = stream {
            let ending = stream.backup.ending();
            scope.spawn(|| Unpacking::new(job, arrived, again, ending).run(stream, missed));
        }
        let outcome = work(&dealer);
        // Who still has something to hand on learns that nobody takes it any more.
        drop(dealer);
        outcome
    })
}

impl<'a> Dealer<'a> {
    /// Takes memory back.
    pub(super) fn take_back(&self, memory: Vec<u8>) {
        // The stream may be at its end.
        let _ = self.done_with.send(memory);
    }

    /// Wants nothing more of the stream, so that nobody waits for it.
    pub(super) fn give_up(&self) {
        if let Some(ending) = &self.ending {
            ending.end();
        }
    }

    /// The next piece of work, and nothing behind the last one: what has arrived, or what is to be read meanwhile.
    pub(super) fn deal(&self) -> Option<Result<Work<'a>>> {
        if let Some(arrived) = self
            .arriving()
            .and_then(|arriving| arriving.try_recv().ok())
        {
            return Some(arrived.map(Work::Arrived));
        }
        if let Some(task) = self.tasks.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            return Some(Ok(Work::Read(task)));
        }
        if let Some(arrived) = self.arriving().and_then(|arriving| arriving.recv().ok()) {
            return Some(arrived.map(Work::Arrived));
        }
        let number = self.next_missed.fetch_add(1, Ordering::Relaxed);
        let task = self.missed.get()?.get(number)?;
        Some(Ok(Work::Read(task)))
    }

    fn arriving(&self) -> Option<MutexGuard<'_, Receiver<Result<Arrived>>>> {
        let arriving = self.arriving.as_ref()?;
        Some(arriving.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Worker<'_> {
    /// Stores what has arrived. Gives its memory back.
    pub(super) fn store_arrived(&mut self, arrived: Arrived, stop: &Stop<'_>) -> Result<Vec<u8>> {
        match arrived {
            Arrived::Slice {
                file,
                number,
                content,
            } => {
                let own = std::mem::replace(&mut self.plain, content);
                self.check_slice(file, number * SLICE_BYTES)?;
                self.store_slice(file, number, stop)?;
                Ok(std::mem::replace(&mut self.plain, own))
            }
            Arrived::Small {
                bundle: Some(number),
                files,
                mut content,
            } => {
                let mut bundle = self.bundle(number, files.len());
                self.check_small(files, &mut content, |_, planned, content| {
                    bundle.add(planned, content)
                })?;
                self.store_bundle(bundle)?;
                Ok(content)
            }
            Arrived::Small {
                bundle: None,
                files,
                mut content,
            } => {
                self.check_small(files, &mut content, store_alone)?;
                Ok(content)
            }
        }
    }

    /// Looks at the pages of small files, and hands the files on.
    fn check_small(
        &mut self,
        files: Vec<(usize, Range<usize>)>,
        content: &mut [u8],
        mut keep: impl FnMut(&mut Store<'_>, PlannedFile<'_>, &[u8]) -> Result<()>,
    ) -> Result<()> {
        for (file, place) in files {
            let planned = self.job.plan.files.get(file);
            let mut content = &mut content[place];
            if let Some(relation) = planned.relation() {
                let whole = content.len() - content.len() % PAGE_SIZE;
                content = &mut content[..whole];
                let suspects = self.pages.look_at(file, relation, 0, content);
                self.look_again(suspects, content, |block| block as usize * PAGE_SIZE)?;
            }
            keep(&mut self.store, planned, content)?;
        }
        Ok(())
    }
}

/// Takes the stream apart: what is to be stored of it goes to the workers.
pub(super) struct Unpacking<'a> {
    job: &'a Job<'a>,
    /// To the workers.
    arrived: SyncSender<Result<Arrived>>,
    /// Memory that they have done with.
    done_with: Receiver<Vec<u8>>,
    gathered: Gathered,
    /// The number of the next bundle.
    bundle: u32,
    /// What has arrived.
    sums: Sums,
    ending: Ending,
}

/// Whether the workers want more of it.
type Wanted = std::ops::ControlFlow<()>;

/// Small files that do not fill a bundle yet.
#[derive(Default)]
struct Gathered {
    files: Vec<(usize, Range<usize>)>,
    content: Vec<u8>,
}

impl<'a> Unpacking<'a> {
    pub(super) fn new(
        job: &'a Job<'a>,
        arrived: SyncSender<Result<Arrived>>,
        done_with: Receiver<Vec<u8>>,
        ending: Ending,
    ) -> Unpacking<'a> {
        Unpacking {
            job,
            arrived,
            done_with,
            gathered: Gathered::default(),
            bundle: job.plan.tasks.bundles(),
            sums: Sums::new(job.plan.files.len()),
            ending,
        }
    }

    /// Reads the stream to its end.
    pub(super) fn run(mut self, stream: Arriving<'_>, missed: &OnceLock<Tasks>) {
        match self.take_apart(stream) {
            // What is in no archive may have been dropped, or is what PostgreSQL leaves out of its own base backups.
            Ok(()) => {
                let plan = self.job.plan;
                let is_missed =
                    |file| plan.files.get(file).can_be_streamed() && !self.sums.have(file);
                let suffix = self.job.request.coding.suffix();
                missed.get_or_init(|| Tasks::new(&plan.files, suffix, is_missed, self.bundle));
            }
            // Who wants nothing more of it knows why.
            Err(_) if self.ending.is_ended() => {}
            Err(error) => {
                let _ = self.arrived.send(Err(error));
            }
        }
    }

    fn take_apart(&mut self, stream: Arriving<'_>) -> Result<()> {
        let Arriving {
            backup: mut stream,
            sorting,
        } = stream;
        while let Some(archive) = stream.next_archive()? {
            let below = match archive.tablespace() {
                None => String::new(),
                Some(oid) => format!("pg_tblspc/{oid}/"),
            };
            let mut tar = tar::Archive::new(archive.decompressed()?);
            for entry in tar.entries().map_err(arrived_damaged)? {
                let entry = entry.map_err(arrived_damaged)?;
                if self.entry(&below, entry, sorting)?.is_break() {
                    return Ok(());
                }
            }
            // The end of what is compressed tells whether all of it was right.
            io::copy(&mut tar.into_inner(), &mut io::sink()).map_err(arrived_damaged)?;
        }
        if self.send_gathered().is_break() {
            return Ok(());
        }
        if let Some(manifest) = stream.manifest()? {
            self.sums.compare(manifest, &self.job.plan.files)?;
        }
        sorting.end(stream)
    }

    fn entry(
        &mut self,
        below: &str,
        entry: tar::Entry<'_, impl Read>,
        sorting: &mut dyn Sorting,
    ) -> Result<Wanted> {
        // Of its own accord the server says "./pg_wal/archive_status/" (backup/basebackup.c, sendDir).
        let bytes = entry.path_bytes().into_owned();
        let path = str::from_utf8(&bytes).ok().map(|path| {
            let inside = path.strip_prefix("./").unwrap_or(path);
            format!("{below}{}", inside.trim_end_matches('/'))
        });
        let header = entry.header();
        let sent = Sent {
            path: path.as_deref(),
            name: bytes
                .rsplit(|byte| *byte == b'/')
                .next()
                .unwrap_or_default(),
            is_file: header.entry_type().is_file(),
            is_directory: header.entry_type().is_dir(),
            size: entry.size(),
            modified: header.mtime().map_err(arrived_damaged)?.cast_signed(),
        };
        let mut content = Summed::new(entry);
        let file = match sorting.sort(sent, &mut content)? {
            Sorted::Stored(file) if self.sums.have(file) => return Ok(Wanted::Continue(())),
            Sorted::Stored(file) => {
                if self.file(file, &mut content)?.is_break() {
                    return Ok(Wanted::Break(()));
                }
                file
            }
            Sorted::Taken(file) => file,
            Sorted::PassedOver => return Ok(Wanted::Continue(())),
        };
        let sum = content.end().map_err(arrived_damaged)?;
        self.sums.add(file, self.job.plan.files.get(file).path, sum);
        Ok(Wanted::Continue(()))
    }

    /// Hands on a file of the plan.
    fn file(&mut self, file: usize, content: &mut impl Read) -> Result<Wanted> {
        let planned = self.job.plan.files.get(file);
        if !planned.is_large() {
            return self.small_file(file, planned, content);
        }
        for number in 0..planned.slices() {
            let expected = SLICE_BYTES.min(planned.size - number * SLICE_BYTES);
            let mut slice = self.memory();
            content
                .take(expected)
                .read_to_end(&mut slice)
                .map_err(arrived_damaged)?;
            self.count(expected, slice.len());
            let slice = Arrived::Slice {
                file,
                number,
                content: slice,
            };
            if self.send(slice).is_break() {
                return Ok(Wanted::Break(()));
            }
        }
        Ok(Wanted::Continue(()))
    }

    fn small_file(
        &mut self,
        file: usize,
        planned: PlannedFile<'_>,
        content: &mut impl Read,
    ) -> Result<Wanted> {
        let Gathered {
            files,
            content: gathered,
        } = &mut self.gathered;
        let begin = gathered.len();
        content
            .take(planned.size)
            .read_to_end(gathered)
            .map_err(arrived_damaged)?;
        let end = gathered.len();
        files.push((file, begin..end));
        let bytes = end as u64 + files.len() as u64 * BUNDLE_OVERHEAD;
        self.count(planned.size, end - begin);
        Ok(match bytes < SLICE_BYTES {
            true => Wanted::Continue(()),
            false => self.send_gathered(),
        })
    }

    fn send_gathered(&mut self) -> Wanted {
        let content = self.memory();
        let gathered = std::mem::replace(
            &mut self.gathered,
            Gathered {
                files: Vec::new(),
                content,
            },
        );
        if gathered.files.is_empty() {
            return Wanted::Continue(());
        }
        let number = self.bundle;
        self.bundle += 1;
        let is_plain = self.job.request.coding.suffix().is_plain();
        self.send(Arrived::Small {
            bundle: (!is_plain).then_some(number),
            files: gathered.files,
            content: gathered.content,
        })
    }

    fn send(&self, arrived: Arrived) -> Wanted {
        match self.arrived.send(Ok(arrived)) {
            Ok(()) => Wanted::Continue(()),
            Err(_) => Wanted::Break(()),
        }
    }

    /// Counts bytes that were asked for, and those that came: as they are in the cluster, which the server reads no faster.
    fn count(&self, asked: u64, came: usize) {
        self.job.progress.advance(asked);
        let is_over = || self.ending.is_ended();
        self.job.rate.take(came as u64, is_over);
    }

    fn memory(&self) -> Vec<u8> {
        let mut memory = match self.done_with.try_recv() {
            Ok(memory) => memory,
            Err(_) => Vec::with_capacity(SLICE_BYTES as usize),
        };
        memory.clear();
        memory
    }
}
