//! Who pgkeep is to the store.
//!
//! As with other tools for S3, the first of these that says something: the file and the profile that the configuration
//! names; `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`; the profile of `AWS_PROFILE`, or else `default`, in
//! `~/.aws/credentials` and `~/.aws/config`; a web identity; the container's credentials; the instance's.

pub(super) mod azure;
pub(super) mod google;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use object_store::RetryConfig;
use object_store::StaticCredentialProvider;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, AwsCredentialProvider};
use object_store::client::{CredentialProvider, HttpConnector};
use zeroize::Zeroizing;

use crate::config::Environment;
use crate::error::{Error, Result};

use super::failure::Failure;
use super::profile::Profile;

/// How long what a file of credentials says is taken for good: other tools replace it before it expires.
const FILE_VALID: Duration = Duration::from_secs(30);

/// The profile of who names none.
const DEFAULT_PROFILE: &str = "default";

/// Where credentials may come from.
#[derive(Clone)]
pub struct Sources {
    /// A file of credentials that the configuration names; for S3 in the format of `~/.aws/credentials`.
    file: Option<PathBuf>,
    /// The profile that the configuration names.
    profile: Option<String>,
    /// What the environment says of it.
    variables: BTreeMap<String, String>,
    home: Option<PathBuf>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("file", &self.file)
            .field("profile", &self.profile)
            .finish_non_exhaustive()
    }
}

impl Sources {
    /// What the configuration names, and what the environment has.
    pub fn new(
        environment: &Environment,
        file: Option<PathBuf>,
        profile: Option<String>,
    ) -> Sources {
        const OURS: [&str; 6] = [
            "SSL_CERT_FILE",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "CLOUDSDK_CONFIG",
            // Where App Service and its like give out identities, as Azure's own libraries have it.
            "IDENTITY_ENDPOINT",
            "IDENTITY_HEADER",
            "MSI_ENDPOINT",
        ];
        let concerns_us = |name: &str| {
            let name = name.to_ascii_uppercase();
            name.starts_with("AWS_")
                || name.starts_with("AZURE_")
                || name.ends_with("_PROXY")
                || OURS.contains(&name.as_str())
        };
        Sources {
            file,
            profile,
            variables: environment
                .variables
                .iter()
                .filter(|(name, value)| concerns_us(name) && !value.is_empty())
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            home: environment.home.clone(),
        }
    }

    /// The first of these variables that is set.
    pub(super) fn variable(&self, names: &[&str]) -> Option<&str> {
        names
            .iter()
            .find_map(|name| self.variables.get(*name))
            .map(String::as_str)
    }

    /// The region that the environment or the profile names.
    pub(super) fn region(&self) -> Result<Option<String>> {
        if let Some(region) = self.variable(&["AWS_REGION", "AWS_DEFAULT_REGION"]) {
            return Ok(Some(region.to_owned()));
        }
        Ok(self.profile()?.get("region").map(str::to_owned))
    }

    fn profile_name(&self) -> &str {
        self.profile
            .as_deref()
            .or_else(|| self.variable(&["AWS_PROFILE", "AWS_DEFAULT_PROFILE"]))
            .unwrap_or(DEFAULT_PROFILE)
    }

    /// What the files say of the profile.
    fn profile(&self) -> Result<Profile> {
        let name = self.profile_name();
        if let Some(path) = &self.file {
            let text = read(path, Privacy::Demanded)?.ok_or_else(|| {
                Error::usage(format!("{} is not there", path.display()))
                    .hint("correct s3_credentials, or create the file")
            })?;
            let name = self.profile.as_deref().unwrap_or(DEFAULT_PROFILE);
            let mut profile = Profile::default();
            if !profile.add(&text, &[name]) {
                return Err(Error::usage(format!(
                    "{} has no section [{name}]",
                    path.display()
                ))
                .hint("it must have one with aws_access_key_id and aws_secret_access_key; or set s3_profile"));
            }
            return Ok(profile);
        }
        let mut profile = Profile::default();
        let mut is_there = false;
        let in_config = format!("profile {name}");
        let files = [
            ("AWS_CONFIG_FILE", "config", [name, in_config.as_str()]),
            ("AWS_SHARED_CREDENTIALS_FILE", "credentials", [name, name]),
        ];
        for (variable, usual, sections) in files {
            let Some(path) = self.aws_file(variable, usual) else {
                continue;
            };
            if let Some(text) = read(&path, Privacy::Wished)? {
                is_there |= profile.add(&text, &sections);
            }
        }
        if !is_there && name != DEFAULT_PROFILE {
            return Err(Error::server(format!("there is no profile {name}"))
                .hint("correct s3_profile or AWS_PROFILE, or add it to ~/.aws/credentials"));
        }
        Ok(profile)
    }

