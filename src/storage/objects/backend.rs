//! What each kind of store does in its own way.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header::HeaderValue;
use http::{Method, Request};
use jiff::Timestamp;
use object_store::aws::{
    AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer, AwsCredential, Checksum,
};
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody, HttpResponseBody};
use object_store::list::PaginatedListStore;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{Attribute, Attributes, MultipartId, RetryConfig};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::error::{Error, Result};

use super::Version;
use super::azure::Azure;
use super::dialing::Dialer;
use super::failure::Failure;
use super::google::Google;
use super::requests::{Connector, Traffic};
use super::settings::{Scheme, ServerEncryption, Settings};
use super::tls;

/// Bytes of a name that stand for themselves in a URL: RFC 3986, section 2.3.
pub(super) const IN_QUERY: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

pub(super) const IN_PATH: AsciiSet = IN_QUERY.remove(b'/');

/// Objects that are deleted at a time, where each is a request of its own.
pub(super) const DELETED_AT_ONCE: usize = 16;

/// What a large object was finished of.
pub(super) struct Finished<'a> {
    /// Its parts, in order.
    pub(super) parts: &'a [PartId],
    /// What no other upload has.
    pub(super) mark: &'a str,
}

/// A large object that is not finished.
pub(super) struct Upload {
    pub(super) path: Path,
    pub(super) id: MultipartId,
}

/// What a name had once, or that it was removed.
pub(super) struct Kept {
    pub(super) name: String,
    /// Names this version.
    pub(super) id: String,
    pub(super) size: u64,
    /// When it was written, or removed.
    pub(super) last_modified: Timestamp,
    pub(super) is_removal: bool,
    /// Whether nothing has come after it.
    pub(super) is_latest: bool,
}

/// A page of versions.
pub(super) struct Listing {
    pub(super) versions: Vec<Kept>,
    /// Where the next page begins.
    pub(super) next: Option<Marker>,
}

/// What a page of versions begins behind.
#[derive(Debug, Clone)]
pub(super) struct Marker {
    name: String,
    id: String,
}

/// A store of one kind.
#[async_trait]
pub(super) trait Backend: Send + Sync {
    /// What whole objects are read, written and deleted by.
    fn objects(&self) -> &dyn object_store::ObjectStore;

    /// What large objects are written by.
    fn multipart(&self) -> &dyn MultipartStore;

    /// What names are listed by.
    fn lists(&self) -> &dyn PaginatedListStore;

    /// What new objects are to have.
    fn attributes(&self) -> Attributes;

    /// The same for a large one. Where the store keeps it, [`Finished::mark`] is among them.
    fn upload_attributes(&self, mark: &str) -> Attributes {
        let _ = mark;
        self.attributes()
    }

    /// Has the store copy an object, and waits until that is done.
    async fn copy(&self, from: &Path, to: &Path) -> object_store::Result<()>;

    /// What the objects whose names begin so have ever been, as far as the store keeps it; a page of that.
    async fn versions(
        &self,
        prefix: &str,
        behind: Option<&Marker>,
    ) -> object_store::Result<Listing> {
        let _ = (prefix, behind);
        Err(object_store::Error::NotSupported {
            source: "versions are not listed there".into(),
        })
    }

    /// Deletes objects. What is not there is fine.
    async fn delete(&self, paths: Vec<Path>) -> object_store::Result<()> {
        let mut deleted = self
            .objects()
            .delete_stream(stream::iter(paths).map(Ok).boxed());
        while let Some(deleted) = deleted.next().await {
            deleted?;
        }
        Ok(())
    }

    /// Whether a large object, which has this version and as many bytes as were sent, came of an upload whose end was asked
    /// for and not answered.
    async fn came_of(
        &self,
        path: &Path,
        version: &Version,
        finished: &Finished<'_>,
    ) -> object_store::Result<bool>;

    /// The large objects that are not finished, of names that begin so.
    async fn uploads(&self, prefix: &str) -> object_store::Result<Vec<Upload>>;
}

/// Makes the store of some settings ready.
pub(super) fn open(settings: &Settings, traffic: &Arc<Traffic>) -> Result<Arc<dyn Backend>> {
    match settings.location.scheme {
        Scheme::S3 => Ok(Arc::new(S3::open(settings, traffic)?)),
        Scheme::Azure => Ok(Arc::new(Azure::open(settings, traffic)?)),
        Scheme::Google => Ok(Arc::new(Google::open(settings, traffic)?)),
    }
}

