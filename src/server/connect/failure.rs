//! Why no connection could be made, in words for the operator.
//!
//! No message contains a password; the server's and the driver's have none.

use super::replication::Refused;
use super::source::{Cause, Report, Source, plain};
use crate::config::{Endpoint, Host};
use crate::error::Error;
use crate::server::permissions::Requirement;
use postgres::error::SqlState;
use rustls::{AlertDescription, CertificateError};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

/// The routine of the server that decides who may connect (libpq/auth.c); its
/// name, unlike the message, is in one language.
const CLIENT_AUTHENTICATION: &str = "ClientAuthentication";

/// Whether another attempt with TLS, or without, could have another end: TLS
/// failed, or the server has no rule for connections of this sort.
pub(super) fn may_differ_with_encryption(cause: &Cause<'_>) -> bool {
    match &cause.source {
        Source::Server(server) => server.routine.as_deref() == Some(CLIENT_AUTHENTICATION),
        Source::Tls(_) => true,
        Source::System(_) | Source::Garbled(_) | Source::Driver(_) => cause.in_handshake,
    }
}

/// Whether a server was there and refused: another host is then not asked, as
/// in libpq, which makes one exception for a server that is starting up or down.
pub(super) fn is_final(cause: &Cause<'_>) -> bool {
    match &cause.source {
        Source::Server(server) => server.code != SqlState::CANNOT_CONNECT_NOW,
        Source::Tls(_) => true,
        Source::System(_) | Source::Garbled(_) | Source::Driver(_) => false,
    }
}

/// Why no connection could be made; `place` describes the session.
pub(super) fn connect_error(place: &str, endpoint: &Endpoint, cause: &Cause<'_>) -> Error {
    let failed = |reason: &str| Error::server(format!("cannot connect to {place}: {reason}"));
    match &cause.source {
        Source::Server(server) => {
            let mut failure = failed(&server.in_words());
            if PASSING.contains(&server.code) {
                failure = failure.momentary();
            }
            match refusal_hint(server) {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        }
        Source::Tls(tls) => {
            let (reason, hint) = tls_failure(tls, endpoint);
            failed(&reason).hint(hint)
        }
        Source::System(system) => {
            let (reason, hint) = system_failure(system, endpoint);
            failed(&reason).hint(hint).momentary()
        }
        Source::Garbled(text) | Source::Driver(text) => {
            let (reason, hint) = driver_failure(text, endpoint);
            let failure = failed(&reason).hint(hint);
            match cause.is_closed {
                true => failure.momentary(),
                false => failure,
            }
        }
    }
}

/// A host name that cannot be resolved.
pub(super) fn unknown_host(endpoint: &Endpoint, error: Option<&io::Error>) -> Error {
    let reason = error.map_or_else(|| "it has no address".to_owned(), ToString::to_string);
    let reason = reason.trim_start_matches("failed to lookup address information: ");
    Error::server(format!("cannot find the server at {endpoint}: {reason}"))
        .hint("check the spelling of the host's name, and this machine's name service")
        .momentary()
}

/// A host that did not answer in time.
pub(super) fn timed_out(endpoint: &Endpoint, timeout: Option<Duration>) -> Error {
    let seconds = timeout.unwrap_or_default().as_secs();
    Error::server(format!(
        "the server at {endpoint} did not answer within {seconds} s"
    ))
    .hint("check host, port and firewalls, or set PGCONNECT_TIMEOUT higher")
    .momentary()
}

/// What a server says that is starting, stopping or busy.
const PASSING: [SqlState; 4] = [
    SqlState::CANNOT_CONNECT_NOW,
    SqlState::ADMIN_SHUTDOWN,
    SqlState::CRASH_SHUTDOWN,
    SqlState::TOO_MANY_CONNECTIONS,
];

/// What to do where the server refuses a connection.
fn refusal_hint(server: &Report) -> Option<String> {
    let code = &server.code;
    let hint = match server.routine.as_deref() {
        _ if *code == SqlState::INVALID_PASSWORD => {
            "correct the password in ~/.pgpass, PGPASSWORD or the service file"
        }
        Some(CLIENT_AUTHENTICATION) if server.message.contains("pg_hba.conf") => {
            "add a line for this role, database and address to the server's pg_hba.conf, and reload it"
        }
        Some(CLIENT_AUTHENTICATION) => {
            "name a client certificate: ~/.postgresql/postgresql.crt and .key, or PGSSLCERT and PGSSLKEY"
        }
        // utils/init/miscinit.c: the role is unknown or may not log in.
        Some("InitializeSessionUserId")
            if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION =>
        {
            "create the role with LOGIN, or name another one: user in the configuration, or PGUSER"
        }
        _ if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            "the server's pg_hba.conf asks for another proof of who this is; see the server's log"
        }
        _ if *code == SqlState::INVALID_CATALOG_NAME => {
            "name a database that exists: database in the configuration, or PGDATABASE"
        }
        _ if *code == SqlState::TOO_MANY_CONNECTIONS => {
            "use fewer workers, or raise max_connections or the role's connection limit"
        }
        _ if *code == SqlState::CANNOT_CONNECT_NOW => {
            "wait until the server accepts connections, then try again"
        }
        _ if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
            "GRANT CONNECT ON DATABASE to the role, or name another database"
        }
        _ => return server.hint.clone(),
    };
    Some(hint.to_owned())
}

