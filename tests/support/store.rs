//! A real S3 server, which all tests of a run share, and a bucket in it for each test.
//!
//! It is started by the first test that needs it, as the unprivileged account, and ends by itself when no test has
//! needed it for a while: each test process holds a lock that it looks at, which ends with the process, however that
//! ends.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use pgkeep::config::Environment;
use pgkeep::interrupt::Interrupt;
use pgkeep::storage::objects::{Endpoint, Location, ObjectStore, Settings, Sources};

use super::ground::{self, Ground};
use super::{account, wait_until};

/// Who the tests are to the server.
pub const KEY_ID: &str = "AKIAPGKEEPTEST";

/// What proves it.
pub const SECRET: &str = "pgkeep/test+secret";

/// A bucket of its own, which is removed in the end.
pub struct Bucket {
    name: String,
}

impl Bucket {
    /// An empty one.
    pub fn new() -> Bucket {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{number}", std::process::id());
        manage("DELETE", &name);
        manage("PUT", &name);
        Bucket { name }
    }

    /// Puts many empty objects below a folder: 000000 and so on.
    pub fn fill(&self, folder: &str, count: usize) {
        let folder = folder.replace(' ', "%20");
        manage("POST", &format!("{}/{count}/{folder}", self.name));
    }

    /// Has it keep versions from now on.
    pub fn keep_versions(&self) {
        manage("PATCH", &self.name);
    }

    /// A folder in it.
    pub fn open(&self, folder: &str) -> ObjectStore {
        let variables = [
            ("AWS_ACCESS_KEY_ID", KEY_ID),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
        ];
        let environment = Environment {
            variables: variables
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            home: None,
            user_name: None,
            is_root: false,
            system_directory: PathBuf::from("/nonexistent"),
        };
        let location = Location::parse(&self.url(folder)).unwrap();
        let settings = Settings {
            endpoint: Endpoint::parse(&endpoint()),
            ..Settings::new(location, Sources::new(&environment, None, None))
        };
        ObjectStore::open(&settings, &Interrupt::default()).unwrap()
    }

    /// What a configuration has for a folder in it.
    pub fn url(&self, folder: &str) -> String {
        format!("s3://{}/{folder}", self.name)
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        if std::env::var_os("PGKEEP_TEST_KEEP").is_none() {
            manage("DELETE", &self.name);
        }
    }
}

/// A file of what the server asks for, for `s3_credentials`.
pub fn credentials(ground: &Ground) -> PathBuf {
    let keys =
        format!("[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n");
    ground.secret("s3.credentials", &keys)
}

/// Where the server listens.
pub fn port() -> u16 {
    server().port
}

/// The same for a configuration.
pub fn endpoint() -> String {
    format!("http://127.0.0.1:{}", port())
}

struct Server {
    port: u16,
    /// Keeps the server from ending.
    _user: File,
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let folder = ground::root().join("s3");
        if fs::create_dir(&folder).is_ok() {
            account::give(&folder);
        }
        let user = lock_file(&folder.join("users"));
        user.lock_shared().unwrap();
        let starting = lock_file(&folder.join("starting"));
        starting.lock().unwrap();
        let port = match running(&folder) {
            Some(port) => port,
            None => start(&folder),
        };
        Server { port, _user: user }
    })
}

fn lock_file(path: &Path) -> File {
    let mut options = File::options();
    let file = options.create(true).append(true).open(path).unwrap();
    account::give(path);
    file
}

/// The port of a server that listens.
fn running(folder: &Path) -> Option<u16> {
    let port = fs::read_to_string(folder.join("port")).ok()?;
    let port = port.trim().parse().ok()?;
    TcpStream::connect(("127.0.0.1", port))
        .is_ok()
        .then_some(port)
}

#[allow(clippy::zombie_processes, reason = "it ends after this process")]
fn start(folder: &Path) -> u16 {
    let _ = fs::remove_file(folder.join("port"));
    let installed = std::env::var_os("PGKEEP_TEST_S3")
        .map_or_else(|| PathBuf::from("/opt/s3-test"), PathBuf::from);
    assert!(
        installed.join("moto").exists(),
        "there is no S3 server in {}: run tests/install-s3",
        installed.display()
    );
    // The account may not read the sources.
    let program = folder.join("s3-server");
    fs::write(&program, include_str!("s3-server")).unwrap();
    account::give(&program);
    let log = File::create(folder.join("log")).unwrap();
    account::command("/usr/bin/python3")
        .args(["-S", "-B"])
        .arg(&program)
        .arg(folder)
        .env("PYTHONPATH", &installed)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        // It goes on when this test is over.
        .process_group(0)
        .spawn()
        .unwrap();
    wait_until("the S3 server listens", || running(folder).is_some());
    running(folder).unwrap()
}

/// Makes, fills or removes a bucket.
fn manage(method: &str, bucket: &str) {
    let mut stream = TcpStream::connect(("127.0.0.1", port())).unwrap();
    let request = format!("{method} /-/{bucket} HTTP/1.0\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 204 "), "{method} {bucket}: {answer}");
}
