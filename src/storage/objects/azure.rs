//! Azure's Blob Storage.
//!
//! Large objects are made of blocks here, which nobody has to begin: those that no object was made of vanish after a
//! week, and there is nothing to abort. A copy may go on after it was answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use http::{Method, Request};
use object_store::Attributes;
use object_store::azure::{
    AzureAuthorizer, AzureCredential, MicrosoftAzure, MicrosoftAzureBuilder,
};
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody, HttpResponseBody};
use object_store::list::PaginatedListStore;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use percent_encoding::utf8_percent_encode;
use serde::Deserialize;

use super::Version;
use super::backend::{
    Backend, Finished, IN_PATH, IN_QUERY, Upload, connectors, delete_each, generic, no_retries,
};
use super::failure::Failure;
use super::refusal::Refusal;
use super::requests::Traffic;
use super::settings::Settings;
use crate::error::{Error, Result};

/// How long a copy that goes on is waited for, before the bytes are brought through here instead.
const COPY_PATIENCE: Duration = Duration::from_secs(10 * 60);

/// How long to wait before a copy that goes on is looked at; each further wait is twice as long.
const FIRST_LOOK: Duration = Duration::from_millis(50);

/// The longest wait between two looks.
const LONGEST_LOOK: Duration = Duration::from_secs(5);

/// A container of an account.
pub(super) struct Azure {
    store: MicrosoftAzure,
    client: HttpClient,
    account: String,
    /// The URL of the container.
    address: String,
}

impl Azure {
    pub(super) fn open(settings: &Settings, traffic: &Arc<Traffic>) -> Result<Azure> {
        let account = settings.account.clone().unwrap_or_default();
        let endpoint = match &settings.endpoint {
            Some(endpoint) => endpoint.to_string(),
            None => format!("https://{account}.blob.core.windows.net"),
        };
        let (connector, beside) = connectors(settings, traffic)?;
        let container = &settings.location.bucket;
        let store = MicrosoftAzureBuilder::new()
            .with_account(&account)
            .with_container_name(container)
            .with_endpoint(endpoint.clone())
            .with_credentials(settings.credentials.azure_provider(beside)?)
            .with_retry(no_retries())
            .with_http_connector(connector.clone())
            .build()
            .map_err(|error| Error::usage(format!("cannot use {}: {error}", settings.location)))?;
        Ok(Azure {
            store,
            client: connector.client(),
            account,
            address: format!("{endpoint}/{container}"),
        })
    }

    async fn credential(&self) -> object_store::Result<Arc<AzureCredential>> {
        self.store.credentials().get_credential().await
    }

    fn url(&self, path: &Path) -> String {
        let name = utf8_percent_encode(path.as_ref(), &IN_PATH);
        format!("{}/{name}", self.address)
    }

    /// Sends a request that has no body.
    async fn send(
        &self,
        method: Method,
        url: String,
        headers: &[(&'static str, HeaderValue)],
    ) -> object_store::Result<http::Response<HttpResponseBody>> {
        let mut request: HttpRequest = Request::builder()
            .method(method)
            .uri(url)
            .header(CONTENT_LENGTH, 0)
            .body(HttpRequestBody::empty())
            .map_err(generic)?;
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.clone());
        }
        let credential = self.credential().await?;
        AzureAuthorizer::new(&credential, &self.account).try_authorize(&mut request)?;
        self.client.execute(request).await.map_err(generic)
    }

    /// What a copy is made from: the URL, which proves of itself that it may be read where nothing else does.
    async fn source(&self, path: &Path) -> object_store::Result<HeaderValue> {
        let mut url = self.url(path);
        if let AzureCredential::SASToken(pairs) = &*self.credential().await? {
            for (number, (name, value)) in pairs.iter().enumerate() {
                let name = utf8_percent_encode(name, &IN_QUERY);
                let value = utf8_percent_encode(value, &IN_QUERY);
                let before = if number == 0 { '?' } else { '&' };
                url.push_str(&format!("{before}{name}={value}"));
            }
        }
        let mut value = HeaderValue::from_str(&url).map_err(generic)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// How far a copy is.
#[derive(Debug, PartialEq, Eq)]
enum Copying {
    Done,
    GoesOn,
    /// It came to nothing, for this reason.
    Failed(String),
}

impl Copying {
    fn of(headers: &HeaderMap) -> Copying {
        let header = |name: &str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default()
        };
        match header("x-ms-copy-status") {
            "success" => Copying::Done,
            "pending" => Copying::GoesOn,
            "" => Copying::Failed("the store does not say whether the copy is there".to_owned()),
            other => Copying::Failed(format!(
                "the copy is {other}: {}",
                header("x-ms-copy-status-description")
            )),
        }
    }
}

/// The answer to `Get Block List`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BlockList {
    #[serde(default)]
    committed_blocks: Blocks,
}

