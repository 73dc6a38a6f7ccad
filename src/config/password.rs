//! Which password goes to which host.

use super::endpoint::{Endpoint, Host, SOCKET_FOLDERS};
use super::environment::Environment;
use super::libpq::Sources;
use super::origin::{Origin, Sourced};
use super::passfile::{PasswordFile, Wanted};
use super::secret::Secret;
use std::path::{Path, PathBuf};

/// A password for all hosts, or the file that has one for each.
pub(super) struct Passwords {
    given: Option<Sourced<String>>,
    file: Option<PasswordFile>,
}

impl Passwords {
    /// Opens the password file, unless a password is given.
    pub(super) fn new(sources: &Sources<'_>, environment: &Environment) -> Passwords {
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

    /// The password for a host. libpq looks for the default socket's under `localhost`.
    pub(super) fn find(
        &self,
        endpoint: &Endpoint,
        database: &str,
        user: &str,
    ) -> Option<Sourced<Secret>> {
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
