//! Where a value of the configuration came from.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from, for `conf ls` and for messages about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    CommandLine,
    /// A configuration file; lines count from 1.
    File {
        /// The file.
        path: PathBuf,
        /// Its line.
        line: usize,
    },
    /// A service of libpq's connection service file.
    ServiceFile {
        /// The file.
        path: PathBuf,
        /// Its line.
        line: usize,
    },
    /// The password file, `~/.pgpass`.
    PasswordFile(PathBuf),
    /// An environment variable.
    Environment(&'static str),
    /// Nothing said otherwise.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::CommandLine => f.write_str("command line"),
            Origin::File { path, line } | Origin::ServiceFile { path, line } => {
                write!(f, "{}:{line}", path.display())
            }
            Origin::PasswordFile(path) => write!(f, "{}", path.display()),
            Origin::Environment(variable) => write!(f, "${variable}"),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sourced<T> {
    pub(super) value: T,
    pub(super) origin: Origin,
}

/// One line of `conf ls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `compression`, or `primary.host` for one server's.
    pub key: String,
    /// The value in force as a person reads it; a secret only as "(hidden)".
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}
