//! From connection settings to a session.
//!
//! A [`Connector`] is made once and then opens as many sessions as there are
//! threads, all with the same server: what the first session reached, host and
//! address, the others must reach too, because a backup read from two servers
//! would be none. So names are looked up here and not by the driver.

mod answer;
mod authentication;
mod channel_binding;
mod failure;
mod fault;
mod line;
mod replication;
mod session;
mod source;
mod stream;
mod tls;
mod verifier;
mod wire;

pub use answer::server_error;
use answer::session_error;
pub(in crate::server) use fault::Fault;
pub(in crate::server) use line::Line;
#[cfg(test)]
pub(in crate::server) use wire::testing;
pub(in crate::server) use wire::{MOST_WARNINGS, Wire, misplaced};

use crate::config::{
    ChannelBinding, ConnectionSettings, Endpoint, Host, SslMode, SslNegotiation, TargetSession,
};
use crate::error::{Error, Result};
use failure::{connect_error, may_differ_with_encryption};
use postgres::config::{ChannelBinding as DriverBinding, SslMode as DriverMode};
use postgres::{Client, Config, NoTls};
use source::Failure;
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;
use tls::Tls;

/// What a session starts with, before what the user's `options` say: a role may have timeouts so short
/// that not even the statement that lifts them all would come to its end. Every supported version has these.
const NO_TIMEOUTS: &str = "-c statement_timeout=0 -c lock_timeout=0 -c idle_session_timeout=0 \
                           -c idle_in_transaction_session_timeout=0";

/// The same where `transaction_timeout` ends a session before it is lifted. The server is 17 or newer then; an
/// older one would refuse the session, as it refuses every setting that it does not know.
const NO_TRANSACTION_TIMEOUT: &str = "-c transaction_timeout=0";

/// The code of what that timeout does, ERRCODE_TRANSACTION_TIMEOUT (utils/errcodes.txt).
const TRANSACTION_TIMEOUT: &str = "25P04";

/// How long nothing arrives before TCP asks whether the other side is there, how long it waits for an
/// answer, how often it asks, and how long what was sent may stay unconfirmed.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Opens sessions with one server.
#[derive(Clone)]
pub struct Connector {
    settings: Arc<ConnectionSettings>,
    /// None if no connection of these settings uses TLS.
    tls: Option<Tls>,
    /// What the first session reached.
    chosen: Arc<OnceLock<Target>>,
}

/// One host, and one of its addresses; a Unix socket has none.
#[derive(Debug, Clone)]
struct Target {
    endpoint: Endpoint,
    address: Option<IpAddr>,
}

impl Target {
    fn is_same(&self, other: &Target) -> bool {
        let place = |target: &Target| (target.endpoint.host.clone(), target.endpoint.port);
        self.address == other.address && place(self) == place(other)
    }
}

/// Whether an attempt to connect uses TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encrypted {
    No,
    IfOffered,
    Yes,
}

/// A failed attempt.
enum Miss {
    /// There was no server, or none that wants sessions now: another may.
    TryNext(Error),
    /// A server refused; as in libpq, no other is asked.
    Refused(Error),
}

impl From<Error> for Miss {
    fn from(error: Error) -> Miss {
        Miss::TryNext(error)
    }
}

impl From<Miss> for Error {
    fn from(miss: Miss) -> Error {
        match miss {
            Miss::TryNext(error) | Miss::Refused(error) => error,
        }
    }
}

impl Connector {
    /// Loads certificates; connects to nothing.
    pub fn new(settings: &ConnectionSettings) -> Result<Connector> {
        let is_network = |endpoint: &Endpoint| matches!(endpoint.host, Host::Network { .. });
        let uses_tls =
            settings.tls.mode != SslMode::Disable && settings.endpoints.iter().any(is_network);
        Ok(Connector {
            settings: Arc::new(settings.clone()),
            tls: uses_tls.then(|| tls::load(&settings.tls)).transpose()?,
            chosen: Arc::new(OnceLock::new()),
        })
    }

    /// Opens a session that nothing times out, with `search_path` on
    /// `pg_catalog`. The first call tries all hosts, in order; later ones,
    /// and those of clones, go where the first arrived.
    pub fn connect(&self) -> Result<Client> {
        if let Some(target) = self.chosen.get() {
            return Ok(self.open(target, self.settings.target)?);
        }
        let passes: &[TargetSession] = match self.settings.target {
            TargetSession::PreferStandby => &[TargetSession::Standby, TargetSession::Any],
            ref wanted => std::slice::from_ref(wanted),
        };
        let mut failure = None;
        for wanted in passes {
            for endpoint in &self.settings.endpoints {
                match self.connect_endpoint(endpoint, *wanted) {
                    Ok(client) => return Ok(client),
                    Err(Miss::Refused(error)) => return Err(error),
                    Err(Miss::TryNext(error)) => failure = Some(error),
                }
            }
        }
        Err(failure.unwrap_or_else(|| Error::usage("no host to connect to is configured")))
    }

