//! Who pgkeep is to Azure's Blob Storage.
//!
//! What the file says that the configuration names, or else the environment, by the names that Azure's own tools look
//! for. Of what is there the first of these counts: a connection string, the key of the account, a shared access
//! signature, a service principal, a workload identity. Where there is none of them, the machine is asked for its
//! managed identity.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use object_store::azure::{
    AzureAccessKey, AzureConfigKey, AzureCredential, AzureCredentialProvider,
    MicrosoftAzureBuilder, split_sas,
};
use object_store::client::HttpConnector;
use object_store::{RetryConfig, StaticCredentialProvider};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::super::settings::{Endpoint, Settings};
use super::{Asked, Privacy, Reread, Sources, read};
use crate::error::{Error, Result};

const CONNECTION_STRING: &[&str] = &["AZURE_STORAGE_CONNECTION_STRING"];
const ACCOUNT: &[&str] = &["AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME"];
const KEY: &[&str] = &[
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
];
const SIGNATURE: &[&str] = &["AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY"];
const CLIENT_ID: &[&str] = &["AZURE_CLIENT_ID"];
const CLIENT_SECRET: &[&str] = &["AZURE_CLIENT_SECRET"];
const TENANT: &[&str] = &["AZURE_TENANT_ID"];
const AUTHORITY: &[&str] = &["AZURE_AUTHORITY_HOST"];
const TOKEN_FILE: &[&str] = &["AZURE_FEDERATED_TOKEN_FILE"];
const IDENTITY_ENDPOINT: &[&str] = &["IDENTITY_ENDPOINT", "MSI_ENDPOINT"];

/// What a file of credentials may be.
const FILE: &str = "it must have lines as AZURE_STORAGE_KEY=…, by the names of Azure's variables, or be what az ad sp create-for-rbac prints";

/// What is said of an account and of who asks.
struct Said {
    account: Option<String>,
    endpoint: Option<Endpoint>,
    proof: Proof,
}

/// What proves who asks.
enum Proof {
    Key(Zeroizing<String>),
    Signature(Zeroizing<String>),
    /// What another service gives tokens for: how it is asked, and what it wants to know.
    Token(&'static str, Vec<(AzureConfigKey, Zeroizing<String>)>),
}

/// Values by the names of Azure's variables.
type Named = BTreeMap<String, Zeroizing<String>>;

impl Sources {
    /// The values of the file that the configuration names, or else of the environment.
    fn azure_values(&self) -> Result<Named> {
        match &self.file {
            None => Ok(self
                .variables
                .iter()
                .map(|(name, value)| (name.clone(), Zeroizing::new(value.clone())))
                .collect()),
            Some(path) => {
                let text = read(path, Privacy::Demanded)?.ok_or_else(|| {
                    Error::usage(format!("{} is not there", path.display()))
                        .hint("correct azure_credentials, or create the file")
                })?;
                values(path, &text)
            }
        }
    }

    fn azure(&self) -> Result<Said> {
        let values = self.azure_values()?;
        let value = |names: &[&str]| names.iter().find_map(|name| values.get(*name)).cloned();
        let string = value(CONNECTION_STRING);
        let parts = match &string {
            Some(string) => parts(string)?,
            None => BTreeMap::new(),
        };
        let part = |name: &str| {
            let value = parts.get(name).filter(|value| !value.is_empty());
            value.map(|value| Zeroizing::new((*value).to_owned()))
        };
        let named = value(ACCOUNT).map(|name| name.to_string());
        let account = part("AccountName").map(|name| name.to_string()).or(named);
        let endpoint = match (part("BlobEndpoint"), part("EndpointSuffix"), &account) {
            (Some(endpoint), ..) => Some(endpoint.to_string()),
            (None, Some(suffix), Some(account)) => {
                let protocol = part("DefaultEndpointsProtocol");
                let protocol = protocol
                    .as_ref()
                    .map_or("https", |protocol| protocol.as_str());
                Some(format!("{protocol}://{account}.blob.{}", suffix.as_str()))
            }
            _ => None,
        };
        let endpoint = match endpoint {
            None => None,
            Some(text) => Some(Endpoint::parse_of_account(&text).ok_or_else(|| {
                Error::usage("the connection string of Azure names an endpoint that is none")
                    .hint(format!("it may be {}", Endpoint::ALLOWED_OF_ACCOUNT))
            })?),
        };
        let proof = match (
            part("AccountKey").or_else(|| value(KEY)),
            part("SharedAccessSignature").or_else(|| value(SIGNATURE)),
        ) {
            (Some(key), _) => Proof::Key(key),
            (None, Some(signature)) => Proof::Signature(signature),
            (None, None) => self.token(value),
        };
        Ok(Said {
            account,
            endpoint,
            proof,
        })
    }

