//! What happened when: the transactions in the WAL that is held, what they did to which tables, what they destroyed, and
//! how to say that it is to be restored to before.
//!
//! WAL is read from the start of a backup, which knows the names of relations as they were then. Each record is read once,
//! and of most of them only the header and which blocks it is about. Where WAL is missing, reading goes on behind that;
//! transactions that had begun before are not whole then, and are told so.

mod account;
mod bound;
mod transactions;
mod wanted;

use std::ops::ControlFlow;

use jiff::{SignedDuration, Timestamp};

use crate::catalogs::{Belief, Catalogs, RelationFiles, backed_up};
use crate::config::nearest;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::history::TimelineHistory;
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::recovery::events::{RestorePoint, ServerEvent, TransactionEnd, is_prepared};
use crate::pg::recovery::target::TargetTimeline;
use crate::pg::relation::Fork;
use crate::pg::version::Major;
use crate::pg::wal::{
    DatabaseChange, HeapChange, Record, TablespaceChange, dropped_relations, subtransactions,
};
use crate::progress::Progress;
use crate::repository::backup_info::BackupInfo;
use crate::repository::catalogue::{Backup, Catalogue};
use crate::repository::chain::Chain;
use crate::repository::identifier::{Identifier, Selector};
use crate::repository::layout::ServerFolder;
use crate::repository::roll_forward::{HeldWal, MissingWal, Way};
use crate::repository::wal_archive::ClusterIdentity;
use crate::repository::wal_path::WalPath;
use crate::stored::master_key::Keyring;

pub use crate::catalogs::Name;
pub use account::{
    Account, Changed, Destroyed, Event, Loss, Newest, Told, Transaction, Unended, What, Whole,
};
pub use bound::Bound;
pub use transactions::Rows;
pub use wanted::Wanted;

use account::Scope;
use transactions::{AtOnce, End, Running};

/// How far the clocks of the server and of the machine that made a backup may be apart.
const CLOCKS: SignedDuration = SignedDuration::from_mins(5);

/// Whoever waits is told of so many bytes at once.
const TOLD_BYTES: u64 = 1 << 20;

/// What to look for.
pub struct Request<'a> {
    /// The server's part of the repository.
    pub folder: &'a ServerFolder,
    /// The master keys that its files may be encrypted with.
    pub keys: &'a Keyring,
    /// Where to begin; nothing for the newest backup before the end.
    pub from: Option<&'a Bound>,
    /// Where to end; nothing for the end of all WAL.
    pub to: Option<&'a Bound>,
    /// Which timeline to follow; nothing for the newest that descends from the newest backup's.
    pub timeline: Option<Timeline>,
    /// Only these relations and transactions; all where there are none.
    pub wanted: &'a [Wanted],
    /// How much is told of each kind, at most.
    pub limit: usize,
    /// From how many deleted or updated rows of a table on it counts as destroyed.
    pub many: u64,
    /// Who waits for it.
    pub progress: &'a dyn Progress,
    /// Who may end it.
    pub interrupt: &'a Interrupt,
}

/// What there is to show.
pub struct Shown {
    /// What is told.
    pub account: Account,
    /// The backup that the names come from.
    pub backup: Option<Identifier>,
    /// The timeline that was followed.
    pub timeline: Timeline,
    /// Where the first record that counts begins; nothing where none does.
    pub start: Option<Lsn>,
    /// The position behind the last record that was read.
    pub end: Lsn,
    /// Transactions that have not ended there.
    pub unended: Vec<Unended>,
    /// WAL that is missing on the way.
    pub missing: Vec<MissingWal>,
    /// Records that were not counted, as too many transactions had not ended.
    pub forgotten: u64,
    /// What kept it from being all.
    pub trouble: Option<Error>,
}

