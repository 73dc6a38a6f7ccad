//! Which columns of a table are shown.

use clap::Args;

/// The columns that are asked for; those that fit where nothing is said.
#[derive(Debug, Args)]
pub(super) struct Columns {
    /// With --format table or tree: the columns, in this order; without it, all that the terminal has room for
    #[arg(long, value_name = "COLUMN,...", value_delimiter = ',')]
    columns: Vec<String>,
}

impl Columns {
    /// Their names.
    pub(super) fn chosen(&self) -> &[String] {
        &self.columns
    }
}