#[derive(Deserialize, Default)]
struct Blocks {
    #[serde(rename = "Block", default)]
    blocks: Vec<Block>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Block {
    name: String,
}

#[async_trait]
impl Backend for Azure {
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
        Attributes::new()
    }

    // Not that of `object_store`, which takes the beginning of a copy for its end.
    async fn copy(&self, from: &Path, to: &Path) -> object_store::Result<()> {
        let headers = [("x-ms-copy-source", self.source(from).await?)];
        let answer = self.send(Method::PUT, self.url(to), &headers).await?;
        let id = answer.headers().get("x-ms-copy-id").cloned();
        let mut copying = Copying::of(answer.headers());
        let (begin, mut wait) = (Instant::now(), FIRST_LOOK);
        loop {
            match copying {
                Copying::Done => return Ok(()),
                Copying::Failed(why) => return Err(generic(std::io::Error::other(why))),
                Copying::GoesOn => {}
            }
            if begin.elapsed() > COPY_PATIENCE {
                break;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_LOOK);
            let answer = self.send(Method::HEAD, self.url(to), &[]).await?;
            copying = Copying::of(answer.headers());
        }
        // It must not come to an end behind the back of who writes there next.
        let id = id.as_ref().and_then(|id| id.to_str().ok());
        let id = utf8_percent_encode(id.unwrap_or_default(), &IN_QUERY);
        let url = format!("{}?comp=copy&copyid={id}", self.url(to));
        let abort = [("x-ms-copy-action", HeaderValue::from_static("abort"))];
        match self.send(Method::PUT, url, &abort).await {
            Ok(_) => {}
            Err(error) => match Failure::of(&error) {
                // It has come to its end meanwhile.
                Failure::Refused(refusal) if refusal.code == "NoPendingCopyOperation" => {}
                _ => return Err(error),
            },
        }
        Err(generic(Refusal::of_copy()))
    }

    // Not the batches of `object_store`, which keep why one of them failed to themselves.
    async fn delete(&self, paths: Vec<Path>) -> object_store::Result<()> {
        delete_each(paths, async |path| {
            let sent = self.send(Method::DELETE, self.url(&path), &[]).await;
            sent.map(drop)
        })
        .await
    }

    /// The names of the blocks are by chance: no other upload's are the same.
    async fn came_of(
        &self,
        path: &Path,
        _: &Version,
        finished: &Finished<'_>,
    ) -> object_store::Result<bool> {
        let url = format!("{}?comp=blocklist&blocklisttype=committed", self.url(path));
        let answer = self.send(Method::GET, url, &[]).await?.into_body();
        let answer = answer.bytes().await.map_err(generic)?;
        let list: BlockList = quick_xml::de::from_reader(answer.as_ref()).map_err(generic)?;
        let there = list.committed_blocks.blocks.into_iter();
        let sent = finished.parts.iter();
        Ok(there
            .map(|block| block.name)
            .eq(sent.map(|part| BASE64_STANDARD.encode(&part.content_id))))
    }

    async fn uploads(&self, _: &str) -> object_store::Result<Vec<Upload>> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_done_once_it_says_so() {
        let of = |status: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-ms-copy-status", HeaderValue::from_static(status));
            Copying::of(&headers)
        };
        assert_eq!(of("success"), Copying::Done);
        assert_eq!(of("pending"), Copying::GoesOn);
        assert!(matches!(of("aborted"), Copying::Failed(_)));
        assert!(matches!(Copying::of(&HeaderMap::new()), Copying::Failed(_)));
    }
}