    fn aws_file(&self, variable: &str, usual: &str) -> Option<PathBuf> {
        match self.variable(&[variable]) {
            Some(path) => Some(PathBuf::from(path)),
            None => self.home.as_ref().map(|home| home.join(".aws").join(usual)),
        }
    }

    /// The credentials of the variables.
    fn of_variables(&self) -> Option<AwsCredential> {
        Some(AwsCredential {
            key_id: self.variable(&["AWS_ACCESS_KEY_ID"])?.to_owned(),
            secret_key: self.variable(&["AWS_SECRET_ACCESS_KEY"])?.to_owned(),
            token: self.variable(&["AWS_SESSION_TOKEN"]).map(str::to_owned),
        })
    }

    /// The credentials of the profile; none where it names none.
    fn of_profile(&self) -> Result<Option<AwsCredential>> {
        let profile = self.profile()?;
        let field = |name: &str| profile.get(name).map(str::to_owned);
        match (field("aws_access_key_id"), field("aws_secret_access_key")) {
            (Some(key_id), Some(secret_key)) => Ok(Some(AwsCredential {
                key_id,
                secret_key,
                token: field("aws_session_token"),
            })),
            _ => match profile.unsupported() {
                None => Ok(None),
                Some(setting) => Err(Error::server(format!(
                    "the profile {} gets its credentials by {setting}, which pgkeep does not do",
                    self.profile_name()
                ))
                .hint("aws configure export-credentials gives credentials that it can use: in the environment, or in a file for s3_credentials")),
            },
        }
    }

    /// What gives a request its credentials. `connector` is for those that have to be asked for.
    pub(super) fn provider(
        &self,
        region: &str,
        connector: impl HttpConnector,
    ) -> Result<AwsCredentialProvider> {
        let is_named = self.file.is_some() || self.profile.is_some();
        if !is_named && let Some(credential) = self.of_variables() {
            return Ok(Arc::new(StaticCredentialProvider::new(credential)));
        }
        if is_named || self.of_profile()?.is_some() {
            let sources = self.clone();
            return Ok(Arc::new(Reread::new(move || {
                let found = sources.of_profile()?;
                found.ok_or_else(|| {
                    let name = sources.profile_name();
                    missing().context(format!("the profile {name} names no keys"))
                })
            })));
        }
        self.asked_for(region, connector)
    }

    /// Those that another service gives to who runs in the right place.
    fn asked_for(
        &self,
        region: &str,
        connector: impl HttpConnector,
    ) -> Result<AwsCredentialProvider> {
        const KEYS: [(&str, AmazonS3ConfigKey); 8] = [
            (
                "AWS_WEB_IDENTITY_TOKEN_FILE",
                AmazonS3ConfigKey::WebIdentityTokenFile,
            ),
            ("AWS_ROLE_ARN", AmazonS3ConfigKey::RoleArn),
            ("AWS_ROLE_SESSION_NAME", AmazonS3ConfigKey::RoleSessionName),
            ("AWS_ENDPOINT_URL_STS", AmazonS3ConfigKey::StsEndpoint),
            (
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
            ),
            (
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                AmazonS3ConfigKey::ContainerCredentialsFullUri,
            ),
            (
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
                AmazonS3ConfigKey::ContainerAuthorizationTokenFile,
            ),
            (
                "AWS_EC2_METADATA_SERVICE_ENDPOINT",
                AmazonS3ConfigKey::MetadataEndpoint,
            ),
        ];
        let elsewhere = [
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ];
        let no_metadata = self
            .variable(&["AWS_EC2_METADATA_DISABLED"])
            .is_some_and(|value| value.eq_ignore_ascii_case("true"));
        if no_metadata && self.variable(&elsewhere).is_none() {
            return Err(missing());
        }
        let mut builder = AmazonS3Builder::new()
            // Any: of what is built, only the provider is kept.
            .with_bucket_name("none")
            .with_region(region)
            .with_retry(RetryConfig {
                max_retries: 0,
                ..RetryConfig::default()
            })
            .with_http_connector(connector);
        for (variable, key) in KEYS {
            if let Some(value) = self.variable(&[variable]) {
                builder = builder.with_config(key, value);
            }
        }
        let built = builder.build().map_err(|error| missing().context(error))?;
        Ok(Arc::new(Asked::new(
            Arc::clone(built.credentials()),
            missing,
        )))
    }
}

