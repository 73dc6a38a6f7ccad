//! Which way a server's files are read, and why.

use std::fmt;
use std::sync::Arc;

use postgres::Client;

use crate::config::Source;
use crate::error::{Error, Kind, Result};
use crate::interrupt::Interrupt;
use crate::pg::version::Major;
use crate::server::conflict;
use crate::server::connect::{Connector, server_error};
use crate::server::disk::DataDirectory;
use crate::server::reading::FileReader;
use crate::server::replication::{
    BaseBackup, BaseBackupOptions, ReplicationSession, ServerCompression,
};
use crate::server::session::Checkpoint;
use crate::server::witness;
use crate::stored::compression::Algorithm;

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// The whole cluster.
    All,
    /// Some blocks of it, or its WAL.
    Parts,
}

/// The way that was chosen.
pub struct Chosen {
    /// In words: why it is this one.
    pub why: String,
    way: Way,
}

enum Way {
    Direct(Arc<DataDirectory>),
    Sql,
    Stream(Box<Stream>),
}

/// A session that can stream, and how the server compresses.
pub struct Stream {
    session: ReplicationSession,
    compression: ServerCompression,
}

/// A way, or why it is out of the question.
type Suits<T> = std::result::Result<T, Error>;

/// "sql (the server is on another machine)".
impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.source(), self.why)
    }
}

impl Chosen {
    /// Chooses for the server that a reader is with, which then reads that way; `wanted` is what the user says.
    pub fn choose(
        wanted: Option<Source>,
        amount: Amount,
        major: Major,
        connector: &Connector,
        reader: &mut FileReader,
        interrupt: &Interrupt,
    ) -> Result<Chosen> {
        let chosen = match wanted {
            Some(Source::Sql) => Chosen::sql("as asked for"),
            Some(Source::Direct) => Chosen::direct(major, connector, reader)?.map_err(|why| {
                why.context("the server's files cannot be read from its disk").hint(
                    "run pgkeep on the server's machine as the account that the server runs as, or as root; or set source = auto",
                )
            })?,
            Some(Source::Stream) if amount == Amount::Parts => Chosen::sql(PARTS),
            Some(Source::Stream) => Chosen::stream(major, connector, reader, interrupt)?
                .map_err(no_stream)?,
            None if connector.is_with_this_machine() => {
                Chosen::direct(major, connector, reader)?.unwrap_or_else(|why| Chosen::sql(in_words(&why)))
            }
            None if amount == Amount::Parts => Chosen::sql(PARTS),
            None => Chosen::stream(major, connector, reader, interrupt)?.unwrap_or_else(|why| {
                Chosen::sql(format!(
                    "the server is on another machine, and the network carries files as large as they are: {}",
                    in_words(&why)
                ))
            }),
        };
        reader.read_from(&chosen);
        Ok(chosen)
    }

    /// Which it is.
    pub fn source(&self) -> Source {
        match self.way {
            Way::Direct(_) => Source::Direct,
            Way::Sql => Source::Sql,
            Way::Stream(_) => Source::Stream,
        }
    }

    /// The data directory, where files are read from disk.
    pub(super) fn disk(&self) -> Option<Arc<DataDirectory>> {
        match &self.way {
            Way::Direct(directory) => Some(Arc::clone(directory)),
            Way::Sql | Way::Stream(_) => None,
        }
    }

    /// What can stream.
    pub fn into_stream(self) -> Option<Stream> {
        match self.way {
            Way::Stream(stream) => Some(*stream),
            Way::Direct(_) | Way::Sql => None,
        }
    }

    fn sql(why: impl Into<String>) -> Chosen {
        Chosen {
            why: why.into(),
            way: Way::Sql,
        }
    }

    /// From the server's disk, or why not.
    fn direct(
        major: Major,
        connector: &Connector,
        reader: &mut FileReader,
    ) -> Result<Suits<Chosen>> {
        if !connector.is_with_this_machine() {
            return Ok(Err(Error::server("the server is on another machine")));
        }
        let proven = match DataDirectory::prove(major, connector, reader) {
            // This machine's own trouble does not keep the server from reading.
            Err(error) if error.kind() == Kind::Failed => {
                return Ok(Err(Error::server(error.message())));
            }
            proven => proven?,
        };
        Ok(proven
            .map(|directory| Chosen {
                why: format!("{} is on this machine", directory.path().display()),
                way: Way::Direct(Arc::new(directory)),
            })
            .map_err(|reason| Error::server(reason.0)))
    }

