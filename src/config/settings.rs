//! What one section of the configuration file says, checked value by value.

use super::environment::Environment;
use super::foreign::{self, Ignored};
use super::further::{self, FurtherPlaces};
use super::ini::{Section, Setting};
use super::origin::{Origin, Sourced};
use super::output::Output;
use super::retention;
use super::source::Source;
use super::store::{STORE_KEYS, Store};
use super::{duration, endpoint, suggestion};
use crate::error::{Error, Result};
use crate::size;
use crate::storage::objects::{Location, Scheme};
use crate::stored::cipher::Cipher;
use crate::stored::compression::Algorithm;
use log::LevelFilter;
use std::fmt;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A value of the file, with its line.
pub(super) type Given<T> = Option<Sourced<T>>;

/// The keys of [`Common`]: these, [`STORAGE_KEYS`] and [`STORE_KEYS`].
const OTHER_COMMON_KEYS: &[&str] = &[
    "workers",
    "max_rate",
    "source",
    "retention",
    "verification",
    "log_level",
    "log_file",
    "output",
];

/// What says where files are stored and how; and [`STORE_KEYS`] do.
const STORAGE_KEYS: &[&str] = &[
    "base_dir",
    "compression",
    "compression_level",
    "encryption",
    "master_key",
];

/// All keys of [`Common`].
pub(super) fn common_keys() -> Vec<&'static str> {
    [STORAGE_KEYS, OTHER_COMMON_KEYS, STORE_KEYS].concat()
}

/// And what says where the log goes.
const LOG_KEYS: &[&str] = &["log_level", "log_file", "log_path"];

/// What pgmoneta calls settings of ours, and what it has of its own that we look at.
const OTHER_NAMES: &[&str] = &[
    "backup_max_rate",
    "network_max_rate",
    "log_type",
    "storage_engine",
];

/// The keys of [`Server`] alone.
pub(super) const SERVER_KEYS: &[&str] = &[
    "host",
    "port",
    "user",
    "database",
    "wal_slot",
    "create_slot",
    "extra",
    "tls_cert_file",
    "tls_key_file",
    "tls_ca_file",
];

/// Where files are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Below a folder; absolute.
    Folder(PathBuf),
    /// In an object store.
    Store(Location),
}

impl Place {
    /// The kind of store that it is in.
    pub(super) fn scheme(&self) -> Option<Scheme> {
        match self {
            Place::Folder(_) => None,
            Place::Store(location) => Some(location.scheme),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Folder(folder) => fmt::Display::fmt(&folder.display(), f),
            Place::Store(location) => fmt::Display::fmt(location, f),
        }
    }
}

/// Settings that stand in the main section and may stand in a server's.
///
/// A value that switches something off (`workers = 0`, `encryption = none`) is `Some(None)`: it is
/// given and overrides the main section's.
#[derive(Debug, Clone, Default)]
pub(super) struct Common {
    pub(super) base_dir: Given<Place>,
    pub(super) store: Store,
    pub(super) further: FurtherPlaces,
    pub(super) compression: Given<Algorithm>,
    pub(super) compression_level: Given<i32>,
    pub(super) encryption: Given<Option<Cipher>>,
    pub(super) master_key: Given<PathBuf>,
    pub(super) workers: Given<Option<NonZero<usize>>>,
    pub(super) max_rate: Given<Option<NonZero<u64>>>,
    pub(super) source: Given<Option<Source>>,
    pub(super) retention: Given<retention::Fields>,
    pub(super) verification: Given<Option<Duration>>,
    pub(super) create_slot: Given<bool>,
    pub(super) log_level: Given<LevelFilter>,
    pub(super) log_file: Given<PathBuf>,
    pub(super) output: Given<Output>,
}

/// Settings of one server's section; those of the connection stay text,
/// because they are completed from libpq's sources.
#[derive(Debug, Clone, Default)]
pub(super) struct Server {
    pub(super) common: Common,
    pub(super) host: Given<String>,
    pub(super) port: Given<String>,
    pub(super) user: Given<String>,
    pub(super) database: Given<String>,
    pub(super) wal_slot: Given<String>,
    pub(super) extra: Given<Vec<String>>,
    pub(super) certificate: Given<PathBuf>,
    pub(super) key: Given<PathBuf>,
    pub(super) roots: Given<PathBuf>,
}

