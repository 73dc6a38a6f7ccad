//! What the global options come to: configuration, log, progress, interrupt.

use std::io::IsTerminal;
use std::sync::Arc;

use jiff::Timestamp;
use log::LevelFilter;

use crate::cli::arguments::{Format, Global};
use crate::cli::progress::Counted;
use crate::cli::{logging, many, signals};
use crate::config::{
    Base, Configuration, Environment, Output, RepositoryName, ServerConfiguration, Storage,
};
use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::repository::catalogue::Catalogue;
use crate::repository::layout::ServerFolder;
use crate::server::connect::Connector;
use crate::storage::Place;
use crate::storage::objects::ObjectStore;
use crate::stored::coding::Coding;
use crate::stored::master_key::Keyring;

/// Threads and connections where nothing else is said: more than this a
/// server's other users would notice.
const MOST_WORKERS: usize = 8;

/// Made once from the command line and the configuration.
pub(super) struct App {
    /// The configuration in force.
    pub configuration: Configuration,
    /// Hears of progress.
    pub progress: Box<Counted>,
    /// Raised by Ctrl-C and SIGTERM.
    pub interrupt: Arc<Interrupt>,
    /// How the answer is printed.
    pub format: Format,
    /// The server that this process is for, as one of many.
    pub member: Option<String>,
    workers: Option<usize>,
}

/// One server and its place in the repository.
pub(super) struct Server {
    /// All that is configured for it.
    pub configuration: ServerConfiguration,
    /// Its part of the repository.
    pub folder: ServerFolder,
    /// The moment that it is looked at as it was; nothing for now.
    pub as_of: Option<Timestamp>,
    /// Threads to work with.
    pub workers: usize,
    /// The same for what is read from the repository alone: where they wait for answers from afar, there are more than cores.
    pub readers: usize,
}

impl App {
    /// Reads the configuration and sets everything up.
    ///
    /// Where a server waits for the command, only that part is read which says where that server's files are stored, and
    /// a log file that cannot be opened is no reason to fail.
    pub(super) fn new(global: &Global, serves: Option<&str>) -> Result<App> {
        let environment = Environment::capture();
        let file = global.config.as_deref();
        let configuration = match serves {
            None => Configuration::load(file, &environment)?,
            Some(server) => Configuration::load_storage(file, &environment, server)?,
        };
        let configured = configuration.log_level().unwrap_or(LevelFilter::Warn);
        let level = match (global.quiet, global.verbose) {
            (true, _) => LevelFilter::Error,
            (false, 0) => configured,
            (false, 1) => configured.max(LevelFilter::Info),
            (false, _) => LevelFilter::Debug,
        };
        logging::start(level)?;
        let log_file = global.log_file.as_deref().or(configuration.log_file());
        match log_file.map_or(Ok(()), logging::write_to) {
            Err(error) if serves.is_some() => {
                log::warn!("{}: going on without it", error.message())
            }
            opened => opened?,
        }
        configuration.log_ignored();
        Ok(App {
            configuration,
            progress: Box::new(Counted::choose(global.progress)),
            interrupt: Arc::new(Interrupt::default()),
            format: global.format.unwrap_or(Format::Text),
            member: many::member(),
            workers: global.workers.map(usize::from),
        })
    }

    /// Has a terminal look as the configuration says, where the command line does not say it.
    pub(super) fn take_configured_format(&mut self, given: Option<Format>) {
        if given.is_none()
            && std::io::stdout().is_terminal()
            && let Some(output) = self.configuration.output()
        {
            self.format = match output {
                Output::Text => Format::Text,
                Output::Table => Format::Table,
                Output::Tree => Format::Tree,
            };
        }
    }

    /// The master keys of files that belong to no server.
    pub(super) fn keys(&self) -> Keyring {
        Keyring::new(self.configuration.master_key())
    }

    /// Ends the command in good order when it is asked to end.
    pub(super) fn watch_signals(&self) -> Result<()> {
        signals::watch(Arc::clone(&self.interrupt))
    }

    /// Where a server's files are in the repository.
    pub(super) fn folder(&self, storage: &Storage) -> Result<ServerFolder> {
        let base = match &storage.base_dir {
            Base::Folder(folder) => Place::from(folder),
            Base::Objects(settings) => {
                let store = ObjectStore::open(settings, &self.interrupt)?;
                Place::Object(Arc::new(store), String::new())
            }
        };
        Ok(ServerFolder::new(base, storage.name.as_str()))
    }

    /// A server by its name, and its place in the main repository.
    pub(super) fn server(&self, name: &str) -> Result<Server> {
        self.server_at(name, RepositoryName::MAIN)
    }

    /// The same with its place in one of the repositories.
    pub(super) fn server_at(&self, name: &str, repository: RepositoryName) -> Result<Server> {
        let configuration = self.configuration.server(name)?.at(repository)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let wanted = self.workers.or(configuration.workers.map(usize::from));
        let readers = match configuration.storage.base_dir {
            Base::Folder(_) => cores.min(MOST_WORKERS),
            Base::Objects(_) => MOST_WORKERS,
        };
        Ok(Server {
            folder: self.folder(&configuration.storage)?,
            as_of: None,
            configuration,
            workers: wanted.unwrap_or(cores.min(MOST_WORKERS)),
            readers: wanted.unwrap_or(readers),
        })
    }
}

impl Server {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        self.configuration.storage.name.as_str()
    }

    /// Opens sessions with it.
    pub(super) fn connector(&self) -> Result<Connector> {
        Connector::new(&self.configuration.connection)
    }

    /// The master keys its files are encrypted with.
    pub(super) fn keys(&self) -> Keyring {
        self.configuration.storage.keys()
    }

    /// How its new files are stored.
    pub(super) fn coding(&self) -> Result<Coding> {
        self.configuration.storage.coding()
    }

    /// Its backups.
    pub(super) fn catalogue(&self) -> Result<Catalogue> {
        Catalogue::read(self.name(), &self.folder)
    }
}
