//! `wal` and what comes behind it.

pub(crate) mod copy;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod push;
pub(crate) mod show;

use clap::{Args, Subcommand};

use crate::cli::app::App;
use crate::cli::report::{Answer, Fields, Value, field};
use crate::error::Result;
use crate::wal::gap::NamedGap;

/// Archive WAL, and hand it out again
#[derive(Debug, Args)]
pub(crate) struct Wal {
    #[command(subcommand)]
    action: Action,
}

/// What to do with WAL.
#[derive(Debug, Subcommand)]
enum Action {
    Copy(copy::Copy),
    Push(push::Push),
    Get(get::Get),
    List(list::List),
    Show(show::Show),
}

impl Wal {
    /// The whole name on the command line.
    pub(crate) fn name(&self) -> &'static str {
        match &self.action {
            Action::Copy(_) => "wal copy",
            Action::Push(_) => "wal push",
            Action::Get(_) => "wal get",
            Action::List(_) => "wal list",
            Action::Show(_) => "wal show",
        }
    }

    /// Whether it is `wal get`, whose exit status PostgreSQL reads in its own way.
    pub(crate) fn is_get(&self) -> bool {
        matches!(self.action, Action::Get(_))
    }

    /// The server whose WAL it archives or hands out, while a server waits for it: `wal push` and `wal get`.
    pub(crate) fn serves(&self) -> Option<&str> {
        match &self.action {
            Action::Push(push) => Some(&push.server),
            Action::Get(get) => Some(&get.server),
            Action::Copy(_) | Action::List(_) | Action::Show(_) => None,
        }
    }

    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        match &self.action {
            Action::Copy(copy) => copy.request(),
            Action::Push(push) => push.request(),
            Action::Get(get) => get.request(),
            Action::List(list) => list.request(),
            Action::Show(show) => show.request(),
        }
    }

    /// Does it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        match &self.action {
            Action::Copy(copy) => copy.run(app),
            Action::Push(push) => push.run(app),
            Action::Get(get) => get.run(app),
            Action::List(list) => list.run(app),
            Action::Show(show) => show.run(app),
        }
    }
}

fn gaps(gaps: &[NamedGap]) -> Vec<Value> {
    gaps.iter()
        .map(|gap| {
            Value::Map(vec![
                field("First", gap.first.as_str()),
                field("Last", gap.last.as_str()),
                field("Segments", gap.segments),
            ])
        })
        .collect()
}