/// Reads sections of one file.
pub(super) struct Reader<'a> {
    pub(super) path: &'a Path,
    pub(super) environment: &'a Environment,
    /// Keys that were accepted and have no effect.
    pub(super) ignored: Vec<Ignored>,
    /// What is wrong and does not matter to who asks.
    pub(super) passed_over: Vec<Error>,
}

impl Reader<'_> {
    /// Reads `[pgkeep]` or `[pgmoneta]`.
    pub(super) fn main_section(&mut self, section: &Section) -> Result<Common> {
        let log_to_file = logs_to_file(section);
        let mut common = Common::default();
        for setting in &section.settings {
            // In pgmoneta, log_path matters only for log_type = file.
            let idle = setting.key == "log_path" && !log_to_file;
            if setting.value.is_empty() || idle || self.common(&mut common, setting)? {
                continue;
            }
            match (setting.key.as_str(), foreign::in_main_section(&setting.key)) {
                ("storage_engine", _) if setting.value.eq_ignore_ascii_case("local") => {}
                ("storage_engine", _) => return Err(self.bad_value(setting, "local")),
                ("log_type", _) => match setting.value.to_ascii_lowercase().as_str() {
                    "console" | "file" => {}
                    "syslog" => self.ignore(setting, foreign::Reason::NotDone),
                    _ => return Err(self.bad_value(setting, "console or file")),
                },
                (_, Some(reason)) => self.ignore(setting, reason),
                (key, None) if SERVER_KEYS.contains(&key) => {
                    return Err(self.wrong(setting, "belongs into the section of a server"));
                }
                (_, None) => return Err(self.unknown(setting, &common_keys())),
            }
        }
        Ok(common)
    }

    /// Reads the section of a server.
    pub(super) fn server_section(&mut self, section: &Section) -> Result<Server> {
        let mut server = Server {
            host: Some(self.host(section)?),
            ..Server::default()
        };
        for setting in &section.settings {
            if setting.value.is_empty() || self.common(&mut server.common, setting)? {
                continue;
            }
            let text = || Some(self.sourced(setting, setting.value.clone()));
            match setting.key.as_str() {
                "host" => {}
                "port" => {
                    self.read(setting, endpoint::PORTS_ALLOWED, endpoint::ports)?;
                    server.port = text();
                }
                "user" => server.user = text(),
                "database" => server.database = text(),
                "wal_slot" => {
                    server.wal_slot = Some(self.read(setting, SLOT_ALLOWED, slot_name)?)
                }
                "extra" => server.extra = Some(self.read(setting, "a list of paths", list)?),
                "tls_cert_file" => server.certificate = Some(self.path(setting)?),
                "tls_key_file" => server.key = Some(self.path(setting)?),
                "tls_ca_file" => server.roots = Some(self.path(setting)?),
                key => match foreign::in_server_section(key) {
                    Some(reason) => self.ignore(setting, reason),
                    None => {
                        let known = [SERVER_KEYS, &common_keys()].concat();
                        return Err(self.unknown(setting, &known));
                    }
                },
            }
        }
        Ok(server)
    }

    /// Reads of any section what says where files are stored and how. Neither the log nor a further place is a reason to fail,
    /// and no other value is looked at; but a key that is none may be one of those misspelt.
    pub(super) fn storage(&mut self, section: &Section) -> Result<Common> {
        let mut common = Common::default();
        for setting in &section.settings {
            let key = setting.key.as_str();
            let is_idle = key == "log_path" && !logs_to_file(section);
            if setting.value.is_empty() || is_idle {
                continue;
            }
            if STORAGE_KEYS.contains(&key) || STORE_KEYS.contains(&key) {
                self.common(&mut common, setting)?;
            } else if LOG_KEYS.contains(&key) || further::is_key(key) {
                let read = self.common(&mut common, setting);
                self.passed_over.extend(read.err());
            } else if !is_known(key) {
                return Err(self.unknown(setting, &common_keys()));
            }
        }
        Ok(common)
    }

    fn host(&self, section: &Section) -> Result<Sourced<String>> {
        section
            .settings
            .iter()
            .find(|setting| setting.key == "host" && !setting.value.is_empty())
            .map(|setting| self.sourced(setting, setting.value.clone()))
            .ok_or_else(|| {
                Error::usage(format!(
                    "{}:{}: section [{}] has no host",
                    self.path.display(),
                    section.line,
                    section.name
                ))
                .hint("add a line host = NAME, or the folder of the server's Unix socket")
            })
    }

    /// Takes a setting that main section and servers share; false if it is none.
    fn common(&self, common: &mut Common, setting: &Setting) -> Result<bool> {
        match setting.key.as_str() {
            "base_dir" => common.base_dir = Some(self.place(setting)?),
            "compression" => {
                common.compression =
                    Some(self.read(setting, Algorithm::ALLOWED, Algorithm::parse)?);
            }
            "compression_level" => {
                common.compression_level =
                    Some(self.read(setting, "a whole number", |text| text.parse().ok())?);
            }
            "encryption" => {
                common.encryption = Some(self.read(setting, Cipher::ALLOWED, encryption)?);
            }
            "master_key" => common.master_key = Some(self.path(setting)?),
            // In a server's section of pgmoneta, -1 stands for the main section's value.
            "workers" | "max_rate" | "backup_max_rate" | "network_max_rate"
                if setting.value == "-1" => {}
            "workers" => common.workers = Some(self.read(setting, WORKERS_ALLOWED, workers)?),
            "max_rate" | "backup_max_rate" | "network_max_rate" => {
                if common.max_rate.is_some() {
                    return Err(self.wrong(setting, "sets max_rate a second time"));
                }
                let rate = |text: &str| size::parse(text).map(NonZero::new);
                common.max_rate = Some(self.read(setting, size::ALLOWED, rate)?);
            }
            "source" => {
                common.source = Some(self.read(setting, Source::ALLOWED, Source::parse)?);
            }
            "retention" => {
                common.retention = Some(self.retention(setting)?);
            }
            "verification" => {
                let interval = |text: &str| {
                    duration::parse(text).map(|interval| Some(interval).filter(|i| !i.is_zero()))
                };
                common.verification = Some(self.read(setting, duration::ALLOWED, interval)?);
            }
            "create_slot" => common.create_slot = Some(self.read(setting, "yes or no", boolean)?),
            "log_level" => {
                common.log_level = Some(self.read(setting, LOG_LEVEL_ALLOWED, log_level)?);
            }
            "output" => {
                common.output = Some(self.read(setting, Output::ALLOWED, Output::parse)?);
            }
            "log_file" | "log_path" => {
                if common.log_file.is_some() {
                    return Err(self.wrong(setting, "sets log_file a second time"));
                }
                common.log_file = Some(self.path(setting)?);
            }
            key => {
                return Ok(self.store(&mut common.store, key, setting)?
                    || self.further(&mut common.further, setting)?);
            }
        }
        Ok(true)
    }

    /// How long backups are kept.
    pub(super) fn retention(&self, setting: &Setting) -> Result<Sourced<retention::Fields>> {
        self.read(setting, retention::ALLOWED, retention::Fields::parse)
    }

    /// Where files are stored.
    pub(super) fn place(&self, setting: &Setting) -> Result<Sourced<Place>> {
        if Location::is_meant_by(&setting.value) {
            let location = self.read(setting, Location::ALLOWED, Location::parse)?;
            return Ok(self.sourced(setting, Place::Store(location.value)));
        }
        let allowed = format!("an absolute path, {}", Location::ALLOWED);
        let folder = self.path_or(setting, &allowed)?;
        Ok(self.sourced(setting, Place::Folder(folder.value)))
    }

    pub(super) fn read<T>(
        &self,
        setting: &Setting,
        allowed: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Sourced<T>> {
        parse(&setting.value)
            .map(|value| self.sourced(setting, value))
            .ok_or_else(|| self.bad_value(setting, allowed))
    }

    /// A relative path would depend on where cron or a shell happens to stand.
    pub(super) fn path(&self, setting: &Setting) -> Result<Sourced<PathBuf>> {
        self.path_or(setting, "an absolute path")
    }

    fn path_or(&self, setting: &Setting, allowed: &str) -> Result<Sourced<PathBuf>> {
        self.read(setting, allowed, |text| {
            Some(self.environment.expand(text)).filter(|path| path.is_absolute())
        })
    }

    pub(super) fn sourced<T>(&self, setting: &Setting, value: T) -> Sourced<T> {
        Sourced {
            value,
            origin: Origin::File {
                path: self.path.to_owned(),
                line: setting.line,
            },
        }
    }

    fn ignore(&mut self, setting: &Setting, reason: foreign::Reason) {
        self.ignored.push(Ignored {
            key: setting.key.clone(),
            path: self.path.to_owned(),
            line: setting.line,
            reason,
        });
    }

    pub(super) fn wrong(&self, setting: &Setting, what: &str) -> Error {
        let (path, line) = (self.path.display(), setting.line);
        Error::usage(format!("{path}:{line}: {} {what}", setting.key))
    }

    fn bad_value(&self, setting: &Setting, allowed: &str) -> Error {
        self.wrong(setting, &format!("cannot be \"{}\"", setting.value))
            .hint(format!("{} may be {allowed}", setting.key))
    }

    fn unknown(&self, setting: &Setting, known: &[&str]) -> Error {
        let hint = match suggestion::nearest(&setting.key, known.iter().copied()) {
            Some(key) => format!("did you mean {key}?"),
            None => format!("the keys here are {}", known.join(", ")),
        };
        self.wrong(setting, "is not a key of this section")
            .hint(hint)
    }
}

