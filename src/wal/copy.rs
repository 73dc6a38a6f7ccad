//! All WAL of a server that is not here yet, from its disk or over SQL.
//!
//! History files come first, then whole segments, the oldest first, then the one that is being written, as far as it is
//! flushed. A replication slot, where one is configured, keeps the WAL on the server until it
//! is here, and is moved on past what is.

mod line;
mod plan;

use std::time::{Duration, Instant};

use postgres::Client;

use crate::config::Source;
use crate::error::{Error, Kind, Result};
use crate::interrupt::Interrupt;
use crate::parallel;
use crate::pg::history::TimelineHistory;
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::segment::SegmentName;
use crate::pg::version::Major;
use crate::pg::wal::behind_page_header;
use crate::pg::wal_file::WalFileName;
use crate::progress::Progress;
use crate::rate::RateLimit;
use crate::repository::block_maps::BlockMaps;
use crate::repository::layout::ServerFolder;
use crate::repository::lock::CopyLock;
use crate::repository::wal_archive::{ClusterIdentity, Gap, Inventory, Stored, WalArchive};
use crate::server::connect::Connector;
use crate::server::reading::FileReader;
use crate::server::slot::{self, Limit, Slot};
use crate::server::source::{Amount, Chosen};
use crate::server::wal_end::wal_end;
use crate::server::{Instance, facts, permissions, pg_wal};
use crate::stored::coding::Coding;
use crate::stored::master_key::Keyring;
use crate::wal::gap::NamedGap;
use crate::wal::partial;

use line::{Destination, Fetched, Line, unsound};
use plan::{Offer, Unfinished, reach};

/// What to copy, whereto and how.
pub struct Request<'a> {
    /// The server's name in the configuration.
    pub server: &'a str,
    /// Its part of the repository.
    pub folder: &'a ServerFolder,
    /// How segments and block maps are stored.
    pub coding: &'a Coding,
    /// The keys that the archive's files may be encrypted with.
    pub keys: Keyring,
    /// Connections that read.
    pub workers: usize,
    /// Bytes a second read from the server at most, by all workers together.
    pub max_rate: Option<u64>,
    /// Which way files are read; `None` for the one that suits the server best.
    pub source: Option<Source>,
    /// The slot that keeps the server's WAL.
    pub slot: Option<&'a str>,
    /// Whether to create that slot.
    pub create_slot: bool,
    /// How long to go on copying what the server writes.
    pub follow: Option<Duration>,
}

/// What was copied.
#[derive(Debug, Default)]
pub struct Copied {
    /// The timeline that the server is on.
    pub timeline: Option<Timeline>,
    /// Up to where the server's WAL was whole.
    pub end: Lsn,
    /// Names of the segments that were not here before, in their order.
    pub segments: Vec<String>,
    /// How many history files were not here before.
    pub histories: u64,
    /// The unfinished segment that is here, and up to where.
    pub partial: Option<(String, Lsn)>,
    /// The position from which on the slot keeps the server's WAL.
    pub slot: Option<Lsn>,
    /// Gaps of the archive, in the names of their first and last segments.
    pub gaps: Vec<NamedGap>,
    /// What a person has to look after although all was copied that there was: a gap that
    /// came up now, a slot that does not keep WAL.
    pub trouble: Option<Error>,
}

/// Between two looks at a server that is followed.
const PAUSE: Duration = Duration::from_secs(1);
/// How soon an interrupt ends that.
const NAP: Duration = Duration::from_millis(100);

/// Reading the unfinished segment again and again takes at most one part in so many of the time.
const PARTIAL_SHARE: u32 = 10;

/// A timeline history is a line a switch; this is more than any has.
const HISTORY_LIMIT: u64 = 1 << 20;

