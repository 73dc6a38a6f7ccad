use clap::{Args, ValueEnum};

use crate::backup::{self, ParentRequest};
use crate::cli::app::{App, Server};
use crate::cli::commands::describe;
use crate::cli::many::{self, Chosen, Servers};
use crate::cli::recording::Subject;
use crate::cli::report::{Answer, Fields, field};
use crate::config::Source;
use crate::error::{Error, Result};
use crate::repository::identifier::Selector;
use crate::server::session::Checkpoint;
use crate::size::readable;

/// Make a backup of a server
///
/// Makes a backup of a running server, primary or standby, from its disk, over ordinary SQL
/// connections, or from a stream that it compresses: a full one, or on PARENT an incremental one, with only the blocks that changed
/// since. It becomes visible only once it is complete and synced.
#[derive(Debug, Args)]
pub(crate) struct Backup {
    #[command(flatten)]
    servers: Servers,
    /// The backup to build on: identifier or its first digits, newest, latest or oldest
    parent: Option<Selector>,
    /// Make a full backup where PARENT is missing or can't be built on
    #[arg(long)]
    or_full: bool,
    /// What to call this backup; shown by info and in backup_label
    #[arg(long, value_name = "TEXT", default_value = "pgkeep")]
    label: String,
    /// Whether the checkpoint at the start is hurried
    #[arg(long, value_enum, default_value_t = CheckpointMode::Fast)]
    checkpoint: CheckpointMode,
    /// Which way the server's files are read, whatever the configuration says
    #[arg(long, value_enum, value_name = "WAY")]
    source: Option<SourceMode>,
    /// Read everything anew, whatever a full backup that died has left
    #[arg(long, conflicts_with = "parent")]
    no_resume: bool,
}

/// Whether the checkpoint at the start is hurried.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum CheckpointMode {
    /// At once.
    Fast,
    /// Spread over time, gentle to the server; takes minutes.
    Spread,
}

/// Which way the server's files are read.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum SourceMode {
    /// The one that suits the server best.
    Auto,
    /// From the server's disk, on its machine.
    Direct,
    /// By queries.
    Sql,
    /// From a stream that the server compresses.
    Stream,
}

impl From<SourceMode> for Option<Source> {
    fn from(mode: SourceMode) -> Option<Source> {
        match mode {
            SourceMode::Auto => None,
            SourceMode::Direct => Some(Source::Direct),
            SourceMode::Sql => Some(Source::Sql),
            SourceMode::Stream => Some(Source::Stream),
        }
    }
}

/// The longest label that PostgreSQL takes, in bytes (MAXPGPATH).
const LABEL_BYTES: usize = 1023;

impl Backup {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let mut fields = self.servers.request();
        if self.servers.all() {
            // The word is none of a server then.
            fields.retain(|(key, _)| key != "Server");
            let parent = self.servers.word();
            fields.extend(parent.map(|parent| field("Parent", parent)));
        }
        if let Some(parent) = &self.parent {
            fields.push(field("Parent", parent.to_string()));
        }
        fields
    }

    /// Makes the backup.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        if self.label.len() > LABEL_BYTES || self.label.contains(['\n', '\r', '\0']) {
            return Err(Error::usage(format!(
                "the label must be one line of up to {LABEL_BYTES} bytes"
            )));
        }
        // With --all no server is named, and the first word is the parent.
        let parent = match self.servers.word().filter(|_| self.servers.all()) {
            Some(_) if self.parent.is_some() => {
                return Err(Error::usage("say --all, or name a server"));
            }
            Some(word) => Some(word.parse().map_err(Error::usage)?),
            None => self.parent.clone(),
        };
        if self.or_full && parent.is_none() {
            return Err(Error::usage("--or-full needs a PARENT")
                .hint("without one, the backup is a full one anyway"));
        }
        let named = self.servers.word().filter(|_| !self.servers.all());
        match many::chosen(app, named)? {
            Chosen::Several(names) => self.servers.run(app, &names),
            Chosen::One(name) => {
                let server = app.server(&name)?;
                app.recorded(&server.folder, "backup", |subject| {
                    self.make(app, &server, parent.as_ref(), subject)
                })
            }
        }
    }

    fn make(
        &self,
        app: &App,
        server: &Server,
        parent: Option<&Selector>,
        subject: &Subject,
    ) -> Result<Answer> {
        let configuration = &server.configuration;
        let coding = server.coding()?;
        let keys = server.keys();
        let request = backup::Request {
            server: server.name(),
            folder: &server.folder,
            label: &self.label,
            parent: parent.map(|selector| ParentRequest {
                selector,
                or_full: self.or_full,
            }),
            checkpoint: match self.checkpoint {
                CheckpointMode::Fast => Checkpoint::Fast,
                CheckpointMode::Spread => Checkpoint::Spread,
            },
            resume: !self.no_resume,
            keys: &keys,
            coding: &coding,
            workers: server.workers,
            max_rate: configuration.max_rate.map(u64::from),
            source: match self.source {
                Some(source) => source.into(),
                None => configuration.source,
            },
            extra: &configuration.extra,
        };
        let info = backup::run(
            &request,
            &server.connector()?,
            &*app.progress,
            &app.interrupt,
        )?;
        subject.set(Some(info.backup));
        log::info!(
            "backup {} of {}: {} files, {}, stored in {}",
            info.backup,
            info.server,
            info.number_of_files,
            readable(info.restore_size),
            readable(info.backup_size)
        );
        let error = (info.corrupt_pages > 0).then(|| describe::corruption(&info));
        Ok(Answer {
            response: describe::summary(&info),
            error,
            plain: None,
        })
    }
}
