//! How reports look on a terminal.

use std::fmt;

/// How the reports look that can be tables, where they go to a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// YAML.
    Text,
    /// A line for each thing.
    Table,
    /// The same, with what belongs to a thing below it.
    Tree,
}

impl Output {
    /// What the configuration may say.
    pub(super) const ALLOWED: &str = "text, table or tree";

    /// Reads it.
    pub(super) fn parse(text: &str) -> Option<Output> {
        match text {
            "text" => Some(Output::Text),
            "table" => Some(Output::Table),
            "tree" => Some(Output::Tree),
            _ => None,
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Output::Text => "text",
            Output::Table => "table",
            Output::Tree => "tree",
        })
    }
}
