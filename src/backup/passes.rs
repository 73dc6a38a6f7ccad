//! A backup in passes, of which the first is enough where the server does nothing meanwhile that cannot be replayed.

use std::time::Instant;

use crate::backup::connected::{Connected, Met, again, expect_the_same};
use crate::backup::finish::milliseconds;
use crate::backup::hazards::Hazard;
use crate::backup::layers::{Layers, Whose};
use crate::backup::parent::Parent;
use crate::backup::pass::{Base, Broken, Left, Pass};
use crate::backup::reserved::ReservedWal;
use crate::backup::resume::Takeover;
use crate::backup::{Request, open_parent};
use crate::config::Source;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::lsn::Lsn;
use crate::progress::Progress;
use crate::repository::backup_info::BackupInfo;
use crate::repository::identifier::Identifier;
use crate::repository::layout::BackupFolder;
use crate::repository::staging::Staging;
use crate::server::connect::Connector;
use crate::server::facts::Facts;
use crate::server::quiet::Quiet;
use crate::server::session::Checkpoint;
use crate::server::{self, Instance};

/// A backup that is being made.
pub(super) struct Passes<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) connector: &'a Connector,
    pub(super) progress: &'a dyn Progress,
    pub(super) interrupt: &'a Interrupt,
    pub(super) identifier: Identifier,
    pub(super) began: Instant,
    pub(super) staging: Staging,
    pub(super) layers: Layers,
    /// The WAL since the first pass began, or since the sessions were lost last.
    pub(super) reserved: Option<ReservedWal>,
    /// The last thing in the WAL that must not be replayed.
    pub(super) hazard: Option<Lsn>,
    /// How many passes in a row read everything, and met such a thing.
    pub(super) unquiet: u32,
    /// How many passes in a row were broken off that could stream.
    pub(super) lost_streams: u32,
    /// How many passes read anything.
    pub(super) made: u32,
    /// The number of the last pass; one that read nothing has one too.
    pub(super) number: u32,
    /// Whether it stands on what another backup left: that stays until this one is made.
    pub(super) stands_on_another: bool,
}

/// After so many passes none is made any more: what is in their way does not end.
const MOST_PASSES: u32 = 30;

/// After so many, whoever is in their way is held up for the time of one.
const UNQUIET_PASSES: u32 = 4;

/// After so many, something may end all streams, and files are asked for by SQL.
const MOST_STREAMS: u32 = 3;

/// How many of the things are told that one pass met.
const TOLD_HAZARDS: usize = 5;

impl<'a> Passes<'a> {
    /// Takes over the passes of a backup that died, as far as they are of use.
    fn take_over(&mut self, left: Identifier, facts: &Facts) -> Result<()> {
        let takeover = Takeover {
            whose: self.whose(),
            facts,
            progress: self.progress,
            interrupt: self.interrupt,
        };
        self.stands_on_another = true;
        self.layers = takeover.run(&self.staging)?;
        match self.layers.is_empty() {
            true => {
                log::info!("backup {left} died before it had stored anything that is of use now")
            }
            false => log::info!("taking over what backup {left} had stored when it died"),
        }
        self.stands_on_another = !self.layers.is_empty();
        self.made = self.layers.len() as u32;
        self.number = self
            .staging
            .parts()?
            .last()
            .map_or(0, |(number, _)| *number);
        Ok(())
    }

    /// Makes one pass after the other until one of them ends as a backup does, on top of what one left that died.
    pub(super) fn run(
        mut self,
        connected: Connected,
        left: Option<Identifier>,
    ) -> Result<BackupInfo> {
        let taken = left.map_or(Ok(()), |left| self.take_over(left, &connected.facts));
        match taken.and_then(|()| self.make(connected)) {
            Ok(folder) => self.publish(&folder),
            Err(error) => {
                let is_full = self.request.parent.is_none();
                let is_cut_off = self.interrupt.leaves() || error.is_momentary();
                if self.stands_on_another || is_full && is_cut_off {
                    self.staging.leave();
                }
                Err(error)
            }
        }
    }

    /// Gives the folder of what is whole then.
    fn make(&mut self, mut connected: Connected) -> Result<BackupFolder> {
        for attempt in 1.. {
            self.number += 1;
            let folder = self.staging.part(&self.number.to_string())?;
            let facts = connected.facts.clone();
            let is_streamed = connected.source == Source::Stream;
            let broken = match self.pass(connected, attempt == 1, &folder) {
                Ok(_) => return self.together(folder),
                Err(broken) => broken,
            };
            self.interrupt.check()?;
            if is_streamed {
                self.lost_streams = match broken.hazard {
                    None => self.lost_streams + 1,
                    Some(_) => 0,
                };
                if self.lost_streams == MOST_STREAMS {
                    log::warn!(
                        "files are read by SQL now: {MOST_STREAMS} passes in a row were broken off"
                    );
                }
            }
            let error = self.learn(broken, &facts, folder)?;
            if attempt == MOST_PASSES {
                return Err(error.context(format!("given up after {attempt} passes")));
            }
            connected = self.reconnect()?;
            expect_the_same(&facts, &connected.facts)?;
        }
        Err(Error::failed("no pass was made"))
    }

