//! A full backup by a role that has nothing but the attribute REPLICATION.
//!
//! It may read no file, and neither start nor stop a backup. But it may have the server make a base backup of its own (BASE_BACKUP),
//! which lists, starts and stops by itself: all of it comes in one stream, label, control file and WAL too. What is stored of that
//! is what every backup is.
//!
//! Nothing can be read twice. So there is no second pass over what changed: where one would be made, the whole base backup is
//! made anew. And a page that came half written stays so, for replay to write anew.

mod contents;
mod skipped;

use std::time::Instant;

use postgres::Client;

use crate::backup::catalogued::Catalogued;
use crate::backup::connected::{Met, again, expect_the_same};
use crate::backup::copy::{self, Arriving, Session};
use crate::backup::corruption::{PageCheck, corrupt_pages, forget_replaced};
use crate::backup::finish::{Description, Finish};
use crate::backup::plan::Plan;
use crate::backup::reserved::ReservedWal;
use crate::backup::wal::arriving::ArrivedWal;
use crate::backup::{Request, check_facts, emptied_directories, orphans, unlogged};
use crate::config::Source;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::exclusion::{CONTENTS_NEEDED, Exclusion};
use crate::pg::history::WalRange;
use crate::pg::version::Major;
use crate::progress::Progress;
use crate::rate::RateLimit;
use crate::repository::backup_info::BackupInfo;
use crate::repository::identifier::Identifier;
use crate::repository::layout::BackupFolder;
use crate::repository::staging::Staging;
use crate::repository::store::Stored;
use crate::server::connect::Connector;
use crate::server::facts::{self, Facts, TablespaceLocation};
use crate::server::permissions::Lack;
use crate::server::source::Stream;
use crate::server::{self, Instance};

use contents::{Arrived, Contents};

/// A backup that is being made.
pub(super) struct Replicated<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) connector: &'a Connector,
    pub(super) progress: &'a dyn Progress,
    pub(super) interrupt: &'a Interrupt,
    pub(super) identifier: Identifier,
    pub(super) began: Instant,
    pub(super) staging: Staging,
    /// Why it is made this way.
    pub(super) lack: Lack,
}

/// The sessions of one attempt, all with the same server.
pub(super) struct Confined {
    client: Client,
    /// The one for the slot.
    keeper: Client,
    stream: Stream,
    instance: Instance,
    pub(super) facts: Facts,
}

/// After so many attempts none is made any more.
const MOST_ATTEMPTS: u32 = 5;

/// Whether there is a way of this name for a role that lacks something.
pub(crate) fn is_bearable(lack: &Lack, source: Option<Source>) -> bool {
    lack.leaves_replication() && matches!(source, None | Some(Source::Stream))
}

/// What the role lacks, if the backup that is asked for is made without it. An error where it would be, but for what
/// is asked for.
pub(super) fn lack_to_bear(request: &Request<'_>, met: &Met) -> Result<Option<Lack>> {
    let Some(lack) = met
        .lack
        .as_ref()
        .filter(|lack| is_bearable(lack, request.source))
    else {
        return Ok(None);
    };
    let refused = |why: &str| Err(lack.error(request.server).context(why));
    if met.version.major < Major::V15 {
        return refused(
            "with the attribute REPLICATION alone, a role can back up PostgreSQL 15 and later",
        );
    }
    if !request.extra.is_empty() {
        return refused("`extra` files do not come in a base backup of the server's own");
    }
    match &request.parent {
        None => {}
        Some(parent) if parent.or_full => {
            log::warn!("making a full backup: {}", lack.describe());
        }
        Some(_) => {
            return refused("an incremental backup takes more than the attribute REPLICATION");
        }
    }
    Ok(Some(lack.clone()))
}

