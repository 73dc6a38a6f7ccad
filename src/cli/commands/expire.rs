use clap::Args;
use jiff::Timestamp;

use crate::cli::app::{App, Server};
use crate::cli::commands::repository::Repository;
use crate::cli::many::{Chosen, Servers};
use crate::cli::report::{Answer, Fields, Value, field};
use crate::error::Result;
use crate::lifecycle::expire;
use crate::repository::identifier::Identifier;
use crate::storage::Place;

/// Remove the backups that retention does not keep, and the WAL no backup needs
///
/// Retention keeps all backups of some days, and beyond these one a week, month and year. What a backup that stays is an
/// increment of stays with it, and so do kept backups and the newest valid one. Archived WAL and block maps go up to
/// where the first backup that stays begins. While any backup cannot be read, nothing goes.
#[derive(Debug, Args)]
pub(crate) struct Expire {
    #[command(flatten)]
    servers: Servers,
    /// Only tell what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    repository: Repository,
}

impl Expire {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let mut request = vec![field("DryRun", self.dry_run)];
        request.extend(self.repository.request());
        request.extend(self.servers.request());
        request
    }

    /// Removes it, or tells what would be.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let name = match self.servers.chosen(app)? {
            Chosen::Several(names) => return self.servers.run(app, &names),
            Chosen::One(name) => name,
        };
        let server = self.repository.server(app, &name)?;
        match self.dry_run {
            true => self.expire(app, &server),
            false => app.recorded(&server.folder, "expire", |_| self.expire(app, &server)),
        }
    }

    fn expire(&self, app: &App, server: &Server) -> Result<Answer> {
        let retention = server.configuration.retention;
        let request = expire::Request {
            server: server.name(),
            folder: &server.folder,
            retention: &retention,
            keys: &server.keys(),
        };
        let now = Timestamp::now();
        let expired = if self.dry_run {
            expire::plan(&request, now)?
        } else {
            expire::run(&request, now, &*app.progress, &app.interrupt)?
        };
        let response = vec![
            field("Server", server.name()),
            field("Retention", retention.to_string()),
            field("DryRun", self.dry_run),
            field("Backups", identifiers(&expired.backups)),
            field("WAL", names(&expired.wal)),
            field("BlockMaps", names(&expired.block_maps)),
            field(
                "Retained",
                vec![
                    field("Backups", identifiers(&expired.retained.backups)),
                    field("WAL", expired.retained.has_wal),
                ],
            ),
            field("Unreadable", identifiers(&expired.unreadable)),
        ];
        Ok(Answer {
            response,
            error: expired.hindrance,
            plain: None,
        })
    }
}

fn identifiers(backups: &[Identifier]) -> Vec<Value> {
    backups.iter().map(|backup| Value::from(*backup)).collect()
}

fn names(files: &[Place]) -> Vec<Value> {
    files.iter().map(|file| Value::from(file.name())).collect()
}
