//! What restore and archive are asked for alike: a backup, how far to go on from it, and whereto.

use std::path::{Path, PathBuf};

use clap::Args;
use jiff::tz::TimeZone;

use crate::cli::app::{App, Server};
use crate::cli::commands::repository::Reading;
use crate::cli::report::{Fields, Value, field};
use crate::error::{Error, Result};
use crate::pg::limits::Limits;
use crate::pg::timestamp;
use crate::pg::wal::CreatedTablespace;
use crate::repository::chain::Chain;
use crate::repository::identifier::Selector;
use crate::repository::roll_forward::HeldWal;
use crate::restore::databases::{Chosen, Databases};
use crate::restore::folder::real;
use crate::restore::plan::{self, Destination, Route};
use crate::restore::position::Position;
use crate::restore::recovery::Recovery;
use crate::restore::replayed::Search;
use crate::restore::restore_command::WalGet;
use crate::restore::write::limits;

/// What POSITION may be, for the help.
pub(super) const POSITION: &str = "\
POSITION is one word, a list with commas:
  current      replay all WAL that is held here
  time=TIME    stop behind all transactions that ended up to then; without a zone
               or an offset such as +01 it is in this machine's time zone
  xid=NUMBER   stop behind the end of that transaction
  lsn=LSN      stop behind the first record that begins there or above
  name=NAME    stop at that restore point
  immediate    replay the backup's own WAL only, as without a POSITION
with, behind a comma,
  inclusive=off                  stop before it: of time=, xid= and lsn=
  timeline=NUMBER|latest|current which WAL to follow; latest is the newest timeline
                                 held here that descends from the backup's
  action=pause|promote|shutdown  what the server does there; paused, it is read-only
                                 until select pg_wal_replay_resume()
or one of
  replica      a standby of the server; with timeline= it stays on that one
  primary      a primary; the default
With time=, xid=, lsn= or name=, the BACKUP newest is the newest that leads there.
A comma in a restore point's name is written \\, and a POSITION with spaces quoted.";

/// Server, backup, position and folder on the command line.
#[derive(Debug, Args)]
pub(super) struct Wanted {
    /// The server's name
    server: String,
    /// Identifier or its first digits, newest, latest or oldest
    backup: Selector,
    /// How far to replay and what to become; then the folder to write to
    #[arg(value_name = "[POSITION] DIRECTORY", num_args = 1..=2, required = true)]
    rest: Vec<String>,
    #[command(flatten)]
    repository: Reading,
}

/// What that comes to.
pub(super) struct Found {
    /// The server's configuration.
    pub(super) server: Server,
    /// The backup, and the way from there.
    pub(super) way: Way,
    /// The folder, absolute.
    pub(super) directory: PathBuf,
    /// The databases that are restored, where not all are.
    pub(super) chosen: Option<Chosen>,
}

/// A backup, and how recovery goes on from it.
pub(super) struct Way {
    /// The archived WAL, where the position asks for it and there is any.
    pub(super) held: Option<HeldWal>,
    /// The backup.
    pub(super) chain: Chain,
    /// The way from there to the position.
    pub(super) route: Route,
    /// The tablespaces that recovery creates on it.
    pub(super) created: Vec<CreatedTablespace>,
    /// What the server must know to take it.
    pub(super) recovery: Recovery,
    /// What it reads on the way, besides what is restored.
    pub(super) reads: Vec<PathBuf>,
}

impl Wanted {
    /// For the report.
    pub(super) fn request(&self) -> Fields {
        let (position, directory) = self.split();
        let mut request = vec![
            field("Backup", self.backup.to_string()),
            field("Directory", directory),
        ];
        request.extend(self.repository.request());
        request.push(field("Position", position));
        request.push(field("Server", self.server.as_str()));
        request
    }

    fn split(&self) -> (&str, &str) {
        match self.rest.as_slice() {
            [position, directory, ..] => (position, directory),
            [directory] => ("", directory),
            [] => ("", ""),
        }
    }

    /// The server with its place in the repository.
    pub(super) fn server(&self, app: &App) -> Result<Server> {
        self.repository.server(app, &self.server)
    }

    /// Finds the backup, and the way from there. Where databases are named, only they are wanted.
    pub(super) fn find(&self, app: &App, server: Server, databases: &[String]) -> Result<Found> {
        let (position, directory) = self.split();
        let position = parse_position(position)?;
        let directory = std::path::absolute(directory)
            .map_err(|error| Error::usage(format!("{directory:?} is no directory: {error}")))?;
        if !databases.is_empty() && matches!(position, Position::Replica(_)) {
            return Err(Error::usage(
                "a replica has all databases of its primary: --database does not go with it",
            ));
        }
        let repository = server.folder.root();
        if let Some(local) = repository.local()
            && real(&directory)?.starts_with(real(local)?)
        {
            return Err(Error::usage(format!(
                "{} lies in the repository {repository}, where only backups are put",
                directory.display()
            )));
        }
        let way = Way::find(app, &server, &self.backup, &position)?;
        let chosen = match databases {
            [] => None,
            names => {
                let found = way.databases(app, &server)?;
                Some(found.choose(names, &way.chain)?)
            }
        };
        Ok(Found {
            way,
            directory,
            chosen,
            server,
        })
    }
}