/// Copies what is not here yet, and goes on with it as long as is asked for.
pub fn run(
    request: &Request<'_>,
    connector: &Connector,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Copied> {
    request.folder.create()?;
    let began = Instant::now();
    let until = began + request.follow.unwrap_or_default();
    let _lock = CopyLock::take(request.folder, until, interrupt)?;
    let mut copied = Copied::default();
    let mut session = None;
    loop {
        let pass = (|| {
            if session.is_none() {
                session = Some(Session::open(request, connector, interrupt)?);
            }
            match &mut session {
                Some(session) => session.pass(&mut copied, progress),
                None => Ok(()),
            }
        })();
        match pass {
            // Who follows a server is asked to end, or else goes on.
            Err(error)
                if interrupt.is_raised()
                    && error.kind() != Kind::Damage
                    && copied.timeline.is_some()
                    && request.follow.is_some() =>
            {
                return Ok(copied);
            }
            // A server that was there before may only be restarting.
            Err(error)
                if error.kind() == Kind::Server
                    && copied.timeline.is_some()
                    && Instant::now() < until =>
            {
                log::warn!("{error}; trying again");
                session = None;
            }
            pass => pass?,
        }
        if !pause(until, interrupt) {
            return Ok(copied);
        }
    }
}

/// Waits before the next look; false where there is to be none.
fn pause(until: Instant, interrupt: &Interrupt) -> bool {
    let next = Instant::now() + PAUSE;
    while Instant::now() < next {
        if interrupt.is_raised() || Instant::now() >= until {
            return false;
        }
        std::thread::sleep(NAP);
    }
    true
}

/// Connections to a server, and the archive for its WAL.
struct Session<'a> {
    request: &'a Request<'a>,
    connector: &'a Connector,
    interrupt: &'a Interrupt,
    client: Client,
    instance: Instance,
    chosen: Chosen,
    /// The first is there from the beginning, the others come when there is something for them to do.
    readers: Vec<FileReader>,
    archive: WalArchive,
    block_maps: BlockMaps,
    rate: RateLimit,
    /// The unfinished segment that was copied last, and when it shall be copied next.
    growing: Option<Unfinished>,
    growing_due: Instant,
    /// What the server had given the slot up for before it was created anew.
    given_up: Option<Limit>,
}

