//! What a failure of the driver comes from.
//!
//! The driver does not say what sort of failure it had, so that is read off the
//! error's sources: the server's message, rustls's, the operating system's or
//! the driver's own text.

use postgres::error::DbError;
use std::error::Error as _;
use std::fmt::Write as _;
use std::io;

/// What a failure of the driver comes from.
pub(super) enum Source<'a> {
    /// The server's own words.
    Server(&'a DbError),
    /// TLS.
    Tls(&'a rustls::Error),
    /// The operating system.
    System(&'a io::Error),
    /// The driver's words, without a cause or with it.
    Driver(String),
}

impl<'a> Source<'a> {
    /// Looks through an error.
    pub(super) fn of(error: &'a postgres::Error) -> Source<'a> {
        if let Some(server) = error.as_db_error() {
            return Source::Server(server);
        }
        match error.source() {
            None => Source::Driver(error.to_string()),
            Some(source) => match source.downcast_ref::<io::Error>() {
                Some(system) => match system.get_ref().and_then(|inner| inner.downcast_ref()) {
                    Some(tls) => Source::Tls(tls),
                    None => Source::System(system),
                },
                None => Source::Driver(source.to_string()),
            },
        }
    }
}

/// The server's message with its detail.
pub(super) fn in_words(server: &DbError) -> String {
    let mut text = server.message().to_owned();
    if let Some(detail) = server.detail() {
        let _ = write!(text, " ({})", detail.trim_end_matches('.'));
    }
    text
}

/// The system's words for an I/O error, without Rust's "(os error N)".
pub(super) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}
