//! What says how an object store is spoken to: the keys that begin with `s3_`, `azure_` or `gcs_`.

use super::environment::Environment;
use super::ini::Setting;
use super::origin::{Entry, Sourced};
use super::server::value_of;
use super::settings::{Given, Reader, boolean};
use crate::error::{Error, Result};
use crate::storage::objects::{
    Endpoint, Location, Proxy, Scheme, ServerEncryption, Settings, Sources,
};
use std::path::PathBuf;

/// The keys of [`Store`].
pub(super) const STORE_KEYS: &[&str] = &[
    "s3_endpoint",
    "s3_region",
    "s3_path_style",
    "s3_ca",
    "s3_proxy",
    "s3_profile",
    "s3_credentials",
    "s3_encryption",
    "s3_kms_key",
    "s3_storage_class",
    "azure_account",
    "azure_endpoint",
    "azure_credentials",
    "azure_ca",
    "azure_proxy",
    "gcs_endpoint",
    "gcs_credentials",
    "gcs_ca",
    "gcs_proxy",
];

/// What the file says of stores; without effect where files lie in a folder.
#[derive(Debug, Clone, Default)]
pub(super) struct Store {
    s3: Access,
    azure: Access,
    google: Access,
    account: Given<String>,
    region: Given<String>,
    path_style: Given<bool>,
    profile: Given<String>,
    encryption: Given<ServerEncryption>,
    kms_key: Given<String>,
    storage_class: Given<String>,
}

/// What there is to say of every kind of store.
#[derive(Debug, Clone, Default)]
struct Access {
    endpoint: Given<Endpoint>,
    credentials: Given<PathBuf>,
    ca: Given<PathBuf>,
    proxy: Given<Proxy>,
}

impl Access {
    fn over(self, main: &Access) -> Access {
        Access {
            endpoint: self.endpoint.or_else(|| main.endpoint.clone()),
            credentials: self.credentials.or_else(|| main.credentials.clone()),
            ca: self.ca.or_else(|| main.ca.clone()),
            proxy: self.proxy.or_else(|| main.proxy.clone()),
        }
    }
}