    /// What a token is asked with.
    fn token(&self, value: impl Fn(&[&str]) -> Option<Zeroizing<String>>) -> Proof {
        let (kind, wanted): (_, &[_]) = match (value(CLIENT_SECRET), value(TOKEN_FILE)) {
            (Some(_), _) => (
                "client_secret",
                &[
                    (AzureConfigKey::ClientSecret, CLIENT_SECRET),
                    (AzureConfigKey::ClientId, CLIENT_ID),
                    (AzureConfigKey::AuthorityId, TENANT),
                    (AzureConfigKey::AuthorityHost, AUTHORITY),
                ],
            ),
            (None, Some(_)) => (
                "workload_identity",
                &[
                    (AzureConfigKey::FederatedTokenFile, TOKEN_FILE),
                    (AzureConfigKey::ClientId, CLIENT_ID),
                    (AzureConfigKey::AuthorityId, TENANT),
                    (AzureConfigKey::AuthorityHost, AUTHORITY),
                ],
            ),
            (None, None) => (
                "managed_identity",
                &[
                    (AzureConfigKey::ClientId, CLIENT_ID),
                    (AzureConfigKey::MsiEndpoint, IDENTITY_ENDPOINT),
                ],
            ),
        };
        // Who is at hand is no secret, and is told by the environment whatever a file says.
        let variable = |names: &[&str]| {
            let value = self.variable(names)?;
            Some(Zeroizing::new(value.to_owned()))
        };
        let told = wanted.iter().filter_map(|(key, names)| {
            let value = value(names).or_else(|| match key {
                AzureConfigKey::MsiEndpoint | AzureConfigKey::AuthorityHost => variable(names),
                _ => None,
            })?;
            // The crate puts a path behind it.
            let value = match key {
                AzureConfigKey::AuthorityHost => {
                    Zeroizing::new(value.trim_end_matches('/').to_owned())
                }
                _ => value,
            };
            Some((*key, value))
        });
        Proof::Token(kind, told.collect())
    }