impl Confined {
    /// Connects to a server that can be backed up this way.
    pub(super) fn open(
        request: &Request<'_>,
        lack: &Lack,
        met: Met,
        connector: &Connector,
        interrupt: &Interrupt,
    ) -> Result<Confined> {
        let Met {
            mut client,
            version,
            ..
        } = met;
        let instance = server::instance(&mut client)?;
        let facts = Facts::without_files(&mut client)?;
        check_facts(&facts)?;
        let blamed = |error| lack.blamed_for(error, request.server);
        check_contents(&facts).map_err(blamed)?;
        let mut keeper = server::connect(connector, interrupt)?;
        server::check_instance(&mut keeper, &instance)?;
        let stream =
            Stream::to(version.major, connector, &mut client, interrupt).map_err(blamed)?;
        log::info!("the way of the files: {}", way(&stream, request.server));
        if let [file, ..] = &facts.configuration_files[..] {
            log::warn!(
                "{file} and whatever else of the server's configuration lies outside the data directory does not come in a base backup, and is left out"
            );
        }
        Ok(Confined {
            client,
            keeper,
            stream,
            instance,
            facts,
        })
    }
}

/// Why files come by this way, and what it costs.
pub(crate) fn way(stream: &Stream, server: &str) -> String {
    format!(
        "{} (the role has REPLICATION alone: the server makes base backups of its own, compressed by {}; so full backups only, \
         without `extra` files and parts of the configuration outside the data directory. `pgkeep permissions {server}` prints what gives the rest)",
        Source::Stream,
        stream.algorithm()
    )
}

/// What a base backup would lack is an error before it begins.
pub(crate) fn check_contents(facts: &Facts) -> Result<()> {
    if facts.in_recovery {
        // See the module `end`.
        return Err(Error::server(
            "a standby's own base backup can end too early, which takes more than the attribute REPLICATION to mend",
        ));
    }
    let in_place = |tablespace: &&TablespaceLocation| tablespace.is_in_place();
    match facts.tablespaces.iter().find(in_place) {
        Some(tablespace) if facts.version.major == Major::V15 => Err(Error::server(format!(
            "PostgreSQL 15 leaves tablespace {}, which is in the data directory, out of base backups",
            tablespace.name
        ))),
        _ => Ok(()),
    }
}

