use clap::Args;

use crate::check::{self, Check as Line, Subject};
use crate::cli::app::App;
use crate::cli::many::{Chosen, Servers};
use crate::cli::report::{Answer, Fields, Value, field};
use crate::error::{Error, Result};

/// Check all that a backup of a server needs
///
/// One line each: connection, version, permissions, settings, room on disk. Exit status 0 where a backup can be made, else 5.
#[derive(Debug, Args)]
pub(crate) struct Check {
    #[command(flatten)]
    servers: Servers,
}

impl Check {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        self.servers.request()
    }

    /// Checks it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let name = match self.servers.chosen(app)? {
            Chosen::Several(names) => return self.servers.run(app, &names),
            Chosen::One(name) => name,
        };
        let server = app.server(&name)?;
        let lines = check::run(Subject {
            server: server.name(),
            folder: &server.folder,
            connector: &server.connector()?,
            workers: server.workers,
            source: server.configuration.source,
            interrupt: &app.interrupt,
        })?;
        let failed: Vec<&Line> = lines.iter().filter(|line| line.outcome.is_err()).collect();
        let error = failed.first().map(|first| {
            let (message, hint) = match &first.outcome {
                Err(error) => (error.message(), error.advice()),
                Ok(_) => ("", None),
            };
            let error = Error::server(format!("{}: {message}", first.name));
            match hint {
                Some(hint) => error.hint(hint),
                None => error,
            }
        });
        let checks: Vec<Value> = lines.iter().map(shown).collect();
        Ok(Answer {
            response: vec![field("Server", server.name()), field("Checks", checks)],
            error,
            plain: None,
        })
    }
}

fn shown(line: &Line) -> Value {
    let mut fields = vec![
        field("Check", line.name),
        field("Status", line.outcome.is_ok()),
    ];
    match &line.outcome {
        Ok(detail) => fields.push(field("Detail", detail.as_str())),
        Err(error) => {
            fields.push(field("Detail", error.message()));
            fields.extend(error.advice().map(|advice| field("Hint", advice)));
        }
    }
    Value::Map(fields)
}