    /// What gives a request its credentials. `connector` is for those that have to be asked for.
    pub(in super::super) fn azure_provider(
        &self,
        connector: impl HttpConnector,
    ) -> Result<AzureCredentialProvider> {
        let proof = self.azure()?.proof;
        let Proof::Token(kind, told) = proof else {
            let credential = credential_of(&proof)?;
            if self.file.is_none() {
                return Ok(Arc::new(StaticCredentialProvider::new(credential)));
            }
            let sources = self.clone();
            return Ok(Arc::new(Reread::new(move || {
                credential_of(&sources.azure()?.proof)
            })));
        };
        let mut builder = MicrosoftAzureBuilder::new()
            // Any: of what is built, only the provider is kept.
            .with_account("none")
            .with_container_name("none")
            .with_credential_type(kind)
            .with_retry(RetryConfig {
                max_retries: 0,
                ..RetryConfig::default()
            })
            .with_http_connector(connector);
        for (key, value) in told {
            builder = builder.with_config(key, value.as_str());
        }
        let built = builder.build().map_err(|_| {
            missing().context(match kind {
                "client_secret" => {
                    "AZURE_CLIENT_SECRET goes with AZURE_CLIENT_ID and AZURE_TENANT_ID"
                }
                _ => "AZURE_FEDERATED_TOKEN_FILE goes with AZURE_CLIENT_ID and AZURE_TENANT_ID",
            })
        })?;
        Ok(Arc::new(Asked::new(
            Arc::clone(built.credentials()),
            missing,
        )))
    }
}

/// What a proof that needs nobody else comes to.
fn credential_of(proof: &Proof) -> Result<AzureCredential> {
    match proof {
        Proof::Key(key) => AzureAccessKey::try_new(key)
            .map(AzureCredential::AccessKey)
            .map_err(|_| {
                Error::usage("the key of Azure's account is none: it is not in Base64")
                    .hint("take key1 or key2 as az storage account keys list prints them")
            }),
        Proof::Signature(signature) => {
            split_sas(signature)
                .map(AzureCredential::SASToken)
                .map_err(|_| {
                    Error::usage("the shared access signature of Azure is none")
                        .hint("it must be as sv=…&sp=racwdl&…&sig=…")
                })
        }
        Proof::Token(..) => Err(missing()),
    }
}

/// There are none, as far as can be told.
pub(in super::super) fn missing() -> Error {
    Error::server("there are no credentials for the store").hint(
        "set AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, or AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET, or name a file of credentials as azure_credentials",
    )
}

/// The settings with the account and the endpoint, where the credentials say them.
pub(in super::super) fn complete(settings: Settings) -> Result<Settings> {
    let said = settings.credentials.azure()?;
    if let (Some(wanted), Some(other)) = (&settings.account, &said.account)
        && wanted != other
        && matches!(said.proof, Proof::Key(_) | Proof::Signature(_))
    {
        return Err(Error::usage(format!(
            "the credentials are of Azure's account {other}, and azure_account is {wanted}"
        ))
        .hint("name those of that account, in a file for azure_credentials for example"));
    }
    let endpoint = settings.endpoint.clone().or(said.endpoint);
    let of_endpoint = || endpoint.as_ref()?.account().map(str::to_owned);
    // An account is no secret: a file of credentials need not name it.
    let of_environment = || settings.credentials.variable(ACCOUNT).map(str::to_owned);
    let account = settings.account.clone().or(said.account);
    let account = account.or_else(of_endpoint).or_else(of_environment);
    let account = account.ok_or_else(|| {
        Error::usage(format!(
            "nobody says which of Azure's accounts has the container {}",
            settings.location.bucket
        ))
        .hint("set azure_account, or AZURE_STORAGE_ACCOUNT in the environment")
    })?;
    let is_account = account
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if !is_account || !(3..=24).contains(&account.len()) {
        return Err(
            Error::usage(format!("Azure's account cannot be {account:?}"))
                .hint("it has 3 to 24 small letters and digits: correct azure_account"),
        );
    }
    Ok(Settings {
        account: Some(account),
        endpoint,
        ..settings
    })
}

/// What `az ad sp create-for-rbac` prints, by its names of today and of before.
#[derive(Deserialize)]
struct Principal {
    #[serde(alias = "clientId")]
    #[serde(rename = "appId")]
    client: String,
    #[serde(alias = "clientSecret")]
    password: String,
    #[serde(alias = "tenantId")]
    tenant: String,
}

/// Reads a file of credentials. What is wrong with it is told without a word of it.
fn values(path: &Path, text: &str) -> Result<Named> {
    let wrong = |what: &str| {
        Error::usage(format!("the file of credentials {} {what}", path.display())).hint(FILE)
    };
    if text.trim_start().starts_with('{') {
        let principal: Principal =
            serde_json::from_str(text).map_err(|_| wrong("names no appId, password and tenant"))?;
        let pairs = [
            (CLIENT_ID, principal.client),
            (CLIENT_SECRET, principal.password),
            (TENANT, principal.tenant),
        ];
        return Ok(pairs
            .into_iter()
            .map(|(names, value)| (names[0].to_owned(), Zeroizing::new(value)))
            .collect());
    }
    let mut values = Named::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let pair = line
            .split_once('=')
            .map(|(name, value)| (name.trim(), value.trim()))
            .filter(|(name, _)| name.starts_with("AZURE_"));
        let Some((name, value)) = pair else {
            return Err(wrong(&format!("has something else in line {}", number + 1)));
        };
        let bare = value
            .strip_prefix(['"', '\''])
            .and_then(|value| value.strip_suffix(['"', '\'']))
            .unwrap_or(value);
        values.insert(name.to_owned(), Zeroizing::new(bare.to_owned()));
    }
    match values.is_empty() {
        true => Err(wrong("has none in it")),
        false => Ok(values),
    }
}