/// Reads the WAL of a server.
pub fn run(request: &Request<'_>, catalogue: &Catalogue) -> Result<Shown> {
    let held = HeldWal::look(request.folder, request.keys.clone())?;
    let ground = Ground::find(request, catalogue, held.as_ref())?;
    request.progress.step("look for where to begin", None);
    let beginning = ground.beginning(request)?;
    let mut catalogs = Catalogs::new(ground.major);
    request.progress.step("read names in the backup", None);
    let names_of = match &beginning {
        Beginning::Backup(backup) => Some((*backup, Belief::Beginning)),
        // What was there later, may have been there before.
        Beginning::Segment(_) => ground
            .backups
            .last()
            .map(|(backup, _)| (*backup, Belief::Hindsight)),
    };
    let mut trouble = None;
    if let Some((backup, belief)) = names_of {
        let read = Chain::read(catalogue, backup, request.keys).and_then(|chain| {
            let all = |_| true;
            backed_up::read(&chain, &all, &mut catalogs, belief, request.interrupt)
        });
        request.interrupt.check()?;
        // Numbers are better than nothing.
        if let Err(error) = read {
            log::warn!(
                "cannot read the names of relations in backup {}: {error}",
                backup.identifier
            );
            trouble = Some(error);
        }
    }
    let mut reading = Reading {
        request,
        major: ground.major,
        scope: Scope {
            wanted: request.wanted,
            limit: request.limit,
            many: request.many,
            timeline: request.timeline,
        },
        catalogs,
        running: Running::default(),
        account: Account::new(request.limit),
        start: None,
        told: Lsn::default(),
        has_ended: false,
        is_to_found: false,
    };
    let mut missing = Vec::new();
    let mut way = ground.way(&beginning)?;
    let mut position = ground.start(&beginning)?;
    loop {
        let read = reading.read(&way.path, position);
        match read {
            Ok(end) => position = end,
            Err(error) => {
                request.interrupt.check()?;
                trouble = Some(error);
                break;
            }
        }
        let (Some(gap), Some(held), false) = (way.missing.take(), &held, reading.has_ended) else {
            break;
        };
        if matches!(request.to, Some(Bound::Lsn(to)) if *to < gap.start) {
            break;
        }
        log::warn!(
            "the archive lacks {}: what happened there is not told",
            gap.segments()
        );
        reading.pass_gap();
        position = gap.end;
        missing.push(gap);
        way = held.way_from(ground.history.clone(), position);
    }
    if trouble.is_none() {
        reading.check(&ground, position)?;
    }
    Ok(reading.finish(&ground, &beginning, position, missing, trouble))
}

/// What there is to read.
struct Ground<'a> {
    held: Option<&'a HeldWal>,
    keys: &'a Keyring,
    major: Major,
    history: TimelineHistory,
    /// The valid backups that lie on the way, the newest first.
    backups: Vec<(&'a Backup, &'a BackupInfo)>,
}

/// Where to begin.
enum Beginning<'a> {
    /// Where a backup begins.
    Backup(&'a Backup),
    /// Where a segment of the archive begins.
    Segment(Lsn),
}