    /// Asks the server to cancel the query that runs in another session.
    pub fn cancel(&self, token: &postgres::CancelToken) -> Result<()> {
        let (token, tls) = (token.clone(), self.tls.clone());
        let sent = within(self.settings.connect_timeout, move || match tls {
            Some(tls) => token.cancel_query(tls.driver),
            None => token.cancel_query(NoTls),
        })?;
        match sent {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(server_error("cancel a query", &error)),
            None => Err(Error::server(
                "cannot cancel a query: the server does not answer",
            )),
        }
    }

    /// Whether the sessions are by a Unix socket, which does not lead to another machine.
    pub fn is_by_socket(&self) -> bool {
        let chosen = self.chosen.get();
        chosen.is_some_and(|target| target.address.is_none())
    }

    /// Whether the sessions are with a server of this machine, as far as its address tells.
    pub fn is_with_this_machine(&self) -> bool {
        let Some(target) = self.chosen.get() else {
            return false;
        };
        match target.address {
            // A Unix socket.
            None => true,
            // Nobody can listen at another machine's address.
            Some(address) => address.is_loopback() || UdpSocket::bind((address, 0)).is_ok(),
        }
    }

    /// "host /tmp port 5432 user ann database postgres", for messages.
    pub fn describe(&self) -> String {
        let hosts = match self.chosen.get() {
            Some(target) => target.endpoint.to_string(),
            None => {
                let hosts = self.settings.endpoints.iter().map(Endpoint::to_string);
                hosts.collect::<Vec<_>>().join(" or ")
            }
        };
        self.describe_session(&hosts)
    }

    fn describe_session(&self, host: &str) -> String {
        let ConnectionSettings { user, database, .. } = &*self.settings;
        format!("{host} user {user} database {database}")
    }

    fn describe_replication(&self, host: &str) -> String {
        format!("{host} user {} for replication", self.settings.user)
    }

    fn connect_endpoint(
        &self,
        endpoint: &Endpoint,
        wanted: TargetSession,
    ) -> std::result::Result<Client, Miss> {
        let mut failure = None;
        for address in self.addresses(endpoint)? {
            let target = Target {
                endpoint: endpoint.clone(),
                address,
            };
            match self.open(&target, wanted) {
                Ok(client) => {
                    // Another thread may have come first, and arrived elsewhere.
                    let chosen = self.chosen.get_or_init(|| target.clone());
                    return match chosen.is_same(&target) {
                        true => Ok(client),
                        false => self.open(chosen, self.settings.target),
                    };
                }
                Err(Miss::TryNext(error)) => failure = Some(error),
                Err(refused) => return Err(refused),
            }
        }
        let failure = failure.unwrap_or_else(|| failure::unknown_host(endpoint, None));
        Err(Miss::TryNext(failure))
    }

    /// The addresses of a host; of a Unix socket none, but one attempt.
    fn addresses(&self, endpoint: &Endpoint) -> Result<Vec<Option<IpAddr>>> {
        let (name, port) = match &endpoint.host {
            Host::Socket(_) => return Ok(vec![None]),
            Host::Network {
                address: Some(address),
                ..
            } => return Ok(vec![Some(*address)]),
            Host::Network { name, .. } => (name.clone(), endpoint.port),
        };
        let found = within(self.settings.connect_timeout, move || {
            let addresses = (name.as_str(), port).to_socket_addrs()?;
            Ok(addresses.map(|address| Some(address.ip())).collect())
        })?;
        match found {
            Some(Ok(addresses)) => Ok(addresses),
            Some(Err(error)) => Err(failure::unknown_host(endpoint, Some(&error))),
            None => Err(failure::timed_out(endpoint, self.settings.connect_timeout)),
        }
    }

    /// Opens a session with one target.
    fn open(&self, target: &Target, wanted: TargetSession) -> std::result::Result<Client, Miss> {
        let place = self.describe_session(&target.endpoint.to_string());
        match self.in_each_way(target, |encrypted| self.attempt(target, encrypted))? {
            Ok(client) => Ok(session::check(client, &place, wanted)?),
            Err(error) => {
                let cause = error.cause();
                let failure = connect_error(&place, &target.endpoint, &cause);
                Err(match failure::is_final(&cause) {
                    true => Miss::Refused(failure),
                    false => Miss::TryNext(failure),
                })
            }
        }
    }

