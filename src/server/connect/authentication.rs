//! Logging in ("Message Flow", "Start-up"): who we are, and the proof of it.
//!
//! Follows interfaces/libpq/fe-auth.c: pg_fe_sendauth() and pg_SASL_init().

use super::failure::UNSUPPORTED_AUTHENTICATION;
use super::fault::Fault;
use super::wire::{Wire, misplaced};
use crate::config::{ChannelBinding, Secret};
use bytes::BytesMut;
use postgres::fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding as Binding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use std::io;
use zeroize::{Zeroize, Zeroizing};

/// Who logs in.
pub(super) struct Login<'a> {
    pub(super) user: &'a str,
    pub(super) password: Option<&'a Secret>,
    pub(super) channel_binding: ChannelBinding,
    /// What SCRAM can be bound to.
    pub(super) end_point: Option<Vec<u8>>,
    /// Command-line options for the session.
    pub(super) options: &'a str,
}

impl Login<'_> {
    /// Begins a session for replication of the whole cluster, and goes on until the server waits for a command.
    pub(super) fn begin(&self, wire: &mut Wire) -> Result<(), Fault> {
        let parameters = [
            ("user", self.user),
            // "Streaming Replication Protocol": true is for physical replication, which has no database.
            ("replication", "true"),
            ("application_name", "pgkeep"),
            // Paths come as they are; see server/text.rs.
            ("client_encoding", "SQL_ASCII"),
            ("options", self.options),
        ];
        send(wire, |buffer| frontend::startup_message(parameters, buffer))?;
        self.authenticate(wire)?;
        loop {
            match wire.message()? {
                Message::BackendKeyData(_) => {}
                Message::ReadyForQuery(_) => return Ok(()),
                _ => return Err(misplaced()),
            }
        }
    }

    fn authenticate(&self, wire: &mut Wire) -> Result<(), Fault> {
        match wire.message()? {
            Message::AuthenticationOk => return self.check_unbound(),
            Message::AuthenticationCleartextPassword => {
                self.check_unbound()?;
                send_password(wire, self.password()?.as_bytes())?;
            }
            Message::AuthenticationMd5Password(body) => {
                self.check_unbound()?;
                let password = self.password()?.as_bytes();
                let hash = Zeroizing::new(md5_hash(self.user.as_bytes(), password, body.salt()));
                send_password(wire, hash.as_bytes())?;
            }
            Message::AuthenticationSasl(body) => self.scram(wire, &body)?,
            Message::AuthenticationKerberosV5 => return Err(unsupported("Kerberos V5")),
            Message::AuthenticationScmCredential => return Err(unsupported("SCM credentials")),
            Message::AuthenticationGss | Message::AuthenticationGssContinue(_) => {
                return Err(unsupported("GSSAPI"));
            }
            Message::AuthenticationSspi => return Err(unsupported("SSPI")),
            _ => return Err(misplaced()),
        }
        match wire.message()? {
            Message::AuthenticationOk => Ok(()),
            _ => Err(misplaced()),
        }
    }

    /// SCRAM (RFC 5802, RFC 7677), in which the server proves that it knows the password too.
    fn scram(&self, wire: &mut Wire, offer: &AuthenticationSaslBody) -> Result<(), Fault> {
        let password = self.password()?;
        let (mechanism, binding) = self.mechanism(offer)?;
        if mechanism != SCRAM_SHA_256_PLUS {
            self.check_unbound()?;
        }
        let mut scram = ScramSha256::new(password.as_bytes(), binding);
        send(wire, |buffer| {
            frontend::sasl_initial_response(mechanism, scram.message(), buffer)
        })?;
        let Message::AuthenticationSaslContinue(body) = wire.message()? else {
            return Err(misplaced());
        };
        let failed = |error: io::Error| Fault::Unfit(format!("SCRAM failed: {error}"));
        scram.update(body.data()).map_err(failed)?;
        send(wire, |buffer| {
            frontend::sasl_response(scram.message(), buffer)
        })?;
        let Message::AuthenticationSaslFinal(body) = wire.message()? else {
            return Err(misplaced());
        };
        scram.finish(body.data()).map_err(failed)
    }

    fn mechanism(&self, offer: &AuthenticationSaslBody) -> Result<(&'static str, Binding), Fault> {
        let garbled = |error: io::Error| Fault::Garbled(error.to_string());
        let offered: Vec<&str> = offer.mechanisms().collect().map_err(garbled)?;
        let wants_binding = self.channel_binding != ChannelBinding::Disable;
        let end_point = self.end_point.clone().filter(|_| wants_binding);
        match end_point {
            Some(end_point) if offered.contains(&SCRAM_SHA_256_PLUS) => {
                let binding = Binding::tls_server_end_point(end_point);
                Ok((SCRAM_SHA_256_PLUS, binding))
            }
            end_point if offered.contains(&SCRAM_SHA_256) => {
                // A server that did offer it finds out that somebody in between took the offer away.
                let binding = match end_point {
                    Some(_) => Binding::unrequested(),
                    None => Binding::unsupported(),
                };
                Ok((SCRAM_SHA_256, binding))
            }
            _ => {
                // Its words, and so cut to a length that fits into a sentence.
                let named: String = offered.join(", ").chars().take(100).collect();
                Err(unsupported(&format!("SASL with {}", named.escape_debug())))
            }
        }
    }

    fn password(&self) -> Result<&str, Fault> {
        let missing = || Fault::Unfit("password missing".to_owned());
        self.password.map(Secret::reveal).ok_or_else(missing)
    }

    /// What binds no channel is refused where that is required.
    fn check_unbound(&self) -> Result<(), Fault> {
        match self.channel_binding {
            ChannelBinding::Disable | ChannelBinding::Prefer => Ok(()),
            ChannelBinding::Require => Err(Fault::Unfit(
                "server did not use channel binding".to_owned(),
            )),
        }
    }
}

