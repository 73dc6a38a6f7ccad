//! Which of several repositories a command works on.

use clap::Args;

use crate::cli::app::{App, Server};
use crate::cli::report::{Fields, field};
use crate::config::RepositoryName;
use crate::error::Result;

/// Which repository is meant; the main one where nothing is said.
#[derive(Debug, Args)]
pub(super) struct Repository {
    /// The repository to work on: repo1, the main one, or a further one of the configuration, such as repo2
    #[arg(long, value_name = "REPOSITORY")]
    from: Option<RepositoryName>,
}

impl Repository {
    /// For the report, where it was said.
    pub(super) fn request(&self) -> Fields {
        let said = self.from.into_iter();
        said.map(|name| field("From", name.to_string())).collect()
    }

    /// Its name.
    pub(super) fn name(&self) -> RepositoryName {
        self.from.unwrap_or_default()
    }

    /// A server with its place there.
    pub(super) fn server(&self, app: &App, name: &str) -> Result<Server> {
        app.server_at(name, self.name())
    }
}
