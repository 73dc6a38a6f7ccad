//! The drill: a rebuilt cluster is started by its own version's server, and all of it is read.
//!
//! The server is a stranger to everybody else: it has a socket in a private folder and no port, neither archives nor
//! replicates, and takes nothing from the cluster's own configuration, which was made for another machine.

mod account;
mod amcheck;
mod installation;
mod reading;
mod server;

pub use amcheck::Amcheck;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::control::{CONTROL_FILE, CONTROL_FILE_SIZE, ControlFile};
use crate::pg::version::Major;
use crate::progress::Progress;
use crate::repository::backup_info::DrillOutcome;
use crate::restore::folder::{Account, Folder};
use crate::verify::drill::installation::Installation;
use crate::verify::drill::server::{PrivateServer, Settings};

/// Where to find a server, and how to connect to it.
#[derive(Debug, Clone)]
pub struct Request {
    /// The folder of its programs; `None` to look where distributions put them.
    pub bin_dir: Option<PathBuf>,
    /// `$PATH`, where programs are looked for too.
    pub search_path: Option<OsString>,
    /// A role that the cluster has, such as the one that made the backup.
    pub role: String,
    /// Sessions that read at the same time.
    pub workers: usize,
}

/// A drill that can be held: all that it needs from this machine is there.
#[derive(Debug)]
pub struct Drill<'a> {
    request: &'a Request,
    installation: Installation,
    account: Option<Account>,
}

/// What a drill showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The server that was started, such as `17.11`.
    pub server_version: String,
    /// How many databases were read, and how many tables, materialized views and sequences.
    pub databases: u64,
    /// See `databases`.
    pub relations: u64,
    /// Whether pg_amcheck looked at it too.
    pub amcheck: Amcheck,
    /// What went wrong; nothing in a cluster that can be relied on.
    pub problems: Vec<String>,
}

impl Held {
    /// What is remembered of it.
    pub fn outcome(&self) -> DrillOutcome {
        match self.problems.first() {
            None => DrillOutcome::Passed,
            Some(first) => DrillOutcome::Failed {
                reason: match self.problems.len() {
                    1 => first.clone(),
                    problems => format!("{first} (the first of {problems} problems)"),
                },
            },
        }
    }
}

impl<'a> Drill<'a> {
    /// Looks for a server of this version, and for the account to run it under: PostgreSQL refuses root. `directory` is
    /// where the cluster will be rebuilt.
    pub fn prepare(request: &'a Request, major: u32, directory: &Path) -> Result<Drill<'a>> {
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
            .hint("open that folder to it, or name another DIRECTORY"));
        }
        Ok(Drill {
            request,
            installation: Installation::find(
                major,
                request.bin_dir.as_deref(),
                request.search_path.as_deref(),
            )?,
            account,
        })
    }

    /// Gives a folder to the account that will run the server, before the cluster is rebuilt in it.
    pub(crate) fn give(&self, folder: &Folder) -> Result<()> {
        match self.account {
            Some(account) => folder.own(account),
            None => Ok(()),
        }
    }

    /// Starts the cluster in `data`, reads all of it, and stops it. `place` is a folder for the
    /// server's configuration and log, which goes away with the cluster. A cluster that fails the drill is no
    /// error: what went wrong is told in the result.
    pub(crate) fn hold(
        &self,
        data: &Path,
        place: &Folder,
        progress: &dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<Held> {
        let mut held = Held {
            server_version: self.installation.version.clone(),
            databases: 0,
            relations: 0,
            amcheck: Amcheck::NotRun,
            problems: Vec::new(),
        };
        progress.step("start", None);
        let settings = Settings {
            major: self.installation.major,
            max_prepared_transactions: max_prepared_transactions(data)?,
            has_tablespaces_in_place: has_tablespaces_in_place(data)?,
            workers: self.request.workers,
        };
        let mut server =
            PrivateServer::start(&self.installation, self.account, data, place, &settings)?;
        let superuser = match server.wait_until_recovered(&self.request.role, interrupt) {
            Ok(superuser) => superuser,
            Err(error) => {
                interrupt.check()?;
                held.problems.push(error.message().to_owned());
                return Ok(held);
            }
        };
        reading::read_all(
            &server,
            &superuser,
            self.request.workers,
            &mut held,
            progress,
            interrupt,
        )?;
        if held.problems.is_empty() {
            progress.step("amcheck", None);
            amcheck::check(self, &server, &superuser, place, &mut held, interrupt)?;
        }
        Ok(held)
    }
}

/// Other tablespaces are links.
fn has_tablespaces_in_place(data: &Path) -> Result<bool> {
    let folder = data.join("pg_tblspc");
    let failed = |error| Error::io("read the folder", &folder, &error);
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Recovery of prepared transactions needs as much room as the source had.
fn max_prepared_transactions(data: &Path) -> Result<u32> {
    let path = data.join(CONTROL_FILE);
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(CONTROL_FILE_SIZE as u64).read_to_end(&mut bytes))
        .map_err(|error| Error::io("read", &path, &error))?;
    ControlFile::parse(&bytes)
        .map(|control| control.limits.max_prepared_transactions)
        .map_err(|fault| Error::damage(format!("{}: {fault}", path.display())))
}
