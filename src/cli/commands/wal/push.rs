use std::path::PathBuf;

use clap::Args;

use crate::cli::app::App;
use crate::cli::report::{Answer, Fields, field};
use crate::error::Result;
use crate::repository::wal_archive::Stored;
use crate::wal::push;

/// Archive one file, for archive_command
///
/// In postgresql.conf: archive_command = 'pgkeep wal push SERVER %p'. Needs no connection. Returns
/// only once the file is checked and on disk. A file that is archived already is fine, one with
/// other content under the same name an error. Prints nothing when all is well.
#[derive(Debug, Args)]
pub(crate) struct Push {
    /// The server's name
    pub(super) server: String,
    /// The file, which the server gives as %p
    path: PathBuf,
}

impl Push {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        vec![
            field("Path", self.path.display().to_string()),
            field("Server", self.server.as_str()),
        ]
    }

    /// Archives it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let storage = app.configuration.storage(&self.server)?;
        let request = push::Request {
            server: &self.server,
            folder: &app.folder(&storage)?,
            path: &self.path,
            coding: &storage.coding()?,
            keys: storage.keys(),
        };
        let stored = push::run(&request, &app.interrupt)?;
        let file = self.path.file_name().unwrap_or_default();
        Ok(Answer {
            response: vec![
                field("Server", self.server.as_str()),
                field("WAL", file.to_string_lossy().into_owned()),
                field("Already", stored == Stored::Already),
            ],
            // The server logs what this prints.
            plain: Some(String::new()),
            ..Answer::default()
        })
    }
}
