//! A socket to a server, with TLS where that is wanted.
//!
//! Follows interfaces/libpq/fe-connect.c: PQconnectPoll(). Options of TCP are those that the driver sets.

use super::channel_binding::server_end_point;
use super::fault::Fault;
use super::line::{Line, Socket};
use super::tls::{ALPN_PROTOCOL, Tls};
use super::{Encrypted, Target};
use crate::config::{Host, SslNegotiation};
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use std::io::{self, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// Bytes taken off the socket at a time where TLS reads: by itself it would ask the system for every 4 KiB.
const TLS_READ_BYTES: usize = 128 * 1024;

/// A connection's two directions.
pub(in crate::server) trait Channel: Read + Write + Send {}

impl<T: Read + Write + Send> Channel for T {}

/// A connection in which nothing was said yet.
pub(super) struct Stream {
    pub(super) channel: Box<dyn Channel>,
    /// What SCRAM can be bound to.
    pub(super) end_point: Option<Vec<u8>>,
    pub(super) is_encrypted: bool,
}

/// Opens a socket, and has `line` hold it. Also gives the address that the server sees, if nothing is in between.
pub(super) fn connect(
    target: &Target,
    timeout: Option<Duration>,
    line: &Line,
) -> io::Result<(Socket, Option<IpAddr>)> {
    let (socket, from) = match (&target.endpoint.host, target.address) {
        (Host::Socket(folder), _) => {
            let path = folder.join(format!(".s.PGSQL.{}", target.endpoint.port));
            (Socket::Unix(UnixStream::connect(path)?), None)
        }
        (Host::Network { .. }, Some(address)) => {
            let address = SocketAddr::new(address, target.endpoint.port);
            let socket = match timeout {
                Some(timeout) => TcpStream::connect_timeout(&address, timeout)?,
                None => TcpStream::connect(address)?,
            };
            set_options(&socket)?;
            let from = socket.local_addr()?.ip();
            (Socket::Tcp(socket), Some(from))
        }
        (Host::Network { .. }, None) => {
            return Err(io::Error::other("the host has no address"));
        }
    };
    line.attach(&socket)?;
    Ok((socket, from))
}

/// Against a peer or a network that is gone without a word; see also [`super::Connector::driver_config`].
fn set_options(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, super::KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, super::KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, super::KEEPALIVE_RETRIES)?;
    let milliseconds = u32::try_from(super::TCP_USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(socket, milliseconds)?;
    Ok(())
}

/// Sets TLS up, where it is wanted and the server has it.
pub(super) fn secure(
    mut socket: Socket,
    target: &Target,
    encrypted: Encrypted,
    tls: Option<&Tls>,
    negotiation: SslNegotiation,
) -> Result<Stream, Fault> {
    let (Host::Network { name, .. }, Some(tls)) = (&target.endpoint.host, tls) else {
        return Ok(plain(socket));
    };
    if encrypted == Encrypted::No {
        return Ok(plain(socket));
    }
    match (negotiation, encrypted) {
        (SslNegotiation::Postgres, _) => {
            if !offers_tls(&mut socket).map_err(Fault::Connection)? {
                return match encrypted {
                    Encrypted::Yes => Err(Fault::Unfit("server does not support TLS".to_owned())),
                    _ => Ok(plain(socket)),
                };
            }
        }
        (SslNegotiation::Direct, Encrypted::Yes) => {}
        (SslNegotiation::Direct, _) => {
            return Err(Fault::Unfit(
                "sslnegotiation=direct needs sslmode=require or a stronger one".to_owned(),
            ));
        }
    }
    let stream = shake_hands(socket, name, tls).map_err(Fault::Handshake)?;
    // fe-secure-openssl.c, open_client_SSL(): without it, the other side need not be a PostgreSQL server.
    if negotiation == SslNegotiation::Direct && stream.conn.alpn_protocol() != Some(ALPN_PROTOCOL) {
        let text = "the server does not speak PostgreSQL's protocol over TLS";
        return Err(Fault::Garbled(text.to_owned()));
    }
    let certificate = stream.conn.peer_certificates().and_then(<[_]>::first);
    Ok(Stream {
        end_point: certificate.and_then(|certificate| server_end_point(certificate)),
        channel: Box::new(stream),
        is_encrypted: true,
    })
}

fn plain(socket: Socket) -> Stream {
    Stream {
        channel: Box::new(socket),
        end_point: None,
        is_encrypted: false,
    }
}

/// Asks whether the server speaks TLS. Of its answer one byte is read and no more: what somebody in between put
/// behind it must go to TLS, which does not believe it.
fn offers_tls(socket: &mut Socket) -> io::Result<bool> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request)?;
    let mut answer = [0];
    socket.read_exact(&mut answer)?;
    Ok(answer == *b"S")
}

fn shake_hands(
    socket: Socket,
    name: &str,
    tls: &Tls,
) -> io::Result<StreamOwned<ClientConnection, Buffered>> {
    let name = ServerName::try_from(name.to_owned())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let connection =
        ClientConnection::new(Arc::clone(&tls.config), name).map_err(io::Error::other)?;
    let socket = Buffered(BufReader::with_capacity(TLS_READ_BYTES, socket));
    let mut stream = StreamOwned::new(connection, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// A socket that is read in large pieces.
struct Buffered(BufReader<Socket>);

impl Read for Buffered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Buffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.get_mut().flush()
    }
}
