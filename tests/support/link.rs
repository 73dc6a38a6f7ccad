//! A network between pgkeep and a server, which can be cut.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::cluster::Cluster;

/// A port that leads to a server's socket as long as it is not cut.
pub struct Link {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    is_cut: bool,
    /// Where a bit is flipped.
    damaged: Option<usize>,
    open: Vec<TcpStream>,
}

impl Link {
    /// One to a server. Its threads end with the test.
    pub fn to(cluster: &Cluster) -> Link {
        Link::at("127.0.0.1", cluster)
    }

    /// The same at another address of this machine.
    pub fn at(address: &str, cluster: &Cluster) -> Link {
        let socket = socket(cluster);
        Link::choosing(address, move |_| (socket.clone(), Vec::new()))
    }

    /// One to a server that leads to another one who speaks the replication protocol, as a load balancer may.
    pub fn to_two(cluster: &Cluster, replicating: &Cluster) -> Link {
        let (usual, other) = (socket(cluster), socket(replicating));
        Link::choosing("127.0.0.1", move |stream| {
            let begin = startup(stream).unwrap_or_default();
            let mut words = begin.split(|byte| *byte == 0);
            match words.any(|word| word == b"replication") {
                true => (other.clone(), begin),
                false => (usual.clone(), begin),
            }
        })
    }

    /// One to a server that flips a bit of what that sends, that many bytes after the beginning of a connection.
    pub fn damaging(cluster: &Cluster, place: usize) -> Link {
        let link = Link::to(cluster);
        link.state.lock().unwrap().damaged = Some(place);
        link
    }

    /// `choose` says where a connection leads, and what it has taken from it already.
    fn choosing(
        address: &str,
        choose: impl Fn(&mut TcpStream) -> (PathBuf, Vec<u8>) + Send + 'static,
    ) -> Link {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let (socket, begin) = choose(&mut stream);
                carry(stream, &socket, &begin, &shared);
            }
        });
        Link { port, state }
    }

    /// Ends all connections, and lets none be made.
    pub fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.is_cut = true;
        for stream in state.open.drain(..) {
            // The other side may have ended it.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn mend(&self) {
        self.state.lock().unwrap().is_cut = false;
    }
}

fn socket(cluster: &Cluster) -> PathBuf {
    cluster.socket().join(".s.PGSQL.5432")
}

/// The message that a session begins with, before which some ask for TLS.
fn startup(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let mut begin = vec![0; 8];
    stream.read_exact(&mut begin)?;
    if begin == TLS_REQUEST {
        stream.write_all(b"N")?;
        stream.read_exact(&mut begin)?;
    }
    let length = u32::from_be_bytes(begin[..4].try_into().unwrap());
    begin.resize(length as usize, 0);
    stream.read_exact(&mut begin[8..])?;
    Ok(begin)
}

fn carry(stream: TcpStream, socket: &PathBuf, begin: &[u8], state: &Mutex<State>) {
    let mut state = state.lock().unwrap();
    let Ok(mut server) = UnixStream::connect(socket) else {
        return;
    };
    if server.write_all(begin).is_err() {
        return;
    }
    if state.is_cut {
        return;
    }
    state.open.push(stream.try_clone().unwrap());
    let (mut from, mut to) = (stream.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    let (mut from, mut to) = (server, stream);
    let damaged = state.damaged;
    std::thread::spawn(move || {
        if let Some(place) = damaged {
            let mut sound = (&mut from).take(place as u64);
            let _ = io::copy(&mut sound, &mut to);
            let mut byte = [0];
            if from.read_exact(&mut byte).is_ok() {
                let _ = to.write_all(&[byte[0] ^ 0x10]);
            }
        }
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
}
