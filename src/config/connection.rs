//! How to reach a server: libpq's parameters, resolved and checked.

use super::authentication;
use super::endpoint::{Endpoint, Host, endpoints};
use super::environment::Environment;
use super::libpq::{Sources, bad_value};
use super::origin::{Entry, Origin, Sourced};
use super::password::Passwords;
use super::settings;
use super::tls::TlsSettings;
use crate::error::{Error, Result};
use std::time::Duration;

/// Everything that a connection to one server needs.
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// The hosts to try, in this order; there is at least one.
    pub endpoints: Vec<Endpoint>,
    /// The role.
    pub user: String,
    /// The database; which one matters little, a backup is one of the cluster.
    pub database: String,
    /// Command-line options for the session.
    pub options: Option<String>,
    /// How long connecting to one host may take; `None` waits for ever.
    pub connect_timeout: Option<Duration>,
    /// Which kind of server is acceptable.
    pub target: TargetSession,
    /// Whether SCRAM must be bound to the TLS channel.
    pub channel_binding: ChannelBinding,
    /// Transport security.
    pub tls: TlsSettings,
}

impl ConnectionSettings {
    /// How a standby finds this server: libpq's conninfo, without any password.
    pub fn primary_conninfo(&self) -> String {
        let mut words = vec![("user", self.user.clone())];
        if let Some(endpoint) = self.endpoints.first() {
            match &endpoint.host {
                Host::Socket(folder) => words.push(("host", folder.display().to_string())),
                Host::Network { name, address } => {
                    words.push(("host", name.clone()));
                    words.extend(address.map(|address| ("hostaddr", address.to_string())));
                }
            }
            words.push(("port", endpoint.port.to_string()));
        }
        words.push(("application_name", "pgkeep".to_owned()));
        let quoted =
            |value: &str| format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
        let words: Vec<String> = words
            .iter()
            .map(|(key, value)| format!("{key}={}", quoted(value)))
            .collect();
        words.join(" ")
    }
}

/// `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetSession {
    /// Any server.
    Any,
    /// One whose sessions may write.
    ReadWrite,
    /// One whose sessions may not write.
    ReadOnly,
    /// One that is not in recovery.
    Primary,
    /// One in recovery.
    Standby,
    /// One in recovery, or any if there is none.
    PreferStandby,
}

/// `channel_binding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If the server offers it.
    Prefer,
    /// Refuse a server that does not bind the channel.
    Require,
}

/// libpq waits for ever; a backup from cron should fail instead.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Resolves the parameters of a server, and lists them for `conf ls`.
pub(super) fn resolve(
    section: Option<&settings::Server>,
    environment: &Environment,
) -> Result<(ConnectionSettings, Vec<Entry>)> {
    let sources = Sources::new(section, environment)?;
    let user = user(&sources, environment)?;
    let database = sources.get("dbname").unwrap_or(Sourced {
        value: "postgres".to_owned(),
        origin: Origin::Default,
    });
    let channel_binding = sources
        .choice("channel_binding", CHANNEL_BINDING)?
        .unwrap_or(ChannelBinding::Prefer);
    authentication::refuse_unsupported(&sources, channel_binding)?;
    let tls = TlsSettings::resolve(&sources, environment)?;

    let (mut endpoints, mut entries) = endpoints(&sources)?;
    let passwords = Passwords::new(&sources, environment);
    let mut password_origin = None;
    for endpoint in &mut endpoints {
        if let Some(found) = passwords.find(endpoint, &database.value, &user.value) {
            endpoint.password = Some(found.value);
            password_origin.get_or_insert(found.origin);
        }
        tls.check_host(&endpoint.host)?;
    }

    let mut entry = |key: &str, value: String, origin: Origin| {
        entries.push(Entry {
            key: key.to_owned(),
            value,
            origin,
        });
    };
    let settings = ConnectionSettings {
        endpoints,
        options: sources.get("options").map(|given| given.value),
        connect_timeout: connect_timeout(&sources)?,
        target: sources
            .choice("target_session_attrs", TARGET_SESSION)?
            .unwrap_or(TargetSession::Any),
        channel_binding,
        tls,
        user: user.value.clone(),
        database: database.value.clone(),
    };
    entry("user", user.value, user.origin);
    entry("database", database.value, database.origin);
    if let Some(origin) = password_origin {
        entry("password", "(hidden)".to_owned(), origin);
    }
    for keyword in SHOWN {
        if let Some(given) = sources.get(keyword) {
            entry(keyword, given.value, given.origin);
        }
    }
    Ok((settings, entries))
}

/// Parameters that `conf ls` shows where they are given.
const SHOWN: &[&str] = &[
    "options",
    "connect_timeout",
    "target_session_attrs",
    "channel_binding",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "sslcert",
    "sslkey",
];

const CHANNEL_BINDING: &[(&str, ChannelBinding)] = &[
    ("disable", ChannelBinding::Disable),
    ("prefer", ChannelBinding::Prefer),
    ("require", ChannelBinding::Require),
];

const TARGET_SESSION: &[(&str, TargetSession)] = &[
    ("any", TargetSession::Any),
    ("read-write", TargetSession::ReadWrite),
    ("read-only", TargetSession::ReadOnly),
    ("primary", TargetSession::Primary),
    ("standby", TargetSession::Standby),
    ("prefer-standby", TargetSession::PreferStandby),
];

fn user(sources: &Sources<'_>, environment: &Environment) -> Result<Sourced<String>> {
    let default = || {
        environment.user_name.clone().map(|value| Sourced {
            value,
            origin: Origin::Default,
        })
    };
    sources.get("user").or_else(default).ok_or_else(|| {
        Error::usage("the name of the operating system's user is not known")
            .hint("name the role to connect as: user in the configuration, or PGUSER")
    })
}

/// libpq's number of seconds; 0 and less wait for ever.
fn connect_timeout(sources: &Sources<'_>) -> Result<Option<Duration>> {
    let Some(given) = sources.get("connect_timeout") else {
        return Ok(Some(DEFAULT_CONNECT_TIMEOUT));
    };
    let seconds: i64 = given
        .value
        .trim()
        .parse()
        .map_err(|_| bad_value("connect_timeout", &given, "a number of seconds"))?;
    Ok(u64::try_from(seconds)
        .ok()
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs))
}

#[cfg(test)]
mod tests;