fn unsupported(method: &str) -> Fault {
    Fault::Unfit(format!("{UNSUPPORTED_AUTHENTICATION}: {method}"))
}

fn send_password(wire: &mut Wire, password: &[u8]) -> Result<(), Fault> {
    send(wire, |buffer| frontend::password_message(password, buffer))
}

/// Sends a message, of which nothing stays in memory.
fn send(wire: &mut Wire, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<(), Fault> {
    // Large enough that no copy is left behind where a buffer grew.
    let mut buffer = BytesMut::with_capacity(4096);
    let sent = match write(&mut buffer) {
        Ok(()) => wire.send(&buffer),
        Err(error) => Err(Fault::Unfit(format!("a setting cannot be sent: {error}"))),
    };
    buffer.zeroize();
    sent
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::super::wire::testing::{message, wire};
    use super::*;

    const PASSWORD: &str = "swordfish";

    /// Logs in where the server says this.
    fn log_in(binding: ChannelBinding, said: &[Vec<u8>]) -> Result<(), Fault> {
        let password = Secret::new(PASSWORD.to_owned());
        let login = Login {
            user: "ann",
            password: Some(&password),
            channel_binding: binding,
            end_point: Some(vec![1; 32]),
            options: "",
        };
        login.begin(&mut wire(said.concat()))
    }

    fn request(method: u32, data: &[u8]) -> Vec<u8> {
        message(b'R', &[&method.to_be_bytes(), data].concat())
    }

    #[test]
    fn trust_and_passwords_get_in_unless_the_channel_must_be_bound() {
        let ok = || request(0, b"");
        let ready = || message(b'Z', b"I");
        let ways = [
            vec![ok(), ready()],
            vec![request(3, b""), ok(), ready()],
            vec![request(5, b"salt"), ok(), ready()],
        ];
        for way in ways {
            log_in(ChannelBinding::Prefer, &way).unwrap();
            match log_in(ChannelBinding::Require, &way) {
                Err(Fault::Unfit(text)) => assert!(text.contains("channel binding"), "{text}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn other_methods_are_named() {
        let sasl = |names: &[u8]| request(10, names);
        let cases = [
            (request(2, b""), "Kerberos"),
            (request(7, b""), "GSSAPI"),
            (request(9, b""), "SSPI"),
            (sasl(b"OAUTHBEARER\0\0"), "OAUTHBEARER"),
        ];
        for (said, name) in cases {
            match log_in(ChannelBinding::Prefer, &[said]) {
                Err(Fault::Unfit(text)) => assert!(text.contains(name), "{text}"),
                other => panic!("{name}: {other:?}"),
            }
        }
        let bound = log_in(ChannelBinding::Require, &[sasl(b"SCRAM-SHA-256\0\0")]);
        assert!(matches!(bound, Err(Fault::Unfit(_))), "{bound:?}");
    }

    #[test]
    fn a_server_that_leaves_out_its_own_proof_is_refused() {
        let offer = request(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
        let early = [offer.clone(), request(0, b""), message(b'Z', b"I")];
        assert!(matches!(
            log_in(ChannelBinding::Prefer, &early),
            Err(Fault::Garbled(_))
        ));
        let foreign = [offer, request(11, b"r=other,s=c2FsdA==,i=4096")];
        assert!(matches!(
            log_in(ChannelBinding::Prefer, &foreign),
            Err(Fault::Unfit(_))
        ));
    }

    #[test]
    fn malformed_requests_are_refused() {
        let cases = [
            request(5, b"sal"),
            request(10, b"SCRAM-SHA-256"),
            request(99, b""),
            message(b'Z', b"I"),
            message(b'D', b"\0\0"),
        ];
        for said in cases {
            assert!(matches!(
                log_in(ChannelBinding::Prefer, &[said]),
                Err(Fault::Garbled(_))
            ));
        }
    }
}
