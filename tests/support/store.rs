//! Real servers of object stores, which all tests of a run share, and a bucket in one of them for each test.
//!
//! One answers as S3 does, and as Google's Cloud Storage; the other one is the emulator of Azure's Blob Storage. Each is
//! started by the first test that needs it, as the unprivileged account, and ends by itself when no test has needed it
//! for a while: each test process holds a lock that it looks at, which ends with the process, however that ends.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use http::Request;
use object_store::azure::{AzureAccessKey, AzureAuthorizer, AzureCredential};
use object_store::client::{HttpRequest, HttpRequestBody};
use pgkeep::config::Environment;
use pgkeep::interrupt::Interrupt;
use pgkeep::storage::objects::{Endpoint, Location, ObjectStore, Scheme, Settings, Sources};

use super::ground::{self, Ground};
use super::{account, wait_until};

/// Who the tests are to S3's server.
pub const KEY_ID: &str = "AKIAPGKEEPTEST";

/// What proves it.
pub const SECRET: &str = "pgkeep/test+secret";

/// Who the tests are to Azure's.
pub const ACCOUNT: &str = "pgkeeptest";

/// What proves it.
pub const ACCOUNT_KEY: &str = "cGdrZWVwL3Rlc3Qrc2VjcmV0";

/// The kind of store for tests that leave it open: `PGKEEP_TEST_STORAGE`, or S3.
pub fn chosen() -> Scheme {
    match std::env::var("PGKEEP_TEST_STORAGE").as_deref() {
        Ok("az") => Scheme::Azure,
        Ok("gs") => Scheme::Google,
        _ => Scheme::S3,
    }
}

/// A bucket of its own, which is removed in the end.
pub struct Bucket {
    scheme: Scheme,
    name: String,
}

impl Bucket {
    /// An empty one, of the kind that is chosen.
    pub fn new() -> Bucket {
        Bucket::of(chosen())
    }

    /// An empty one.
    pub fn of(scheme: Scheme) -> Bucket {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{number}", std::process::id());
        let bucket = Bucket { scheme, name };
        bucket.manage("DELETE");
        bucket.manage("PUT");
        bucket
    }

    /// What kind of store it is in.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Puts many empty objects below a folder: 000000 and so on.
    pub fn fill(&self, folder: &str, count: usize) {
        match self.scheme {
            Scheme::Azure => {
                let store = self.open(folder);
                for number in 0..count {
                    store.put(&format!("{number:06}"), "").unwrap();
                }
            }
            _ => {
                let folder = folder.replace(' ', "%20");
                manage("POST", &format!("{}/{count}/{folder}", self.name));
            }
        }
    }

    /// Has it keep versions from now on.
    pub fn keep_versions(&self) {
        manage("PATCH", &self.name);
    }

    /// A folder in it.
    pub fn open(&self, folder: &str) -> ObjectStore {
        let settings = self.settings(folder, &endpoint_of(self.scheme));
        ObjectStore::open(&settings, &Interrupt::default()).unwrap()
    }

    /// How a folder in it is spoken to, by way of an endpoint.
    pub fn settings(&self, folder: &str, endpoint: &str) -> Settings {
        let variables = variables(self.scheme);
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let sources = Sources::new(&environment(&variables), None, None);
        let location = Location::parse(&self.url(folder)).unwrap();
        Settings {
            endpoint: Endpoint::parse_of_account(endpoint),
            ..Settings::new(location, sources)
        }
    }

    /// What a configuration has for a folder in it.
    pub fn url(&self, folder: &str) -> String {
        format!("{}{}/{folder}", self.scheme.prefix(), self.name)
    }

    fn manage(&self, method: &str) {
        match self.scheme {
            Scheme::Azure => manage_container(method, &self.name),
            _ => manage(method, &self.name),
        }
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        if std::env::var_os("PGKEEP_TEST_KEEP").is_none() {
            self.manage("DELETE");
        }
    }
}

/// An environment of these variables alone.
pub fn environment(variables: &[(&str, &str)]) -> Environment {
    Environment {
        variables: variables
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect(),
        home: None,
        user_name: None,
        is_root: false,
        system_directory: PathBuf::from("/nonexistent"),
    }
}

/// Variables that prove to a server who the tests are.
pub fn variables(scheme: Scheme) -> Vec<(&'static str, String)> {
    let variables = match scheme {
        Scheme::S3 => vec![
            ("AWS_ACCESS_KEY_ID", KEY_ID),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
        ],
        Scheme::Azure => vec![
            ("AZURE_STORAGE_ACCOUNT", ACCOUNT),
            ("AZURE_STORAGE_KEY", ACCOUNT_KEY),
        ],
        Scheme::Google => {
            let file = google_key().to_str().unwrap().to_owned();
            return vec![("GOOGLE_APPLICATION_CREDENTIALS", file)];
        }
    };
    let owned = variables.into_iter();
    owned
        .map(|(name, value)| (name, value.to_owned()))
        .collect()
}

/// The key of Google's service account.
pub fn google_key() -> PathBuf {
    port_of(Scheme::Google);
    folder_of(Scheme::Google).join("google.json")
}

