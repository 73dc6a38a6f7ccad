//! What can go wrong on a connection of our own.

use super::session_error;
use super::source::{Cause, Failure, Report, Source};
use crate::error::Error;
use crate::interrupt::interrupted;
use std::borrow::Cow;
use std::io;

/// What went wrong on a connection that the driver does not make.
#[derive(Debug)]
pub(in crate::server) enum Fault {
    /// The server says what.
    Server(Box<Report>),
    /// The connection does not work, or no more.
    Connection(io::Error),
    /// TLS could not be set up.
    Handshake(io::Error),
    /// What arrived breaks the protocol.
    Garbled(String),
    /// The server asks for what cannot be given, in the driver's words for it.
    Unfit(String),
    /// It was time to stop.
    Interrupted,
}

impl Fault {
    /// In words for the operator, who asked to `doing`.
    pub(in crate::server) fn into_error(self, doing: &str) -> Error {
        match self {
            Fault::Interrupted => interrupted(),
            fault => session_error(doing, &fault.cause()),
        }
    }
}

impl Failure for Fault {
    fn cause(&self) -> Cause<'_> {
        let source = match self {
            Fault::Server(report) => Source::Server(Cow::Borrowed(report.as_ref())),
            Fault::Connection(error) | Fault::Handshake(error) => Source::of_system(error),
            Fault::Garbled(text) => Source::Garbled(text.clone()),
            Fault::Unfit(text) => Source::Driver(text.clone()),
            Fault::Interrupted => Source::Driver("interrupted".to_owned()),
        };
        Cause {
            source,
            in_handshake: matches!(self, Fault::Handshake(_)),
            is_closed: matches!(self, Fault::Connection(_)),
        }
    }
}
