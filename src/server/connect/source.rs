//! What a failure of a connection comes from.
//!
//! The driver does not say what sort of failure it had, so that is read off the
//! error's sources: the server's message, rustls's, the operating system's or
//! the driver's own text. Replication connections, which the driver cannot make,
//! fail in the same ways and words.

use postgres::error::{DbError, SqlState};
use postgres::fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;
use std::borrow::Cow;
use std::error::Error as _;
use std::fmt::Write as _;
use std::io;

/// What a connection's failure comes from, and what it was in the middle of.
pub(in crate::server) struct Cause<'a> {
    /// Where it comes from.
    pub(in crate::server) source: Source<'a>,
    /// TLS was being set up.
    pub(in crate::server) in_handshake: bool,
    /// There is no connection any more.
    pub(in crate::server) is_closed: bool,
}

/// What a failure comes from.
pub(in crate::server) enum Source<'a> {
    /// The server's own words.
    Server(Cow<'a, Report>),
    /// TLS.
    Tls(&'a rustls::Error),
    /// The operating system.
    System(&'a io::Error),
    /// What arrived was not to be understood.
    Garbled(String),
    /// The driver's words, without a cause or with it.
    Driver(String),
}

/// What a server says of an error (protocol, "Error and Notice Message Fields").
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::server) struct Report {
    /// The SQLSTATE.
    pub(in crate::server) code: SqlState,
    /// One line.
    pub(in crate::server) message: String,
    /// More about it.
    pub(in crate::server) detail: Option<String>,
    /// What to do about it.
    pub(in crate::server) hint: Option<String>,
    /// The function in PostgreSQL's sources, in no language.
    pub(in crate::server) routine: Option<String>,
    /// It is not an error, but more than a notice.
    pub(in crate::server) is_warning: bool,
}

/// A failure that may be one of TLS, or have another end with TLS or without.
pub(super) trait Failure {
    /// What it comes from.
    fn cause(&self) -> Cause<'_>;
}

impl Failure for postgres::Error {
    fn cause(&self) -> Cause<'_> {
        // The driver has no other sign of these than its words.
        let text = self.to_string();
        let is_garbled = text == "error parsing response from server";
        let source = match (self.as_db_error(), self.source()) {
            (Some(server), _) => Source::Server(Cow::Owned(Report::from(server))),
            (None, None) => Source::Driver(text.clone()),
            (None, Some(source)) => match source.downcast_ref::<io::Error>() {
                Some(system) if is_garbled => Source::Garbled(plain(system)),
                Some(system) => Source::of_system(system),
                None => Source::Driver(source.to_string()),
            },
        };
        Cause {
            source,
            in_handshake: text == "error performing TLS handshake",
            is_closed: self.is_closed(),
        }
    }
}

impl<'a> Source<'a> {
    /// An I/O error, which TLS has too.
    pub(in crate::server) fn of_system(error: &'a io::Error) -> Source<'a> {
        match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(tls) => Source::Tls(tls),
            None => Source::System(error),
        }
    }
}

impl Default for Report {
    fn default() -> Report {
        Report {
            code: SqlState::INTERNAL_ERROR,
            message: "an error without a message".to_owned(),
            detail: None,
            hint: None,
            routine: None,
            is_warning: false,
        }
    }
}

impl From<&DbError> for Report {
    fn from(error: &DbError) -> Report {
        Report {
            code: error.code().clone(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
            routine: error.routine().map(str::to_owned),
            is_warning: false,
        }
    }
}

impl Report {
    /// The fields of an ErrorResponse or a NoticeResponse; text before a session
    /// has its encoding may be in any.
    pub(in crate::server) fn parse(mut fields: ErrorFields<'_>) -> io::Result<Report> {
        let mut report = Report::default();
        while let Some(field) = fields.next()? {
            let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => report.code = SqlState::from_code(&text),
                b'M' => report.message = text,
                b'D' => report.detail = Some(text),
                b'H' => report.hint = Some(text),
                b'R' => report.routine = Some(text),
                // The severity that is in no language.
                b'V' => report.is_warning = text == "WARNING",
                _ => {}
            }
        }
        Ok(report)
    }

    /// The message with its detail.
    pub(in crate::server) fn in_words(&self) -> String {
        let mut text = self.message.clone();
        if let Some(detail) = &self.detail {
            let _ = write!(text, " ({})", detail.trim_end_matches('.'));
        }
        text
    }
}

/// The system's words for an I/O error, without Rust's "(os error N)".
pub(super) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}