/// What to do where a replication connection is refused, if it is something else than for an ordinary one.
pub(super) fn replication_hint(cause: &Cause<'_>, role: &str, refused: &Refused) -> Option<String> {
    let Source::Server(server) = &cause.source else {
        return None;
    };
    let code = &server.code;
    // libpq/auth.c; utils/init/postinit.c, InitPostgres(); storage/lmgr/proc.c, InitProcess(). Names of files
    // and settings are in messages of every language.
    match server.routine.as_deref() {
        Some(CLIENT_AUTHENTICATION) if server.message.contains("pg_hba.conf") => Some(format!(
            "add the line: {}; to the server's pg_hba.conf, above any that rejects it, and reload it \
             (\"all\" databases are not replication)",
            hba_line(role, refused.from, refused.is_encrypted)
        )),
        _ if *code == SqlState::INSUFFICIENT_PRIVILEGE => Some(format!(
            "run as a superuser of the server: {}",
            Requirement::Replication.grant(role)
        )),
        _ if *code == SqlState::TOO_MANY_CONNECTIONS
            && server.message.contains("max_wal_senders") =>
        {
            Some(
                "raise max_wal_senders on the server, or wait until another replication connection \
                 ends"
                    .to_owned(),
            )
        }
        _ => None,
    }
}

/// A line that lets the role in for replication, from where it comes.
fn hba_line(role: &str, from: Option<IpAddr>, is_encrypted: bool) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let role = match role.chars().all(is_plain) && !matches!(role, "all" | "") {
        true => role.to_owned(),
        false => format!("\"{}\"", role.replace('"', "\"\"")),
    };
    let kind = if is_encrypted { "hostssl" } else { "host" };
    match from {
        None => format!("local replication {role} scram-sha-256"),
        Some(IpAddr::V4(address)) => {
            format!("{kind} replication {role} {address}/32 scram-sha-256")
        }
        Some(IpAddr::V6(address)) => {
            format!("{kind} replication {role} {address}/128 scram-sha-256")
        }
    }
}

/// The driver's words, behind which a replication connection names the method.
pub(super) const UNSUPPORTED_AUTHENTICATION: &str = "unsupported authentication method";

fn name_of(endpoint: &Endpoint) -> String {
    match &endpoint.host {
        Host::Socket(folder) => folder.display().to_string(),
        Host::Network { name, .. } => name.clone(),
    }
}