impl Way {
    /// Finds the backup, and the way from there.
    pub(super) fn find(
        app: &App,
        server: &Server,
        backup: &Selector,
        position: &Position,
    ) -> Result<Way> {
        let catalogue = server.catalogue()?;
        let held = if position.wants_archive() {
            HeldWal::look(&server.folder, server.keys())?
        } else {
            None
        };
        let plan = plan::plan(
            &catalogue,
            backup,
            position,
            held.as_ref(),
            &*app.progress,
            &app.interrupt,
        )?;
        let primary_conninfo = server.configuration.connection.primary_conninfo();
        let mut chain = Chain::read(&catalogue, plan.backup, &server.keys())?;
        let search = Search {
            folder: &server.folder,
            held: held.as_ref(),
            keys: &server.keys(),
            progress: &*app.progress,
            interrupt: &app.interrupt,
        };
        let replayed = search.run(&chain.newest, &plan.route)?;
        chain.leave_out_unlogged(&replayed.unlogged)?;
        let raised = match replayed.limits == Limits::default() {
            true => Vec::new(),
            false => replayed.limits.above(&limits(&chain)?),
        };
        let wal_get = wal_get(app, server)?;
        let recovery = plan.route.recovery(&wal_get, primary_conninfo, raised)?;
        let reads = match recovery.restores_wal() {
            true => {
                let archive = server.folder.wal().local().map(Path::to_owned);
                let own = [wal_get.program, wal_get.configuration];
                own.into_iter().chain(archive).collect()
            }
            false => Vec::new(),
        };
        Ok(Way {
            held,
            chain,
            created: replayed.tablespaces,
            reads,
            route: plan.route,
            recovery,
        })
    }

    /// The databases of the backup, and what becomes of them on the way.
    pub(super) fn databases(&self, app: &App, server: &Server) -> Result<Databases> {
        let search = Search {
            folder: &server.folder,
            held: self.held.as_ref(),
            keys: &server.keys(),
            progress: &*app.progress,
            interrupt: &app.interrupt,
        };
        Databases::read(&search, &self.chain, &self.route)
    }
}

/// Where recovery goes once the server is started.
pub(super) fn describe_route(route: &Route) -> Fields {
    let Route::Archive {
        timeline,
        destination,
    } = route
    else {
        return Vec::new();
    };
    let mut fields = vec![field("TargetTimeline", timeline.0)];
    if let Some(Destination {
        target,
        action,
        landing,
    }) = destination
    {
        fields.push(field("Target", target.to_string()));
        fields.extend(
            target
                .is_inclusive()
                .map(|inclusive| field("TargetInclusive", inclusive)),
        );
        fields.push(field("TargetAction", action.name()));
        fields.extend(landing.lsn.map(|lsn| field("TargetLSN", lsn)));
        let time = landing.time.map(timestamp::text);
        fields.extend(time.map(|time| field("TargetTime", time)));
    }
    fields
}

/// The tablespaces that recovery creates, by their OIDs: the WAL does not tell their names.
pub(super) fn describe_created(created: &[CreatedTablespace]) -> Fields {
    if created.is_empty() {
        return Vec::new();
    }
    let each = created.iter().map(|created| {
        Value::Map(vec![
            field("Oid", created.oid),
            field("Path", created.folder.display().to_string()),
            field("LSN", created.at),
        ])
    });
    vec![field("CreatedTablespaces", each.collect::<Vec<Value>>())]
}

/// The position that a word means; without one, the backup's own WAL.
pub(super) fn parse_position(words: &str) -> Result<Position> {
    if words.is_empty() {
        return Ok(Position::default());
    }
    let local = TimeZone::try_system().ok();
    Position::parse(words, local.as_ref())
        .map_err(|why| Error::usage(format!("the position {words:?} cannot be restored: {why}")))
}

/// How the restored server gets at the archive of this one.
fn wal_get(app: &App, server: &Server) -> Result<WalGet> {
    let program = std::env::current_exe()
        .map_err(|error| Error::failed(format!("cannot find this program's own file: {error}")))?;
    let mut environment = Vec::new();
    let configuration = match app.configuration.path() {
        Some(path) => std::path::absolute(path).map_err(|error| Error::io("find", path, &error))?,
        // Without a file all is as by default, whoever the server's user is and whatever file he has.
        None => {
            let base_dir = server.configuration.storage.base_dir.local();
            let above = base_dir.and_then(Path::parent);
            environment.extend(above.map(|above| ("XDG_DATA_HOME", above.to_owned())));
            PathBuf::from("/dev/null")
        }
    };
    if let Some(key) = &server.configuration.storage.master_key
        && key.exists()
    {
        environment.push(("PGKEEP_MASTER_KEY_FILE", key.clone()));
    }
    Ok(WalGet {
        program,
        configuration,
        environment,
        repository: server.configuration.storage.repository,
        as_of: server.as_of,
        server: server.name().to_owned(),
    })
}
