use clap::{Args, ValueEnum};

use crate::cli::app::App;
use crate::cli::commands::describe;
use crate::cli::commands::repository::Reading;
use crate::cli::report::{Answer, Fields, Value, field};
use crate::error::Result;

/// List all backups of a server
///
/// Lists every finished backup, those that cannot be used marked with Valid: no.
#[derive(Debug, Args)]
pub(crate) struct ListBackup {
    /// The server's name
    server: String,
    /// Oldest or newest first
    #[arg(long, value_enum, default_value_t = Sort::Asc)]
    sort: Sort,
    #[command(flatten)]
    repository: Reading,
}

/// The order of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// Oldest first.
    Asc,
    /// Newest first.
    Desc,
}

impl ListBackup {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let mut request = self.repository.request();
        request.push(field("Server", self.server.as_str()));
        request
    }

    /// Lists the backups.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let server = self.repository.server(app, &self.server)?;
        let catalogue = server.catalogue()?;
        let mut backups: Vec<Value> = catalogue
            .backups()
            .iter()
            .map(|backup| describe::listed(&catalogue, backup).into())
            .collect();
        if self.sort == Sort::Desc {
            backups.reverse();
        }
        let newest = catalogue
            .backups()
            .iter()
            .rev()
            .find_map(|backup| catalogue.check(backup).ok());
        let mut response = vec![field("Backups", backups)];
        if let Some(info) = newest {
            response.push(field("MajorVersion", info.major_version));
            response.push(field("MinorVersion", info.minor_version));
        }
        response.push(field("Server", server.name()));
        response.push(field("ServerVersion", env!("CARGO_PKG_VERSION")));
        Ok(Answer::success(response))
    }
}
