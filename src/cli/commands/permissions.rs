use clap::Args;

use crate::cli::app::App;
use crate::cli::report::{Answer, Fields, field};
use crate::error::Result;
use crate::server::{self, facts, permissions};

/// Print the SQL that gives the configured user what it needs
///
/// Prints SQL for a superuser to run, such as: pgkeep permissions primary | psql -U postgres.
/// Where the server cannot be asked for its version, the SQL fits every version.
#[derive(Debug, Args)]
pub(crate) struct Permissions {
    /// The server's name
    server: String,
}

impl Permissions {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        vec![field("Server", self.server.as_str())]
    }

    /// Prints the SQL.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let server = app.server(&self.server)?;
        let role = &server.configuration.connection.user;
        let connected = server
            .connector()
            .and_then(|connector| server::connect(&connector, &app.interrupt));
        let major = match connected {
            Ok(mut client) => Some(facts::version(&mut client)?.major),
            // The role may be what is missing.
            Err(error) => {
                log::warn!(
                    "the SQL is for every version, as the server could not be asked: {error}"
                );
                None
            }
        };
        let script = permissions::script(role, major);
        Ok(Answer {
            plain: Some(format!("{script}\n")),
            response: vec![
                field("Server", server.name()),
                field("User", role.as_str()),
                field("SQL", script),
            ],
            error: None,
        })
    }
}
