use clap::Args;

use crate::cli::app::App;
use crate::cli::commands::describe;
use crate::cli::commands::repository::Repository;
use crate::cli::report::{Answer, Fields, Value, field};
use crate::error::Result;
use crate::lifecycle::retain::{self, Reach};
use crate::repository::identifier::Selector;

/// Keep a backup from retention
///
/// A kept backup is not removed by expire, whatever its age, nor by delete without --force.
#[derive(Debug, Args)]
pub(crate) struct Retain {
    #[command(flatten)]
    which: Which,
}

/// Give a backup back to retention
#[derive(Debug, Args)]
pub(crate) struct Expunge {
    #[command(flatten)]
    which: Which,
}

/// The backups that are meant.
#[derive(Debug, Args)]
struct Which {
    /// The server's name
    server: String,
    /// Identifier or its first digits, newest, latest or oldest
    backup: Selector,
    /// Take along all that it is an increment of, down to the full backup
    #[arg(long)]
    cascade: bool,
    #[command(flatten)]
    repository: Repository,
}

impl Retain {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        self.which.request()
    }

    /// Keeps it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        self.which.keep(app, true)
    }
}

impl Expunge {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        self.which.request()
    }

    /// Gives it back.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        self.which.keep(app, false)
    }
}

impl Which {
    fn request(&self) -> Fields {
        let mut request = vec![
            field("Backup", self.backup.to_string()),
            field("Cascade", self.cascade),
        ];
        request.extend(self.repository.request());
        request.push(field("Server", self.server.as_str()));
        request
    }

    fn keep(&self, app: &App, keep: bool) -> Result<Answer> {
        let server = self.repository.server(app, &self.server)?;
        let reach = if self.cascade {
            Reach::Ancestors
        } else {
            Reach::One
        };
        let identifier = server.catalogue()?.select(&self.backup)?.identifier;
        let changed = retain::keep(&server.folder, identifier, keep, reach, &app.interrupt)?;
        let backups: Vec<Value> = changed.into_iter().map(Value::from).collect();
        let catalogue = server.catalogue()?;
        let mut response = describe::listed(&catalogue, catalogue.find(identifier)?);
        response.push(field("Backups", backups));
        response.push(field("Cascade", self.cascade));
        Ok(Answer::success(response))
    }
}
