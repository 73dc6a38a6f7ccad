use clap::Args;

use crate::cli::app::App;
use crate::cli::report::{Answer, Fields, field};
use crate::error::Result;
use crate::master_key;

/// Create the master key that encrypts files
///
/// Writes 32 random bytes as hexadecimal digits into a file of mode 0600: master_key in the configuration,
/// $PGKEEP_MASTER_KEY_FILE, or pgkeep/master.key in the user's configuration directory.
/// Keep a copy of it away from the backups: without the key nobody can restore them.
#[derive(Debug, Args)]
pub(crate) struct CreateMasterKey {
    /// Make a new key where there is one; the old one is kept beside it, for what it encrypted
    #[arg(long)]
    force: bool,
}

impl CreateMasterKey {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        vec![field("Force", self.force)]
    }

    /// Creates the key.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let created = master_key::create(&app.keys(), self.force)?;
        log::warn!(
            "keep a copy of {} in another safe place: without it nobody can restore what it encrypts",
            created.path.display()
        );
        let mut response = vec![
            field("File", created.path.display().to_string()),
            field("MasterKey", created.fingerprint.to_string()),
        ];
        if let Some(kept) = created.kept {
            response.push(field("Kept", kept.display().to_string()));
        }
        Ok(Answer::success(response))
    }
}
