//! Ending a connection from another thread.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A connection without TLS.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn try_clone(&self) -> io::Result<Socket> {
        Ok(match self {
            Socket::Tcp(socket) => Socket::Tcp(socket.try_clone()?),
            Socket::Unix(socket) => Socket::Unix(socket.try_clone()?),
        })
    }

    fn shut_down(&self) {
        // One that is closed already needs no more.
        let _ = match self {
            Socket::Tcp(socket) => socket.shutdown(Shutdown::Both),
            Socket::Unix(socket) => socket.shutdown(Shutdown::Both),
        };
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => socket.read(buffer),
            Socket::Unix(socket) => socket.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => socket.write(bytes),
            Socket::Unix(socket) => socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The other end of a connection's string: whoever holds it can cut the connection, which ends
/// every wait for it.
#[derive(Clone, Default)]
pub(in crate::server) struct Line(Arc<State>);

#[derive(Default)]
struct State {
    is_cut: AtomicBool,
    socket: Mutex<Option<Socket>>,
}

impl Line {
    /// Takes hold of a socket, in place of the last one; cuts it at once if it is time to stop.
    pub(super) fn attach(&self, socket: &Socket) -> io::Result<()> {
        let socket = socket.try_clone()?;
        let mut held = self.held();
        // Whoever cuts says so first, and then waits for this lock.
        if self.is_cut() {
            socket.shut_down();
        }
        *held = Some(socket);
        Ok(())
    }

    /// Ends the connection because it is time to stop.
    pub(in crate::server) fn cut(&self) {
        self.0.is_cut.store(true, Ordering::SeqCst);
        if let Some(socket) = &*self.held() {
            socket.shut_down();
        }
    }

    /// Whether it was time to stop.
    pub(in crate::server) fn is_cut(&self) -> bool {
        self.0.is_cut.load(Ordering::SeqCst)
    }

    /// Ends the connection, and lets go of it.
    pub(super) fn hang_up(&self) {
        if let Some(socket) = self.held().take() {
            socket.shut_down();
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Socket>> {
        self.0.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_line_cut_before_it_is_attached_is_cut_then() {
        let (near, _far) = UnixStream::pair().unwrap();
        let line = Line::default();
        line.cut();
        let mut near = Socket::Unix(near);
        line.attach(&near).unwrap();
        assert_eq!(near.read(&mut [0]).unwrap(), 0);
        assert!(line.is_cut());
    }

    #[test]
    fn hanging_up_closes_what_the_other_side_reads() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let line = Line::default();
        line.attach(&Socket::Unix(near)).unwrap();
        line.hang_up();
        assert_eq!(far.read(&mut [0]).unwrap(), 0);
        assert!(!line.is_cut());
    }
}