fn tls_failure(error: &rustls::Error, endpoint: &Endpoint) -> (String, &'static str) {
    use CertificateError as Certificate;
    let certificate = |what: &str| format!("the server's certificate {what}");
    match error {
        rustls::Error::InvalidCertificate(reason) => match reason {
            Certificate::UnknownIssuer | Certificate::BadSignature => (
                certificate("is not signed by anyone who is trusted"),
                "put the certificate of its issuer into ~/.postgresql/root.crt or the file of PGSSLROOTCERT",
            ),
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => (
                certificate(&format!("is not made out to {}", name_of(endpoint))),
                "set host to a name that the certificate has (hostaddr can hold the address)",
            ),
            Certificate::Expired | Certificate::ExpiredContext { .. } => (
                certificate("has expired"),
                "renew it on the server; check the clock of this machine",
            ),
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => (
                certificate("is not valid yet"),
                "check the clocks of this machine and of the server",
            ),
            other => (
                certificate(&format!("cannot be used: {other}")),
                "make it anew, as X.509 version 3 with a subjectAltName",
            ),
        },
        rustls::Error::AlertReceived(alert) => (
            format!("the server broke TLS off: {}", alert_in_words(*alert)),
            "see the server's log; check the client certificate and who issued it",
        ),
        other => (
            format!("TLS failed: {other}"),
            "check that a PostgreSQL server with TLS 1.2 or later listens there",
        ),
    }
}

fn alert_in_words(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::UnknownCA => "it does not trust the client certificate's issuer".into(),
        AlertDescription::CertificateExpired => "the client certificate has expired".into(),
        AlertDescription::CertificateRequired => "it demands a client certificate".into(),
        other => format!("{other:?}"),
    }
}

fn system_failure(error: &io::Error, endpoint: &Endpoint) -> (String, &'static str) {
    let socket = match &endpoint.host {
        Host::Socket(folder) => Some(folder.join(format!(".s.PGSQL.{}", endpoint.port))),
        Host::Network { .. } => None,
    };
    match (error.kind(), socket) {
        (io::ErrorKind::NotFound, Some(path)) => (
            format!("there is no socket {}", path.display()),
            "check that the server runs, and its unix_socket_directories and port",
        ),
        (io::ErrorKind::PermissionDenied, Some(path)) => (
            format!("the socket {} may not be used", path.display()),
            "check unix_socket_permissions of the server, and the folders above the socket",
        ),
        (io::ErrorKind::ConnectionRefused, Some(path)) => (
            format!("no server listens on the socket {}", path.display()),
            "check that the server runs; the socket may be left over from a crash",
        ),
        (io::ErrorKind::ConnectionRefused, None) => (
            "the connection was refused".to_owned(),
            "check that the server runs, and its listen_addresses and port",
        ),
        (io::ErrorKind::TimedOut, _) => (
            "the server did not answer in time".to_owned(),
            "check host, port and firewalls, or set PGCONNECT_TIMEOUT higher",
        ),
        (
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe,
            _,
        ) => (
            "the server closed the connection".to_owned(),
            "check that a PostgreSQL server listens there, and see its log",
        ),
        _ => (
            plain(error),
            "check host and port, and that the server can be reached from here",
        ),
    }
}

fn driver_failure(text: &str, endpoint: &Endpoint) -> (String, &'static str) {
    let is_socket = matches!(endpoint.host, Host::Socket(_));
    match text {
        "password missing" => (
            "the server asks for a password, and none is given".to_owned(),
            "put it into ~/.pgpass (mode 0600), or set PGPASSWORD",
        ),
        "server does not support TLS" => (
            "the server does not support TLS".to_owned(),
            "turn ssl on in the server's postgresql.conf, or choose a weaker sslmode",
        ),
        "server did not use channel binding" if is_socket => (
            "channel binding is required, but a Unix socket has no TLS".to_owned(),
            "connect over TLS, or unset PGCHANNELBINDING",
        ),
        "server did not use channel binding" => (
            "channel binding is required, but the server does not offer it".to_owned(),
            "let pg_hba.conf ask for scram-sha-256 on a hostssl line, or unset PGCHANNELBINDING",
        ),
        _ if text.starts_with(UNSUPPORTED_AUTHENTICATION) => (
            format!(
                "the server asks for an authentication that pgkeep does not have{}",
                text.trim_start_matches(UNSUPPORTED_AUTHENTICATION)
            ),
            "let pg_hba.conf ask for scram-sha-256 or a client certificate",
        ),
        other => (
            other.to_owned(),
            "check that a PostgreSQL server listens there, and see its log",
        ),
    }
}