impl Replicated<'_> {
    /// Makes base backups until one of them is whole.
    pub(super) fn run(self, mut confined: Confined) -> Result<BackupInfo> {
        for attempt in 1.. {
            let folder = self.staging.part(&attempt.to_string())?;
            let facts = confined.facts.clone();
            let error = match self.attempt(confined, &folder) {
                Ok(info) => {
                    self.staging.publish(&folder)?;
                    return Ok(info);
                }
                Err(error) => error,
            };
            self.interrupt.check()?;
            if !error.is_momentary() {
                return Err(error);
            }
            if attempt == MOST_ATTEMPTS {
                // With more permissions, only what changed meanwhile would be read again.
                let error = error.context(format!("given up after {MOST_ATTEMPTS} attempts"));
                return Err(self.lack.blamed_for(error, self.request.server));
            }
            log::warn!("starting anew: {}", error.message());
            folder.place().remove_folder()?;
            confined = self.reconnect()?;
            expect_the_same(&facts, &confined.facts)?;
        }
        Err(Error::failed("no attempt was made"))
    }

    fn reconnect(&self) -> Result<Confined> {
        again(self.progress, self.interrupt, || {
            let met = Met::meet(self.connector, self.interrupt)?;
            let (request, lack) = (self.request, &self.lack);
            Confined::open(request, lack, met, self.connector, self.interrupt)
        })
    }

    /// Makes one, up to the last file of a backup.
    fn attempt(&self, confined: Confined, folder: &BackupFolder) -> Result<BackupInfo> {
        let Replicated {
            request,
            progress,
            interrupt,
            ..
        } = *self;
        let Confined {
            mut client,
            keeper,
            stream,
            ref instance,
            ref facts,
        } = confined;
        let major = facts.version.major;
        progress.step("checkpoint", None);
        let mut reserved = ReservedWal::reserve(keeper)?;
        // What is there before the server lists anything must come.
        let before = Catalogued::read(&mut client)?;
        let backup = stream.begin_with_wal(request.label, request.checkpoint)?;
        let (start, timeline) = backup.start();
        // And what tablespaces are made behind its start are hazards.
        let tablespaces = facts::tablespaces(&mut client)?;
        drop(client);

        let suffix = request.coding.suffix();
        let rules = Exclusion::new(
            major,
            emptied_directories(facts, &tablespaces, |_| Ok(None))?,
        );
        let plan = Plan::unlisted(major, suffix, backup.size());
        progress.step("copy files", Some(plan.bytes));
        let segment_blocks = facts.control.relation_segment_blocks;
        let job = copy::Job {
            plan: &plan,
            folder,
            request,
            page_check: facts
                .data_checksums
                .then(|| PageCheck::new(start, segment_blocks)),
            rate: RateLimit::new(request.max_rate),
            progress,
            journal: None,
            segment_blocks,
        };
        job.create_folders()?;
        let mut contents = Contents::new(&job, facts, &rules, before.database_oids(), &backup)?;
        let sessions = (0..request.workers).map(|_| Session::none());
        let arriving = Arriving {
            backup,
            sorting: &mut contents,
        };
        let (mut copied, outcome) = job.run(sessions, Some(arriving), interrupt, || {
            reserved.note_loss();
            Ok(())
        })?;
        outcome?;
        let Arrived {
            directories,
            control,
            skipped,
            stopped,
            end,
            wal:
                ArrivedWal {
                    stored,
                    hazards,
                    images,
                },
        } = contents.finish()?;
        copied.stored.append(stored);
        drop(reserved);

        orphans::drop_orphaned_segments(&mut copied.stored, facts, suffix, folder)?;
        let connect = || server::connect(self.connector, interrupt);
        let mut client = again(progress, interrupt, connect)?;
        server::check_instance(&mut client, instance)?;
        let now = Catalogued::read(&mut client)?;
        let init_forks = hazards
            .check(end.lsn, &[&before, &now])
            .map_err(|hazard| hazard.error())?;
        self.expect_all(skipped, &copied.stored, &directories)?;
        progress.step("finish", None);
        before.expect_in(
            copied.stored.files.iter().map(|file| file.path),
            &major.tablespace_directory(),
            &mut client,
            |path| Ok(directories.iter().any(|directory| directory == path)),
            interrupt,
        )?;
        unlogged::drop_other_forks(&init_forks, &mut copied, &plan, facts, request, folder)?;
        forget_replaced(&mut copied.suspects, &images, &plan, segment_blocks);
        let corrupt = corrupt_pages(&copied.suspects, start, end.lsn, |file| {
            plan.files.get(file).path.to_owned()
        });
        let finish = Finish {
            description: Description {
                request,
                facts,
                tablespaces: &tablespaces,
                corrupt,
                increment: None,
                source: Some(Source::Stream),
                identifier: self.identifier,
                began: self.began,
            },
            directories,
            stopped: &stopped,
            ranges: &[WalRange {
                timeline,
                start,
                end: end.lsn,
            }],
            end,
        };
        finish.write(copied.stored, &control, folder)
    }

    /// What every cluster has must have come, and nothing must be left out of what this one has.
    fn expect_all(
        &self,
        skipped: Option<String>,
        stored: &Stored,
        directories: &[String],
    ) -> Result<()> {
        const FILES: [&str; 5] = [
            "PG_VERSION",
            "global/pg_filenode.map",
            "pg_multixact/members/",
            "pg_multixact/offsets/",
            "pg_xact/",
        ];
        let has = |path: &&str| directories.iter().any(|directory| directory == path);
        let has_file = |path: &&str| stored.files.iter().any(|file| file.path.starts_with(*path));
        let folders = CONTENTS_NEEDED.iter().filter(|path| !has(path));
        let files = FILES.iter().filter(|path| !has_file(path));
        let missing = folders.chain(files).next().copied();
        match skipped.as_deref().or(missing) {
            None => Ok(()),
            Some(missing) => {
                let error = Error::server(format!(
                    "the server's base backup lacks {missing}: it leaves out what is a symbolic link"
                ));
                Err(self.lack.blamed_for(error, self.request.server))
            }
        }
    }
}
