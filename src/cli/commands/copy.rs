use std::fmt;
use std::num::NonZero;
use std::str::FromStr;

use clap::Args;

use crate::cli::app::{App, Server};
use crate::cli::commands::repository::Reading;
use crate::cli::recording::Subject;
use crate::cli::report::{Answer, Fields, Value, field};
use crate::config::RepositoryName;
use crate::error::{Error, Kind, Result};
use crate::repository::identifier::{Identifier, Selector};
use crate::transfer::{self, Side, Transferred, Wanted};

/// Copy backups and WAL into another repository
///
/// Copies a backup with all that it is an increment of, or all valid ones, as they are stored, and then the archived WAL and
/// block maps from the first backup there on: what is there already stays as it is. Each file is compared with the backup's
/// own checksums as it passes. A run that was killed is gone on with by the next one.
#[derive(Debug, Args)]
pub(crate) struct Copy {
    /// The server's name
    server: String,
    /// Identifier or its first digits, newest, latest or oldest; or all
    #[arg(value_name = "BACKUP|all")]
    backup: Which,
    /// The repository to copy into, such as repo2
    #[arg(long, value_name = "REPOSITORY")]
    to: RepositoryName,
    #[command(flatten)]
    repository: Reading,
    /// Leave out archived WAL and block maps
    #[arg(long)]
    no_wal: bool,
}

/// One backup, or all.
#[derive(Debug, Clone)]
struct Which(Wanted);

impl FromStr for Which {
    type Err = String;

    fn from_str(word: &str) -> Result<Which, String> {
        match word {
            "all" => Ok(Which(Wanted::All)),
            word => word.parse().map(|one: Selector| Which(Wanted::One(one))),
        }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Wanted::All => f.write_str("all"),
            Wanted::One(selector) => selector.fmt(f),
        }
    }
}

impl Copy {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let mut request = self.repository.moment().request();
        request.extend([
            field("Backup", self.backup.to_string()),
            field("From", self.repository.name().to_string()),
            field("Server", self.server.as_str()),
            field("To", self.to.to_string()),
            field("WAL", !self.no_wal),
        ]);
        request
    }

    /// Copies.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let is_past = self.repository.moment().as_of().is_some();
        if self.to == self.repository.name() && !is_past {
            return Err(
                Error::usage(format!("{} cannot be copied to itself", self.to))
                    .hint("name another repository by --to, or by --from"),
            );
        }
        let source = self.repository.server(app, &self.server)?;
        let target = app.server_at(&self.server, self.to)?;
        // It is the other repository that has changed then.
        app.recorded(&target.folder, "copy", |subject| {
            self.copy(app, &source, &target, subject)
        })
    }

    fn copy(
        &self,
        app: &App,
        source: &Server,
        target: &Server,
        subject: &Subject,
    ) -> Result<Answer> {
        let request = transfer::Request {
            server: source.name(),
            source: Side {
                name: self.repository.name(),
                folder: &source.folder,
            },
            target: Side {
                name: self.to,
                folder: &target.folder,
            },
            wanted: &self.backup.0,
            wal: !self.no_wal,
            keys: &source.keys(),
            max_rate: source.configuration.max_rate.map(NonZero::get),
            workers: source.readers.max(target.readers),
        };
        let transferred = transfer::run(&request, &*app.progress, &app.interrupt)?;
        if let Wanted::One(_) = self.backup.0 {
            let copied = transferred.backups.iter().chain(&transferred.present);
            subject.set(copied.max().copied());
        }
        Ok(Answer {
            response: self.describe(&transferred),
            error: worst(transferred.failed),
            plain: None,
        })
    }

    fn describe(&self, transferred: &Transferred) -> Fields {
        let list = |backups: &[Identifier]| -> Vec<Value> {
            backups.iter().map(|backup| Value::from(*backup)).collect()
        };
        let failed = transferred.failed.iter().map(|(backup, error)| {
            Value::Map(vec![
                field("Backup", *backup),
                field("Error", error.message()),
            ])
        });
        vec![
            field("Server", self.server.as_str()),
            field("Backups", list(&transferred.backups)),
            field("Present", list(&transferred.present)),
            field("Failed", failed.collect::<Vec<Value>>()),
            field("Size", Value::Size(transferred.bytes)),
            field("WAL", transferred.wal),
            field("BlockMaps", transferred.block_maps),
        ]
    }
}

/// Damage outweighs whatever else kept a backup from being copied.
fn worst(failed: Vec<(Identifier, Error)>) -> Option<Error> {
    let errors = failed.into_iter().map(|(_, error)| error);
    errors.min_by_key(|error| error.kind() != Kind::Damage)
}
