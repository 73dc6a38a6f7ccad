//! How to reach a server: libpq's parameters, resolved and checked.

use super::environment::Environment;
use super::libpq::{Sources, bad_value};
use super::origin::{Entry, Origin, Sourced};
use super::passfile::{PasswordFile, Wanted};
use super::secret::Secret;
use super::settings;
use super::tls::{SslMode, TlsSettings};
use crate::error::{Error, Result};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
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

/// One host with its port.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The host.
    pub host: Host,
    /// The port; of a Unix socket, the number in its name.
    pub port: u16,
    /// The password for this host.
    pub password: Option<Secret>,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// The folder of a Unix socket.
    Socket(PathBuf),
    /// A name or an address in words, and the address if it must not be looked up.
    Network {
        /// What a certificate must be made out to.
        name: String,
        /// `hostaddr`.
        address: Option<IpAddr>,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Socket(folder) => write!(f, "host {}", folder.display())?,
            Host::Network { name, address } => {
                write!(f, "host {name}")?;
                match address {
                    Some(address) if address.to_string() != *name => write!(f, " ({address})")?,
                    _ => {}
                }
            }
        }
        write!(f, " port {}", self.port)
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

/// What PostgreSQL is built with: Debian's choice, then its own (pg_config_manual.h).
const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

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
    refuse_unsupported(&sources, channel_binding)?;
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

/// Pairs hosts, addresses and ports as libpq does: lists of the same length,
/// except that one port serves all hosts.
fn endpoints(sources: &Sources<'_>) -> Result<(Vec<Endpoint>, Vec<Entry>)> {
    let hosts = sources.get("host");
    // An address from elsewhere would send a section's server to another machine.
    let addresses = sources
        .get("hostaddr")
        .filter(|_| !sources.section_has_host());
    let ports = sources.get("port");
    let port_list = ports
        .as_ref()
        .map(port_list)
        .transpose()?
        .unwrap_or(vec![5432]);

    let names = hosts.as_ref().map(|given| list(&given.value));
    let address_list = addresses.as_ref().map(address_list).transpose()?;
    let count = match (&names, &address_list) {
        (Some(names), Some(addresses)) if names.len() != addresses.len() => {
            return Err(Error::usage(format!(
                "there are {} hosts, but {} addresses",
                names.len(),
                addresses.len()
            ))
            .hint("give host and hostaddr as many items each"));
        }
        (Some(names), _) => names.len(),
        (None, Some(addresses)) => addresses.len(),
        (None, None) => 1,
    };
    if port_list.len() != 1 && port_list.len() != count {
        return Err(Error::usage(format!(
            "there are {count} hosts, but {} ports",
            port_list.len()
        ))
        .hint("give one port for all hosts, or one for each"));
    }
    let mut endpoints = Vec::with_capacity(count);
    for index in 0..count {
        let port = port_list
            .get(index)
            .or(port_list.first())
            .copied()
            .unwrap_or(5432);
        let name = names
            .as_ref()
            .and_then(|names| names.get(index))
            .filter(|name| !name.is_empty());
        let address = address_list
            .as_ref()
            .and_then(|addresses| addresses.get(index))
            .copied()
            .flatten();
        let host = match (name, address) {
            (Some(name), None) if name.starts_with('/') => Host::Socket(PathBuf::from(name)),
            (Some(name), address) => Host::Network {
                name: (*name).to_owned(),
                address,
            },
            (None, Some(address)) => Host::Network {
                name: address.to_string(),
                address: Some(address),
            },
            (None, None) => Host::Socket(default_socket_folder(port)),
        };
        endpoints.push(Endpoint {
            host,
            port,
            password: None,
        });
    }
    let entries = endpoint_entries(&endpoints, hosts, addresses, ports);
    Ok((endpoints, entries))
}

fn endpoint_entries(
    endpoints: &[Endpoint],
    hosts: Option<Sourced<String>>,
    addresses: Option<Sourced<String>>,
    ports: Option<Sourced<String>>,
) -> Vec<Entry> {
    let default = || {
        let folders = endpoints.iter().map(|endpoint| match &endpoint.host {
            Host::Socket(folder) => folder.display().to_string(),
            Host::Network { name, .. } => name.clone(),
        });
        Sourced {
            value: folders.collect::<Vec<_>>().join(","),
            origin: Origin::Default,
        }
    };
    let host = match (&hosts, &addresses) {
        (None, Some(_)) => None,
        _ => Some(hosts.unwrap_or_else(default)),
    };
    let port = ports.unwrap_or(Sourced {
        value: "5432".to_owned(),
        origin: Origin::Default,
    });
    [
        ("host", host),
        ("hostaddr", addresses),
        ("port", Some(port)),
    ]
    .into_iter()
    .filter_map(|(key, given)| {
        let Sourced { value, origin } = given?;
        Some(Entry {
            key: key.to_owned(),
            value,
            origin,
        })
    })
    .collect()
}

