//! What says how an object store is spoken to: the keys that begin with `s3_`.

use super::environment::Environment;
use super::ini::Setting;
use super::origin::{Entry, Sourced};
use super::server::value_of;
use super::settings::{Given, Reader, boolean};
use crate::error::{Error, Result};
use crate::storage::objects::{Endpoint, Location, Proxy, ServerEncryption, Settings, Sources};
use std::path::PathBuf;

/// What the file says of a store; without effect where files lie in a folder.
#[derive(Debug, Clone, Default)]
pub(super) struct Store {
    endpoint: Given<Endpoint>,
    region: Given<String>,
    path_style: Given<bool>,
    ca: Given<PathBuf>,
    proxy: Given<Proxy>,
    profile: Given<String>,
    credentials: Given<PathBuf>,
    encryption: Given<ServerEncryption>,
    kms_key: Given<String>,
    storage_class: Given<String>,
}

impl Reader<'_> {
    /// Takes a setting of a store, whose key is this one where the store is the main one; false if it is none.
    pub(super) fn store(&self, store: &mut Store, key: &str, setting: &Setting) -> Result<bool> {
        let word = |text: &str| {
            let is_word = text.bytes().all(|byte| byte.is_ascii_graphic());
            is_word.then(|| text.to_owned())
        };
        let text = || self.read(setting, "a word in ASCII", word).map(Some);
        match key {
            "s3_endpoint" => {
                store.endpoint = Some(self.read(setting, Endpoint::ALLOWED, Endpoint::parse)?);
            }
            "s3_region" => store.region = text()?,
            "s3_path_style" => {
                store.path_style = Some(self.read(setting, "on or off", boolean)?);
            }
            "s3_ca" => store.ca = Some(self.path(setting)?),
            "s3_proxy" => {
                // The value may have a password in it.
                let proxy = Proxy::parse(&setting.value);
                let proxy = proxy.ok_or_else(|| {
                    self.wrong(setting, "is no proxy that can be used")
                        .hint(format!("{} may be {}", setting.key, Proxy::ALLOWED))
                })?;
                store.proxy = Some(self.sourced(setting, proxy));
            }
            "s3_profile" => {
                let name = |text: &str| Some(text.to_owned());
                store.profile = Some(self.read(setting, "the name of a profile", name)?);
            }
            "s3_credentials" => store.credentials = Some(self.path(setting)?),
            "s3_encryption" => {
                let (allowed, parse) = (ServerEncryption::ALLOWED, ServerEncryption::parse);
                store.encryption = Some(self.read(setting, allowed, parse)?);
            }
            "s3_kms_key" => store.kms_key = text()?,
            "s3_storage_class" => store.storage_class = text()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl Store {
    /// What one section says, and another one where that says nothing.
    pub(super) fn over(self, main: &Store) -> Store {
        // The main section's key belongs to the main section's encryption.
        let kms_key = match self.encryption {
            Some(_) => self.kms_key,
            None => self.kms_key.or_else(|| main.kms_key.clone()),
        };
        Store {
            endpoint: self.endpoint.or_else(|| main.endpoint.clone()),
            region: self.region.or_else(|| main.region.clone()),
            path_style: self.path_style.or_else(|| main.path_style.clone()),
            ca: self.ca.or_else(|| main.ca.clone()),
            proxy: self.proxy.or_else(|| main.proxy.clone()),
            profile: self.profile.or_else(|| main.profile.clone()),
            credentials: self.credentials.or_else(|| main.credentials.clone()),
            encryption: self.encryption.or_else(|| main.encryption.clone()),
            kms_key,
            storage_class: self.storage_class.or_else(|| main.storage_class.clone()),
        }
    }

    /// Checks what several of them give together. Their names begin with a prefix.
    pub(super) fn check(&self, prefix: &str) -> Result<()> {
        let encryption = self.encryption.as_ref().map(|given| given.value);
        match &self.kms_key {
            Some(key) if encryption != Some(ServerEncryption::Kms) => {
                let origin = &key.origin;
                Err(
                    Error::usage(format!("{origin}: {prefix}s3_kms_key has no effect here"))
                        .hint(format!("set {prefix}s3_encryption = aws:kms as well")),
                )
            }
            _ => Ok(()),
        }
    }

    /// How a store is spoken to.
    pub(super) fn settings(&self, location: Location, environment: &Environment) -> Settings {
        let credentials = Sources::new(
            environment,
            value_of(&self.credentials),
            value_of(&self.profile),
        );
        Settings {
            endpoint: value_of(&self.endpoint),
            region: value_of(&self.region),
            path_style: value_of(&self.path_style),
            authorities: value_of(&self.ca),
            proxy: value_of(&self.proxy),
            encryption: value_of(&self.encryption).unwrap_or_default(),
            encryption_key: value_of(&self.kms_key),
            storage_class: value_of(&self.storage_class),
            ..Settings::new(location, credentials)
        }
    }

    /// The lines of `conf ls` for what is given, with a prefix before each key.
    pub(super) fn entries(&self, prefix: &str) -> impl Iterator<Item = Entry> {
        fn shown<T>(key: &str, given: &Given<T>, show: impl Fn(&T) -> String) -> Option<Entry> {
            let Sourced { value, origin } = given.as_ref()?;
            Some(Entry {
                key: key.to_owned(),
                value: show(value),
                origin: origin.clone(),
            })
        }
        let path = |path: &PathBuf| path.display().to_string();
        let on_or_off = |is_on: &bool| if *is_on { "on" } else { "off" }.to_owned();
        let entries = [
            shown("s3_endpoint", &self.endpoint, ToString::to_string),
            shown("s3_region", &self.region, Clone::clone),
            shown("s3_path_style", &self.path_style, on_or_off),
            shown("s3_ca", &self.ca, path),
            shown("s3_proxy", &self.proxy, ToString::to_string),
            shown("s3_profile", &self.profile, Clone::clone),
            shown("s3_credentials", &self.credentials, path),
            shown("s3_encryption", &self.encryption, ToString::to_string),
            shown("s3_kms_key", &self.kms_key, Clone::clone),
            shown("s3_storage_class", &self.storage_class, Clone::clone),
        ];
        entries.into_iter().flatten().map(move |entry| Entry {
            key: format!("{prefix}{}", entry.key),
            ..entry
        })
    }
}
