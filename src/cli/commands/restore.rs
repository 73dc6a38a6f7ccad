use std::path::PathBuf;

use clap::Args;
use jiff::tz::TimeZone;

use crate::cli::app::{App, Server};
use crate::cli::commands::describe;
use crate::cli::report::{Answer, Fields, field};
use crate::error::{Error, Result};
use crate::pg::timestamp;
use crate::repository::chain::Chain;
use crate::repository::identifier::Selector;
use crate::repository::roll_forward::HeldWal;
use crate::restore::plan::{self, Destination, Route};
use crate::restore::position::Position;
use crate::restore::restore_command::WalGet;
use crate::restore::{self, tablespaces::TablespaceMapping};

const POSITION: &str = "\
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
  replica      a standby of the server
  primary      a primary; the default
With time=, xid=, lsn= or name=, the BACKUP newest is the newest that leads there.
A comma in a restore point's name is written \\, and a POSITION with spaces quoted.";

/// Write a data directory that starts
///
/// The cluster is written to DIRECTORY/SERVER-IDENTIFIER. Started by its own version's postgres it
/// recovers to a consistent state with the WAL in the backup, or goes on from there to POSITION with the
/// archived WAL. Whether all of that is there is checked before anything is written.
#[derive(Debug, Args)]
#[command(after_help = POSITION)]
pub(crate) struct Restore {
    /// The server's name
    server: String,
    /// Identifier or its first digits, newest, latest or oldest
    backup: Selector,
    /// How far to replay and what to become; then the folder to write to
    #[arg(value_name = "[POSITION] DIRECTORY", num_args = 1..=2, required = true)]
    rest: Vec<String>,
    /// Put a tablespace, named by path, OID or name, into another folder
    #[arg(long, value_name = "OLD=NEW")]
    tablespace: Vec<TablespaceMapping>,
    /// Replace what is in the target
    #[arg(long)]
    force: bool,
}

impl Restore {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let (position, directory) = self.split();
        vec![
            field("Backup", self.backup.to_string()),
            field("Directory", directory),
            field("Position", position),
            field("Server", self.server.as_str()),
        ]
    }

    fn split(&self) -> (&str, &str) {
        match self.rest.as_slice() {
            [position, directory, ..] => (position, directory),
            [directory] => ("", directory),
            [] => ("", ""),
        }
    }

    /// Restores it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let (position, directory) = self.split();
        let position = match position {
            "" => Position::default(),
            words => {
                let local = TimeZone::try_system().ok();
                Position::parse(words, local.as_ref()).map_err(|why| {
                    Error::usage(format!("the position {words:?} cannot be restored: {why}"))
                })?
            }
        };
        let directory = std::path::absolute(PathBuf::from(directory))
            .map_err(|error| Error::usage(format!("{directory:?} is no directory: {error}")))?;
        let server = app.server(&self.server)?;
        let catalogue = server.catalogue()?;
        let held = if position.wants_archive() {
            HeldWal::look(&server.folder, server.keys())?
        } else {
            None
        };
        let plan = plan::plan(
            &catalogue,
            &self.backup,
            &position,
            held.as_ref(),
            &*app.progress,
            &app.interrupt,
        )?;
        let primary_conninfo = server.configuration.connection.primary_conninfo();
        let chain = Chain::read(&catalogue, plan.backup, &server.keys())?;
        let request = restore::Request {
            chain: &chain,
            directory,
            recovery: plan
                .route
                .recovery(&wal_get(app, &server)?, primary_conninfo)?,
            mappings: &self.tablespace,
            force: self.force,
            workers: server.workers,
        };
        let root = restore::run(&request, &*app.progress, &app.interrupt)?;
        let mut response = describe::summary(&chain.newest.info);
        response.push(field("Directory", root.display().to_string()));
        response.extend(describe_route(&plan.route));
        Ok(Answer::success(response))
    }
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
            let above = server.configuration.base_dir.parent();
            environment.extend(above.map(|above| ("XDG_DATA_HOME", above.to_owned())));
            PathBuf::from("/dev/null")
        }
    };
    if let Some(key) = &server.configuration.master_key
        && key.exists()
    {
        environment.push(("PGKEEP_MASTER_KEY_FILE", key.clone()));
    }
    Ok(WalGet {
        program,
        configuration,
        environment,
        server: server.name().to_owned(),
    })
}

/// Where recovery goes once the server is started.
fn describe_route(route: &Route) -> Fields {
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