impl<'a> Ground<'a> {
    fn find(
        request: &Request<'a>,
        catalogue: &'a Catalogue,
        held: Option<&'a HeldWal>,
    ) -> Result<Ground<'a>> {
        let newest = catalogue.valid().next_back();
        let info = newest.map(|backup| catalogue.check(backup)).transpose()?;
        let (major, history) = match (held, info) {
            (None, None) => {
                // The error tells what backups there are, and what is wrong with them.
                catalogue.select(&Selector::Newest)?;
                return Err(Error::failed("there is no WAL to show"));
            }
            (None, Some(info)) => {
                let major = ClusterIdentity::of_backup(info).map(|cluster| cluster.major);
                let major = major.ok_or_else(|| {
                    Error::damage(format!("backup {} is of no known kind", info.backup))
                })?;
                if request
                    .timeline
                    .is_some_and(|timeline| timeline != info.end_timeline)
                {
                    return Err(Error::failed(format!(
                        "no WAL is archived, and backup {} is on timeline {}",
                        info.backup, info.end_timeline
                    )));
                }
                (major, TimelineHistory::without_ancestors(info.end_timeline))
            }
            (Some(held), info) => {
                let timelines = held.inventory().timelines();
                let history = match (request.timeline, info) {
                    (Some(timeline), _) if timelines.contains(&timeline) => {
                        held.inventory().history(timeline)
                    }
                    (Some(timeline), _) => {
                        return Err(Error::failed(format!(
                            "the archive holds nothing of timeline {timeline}"
                        ))
                        .hint("pgkeep wal list shows its timelines"));
                    }
                    (None, Some(info)) => held.history(info, TargetTimeline::Latest)?,
                    (None, None) => match timelines.last() {
                        Some(timeline) => held.inventory().history(*timeline),
                        None => {
                            return Err(Error::failed("there is no WAL to show")
                                .hint("pgkeep wal copy and pgkeep wal push archive it"));
                        }
                    },
                };
                (held.archive().cluster().major, history)
            }
        };
        let mut backups = Vec::new();
        for backup in catalogue.valid().rev() {
            let info = catalogue.check(backup)?;
            let lies_there = match held {
                None => backups.is_empty(),
                Some(held) => held
                    .history(info, TargetTimeline::Number(history.timeline()))
                    .is_ok(),
            };
            if lies_there {
                backups.push((backup, info));
            }
        }
        Ok(Ground {
            held,
            keys: request.keys,
            major,
            history,
            backups,
        })
    }

    /// The newest backup from whose start all is read that is wanted; or else the first WAL that there is.
    fn beginning(&self, request: &Request<'_>) -> Result<Beginning<'a>> {
        let by_name = |bound| self.backup_before(bound, request.interrupt);
        let before_time = |time: Timestamp| {
            let early = time.checked_sub(CLOCKS).unwrap_or(Timestamp::MIN);
            let mut backups = self.backups.iter();
            backups.find(|(_, info)| info.backup.time().is_some_and(|began| began <= early))
        };
        let before_lsn = |lsn: Lsn| {
            let mut backups = self.backups.iter();
            backups.find(|(_, info)| info.start_lsn <= lsn)
        };
        let found = match (request.from, request.to) {
            (Some(Bound::Time(time)), _) | (None, Some(Bound::Time(time))) => before_time(*time),
            (Some(Bound::Lsn(lsn)), _) | (None, Some(Bound::Lsn(lsn))) => before_lsn(*lsn),
            (Some(bound), _) | (None, Some(bound)) => by_name(bound)?,
            (None, None) => self.backups.first(),
        };
        if let Some((backup, _)) = found {
            return Ok(Beginning::Backup(backup));
        }
        let archived = self.held.and_then(|held| held.beginning(&self.history));
        // A backup that has the first WAL there is, has its own besides.
        let oldest = self.backups.last();
        match (archived, oldest) {
            (Some(lsn), Some((backup, info))) if info.start_lsn <= lsn => {
                Ok(Beginning::Backup(backup))
            }
            (Some(lsn), _) => Ok(Beginning::Segment(lsn)),
            (None, Some((backup, _))) => Ok(Beginning::Backup(backup)),
            (None, None) => Err(Error::failed(format!(
                "there is no WAL of timeline {} to show",
                self.history.timeline()
            ))),
        }
    }

    /// The newest backup behind whose start a transaction ends, or a restore point is: looks backwards, from one to the next.
    fn backup_before(
        &self,
        bound: &Bound,
        interrupt: &Interrupt,
    ) -> Result<Option<&(&'a Backup, &'a BackupInfo)>> {
        let mut until = Lsn(u64::MAX);
        for known in &self.backups {
            let (backup, info) = known;
            let way = self.way_of(backup, info)?;
            let mut is_found = false;
            let read = way.path.read(info.start_lsn, interrupt, &mut |record| {
                is_found = bound.names(record, self.major);
                match is_found || record.start >= until {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            });
            interrupt.check()?;
            // Damage is told where it is read for good.
            if is_found || read.is_err() {
                return Ok(Some(known));
            }
            until = info.start_lsn;
        }
        Ok(None)
    }

    fn start(&self, beginning: &Beginning<'_>) -> Result<Lsn> {
        match beginning {
            Beginning::Backup(backup) => {
                let info = backup.info.as_ref().map_err(Error::clone)?;
                Ok(info.start_lsn)
            }
            Beginning::Segment(lsn) => Ok(*lsn),
        }
    }

    fn way(&self, beginning: &Beginning<'_>) -> Result<Way<'a>> {
        match (beginning, self.held) {
            (Beginning::Backup(backup), _) => {
                let info = backup.info.as_ref().map_err(Error::clone)?;
                self.way_of(backup, info)
            }
            (Beginning::Segment(lsn), Some(held)) => Ok(held.way_from(self.history.clone(), *lsn)),
            (Beginning::Segment(_), None) => Err(Error::failed("there is no WAL to show")),
        }
    }

    fn way_of(&self, backup: &Backup, info: &BackupInfo) -> Result<Way<'a>> {
        match self.held {
            Some(held) => held.way(&backup.folder, info, self.history.clone()),
            None => Ok(Way {
                history: self.history.clone(),
                path: WalPath::of_backup(&backup.folder, info, self.keys)?,
                missing: None,
            }),
        }
    }
}

/// WAL as it is being read.
struct Reading<'a> {
    request: &'a Request<'a>,
    major: Major,
    scope: Scope<'a>,
    catalogs: Catalogs,
    running: Running,
    account: Account,
    /// Where the first record that counts begins.
    start: Option<Lsn>,
    /// Up to where whoever waits has been told of.
    told: Lsn,
    /// Whether the end that is wanted has come.
    has_ended: bool,
    /// Whether that was a transaction or a restore point, and is there.
    is_to_found: bool,
}