fn logs_to_file(section: &Section) -> bool {
    let mut settings = section.settings.iter();
    settings
        .find(|setting| setting.key == "log_type")
        .is_some_and(|setting| setting.value.eq_ignore_ascii_case("file"))
}

/// Whether some section may have this key.
fn is_known(key: &str) -> bool {
    [&common_keys(), SERVER_KEYS, OTHER_NAMES]
        .concat()
        .contains(&key)
        || foreign::in_main_section(key).is_some()
        || foreign::in_server_section(key).is_some()
}

/// The level is none of its algorithm's.
pub(super) fn level_error(level: &Sourced<i32>, allowed: &str) -> Error {
    Error::usage(format!(
        "{}: compression_level cannot be \"{}\"",
        level.origin, level.value
    ))
    .hint(format!("compression_level may be {allowed}"))
}

fn encryption(text: &str) -> Option<Option<Cipher>> {
    match text.to_ascii_lowercase().as_str() {
        "none" | "off" => Some(None),
        name => Cipher::parse(name).map(Some),
    }
}

const WORKERS_ALLOWED: &str = "a number of threads up to 1024, or 0 to leave it to pgkeep";

fn workers(text: &str) -> Option<Option<NonZero<usize>>> {
    let number = text.parse().ok()?;
    (number <= 1024).then_some(NonZero::new(number))
}

