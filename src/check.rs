//! Whether a backup could be made: everything it needs, one thing at a time.

use postgres::Client;

use crate::backup::{check_facts, replicated};
use crate::config::Source;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::version::Major;
use crate::repository::catalogue::Catalogue;
use crate::repository::layout::ServerFolder;
use crate::server::connect::{Connector, server_error};
use crate::server::facts::{self, Facts};
use crate::server::permissions::{self, Lack, Requirement};
use crate::server::reading::FileReader;
use crate::server::source::{Amount, Chosen, Stream};
use crate::size::readable;

/// One thing that was looked at.
pub struct Check {
    /// What it is.
    pub name: &'static str,
    /// What was seen, or why it will not do.
    pub outcome: Result<String>,
}

/// What is looked at, and how.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The server's name in the configuration.
    pub server: &'a str,
    /// Its part of the repository.
    pub folder: &'a ServerFolder,
    /// How to connect to it.
    pub connector: &'a Connector,
    /// Connections that read and threads that compress.
    pub workers: usize,
    /// Which way files are read; `None` for the one that suits the server best.
    pub source: Option<Source>,
    /// What ends it early.
    pub interrupt: &'a Interrupt,
}

/// Looks at everything. What cannot be looked at because something before it failed is left out.
pub fn run(subject: Subject<'_>) -> Result<Vec<Check>> {
    let Subject {
        folder,
        connector,
        interrupt,
        ..
    } = subject;
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
    checks.extend(check_server(&mut client, subject)?);
    Ok(checks)
}

fn check_server(client: &mut Client, subject: Subject<'_>) -> Result<Vec<Check>> {
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
    let lack = Lack::of(client, version.major)?;
    let bearable = |lack: &Lack| replicated::is_bearable(lack, subject.source);
    if let Some(lack) = lack.filter(|lack| version.major >= Major::V15 && bearable(lack)) {
        checks.extend(check_confined(client, &lack, subject)?);
        return Ok(checks);
    }
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
        // One a worker, one for start and stop, one for the slot, and one that follows the WAL.
        outcome: check_connections(subject, subject.workers + 3),
    });
    if permitted {
        checks.extend(check_settings(client, subject)?);
    }
    Ok(checks)
}

/// Of a role that has the attribute REPLICATION alone.
fn check_confined(client: &mut Client, lack: &Lack, subject: Subject<'_>) -> Result<Vec<Check>> {
    let Subject {
        server,
        connector,
        interrupt,
        ..
    } = subject;
    let mut checks = vec![
        Check {
            name: "permission",
            outcome: Ok(Requirement::Replication.describe()),
        },
        Check {
            name: "permission",
            outcome: Ok(format!("{}, and can do without", lack.describe())),
        },
        Check {
            name: "slot",
            outcome: check_slots(client),
        },
        Check {
            name: "connections",
            // One for questions, and one for the slot.
            outcome: check_connections(subject, 2),
        },
    ];
    let facts = Facts::without_files(client)?;
    let stream = Stream::to(facts.version.major, connector, client, interrupt);
    let way = replicated::check_contents(&facts)
        .and(stream.map(|stream| replicated::way(&stream, server)))
        .map_err(|error| lack.blamed_for(error, server));
    checks.extend(checks_of(&facts, way));
    Ok(checks)
}

fn check_settings(client: &mut Client, subject: Subject<'_>) -> Result<Vec<Check>> {
    let Subject {
        connector,
        source,
        interrupt,
        ..
    } = subject;
    let mut reader = FileReader::connect(connector, interrupt)?;
    let facts = Facts::read(client, &mut reader)?;
    let major = facts.version.major;
    let amount = Amount::All;
    let chosen = Chosen::choose(source, amount, major, connector, &mut reader, interrupt);
    let way = chosen.map(|chosen| chosen.to_string());
    Ok(checks_of(&facts, way).into())
}

/// What the server is like, and which way files are read.
fn checks_of(facts: &Facts, way: Result<String>) -> [Check; 3] {
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
    [
        Check {
            name: "source",
            outcome: way,
        },
        Check {
            name: "server",
            outcome: check_facts(facts).map(|()| format!("{role}, wal_level {}", facts.wal_level)),
        },
        Check {
            name: "data checksums",
            outcome: Ok(checksums.to_owned()),
        },
    ]
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

/// Whether so many can be had, of which there is one already.
fn check_connections(subject: Subject<'_>, connections: usize) -> Result<String> {
    let others = (1..connections)
        .map(|_| crate::server::connect(subject.connector, subject.interrupt))
        .collect::<Result<Vec<Client>>>();
    others
        .map(|_| format!("{connections} at the same time"))
        .map_err(|error| error.hint("take fewer workers (-j), or raise max_connections"))
}

fn check_repository(folder: &ServerFolder) -> Result<String> {
    folder.check_format()?;
    let root = folder.root();
    root.check_writable()?;
    let catalogue = Catalogue::read(&root.name(), folder)?;
    let last = catalogue.newest_info().map(|info| info.backup_size);
    match (root.room()?, last) {
        (Some(free), Some(last)) if free < last => Err(Error::failed(format!(
            "{root} has {} free, and the newest backup took {}",
            readable(free),
            readable(last)
        ))
        .hint("free some space there")),
        (Some(free), _) => Ok(format!("{root}, {} free", readable(free))),
        (None, _) => Ok(root.to_string()),
    }
}