/// The parts of a connection string.
fn parts(string: &str) -> Result<BTreeMap<&str, &str>> {
    let parts = string.split(';').map(str::trim);
    let parts = parts.filter(|part| !part.is_empty());
    parts
        .map(|part| {
            part.split_once('=').ok_or_else(|| {
                Error::usage("the connection string of Azure is none").hint(
                    "it must be as DefaultEndpointsProtocol=https;AccountName=…;AccountKey=…;EndpointSuffix=core.windows.net",
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::super::settings::Location;
    use super::*;
    use crate::config::Environment;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    fn sources(variables: &[(&str, &str)], file: Option<PathBuf>) -> Sources {
        let environment = Environment {
            variables: variables
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
            ..Environment::capture()
        };
        Sources::new(&environment, file, None)
    }

    fn completed(variables: &[(&str, &str)], account: Option<&str>) -> Result<Settings> {
        let location = Location::parse("az://backups/pg").unwrap();
        complete(Settings {
            account: account.map(str::to_owned),
            ..Settings::new(location, sources(variables, None))
        })
    }

    #[test]
    fn a_connection_string_says_all() {
        let string = "DefaultEndpointsProtocol=https;AccountName=company;AccountKey=a2V5;EndpointSuffix=core.chinacloudapi.cn";
        let variables = [(CONNECTION_STRING[0], string)];
        let settings = completed(&variables, None).unwrap();
        assert_eq!(settings.account.as_deref(), Some("company"));
        let endpoint = settings.endpoint.unwrap().to_string();
        assert_eq!(endpoint, "https://company.blob.core.chinacloudapi.cn");
        let error = completed(&variables, Some("other")).unwrap_err();
        assert!(error.message().contains("company"), "{error}");

        let local =
            "AccountName=x;AccountKey=a2V5;BlobEndpoint=http://127.0.0.1:10000/devstoreaccount1";
        let settings = completed(&[(CONNECTION_STRING[0], local)], None);
        // Two letters are too few.
        assert!(settings.is_err());
        let signed = "BlobEndpoint=http://127.0.0.1:10000/devstoreaccount1;SharedAccessSignature=sv=1&sig=a%3D";
        let settings = completed(&[(CONNECTION_STRING[0], signed)], None).unwrap();
        assert_eq!(settings.account.as_deref(), Some("devstoreaccount1"));
        let proof = settings.credentials.azure().unwrap().proof;
        let AzureCredential::SASToken(pairs) = credential_of(&proof).unwrap() else {
            unreachable!("no signature");
        };
        assert_eq!(pairs[1], ("sig".to_owned(), "a=".to_owned()));
        assert!(completed(&[], None).is_err());
    }

    #[test]
    fn the_first_that_says_something_counts() {
        let kind =
            |variables: &[(&str, &str)]| match sources(variables, None).azure().unwrap().proof {
                Proof::Key(_) => "key",
                Proof::Signature(_) => "signature",
                Proof::Token(kind, _) => kind,
            };
        let all = [
            ("AZURE_STORAGE_KEY", "a2V5"),
            ("AZURE_STORAGE_SAS_TOKEN", "sig=x"),
            ("AZURE_CLIENT_SECRET", "s"),
            ("AZURE_FEDERATED_TOKEN_FILE", "/token"),
        ];
        let found: Vec<_> = (0..=all.len()).map(|from| kind(&all[from..])).collect();
        assert_eq!(
            found,
            [
                "key",
                "signature",
                "client_secret",
                "workload_identity",
                "managed_identity"
            ]
        );
    }

    #[test]
    fn a_file_counts_before_the_environment_and_is_never_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("azure.credentials");
        let of = |text: &str| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            let variables = [
                ("AZURE_STORAGE_KEY", "b3RoZXI="),
                ("AZURE_STORAGE_ACCOUNT", "company"),
            ];
            sources(&variables, Some(path.clone())).azure()
        };
        let said = of("# of the company\nexport AZURE_STORAGE_KEY=\"a2V5\"\n").unwrap();
        assert!(matches!(said.proof, Proof::Key(key) if *key == "a2V5"));
        assert_eq!(said.account, None);
        let principal =
            "{\"appId\": \"a\", \"displayName\": \"d\", \"password\": \"p\", \"tenant\": \"t\"}";
        let Proof::Token("client_secret", told) = of(principal).unwrap().proof else {
            unreachable!("no principal");
        };
        assert_eq!(told.len(), 3);
        for text in [
            "swordfish",
            "{\"password\": \"swordfish\"}",
            "",
            "PATH=swordfish",
        ] {
            let error = of(text).err().unwrap();
            assert!(!format!("{error:?}").contains("swordfish"), "{error:?}");
            assert!(error.advice().unwrap().contains("AZURE_STORAGE_KEY="));
        }
    }
}
