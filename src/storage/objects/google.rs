//! Google's Cloud Storage, by the protocol that resembles that of S3.

use std::sync::Arc;

use async_trait::async_trait;
use http::Request;
use http::header::AUTHORIZATION;
use object_store::client::{HttpClient, HttpRequestBody};
use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder};
use object_store::list::PaginatedListStore;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{Attribute, Attributes, CopyOptions, GetOptions, ObjectStore, ObjectStoreExt};

use super::Version;
use super::backend::{
    Backend, Finished, Upload, connectors, delete_each, generic, list_uploads, no_retries,
};
use super::requests::Traffic;
use super::settings::Settings;
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
        let (connector, beside) = connectors(settings, traffic)?;
        let bucket = &settings.location.bucket;
        let store = GoogleCloudStorageBuilder::new()
            .with_bucket_name(bucket)
            .with_base_url(&endpoint)
            .with_credentials(settings.credentials.google_provider(beside)?)
            .with_retry(no_retries())
            .with_http_connector(connector.clone())
            .build()
            .map_err(|error| Error::usage(format!("cannot use {}: {error}", settings.location)))?;
        Ok(Google {
            store,
            client: connector.client(),
            address: format!("{endpoint}/{bucket}"),
        })
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
        delete_each(paths, async |path| self.store.delete(&path).await).await
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
