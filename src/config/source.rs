//! Which way a server's files are read.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where what the server's files hold comes from. The backup itself is always begun and ended over SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The server's disk, which is this machine's.
    Direct,
    /// Answers to queries.
    Sql,
    /// A stream that the server compresses.
    Stream,
}

impl Source {
    /// What `source` may be.
    pub const ALLOWED: &str = "auto, direct, sql or stream";

    /// Reads a value of `source`: `Some(None)` for the way that suits the server best.
    pub fn parse(text: &str) -> Option<Option<Source>> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Some(None),
            "direct" => Some(Some(Source::Direct)),
            "sql" => Some(Some(Source::Sql)),
            "stream" => Some(Some(Source::Stream)),
            _ => None,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Direct => "direct",
            Source::Sql => "sql",
            Source::Stream => "stream",
        })
    }
}