/// What requests to the store go by, and what those do that are made for credentials, which are none to the store.
pub(super) fn connectors(
    settings: &Settings,
    traffic: &Arc<Traffic>,
) -> Result<(Connector, Connector)> {
    let dialer = Dialer::new(settings);
    let tls = tls::configuration(settings)?;
    let beside = Connector::new(dialer.clone(), Arc::clone(&tls), Arc::default());
    Ok((Connector::new(dialer, tls, Arc::clone(traffic)), beside))
}

/// What is tried again, and for how long, is decided elsewhere.
pub(super) fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

/// The region of who names none, as with Amazon's own tools.
const DEFAULT_REGION: &str = "us-east-1";

/// S3.
struct S3 {
    store: AmazonS3,
    client: HttpClient,
    region: String,
    /// The URL of the bucket.
    address: String,
    bucket: String,
    encryption: ServerEncryption,
    encryption_key: Option<String>,
    storage_class: Option<String>,
}

impl S3 {
    fn open(settings: &Settings, traffic: &Arc<Traffic>) -> Result<S3> {
        let sources = &settings.credentials;
        let region = match &settings.region {
            Some(region) => region.clone(),
            None => sources
                .region()?
                .unwrap_or_else(|| DEFAULT_REGION.to_owned()),
        };
        let (connector, beside) = connectors(settings, traffic)?;
        let address = address(settings, &region);
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&settings.location.bucket)
            .with_region(&region)
            .with_endpoint(&address)
            // The address has the bucket in it.
            .with_virtual_hosted_style_request(true)
            .with_credentials(sources.provider(&region, beside)?)
            .with_retry(no_retries())
            .with_http_connector(connector.clone());
        if settings.endpoint.is_none() {
            // Amazon asks for one where objects are locked. Elsewhere it may be an unknown header.
            builder = builder.with_checksum_algorithm(Checksum::SHA256);
        }
        let encryption = match settings.encryption {
            ServerEncryption::None => None,
            ServerEncryption::Aes256 => Some("AES256"),
            ServerEncryption::Kms => Some("aws:kms"),
        };
        let keys = [
            ("aws_server_side_encryption", encryption),
            ("aws_sse_kms_key_id", settings.encryption_key.as_deref()),
        ];
        for (key, value) in keys {
            let key: Option<AmazonS3ConfigKey> = key.parse().ok();
            if let (Some(key), Some(value)) = (key, value) {
                builder = builder.with_config(key, value);
            }
        }
        let store = builder
            .build()
            .map_err(|error| Error::usage(format!("cannot use {}: {error}", settings.location)))?;
        Ok(S3 {
            client: connector.client(),
            store,
            region,
            address,
            bucket: settings.location.bucket.clone(),
            encryption: settings.encryption,
            encryption_key: settings.encryption_key.clone(),
            storage_class: settings.storage_class.clone(),
        })
    }

    /// Sends a request that has no body.
    async fn send(
        &self,
        mut request: HttpRequest,
    ) -> object_store::Result<http::Response<HttpResponseBody>> {
        let credential: Arc<AwsCredential> = self.store.credentials().get_credential().await?;
        AwsAuthorizer::new(&credential, "s3", &self.region).try_authorize(&mut request, None)?;
        self.client.execute(request).await.map_err(generic)
    }

    /// Asks the bucket for what a query says.
    async fn ask(&self, query: String) -> object_store::Result<Bytes> {
        let request = Request::builder()
            .uri(format!("{}/?{query}", self.address))
            .body(HttpRequestBody::empty())
            .map_err(generic)?;
        let answer = self.send(request).await?.into_body();
        answer.bytes().await.map_err(generic)
    }

    /// The headers of a copy.
    fn copy_headers(&self, from: &Path) -> Vec<(&'static str, String)> {
        let source = utf8_percent_encode(from.as_ref(), &IN_PATH);
        let mut headers = vec![("x-amz-copy-source", format!("{}/{source}", self.bucket))];
        if self.encryption != ServerEncryption::None {
            headers.push(("x-amz-server-side-encryption", self.encryption.to_string()));
        }
        if let Some(key) = &self.encryption_key {
            headers.push(("x-amz-server-side-encryption-aws-kms-key-id", key.clone()));
        }
        if let Some(class) = &self.storage_class {
            headers.push(("x-amz-storage-class", class.clone()));
        }
        headers
    }
}