    /// Connects in each of the ways that sslmode allows. Follows fe-connect.c:
    /// PQconnectPoll(), which tries the other way only where the server or TLS
    /// refuses the first.
    fn in_each_way<S, F: Failure>(
        &self,
        target: &Target,
        attempt: impl Fn(Encrypted) -> Result<std::result::Result<S, F>>,
    ) -> Result<std::result::Result<S, F>> {
        let (first, second) = match (&target.endpoint.host, self.settings.tls.mode) {
            (Host::Socket(_), _) | (_, SslMode::Disable) => (Encrypted::No, None),
            (_, SslMode::Allow) => (Encrypted::No, Some(Encrypted::Yes)),
            (_, SslMode::Prefer) => (Encrypted::IfOffered, Some(Encrypted::No)),
            (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => {
                (Encrypted::Yes, None)
            }
        };
        let mut outcome = attempt(first)?;
        if let (Err(error), Some(second)) = (&outcome, second)
            && may_differ_with_encryption(&error.cause())
        {
            let other = attempt(second)?;
            // Of two failures, the one with TLS says more.
            if other.is_ok() || second == Encrypted::Yes {
                outcome = other;
            }
        }
        Ok(outcome)
    }

    /// One connection, its session set up; the outer result is about this machine and about time.
    fn attempt(
        &self,
        target: &Target,
        encrypted: Encrypted,
    ) -> Result<std::result::Result<Client, postgres::Error>> {
        // Of a session that has ended already, the driver does not always tell why.
        let may_be_timeout = |error: &postgres::Error| {
            error.is_closed()
                || error
                    .code()
                    .is_some_and(|code| code.code() == TRANSACTION_TIMEOUT)
        };
        match self.attempt_with(target, encrypted, NO_TIMEOUTS)? {
            Err(error) if may_be_timeout(&error) => {
                let none_at_all = format!("{NO_TIMEOUTS} {NO_TRANSACTION_TIMEOUT}");
                let second = self.attempt_with(target, encrypted, &none_at_all)?;
                Ok(second.or(Err(error)))
            }
            outcome => Ok(outcome),
        }
    }

    fn attempt_with(
        &self,
        target: &Target,
        encrypted: Encrypted,
        no_timeouts: &str,
    ) -> Result<std::result::Result<Client, postgres::Error>> {
        let config = self.driver_config(target, encrypted, no_timeouts);
        let tls = self.tls.clone().filter(|_| encrypted != Encrypted::No);
        let timeout = self.settings.connect_timeout;
        let answered = within(timeout, move || {
            let mut client = match tls {
                Some(tls) => config.connect(tls.driver),
                None => config.connect(NoTls),
            }?;
            client.batch_execute(session::SETTINGS)?;
            Ok(client)
        })?;
        answered.ok_or_else(|| failure::timed_out(&target.endpoint, timeout))
    }

    fn driver_config(&self, target: &Target, encrypted: Encrypted, no_timeouts: &str) -> Config {
        let ConnectionSettings {
            user,
            database,
            options,
            connect_timeout,
            channel_binding,
            tls,
            ..
        } = &*self.settings;
        let mut config = Config::new();
        config
            .user(user)
            .dbname(database)
            .application_name("pgkeep")
            .port(target.endpoint.port)
            .keepalives(true)
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_RETRIES)
            .tcp_user_timeout(TCP_USER_TIMEOUT)
            .channel_binding(match channel_binding {
                ChannelBinding::Disable => DriverBinding::Disable,
                ChannelBinding::Prefer => DriverBinding::Prefer,
                ChannelBinding::Require => DriverBinding::Require,
            })
            .ssl_mode(match encrypted {
                Encrypted::No => DriverMode::Disable,
                Encrypted::IfOffered => DriverMode::Prefer,
                Encrypted::Yes => DriverMode::Require,
            })
            .ssl_negotiation(match tls.negotiation {
                SslNegotiation::Postgres => postgres::config::SslNegotiation::Postgres,
                SslNegotiation::Direct => postgres::config::SslNegotiation::Direct,
            });
        match &target.endpoint.host {
            Host::Socket(folder) => config.host_path(folder),
            Host::Network { name, .. } => config.host(name),
        };
        if let Some(address) = target.address {
            config.hostaddr(address);
        }
        if let Some(timeout) = connect_timeout {
            config.connect_timeout(*timeout);
        }
        let more = options.as_deref().unwrap_or_default();
        config.options(format!("{no_timeouts} {more}").trim_end());
        if let Some(password) = &target.endpoint.password {
            config.password(password.reveal());
        }
        config
    }
}

/// Runs `work` on a thread of its own and waits so long for it; none if it
/// takes longer. The driver's own timeout ends with the TCP handshake, and
/// looking up a name has none. A thread that is late ends with the process.
fn within<T: Send + 'static>(
    timeout: Option<Duration>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>> {
    let Some(timeout) = timeout else {
        return Ok(Some(work()));
    };
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("connect".to_owned())
        // Nobody waits for an answer that comes too late.
        .spawn(move || drop(sender.send(work())))
        .map_err(|error| Error::failed(format!("cannot start a thread: {error}")))?;
    match receiver.recv_timeout(timeout) {
        Ok(answer) => Ok(Some(answer)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => {
            Err(Error::failed("a thread that was to connect ended early"))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn waiting_has_an_end() {
        let patient = Some(Duration::from_secs(60));
        assert_eq!(within(patient, || 1).unwrap(), Some(1));
        let impatient = Some(Duration::from_millis(20));
        let late = within(impatient, || thread::sleep(Duration::from_secs(3600))).unwrap();
        assert_eq!(late, None);
        assert_eq!(within(None, || 2).unwrap(), Some(2));
    }
}
