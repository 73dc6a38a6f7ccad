use clap::{Args, Subcommand};

use crate::cli::app::App;
use crate::cli::report::{Answer, Fields, Value, field};
use crate::config::Entry;
use crate::error::{Error, Result};

/// Show the configuration in force
#[derive(Debug, Args)]
pub(crate) struct Conf {
    #[command(subcommand)]
    action: Action,
}

/// What to show of the configuration.
#[derive(Debug, Subcommand)]
enum Action {
    /// Show every key, its value, and where that came from
    Ls,
    /// Show one key, such as compression or primary.host
    Get {
        /// The key
        key: String,
    },
}

impl Conf {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        match &self.action {
            Action::Ls => vec![field("Action", "ls")],
            Action::Get { key } => vec![field("Action", "get"), field("Key", key.as_str())],
        }
    }

    /// Shows it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let entries = app.configuration.entries()?;
        match &self.action {
            Action::Ls => {
                let mut response = Vec::new();
                if let Some(path) = app.configuration.path() {
                    response.push(field("File", path.display().to_string()));
                }
                let settings: Fields = entries
                    .iter()
                    .map(|entry| (entry.key.clone(), value(entry)))
                    .collect();
                response.push(field("Configuration", settings));
                Ok(Answer::success(response))
            }
            Action::Get { key } => {
                let entry = entries
                    .iter()
                    .find(|entry| entry.key == *key)
                    .ok_or_else(|| {
                        Error::usage(format!("there is no key {key:?} in the configuration"))
                            .hint("pgkeep conf ls shows all of them")
                    })?;
                Ok(Answer::success(vec![(entry.key.clone(), value(entry))]))
            }
        }
    }
}

fn value(entry: &Entry) -> Value {
    Value::Map(vec![
        field("Value", entry.value.as_str()),
        field("Origin", entry.origin.to_string()),
    ])
}
