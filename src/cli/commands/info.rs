use clap::Args;

use crate::cli::app::App;
use crate::cli::commands::describe;
use crate::cli::commands::repository::Reading;
use crate::cli::report::{Answer, Fields, field};
use crate::error::Result;
use crate::repository::identifier::Selector;
use crate::repository::roll_forward::HeldWal;

/// Show everything known about one backup
#[derive(Debug, Args)]
pub(crate) struct Info {
    /// The server's name
    server: String,
    /// Identifier or its first digits, newest, latest or oldest
    backup: Selector,
    #[command(flatten)]
    repository: Reading,
}

impl Info {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let mut request = vec![field("Backup", self.backup.to_string())];
        request.extend(self.repository.request());
        request.push(field("Server", self.server.as_str()));
        request
    }

    /// Shows it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let server = self.repository.server(app, &self.server)?;
        let catalogue = server.catalogue()?;
        let backup = catalogue.select(&self.backup)?;
        let mut response = describe::details(&catalogue, backup)?;
        if let Ok(info) = catalogue.check(backup) {
            let forward = HeldWal::look(&server.folder, server.keys()).and_then(|held| {
                held.map(|mut held| held.roll_forward(&backup.folder, info, &app.interrupt))
                    .transpose()
            });
            match &forward {
                Ok(Some(forward)) => response.extend(describe::roll_forward(forward)),
                Ok(None) => {}
                Err(error) => response.push(field("RollForwardError", error.message())),
            }
        }
        Ok(Answer::success(response))
    }
}
