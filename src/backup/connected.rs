//! The sessions of a pass.

use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;

use crate::backup::{Request, check_facts};
use crate::config::Source;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::parallel::joined;
use crate::pg::version::Version;
use crate::progress::Progress;
use crate::server::connect::Connector;
use crate::server::facts::{self, Facts};
use crate::server::permissions::Lack;
use crate::server::reading::FileReader;
use crate::server::source::{Amount, Chosen, Stream};
use crate::server::{self, Instance};

/// The first session with a server.
pub(super) struct Met {
    pub(super) client: Client,
    pub(super) version: Version,
    /// What its role lacks.
    pub(super) lack: Option<Lack>,
}

impl Met {
    /// Connects.
    pub(super) fn meet(connector: &Connector, interrupt: &Interrupt) -> Result<Met> {
        let mut client = server::connect(connector, interrupt)?;
        let version = facts::version(&mut client)?;
        let lack = Lack::of(&mut client, version.major)?;
        Ok(Met {
            client,
            version,
            lack,
        })
    }
}

/// The sessions of a pass, and what they found the server to be.
pub(super) struct Connected {
    pub(super) sessions: Sessions,
    pub(super) instance: Instance,
    pub(super) facts: Facts,
    /// Which way files are read.
    pub(super) source: Source,
}

/// The sessions of a pass, all with the same server.
pub(super) struct Sessions {
    /// The one between start and stop.
    pub(super) client: Client,
    /// One a worker.
    pub(super) readers: Vec<FileReader>,
    /// The one that follows a primary's WAL.
    pub(super) follower: Option<FileReader>,
    /// The one for the slot.
    pub(super) keeper: Client,
    /// The one that streams files.
    pub(super) stream: Option<Stream>,
}

impl Connected {
    /// Connects to a server that can be backed up.
    pub(super) fn open(
        request: &Request<'_>,
        met: Met,
        connector: &Connector,
        interrupt: &Interrupt,
    ) -> Result<Connected> {
        let Met {
            mut client,
            version,
            lack,
        } = met;
        if let Some(lack) = lack {
            return Err(lack.error(request.server));
        }
        let instance = server::instance(&mut client)?;
        let is_followed = !server::is_in_recovery(&mut client)?;
        let connect = || -> Result<Client> {
            let mut client = server::connect(connector, interrupt)?;
            server::check_instance(&mut client, &instance)?;
            Ok(client)
        };
        let reader = || FileReader::new(connect()?);
        // Far away, each takes many round trips.
        thread::scope(|scope| {
            let others = request.workers - 1 + usize::from(is_followed);
            let others: Vec<_> = (0..others).map(|_| scope.spawn(reader)).collect();
            let keeper = scope.spawn(connect);
            let mut first = reader()?;
            let facts = Facts::read(&mut client, &mut first)?;
            check_facts(&facts)?;
            let amount = match request.parent {
                None => Amount::All,
                Some(_) => Amount::Parts,
            };
            let chosen = Chosen::choose(
                request.source,
                amount,
                version.major,
                connector,
                &mut first,
                interrupt,
            )?;
            log::info!("the way of the files: {chosen}");
            let mut readers = vec![first];
            for other in others {
                let mut reader = joined(other)?;
                reader.read_from(&chosen);
                readers.push(reader);
            }
            let follower = match is_followed {
                true => readers.pop(),
                false => None,
            };
            let source = chosen.source();
            let sessions = Sessions {
                client,
                readers,
                follower,
                keeper: joined(keeper)?,
                stream: chosen.into_stream(),
            };
            Ok(Connected {
                sessions,
                instance: instance.clone(),
                facts,
                source,
            })
        })
    }
}

/// How long a server is waited for that was lost.
const SERVER_WITHIN: Duration = Duration::from_secs(10 * 60);

/// Between two attempts to reach it.
const SERVER_PAUSE: Duration = Duration::from_secs(2);

/// Connects again. A server that went away is waited for.
pub(super) fn again<T>(
    progress: &dyn Progress,
    interrupt: &Interrupt,
    open: impl Fn() -> Result<T>,
) -> Result<T> {
    let give_up = Instant::now() + SERVER_WITHIN;
    progress.step("connect", None);
    let mut is_told = false;
    loop {
        match open() {
            Err(error) if error.is_momentary() && Instant::now() < give_up => {
                if !std::mem::replace(&mut is_told, true) {
                    let minutes = SERVER_WITHIN.as_secs() / 60;
                    log::warn!("waiting for the server, {minutes} minutes at most: {error}");
                }
                interrupt.wait(SERVER_PAUSE)?;
            }
            outcome => return outcome,
        }
    }
}

/// Another cluster at the same address is no place to go on.
pub(super) fn expect_the_same(before: &Facts, now: &Facts) -> Result<()> {
    let (before, now) = (&before.control, &now.control);
    if before.system_identifier == now.system_identifier {
        return Ok(());
    }
    Err(Error::server(format!(
        "the server was lost, and what answers now is another cluster: its system identifier is {}, and was {}",
        now.system_identifier, before.system_identifier
    ))
    .hint("correct `host` and `port`, or stop what has taken the server's place; then start the backup again"))
}
