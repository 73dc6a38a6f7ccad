use clap::Args;

use crate::cli::app::App;
use crate::cli::completion::Shell;
use crate::cli::report::{Answer, Fields, field};
use crate::error::Result;

/// Print the script that completes pgkeep's command line in a shell
///
/// It completes the names of servers and the identifiers of backups too. Packages bring
/// it along; without one, write it where the shell looks for it.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        vec![field("Shell", self.shell.name())]
    }

    /// Prints the script.
    pub(crate) fn run(&self, _app: &App) -> Result<Answer> {
        Ok(self.answer())
    }

    /// The script, which takes nothing of the configuration.
    pub(crate) fn answer(&self) -> Answer {
        let script = self.shell.script();
        Answer {
            plain: Some(script.to_owned()),
            response: vec![field("Script", script)],
            error: None,
        }
    }
}
