//! The configuration of one server: defaults, overridden by the main section,
//! overridden by the server's own.

use super::Retention;
use super::connection::{self, ConnectionSettings};
use super::duration;
use super::environment::Environment;
use super::further::RepositoryName;
use super::origin::{Entry, Origin, Sourced};
use super::retention;
use super::settings::{self, Common, Given, Place, level_error};
use super::source::Source;
use super::store::Store;
use crate::error::{Error, Result};
use crate::storage::objects::Settings;
use crate::stored::cipher::Cipher;
use crate::stored::coding::Coding;
use crate::stored::compression::Compression;
use crate::stored::encryption::Encryption;
use crate::stored::master_key::Keyring;
use log::LevelFilter;
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of a server: of its section, and of its folder below `base_dir`.
///
/// Letters, digits, `_`, `-` and `.`, at most 63, not beginning with `.` or
/// `-`: safe as the name of a folder and as a word on a command line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerName(String);

impl ServerName {
    /// Checks a name.
    pub fn new(name: &str) -> Result<ServerName> {
        let safe = |character: char| character.is_ascii_alphanumeric() || "_-.".contains(character);
        let valid = (1..=63).contains(&name.len())
            && name.chars().all(safe)
            && !name.starts_with(['.', '-']);
        if !valid {
            return Err(
                Error::usage(format!("\"{name}\" cannot be the name of a server")).hint(
                    "use up to 63 letters, digits, \"_\", \"-\" and \".\", a letter or digit first",
                ),
            );
        }
        Ok(ServerName(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What holds the folders of all servers.
#[derive(Debug, Clone)]
pub enum Base {
    /// A folder; absolute.
    Folder(PathBuf),
    /// An object store.
    Objects(Box<Settings>),
}

impl Base {
    pub(super) fn of(place: Place, store: &Store, environment: &Environment) -> Base {
        match place {
            Place::Folder(folder) => Base::Folder(folder),
            Place::Store(location) => {
                Base::Objects(Box::new(store.settings(location, environment)))
            }
        }
    }

    /// The folder, if it is one.
    pub fn local(&self) -> Option<&Path> {
        match self {
            Base::Folder(folder) => Some(folder),
            Base::Objects(_) => None,
        }
    }
}

/// Where a server's files are stored, and how: all that archiving and fetching WAL needs.
#[derive(Debug, Clone)]
pub struct Storage {
    /// The server's name.
    pub name: ServerName,
    /// Which of the places it is.
    pub repository: RepositoryName,
    /// What holds the folders of all servers there.
    pub base_dir: Base,
    /// The same of the others.
    further: BTreeMap<RepositoryName, Base>,
    /// How stored files are compressed.
    pub compression: Compression,
    /// How stored files are encrypted; `None` for not at all.
    pub encryption: Option<Cipher>,
    /// The file that holds the master key; `None` where nothing says where that would be.
    pub master_key: Option<PathBuf>,
}

impl Storage {
    /// Puts it together from the main section and the server's own.
    pub(super) fn resolve(
        name: ServerName,
        main: &Common,
        section: Option<&settings::Server>,
        environment: &Environment,
    ) -> Result<Storage> {
        Storage::of(name, &in_force(main, section), environment)
    }

    fn of(name: ServerName, common: &Common, environment: &Environment) -> Result<Storage> {
        Ok(Storage {
            name,
            repository: RepositoryName::MAIN,
            base_dir: Base::of(
                base_dir(common, environment)?.value,
                &common.store,
                environment,
            ),
            further: common.further.bases(environment),
            compression: compression(common)?,
            encryption: value_or_default(common.encryption.clone()),
            master_key: master_key(common, environment).map(|found| found.value),
        })
    }

    /// The same in one of the places that are configured.
    pub fn at(mut self, repository: RepositoryName) -> Result<Storage> {
        if repository != self.repository {
            let others: Vec<String> = self.further.keys().map(ToString::to_string).collect();
            self.base_dir = self.further.remove(&repository).ok_or_else(|| {
                let hint = match others.is_empty() {
                    true => format!("set {repository}_base_dir in the configuration"),
                    false => format!("there are repo1, {}", others.join(", ")),
                };
                Error::usage(format!(
                    "server {} has no repository {repository}",
                    self.name
                ))
                .hint(hint)
            })?;
            self.repository = repository;
        }
        Ok(self)
    }

    /// The master keys that the files are encrypted with.
    pub fn keys(&self) -> Keyring {
        Keyring::new(self.master_key.clone())
    }

    /// How new files are stored.
    pub fn coding(&self) -> Result<Coding> {
        let encryption = match self.encryption {
            None => None,
            Some(cipher) => Some(Encryption {
                cipher,
                key: self.keys().current()?,
            }),
        };
        Ok(Coding {
            compression: self.compression,
            encryption,
        })
    }
}

/// Everything that is configured for one server.
#[derive(Debug, Clone)]
pub struct ServerConfiguration {
    /// Where its files are stored.
    pub storage: Storage,
    /// How many threads work; `None` leaves it to pgkeep.
    pub workers: Option<NonZero<usize>>,
    /// The most that is read from the server, in bytes a second.
    pub max_rate: Option<NonZero<u64>>,
    /// Which way the server's files are read; `None` leaves it to pgkeep.
    pub source: Option<Source>,
    /// How long backups are kept there.
    pub retention: Retention,
    /// The same of further places, where it differs.
    further_retention: BTreeMap<RepositoryName, Retention>,
    /// How old the last verification of a backup may become.
    pub verification: Option<Duration>,
    /// The physical replication slot that keeps WAL for this archive.
    pub wal_slot: Option<String>,
    /// Whether to create that slot.
    pub create_slot: bool,
    /// Further files and folders of the server's machine to keep with a backup.
    pub extra: Vec<String>,
    /// What is logged.
    pub log_level: Option<LevelFilter>,
    /// Where it is logged, beside standard error.
    pub log_file: Option<PathBuf>,
    /// How the server is reached.
    pub connection: ConnectionSettings,
}

impl ServerConfiguration {
    /// Puts the settings of a server together, and lists them for `conf ls`.
    pub(super) fn resolve(
        name: ServerName,
        main: &Common,
        section: Option<&settings::Server>,
        environment: &Environment,
    ) -> Result<(ServerConfiguration, Vec<Entry>)> {
        let (connection, mut entries) = connection::resolve(section, environment)?;
        let common = in_force(main, section);
        let storage = Storage::of(name, &common, environment)?;
        let base_dir = base_dir(&common, environment)?;
        let retention = retention(&common)?;
        let master_key = master_key(&common, environment);
        entries.extend(common_entries(&common, &base_dir, master_key.as_ref()));
        let wal_slot = section.and_then(|section| section.wal_slot.clone());
        let extra = section.and_then(|section| section.extra.clone());
        if let Some(slot) = &wal_slot {
            entries.push(shown("wal_slot", slot, Clone::clone));
        }
        if let Some(extra) = &extra {
            entries.push(shown("extra", extra, |paths| paths.join(", ")));
        }
        let configuration = ServerConfiguration {
            storage,
            workers: value_or_default(common.workers),
            max_rate: value_or_default(common.max_rate),
            source: value_or_default(common.source),
            retention,
            further_retention: common.further.retentions()?,
            verification: value_or_default(common.verification),
            wal_slot: wal_slot.map(|given| given.value),
            create_slot: value_or_default(common.create_slot),
            extra: value_or_default(extra),
            log_level: common.log_level.map(|given| given.value),
            log_file: common.log_file.map(|given| given.value),
            connection,
        };
        Ok((configuration, entries))
    }

    /// The same for one of the places that are configured.
    pub fn at(mut self, repository: RepositoryName) -> Result<ServerConfiguration> {
        self.storage = self.storage.at(repository)?;
        if let Some(retention) = self.further_retention.get(&repository) {
            self.retention = *retention;
        }
        Ok(self)
    }
}

pub(super) fn value_of<T: Clone>(given: &Given<T>) -> Option<T> {
    given.as_ref().map(|given| given.value.clone())
}

fn value_or_default<T: Default>(given: Option<Sourced<T>>) -> T {
    given.map(|given| given.value).unwrap_or_default()
}

/// What holds for a server, of what may stand in both sections.
fn in_force(main: &Common, section: Option<&settings::Server>) -> Common {
    let own = section.map(|section| section.common.clone());
    overridden(main, own.unwrap_or_default())
}

/// A server's settings where it has some, the main section's elsewhere.
fn overridden(main: &Common, own: Common) -> Common {
    // The main section's level belongs to the main section's algorithm.
    let level = match own.compression {
        Some(_) => own.compression_level,
        None => own
            .compression_level
            .or_else(|| main.compression_level.clone()),
    };
    Common {
        base_dir: own.base_dir.or_else(|| main.base_dir.clone()),
        store: own.store.over(&main.store),
        further: own.further.over(&main.further),
        compression: own.compression.or_else(|| main.compression.clone()),
        compression_level: level,
        encryption: own.encryption.or_else(|| main.encryption.clone()),
        master_key: own.master_key.or_else(|| main.master_key.clone()),
        workers: own.workers.or_else(|| main.workers.clone()),
        max_rate: own.max_rate.or_else(|| main.max_rate.clone()),
        source: own.source.or_else(|| main.source.clone()),
        retention: retention::over(own.retention, main.retention.as_ref()),
        verification: own.verification.or_else(|| main.verification.clone()),
        create_slot: own.create_slot.or_else(|| main.create_slot.clone()),
        log_level: own.log_level.or_else(|| main.log_level.clone()),
        log_file: own.log_file.or_else(|| main.log_file.clone()),
        output: own.output.or_else(|| main.output.clone()),
    }
}

/// Checks what two sections give together: a level must be one of its algorithm's, and the
/// fields of retention fit each other.
pub(super) fn check(main: &Common, own: Common) -> Result<()> {
    let common = overridden(main, own);
    compression(&common)?;
    common.store.check("")?;
    common.further.check()?;
    retention(&common).map(|_| ())
}

/// What a section and the main one say of stores: what matters to one that backups lie in, and what does not.
pub(super) fn of_kind(main: &Common, own: Common) -> (Vec<Entry>, Vec<Entry>) {
    let common = overridden(main, own);
    let scheme = common
        .base_dir
        .as_ref()
        .and_then(|place| place.value.scheme());
    let of_main = scheme.map(|scheme| common.store.of_kind(scheme, ""));
    let places = of_main.into_iter().chain(common.further.of_kind());
    let (mut used, mut unused) = (Vec::new(), Vec::new());
    for (ours, others) in places {
        used.extend(ours);
        unused.extend(others);
    }
    (used, unused)
}

/// How long backups are kept; a default where nothing says so.
fn retention(common: &Common) -> Result<Retention> {
    let given = retention::checked(common.retention.as_ref(), "retention")?;
    Ok(given.unwrap_or_default())
}

fn base_dir(common: &Common, environment: &Environment) -> Result<Sourced<Place>> {
    if let Some(given) = &common.base_dir {
        return Ok(given.clone());
    }
    let value = environment.default_base_dir().ok_or_else(|| {
        Error::usage("there is no folder for backups: neither base_dir nor HOME is set")
            .hint("set base_dir in the configuration")
    })?;
    Ok(Sourced {
        value: Place::Folder(value),
        origin: Origin::Default,
    })
}

/// `master_key`, `$PGKEEP_MASTER_KEY_FILE`, or `pgkeep/master.key` in the user's configuration directory.
pub(super) fn master_key(common: &Common, environment: &Environment) -> Option<Sourced<PathBuf>> {
    let named = || {
        Some(Sourced {
            value: environment.variable(MASTER_KEY_VARIABLE)?.into(),
            origin: Origin::Environment(MASTER_KEY_VARIABLE),
        })
    };
    let usual = || {
        let directory = environment.configuration_directory()?;
        Some(Sourced {
            value: directory.join("pgkeep/master.key"),
            origin: Origin::Default,
        })
    };
    common.master_key.clone().or_else(named).or_else(usual)
}

const MASTER_KEY_VARIABLE: &str = "PGKEEP_MASTER_KEY_FILE";

/// The compression, whose level must be one of its algorithm's.
pub(super) fn compression(common: &Common) -> Result<Compression> {
    let algorithm = value_or_default(common.compression.clone());
    match &common.compression_level {
        None => Compression::new(algorithm, None).map_err(Error::usage),
        Some(level) => Compression::new(algorithm, Some(level.value))
            .map_err(|allowed| level_error(level, &allowed)),
    }
}

/// One line of `conf ls`.
fn shown<T>(key: &str, given: &Sourced<T>, show: impl Fn(&T) -> String) -> Entry {
    Entry {
        key: key.to_owned(),
        value: show(&given.value),
        origin: given.origin.clone(),
    }
}

/// The lines of `conf ls` for settings that main section and servers share;
/// with a default where there is one worth showing.
pub(super) fn common_entries(
    common: &Common,
    base_dir: &Sourced<Place>,
    master_key: Option<&Sourced<PathBuf>>,
) -> Vec<Entry> {
    fn or_default<T: Clone + Default>(given: &Option<Sourced<T>>) -> Sourced<T> {
        given.clone().unwrap_or(Sourced {
            value: T::default(),
            origin: Origin::Default,
        })
    }
    let path = |path: &PathBuf| path.display().to_string();
    let number = |number: Option<u64>| number.map_or("0".to_owned(), |number| number.to_string());
    let mut entries = vec![
        shown("base_dir", base_dir, ToString::to_string),
        shown(
            "compression",
            &or_default(&common.compression),
            ToString::to_string,
        ),
        shown("encryption", &or_default(&common.encryption), |cipher| {
            cipher.map_or("none".to_owned(), |cipher| cipher.to_string())
        }),
        match &common.retention {
            Some(given) => shown("retention", given, ToString::to_string),
            None => shown(
                "retention",
                &or_default(&None::<Sourced<Retention>>),
                ToString::to_string,
            ),
        },
        shown("workers", &or_default(&common.workers), |workers| {
            number(workers.map(|workers| workers.get() as u64))
        }),
        shown("max_rate", &or_default(&common.max_rate), |rate| {
            number(rate.map(NonZero::get))
        }),
        shown("source", &or_default(&common.source), |source| {
            source.map_or("auto".to_owned(), |source| source.to_string())
        }),
        shown(
            "verification",
            &or_default(&common.verification),
            |interval| interval.map_or("0".to_owned(), duration::show),
        ),
        shown("create_slot", &or_default(&common.create_slot), |create| {
            if *create { "yes" } else { "no" }.to_owned()
        }),
    ];
    let optional = [
        common
            .compression_level
            .as_ref()
            .map(|given| shown("compression_level", given, ToString::to_string)),
        master_key.map(|found| shown("master_key", found, path)),
        common
            .log_level
            .as_ref()
            .map(|given| shown("log_level", given, |level| level.to_string().to_lowercase())),
        common
            .log_file
            .as_ref()
            .map(|given| shown("log_file", given, path)),
        common
            .output
            .as_ref()
            .map(|given| shown("output", given, ToString::to_string)),
    ];
    entries.extend(optional.into_iter().flatten());
    entries.extend(common.store.entries(""));
    entries.extend(common.further.entries());
    entries
}