fn list(text: &str) -> Vec<&str> {
    text.split(',').map(str::trim).collect()
}

fn port_list(given: &Sourced<String>) -> Result<Vec<u16>> {
    list(&given.value)
        .into_iter()
        .map(|item| match item {
            "" => Some(5432),
            number => number.parse().ok().filter(|port| *port != 0),
        })
        .collect::<Option<_>>()
        .ok_or_else(|| bad_value("port", given, "a number between 1 and 65535"))
}

fn address_list(given: &Sourced<String>) -> Result<Vec<Option<IpAddr>>> {
    list(&given.value)
        .into_iter()
        .map(|item| match item {
            "" => Some(None),
            address => address.parse().ok().map(Some),
        })
        .collect::<Option<_>>()
        .ok_or_else(|| bad_value("hostaddr", given, "an IPv4 or IPv6 address"))
}

/// The folder in which a server has a socket for this port, else the first.
fn default_socket_folder(port: u16) -> PathBuf {
    let [first, _] = SOCKET_FOLDERS;
    let folder = SOCKET_FOLDERS
        .into_iter()
        .find(|folder| Path::new(folder).join(format!(".s.PGSQL.{port}")).exists());
    PathBuf::from(folder.unwrap_or(first))
}

/// A password for all hosts, or the file that has one for each.
struct Passwords {
    given: Option<Sourced<String>>,
    file: Option<PasswordFile>,
}

impl Passwords {
    fn new(sources: &Sources<'_>, environment: &Environment) -> Passwords {
        let given = sources.get("password");
        let path = match sources.get("passfile") {
            Some(path) => Some(PathBuf::from(path.value)),
            None => environment.home.as_ref().map(|home| home.join(".pgpass")),
        };
        let file = match given {
            Some(_) => None,
            None => path.and_then(|path| PasswordFile::open(&path)),
        };
        Passwords { given, file }
    }

    fn find(&self, endpoint: &Endpoint, database: &str, user: &str) -> Option<Sourced<Secret>> {
        if let Some(given) = &self.given {
            return Some(Sourced {
                value: Secret::new(given.value.clone()),
                origin: given.origin.clone(),
            });
        }
        let file = self.file.as_ref()?;
        let folder;
        let host = match &endpoint.host {
            Host::Network { name, .. } => name,
            Host::Socket(path) if SOCKET_FOLDERS.iter().any(|known| path == Path::new(known)) => {
                "localhost"
            }
            Host::Socket(path) => {
                folder = path.to_string_lossy();
                folder.as_ref()
            }
        };
        let wanted = Wanted {
            host,
            port: endpoint.port,
            database,
            user,
        };
        Some(Sourced {
            value: file.password(wanted)?,
            origin: Origin::PasswordFile(file.path.clone()),
        })
    }
}

/// Refuses what pgkeep cannot honour and libpq's users rely on.
fn refuse_unsupported(sources: &Sources<'_>, channel_binding: ChannelBinding) -> Result<()> {
    let refuse = |keyword: &str, given: &Sourced<String>, hint: &str| {
        Err(Error::usage(format!(
            "{}: {keyword} = {} is not supported",
            given.origin, given.value
        ))
        .hint(hint))
    };
    if let Some(given) = sources.get("requirepeer") {
        return refuse(
            "requirepeer",
            &given,
            "unset it, or connect over TLS with sslmode verify-full",
        );
    }
    let gssencmode = sources.get("gssencmode");
    if let Some(given) = gssencmode.filter(|given| given.value == "require") {
        return refuse(
            "gssencmode",
            &given,
            "use TLS instead, for instance sslmode verify-full",
        );
    }
    let require_auth = sources.get("require_auth");
    if let Some(given) = require_auth.filter(|given| !satisfies(&given.value, channel_binding)) {
        return refuse(
            "require_auth",
            &given,
            "only scram-sha-256 can be required, and only with channel_binding=require",
        );
    }
    Ok(())
}

/// Every method that could come to be used is one that `require_auth` allows.
/// With channel binding required, the only one is SCRAM.
fn satisfies(required: &str, channel_binding: ChannelBinding) -> bool {
    let possible: &[&str] = match channel_binding {
        ChannelBinding::Require => &["scram-sha-256"],
        _ => &["scram-sha-256", "md5", "password", "none"],
    };
    let methods = list(required);
    let (refused, allowed): (Vec<&str>, Vec<&str>) =
        methods.iter().partition(|method| method.starts_with('!'));
    possible.iter().all(|method| {
        (allowed.is_empty() || allowed.contains(method))
            && !refused
                .iter()
                .any(|refused| refused.strip_prefix('!') == Some(method))
    })
}

/// The mode in which nothing but an encrypted connection to the right server is made.
pub(super) fn is_verified(mode: SslMode) -> bool {
    matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull)
}
