//! The configuration file and libpq's conventions.
//!
//! [`Configuration::load`] finds and checks the whole file once, and
//! [`Configuration::server`] puts together what is in force for one server.
//! Nothing here reads the process's environment or opens a connection: the
//! one comes in as an [`Environment`], the other is made of the
//! [`ConnectionSettings`] that come out.

mod authentication;
mod chosen;
mod connection;
mod duration;
mod endpoint;
mod environment;
mod foreign;
mod further;
mod ini;
mod libpq;
mod origin;
mod output;
mod passfile;
mod password;
mod retention;
mod secret;
mod server;
mod service;
mod settings;
mod source;
mod store;
mod suggestion;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tls;

pub use connection::{ChannelBinding, ConnectionSettings, TargetSession};
pub use duration::{ALLOWED as DURATIONS, parse as parse_duration};
pub use endpoint::{Endpoint, Host};
pub use environment::Environment;
pub use foreign::{Ignored, Reason};
pub use further::RepositoryName;
pub use origin::{Entry, Origin};
pub use output::Output;
pub use retention::Retention;
pub use secret::Secret;
pub use server::{Base, ServerConfiguration, ServerName, Storage};
pub use source::Source;
pub(crate) use suggestion::nearest;
pub(crate) use tls::SYSTEM_ROOTS;
pub use tls::{
    ClientCertificate, RootCertificates, SslMode, SslNegotiation, TlsSettings, TlsVersion,
};

use crate::error::{Error, Result};
use crate::stored::cipher::Cipher;
use crate::stored::compression::Compression;
use ini::Section;
use log::LevelFilter;
use origin::Sourced;
use settings::{Common, Reader};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The configuration file, read and checked; or none.
#[derive(Clone)]
pub struct Configuration {
    path: Option<PathBuf>,
    main: Common,
    servers: Vec<(ServerName, settings::Server)>,
    ignored: Vec<Ignored>,
    passed_over: Vec<Error>,
    /// Keys that are about another kind of store than backups lie in.
    of_other_stores: Vec<Entry>,
    environment: Environment,
}

/// What of a configuration is wanted.
#[derive(Clone, Copy)]
enum Scope<'a> {
    All,
    /// Of one server where its files are stored, and how.
    StorageOf(&'a str),
}

impl Configuration {
    /// Reads the first file of: `explicit` (`-c`), `$PGKEEP_CONFIG`,
    /// `pgkeep/pgkeep.conf` in the user's configuration directory,
    /// `/etc/pgkeep/pgkeep.conf`. Only the first two must be there.
    pub fn load(explicit: Option<&Path>, environment: &Environment) -> Result<Configuration> {
        Configuration::load_for(explicit, environment, Scope::All)
    }

    /// The same of what [`Configuration::storage`] gives for one server, and of the log: a server that archives or
    /// recovers must not stand still for anything else.
    pub fn load_storage(
        explicit: Option<&Path>,
        environment: &Environment,
        server: &str,
    ) -> Result<Configuration> {
        Configuration::load_for(explicit, environment, Scope::StorageOf(server))
    }

    fn load_for(
        explicit: Option<&Path>,
        environment: &Environment,
        scope: Scope<'_>,
    ) -> Result<Configuration> {
        let demanded = explicit
            .map(Path::to_owned)
            .or_else(|| environment.variable("PGKEEP_CONFIG").map(PathBuf::from));
        if let Some(path) = demanded {
            return match read(&path)? {
                Some(text) => Configuration::parse(&path, &text, environment, scope),
                None => Err(Error::usage(format!(
                    "configuration file {} is not there",
                    path.display()
                ))
                .hint("correct -c or PGKEEP_CONFIG, or create the file")),
            };
        }
        let user = environment.configuration_directory();
        let system = environment.system_directory.clone();
        for directory in user.into_iter().chain([system]) {
            let path = directory.join("pgkeep/pgkeep.conf");
            if let Some(text) = read(&path)? {
                return Configuration::parse(&path, &text, environment, scope);
            }
        }
        Ok(Configuration {
            path: None,
            main: Common::default(),
            servers: Vec::new(),
            ignored: Vec::new(),
            passed_over: Vec::new(),
            of_other_stores: Vec::new(),
            environment: environment.clone(),
        })
    }

