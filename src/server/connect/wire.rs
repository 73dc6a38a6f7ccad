//! Messages of the protocol, read one after the other ("Frontend/Backend Protocol", "Message Formats").
//!
//! What is read here may come from anyone, before it is known who that is. So no length is believed that the
//! protocol has no use for, and nothing is held that grows with what arrives.

use super::fault::Fault;
use super::line::Line;
use super::source::Report;
use super::stream::Channel;
use bytes::BytesMut;
use postgres_protocol::message::backend::{ERROR_RESPONSE_TAG, Message};
use std::io::{self, BufRead, BufReader, Write};

/// Bytes read from the server at a time: several messages of a base backup, of 32 KiB each.
const READ_BYTES: usize = 256 * 1024;

/// The longest message that is held as a whole. Those of a login are a few hundred bytes long; an error can
/// quote what it is about.
const MESSAGE_BYTES: usize = 1 << 20;

/// Bytes of a message's header: its type, and its length without the type.
const HEADER_BYTES: usize = 5;

/// A connection on which messages are exchanged.
pub(in crate::server) struct Wire {
    input: BufReader<Box<dyn Channel>>,
    line: Line,
    /// What the server says its version is, such as "18.1".
    server_version: Option<String>,
    /// The first of its warnings.
    warnings: Vec<String>,
}

/// How many warnings are held.
pub(in crate::server) const MOST_WARNINGS: usize = 100;

/// The longest one that is held: a sentence with a path (MAXPGPATH).
const WARNING_BYTES: usize = 4096;

/// The beginning of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) struct Header {
    /// The type.
    pub(in crate::server) tag: u8,
    /// Bytes that follow.
    pub(in crate::server) length: usize,
}

impl Wire {
    pub(in crate::server) fn new(channel: Box<dyn Channel>, line: Line) -> Wire {
        Wire {
            input: BufReader::with_capacity(READ_BYTES, channel),
            line,
            server_version: None,
            warnings: Vec::new(),
        }
    }

    /// What ends the connection from another thread.
    pub(in crate::server) fn line(&self) -> Line {
        self.line.clone()
    }

    /// What the server says its version is.
    pub(in crate::server) fn server_version(&self) -> Option<&str> {
        self.server_version.as_deref()
    }

    /// The first of the server's warnings, at most [`MOST_WARNINGS`].
    pub(in crate::server) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Sends whole messages.
    pub(in crate::server) fn send(&mut self, messages: &[u8]) -> Result<(), Fault> {
        let output = self.input.get_mut();
        output
            .write_all(messages)
            .and_then(|()| output.flush())
            .map_err(|error| self.broken(error))
    }

    /// The next message that is an answer. What the server says of its own accord is passed over, and an
    /// ErrorResponse is an error.
    pub(in crate::server) fn message(&mut self) -> Result<Message, Fault> {
        loop {
            let header = self.header()?;
            if let Some(message) = self.body(header)? {
                return Ok(message);
            }
        }
    }

    /// The beginning of the next message.
    pub(in crate::server) fn header(&mut self) -> Result<Header, Fault> {
        let mut bytes = [0; HEADER_BYTES];
        self.read_exact(&mut bytes)?;
        let [tag, length @ ..] = bytes;
        // The length counts itself.
        let length = u32::from_be_bytes(length)
            .checked_sub(4)
            .filter(|length| *length <= i32::MAX as u32)
            .ok_or_else(|| Fault::Garbled("a message has an impossible length".to_owned()))?;
        Ok(Header {
            tag,
            length: length as usize,
        })
    }

    /// The rest of a message, unless it is one that the server sends of its own accord.
    pub(in crate::server) fn body(&mut self, header: Header) -> Result<Option<Message>, Fault> {
        let Header { tag, length } = header;
        if length > MESSAGE_BYTES {
            let kind = char::from(tag).escape_default();
            return Err(Fault::Garbled(format!(
                "a message of type '{kind}' has {length} bytes"
            )));
        }
        let mut bytes = BytesMut::zeroed(HEADER_BYTES + length);
        bytes[0] = tag;
        bytes[1..HEADER_BYTES].copy_from_slice(&(length as u32 + 4).to_be_bytes());
        self.read_exact(&mut bytes[HEADER_BYTES..])?;
        let garbled = |error: io::Error| Fault::Garbled(error.to_string());
        match Message::parse(&mut bytes).map_err(garbled)? {
            Some(Message::ErrorResponse(body)) => {
                let report = Report::parse(body.fields()).map_err(garbled)?;
                Err(Fault::Server(Box::new(report)))
            }
            Some(Message::NoticeResponse(body)) => {
                let notice = Report::parse(body.fields()).map_err(garbled)?;
                // Such as of what it leaves out, which may come another way: whoever knows warns of it.
                let level = match notice.is_warning {
                    true => log::Level::Info,
                    false => log::Level::Debug,
                };
                log::log!(level, "the server says: {}", notice.in_words());
                let is_short = notice.message.len() <= WARNING_BYTES;
                if notice.is_warning && is_short && self.warnings.len() < MOST_WARNINGS {
                    self.warnings.push(notice.message);
                }
                Ok(None)
            }
            Some(Message::ParameterStatus(body)) => {
                if let (Ok("server_version"), Ok(value)) = (body.name(), body.value()) {
                    self.server_version = Some(value.to_owned());
                }
                Ok(None)
            }
            Some(Message::NotificationResponse(_)) => Ok(None),
            Some(message) => Ok(Some(message)),
            None => Err(Fault::Garbled("a message is cut short".to_owned())),
        }
    }

