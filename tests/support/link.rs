//! A network between pgkeep and a server, which can be cut.

use std::io;
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
    open: Vec<TcpStream>,
}

impl Link {
    /// One to a server. Its threads end with the test.
    pub fn to(cluster: &Cluster) -> Link {
        let socket = cluster.socket().join(".s.PGSQL.5432");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                carry(stream.unwrap(), &socket, &shared);
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

fn carry(stream: TcpStream, socket: &PathBuf, state: &Mutex<State>) {
    let mut state = state.lock().unwrap();
    let Ok(server) = UnixStream::connect(socket) else {
        return;
    };
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
    std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
}
