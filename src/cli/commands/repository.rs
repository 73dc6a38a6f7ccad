//! Which of several repositories a command works on, and as of when.

use clap::Args;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::cli::app::{App, Server};
use crate::cli::report::{Fields, field};
use crate::config::{self, RepositoryName};
use crate::error::Result;
use crate::pg::timestamp;
use crate::repository::layout::ServerFolder;

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

/// Which repository is only read; as it is now where no moment is said.
#[derive(Debug, Args)]
pub(super) struct Reading {
    #[command(flatten)]
    repository: Repository,
    #[command(flatten)]
    moment: Moment,
}

impl Reading {
    /// For the report, where it was said.
    pub(super) fn request(&self) -> Fields {
        let mut request = self.moment.request();
        request.extend(self.repository.request());
        request
    }

    /// Its name.
    pub(super) fn name(&self) -> RepositoryName {
        self.repository.name()
    }

    /// The moment.
    pub(super) fn moment(&self) -> &Moment {
        &self.moment
    }

    /// A server with its place there.
    pub(super) fn server(&self, app: &App, name: &str) -> Result<Server> {
        let mut server = self.repository.server(app, name)?;
        server.folder = self.moment.of(server.folder)?;
        server.as_of = self.moment.as_of;
        Ok(server)
    }
}

/// When a repository was as it is to be read.
#[derive(Debug, Args)]
pub(super) struct Moment {
    /// Read the repository as it was at that time, or so long ago, such as 2d: of a bucket that keeps versions
    #[arg(long, value_name = "TIME", value_parser = moment)]
    as_of: Option<Timestamp>,
}

impl Moment {
    /// For the report, where it was said.
    pub(super) fn request(&self) -> Fields {
        let said = self.as_of.into_iter();
        said.map(|moment| field("AsOf", timestamp::text(moment)))
            .collect()
    }

    /// The moment itself; nothing for now.
    pub(super) fn as_of(&self) -> Option<Timestamp> {
        self.as_of
    }

    /// A server's part of a repository as it was then.
    pub(super) fn of(&self, folder: ServerFolder) -> Result<ServerFolder> {
        match self.as_of {
            Some(moment) => folder.as_of(moment),
            None => Ok(folder),
        }
    }
}

fn moment(text: &str) -> std::result::Result<Timestamp, String> {
    match config::parse_duration(text.trim()) {
        // In whole seconds, as a store notes when something was written; and no finer than is read of a time that is said.
        Some(ago) => Timestamp::from_second(Timestamp::now().as_second())
            .and_then(|now| now.checked_sub(ago))
            .map_err(|_| format!("{text} ago is before all time")),
        None => timestamp::parse(text, TimeZone::try_system().ok().as_ref()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_moment_is_read_again_as_it_is_handed_on() {
        for text in [
            "2d",
            "90S",
            "2026-11-22 13:10:36.25+01",
            "2026-11-22T12:10:36Z",
        ] {
            let said = moment(text).unwrap();
            assert_eq!(moment(&said.to_string()).unwrap(), said, "{text}");
        }
        assert!(moment("soon").is_err());
    }
}