    /// Passes over answers, errors among them, until the server waits for a command.
    pub(in crate::server) fn until_ready(&mut self) -> Result<(), Fault> {
        loop {
            let header = self.header()?;
            match self.body(header) {
                Ok(Some(Message::ReadyForQuery(_))) => return Ok(()),
                Ok(_) => {}
                Err(Fault::Server(_)) if header.tag == ERROR_RESPONSE_TAG => {}
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Fills the whole slice.
    pub(in crate::server) fn read_exact(&mut self, mut buffer: &mut [u8]) -> Result<(), Fault> {
        while !buffer.is_empty() {
            let arrived = self.fill()?;
            let count = arrived.len().min(buffer.len());
            let (now, later) = buffer.split_at_mut(count);
            now.copy_from_slice(&arrived[..count]);
            self.consume(count);
            buffer = later;
        }
        Ok(())
    }

    /// What has arrived and was not taken yet, at least one byte; waits for it.
    pub(in crate::server) fn fill(&mut self) -> Result<&[u8], Fault> {
        if self.input.buffer().is_empty() {
            // What had arrived before the line was cut could go on for long.
            if self.line.is_cut() {
                return Err(Fault::Interrupted);
            }
            while let Err(error) = self.input.fill_buf() {
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(self.broken(error));
                }
            }
            if self.input.buffer().is_empty() {
                return Err(self.broken(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(self.input.buffer())
    }

    /// Takes bytes that [`Wire::fill`] gave.
    pub(in crate::server) fn consume(&mut self, bytes: usize) {
        self.input.consume(bytes);
    }

    /// Why the connection does not work.
    fn broken(&self, error: io::Error) -> Fault {
        match self.line.is_cut() {
            true => Fault::Interrupted,
            false => Fault::Connection(error),
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.line.hang_up();
    }
}

/// A message that has no place where it came.
pub(in crate::server) fn misplaced() -> Fault {
    Fault::Garbled("the server sent a message that has no place there".to_owned())
}

#[cfg(test)]
pub(in crate::server) mod testing {
    use super::*;
    use std::io::Read;

    /// A server that has said all it will say.
    struct Script(io::Cursor<Vec<u8>>);

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A wire on which these bytes arrive, and then the end.
    pub(in crate::server) fn wire(bytes: impl Into<Vec<u8>>) -> Wire {
        let script = Script(io::Cursor::new(bytes.into()));
        Wire::new(Box::new(script), Line::default())
    }

    /// A message with a length that fits.
    pub(in crate::server) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
        [&[tag][..], &length.to_be_bytes(), body].concat()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::testing::{message, wire};
    use super::*;

    fn fault(bytes: impl Into<Vec<u8>>) -> Fault {
        match wire(bytes).message() {
            Ok(_) => panic!("a message"),
            Err(fault) => fault,
        }
    }

    #[test]
    fn impossible_lengths_are_refused_before_anything_is_held() {
        for length in [0_u32, 3, 0x8000_0004, u32::MAX, 1 << 21, i32::MAX as u32] {
            let header = [&b"D"[..], &length.to_be_bytes()].concat();
            assert!(
                matches!(fault(header), Fault::Garbled(_)),
                "length {length}"
            );
        }
    }

    #[test]
    fn messages_that_end_early_are_a_lost_connection() {
        for bytes in [&b""[..], b"Z", b"Z\0\0\0", b"Z\0\0\0\x05", b"E\0\0\0\x09ab"] {
            assert!(matches!(fault(bytes), Fault::Connection(_)), "{bytes:?}");
        }
    }

    #[test]
    fn unknown_and_shapeless_messages_are_refused() {
        let bodies = [(b'?', &b""[..]), (b'Z', b""), (b'Z', b"II"), (b'R', b"\0")];
        for (tag, body) in bodies {
            assert!(matches!(fault(message(tag, body)), Fault::Garbled(_)));
        }
        for body in [&b"Mabc"[..], b"", b"Mabc\0\0x"] {
            assert!(matches!(fault(message(b'E', body)), Fault::Garbled(_)));
        }
    }

    #[test]
    fn an_error_is_told_with_its_code_whatever_its_encoding() {
        let report = match fault(message(
            b'E',
            b"SERROR\0C22023\0Mfalsch \xe4\0Dmehr\0Rf\0\0",
        )) {
            Fault::Server(report) => report,
            other => panic!("{other:?}"),
        };
        assert_eq!(report.code.code(), "22023");
        assert_eq!(report.in_words(), "falsch \u{fffd} (mehr)");
        assert_eq!(report.routine.as_deref(), Some("f"));
        assert!(!report.is_warning);
    }

    #[test]
    fn what_the_server_says_of_its_own_accord_is_passed_over() {
        let bytes = [
            message(b'N', b"SNOTICE\0Mhello\0\0"),
            message(b'S', b"server_version\x0018.1\0"),
            message(b'A', b"\0\0\0\x01channel\0text\0"),
            message(b'Z', b"I"),
        ];
        let mut wire = wire(bytes.concat());
        assert!(matches!(wire.message(), Ok(Message::ReadyForQuery(_))));
        assert_eq!(wire.server_version(), Some("18.1"));
    }

    #[test]
    fn a_cut_line_is_an_interruption() {
        let line = Line::default();
        let channel = Box::new(io::Cursor::new(vec![0; 100]));
        let mut wire = Wire::new(channel, line.clone());
        line.cut();
        assert!(matches!(wire.message(), Err(Fault::Interrupted)));
    }
}