/// The URL of a bucket.
fn address(settings: &Settings, region: &str) -> String {
    let bucket = &settings.location.bucket;
    match &settings.endpoint {
        Some(endpoint) if settings.path_style.unwrap_or(true) => format!("{endpoint}/{bucket}"),
        Some(endpoint) => endpoint.of_bucket(bucket).to_string(),
        None => {
            let end = if region.starts_with("cn-") { ".cn" } else { "" };
            let host = format!("s3.{region}.amazonaws.com{end}");
            // No certificate is made out to a name with further dots.
            match settings.path_style.unwrap_or(bucket.contains('.')) {
                true => format!("https://{host}/{bucket}"),
                false => format!("https://{bucket}.{host}"),
            }
        }
    }
}

/// What the error of something else is as that of a store.
pub(super) fn generic(
    error: impl std::error::Error + Send + Sync + 'static,
) -> object_store::Error {
    object_store::Error::Generic {
        store: "store",
        source: Box::new(error),
    }
}

/// The query for a page of what a bucket has of a sort, of names that begin so, behind what the markers say.
fn page_query(sort: &str, prefix: &str, markers: &[(&str, &str)]) -> String {
    let mut query = format!("{sort}=&prefix={}", utf8_percent_encode(prefix, &IN_QUERY));
    for (name, value) in markers {
        let value = utf8_percent_encode(value, &IN_QUERY);
        query.push_str(&format!("&{name}={value}"));
    }
    query
}

/// Deletes objects by a request each, several at the same time. What is not there is fine; of what the store has to keep, an
/// error tells once all others are gone.
pub(super) async fn delete_each<F>(
    paths: Vec<Path>,
    delete: impl Fn(Path) -> F,
) -> object_store::Result<()>
where
    F: Future<Output = object_store::Result<()>>,
{
    let mut deleting = stream::iter(paths)
        .map(delete)
        .buffer_unordered(DELETED_AT_ONCE);
    let mut kept = Ok(());
    while let Some(deleted) = deleting.next().await {
        let Err(error) = deleted else {
            continue;
        };
        match Failure::of(&error) {
            Failure::Refused(refusal) if refusal.is_of_absence() => {}
            Failure::Refused(refusal) if refusal.is_of_retention() => kept = Err(error),
            _ => return Err(error),
        }
    }
    kept
}

/// All large objects that are not finished, of names that begin so; `ask` gets a page of them by its query.
pub(super) async fn list_uploads<F>(
    prefix: &str,
    ask: impl Fn(String) -> F,
) -> object_store::Result<Vec<Upload>>
where
    F: Future<Output = object_store::Result<Bytes>>,
{
    let mut uploads = Vec::new();
    let mut page = UploadsPage::default();
    loop {
        let markers = [
            ("key-marker", page.next_key_marker.as_str()),
            ("upload-id-marker", page.next_upload_id_marker.as_str()),
        ];
        let markers = if page.is_truncated { &markers[..] } else { &[] };
        let answer = ask(page_query("uploads", prefix, markers)).await?;
        page = quick_xml::de::from_reader(answer.as_ref()).map_err(generic)?;
        for upload in std::mem::take(&mut page.uploads) {
            uploads.push(Upload {
                path: Path::parse(upload.key)?,
                id: upload.upload_id,
            });
        }
        if !page.is_truncated {
            return Ok(uploads);
        }
    }
}

/// A page of `ListMultipartUploads`.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct UploadsPage {
    is_truncated: bool,
    next_key_marker: String,
    next_upload_id_marker: String,
    #[serde(rename = "Upload")]
    uploads: Vec<ListedUpload>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedUpload {
    key: String,
    upload_id: String,
}

/// A page of `ListObjectVersions`.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct VersionsPage {
    is_truncated: bool,
    next_key_marker: String,
    next_version_id_marker: String,
    #[serde(rename = "Version")]
    versions: Vec<ListedVersion>,
    #[serde(rename = "DeleteMarker")]
    removals: Vec<ListedVersion>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedVersion {
    key: String,
    version_id: String,
    is_latest: bool,
    last_modified: String,
    #[serde(default)]
    size: u64,
}