/// There are none, as far as can be told.
pub(super) fn missing() -> Error {
    Error::server("there are no credentials for the store").hint(
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a file of credentials as s3_credentials or a profile as s3_profile",
    )
}

/// Why there are no credentials for a request, inside the error of a store.
#[derive(Debug)]
pub(super) struct NoCredentials(pub(super) Error);

impl fmt::Display for NoCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for NoCredentials {}

impl From<NoCredentials> for object_store::Error {
    fn from(error: NoCredentials) -> object_store::Error {
        object_store::Error::Generic {
            store: "store",
            source: Box::new(error),
        }
    }
}

/// Credentials of a file, read anew now and then.
struct Reread<C> {
    read: Box<dyn Fn() -> Result<C> + Send + Sync>,
    last: Mutex<Option<(Instant, Arc<C>)>>,
}

impl<C> Reread<C> {
    fn new(read: impl Fn() -> Result<C> + Send + Sync + 'static) -> Reread<C> {
        Reread {
            read: Box::new(read),
            last: Mutex::new(None),
        }
    }
}

impl<C> fmt::Debug for Reread<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reread")
    }
}

#[async_trait]
impl<C: Send + Sync> CredentialProvider for Reread<C> {
    type Credential = C;

    async fn get_credential(&self) -> object_store::Result<Arc<C>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, credential)) = &*last
            && read.elapsed() < FILE_VALID
        {
            return Ok(Arc::clone(credential));
        }
        let credential = Arc::new((self.read)().map_err(NoCredentials)?);
        *last = Some((Instant::now(), Arc::clone(&credential)));
        Ok(credential)
    }
}

/// Credentials of another service, whose failures are told from those of the store.
struct Asked<C> {
    provider: Arc<dyn CredentialProvider<Credential = C>>,
    /// Whether there were some before.
    were_given: AtomicBool,
    /// What is said where there are none.
    missing: fn() -> Error,
}

impl<C> Asked<C> {
    fn new(
        provider: Arc<dyn CredentialProvider<Credential = C>>,
        missing: fn() -> Error,
    ) -> Asked<C> {
        Asked {
            provider,
            were_given: AtomicBool::new(false),
            missing,
        }
    }
}

impl<C> fmt::Debug for Asked<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asked")
    }
}

#[async_trait]
impl<C: fmt::Debug + Send + Sync> CredentialProvider for Asked<C> {
    type Credential = C;

    async fn get_credential(&self) -> object_store::Result<Arc<C>> {
        match self.provider.get_credential().await {
            Ok(credential) => {
                self.were_given.store(true, Ordering::Relaxed);
                Ok(credential)
            }
            Err(error) => {
                let why = Failure::of(&error);
                // Who has given some before will do so again.
                if why.is_momentary() && self.were_given.load(Ordering::Relaxed) {
                    return Err(error);
                }
                let missing = (self.missing)().context(format!("nobody gives any here ({why})"));
                Err(NoCredentials(missing).into())
            }
        }
    }
}

/// What is asked of a file of credentials.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Privacy {
    /// Only its owner may read it.
    Demanded,
    /// Other tools let it pass.
    Wished,
}

/// The text of a file; none where it is not there.
fn read(path: &Path, privacy: Privacy) -> Result<Option<Zeroizing<String>>> {
    let unreadable = |error: &std::io::Error| Error::io("read credentials from", path, error);
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(unreadable(&error)),
    };
    let metadata = file.metadata().map_err(|error| unreadable(&error))?;
    if privacy == Privacy::Demanded && metadata.mode() & 0o077 != 0 {
        let path = path.display();
        return Err(Error::usage(format!(
            "the file of credentials {path} can be read by others: its mode is {:03o}",
            metadata.mode() & 0o777
        ))
        .hint(format!("run chmod 0600 {path}")));
    }
    let mut text = Zeroizing::new(String::new());
    file.read_to_string(&mut text)
        .map_err(|error| unreadable(&error))?;
    Ok(Some(text))
}