    fn pass(
        &mut self,
        connected: Connected,
        is_first: bool,
        folder: &BackupFolder,
    ) -> Result<BackupInfo, Broken> {
        let base = self.base(&connected.facts)?;
        let Connected {
            sessions,
            instance,
            facts,
            source,
        } = connected;
        let pass = Pass {
            request: self.request,
            facts: &facts,
            source,
            identifier: self.identifier,
            began: self.began,
            folder,
            // Whoever has time for the first pass wants the others to be short.
            checkpoint: match is_first {
                true => self.request.checkpoint,
                false => Checkpoint::Fast,
            },
            hazard: self.hazard,
            progress: &Numbered {
                number: self.number,
                progress: self.progress,
            },
            interrupt: self.interrupt,
        };
        let quiet = match self.unquiet >= UNQUIET_PASSES && !facts.in_recovery {
            true => self.quiet(&instance)?,
            false => None,
        };
        pass.run(sessions, &mut self.reserved, quiet, base)
    }

    /// Holds up those whose work has been in the way of all passes, for the time of one that is short by now.
    fn quiet(&self, instance: &Instance) -> Result<Option<Quiet>> {
        let mut session = server::connect(self.connector, self.interrupt)?;
        server::check_instance(&mut session, instance)?;
        let quiet = Quiet::take(session)?;
        match quiet {
            Some(_) => log::info!(
                "databases and tablespaces cannot be created, moved or dropped during this pass"
            ),
            None => log::info!(
                "this role may not lock pg_database and pg_tablespace, which would let this pass be the last one"
            ),
        }
        Ok(quiet)
    }

    fn base(&self, facts: &Facts) -> Result<Base<'a>, Broken> {
        let lost = |error| Broken {
            is_base_lost: true,
            ..Broken::from(error)
        };
        if let Some(layer) = self.layers.top(self.request, facts).map_err(lost)? {
            return Ok(Base::Layer(layer));
        }
        let Some(wanted) = &self.request.parent else {
            return Ok(Base::Nothing);
        };
        let parent = wanted.unless_full(open_parent(self.request, wanted, facts))?;
        Ok(parent.map_or(Base::Nothing, |parent| Base::Backup(parent, wanted)))
    }

    /// Keeps what a pass left that is no backup, and gives why it is none; or fails where another one would not end otherwise.
    fn learn(&mut self, broken: Broken, facts: &Facts, folder: BackupFolder) -> Result<Error> {
        let Broken {
            error,
            left,
            hazard,
            is_base_lost,
        } = broken;
        if is_base_lost {
            log::warn!("starting anew: {}", error.message());
            self.layers.clear()?;
            self.stands_on_another = false;
            folder.place().remove_folder()?;
            return Ok(error);
        }
        if !error.is_momentary() {
            return Err(error);
        }
        match hazard {
            Some(hazard) => {
                tell(self.number, &hazard);
                self.hazard = self.hazard.max(Some(hazard.at));
                self.unquiet += 1;
            }
            None => {
                let message = error.message();
                log::warn!("pass {} was broken off: {message}", self.number);
                self.unquiet = 0;
            }
        }
        match left.filter(|left| left.is_of_use()) {
            Some(left) => {
                self.made += 1;
                self.keep(*left, facts, folder)?;
            }
            None => folder.place().remove_folder()?,
        }
        Ok(error)
    }

    fn keep(&mut self, left: Left, facts: &Facts, folder: BackupFolder) -> Result<()> {
        let base: Option<Parent> = match (left.is_complete, &left.increment, &self.request.parent) {
            (true, ..) | (_, None, _) => None,
            (false, Some(_), wanted) => match (self.layers.top(self.request, facts)?, wanted) {
                (None, Some(wanted)) => Some(open_parent(self.request, wanted, facts)?),
                (layer, _) => layer,
            },
        };
        self.layers.push(self.whose(), facts, folder, left, base)
    }

    fn whose(&self) -> Whose<'a> {
        Whose {
            request: self.request,
            identifier: self.identifier,
            began: self.began,
        }
    }

    fn reconnect(&self) -> Result<Connected> {
        let mut request = self.request.clone();
        if self.lost_streams >= MOST_STREAMS {
            request.source = Some(Source::Sql);
        }
        again(self.progress, self.interrupt, || {
            let met = Met::meet(self.connector, self.interrupt)?;
            Connected::open(&request, met, self.connector, self.interrupt)
        })
    }

    /// Puts all passes together, the last of which lies in a folder.
    fn together(&mut self, last: BackupFolder) -> Result<BackupFolder> {
        if self.layers.is_empty() {
            return Ok(last);
        }
        self.layers.merge(
            last,
            &self.staging,
            self.request,
            self.progress,
            self.interrupt,
        )
    }

    /// Makes the backup of what is whole in a folder.
    fn publish(self, folder: &BackupFolder) -> Result<BackupInfo> {
        let mut info = BackupInfo::read(folder)?;
        if self.made > 0 {
            info.passes = self.made + 1;
            info.elapsed = milliseconds(self.began);
            info.write(folder)?;
        }
        self.staging.publish(folder)?;
        Ok(info)
    }
}

fn tell(number: u32, hazard: &Hazard) {
    for met in hazard.met.iter().take(TOLD_HAZARDS) {
        log::info!("during pass {number}, {met}");
    }
    if let Some(more) = hazard
        .met
        .len()
        .checked_sub(TOLD_HAZARDS)
        .filter(|more| *more > 0)
    {
        log::info!("and {more} more of that kind");
    }
    log::info!("another pass reads what changed since pass {number} began");
}

/// Tells which pass a step is of, from the second one on.
struct Numbered<'a> {
    number: u32,
    progress: &'a dyn Progress,
}

impl Progress for Numbered<'_> {
    fn step(&self, name: &str, bytes: Option<u64>) {
        match self.number {
            1 => self.progress.step(name, bytes),
            number => self.progress.step(&format!("pass {number}: {name}"), bytes),
        }
    }

    fn advance(&self, bytes: u64) {
        self.progress.advance(bytes);
    }
}