impl ListedVersion {
    fn kept(self, is_removal: bool) -> object_store::Result<Kept> {
        Ok(Kept {
            name: self.key,
            id: self.version_id,
            size: self.size,
            last_modified: self.last_modified.parse().map_err(generic)?,
            is_removal,
            is_latest: self.is_latest,
        })
    }
}

#[async_trait]
impl Backend for S3 {
    fn objects(&self) -> &dyn object_store::ObjectStore {
        &self.store
    }

    fn multipart(&self) -> &dyn MultipartStore {
        &self.store
    }

    fn lists(&self) -> &dyn PaginatedListStore {
        &self.store
    }

    fn attributes(&self) -> Attributes {
        let class = self.storage_class.iter();
        class
            .map(|class| (Attribute::StorageClass, class.clone()))
            .collect()
    }

    // Not that of `object_store`, which leaves the storage class to the bucket.
    async fn copy(&self, from: &Path, to: &Path) -> object_store::Result<()> {
        let target = utf8_percent_encode(to.as_ref(), &IN_PATH);
        let mut request = Request::builder()
            .method(Method::PUT)
            .uri(format!("{}/{target}", self.address));
        for (name, value) in self.copy_headers(from) {
            let value = HeaderValue::from_str(&value).map_err(generic)?;
            request = request.header(name, value);
        }
        let request = request.body(HttpRequestBody::empty()).map_err(generic)?;
        self.send(request).await?;
        Ok(())
    }

    async fn versions(
        &self,
        prefix: &str,
        behind: Option<&Marker>,
    ) -> object_store::Result<Listing> {
        let markers = behind.map(|marker| {
            [
                ("key-marker", marker.name.as_str()),
                ("version-id-marker", marker.id.as_str()),
            ]
        });
        let markers = markers.as_ref().map_or(&[][..], |markers| &markers[..]);
        let answer = self.ask(page_query("versions", prefix, markers)).await?;
        let page: VersionsPage = quick_xml::de::from_reader(answer.as_ref()).map_err(generic)?;
        let written = page.versions.into_iter().map(|version| version.kept(false));
        let removed = page.removals.into_iter().map(|removal| removal.kept(true));
        let versions = written.chain(removed).collect::<Result<_, _>>()?;
        let next = page.is_truncated.then_some(Marker {
            name: page.next_key_marker,
            id: page.next_version_id_marker,
        });
        Ok(Listing { versions, next })
    }

    async fn came_of(
        &self,
        _: &Path,
        version: &Version,
        finished: &Finished<'_>,
    ) -> object_store::Result<bool> {
        Ok(version.has_parts(finished.parts.len()))
    }

    async fn uploads(&self, prefix: &str) -> object_store::Result<Vec<Upload>> {
        list_uploads(prefix, |query| self.ask(query)).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::Sources;
    use super::super::settings::{Endpoint, Location};
    use super::*;
    use crate::config::Environment;

    fn settings(bucket: &str, endpoint: Option<&str>, path_style: Option<bool>) -> Settings {
        let location = Location::parse(&format!("s3://{bucket}/folder")).unwrap();
        let sources = Sources::new(&Environment::capture(), None, None);
        Settings {
            endpoint: endpoint.map(|text| Endpoint::parse(text).unwrap()),
            path_style,
            ..Settings::new(location, sources)
        }
    }

    #[test]
    fn a_bucket_has_its_address() {
        let minio = Some("http://minio:9000");
        for (bucket, endpoint, path_style, region, expected) in [
            (
                "back",
                None,
                None,
                "eu-north-1",
                "https://back.s3.eu-north-1.amazonaws.com",
            ),
            (
                "back",
                None,
                Some(true),
                "us-east-1",
                "https://s3.us-east-1.amazonaws.com/back",
            ),
            (
                "back.up",
                None,
                None,
                "cn-north-1",
                "https://s3.cn-north-1.amazonaws.com.cn/back.up",
            ),
            ("back", minio, None, "us-east-1", "http://minio:9000/back"),
            (
                "back",
                minio,
                Some(false),
                "us-east-1",
                "http://back.minio:9000",
            ),
        ] {
            let settings = settings(bucket, endpoint, path_style);
            assert_eq!(address(&settings, region), expected);
        }
    }
}
