//! A network between pgkeep and a server of objects that loses, delays and refuses what it is told to.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use percent_encoding::percent_decode_str;
use pgkeep::storage::objects::Scheme;

use super::store;

/// What happens to a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is answered 503 SlowDown, and the server sees nothing of it.
    Busy,
    /// The connection is reset before the server sees anything of it.
    Reset,
    /// The server does what it is asked, and its answer is lost.
    LostAnswer,
    /// The connection is reset, and the server is asked when [`Faults::deliver`] is called.
    Late,
    /// It is answered 200 with this body, and the server sees nothing of it.
    Body(&'static str),
    /// Of the answer's body so many bytes come, and then the connection ends.
    Cut(usize),
    /// The answer takes so long.
    Slow(Duration),
    /// A copy that the server has made is said to go on, as Azure's may.
    Unfinished,
    /// It is answered with this status and this code of an error, and the server sees nothing of it.
    Refusal(u16, &'static str),
}

/// A port that leads to a server of objects.
pub struct Faults {
    kind: Scheme,
    endpoint: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    delay: Duration,
    counts: BTreeMap<String, u64>,
    active: usize,
    peak: usize,
    last: BTreeMap<String, String>,
    /// What is to arrive late.
    late: Vec<Vec<u8>>,
}

struct Rule {
    method: String,
    part: String,
    left: usize,
    fault: Fault,
}

impl Faults {
    /// One that lets everything pass.
    pub fn new() -> Faults {
        Faults::to(store::chosen())
    }

    /// The same to the server of some kind.
    pub fn to(scheme: Scheme) -> Faults {
        Faults::over(None, scheme)
    }

    /// The same with TLS, which files in PEM format are for.
    pub fn with_tls(certificate: &Path, key: &Path) -> Faults {
        let chain = CertificateDer::pem_file_iter(certificate).unwrap();
        let chain = chain.map(|one| one.unwrap()).collect();
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Faults::over(Some(Arc::new(config)), store::chosen())
    }

    fn over(tls: Option<Arc<ServerConfig>>, kind: Scheme) -> Faults {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, state, tls) = (stream.unwrap(), Arc::clone(&shared), tls.clone());
                std::thread::spawn(move || {
                    let raw = stream.try_clone().unwrap();
                    let client: Box<dyn Duplex> = match tls {
                        None => Box::new(stream),
                        Some(tls) => {
                            let connection = ServerConnection::new(tls).unwrap();
                            Box::new(StreamOwned::new(connection, stream))
                        }
                    };
                    // What is lost on the way is what the tests are about.
                    let _ = carry(client, &raw, &state, kind);
                });
            }
        });
        Faults {
            kind,
            endpoint: store::endpoint_at(kind, &format!("{scheme}://127.0.0.1:{port}")),
            state,
        }
    }

    /// What a configuration has for it.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Has the next requests of a method fail whose path and query contain some text, or the body of a POST.
    pub fn next(&self, times: usize, method: &str, part: &str, fault: Fault) {
        self.state.lock().unwrap().rules.push(Rule {
            method: method.to_owned(),
            part: part.to_owned(),
            left: times,
            fault,
        });
    }

    /// Lets everything pass again.
    pub fn clear(&self) {
        self.state.lock().unwrap().rules.clear();
    }

    /// Has all arrive that is late, and tells how many requests there were.
    pub fn deliver(&self) -> usize {
        let late = std::mem::take(&mut self.state.lock().unwrap().late);
        for request in &late {
            let mut server = BufReader::new(connect(self.kind).unwrap());
            server.get_mut().write_all(request).unwrap();
            Head::read(&mut server).unwrap().unwrap();
        }
        late.len()
    }

    /// How many requests are still to fail.
    pub fn left(&self) -> usize {
        let state = self.state.lock().unwrap();
        state.rules.iter().map(|rule| rule.left).sum()
    }

    /// Lets each request take that much longer.
    pub fn delay(&self, delay: Duration) {
        self.state.lock().unwrap().delay = delay;
    }

    /// The lines of the last request of a method, up to its body.
    pub fn last(&self, method: &str) -> String {
        let state = self.state.lock().unwrap();
        state.last.get(method).cloned().unwrap_or_default()
    }

    /// How many requests were on their way at the same time at most, since this was asked last.
    pub fn peak(&self) -> usize {
        let mut state = self.state.lock().unwrap();
        std::mem::take(&mut state.peak)
    }

    /// How many requests of a method there were.
    pub fn count(&self, method: &str) -> u64 {
        let state = self.state.lock().unwrap();
        state.counts.get(method).copied().unwrap_or_default()
    }
}

impl State {
    /// What is to happen to a request.
    fn fault(&mut self, request: &Head, body: &[u8]) -> Option<Fault> {
        let line = &request.line;
        let method = line.split(' ').next().unwrap_or_default();
        let text = String::from_utf8_lossy(&request.text).into_owned();
        self.last.insert(method.to_owned(), text);
        *self.counts.entry(method.to_owned()).or_default() += 1;
        self.active += 1;
        self.peak = self.peak.max(self.active);
        let mut rules = self.rules.iter_mut();
        // Not every client escapes the same characters.
        let decoded = percent_decode_str(line).decode_utf8_lossy();
        // What is to be deleted stands in the body.
        let body = match method {
            "POST" => String::from_utf8_lossy(body),
            _ => "".into(),
        };
        let concerns = |part: &str| {
            [line, &*decoded, &*body]
                .iter()
                .any(|text| text.contains(part))
        };
        let rule =
            rules.find(|rule| rule.left > 0 && rule.method == method && concerns(&rule.part))?;
        rule.left -= 1;
        Some(rule.fault.clone())
    }
}

