//! The server's errors in words for the operator.

use super::source::{Cause, Failure as _, Report, Source};
use crate::error::Error;
use postgres::error::SqlState;

/// What went wrong while `doing` something in a session ("read the list of
/// files"), in the server's own words.
///
/// A permission that lacks, a server that goes away and a connection that is
/// lost are failures of kind Server; everything else that SQL can answer is one
/// of kind Failed.
pub fn server_error(doing: &str, error: &postgres::Error) -> Error {
    session_error(doing, &error.cause())
}

/// The same of any connection.
pub(in crate::server) fn session_error(doing: &str, cause: &Cause<'_>) -> Error {
    let cannot = |reason: &str| format!("cannot {doing}: {reason}");
    let lost_connection = cannot("the connection to the server was lost");
    match &cause.source {
        Source::Server(server) => of_server(server, &cannot(&server.in_words())),
        // What arrived could not be understood: the connection is well.
        Source::Garbled(text) => Error::failed(cannot(text)),
        Source::System(_) | Source::Tls(_) => lost(&lost_connection),
        Source::Driver(_) if cause.is_closed => lost(&lost_connection),
        Source::Driver(text) => Error::failed(cannot(text)),
    }
}

fn lost(message: &str) -> Error {
    Error::server(message)
        .hint("see the server's log: it may have been restarted, or the network have failed")
        .momentary()
}

fn of_server(server: &Report, message: &str) -> Error {
    let code = &server.code;
    if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        return Error::server(message)
            .hint("pgkeep permissions SERVER prints the SQL that grants what is needed");
    }
    if [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN].contains(code) {
        return Error::server(message).hint(
            "the server was shut down or the session was terminated; run the same command again",
        )
        .momentary();
    }
    if *code == SqlState::CANNOT_CONNECT_NOW {
        return Error::server(message)
            .hint("wait until the server accepts connections")
            .momentary();
    }
    if *code == SqlState::QUERY_CANCELED {
        return Error::failed(message).hint("the query was cancelled; run the same command again");
    }
    if *code == SqlState::T_R_SERIALIZATION_FAILURE {
        return Error::failed(message)
            .hint("raise max_standby_streaming_delay on the standby, or take the primary");
    }
    let failure = Error::failed(message);
    match &server.hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
