//! Connections to the store: through a proxy or not, and none that stands still for long.

use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tower_service::Service;

use super::settings::{Proxy, Settings};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The same of a machine's own services, which are at hand or are not there at all.
const CONNECT_TIMEOUT_AT_HAND: Duration = Duration::from_secs(1);

/// How long a connection may stand still, while an answer is awaited too.
pub(super) const STANDSTILL: Duration = Duration::from_secs(60);

type Cause = Box<dyn StdError + Send + Sync>;

/// Makes connections.
#[derive(Clone)]
pub(super) struct Dialer {
    direct: HttpConnector,
    proxies: Arc<Matcher>,
}

impl Dialer {
    /// One for a store. What the environment says of proxies holds where the configuration says nothing.
    pub(super) fn new(settings: &Settings) -> Dialer {
        let variable = |names: &[&str]| settings.credentials.variable(names).unwrap_or_default();
        let proxies = match &settings.proxy {
            Some(proxy) => Matcher::builder().all(Proxy::reveal(proxy).to_owned()),
            None => Matcher::builder()
                .all(variable(&["ALL_PROXY", "all_proxy"]).to_owned())
                .https(variable(&["HTTPS_PROXY", "https_proxy"]).to_owned())
                // Never HTTP_PROXY, which is a header of requests to programs behind web servers.
                .http(variable(&["http_proxy"]).to_owned())
                .no(variable(&["NO_PROXY", "no_proxy"]).to_owned()),
        };
        let mut direct = HttpConnector::new();
        direct.enforce_http(false);
        direct.set_nodelay(true);
        direct.set_connect_timeout(Some(CONNECT_TIMEOUT));
        Dialer {
            direct,
            proxies: Arc::new(proxies.build()),
        }
    }
}

/// Whether a host is a service of this machine's own, such as what tells an instance its credentials.
fn is_at_hand(uri: &Uri) -> bool {
    uri.host().is_some_and(|host| {
        host.starts_with("169.254.")
            || host.starts_with("[fd00:ec2::")
            || host == "metadata.google.internal"
    })
}

/// An address with its port, without which a tunnel leads to that of TLS.
fn with_port(uri: Uri) -> Result<Uri, http::Error> {
    match (uri.port(), uri.scheme(), uri.host()) {
        (None, Some(scheme), Some(host)) if *scheme == Scheme::HTTP => Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(format!("{host}:80"))
            .path_and_query("/")
            .build(),
        _ => Ok(uri),
    }
}

impl Service<Uri> for Dialer {
    type Response = Watched;
    type Error = Cause;
    type Future = Pin<Box<dyn Future<Output = Result<Watched, Cause>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let mut direct = self.direct.clone();
        let is_at_hand = is_at_hand(&uri);
        let through = match is_at_hand {
            true => None,
            false => self.proxies.intercept(&uri),
        };
        Box::pin(async move {
            let stream = async {
                match through {
                    None => direct.call(uri).await.map_err(Cause::from),
                    Some(proxy) => {
                        let mut tunnel = Tunnel::new(proxy.uri().clone(), direct);
                        if let Some(secret) = proxy.basic_auth() {
                            tunnel = tunnel.with_auth(secret.clone());
                        }
                        let tunnelled = tunnel.call(with_port(uri)?).await;
                        tunnelled.map_err(|error| format!("the proxy: {error}").into())
                    }
                }
            };
            let allowed = match is_at_hand {
                true => CONNECT_TIMEOUT_AT_HAND,
                false => CONNECT_TIMEOUT,
            };
            match tokio::time::timeout(allowed, stream).await {
                Ok(stream) => stream.map(Watched::new),
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no connection within {} s", allowed.as_secs()),
                )
                .into()),
            }
        })
    }
}

/// A connection that fails once it stands still for too long.
pub(super) struct Watched {
    stream: TokioIo<TcpStream>,
    moved: Instant,
    alarm: Pin<Box<Sleep>>,
}

impl Watched {
    fn new(stream: TokioIo<TcpStream>) -> Watched {
        Watched {
            stream,
            moved: Instant::now(),
            alarm: Box::pin(tokio::time::sleep(STANDSTILL)),
        }
    }

    /// What a read or write comes to, of which `done` is what the stream says.
    fn watch<T>(
        &mut self,
        done: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.moved = Instant::now();
            return done;
        }
        while self.alarm.as_mut().poll(context).is_ready() {
            let end = self.moved + STANDSTILL;
            if end <= Instant::now() {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("the connection stood still for {} s", STANDSTILL.as_secs()),
                )));
            }
            self.alarm.as_mut().reset(end);
        }
        Poll::Pending
    }
}

impl Read for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.watch(done, context)
    }
}

impl Write for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(done, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.watch(done, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connection for Watched {
    fn connected(&self) -> Connected {
        self.stream.inner().connected()
    }
}
