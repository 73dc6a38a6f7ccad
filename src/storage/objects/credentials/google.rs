//! Who pgkeep is to Google's Cloud Storage.
//!
//! As with Google's own tools, the first of these that is there: the file that the configuration names;
//! `GOOGLE_APPLICATION_CREDENTIALS`; the file that `gcloud auth application-default login` writes; the machine's service
//! account, which its metadata server tells.

use std::path::PathBuf;
use std::sync::Arc;

use object_store::RetryConfig;
use object_store::client::HttpConnector;
use object_store::gcp::{GcpCredentialProvider, GoogleCloudStorageBuilder};
use serde::Deserialize;

use super::{Asked, Privacy, Sources, read};
use crate::error::{Error, Result};

/// What gcloud writes, in its folder.
const USUAL_FILE: &str = "application_default_credentials.json";

/// What kind of credentials a file has.
#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    name: String,
}

impl Sources {
    /// The file of credentials, and whether it must be there.
    fn google_file(&self) -> Option<(PathBuf, Privacy, Option<&'static str>)> {
        if let Some(path) = &self.file {
            return Some((path.clone(), Privacy::Demanded, Some("gcs_credentials")));
        }
        let variable = "GOOGLE_APPLICATION_CREDENTIALS";
        if let Some(path) = self.variable(&[variable]) {
            return Some((path.into(), Privacy::Wished, Some(variable)));
        }
        let folder = match self.variable(&["CLOUDSDK_CONFIG"]) {
            Some(folder) => PathBuf::from(folder),
            None => self.home.as_ref()?.join(".config/gcloud"),
        };
        Some((folder.join(USUAL_FILE), Privacy::Wished, None))
    }

    /// What gives a request its token. `connector` is for those that have to be asked for.
    pub(in super::super) fn google_provider(
        &self,
        connector: impl HttpConnector,
    ) -> Result<GcpCredentialProvider> {
        let mut builder = GoogleCloudStorageBuilder::new()
            // Any: of what is built, only the provider is kept.
            .with_bucket_name("none")
            .with_retry(RetryConfig {
                max_retries: 0,
                ..RetryConfig::default()
            })
            .with_http_connector(connector);
        if let Some((path, privacy, named)) = self.google_file() {
            let shown = path.display();
            match (read(&path, privacy)?, named) {
                (None, None) => {}
                (None, Some(named)) => {
                    return Err(Error::usage(format!("{shown} is not there"))
                        .hint(format!("correct {named}, or create the file")));
                }
                (Some(text), _) => {
                    let kind: Kind = serde_json::from_str(&text).map_err(|_| unusable(&path))?;
                    builder = match kind.name.as_str() {
                        "service_account" => builder.with_service_account_key(text.as_str()),
                        "authorized_user" => {
                            builder.with_application_credentials(path.to_string_lossy())
                        }
                        other => {
                            return Err(Error::usage(format!(
                                "{shown} has credentials of the type {other:?}, which pgkeep does not use"
                            ))
                            .hint("name the key of a service account, which gcloud iam service-accounts keys create writes, as gcs_credentials; or run on a machine that has one"));
                        }
                    };
                    // What is in it is nobody's business.
                    let built = builder.build().map_err(|_| unusable(&path))?;
                    return Ok(Arc::new(Asked::new(
                        Arc::clone(built.credentials()),
                        missing,
                    )));
                }
            }
        }
        let built = builder.build().map_err(|error| missing().context(error))?;
        Ok(Arc::new(Asked::new(
            Arc::clone(built.credentials()),
            missing,
        )))
    }
}

fn unusable(path: &std::path::Path) -> Error {
    Error::usage(format!(
        "{} holds no credentials of Google's that can be used",
        path.display()
    ))
    .hint("it must be the key of a service account in JSON, which gcloud iam service-accounts keys create writes, or what gcloud auth application-default login writes")
}

/// There are none, as far as can be told.
pub(in super::super) fn missing() -> Error {
    Error::server("there are no credentials for the store").hint(
        "name the key of a service account as gcs_credentials or GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login",
    )
}
