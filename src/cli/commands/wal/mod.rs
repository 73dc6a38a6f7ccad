//! `wal` and what comes behind it.

pub(crate) mod get;
pub(crate) mod push;

use clap::{Args, Subcommand};

use crate::cli::app::App;
use crate::cli::report::{Answer, Fields};
use crate::error::Result;

/// Archive WAL, and hand it out again
#[derive(Debug, Args)]
pub(crate) struct Wal {
    #[command(subcommand)]
    action: Action,
}

/// What to do with WAL.
#[derive(Debug, Subcommand)]
enum Action {
    Push(push::Push),
    Get(get::Get),
}

impl Wal {
    /// The whole name on the command line.
    pub(crate) fn name(&self) -> &'static str {
        match &self.action {
            Action::Push(_) => "wal push",
            Action::Get(_) => "wal get",
        }
    }

    /// Whether it is `wal get`, whose exit status PostgreSQL reads in its own way.
    pub(crate) fn is_get(&self) -> bool {
        matches!(self.action, Action::Get(_))
    }

    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        match &self.action {
            Action::Push(push) => push.request(),
            Action::Get(get) => get.request(),
        }
    }

    /// Does it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        match &self.action {
            Action::Push(push) => push.run(app),
            Action::Get(get) => get.run(app),
        }
    }
}
