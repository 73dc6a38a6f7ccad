//! Whether a restored cluster archives its WAL to where its source did.

use clap::{Args, ValueEnum};

use crate::cli::report::{Value, field};
use crate::restore::recovery::{Recovery, SourceSettings};

/// The option of commands that make a cluster which somebody will start.
#[derive(Debug, Args)]
pub(crate) struct Archiving {
    /// Whether the restored cluster archives its WAL as its source does: preserve, or off [default: off; preserve for a replica]
    #[arg(long, value_name = "MODE", hide_possible_values = true)]
    archive_mode: Option<ArchiveMode>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ArchiveMode {
    /// As the source was set.
    Preserve,
    /// It archives nothing.
    Off,
}

impl Archiving {
    /// Most restored clusters are started for a look, or beside their source. One that archives puts a history of its
    /// own into the source's archive, and whoever restores the newest from there gets that. Only a replica, which archives
    /// once it is promoted, takes its source's place as a matter of course.
    pub(super) fn source_settings(&self, recovery: &Recovery) -> SourceSettings {
        match (self.archive_mode, recovery) {
            (Some(ArchiveMode::Preserve), _) | (None, Recovery::Replica { .. }) => {
                SourceSettings::Kept
            }
            (Some(ArchiveMode::Off) | None, _) => {
                log::info!(
                    "the restored cluster archives no WAL; once it takes its source's place: ALTER SYSTEM RESET archive_mode, \
                     and restart it"
                );
                SourceSettings::KeptWithoutArchiving
            }
        }
    }
}

/// For the report.
pub(super) fn describe_archiving(kept: SourceSettings) -> (String, Value) {
    let mode = match kept {
        SourceSettings::Kept => "preserve",
        SourceSettings::KeptWithoutArchiving | SourceSettings::LeftOut => "off",
    };
    field("ArchiveMode", mode)
}
