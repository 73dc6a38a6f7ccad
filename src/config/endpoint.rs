//! The hosts of a server: names, addresses, sockets and ports.
//!
//! Follows interfaces/libpq/fe-connect.c: pqConnectOptions2().

use super::libpq::{Sources, bad_value};
use super::origin::{Entry, Origin, Sourced};
use super::secret::Secret;
use crate::error::{Error, Result};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

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

/// What PostgreSQL is built with: Debian's choice, then its own (pg_config_manual.h).
pub(super) const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Pairs hosts, addresses and ports as libpq does: lists of the same length,
/// except that one port serves all hosts.
pub(super) fn endpoints(sources: &Sources<'_>) -> Result<(Vec<Endpoint>, Vec<Entry>)> {
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

/// What `port` may be, for messages.
pub(super) const PORTS_ALLOWED: &str = "a number between 1 and 65535, or one for each host";

/// Reads a port, or a list of them.
pub(super) fn ports(text: &str) -> Option<Vec<u16>> {
    list(text)
        .into_iter()
        .map(|item| match item {
            "" => Some(5432),
            number => number.parse().ok().filter(|port| *port != 0),
        })
        .collect()
}

fn port_list(given: &Sourced<String>) -> Result<Vec<u16>> {
    ports(&given.value).ok_or_else(|| bad_value("port", given, PORTS_ALLOWED))
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