impl Reading<'_> {
    fn read(&mut self, path: &WalPath<'_>, from: Lsn) -> Result<Lsn> {
        let request = self.request;
        let mut fault = None;
        self.told = from;
        let bytes = path.end().0.saturating_sub(from.0);
        request.progress.step("read the WAL", Some(bytes));
        let end = path.read(from, request.interrupt, &mut |record| {
            let behind = record.end.0.saturating_sub(self.told.0);
            if behind >= TOLD_BYTES {
                request.progress.advance(behind);
                self.told = record.end;
            }
            if request
                .to
                .is_some_and(|to| to.is_passed(record, self.major))
            {
                self.has_ended = true;
                return ControlFlow::Break(());
            }
            match self.record(record) {
                Ok(()) if self.has_ended => ControlFlow::Break(()),
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    fault = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        fault.map_or(Ok(end), Err)
    }

    fn record(&mut self, record: &Record<'_>) -> Result<()> {
        if self.start.is_none() {
            let from = self.request.from;
            if from.is_none_or(|from| from.is_reached(record, self.major)) {
                self.start = Some(record.start);
            }
        }
        let (xid, at) = (record.xid, record.start);
        let heap = HeapChange::of(record)?;
        self.catalogs
            .record(record, heap.as_ref(), &mut |change, before| {
                self.running.relation(xid, at, change, before);
            });
        match heap {
            Some(HeapChange { relation, change }) if relation.fork == Fork::Main => {
                self.running.rows(xid, at, relation.into(), change);
            }
            _ => self.running.seen(xid, at),
        }
        if let Some(end) = TransactionEnd::of(record, self.major) {
            return self.transaction(record, end);
        }
        if is_prepared(record) {
            self.running.prepare(xid, at);
        } else if let Some(change) = DatabaseChange::of(self.major, record)? {
            self.database(xid, at, &change);
        } else if let Some(change) = TablespaceChange::of(record)? {
            let what = match change {
                TablespaceChange::Created(oid) => AtOnce::TablespaceCreated(oid),
                TablespaceChange::Dropped(oid) => AtOnce::TablespaceDropped(oid),
            };
            self.running.at_once(xid, at, what);
        } else if let Some(point) = RestorePoint::of(record) {
            let name = String::from_utf8_lossy(point.name).into_owned();
            self.event(at, Some(point.time), What::RestorePoint(name));
        } else if let Some(event) = ServerEvent::of(record) {
            self.server(at, event);
        }
        self.look_for_end(record);
        Ok(())
    }

    fn look_for_end(&mut self, record: &Record<'_>) {
        if self
            .request
            .to
            .is_some_and(|to| to.names(record, self.major))
        {
            self.has_ended = true;
            self.is_to_found = true;
        }
    }

    fn transaction(&mut self, record: &Record<'_>, end: TransactionEnd) -> Result<()> {
        let mut below = Vec::new();
        subtransactions(record, &mut |xid| below.push(xid))?;
        let mut removed = Vec::new();
        dropped_relations(record, &mut |fork| removed.push(RelationFiles::from(fork)))?;
        let mut work = self.running.end(end.xid, &below);
        let ended = End {
            xid: end.xid,
            time: end.time,
            is_committed: end.is_committed,
            at: record.start,
        };
        if self.start.is_some() {
            self.account
                .transaction(&self.scope, &self.catalogs, ended, &work, &removed);
        }
        if !end.is_committed {
            self.catalogs.take_back(std::mem::take(&mut work.before));
        }
        self.look_for_end(record);
        Ok(())
    }

    fn database(&mut self, xid: u32, at: Lsn, change: &DatabaseChange) {
        match change {
            // To move it to another tablespace (commands/dbcommands.c, movedb); what removes it there is of no transaction.
            DatabaseChange::Copied { from, to } if from.database == to.database => {}
            DatabaseChange::Copied { to: folder, .. } | DatabaseChange::Created(folder) => {
                self.catalogs.database(change);
                let created = AtOnce::DatabaseCreated(*folder);
                self.running.at_once(xid, at, created);
            }
            DatabaseChange::Dropped(folders) => {
                for folder in folders {
                    let began = self.catalogs.being_dropped(folder.database);
                    let began = began.map_or(at, |began| began.min(at));
                    let dropped = AtOnce::DatabaseDropped(*folder);
                    self.running.at_once(xid, began, dropped);
                }
            }
        }
    }

    fn server(&mut self, at: Lsn, event: ServerEvent) {
        let what = match event {
            ServerEvent::Promoted { timeline, before } => What::Promoted(before, timeline),
            ServerEvent::Quiet => What::Quiet,
            ServerEvent::Reconfigured => What::Reconfigured,
        };
        if event != ServerEvent::Reconfigured {
            for (_, work) in self.running.end_all() {
                self.catalogs.take_back(work.before);
            }
        }
        self.event(at, None, what);
    }

    fn event(&mut self, at: Lsn, time: Option<Timestamp>, what: What) {
        if self.start.is_some() {
            self.account.event(Event { at, time, what });
        }
    }

    /// Goes on behind WAL that is missing: how the transactions ended that were running, nobody knows.
    fn pass_gap(&mut self) {
        for work in self.running.clear() {
            self.catalogs.take_back(work.before);
        }
        self.catalogs.forget_places();
    }

    /// That what was asked for by its name is there at all.
    fn check(&self, ground: &Ground<'_>, end: Lsn) -> Result<()> {
        let lacking = match (self.request.from, self.request.to) {
            (Some(from @ (Bound::Xid(_) | Bound::Name(_))), _) if self.start.is_none() => {
                Some(from)
            }
            (_, Some(to @ (Bound::Xid(_) | Bound::Name(_)))) if !self.is_to_found => Some(to),
            _ => None,
        };
        if let Some(bound) = lacking {
            return Err(Error::failed(format!(
                "{} is not in the WAL of timeline {} that is held, which ends at {end}",
                bound.describe(),
                ground.history.timeline()
            ))
            .hint(
                "pgkeep wal copy fetches what the server has; --timeline looks on another timeline",
            ));
        }
        let names: Vec<Name> = self.catalogs.names().collect();
        for wanted in self.request.wanted {
            if matches!(wanted, Wanted::Name { .. }) && !names.iter().any(|name| wanted.fits(name))
            {
                return Err(unknown(wanted, &names));
            }
        }
        Ok(())
    }

    fn finish(
        mut self,
        ground: &Ground<'_>,
        beginning: &Beginning<'_>,
        end: Lsn,
        missing: Vec<MissingWal>,
        trouble: Option<Error>,
    ) -> Shown {
        self.account.close(self.request.limit);
        let mut unended: Vec<Unended> = self
            .running
            .left()
            .filter_map(|(xid, work)| account::unended(&self.scope, &self.catalogs, xid, work))
            .collect();
        unended.sort_by_key(|it| it.first);
        Shown {
            account: self.account,
            backup: match beginning {
                Beginning::Backup(backup) => Some(backup.identifier),
                Beginning::Segment(_) => None,
            },
            timeline: ground.history.timeline(),
            start: self.start,
            end,
            unended,
            missing,
            forgotten: self.running.forgotten(),
            trouble,
        }
    }
}

/// No relation is so called; but others nearly are.
fn unknown(wanted: &Wanted, names: &[Name]) -> Error {
    let wanted = wanted.to_string();
    let error = Error::failed(format!("no table {wanted} is known"));
    if names.is_empty() {
        return error
            .hint("names come from a backup, and there are none: say database/relfilenode");
    }
    let full = |name: &Name| format!("{}.{}", name.schema, name.relation);
    let candidates: Vec<String> = names
        .iter()
        .flat_map(|name| {
            [
                name.relation.clone(),
                full(name),
                format!("{}/{}", name.database, full(name)),
            ]
        })
        .collect();
    match nearest(&wanted, candidates.iter().map(String::as_str)) {
        Some(near) => error.hint(format!("did you mean {near}? Names are as in pg_class, with no quotes")),
        None => error.hint("names are as in pg_class, with no quotes: table, schema.table or database/schema.table, where * stands for any letters"),
    }
}