    /// Reads the text of a configuration file.
    fn parse(
        path: &Path,
        text: &str,
        environment: &Environment,
        scope: Scope<'_>,
    ) -> Result<Configuration> {
        let sections = ini::parse(path, text)?;
        let mut reader = Reader {
            path,
            environment,
            ignored: Vec::new(),
            passed_over: Vec::new(),
        };
        let mut main = None;
        let mut servers = Vec::new();
        for section in &sections {
            let wrong =
                |error: Error| error.context(format!("{}:{}", path.display(), section.line));
            if is_main(section) {
                if main.is_some() {
                    return Err(wrong(
                        Error::usage("[pgkeep] and [pgmoneta] are both here")
                            .hint("put all settings of the two below one of them"),
                    ));
                }
                main = Some(match scope {
                    Scope::All => reader.main_section(section)?,
                    Scope::StorageOf(_) => reader.storage(section)?,
                });
                continue;
            }
            let name = ServerName::new(&section.name).map_err(wrong)?;
            let server = match scope {
                Scope::All => reader.server_section(section)?,
                Scope::StorageOf(one) if one == section.name => settings::Server {
                    common: reader.storage(section)?,
                    ..settings::Server::default()
                },
                // That it is there is all that counts.
                Scope::StorageOf(_) => settings::Server::default(),
            };
            servers.push((name, server));
        }
        let mut configuration = Configuration {
            path: Some(path.to_owned()),
            main: main.unwrap_or_default(),
            servers,
            ignored: reader.ignored,
            passed_over: reader.passed_over,
            of_other_stores: Vec::new(),
            environment: environment.clone(),
        };
        if matches!(scope, Scope::All) {
            configuration.check_sections()?;
            configuration.of_other_stores = configuration.keys_of_other_stores();
        }
        Ok(configuration)
    }

    /// A level and its algorithm may stand in different sections, and so may parts of retention.
    fn check_sections(&self) -> Result<()> {
        let main = &self.main.further;
        let further = self
            .servers
            .iter()
            .map(|(_, server)| &server.common.further);
        let of_servers: Vec<_> = further.collect();
        main.check_all_lie_somewhere(&of_servers)?;
        for own in of_servers {
            own.check_all_lie_somewhere(&[main])?;
        }
        let sections = self.servers.iter().map(|(_, server)| server.common.clone());
        sections
            .chain([Common::default()])
            .try_for_each(|own| server::check(&self.main, own))
    }

    /// The file that was read, if there is one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The names of the servers in the file, in its order.
    pub fn servers(&self) -> impl Iterator<Item = &ServerName> {
        self.servers.iter().map(|(name, _)| name)
    }

    /// What is in force for one server. A file with servers must have this
    /// one; without, any name does and libpq's environment says the rest.
    pub fn server(&self, name: &str) -> Result<ServerConfiguration> {
        Ok(self.resolve(name)?.0)
    }

    /// Where the files of a server are stored, and how.
    pub fn storage(&self, name: &str) -> Result<Storage> {
        let name = ServerName::new(name)?;
        let section = self.section(&name)?;
        Storage::resolve(name, &self.main, section, &self.environment)
    }

    fn resolve(&self, name: &str) -> Result<(ServerConfiguration, Vec<Entry>)> {
        let name = ServerName::new(name)?;
        let section = self.section(&name)?;
        ServerConfiguration::resolve(name, &self.main, section, &self.environment)
    }

    fn section(&self, name: &ServerName) -> Result<Option<&settings::Server>> {
        let mut servers = self.servers.iter();
        let section = servers.find(|(known, _)| known == name);
        if section.is_none() && !self.servers.is_empty() {
            return Err(self.unknown_server(name));
        }
        Ok(section.map(|(_, section)| section))
    }

    fn unknown_server(&self, name: &ServerName) -> Error {
        let names: Vec<&str> = self.servers().map(ServerName::as_str).collect();
        let known = format!("the servers there are {}", names.join(", "));
        let hint = match suggestion::nearest(name.as_str(), names) {
            Some(near) => format!("did you mean {near}? {known}"),
            None => known,
        };
        let file = self.path().unwrap_or(Path::new("the configuration"));
        Error::usage(format!("server {name} is not in {}", file.display())).hint(hint)
    }

