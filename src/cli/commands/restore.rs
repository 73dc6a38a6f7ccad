use std::path::PathBuf;

use clap::Args;

use crate::cli::app::App;
use crate::cli::commands::describe;
use crate::cli::report::{Answer, Fields, field};
use crate::error::{Error, Result};
use crate::repository::chain::Chain;
use crate::repository::identifier::Selector;
use crate::restore::{self, position::Position, tablespaces::TablespaceMapping};

/// Write a data directory that starts
///
/// The cluster is written to DIRECTORY/SERVER-IDENTIFIER. Started by its own version's postgres it
/// recovers to a consistent state with the WAL in the backup.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The server's name
    server: String,
    /// Identifier or its first digits, newest, latest or oldest
    backup: Selector,
    /// POSITION (primary or replica), then DIRECTORY
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
            words => words.parse().map_err(|why| {
                Error::usage(format!("the position {words:?} cannot be restored: {why}"))
            })?,
        };
        let directory = std::path::absolute(PathBuf::from(directory))
            .map_err(|error| Error::usage(format!("{directory:?} is no directory: {error}")))?;
        let server = app.server(&self.server)?;
        let catalogue = server.catalogue()?;
        let backup = catalogue.select(&self.backup)?;
        let chain = Chain::read(&catalogue, backup, &server.keys())?;
        let request = restore::Request {
            chain: &chain,
            directory,
            position,
            mappings: &self.tablespace,
            force: self.force,
            primary_conninfo: server.configuration.connection.primary_conninfo(),
            workers: server.workers,
        };
        let root = restore::run(&request, &*app.progress, &app.interrupt)?;
        let mut response = describe::summary(&chain.newest.info);
        response.push(field("Directory", root.display().to_string()));
        Ok(Answer::success(response))
    }
}