const LOG_LEVEL_ALLOWED: &str = "off, error, warn, info, debug or trace";

/// pgmoneta also has fatal, and counts its debug levels from 1 to 5.
fn log_level(text: &str) -> Option<LevelFilter> {
    match text.to_ascii_lowercase().as_str() {
        "off" => Some(LevelFilter::Off),
        "fatal" | "error" => Some(LevelFilter::Error),
        "warn" => Some(LevelFilter::Warn),
        "info" => Some(LevelFilter::Info),
        "debug" | "debug1" | "debug2" => Some(LevelFilter::Debug),
        "debug3" | "debug4" | "debug5" | "trace" => Some(LevelFilter::Trace),
        _ => None,
    }
}

pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "yes" | "1" | "true" => Some(true),
        "off" | "no" | "0" | "false" => Some(false),
        _ => None,
    }
}

fn list(text: &str) -> Option<Vec<String>> {
    let items = text.split(',').map(str::trim);
    items
        .map(|item| (!item.is_empty()).then(|| item.to_owned()))
        .collect()
}

const SLOT_ALLOWED: &str = "up to 63 lower-case letters, digits and underscores";

/// replication/slot.c: ReplicationSlotValidateName().
fn slot_name(text: &str) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (text.len() <= 63 && text.bytes().all(allowed)).then(|| text.to_owned())
}