/// The first lines of a request or an answer, up to and with the empty one.
struct Head {
    text: Vec<u8>,
    line: String,
    length: Option<u64>,
    /// Whether the body comes in chunks, each with its length.
    is_chunked: bool,
}

impl Head {
    /// None where nothing more comes.
    fn read(from: &mut impl BufRead) -> io::Result<Option<Head>> {
        let mut head = Head {
            text: Vec::new(),
            line: String::new(),
            length: None,
            is_chunked: false,
        };
        loop {
            let start = head.text.len();
            if from.read_until(b'\n', &mut head.text)? == 0 {
                return Ok(None);
            }
            let line = String::from_utf8_lossy(&head.text[start..])
                .trim()
                .to_owned();
            if start == 0 {
                head.line = line;
                continue;
            }
            if line.is_empty() {
                return Ok(Some(head));
            }
            if let Some((name, value)) = line.split_once(':') {
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => head.length = value.trim().parse().ok(),
                    "transfer-encoding" => head.is_chunked = value.trim() == "chunked",
                    _ => {}
                }
            }
        }
    }
}

/// A connection, with TLS or without.
trait Duplex: Read + Write + Send {}

impl<T: Read + Write + Send> Duplex for T {}

fn carry(
    client: Box<dyn Duplex>,
    raw: &TcpStream,
    state: &Mutex<State>,
    kind: Scheme,
) -> io::Result<()> {
    let mut client = BufReader::new(client);
    let mut server: Option<BufReader<TcpStream>> = None;
    while let Some(request) = Head::read(&mut client)? {
        let mut body = Vec::new();
        let length = request.length.unwrap_or(0);
        (&mut client).take(length).read_to_end(&mut body)?;
        let (fault, delay) = {
            let mut state = state.lock().unwrap();
            (state.fault(&request, &body), state.delay)
        };
        let _active = Active(state);
        std::thread::sleep(delay);
        let refusal = match fault {
            Some(Fault::Busy) => Some((503, "SlowDown")),
            Some(Fault::Refusal(status, code)) => Some((status, code)),
            Some(Fault::Reset) => return reset(raw),
            Some(Fault::Late) => {
                let late = [request.text, body].concat();
                state.lock().unwrap().late.push(late);
                return reset(raw);
            }
            Some(Fault::Slow(delay)) => {
                std::thread::sleep(delay);
                None
            }
            _ => None,
        };
        let is_head = request.line.starts_with("HEAD ");
        let instead = match (&fault, refusal) {
            (_, Some((status, code))) => {
                let message = "as the test wants it";
                let text =
                    format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
                Some((status, format!("x-ms-error-code: {code}\r\n"), text))
            }
            (Some(Fault::Body(text)), None) => Some((200, String::new(), (*text).to_owned())),
            _ => None,
        };
        if let Some((status, lines, text)) = instead {
            let length = text.len();
            let text = if is_head { "" } else { &text };
            let head =
                format!("HTTP/1.1 {status} Answer\r\n{lines}Content-Length: {length}\r\n\r\n");
            let answer = format!("{head}{text}");
            client.get_mut().write_all(answer.as_bytes())?;
            client.get_mut().flush()?;
            continue;
        }
        if request.line.starts_with("CONNECT ") {
            client
                .get_mut()
                .write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
            return tunnel(raw, kind);
        }
        let server = match &mut server {
            Some(server) => server,
            none => none.insert(BufReader::new(connect(kind)?)),
        };
        server.get_mut().write_all(&request.text)?;
        server.get_mut().write_all(&body)?;
        let Some(mut answer) = Head::read(server)? else {
            return Ok(());
        };
        if let Some(Fault::Unfinished) = fault {
            let text = String::from_utf8_lossy(&answer.text);
            let unfinished = text.replace("x-ms-copy-status: success", "x-ms-copy-status: pending");
            answer.text = unfinished.into_bytes();
        }
        let length = match (is_head, answer.length) {
            (true, _) => Some(0),
            (_, length) => length,
        };
        let client = client.get_mut();
        if let Some(Fault::LostAnswer) = fault {
            return reset(raw);
        }
        client.write_all(&answer.text)?;
        match (fault, length) {
            (Some(Fault::Cut(bytes)), _) => {
                io::copy(&mut server.take(bytes as u64), client)?;
                client.flush()?;
                return Ok(());
            }
            (_, Some(length)) => io::copy(&mut server.take(length), client)?,
            (_, None) if answer.is_chunked => pass_chunks(server, client)?,
            (_, None) => {
                io::copy(server, client)?;
                return client.flush();
            }
        };
        client.flush()?;
    }
    Ok(())
}

/// Passes a body on that comes in chunks; the bytes of it all.
fn pass_chunks(server: &mut impl BufRead, client: &mut dyn Write) -> io::Result<u64> {
    let mut passed = 0;
    loop {
        let mut line = String::new();
        server.read_line(&mut line)?;
        client.write_all(line.as_bytes())?;
        let size = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        // With the end of the line behind it.
        passed += io::copy(&mut server.take(size + 2), client)?;
        if size == 0 {
            return Ok(passed);
        }
    }
}

/// A request on its way.
struct Active<'a>(&'a Mutex<State>);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.lock().unwrap().active -= 1;
    }
}

fn connect(kind: Scheme) -> io::Result<TcpStream> {
    TcpStream::connect(("127.0.0.1", store::port_of(kind)))
}

/// Carries bytes to the server and back, whatever they are.
fn tunnel(client: &TcpStream, kind: Scheme) -> io::Result<()> {
    let server = connect(kind)?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    io::copy(&mut &server, &mut &*client)?;
    client.shutdown(Shutdown::Both)
}

/// Ends a connection so that the other side learns of it as an error.
fn reset(stream: &TcpStream) -> io::Result<()> {
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
    Ok(())
}
