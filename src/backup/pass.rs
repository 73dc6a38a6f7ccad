//! One pass of a backup: what lies between a start and a stop on the server.
//!
//! The first pass reads all that is asked for. Where the server did something meanwhile that its WAL does not allow to
//! repeat, or the sessions were lost, the next one starts behind that and reads only what changed since the first did.

use std::time::{Duration, Instant};

use postgres::Client;

use crate::backup::catalogued::Catalogued;
use crate::backup::changes::{Changes, Search};
use crate::backup::connected::Sessions;
use crate::backup::copy::{self, Arriving, Copied, Session};
use crate::backup::corruption::{PageCheck, corrupt_pages, doubtful};
use crate::backup::finish::{Description, Extent, Finish};
use crate::backup::hazards::Hazard;
use crate::backup::journal::{self, Journal};
use crate::backup::parent::Parent;
use crate::backup::plan::Plan;
use crate::backup::reserved::{ReservedWal, Watch};
use crate::backup::wal::following::{Following, Meanwhile};
use crate::backup::wal::{self, NeededWal};
use crate::backup::{
    ParentRequest, Request, emptied_directories, end, inside_by_another_name, orphans, unlogged,
};
use crate::config::Source;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::changed_blocks::ChangedBlocks;
use crate::pg::exclusion::Exclusion;
use crate::pg::lsn::{Lsn, Timeline};
use crate::progress::Progress;
use crate::rate::RateLimit;
use crate::repository::backup_info::{BackupInfo, Increment};
use crate::repository::identifier::Identifier;
use crate::repository::layout::BackupFolder;
use crate::repository::store::{Sealed, Stored};
use crate::server::facts::Facts;
use crate::server::listing::{self, Listing};
use crate::server::quiet::Quiet;
use crate::server::reading::FileReader;
use crate::server::replication::BaseBackup;
use crate::server::session::{BackupSession, Checkpoint, Stopped};
use crate::storage::Place;

/// What it takes to make a pass.
pub(super) struct Pass<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) facts: &'a Facts,
    /// Which way files are read.
    pub(super) source: Source,
    pub(super) identifier: Identifier,
    /// When the backup began.
    pub(super) began: Instant,
    /// Where its files go.
    pub(super) folder: &'a BackupFolder,
    pub(super) checkpoint: Checkpoint,
    /// Where the last one met what must not be replayed: this one starts behind it.
    pub(super) hazard: Option<Lsn>,
    pub(super) progress: &'a dyn Progress,
    pub(super) interrupt: &'a Interrupt,
}

/// What a pass builds on.
pub(super) enum Base<'a> {
    /// Nothing: it reads all.
    Nothing,
    /// A backup, as the user wants it.
    Backup(Parent, &'a ParentRequest<'a>),
    /// What earlier passes left.
    Layer(Parent),
}

/// A pass that is no backup.
pub(super) struct Broken {
    pub(super) error: Error,
    /// What another one can build on.
    pub(super) left: Option<Box<Left>>,
    /// What it met that must not be replayed.
    pub(super) hazard: Option<Hazard>,
    /// What earlier passes left is of no use any more.
    pub(super) is_base_lost: bool,
}

/// What a pass copied that is no backup.
pub(super) struct Left {
    pub(super) stored: Stored,
    /// `false` where it was broken off before it had read everything.
    pub(super) is_complete: bool,
    /// What changed while it was read. The next pass looks for what changed since.
    pub(super) meanwhile: Meanwhile,
    /// The timeline of that.
    pub(super) timeline: Timeline,
    /// The newest page that was read.
    pub(super) newest: Lsn,
    /// Pages that were read torn or damaged, and are read again.
    pub(super) doubtful: ChangedBlocks,
    pub(super) increment: Option<Increment>,
    /// What had changed when it began.
    pub(super) changed: Option<ChangedBlocks>,
}