    /// How reports look on a terminal, where the main section says it.
    pub fn output(&self) -> Option<Output> {
        self.main.output.as_ref().map(|given| given.value)
    }

    /// The level of logging that the main section asks for.
    pub fn log_level(&self) -> Option<LevelFilter> {
        self.main.log_level.as_ref().map(|given| given.value)
    }

    /// The log file that the main section asks for.
    pub fn log_file(&self) -> Option<&Path> {
        self.main
            .log_file
            .as_ref()
            .map(|given| given.value.as_path())
    }

    /// The file that holds the master key, as far as no server's section names another one; `None`
    /// where nothing says where that would be.
    pub fn master_key(&self) -> Option<PathBuf> {
        server::master_key(&self.main, &self.environment).map(|found| found.value)
    }

    /// How files are compressed, as far as no server's section says otherwise.
    pub fn compression(&self) -> Result<Compression> {
        server::compression(&self.main)
    }

    /// How files are encrypted, as far as no server's section says otherwise.
    pub fn encryption(&self) -> Option<Cipher> {
        self.main.encryption.as_ref().and_then(|given| given.value)
    }

    /// Keys that were accepted and have no effect, in the order of the file.
    pub fn ignored(&self) -> &[Ignored] {
        &self.ignored
    }

    /// The keys that are about another kind of store than backups lie in, each once.
    fn keys_of_other_stores(&self) -> Vec<Entry> {
        let sections = self.servers.iter().map(|(_, server)| server.common.clone());
        let mut sections: Vec<Common> = sections.collect();
        if sections.is_empty() {
            sections.push(Common::default());
        }
        let (mut used, mut unused) = (Vec::new(), Vec::new());
        for own in sections {
            let (ours, others) = server::of_kind(&self.main, own);
            used.extend(ours);
            unused.extend(others);
        }
        let is_same = |one: &Entry, other: &Entry| {
            one.key == other.key && one.origin.to_string() == other.origin.to_string()
        };
        let mut told: Vec<Entry> = Vec::new();
        for entry in unused {
            let mut known = used.iter().chain(&told);
            if !known.any(|known| is_same(known, &entry)) {
                told.push(entry);
            }
        }
        told
    }

    /// Names the keys without effect in the log, each once, and what was passed over: to be called when
    /// the log is set up, which takes the configuration.
    pub fn log_ignored(&self) {
        for wrong in &self.passed_over {
            log::warn!("{}: going on without it", wrong.message());
        }
        for Entry { key, origin, .. } in &self.of_other_stores {
            log::warn!("{origin}: {key} has no effect: base_dir is in a store of another kind");
        }
        for Ignored {
            key,
            path,
            line,
            reason,
        } in &self.ignored
        {
            let place = format!("{}:{line}", path.display());
            match reason {
                Reason::Daemon => log::info!("{place}: {key} has no effect: pgkeep is no daemon"),
                Reason::NotDone => {
                    log::warn!("{place}: {key} has no effect: pgkeep has no such service")
                }
            }
        }
    }

    /// All settings in force and where each came from: the main section's as
    /// `compression`, those of each server in the file as `primary.host`.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let base_dir = match (&self.main.base_dir, self.environment.default_base_dir()) {
            (Some(given), _) => given.clone(),
            (None, default) => Sourced {
                value: settings::Place::Folder(default.unwrap_or_default()),
                origin: Origin::Default,
            },
        };
        let master_key = server::master_key(&self.main, &self.environment);
        let mut entries = server::common_entries(&self.main, &base_dir, master_key.as_ref());
        for name in self.servers() {
            let (_, own) = self.resolve(name.as_str())?;
            entries.extend(own.into_iter().map(|entry| Entry {
                key: format!("{name}.{}", entry.key),
                ..entry
            }));
        }
        Ok(entries)
    }
}

fn is_main(section: &Section) -> bool {
    section.name == "pgkeep" || section.name == "pgmoneta"
}

/// The text of a file; none if there is no such file.
fn read(path: &Path) -> Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| {
            Error::usage(format!("{} is no text in UTF-8", path.display()))
                .hint("is this the right file? convert it with iconv if it is")
        }),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(Error::usage(
            Error::io("read configuration file", path, &error).message(),
        )
        .hint("check the path, and that your user may read it")),
    }
}
