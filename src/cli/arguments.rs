//! The command line as it is typed.

use std::num::NonZero;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::cli::app::App;
use crate::cli::commands;
use crate::cli::report::{Answer, Fields};
use crate::cli::status::StatusReader;
use crate::error::Result;

/// The version, the commit where it is known, and the target the binary is for.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("PGKEEP_BUILD"), ")");

/// Physical backups of PostgreSQL 14 to 18: no daemon, no agent, no extension
#[derive(Debug, Parser)]
#[command(name = "pgkeep", version = VERSION, arg_required_else_help = true, max_term_width = 100)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct Global {
    /// Configuration file
    ///
    /// Without it the first that is there of `$PGKEEP_CONFIG`, ~/.config/pgkeep/pgkeep.conf and
    /// /etc/pgkeep/pgkeep.conf. There need not be any.
    #[arg(short, long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How the report is printed
    ///
    /// Without it text, or, on a terminal, what `output` in the configuration says. Tables are for list-backup, status,
    /// history and window.
    #[arg(short = 'F', long, global = true, value_enum)]
    pub format: Option<Format>,
    /// Log each step that is done; twice, even more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Log errors only, and do not report success
    ///
    /// For cron: nothing is printed where all is well. `--format json` prints its report nevertheless.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Write the log into a file as well
    #[arg(long, global = true, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Whether to show progress on stderr
    #[arg(long, global = true, value_enum, default_value_t = ProgressMode::Auto)]
    pub progress: ProgressMode,
    /// Threads and connections that work at the same time
    ///
    /// Where neither this nor the configuration says it, as many as there are cores, up to 8.
    #[arg(short = 'j', long, global = true, value_name = "N")]
    pub workers: Option<NonZero<usize>>,
}

/// How the report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// YAML, for people.
    Text,
    /// One JSON object, for programs.
    Json,
    /// A line for each thing, for eyes.
    Table,
    /// The same, with what belongs to a thing below it.
    Tree,
    /// Metrics; of status alone.
    Prometheus,
}

impl Format {
    /// Whether it has lines and columns.
    pub(super) fn is_table(self) -> bool {
        matches!(self, Format::Table | Format::Tree)
    }

    /// Whether things stand below those that they belong to.
    pub(super) fn is_tree(self) -> bool {
        self == Format::Tree
    }

    /// Its name on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Format::Text => "text",
            Format::Json => "json",
            Format::Table => "table",
            Format::Tree => "tree",
            Format::Prometheus => "prometheus",
        }
    }
}

/// Whether progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ProgressMode {
    /// A bar, on a terminal only.
    Auto,
    /// A bar on a terminal, plain lines elsewhere.
    Always,
    /// Nothing.
    Never,
}

/// The commands that have tables.
pub(super) const TABLES: &str = "list-backup, status, window and history";

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Backup(commands::backup::Backup),
    ListBackup(commands::list_backup::ListBackup),
    Info(commands::info::Info),
    Verify(commands::verify::Verify),
    Restore(commands::restore::Restore),
    Extract(commands::extract::Extract),
    Archive(commands::archive::Archive),
    Annotate(commands::annotate::Annotate),
    Retain(commands::retain::Retain),
    Expunge(commands::retain::Expunge),
    Delete(commands::delete::Delete),
    Expire(commands::expire::Expire),
    Copy(commands::copy::Copy),
    Status(commands::status::Status),
    Window(commands::window::Window),
    History(commands::history::History),
    Check(commands::check::Check),
    MasterKey(commands::master_key::CreateMasterKey),
    Encrypt(commands::files::Encrypt),
    Decrypt(commands::files::Decrypt),
    Compress(commands::files::Compress),
    Decompress(commands::files::Decompress),
    Permissions(commands::permissions::Permissions),
    Conf(commands::conf::Conf),
    Wal(commands::wal::Wal),
    Units(commands::units::Units),
    Completions(commands::completions::Completions),
}

/// Hands a method on to the command at hand.
macro_rules! each {
    ($command:expr, $args:ident => $call:expr) => {
        match $command {
            Command::Backup($args) => $call,
            Command::ListBackup($args) => $call,
            Command::Info($args) => $call,
            Command::Verify($args) => $call,
            Command::Restore($args) => $call,
            Command::Extract($args) => $call,
            Command::Archive($args) => $call,
            Command::Annotate($args) => $call,
            Command::Retain($args) => $call,
            Command::Expunge($args) => $call,
            Command::Delete($args) => $call,
            Command::Expire($args) => $call,
            Command::Copy($args) => $call,
            Command::Status($args) => $call,
            Command::Window($args) => $call,
            Command::History($args) => $call,
            Command::Check($args) => $call,
            Command::MasterKey($args) => $call,
            Command::Encrypt($args) => $call,
            Command::Decrypt($args) => $call,
            Command::Compress($args) => $call,
            Command::Decompress($args) => $call,
            Command::Permissions($args) => $call,
            Command::Conf($args) => $call,
            Command::Wal($args) => $call,
            Command::Units($args) => $call,
            Command::Completions($args) => $call,
        }
    };
}

impl Command {
    /// Its name on the command line.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Command::Backup(_) => "backup",
            Command::ListBackup(_) => "list-backup",
            Command::Info(_) => "info",
            Command::Verify(_) => "verify",
            Command::Restore(_) => "restore",
            Command::Extract(_) => "extract",
            Command::Archive(_) => "archive",
            Command::Annotate(_) => "annotate",
            Command::Retain(_) => "retain",
            Command::Expunge(_) => "expunge",
            Command::Delete(_) => "delete",
            Command::Expire(_) => "expire",
            Command::Copy(_) => "copy",
            Command::Status(_) => "status",
            Command::Window(_) => "window",
            Command::History(_) => "history",
            Command::Check(_) => "check",
            Command::MasterKey(_) => "master-key",
            Command::Encrypt(_) => "encrypt",
            Command::Decrypt(_) => "decrypt",
            Command::Compress(_) => "compress",
            Command::Decompress(_) => "decompress",
            Command::Permissions(_) => "permissions",
            Command::Conf(_) => "conf",
            Command::Wal(wal) => wal.name(),
            Command::Units(_) => "units",
            Command::Completions(_) => "completions",
        }
    }

    /// Whether its report can be a table.
    pub(super) fn has_table(&self) -> bool {
        matches!(
            self,
            Command::ListBackup(_) | Command::Status(_) | Command::Window(_) | Command::History(_)
        )
    }

    /// Who reads its exit status, and how.
    pub(super) fn reader(&self) -> StatusReader {
        match self {
            Command::Wal(wal) if wal.is_get() => StatusReader::Recovery,
            _ => StatusReader::Anybody,
        }
    }

    /// Whether standard output is for something else than the report.
    pub(super) fn takes_stdout(&self) -> bool {
        matches!(self, Command::Extract(extract) if extract.takes_stdout())
    }

    /// The server of the configuration whose `archive_command` or `restore_command` this is: another server waits for it.
    pub(super) fn serves(&self) -> Option<&str> {
        match self {
            Command::Wal(wal) => wal.serves(),
            _ => None,
        }
    }

    /// What was asked, for the report.
    pub(super) fn request(&self) -> Fields {
        each!(self, command => command.request())
    }

    /// Does it.
    pub(super) fn run(&self, app: &App) -> Result<Answer> {
        each!(self, command => command.run(app))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
