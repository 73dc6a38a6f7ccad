//! The sessions of a pass.

use std::thread::{self, ScopedJoinHandle};

use postgres::Client;

use crate::backup::{Request, check_facts};
use crate::config::Source;
use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::server::connect::Connector;
use crate::server::facts::{self, Facts};
use crate::server::reading::FileReader;
use crate::server::source::{Amount, Chosen, Stream};
use crate::server::{self, Instance, permissions};

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
        connector: &Connector,
        interrupt: &Interrupt,
    ) -> Result<Connected> {
        let mut client = server::connect(connector, interrupt)?;
        let version = facts::version(&mut client)?;
        permissions::check(&mut client, version.major, request.server)?;
        let instance = server::instance(&mut client)?;
        let is_followed = !server::is_in_recovery(&mut client)?;
        let connect = || {
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

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    match thread.join() {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
