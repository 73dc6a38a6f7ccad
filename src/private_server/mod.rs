//! A server of a rebuilt cluster that nobody else can reach, and that is gone with all its files in the end.
//!
//! It has a socket in a private folder and no port, neither archives nor replicates, and takes nothing from the cluster's own
//! configuration, which was made for another machine.

mod account;
mod installation;
mod scratch;
mod server;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::pg::version::Major;
use crate::restore::folder::{Account, Folder};

pub(crate) use installation::Installation;
pub(crate) use scratch::{Rebuild, Scratch};
pub(crate) use server::{Entrance, PrivateServer, Settings};

/// Where to find a server's programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Their folder; `None` to look where distributions put them.
    pub bin_dir: Option<PathBuf>,
    /// `$PATH`, where programs are looked for too.
    pub search_path: Option<OsString>,
}

/// Where the programs of a version's server are on this machine, and which release it is.
pub(crate) fn server_programs(
    major: Major,
    search_path: Option<&OsStr>,
) -> Option<(PathBuf, String)> {
    let found = Installation::find(major, None, search_path).ok()?;
    Some((found.bin().to_owned(), found.version))
}

/// What this machine has to run a cluster with.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) installation: Installation,
    /// Whom the server runs as; `None` for who we are.
    pub(crate) account: Option<Account>,
}

impl Host {
    /// Looks for a server of this version, and for the account to run it under: PostgreSQL refuses root. `directory` is
    /// where the cluster will be rebuilt.
    pub(crate) fn find(programs: &Programs, major: u32, directory: &Path) -> Result<Host> {
        let major = Major::from_number(major)
            .ok_or_else(|| Error::damage("backup.info has an unknown major version"))?;
        let account = Account::to_run_under(directory)?;
        let directory = std::path::absolute(directory)
            .map_err(|error| Error::io("find the folder", directory, &error))?;
        if let Some(closed) = account.and_then(|account| account.kept_out_of(&directory)) {
            return Err(Error::failed(format!(
                "the account that would run the server may not enter {}",
                closed.display()
            ))
            .hint("open that folder to it, or name another one"));
        }
        Ok(Host {
            installation: Installation::find(
                major,
                programs.bin_dir.as_deref(),
                programs.search_path.as_deref(),
            )?,
            account,
        })
    }

    /// Gives a folder to the account that will run the server, before the cluster is rebuilt in it.
    fn give(&self, folder: &Folder) -> Result<()> {
        match self.account {
            Some(account) => folder.own(account),
            None => Ok(()),
        }
    }
}