impl Reader<'_> {
    /// Takes a setting of a store, whose key is this one where the store is the main one; false if it is none.
    pub(super) fn store(&self, store: &mut Store, key: &str, setting: &Setting) -> Result<bool> {
        let word = |text: &str| {
            let is_word = text.bytes().all(|byte| byte.is_ascii_graphic());
            is_word.then(|| text.to_owned())
        };
        let text = || self.read(setting, "a word in ASCII", word).map(Some);
        for scheme in Scheme::ALL {
            if let Some(key) = key.strip_prefix(scheme.keys())
                && self.access(store.access_mut(scheme), scheme, key, setting)?
            {
                return Ok(true);
            }
        }
        match key {
            "azure_account" => store.account = text()?,
            "s3_region" => store.region = text()?,
            "s3_path_style" => {
                store.path_style = Some(self.read(setting, "on or off", boolean)?);
            }
            "s3_profile" => {
                let name = |text: &str| Some(text.to_owned());
                store.profile = Some(self.read(setting, "the name of a profile", name)?);
            }
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

    /// Takes what is said of every kind of store; false if it is none of that.
    fn access(
        &self,
        access: &mut Access,
        scheme: Scheme,
        key: &str,
        setting: &Setting,
    ) -> Result<bool> {
        match key {
            "endpoint" => {
                access.endpoint = Some(match scheme {
                    Scheme::Azure => self.read(
                        setting,
                        Endpoint::ALLOWED_OF_ACCOUNT,
                        Endpoint::parse_of_account,
                    )?,
                    _ => self.read(setting, Endpoint::ALLOWED, Endpoint::parse)?,
                });
            }
            "credentials" => access.credentials = Some(self.path(setting)?),
            "ca" => access.ca = Some(self.path(setting)?),
            "proxy" => {
                // The value may have a password in it.
                let proxy = Proxy::parse(&setting.value);
                let proxy = proxy.ok_or_else(|| {
                    self.wrong(setting, "is no proxy that can be used")
                        .hint(format!("{} may be {}", setting.key, Proxy::ALLOWED))
                })?;
                access.proxy = Some(self.sourced(setting, proxy));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl Store {
    fn access(&self, scheme: Scheme) -> &Access {
        match scheme {
            Scheme::S3 => &self.s3,
            Scheme::Azure => &self.azure,
            Scheme::Google => &self.google,
        }
    }

    fn access_mut(&mut self, scheme: Scheme) -> &mut Access {
        match scheme {
            Scheme::S3 => &mut self.s3,
            Scheme::Azure => &mut self.azure,
            Scheme::Google => &mut self.google,
        }
    }

    /// What one section says, and another one where that says nothing.
    pub(super) fn over(self, main: &Store) -> Store {
        // The main section's key belongs to the main section's encryption.
        let kms_key = match self.encryption {
            Some(_) => self.kms_key,
            None => self.kms_key.or_else(|| main.kms_key.clone()),
        };
        Store {
            s3: self.s3.over(&main.s3),
            azure: self.azure.over(&main.azure),
            google: self.google.over(&main.google),
            account: self.account.or_else(|| main.account.clone()),
            region: self.region.or_else(|| main.region.clone()),
            path_style: self.path_style.or_else(|| main.path_style.clone()),
            profile: self.profile.or_else(|| main.profile.clone()),
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
        let access = self.access(location.scheme);
        let credentials = Sources::new(
            environment,
            value_of(&access.credentials),
            value_of(&self.profile),
        );
        Settings {
            endpoint: value_of(&access.endpoint),
            account: value_of(&self.account),
            region: value_of(&self.region),
            path_style: value_of(&self.path_style),
            authorities: value_of(&access.ca),
            proxy: value_of(&access.proxy),
            encryption: value_of(&self.encryption).unwrap_or_default(),
            encryption_key: value_of(&self.kms_key),
            storage_class: value_of(&self.storage_class),
            ..Settings::new(location, credentials)
        }
    }

    /// What is given: what matters to a store of this kind, and what does only to others.
    pub(super) fn of_kind(&self, scheme: Scheme, prefix: &str) -> (Vec<Entry>, Vec<Entry>) {
        let keys = format!("{prefix}{}", scheme.keys());
        self.entries(prefix)
            .partition(|entry| entry.key.starts_with(&keys))
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
            shown("s3_endpoint", &self.s3.endpoint, ToString::to_string),
            shown("s3_region", &self.region, Clone::clone),
            shown("s3_path_style", &self.path_style, on_or_off),
            shown("s3_ca", &self.s3.ca, path),
            shown("s3_proxy", &self.s3.proxy, ToString::to_string),
            shown("s3_profile", &self.profile, Clone::clone),
            shown("s3_credentials", &self.s3.credentials, path),
            shown("s3_encryption", &self.encryption, ToString::to_string),
            shown("s3_kms_key", &self.kms_key, Clone::clone),
            shown("s3_storage_class", &self.storage_class, Clone::clone),
            shown("azure_account", &self.account, Clone::clone),
            shown("azure_endpoint", &self.azure.endpoint, ToString::to_string),
            shown("azure_credentials", &self.azure.credentials, path),
            shown("azure_ca", &self.azure.ca, path),
            shown("azure_proxy", &self.azure.proxy, ToString::to_string),
            shown("gcs_endpoint", &self.google.endpoint, ToString::to_string),
            shown("gcs_credentials", &self.google.credentials, path),
            shown("gcs_ca", &self.google.ca, path),
            shown("gcs_proxy", &self.google.proxy, ToString::to_string),
        ];
        entries.into_iter().flatten().map(move |entry| Entry {
            key: format!("{prefix}{}", entry.key),
            ..entry
        })
    }
}
