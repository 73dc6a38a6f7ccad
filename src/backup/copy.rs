//! The workers: read, check, compress, store.

mod changed;
mod session;
mod settled;
mod sliced;
mod small;
mod streamed;
mod sums;

pub(super) use session::Session;
pub(super) use streamed::{Arriving, Sent, Sorted, Sorting};
pub(super) use sums::arrived_damaged;

use std::time::Duration;

use crate::backup::Request;
use crate::backup::assembly::Part;
use crate::backup::copy::sliced::Assemblies;
use crate::backup::copy::streamed::{Dealer, Work};
use crate::backup::corruption::{PageCheck, Pages, Suspect, doubtful};
use crate::backup::journal::{Journal, Notes};
use crate::backup::plan::{Plan, PlannedFile};
use crate::backup::tasks::Task;
use crate::backup::wal::following::Followed;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::parallel::{self, Stop};
use crate::pg::lsn::Lsn;
use crate::pg::page::PAGE_SIZE;
use crate::progress::Progress;
use crate::rate::RateLimit;
use crate::repository::file_list::Files;
use crate::repository::layout::{self, BUNDLES, BackupFolder};
use crate::repository::store::{SLICE_BYTES, Store, Stored};
use crate::server::reading::Range;
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
    /// Copies everything with one thread a session, while this thread runs `watch` now and then. What was copied counts
    /// where it ended early too.
    pub(super) fn run<'w>(
        &'w self,
        sessions: impl Iterator<Item = Session<'w>>,
        stream: Option<Arriving<'_>>,
        interrupt: &Interrupt,
        mut watch: impl FnMut() -> Result<()>,
    ) -> Result<(Copied, Result<()>)> {
        let assemblies = Assemblies::new(self);
        let mut workers = sessions
            .enumerate()
            .map(|(number, session)| Worker::new(self, &assemblies, session, number))
            .collect::<Result<Vec<Worker<'_>>>>()?;
        let outcome = streamed::beside(self, stream, |dealer| {
            parallel::run_dealt(
                &mut workers,
                |_| dealer.deal(),
                interrupt,
                |worker, work, stop| {
                    let done = work.and_then(|work| worker.work(work, dealer, stop));
                    done.inspect_err(|_| dealer.give_up())
                },
                || watch().inspect_err(|_| dealer.give_up()),
            )
        });
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
        self.create_folder("pg_wal")?;
        self.create_folder("global")?;
        if self.is_plain() {
            let mut directories = self.plan.directories.iter();
            directories.try_for_each(|directory| self.create_folder(directory))?;
        } else {
            self.folder.stored(BUNDLES).create_folder()?;
        }
        let mut last = None;
        for file in self.plan.files.iter() {
            let parent = file.path.rsplit_once('/').map(|(parent, _)| parent);
            if !self.is_bundled(file) && parent != last {
                self.create_folder(parent.unwrap_or_default())?;
                last = parent;
            }
        }
        Ok(())
    }

    /// Creates the folder that a directory of PGDATA is stored in.
    pub(super) fn create_folder(&self, directory: &str) -> Result<()> {
        let stored = layout::stored_file(directory, Suffix::PLAIN);
        self.folder.stored(&stored).create_folder()
    }

    /// Whether the backup is stored as a plain tree.
    pub(super) fn is_plain(&self) -> bool {
        self.request.coding.suffix().is_plain()
    }

    /// Whether a file is stored in a bundle.
    pub(super) fn is_bundled(&self, file: PlannedFile<'_>) -> bool {
        !self.is_plain() && !file.is_large() && !file.is_extra()
    }
}

struct Worker<'a> {
    job: &'a Job<'a>,
    assemblies: &'a Assemblies<'a>,
    session: Session<'a>,
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
        session: Session<'a>,
        number: usize,
    ) -> Result<Worker<'a>> {
        let mut store = Store::new(job.folder, job.request.coding)?;
        let planned = &job.plan.files;
        let share = planned.len() / job.request.workers.max(1);
        store.stored.files = Files::sharing(planned.paths(), share);
        Ok(Worker {
            job,
            assemblies,
            session,
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

    fn work(&mut self, work: Work<'_>, dealer: &Dealer<'_>, stop: &Stop<'_>) -> Result<()> {
        match work {
            Work::Read(task) => self.copy(task, stop)?,
            Work::Arrived(arrived) => dealer.take_back(self.store_arrived(arrived, stop)?),
        }
        self.note()
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

    /// A page with a wrong checksum may have been half written when it was read. It is read again, and what is stored is
    /// the page of the last look; only one that stays as it is, or whose LSN replay must answer for, is remembered. `place` says where in `content` a
    /// block is. Where nothing can be read again, all are remembered.
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
        if !self.session.reads() {
            self.suspects.extend(suspects);
            return Ok(());
        }
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
            self.session.reader()?.read(&wanted, |index, bytes| {
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