    /// From a stream, or why not.
    fn stream(
        major: Major,
        connector: &Connector,
        reader: &mut FileReader,
        interrupt: &Interrupt,
    ) -> Result<Suits<Chosen>> {
        Ok(
            Stream::open(major, connector, reader.client(), interrupt)?.map(|stream| {
                let algorithm = stream.compression.algorithm();
                Chosen {
                    why: format!("the server compresses what it sends, by {algorithm}"),
                    way: Way::Stream(Box::new(stream)),
                }
            }),
        )
    }
}

impl Stream {
    /// To the server that a client is with, where nothing but that will do.
    pub fn to(
        major: Major,
        connector: &Connector,
        client: &mut Client,
        interrupt: &Interrupt,
    ) -> Result<Stream> {
        Stream::open(major, connector, client, interrupt)?.map_err(no_stream)
    }

    /// To the server that a client is with, or why not.
    fn open(
        major: Major,
        connector: &Connector,
        client: &mut Client,
        interrupt: &Interrupt,
    ) -> Result<Suits<Stream>> {
        if major < Major::V15 {
            let old = Error::server("PostgreSQL 14 does not compress what it sends");
            return Ok(Err(old.hint("set source = auto")));
        }
        let compression = compression(client)?;
        let mut session = match connector.connect_replication(interrupt) {
            Ok(session) => session,
            // A server that is gone does not answer to SQL either.
            Err(error) if error.kind() == Kind::Server => return Ok(Err(error)),
            Err(error) => return Err(error),
        };
        // Behind a load balancer it could be another one, whose files are of another moment.
        let is_the_same = witness::ask(client, |name| {
            let rows = session.query(&format!("READ_REPLICATION_SLOT {name}"))?;
            Ok(matches!(&rows[..], [row] if row.first().is_some_and(Option::is_some)))
        })?;
        Ok(match is_the_same {
            Some(true) => Ok(Stream {
                session,
                compression,
            }),
            Some(false) => Err(Error::server(
                "the session for replication is with another server",
            )
            .hint("connect to the server itself, not through a load balancer; or set source = sql")),
            None => Err(Error::server(
                "the server has no replication slot left to prove by that both sessions are with it",
            )
            .hint("raise max_replication_slots on the server and restart it")),
        })
    }
}

fn no_stream(why: Error) -> Error {
    why.context("the server cannot stream its files")
}

/// An error as a reason.
fn in_words(error: &Error) -> String {
    match error.advice() {
        Some(advice) => format!("{} ({advice})", error.message()),
        None => error.message().to_owned(),
    }
}

/// Blocks and WAL are asked for.
const PARTS: &str = "only parts of the cluster are read";

/// What a server can compress by is among the values of `wal_compression`, which has had these since 15.
const COMPRESSION: &str = "\
SELECT coalesce(enumvals, '{}') FROM pg_settings WHERE name = 'wal_compression'";

/// How a server compresses best.
fn compression(client: &mut Client) -> Result<ServerCompression> {
    let values: Vec<String> = conflict::repeated(|| client.query_typed_one(COMPRESSION, &[]))
        .and_then(|row| row.try_get(0))
        .map_err(|error| server_error("ask what the server can compress by", &error))?;
    let has = |algorithm: &str| values.iter().any(|value| value == algorithm);
    Ok(if has("zstd") {
        ServerCompression::Zstd {
            level: Some(LEVEL),
            workers: None,
        }
    } else if has("lz4") {
        ServerCompression::Lz4 { level: None }
    } else {
        ServerCompression::Gzip { level: Some(LEVEL) }
    })
}

/// The server's machine has other things to do.
const LEVEL: i32 = 1;

impl Stream {
    /// How the server compresses.
    pub fn algorithm(&self) -> Algorithm {
        self.compression.algorithm()
    }

    /// Begins to stream the whole cluster; waits for a checkpoint.
    pub fn begin(self, label: &str) -> Result<BaseBackup> {
        let options = BaseBackupOptions::new(label);
        self.begin_with(options)
    }

    /// Begins to stream the whole cluster with the WAL that it takes to start from it.
    pub fn begin_with_wal(self, label: &str, checkpoint: Checkpoint) -> Result<BaseBackup> {
        self.begin_with(BaseBackupOptions {
            checkpoint,
            with_wal: true,
            with_size: true,
            ..BaseBackupOptions::new(label)
        })
    }

    fn begin_with(self, options: BaseBackupOptions) -> Result<BaseBackup> {
        let options = BaseBackupOptions {
            compression: self.compression,
            with_manifest: true,
            ..options
        };
        self.session.base_backup(&options).map_err(|refused| {
            let is_unsupported = refused.is_unsupported();
            let error = Error::from(refused);
            match is_unsupported {
                true => error.hint("set source = sql"),
                false => error,
            }
        })
    }
}
