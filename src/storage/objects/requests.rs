//! Requests to the store, each counted, and what comes back.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use http::Method;
use http::header::{HeaderValue, USER_AGENT};
use http_body_util::{BodyExt, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService,
};
use rustls::ClientConfig;

use super::dialing::Dialer;
use super::refusal::{self, Refusal};

/// How long a connection is kept for further requests.
const IDLE: Duration = Duration::from_secs(30);

/// Headers that only copies have.
const COPIES: [&str; 3] = [
    "x-amz-copy-source",
    "x-ms-copy-source",
    "x-goog-copy-source",
];

/// What an answer that says how a request went may be long: one line for each of a thousand keys.
const ANSWER_BYTES: usize = 8 << 20;

static PROGRAM: HeaderValue =
    HeaderValue::from_static(concat!("pgkeep/", env!("CARGO_PKG_VERSION")));

/// What lists are called.
const LISTS: [&str; 4] = [
    "ListBucketResult",
    "ListVersionsResult",
    "ListMultipartUploadsResult",
    "EnumerationResults",
];

/// How many requests of each sort were made, those that were made again counted again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Objects, or parts of them, that were read.
    pub gets: u64,
    /// Objects that were looked at.
    pub heads: u64,
    /// Objects, or parts of large ones, that were written.
    pub puts: u64,
    /// Objects that the store was to copy.
    pub copies: u64,
    /// Beginnings and ends of large objects.
    pub uploads: u64,
    /// Pages of names that were listed.
    pub lists: u64,
    /// Deletions, in S3 each of up to a thousand objects.
    pub deletes: u64,
}

impl Counts {
    /// All of them.
    pub fn total(&self) -> u64 {
        let Counts {
            gets,
            heads,
            puts,
            copies,
            uploads,
            lists,
            deletes,
        } = self;
        gets + heads + puts + copies + uploads + lists + deletes
    }
}

/// What sort of request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Get,
    Head,
    Put,
    Copy,
    Upload,
    List,
    Delete,
}

impl Sort {
    fn of(request: &HttpRequest) -> Sort {
        let query = request.uri().query().unwrap_or_default();
        let has = |name: &str| {
            query
                .split('&')
                .any(|field| field.split('=').next() == Some(name))
        };
        match *request.method() {
            Method::HEAD => Sort::Head,
            Method::PUT
                if COPIES
                    .iter()
                    .any(|name| request.headers().contains_key(*name)) =>
            {
                Sort::Copy
            }
            // Azure's end of a large object, which has no beginning.
            Method::PUT if query.contains("comp=blocklist") => Sort::Upload,
            Method::PUT => Sort::Put,
            Method::POST if has("delete") => Sort::Delete,
            Method::POST => Sort::Upload,
            Method::DELETE if has("uploadId") => Sort::Upload,
            Method::DELETE => Sort::Delete,
            _ if has("list-type") || has("uploads") || has("versions") => Sort::List,
            _ if query.contains("comp=list") => Sort::List,
            _ => Sort::Get,
        }
    }

    /// Whether the answer may say in its body alone that nothing was done.
    fn may_hide_refusal(self) -> bool {
        matches!(self, Sort::Copy | Sort::Upload | Sort::Delete | Sort::List)
    }

    /// Whether a body that says of no refusal is what was asked for. What somebody on the way has put in its place reads as a
    /// list of nothing.
    fn is_answered_by(self, body: &[u8]) -> bool {
        self != Sort::List || LISTS.contains(&refusal::root(body).unwrap_or_default())
    }
}

/// What all connections of a store share.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    counters: [AtomicU64; 7],
    is_reached: AtomicBool,
}

impl Traffic {
    fn count(&self, sort: Sort) {
        self.counters[sort as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted.
    pub(super) fn counts(&self) -> Counts {
        let of = |sort: Sort| self.counters[sort as usize].load(Ordering::Relaxed);
        Counts {
            gets: of(Sort::Get),
            heads: of(Sort::Head),
            puts: of(Sort::Put),
            copies: of(Sort::Copy),
            uploads: of(Sort::Upload),
            lists: of(Sort::List),
            deletes: of(Sort::Delete),
        }
    }

    /// Whether the store has answered anything so far.
    pub(super) fn is_reached(&self) -> bool {
        self.is_reached.load(Ordering::Relaxed)
    }
}

/// Makes clients of HTTP.
#[derive(Clone)]
pub(super) struct Connector {
    dialer: Dialer,
    tls: Arc<ClientConfig>,
    traffic: Arc<Traffic>,
}

impl Connector {
    /// One whose clients are counted here.
    pub(super) fn new(dialer: Dialer, tls: Arc<ClientConfig>, traffic: Arc<Traffic>) -> Connector {
        Connector {
            dialer,
            tls,
            traffic,
        }
    }

    /// A client of its own, for requests that are put together elsewhere.
    pub(super) fn client(&self) -> HttpClient {
        let tls = HttpsConnectorBuilder::new()
            .with_tls_config(ClientConfig::clone(&self.tls))
            .https_or_http()
            .enable_http1()
            .wrap_connector(self.dialer.clone());
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(tls);
        HttpClient::new(Requests {
            client,
            traffic: Arc::clone(&self.traffic),
        })
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.client())
    }
}

/// Sends requests. What the store refuses comes back as an error with the [`Refusal`] inside, so that one place decides
/// what to do about it.
struct Requests {
    client: Client<HttpsConnector<Dialer>, HttpRequestBody>,
    traffic: Arc<Traffic>,
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Requests")
    }
}

#[async_trait]
impl HttpService for Requests {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let sort = Sort::of(&request);
        self.traffic.count(sort);
        log::trace!("{} {}", request.method(), request.uri().path());
        request.headers_mut().insert(USER_AGENT, PROGRAM.clone());
        let response = self.client.request(request).await.map_err(|error| {
            let kind = match error.is_connect() {
                true => HttpErrorKind::Connect,
                false => HttpErrorKind::Interrupted,
            };
            HttpError::new(kind, error)
        })?;
        self.traffic.is_reached.store(true, Ordering::Relaxed);
        let (parts, body) = response.into_parts();
        let is_success = parts.status.is_success();
        if is_success && !sort.may_hide_refusal() {
            let body = body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error));
            return Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)));
        }
        let body = Limited::new(body, ANSWER_BYTES)
            .collect()
            .await
            .map_err(|error| HttpError::new_boxed(HttpErrorKind::Interrupted, error))?
            .to_bytes();
        let refusal = match is_success {
            true => Refusal::hidden(parts.status, &body),
            false => Some(Refusal::of(parts.status, &parts.headers, &body)),
        };
        match refusal {
            None if !sort.is_answered_by(&body) => Err(HttpError::new(
                HttpErrorKind::Interrupted,
                io::Error::other("the answer is no list, and not of the store's own making"),
            )),
            None => Ok(HttpResponse::from_parts(parts, body.into())),
            Some(refusal) => Err(HttpError::new(HttpErrorKind::Unknown, refusal)),
        }
    }
}
