//! Google's Cloud Storage, by the protocol that resembles that of S3.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::Request;
use http::header::AUTHORIZATION;
use object_store::client::{HttpClient, HttpRequestBody};
use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder};
use object_store::list::PaginatedListStore;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, CopyOptions, GetOptions, ObjectStore, ObjectStoreExt, RetryConfig,
};

use super::Version;
use super::backend::{Backend, DELETED_AT_ONCE, Finished, Upload, generic, list_uploads};
use super::dialing::Dialer;
use super::failure::Failure;
use super::requests::{Connector, Traffic};
use super::settings::Settings;
use super::tls;
use crate::error::{Error, Result};

/// Where it is.
const ENDPOINT: &str = "https://storage.googleapis.com";

/// What of a large object says which upload it came of.
const MARK: &str = "pgkeep-upload";

/// A bucket.
pub(super) struct Google {
    store: GoogleCloudStorage,
    client: HttpClient,
    /// The URL of the bucket.
    address: String,
}

impl Google {
    pub(super) fn open(settings: &Settings, traffic: &Arc<Traffic>) -> Result<Google> {
        let endpoint = match &settings.endpoint {
            Some(endpoint) => endpoint.to_string(),
            None => ENDPOINT.to_owned(),
        };
        let dialer = Dialer::new(settings);
        let tls = tls::configuration(settings)?;
        // What is asked for credentials is no request to the store.
        let beside = Connector::new(dialer.clone(), Arc::clone(&tls), Arc::default());
        let connector = Connector::new(dialer, tls, Arc::clone(traffic));
        let bucket = &settings.location.bucket;
        let store = GoogleCloudStorageBuilder::new()
            .with_bucket_name(bucket)
            .with_base_url(&endpoint)
            .with_credentials(settings.credentials.google_provider(beside)?)
            // What is tried again, and for how long, is decided elsewhere.
            .with_retry(RetryConfig {
                max_retries: 0,
                ..RetryConfig::default()
            })
            .with_http_connector(connector.clone())
            .build()
            .map_err(|error| Error::usage(format!("cannot use {}: {error}", settings.location)))?;
        Ok(Google {
            store,
            client: connector.client(),
            address: format!("{endpoint}/{bucket}"),
        })
    }

    async fn delete_one(&self, path: Path) -> object_store::Result<()> {
        match self.store.delete(&path).await {
            Ok(()) => Ok(()),
            Err(error) => match Failure::of(&error) {
                Failure::Refused(refusal) if refusal.is_of_absence() => Ok(()),
                _ => Err(error),
            },
        }
    }
}

fn mark() -> Attribute {
    Attribute::Metadata(MARK.into())
}

#[async_trait]
impl Backend for Google {
    fn objects(&self) -> &dyn ObjectStore {
        &self.store
    }

    fn multipart(&self) -> &dyn MultipartStore {
        &self.store
    }

    fn lists(&self) -> &dyn PaginatedListStore {
        &self.store
    }

    fn attributes(&self) -> Attributes {
        Attributes::new()
    }

    fn upload_attributes(&self, value: &str) -> Attributes {
        [(mark(), value.to_owned())].into_iter().collect()
    }

    async fn copy(&self, from: &Path, to: &Path) -> object_store::Result<()> {
        self.store.copy_opts(from, to, CopyOptions::default()).await
    }

    // Each by a request of its own: there are none for many.
    async fn delete(&self, paths: Vec<Path>) -> object_store::Result<()> {
        let deleted = stream::iter(paths).map(|path| self.delete_one(path));
        deleted
            .buffer_unordered(DELETED_AT_ONCE)
            .try_collect::<()>()
            .await
    }

    async fn came_of(
        &self,
        path: &Path,
        _: &Version,
        finished: &Finished<'_>,
    ) -> object_store::Result<bool> {
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        let found = self.store.get_opts(path, options).await?;
        let value = found.attributes.get(&mark());
        Ok(value.is_some_and(|value| value.as_ref() == finished.mark))
    }

    async fn uploads(&self, prefix: &str) -> object_store::Result<Vec<Upload>> {
        list_uploads(prefix, async |query| {
            let credential = self.store.credentials().get_credential().await?;
            let request = Request::builder()
                .uri(format!("{}?{query}", self.address))
                .header(AUTHORIZATION, format!("Bearer {}", credential.bearer))
                .body(HttpRequestBody::empty())
                .map_err(generic)?;
            let answer = self.client.execute(request).await.map_err(generic)?;
            answer.into_body().bytes().await.map_err(generic)
        })
        .await
    }
}
