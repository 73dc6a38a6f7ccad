use clap::Args;

use crate::cli::app::App;
use crate::cli::commands::archiving::{Archiving, describe_archiving};
use crate::cli::commands::describe;
use crate::cli::commands::wanted::{POSITION, Wanted, describe_created, describe_route};
use crate::cli::report::{Answer, Fields, field};
use crate::error::Result;
use crate::restore::{self, Target, tablespaces::TablespaceMapping};

/// Write a data directory that starts
///
/// The cluster is written to DIRECTORY/SERVER-IDENTIFIER. Started by its own version's postgres it
/// recovers to a consistent state with the WAL in the backup, or goes on from there to POSITION with the
/// archived WAL. Whether all of that is there is checked before anything is written.
#[derive(Debug, Args)]
#[command(after_help = POSITION)]
pub(crate) struct Restore {
    #[command(flatten)]
    wanted: Wanted,
    /// Put a tablespace, named by path, OID or name, into another folder
    #[arg(long, value_name = "OLD=NEW")]
    tablespace: Vec<TablespaceMapping>,
    #[command(flatten)]
    archiving: Archiving,
    /// Replace what is in the target
    #[arg(long)]
    force: bool,
}

impl Restore {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        self.wanted.request()
    }

    /// Restores it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let found = self.wanted.find(app)?;
        let request = restore::Request {
            chain: &found.chain,
            target: Target::Named(found.directory),
            source_settings: self.archiving.source_settings(&found.recovery),
            recovery: found.recovery,
            mappings: &self.tablespace,
            created: &found.created,
            reads: &found.reads,
            force: self.force,
            workers: found.server.readers,
        };
        let root = restore::run(&request, &*app.progress, &app.interrupt)?;
        let mut response = describe::summary(&found.chain.newest.info);
        response.push(field("Directory", root.display().to_string()));
        response.push(describe_archiving(request.source_settings));
        response.extend(describe_route(&found.route));
        response.extend(describe_created(&found.created));
        Ok(Answer::success(response))
    }
}