impl Left {
    /// Whether another pass has anything of it. What an incremental one found to have changed is worth keeping too.
    pub(super) fn is_of_use(&self) -> bool {
        !self.stored.files.is_empty() || self.changed.is_some()
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Broken {
        Broken {
            error,
            left: None,
            hazard: None,
            is_base_lost: false,
        }
    }
}

/// How the server ended a pass.
struct Ended<'a> {
    stopped: Stopped,
    wal: NeededWal<'a>,
    control: Vec<u8>,
}

const RELEASED: &str = "databases and tablespaces can be created, moved and dropped again, though this pass is not at its end: it was long enough";

/// How often a standby is asked for a restartpoint that lies behind a hazard.
const RESTARTPOINT_PAUSE: Duration = Duration::from_secs(2);

/// How long: a primary makes a checkpoint every five minutes unless it is told otherwise (checkpoint_timeout).
const RESTARTPOINT_WITHIN: Duration = Duration::from_secs(30 * 60);

impl Pass<'_> {
    /// Makes it, up to the last file of a backup.
    pub(super) fn run(
        &self,
        sessions: Sessions,
        reserved: &mut Option<ReservedWal>,
        mut quiet: Option<Quiet>,
        base: Base<'_>,
    ) -> Result<BackupInfo, Broken> {
        let Pass {
            request,
            facts,
            folder,
            progress,
            interrupt,
            ..
        } = *self;
        let Sessions {
            mut client,
            mut readers,
            follower,
            keeper,
            stream,
        } = sessions;
        let suffix = request.coding.suffix();
        let major = facts.version.major;
        progress.step("checkpoint", None);
        let held = match reserved.take() {
            Some(held) if held.is_held(&mut client)? => held,
            _ => ReservedWal::reserve(keeper)?,
        };
        let reserved_wal = reserved.insert(held);
        let mut session = self.start(client)?;

        progress.step("list files", None);
        let catalogued = Catalogued::read(session.client())?;
        let tablespaces = catalogued.tablespaces();
        let emptied = emptied_directories(facts, tablespaces, |location| {
            inside_by_another_name(location, &mut readers[0])
        })?;
        let rules = Exclusion::new(major, emptied);
        let listing = list(&mut readers[0], facts, &rules, &catalogued, request.extra)?;
        let paths = listing.entries.iter();
        catalogued.expect_in(
            paths.map(|entry| listing.paths.get(entry.path)),
            &major.tablespace_directory(),
            session.client(),
            |path| Ok(readers[0].state(path)?.is_some()),
            interrupt,
        )?;
        let changes = self.changes(base, &mut session, &mut readers)?;
        let plan = Plan::new(
            listing,
            &rules,
            major,
            suffix,
            self.source,
            changes.as_ref(),
        );
        // Of a later pass, most came before.
        let source = match self.source {
            Source::Stream if changes.is_none() && !plan.is_streamed => Source::Sql,
            source => source,
        };
        let (increment, changed) = changes
            .map(|changes| (changes.increment, changes.blocks))
            .unzip();

        let start = session.start_lsn();
        let timeline = readers[0].read_control_file()?.1.checkpoint_timeline;
        // Of an incremental one nothing is taken over; in an object store, nothing can be.
        let journal = match (&request.parent, self.folder.place()) {
            (None, Place::Local(_)) => {
                Some(self.journal(increment.clone(), changed.as_ref(), start, timeline)?)
            }
            _ => None,
        };

        let stream = match stream.filter(|_| plan.is_streamed) {
            Some(stream) => Some(begun_behind(stream.begin(request.label)?, start)?),
            None => None,
        };
        progress.step("copy files", Some(plan.bytes));
        let segment_blocks = facts.control.relation_segment_blocks;
        let job = copy::Job {
            plan: &plan,
            folder,
            request,
            page_check: facts
                .data_checksums
                .then(|| PageCheck::new(start, segment_blocks)),
            // Whoever is held up is worth more than what else the server has to do.
            rate: RateLimit::new(request.max_rate.filter(|_| quiet.is_none())),
            progress,
            journal: journal.as_ref(),
            segment_blocks,
        };
        job.create_folders()?;
        let following = &Following::new(request, facts, folder, &job.rate, start, timeline);
        let mut watch = Watch {
            reserved: reserved_wal,
            request,
            following,
            size: facts.control.wal_segment_size,
            ticks: 0,
        };
        let (copying, (followed, meanwhile)) = following.beside(follower, || {
            let sessions = readers.iter_mut().map(Session::of);
            let listed = &mut &plan;
            let stream = stream.map(|backup| Arriving {
                backup,
                sorting: listed,
            });
            job.run(sessions, stream, interrupt, || {
                session.watch()?;
                watch.tick(&mut session)?;
                if quiet.take_if(|quiet| quiet.is_long()).is_some() {
                    log::info!("{RELEASED}");
                }
                Ok(())
            })
        });
        let (mut copied, outcome) = copying?;
        following.check()?;
        copied.follow(followed);
        let is_complete = outcome.is_ok();
        let ended = outcome
            .map_err(Broken::from)
            .and_then(|()| self.end(&catalogued, session, quiet, &mut copied, &job, &mut readers));
        // The backup may have ended where a segment does, or not at all.
        copied.followed.discard_begun()?;
        let Ended {
            stopped,
            wal,
            control,
        } = match ended {
            Ok(ended) => ended,
            Err(broken) => {
                return Err(Broken {
                    left: Some(Box::new(Left {
                        is_complete,
                        meanwhile,
                        timeline,
                        newest: copied.newest,
                        doubtful: doubtful(&copied.suspects, &plan, segment_blocks),
                        stored: copied.stored,
                        increment,
                        changed,
                    })),
                    ..broken
                });
            }
        };

        *reserved = None;
        progress.step("finish", None);
        interrupt.check()?;
        let corrupt = corrupt_pages(&copied.suspects, start, wal.end.lsn, |file| {
            plan.files.get(file).path.to_owned()
        });
        let finish = Finish {
            description: Description {
                request,
                facts,
                tablespaces,
                corrupt,
                increment,
                source: Some(source),
                identifier: self.identifier,
                began: self.began,
            },
            directories: plan.into_directories(),
            stopped: &stopped,
            ranges: &wal.ranges,
            end: wal.end,
        };
        let info = finish.write(copied.stored, &control, folder)?;
        // Until now, whoever takes this over needs it.
        if journal.is_some() {
            journal::remove(folder)?;
        }
        Ok(info)
    }

    /// Begins to write down what is stored, for whoever takes it over if this backup dies.
    fn journal(
        &self,
        increment: Option<Increment>,
        changed: Option<&ChangedBlocks>,
        start: Lsn,
        timeline: Timeline,
    ) -> Result<Journal<'_>> {
        let description = Description {
            request: self.request,
            facts: self.facts,
            tablespaces: &[],
            corrupt: Vec::new(),
            increment,
            source: None,
            identifier: self.identifier,
            began: self.began,
        };
        let extent = Extent::of_layer(start, timeline, start, self.facts.in_recovery);
        let info = description.info(extent, &Sealed::of_nothing());
        Journal::begin(self.folder, self.request.coding, &info, changed)
    }

    /// Starts it on the server; on a standby that may be only when the primary has made a checkpoint behind the last hazard.
    fn start(&self, client: Client) -> Result<BackupSession> {
        let Pass { request, facts, .. } = *self;
        let begin = |client, checkpoint| {
            BackupSession::start(
                client,
                facts.version.major,
                facts.in_recovery,
                request.label,
                checkpoint,
            )
        };
        let mut session = begin(client, self.checkpoint)?;
        let give_up = Instant::now() + RESTARTPOINT_WITHIN;
        let mut is_told = false;
        while self
            .hazard
            .is_some_and(|hazard| session.start_lsn() <= hazard)
        {
            if Instant::now() > give_up {
                return Err(Error::server("the standby makes no new restartpoint").hint(
                    "run CHECKPOINT on the primary, and see whether the standby replays its WAL",
                ));
            }
            if !std::mem::replace(&mut is_told, true) {
                self.progress.step("wait for a checkpoint", None);
                log::info!(
                    "waiting for the primary's next checkpoint (checkpoint_timeout), where the standby can start a backup again; CHECKPOINT on the primary hurries it"
                );
            }
            let client = session.abandon()?;
            self.interrupt.wait(RESTARTPOINT_PAUSE)?;
            session = begin(client, Checkpoint::Fast)?;
        }
        Ok(session)
    }

    /// What changed since what it builds on.
    fn changes(
        &self,
        base: Base<'_>,
        session: &mut BackupSession,
        readers: &mut [FileReader],
    ) -> Result<Option<Changes>, Broken> {
        let search = Search {
            facts: self.facts,
            folder: self.request.folder,
            keys: self.request.keys,
            progress: self.progress,
            interrupt: self.interrupt,
        };
        match base {
            Base::Nothing => Ok(None),
            Base::Backup(parent, wanted) => {
                self.progress.step("find changes", None);
                let reached = session.start_lsn();
                Ok(wanted.unless_full(search.run(parent, reached, session, readers))?)
            }
            Base::Layer(parent) => {
                self.progress.step("find changes", None);
                let reached = session.position()?;
                search
                    .run(parent, reached, session, readers)
                    .map(Some)
                    .map_err(|error| Broken {
                        is_base_lost: !error.is_momentary(),
                        ..Broken::from(error)
                    })
            }
        }
    }

    /// Ends it on the server, and copies the WAL.
    fn end(
        &self,
        catalogued: &Catalogued,
        mut session: BackupSession,
        quiet: Option<Quiet>,
        copied: &mut Copied,
        job: &copy::Job<'_>,
        readers: &mut [FileReader],
    ) -> Result<Ended<'_>, Broken> {
        let Pass {
            request,
            facts,
            folder,
            interrupt,
            ..
        } = *self;
        let suffix = request.coding.suffix();
        orphans::drop_orphaned_segments(&mut copied.stored, facts, suffix, folder)?;
        let later = catalogued.expect_in(
            copied.stored.files.iter().map(|file| file.path),
            &facts.version.major.tablespace_directory(),
            session.client(),
            |path| Ok(readers[0].state(path)?.is_some()),
            interrupt,
        )?;
        let read_until = session.position()?;
        let (mut control, _) = readers[0].read_control_file()?;
        let stopped = session.stop()?;
        drop(quiet);
        let end = end::find(facts, &stopped, session.client(), &mut readers[0])?;
        end.demand(&stopped.label, &mut control)?;
        self.progress.step("copy WAL", None);
        let wal = wal::needed(facts, &stopped.label, end, &mut readers[0])?;
        let hazards = wal::copy(&wal, copied, readers, folder, request, &job.rate, interrupt)?;
        let names = [catalogued, &later];
        let init_forks = hazards.check(read_until, &names).map_err(|hazard| Broken {
            error: hazard.error(),
            hazard: Some(hazard),
            left: None,
            is_base_lost: false,
        })?;
        unlogged::drop_other_forks(&init_forks, copied, job.plan, facts, request, folder)?;
        Ok(Ended {
            stopped,
            wal,
            control,
        })
    }
}

/// A stream of files that are as old as the start at most: what changed before that, no WAL of this backup repeats.
fn begun_behind(stream: BaseBackup, start: Lsn) -> Result<BaseBackup> {
    let (begun, _) = stream.start();
    if begun < start {
        return Err(Error::server(format!(
            "the base backup that the server streams begins at {begun}, before this backup does, at {start}"
        ))
        .hint("connect to the server itself, not through a load balancer; or set source = sql")
        .momentary());
    }
    Ok(stream)
}

fn list(
    reader: &mut FileReader,
    facts: &Facts,
    rules: &Exclusion,
    catalogued: &Catalogued,
    extra: &[String],
) -> Result<Listing> {
    let mut listing = Listing::default();
    let databases = catalogued.database_oids();
    listing::data_directory(reader, rules, &databases, &mut listing)?;
    for path in extra.iter().chain(&facts.configuration_files) {
        listing::extra(reader, path, &mut listing)?;
    }
    Ok(listing)
}
