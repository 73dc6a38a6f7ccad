//! Connections in the replication protocol, which the driver does not speak.

use super::authentication::Login;
use super::failure::{connect_error, replication_hint, timed_out};
use super::fault::Fault;
use super::line::Line;
use super::source::{Cause, Failure};
use super::stream;
use super::wire::Wire;
use super::{Connector, Encrypted, NO_TIMEOUTS, Target, within};
use crate::error::{Error, Result};
use crate::interrupt::{Interrupt, interrupted};
use crate::server::replication::ReplicationSession;
use std::net::IpAddr;

/// What such a session starts with, before what the user's `options` say. No setting of the role is in force in a
/// session that has no database (utils/init/postinit.c, InitPostgres()), but those of the server are.
const NO_SENDER_TIMEOUT: &str = "-c wal_sender_timeout=0";

/// A connection that failed, and what it was like.
pub(super) struct Refused {
    fault: Fault,
    /// The address that the server sees.
    pub(super) from: Option<IpAddr>,
    /// It was over TLS.
    pub(super) is_encrypted: bool,
}

impl Failure for Refused {
    fn cause(&self) -> Cause<'_> {
        self.fault.cause()
    }
}

impl Connector {
    /// Opens a session in the replication protocol with the server that the first session reached, or reaches now.
    ///
    /// The role needs the attribute REPLICATION, and the server's `pg_hba.conf` a line for `replication`; a database
    /// is not connected to. An interrupt ends whatever the session waits for, with the interrupt's error. Which
    /// server it is must be checked by whoever may have a load balancer in between: `IDENTIFY_SYSTEM` tells.
    pub fn connect_replication(&self, interrupt: &Interrupt) -> Result<ReplicationSession> {
        interrupt.check()?;
        let target = match self.chosen.get() {
            Some(target) => target,
            None => {
                drop(self.connect()?);
                let unknown = || Error::failed("it is not known which server was reached");
                self.chosen.get().ok_or_else(unknown)?
            }
        };
        let line = Line::default();
        let held = line.clone();
        interrupt.on_raise(move || held.cut());
        // What was raised before is not told again.
        interrupt.check()?;
        let attempt = |encrypted| self.attempt_replication(target, encrypted, &line);
        let place = self.describe_replication(&target.endpoint.to_string());
        match self.in_each_way(target, attempt)? {
            Ok(wire) => Ok(ReplicationSession::new(wire, place)),
            Err(Refused {
                fault: Fault::Interrupted,
                ..
            }) => Err(interrupted()),
            Err(refused) => {
                let cause = refused.cause();
                let failure = connect_error(&place, &target.endpoint, &cause);
                let hint = replication_hint(&cause, &self.settings.user, &refused);
                Err(match hint {
                    Some(hint) => failure.hint(hint),
                    None => failure,
                })
            }
        }
    }

    fn attempt_replication(
        &self,
        target: &Target,
        encrypted: Encrypted,
        line: &Line,
    ) -> Result<std::result::Result<Wire, Refused>> {
        let timeout = self.settings.connect_timeout;
        let endpoint = target.endpoint.clone();
        let (connector, target, held) = (self.clone(), target.clone(), line.clone());
        let work = move || connector.begin_replication(&target, encrypted, held);
        let outcome = within(timeout, work)?;
        outcome.ok_or_else(|| {
            // Whoever is late need not go on.
            line.hang_up();
            match line.is_cut() {
                true => interrupted(),
                false => timed_out(&endpoint, timeout),
            }
        })
    }

    fn begin_replication(
        &self,
        target: &Target,
        encrypted: Encrypted,
        line: Line,
    ) -> std::result::Result<Wire, Refused> {
        let settings = &self.settings;
        let held = line.clone();
        let refused = |fault, from, is_encrypted| {
            // Else the server would wait for more as long as somebody could cut the line.
            held.hang_up();
            Refused {
                fault: match held.is_cut() {
                    true => Fault::Interrupted,
                    false => fault,
                },
                from,
                is_encrypted,
            }
        };
        let (socket, from) = stream::connect(target, settings.connect_timeout, &line)
            .map_err(|error| refused(Fault::Connection(error), None, false))?;
        let (tls, negotiation) = (self.tls.as_ref(), settings.tls.negotiation);
        let stream = stream::secure(socket, target, encrypted, tls, negotiation)
            .map_err(|fault| refused(fault, from, true))?;
        let more = settings.options.as_deref().unwrap_or_default();
        let options = format!("{NO_TIMEOUTS} {NO_SENDER_TIMEOUT} {more}");
        let login = Login {
            user: &settings.user,
            password: target.endpoint.password.as_ref(),
            channel_binding: settings.channel_binding,
            end_point: stream.end_point,
            options: options.trim_end(),
        };
        let mut wire = Wire::new(stream.channel, line);
        match login.begin(&mut wire) {
            Ok(()) => Ok(wire),
            Err(fault) => Err(refused(fault, from, stream.is_encrypted)),
        }
    }
}
