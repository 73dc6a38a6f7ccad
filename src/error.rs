//! The one error type of the library.
//!
//! An error says what failed and on which file or server, and, where there is
//! something to do about it, carries a hint. Its [`Kind`] decides the exit
//! status; nothing else does.

use std::fmt;
use std::io;
use std::path::Path;

use rustix::io::Errno;

/// What sort of failure it was; each has its exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something could not be done.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// A check found damaged or missing data.
    Damage,
    /// Another pgkeep holds the lock.
    Locked,
    /// The server cannot be reached, or lacks a permission or a setting.
    Server,
    /// What was asked for is not there. To who asks, that is an answer.
    Absent,
}

impl Kind {
    /// The exit status of the process, as documented in the manual.
    pub fn exit_status(self) -> u8 {
        match self {
            Kind::Failed | Kind::Absent => 1,
            Kind::Usage => 2,
            Kind::Damage => 3,
            Kind::Locked => 4,
            Kind::Server => 5,
        }
    }
}

/// A failure in words for the operator.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
    is_momentary: bool,
    is_retention: bool,
}

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error {
            kind,
            message: message.into(),
            hint: None,
            is_momentary: false,
            is_retention: false,
        }
    }

    /// Something could not be done.
    pub fn failed(message: impl Into<String>) -> Error {
        Error::new(Kind::Failed, message)
    }

    /// The command line or the configuration is wrong.
    pub fn usage(message: impl Into<String>) -> Error {
        Error::new(Kind::Usage, message)
    }

    /// Stored data is damaged or missing.
    pub fn damage(message: impl Into<String>) -> Error {
        Error::new(Kind::Damage, message)
    }

    /// Another process holds the lock.
    pub fn locked(message: impl Into<String>) -> Error {
        Error::new(Kind::Locked, message)
    }

    /// The server refuses, lacks something or is not there.
    pub fn server(message: impl Into<String>) -> Error {
        Error::new(Kind::Server, message)
    }

    /// What was asked for is not there.
    pub fn absent(message: impl Into<String>) -> Error {
        Error::new(Kind::Absent, message)
    }

    /// A file could not be read, written, …: "cannot ACTION PATH: reason".
    pub fn io(action: &str, path: &Path, error: &io::Error) -> Error {
        Error::at(action, &path.display(), error)
    }

    /// The same, wherever the file lies; or the error of ours that is inside.
    pub fn at(action: &str, place: &dyn fmt::Display, error: &io::Error) -> Error {
        if let Some(inside) = Error::inside(error) {
            return inside.clone();
        }
        let failure = Error::failed(format!("cannot {action} {place}: {}", reason(error)));
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                failure.hint("free some space there, then run the same command again")
            }
            io::ErrorKind::PermissionDenied => {
                failure.hint("run pgkeep as the user who owns that folder")
            }
            _ => failure,
        }
    }

    /// The same of a stored file. That it is gone, or that its disk has lost it, is damage; that it cannot be read just
    /// now is none.
    pub fn stored(action: &str, place: &dyn fmt::Display, error: &io::Error) -> Error {
        let mut failure = Error::at(action, place, error);
        let is_lost = error.raw_os_error() == Some(Errno::IO.raw_os_error());
        if is_lost || error.kind() == io::ErrorKind::NotFound {
            failure.kind = Kind::Damage;
        }
        failure
    }

    /// What went wrong while reading or writing through others: the error of ours that is inside, or else "cannot
    /// DOING: reason".
    pub fn from_io(doing: &str, error: &io::Error) -> Error {
        Error::inside(error)
            .cloned()
            .unwrap_or_else(|| Error::failed(format!("cannot {doing}: {}", reason(error))))
    }

    /// The error of ours that is inside another one.
    pub fn inside(error: &io::Error) -> Option<&Error> {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<Error>() {
                return Some(found);
            }
            next = match error.downcast_ref::<io::Error>() {
                // Its own source() is that of what it wraps, and would pass that over.
                Some(wrapping) => wrapping
                    .get_ref()
                    .map(|inner| inner as &(dyn std::error::Error + 'static)),
                None => error.source(),
            };
        }
        None
    }

    /// Adds what the operator can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// Puts what was being done in front: "CONTEXT: message".
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Error {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// Says that it comes of what happened at that moment, so that another try need not meet it.
    #[must_use]
    pub fn momentary(mut self) -> Error {
        self.is_momentary = true;
        self
    }

    /// Whether another try need not meet it.
    pub fn is_momentary(&self) -> bool {
        self.is_momentary
    }

    /// Says that the store has to keep what was to be removed, for some time yet.
    #[must_use]
    pub fn of_retention(mut self) -> Error {
        self.is_retention = true;
        self
    }

    /// Whether the store has to keep what was to be removed.
    pub fn is_of_retention(&self) -> bool {
        self.is_retention
    }

    /// What sort of failure it was.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What failed, in one sentence, without the hint.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What the operator can do about it.
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// The system's words for an I/O error, without Rust's "(os error N)".
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_comes_out_of_readers_as_it_went_in() {
        let ours = Error::server("lost").hint("look").momentary();
        let once = io::Error::other(ours);
        let twice = io::Error::other(once);
        let found = Error::from_io("read", &twice);
        assert_eq!(found.kind(), Kind::Server);
        assert_eq!(found.message(), "lost");
        assert!(found.is_momentary());

        let foreign = io::Error::new(io::ErrorKind::InvalidData, "no frame");
        let found = Error::from_io("read an archive", &foreign);
        assert_eq!(found.message(), "cannot read an archive: no frame");
        assert_eq!(found.kind(), Kind::Failed);
    }
}