impl<'a> Session<'a> {
    fn open(
        request: &'a Request<'a>,
        connector: &'a Connector,
        interrupt: &'a Interrupt,
    ) -> Result<Session<'a>> {
        let mut client = crate::server::connect(connector, interrupt)?;
        let major = facts::version(&mut client)?.major;
        permissions::check(&mut client, major, request.server)?;
        let instance = crate::server::instance(&mut client)?;
        let mut reader = FileReader::connect(connector, interrupt)?;
        reader.check_instance(&instance)?;
        let chosen = Chosen::choose(
            request.source,
            Amount::Parts,
            major,
            connector,
            &mut reader,
            interrupt,
        )?;
        log::debug!("the way of the files: {chosen}");
        let cluster = identity(major, &mut reader)?;
        let archive = WalArchive::claim(
            request.folder,
            request.server,
            cluster,
            request.keys.clone(),
        )?;
        Ok(Session {
            request,
            connector,
            interrupt,
            client,
            instance,
            chosen,
            readers: vec![reader],
            archive,
            block_maps: BlockMaps::of(request.folder),
            rate: RateLimit::new(request.max_rate),
            growing: None,
            growing_due: Instant::now(),
            given_up: None,
        })
    }

    /// Copies what there is now.
    fn pass(&mut self, copied: &mut Copied, progress: &dyn Progress) -> Result<()> {
        let size = self.archive.cluster().segment_size;
        // The slot first, so that nothing listed after it can be gone.
        let mut trouble = self.keep_wal().err();
        let end = wal_end(&mut self.client)?;
        let files = pg_wal::files(&mut self.client)?;
        let (timeline, end) = reach(end, &files, size);
        copied.histories += self.copy_histories(&files)?;
        let history = self.archive.history(timeline)?;
        let before = self.archive.inventory()?;
        let offer = Offer {
            files: &files,
            history: &history,
            end,
            size,
        };
        let wanted = offer.missing_in(&before);

        self.copy_whole(&wanted.whole, copied, progress)?;
        let mut is_changed = !wanted.whole.is_empty();
        for (unfinished, file) in &wanted.left {
            is_changed |= self.copy_left(*unfinished, file, progress)?;
        }
        if let Some(growing) = wanted.growing {
            is_changed |= self.copy_growing(growing, &before, progress)?;
        }
        let now = match is_changed {
            true => self.archive.inventory()?,
            false => before.clone(),
        };
        copied.timeline = Some(timeline);
        copied.end = end;
        copied.partial = self
            .growing
            .filter(|growing| now.holds_partial(growing.segment))
            .map(|growing| (growing.segment.file_name(size), growing.end));
        copied.slot = self.advance_slot(&now, &history)?;
        let gaps = now.gaps();
        let known = before.gaps();
        let new: Vec<Gap> = gaps
            .iter()
            .copied()
            .filter(|gap| !known.iter().any(|known| known.contains(gap.first)))
            .collect();
        copied.gaps = NamedGap::all(&gaps, size);
        if !new.is_empty() {
            trouble = Some(self.gone(&NamedGap::all(&new, size)));
        }
        if let Some(trouble) = trouble {
            if self.request.follow.is_some() {
                log::error!("{trouble}");
            }
            // A gap is worse than a slot, and what comes later does not mend it.
            if copied.trouble.as_ref().map(Error::kind) != Some(Kind::Damage) {
                copied.trouble = Some(trouble);
            }
        }
        Ok(())
    }

    /// An error where the configured slot does not keep the server's WAL, and cannot be made to.
    fn keep_wal(&mut self) -> Result<()> {
        let Request {
            slot, create_slot, ..
        } = *self.request;
        let Some(name) = slot else { return Ok(()) };
        match (slot::find(&mut self.client, name)?, create_slot) {
            (Some(Slot::Keeps(_)), _) => Ok(()),
            (Some(Slot::Lost(limit)), true) => {
                log::warn!("{}; it is created anew", slot::given_up(name, limit));
                self.given_up = Some(limit);
                slot::drop(&mut self.client, name)?;
                slot::create(&mut self.client, name)
            }
            (Some(Slot::Lost(limit)), false) => {
                Err(Error::server(slot::given_up(name, limit)).hint(recreate(name)))
            }
            (Some(Slot::Idle), true) => {
                slot::drop(&mut self.client, name)?;
                slot::create(&mut self.client, name)
            }
            (Some(Slot::Idle), false) => Err(Error::server(format!(
                "the replication slot {name} does not keep any WAL yet"
            ))
            .hint(recreate(name))),
            (None, true) => slot::create(&mut self.client, name),
            (None, false) => Err(Error::server(format!(
                "the server has no replication slot {name}"
            ))
            .hint(format!(
                "set create_slot = yes, or run on the server: SELECT pg_create_physical_replication_slot('{name}', true)"
            ))),
        }
    }

    /// Lets the slot go of what is here, up to where the first segment begins that is not.
    fn advance_slot(
        &mut self,
        inventory: &Inventory,
        history: &TimelineHistory,
    ) -> Result<Option<Lsn>> {
        let Some(name) = self.request.slot else {
            return Ok(None);
        };
        let Some(Slot::Keeps(from)) = slot::find(&mut self.client, name)? else {
            return Ok(None);
        };
        let size = self.archive.cluster().segment_size;
        let held = inventory.contiguous(history, from).end;
        let to = held.segment(size).start(size);
        if to <= from {
            return Ok(Some(from));
        }
        // What another process stored just now may have no name on disk yet.
        self.archive.sync()?;
        slot::advance(&mut self.client, name, to)?;
        Ok(Some(to))
    }

    fn copy_histories(&mut self, files: &[WalFileName]) -> Result<u64> {
        let mut count = 0;
        let histories = files
            .iter()
            .filter_map(|file| Some((file, file.timeline_of_history()?)));
        for (file, timeline) in histories {
            if self.archive.find(file)?.is_some() {
                continue;
            }
            let path = format!("pg_wal/{file}");
            let Some(content) = self.readers[0].read_small_file(&path, HISTORY_LIMIT)? else {
                continue;
            };
            TimelineHistory::parse(timeline, &String::from_utf8_lossy(&content))
                .map_err(|error| error.context("the server's pg_wal"))?;
            let mut incoming = self.archive.begin(&Coding::PLAIN)?;
            incoming.append(&content)?;
            if self.archive.store(file, incoming.finish()?)? == Stored::New {
                count += 1;
            }
        }
        Ok(count)
    }

    fn copy_whole(
        &mut self,
        segments: &[SegmentName],
        copied: &mut Copied,
        progress: &dyn Progress,
    ) -> Result<()> {
        if segments.is_empty() {
            return Ok(());
        }
        let size = self.archive.cluster().segment_size;
        while self.readers.len() < self.request.workers.min(segments.len()) {
            let mut reader = FileReader::connect(self.connector, self.interrupt)?;
            reader.check_instance(&self.instance)?;
            reader.read_from(&self.chosen);
            self.readers.push(reader);
        }
        let bytes = size.bytes() * segments.len() as u64;
        progress.step("copy WAL", Some(bytes));
        let destination = Destination {
            archive: &self.archive,
            block_maps: &self.block_maps,
            coding: self.request.coding,
            rate: &self.rate,
            progress,
        };
        let line = Line::new(&destination, segments);
        let places: Vec<usize> = (0..segments.len()).collect();
        let ended = parallel::run(
            &mut self.readers,
            &places,
            self.interrupt,
            |reader, place, stop| line.work(reader, *place, stop),
            || Ok(()),
        );
        // What is in the archive counts, also where the rest failed.
        let admitted = line.into_admitted();
        let names = admitted.iter().map(|segment| segment.file_name(size));
        copied.segments.extend(names);
        ended
    }

    /// The segment that a timeline was left in. Tells whether the archive is changed.
    fn copy_left(
        &mut self,
        left: Unfinished,
        file: &WalFileName,
        progress: &dyn Progress,
    ) -> Result<bool> {
        let size = self.archive.cluster().segment_size;
        let end = self.copy_partial(left, file, progress)?;
        if let Some(end) = end
            && behind_page_header(end, size) != behind_page_header(left.end, size)
        {
            log::warn!(
                "the records of {file} on the server end at {end}, and its timeline was left at {}",
                left.end
            );
        }
        Ok(end.is_some())
    }

    /// The segment that the server writes to. Tells whether the archive is changed.
    fn copy_growing(
        &mut self,
        growing: Unfinished,
        inventory: &Inventory,
        progress: &dyn Progress,
    ) -> Result<bool> {
        let now = Instant::now();
        if self.growing == Some(growing) || now < self.growing_due {
            return Ok(false);
        }
        let size = self.archive.cluster().segment_size;
        let name = WalFileName::partial(growing.segment, size);
        let is_here = inventory.holds_partial(growing.segment)
            && match self.archive.find(&name)? {
                None => false,
                Some(stored) => {
                    let mut content = self.archive.read(&stored)?;
                    let end = partial::end_of_records(
                        self.archive.cluster(),
                        growing.segment,
                        &mut content,
                    )?;
                    behind_page_header(end, size) == behind_page_header(growing.end, size)
                }
            };
        if !is_here {
            let file = WalFileName::segment(growing.segment, size);
            if self.copy_partial(growing, &file, progress)?.is_none() {
                return Ok(false);
            }
        }
        self.growing = Some(growing);
        self.growing_due = now + now.elapsed() * PARTIAL_SHARE;
        Ok(!is_here)
    }

    /// Copies a segment as far as its WAL goes; gives where its last record ends. Nothing where the server has it no more.
    fn copy_partial(
        &mut self,
        unfinished: Unfinished,
        file: &WalFileName,
        progress: &dyn Progress,
    ) -> Result<Option<Lsn>> {
        let Unfinished { segment, end } = unfinished;
        let cluster = self.archive.cluster();
        let used = end.0 - segment.number.start(cluster.segment_size).0;
        let destination = Destination {
            archive: &self.archive,
            block_maps: &self.block_maps,
            coding: self.request.coding,
            rate: &self.rate,
            progress,
        };
        progress.step("copy WAL", Some(used));
        let interrupt = self.interrupt;
        let fetched = destination.fetch(&mut self.readers[0], file, used, || interrupt.check())?;
        let Fetched::Here(fetched) = fetched else {
            return Ok(None);
        };
        let end = partial::check(cluster, segment, end, &mut fetched.open()?)
            .map_err(|error| unsound(file, &error))?;
        partial::store(&self.archive, segment, end, fetched)?;
        Ok(Some(end))
    }

    fn gone(&self, gaps: &[NamedGap]) -> Error {
        let gaps: Vec<String> = gaps.iter().map(ToString::to_string).collect();
        let keep = match self.request.slot {
            Some(_) => {
                let limit = self.given_up.unwrap_or(Limit::Size);
                format!("raise {} on the server, or copy more often", limit.setting())
            }
            None => {
                "so that the server keeps its WAL until it is copied, set wal_slot and create_slot = yes".to_owned()
            }
        };
        Error::damage(format!(
            "WAL is missing that the server does not have any more: {}",
            gaps.join(", ")
        ))
        .hint(format!(
            "no earlier backup can be rolled forward past that: make a backup now (pgkeep backup {}); {keep}",
            self.request.server
        ))
    }
}

fn recreate(slot: &str) -> String {
    format!(
        "set create_slot = yes, or run on the server: SELECT pg_drop_replication_slot('{slot}'); SELECT pg_create_physical_replication_slot('{slot}', true)"
    )
}

fn identity(major: Major, reader: &mut FileReader) -> Result<ClusterIdentity> {
    let (_, control) = reader.read_control_file()?;
    Ok(ClusterIdentity {
        system_identifier: control.system_identifier,
        major,
        segment_size: control.wal_segment_size,
    })
}