/// What a configuration has for a store of some kind, by way of an endpoint.
pub fn keys(scheme: Scheme, endpoint: &str, ground: &Ground) -> Vec<(String, String)> {
    let prefix = scheme.keys();
    let credentials = match scheme {
        Scheme::S3 => {
            format!("[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n")
        }
        Scheme::Azure => format!("AZURE_STORAGE_KEY={ACCOUNT_KEY}\n"),
        Scheme::Google => fs::read_to_string(google_key()).unwrap(),
    };
    let file = ground.secret(&format!("{prefix}credentials"), &credentials);
    let mut keys = vec![
        (format!("{prefix}endpoint"), endpoint.to_owned()),
        (format!("{prefix}credentials"), file.display().to_string()),
    ];
    if scheme == Scheme::Azure {
        keys.push((format!("{prefix}account"), ACCOUNT.to_owned()));
    }
    keys
}

/// Where the server of a kind listens.
pub fn port_of(scheme: Scheme) -> u16 {
    static OBJECTS: OnceLock<Server> = OnceLock::new();
    static AZURE: OnceLock<Server> = OnceLock::new();
    let server = match scheme {
        Scheme::Azure => &AZURE,
        _ => &OBJECTS,
    };
    server.get_or_init(|| server_of(scheme)).port
}

/// What a configuration has for the server of the chosen kind.
pub fn endpoint() -> String {
    endpoint_of(chosen())
}

/// What a configuration has for the server of a kind.
pub fn endpoint_of(scheme: Scheme) -> String {
    endpoint_at(scheme, &format!("http://127.0.0.1:{}", port_of(scheme)))
}

/// The same where it is reached by way of another address.
pub fn endpoint_at(scheme: Scheme, address: &str) -> String {
    match scheme {
        Scheme::Azure => format!("{address}/{ACCOUNT}"),
        _ => address.to_owned(),
    }
}

struct Server {
    port: u16,
    /// Keeps the server from ending.
    _user: File,
}

/// What the server's program calls it.
fn name_of(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Azure => "azure",
        _ => "objects",
    }
}

fn folder_of(scheme: Scheme) -> PathBuf {
    ground::root().join(name_of(scheme))
}

fn server_of(scheme: Scheme) -> Server {
    let folder = folder_of(scheme);
    if fs::create_dir(&folder).is_ok() {
        account::give(&folder);
    }
    let user = lock_file(&folder.join("users"));
    user.lock_shared().unwrap();
    let starting = lock_file(&folder.join("starting"));
    starting.lock().unwrap();
    let port = match running(&folder) {
        Some(port) => port,
        None => start(&folder, scheme),
    };
    Server { port, _user: user }
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
fn start(folder: &Path, scheme: Scheme) -> u16 {
    let _ = fs::remove_file(folder.join("port"));
    let (variable, usual, contents, installs) = match scheme {
        Scheme::Azure => (
            "PGKEEP_TEST_AZURE",
            "/opt/azure-test",
            "node_modules",
            "tests/install-azurite",
        ),
        _ => ("PGKEEP_TEST_S3", "/opt/s3-test", "moto", "tests/install-s3"),
    };
    let installed = std::env::var_os(variable).map_or_else(|| PathBuf::from(usual), PathBuf::from);
    assert!(
        installed.join(contents).exists(),
        "there is no server of objects in {}: run {installs}",
        installed.display()
    );
    // The account may not read the sources.
    let program = folder.join("store-server");
    fs::write(&program, include_str!("store-server")).unwrap();
    account::give(&program);
    let log = File::create(folder.join("log")).unwrap();
    account::command("/usr/bin/python3")
        .args(["-S", "-B"])
        .arg(&program)
        .arg(name_of(scheme))
        .args([folder, &installed])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        // It goes on when this test is over.
        .process_group(0)
        .spawn()
        .unwrap();
    wait_until("the server of objects listens", || {
        running(folder).is_some()
    });
    running(folder).unwrap()
}

/// Sends a request, and gives the first line of its answer.
fn ask(port: u16, head: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

/// Makes, fills or removes a bucket of the server that is no emulator of Azure's.
fn manage(method: &str, bucket: &str) {
    let request = format!("{method} /-/{bucket} HTTP/1.0\r\nContent-Length: 0\r\n\r\n");
    let answer = ask(port_of(Scheme::S3), &request);
    assert!(answer.contains(" 204 "), "{method} {bucket}: {answer}");
}

/// Makes or removes a container of Azure's emulator.
fn manage_container(method: &str, name: &str) {
    let port = port_of(Scheme::Azure);
    let path = format!("/{ACCOUNT}/{name}?restype=container");
    let mut request: HttpRequest = Request::builder()
        .method(method)
        .uri(format!("http://127.0.0.1:{port}{path}"))
        .header("content-length", 0)
        .body(HttpRequestBody::empty())
        .unwrap();
    let key = AzureCredential::AccessKey(AzureAccessKey::try_new(ACCOUNT_KEY).unwrap());
    AzureAuthorizer::new(&key, ACCOUNT)
        .try_authorize(&mut request)
        .unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n");
    for (name, value) in request.headers() {
        head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
    }
    let answer = ask(port, &format!("{head}\r\n"));
    let is_done = match method {
        "PUT" => answer.contains(" 201 "),
        _ => answer.contains(" 202 ") || answer.contains(" 404 "),
    };
    assert!(is_done, "{method} {name}: {answer}");
}
