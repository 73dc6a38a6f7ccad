//! The drill: a rebuilt cluster is started by its own version's server, and all of it is read.

mod amcheck;
mod reading;

pub use amcheck::Amcheck;

use std::path::Path;

use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::private_server::{Entrance, Host, PrivateServer, Programs, Settings};
use crate::progress::Progress;
use crate::repository::backup_info::DrillOutcome;
use crate::restore::folder::Folder;

/// Where to find a server, and how to connect to it.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where its programs are.
    pub programs: Programs,
    /// A role that the cluster has, such as the one that made the backup.
    pub role: String,
    /// Sessions that read at the same time.
    pub workers: usize,
}

/// A drill that can be held: all that it needs from this machine is there.
#[derive(Debug)]
pub struct Drill<'a> {
    request: &'a Request,
    host: Host,
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
    /// Looks for what the drill needs. `directory` is where the cluster will be rebuilt.
    pub fn prepare(request: &'a Request, major: u32, directory: &Path) -> Result<Drill<'a>> {
        Ok(Drill {
            request,
            host: Host::find(&request.programs, major, directory)?,
        })
    }

    /// What runs the server.
    pub(crate) fn host(&self) -> &Host {
        &self.host
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
            server_version: self.host.installation.version.clone(),
            databases: 0,
            relations: 0,
            amcheck: Amcheck::NotRun,
            problems: Vec::new(),
        };
        progress.step("start", None);
        let major = self.host.installation.major;
        let settings = Settings::of("drill", major, data, self.request.workers)?;
        let mut server = PrivateServer::start(&self.host, data, place, &settings)?;
        let entrance = Entrance {
            databases: &["postgres", "template1"],
            roles: std::slice::from_ref(&self.request.role),
        };
        let superuser = match server.wait_until_recovered(&entrance, interrupt) {
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
