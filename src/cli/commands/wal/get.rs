use std::path::PathBuf;

use clap::Args;

use crate::cli::app::App;
use crate::cli::commands::repository::Reading;
use crate::cli::report::{Answer, Fields, field};
use crate::error::{Error, Result};
use crate::pg::wal_file::WalFileName;
use crate::repository::wal_archive::WalArchive;
use crate::wal::get;

const EXIT_STATUS: &str = "\
Exit status:
    0  the file is at its path
    1  the archive does not hold that file
  126  anything else, so that recovery stops and does not take it for the end of the WAL";

/// Hand out one archived file, for restore_command
///
/// In postgresql.conf: restore_command = 'pgkeep wal get SERVER %f %p'. Needs no connection. Prints
/// nothing when all is well.
#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub(crate) struct Get {
    /// The server's name
    pub(super) server: String,
    /// The file, which the server gives as %f
    #[arg(value_parser = wal_file_name)]
    name: WalFileName,
    /// Where to put it, which the server gives as %p
    path: PathBuf,
    /// Where a segment is not held, take what is held of it unfinished, to recover as far as there is WAL
    #[arg(long)]
    partial: bool,
    #[command(flatten)]
    repository: Reading,
}

fn wal_file_name(name: &str) -> std::result::Result<WalFileName, String> {
    WalFileName::parse(name).ok_or_else(|| "no file of the WAL has such a name".to_owned())
}

impl Get {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let mut request = self.repository.request();
        request.extend([
            field("Path", self.path.display().to_string()),
            field("Server", self.server.as_str()),
            field("WAL", self.name.as_str()),
        ]);
        request
    }

    /// Hands it out.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let storage = app.configuration.storage(&self.server)?;
        let storage = storage.at(self.repository.name())?;
        let folder = self.repository.moment().of(app.folder(&storage)?)?;
        let archive = WalArchive::open(&folder, storage.keys())?.ok_or_else(|| {
            Error::failed(format!("there is no WAL archive in {}", folder.wal()))
                .hint("is the disk mounted? pgkeep wal push and wal copy create the archive")
        })?;
        let request = get::Request {
            name: &self.name,
            target: &self.path,
            accepts_partial: self.partial,
        };
        let answer = get::run(&archive, &request)?;
        if answer == (get::Answer::NotHeld { is_gap: true }) {
            log::warn!(
                "{} is missing in the archive, which has later segments: pgkeep wal list {} shows all gaps",
                self.name,
                self.server
            );
        }
        let is_held = answer == get::Answer::Delivered;
        Ok(Answer {
            response: vec![
                field("Server", self.server.as_str()),
                field("Held", is_held),
            ],
            // The server logs what this prints.
            plain: Some(String::new()),
            error: (!is_held)
                .then(|| Error::absent(format!("the archive does not hold {}", self.name))),
        })
    }
}
