//! Whether a backup could be made: everything it needs, one thing at a time.

use std::path::Path;

use postgres::Client;

use crate::config::Source;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::repository::catalogue::Catalogue;
use crate::repository::layout::ServerFolder;
use crate::server::connect::{Connector, server_error};
use crate::server::facts::{self, Facts};
use crate::server::permissions;
use crate::server::reading::FileReader;
use crate::server::source::{Amount, Chosen};
use crate::size::readable;

/// One thing that was looked at.
pub struct Check {
    /// What it is.
    pub name: &'static str,
    /// What was seen, or why it will not do.
    pub outcome: Result<String>,
}

/// Looks at everything. What cannot be looked at because something before it failed is left out.
pub fn run(
    folder: &ServerFolder,
    connector: &Connector,
    workers: usize,
    source: Option<Source>,
    interrupt: &Interrupt,
) -> Result<Vec<Check>> {
    let mut checks = vec![Check {
        name: "repository",
        outcome: check_repository(folder),
    }];
    let mut client = match crate::server::connect(connector, interrupt) {
        Ok(client) => client,
        Err(error) => {
            checks.push(Check {
                name: "connection",
                outcome: Err(error),
            });
            return Ok(checks);
        }
    };
    checks.push(Check {
        name: "connection",
        outcome: Ok(connector.describe()),
    });
    checks.extend(check_server(
        &mut client,
        connector,
        workers,
        source,
        interrupt,
    )?);
    Ok(checks)
}

fn check_server(
    client: &mut Client,
    connector: &Connector,
    workers: usize,
    source: Option<Source>,
    interrupt: &Interrupt,
) -> Result<Vec<Check>> {
    let version = match facts::version(client) {
        Ok(version) => version,
        Err(error) => {
            return Ok(vec![Check {
                name: "version",
                outcome: Err(error),
            }]);
        }
    };
    let mut checks = vec![Check {
        name: "version",
        outcome: Ok(version.to_string()),
    }];
    let role = permissions::current_role(client)?;
    let mut permitted = true;
    for (requirement, met) in permissions::met(client, version.major)? {
        permitted &= met;
        let outcome = if met {
            Ok(requirement.describe())
        } else {
            Err(
                Error::server(format!("the role {role} lacks {}", requirement.describe()))
                    .hint(format!("as a superuser run: {}", requirement.grant(&role))),
            )
        };
        checks.push(Check {
            name: "permission",
            outcome,
        });
    }
    checks.push(Check {
        name: "slot",
        outcome: check_slots(client),
    });
    checks.push(Check {
        name: "connections",
        outcome: check_connections(connector, workers, interrupt),
    });
    if permitted {
        checks.extend(check_settings(client, connector, source, interrupt)?);
    }
    Ok(checks)
}

fn check_settings(
    client: &mut Client,
    connector: &Connector,
    source: Option<Source>,
    interrupt: &Interrupt,
) -> Result<Vec<Check>> {
    let mut reader = FileReader::connect(connector, interrupt)?;
    let facts = Facts::read(client, &mut reader)?;
    let major = facts.version.major;
    let amount = Amount::All;
    let chosen = Chosen::choose(source, amount, major, connector, &mut reader, interrupt);
    let role = if facts.in_recovery {
        "a standby"
    } else {
        "a primary"
    };
    let checksums = if facts.data_checksums {
        "on"
    } else {
        "off: damaged pages cannot be found"
    };
    Ok(vec![
        Check {
            name: "source",
            outcome: chosen.map(|chosen| chosen.to_string()),
        },
        Check {
            name: "server",
            outcome: crate::backup::check_facts(&facts)
                .map(|()| format!("{role}, wal_level {}", facts.wal_level)),
        },
        Check {
            name: "data checksums",
            outcome: Ok(checksums.to_owned()),
        },
    ])
}

/// A backup takes a temporary slot, and goes without where there is none.
fn check_slots(client: &mut Client) -> Result<String> {
    let row = client
        .query_one(
            "SELECT current_setting('max_replication_slots')::int8, (SELECT count(*) FROM pg_replication_slots)",
            &[],
        )
        .map_err(|error| server_error("count the replication slots", &error))?;
    let (most, used): (i64, i64) = (row.get(0), row.get(1));
    if used >= most {
        log::warn!(
            "all {most} replication slots are in use, so nothing makes the server keep the WAL of a backup: one fails where that is removed before its end and not in the archive. Raise max_replication_slots and restart the server, or drop a slot nobody uses"
        );
    }
    Ok(format!("{used} of {most} replication slots in use"))
}

/// A backup needs a connection a worker, one for its start and stop, one for its slot, and one that follows the WAL.
fn check_connections(
    connector: &Connector,
    workers: usize,
    interrupt: &Interrupt,
) -> Result<String> {
    let connections = (0..workers + 2)
        .map(|_| crate::server::connect(connector, interrupt))
        .collect::<Result<Vec<Client>>>();
    connections
        .map(|_| format!("{} at the same time", workers + 3))
        .map_err(|error| error.hint("take fewer workers (-j), or raise max_connections"))
}

fn check_repository(folder: &ServerFolder) -> Result<String> {
    folder.check_format()?;
    let existing = folder
        .root()
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    rustix::fs::access(existing, rustix::fs::Access::WRITE_OK)
        .map_err(|error| Error::io("write into", existing, &error.into()))?;
    let room = rustix::fs::statvfs(existing)
        .map_err(|error| Error::io("look at", existing, &error.into()))?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    let name = folder
        .root()
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let catalogue = Catalogue::read(&name, folder)?;
    let last = catalogue.newest_info().map(|info| info.backup_size);
    match last {
        Some(last) if free < last => Err(Error::failed(format!(
            "{} has {} free, and the newest backup took {}",
            folder.root().display(),
            readable(free),
            readable(last)
        ))
        .hint("free some space there")),
        _ => Ok(format!(
            "{}, {} free",
            folder.root().display(),
            readable(free)
        )),
    }
}
