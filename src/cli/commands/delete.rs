use clap::Args;

use crate::cli::app::{App, Server};
use crate::cli::commands::repository::Repository;
use crate::cli::recording::Subject;
use crate::cli::report::{Answer, Fields, Value, field};
use crate::error::Result;
use crate::lifecycle::delete;
use crate::repository::identifier::{Identifier, Selector};

/// Delete a backup
///
/// Backups that are increments of it are first made to stand without it: the child of a full backup becomes full.
/// A kept backup, and the last valid one, are deleted with --force only, and so is any while another one cannot be read.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The server's name
    server: String,
    /// Identifier or its first digits, newest, latest or oldest
    backup: Selector,
    /// Delete it though it is kept, the last valid one, needed by damaged ones, or others cannot be read
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    repository: Repository,
}

impl Delete {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let mut request = vec![
            field("Backup", self.backup.to_string()),
            field("Force", self.force),
        ];
        request.extend(self.repository.request());
        request.push(field("Server", self.server.as_str()));
        request
    }

    /// Deletes it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let server = self.repository.server(app, &self.server)?;
        app.recorded(&server.folder, "delete", |subject| {
            self.delete(app, &server, subject)
        })
    }

    fn delete(&self, app: &App, server: &Server, subject: &Subject) -> Result<Answer> {
        let request = delete::Request {
            server: server.name(),
            folder: &server.folder,
            backup: &self.backup,
            keys: &server.keys(),
            force: self.force,
            workers: server.readers,
        };
        let deleted = delete::run(&request, &*app.progress, &app.interrupt)?;
        subject.set(Some(deleted.backup));
        let list = |backups: Vec<Identifier>| backups.into_iter().map(Value::from).collect();
        let merged: Vec<Value> = list(deleted.merged);
        let broken: Vec<Value> = list(deleted.broken);
        Ok(Answer::success(vec![
            field("Backup", deleted.backup),
            field("Server", server.name()),
            field("Merged", merged),
            field("Broken", broken),
        ]))
    }
}
