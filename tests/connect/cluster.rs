//! Servers that listen, and certificates for them.

use crate::support::ground::Ground;
use crate::support::{account, initialized, installed};
use pgkeep::config::{Configuration, Environment};
use pgkeep::error::Result;
use pgkeep::server::connect::Connector;
use postgres::Client;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A server for one test, in a folder that goes with it.
pub struct Cluster {
    pub folder: Ground,
    major: u32,
    pub port: u16,
}

impl Cluster {
    pub fn start(version: &str) -> Cluster {
        let folder = Ground::new();
        // Free at this moment, and not taken again so soon.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let cluster = Cluster {
            folder,
            major: version.parse().unwrap(),
            port,
        };
        let home = cluster.folder.path();
        initialized::cluster(
            cluster.major,
            &["-k", "--wal-segsize=1"],
            &home.join("data"),
        );
        cluster.append(
            "postgresql.conf",
            &format!(
                "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nport = {port}\nfsync = off\n",
                home.display()
            ),
        );
        cluster.start_server();
        cluster
    }

    /// In this process's group, so that what ends the tests from outside ends the server too.
    pub fn start_server(&self) {
        let log = fs::File::create(self.path("log")).unwrap();
        let mut server = self
            .command("postgres")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        std::thread::spawn(move || server.wait());
        wait_for(|| self.local(&[]).is_ok());
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A program of PostgreSQL.
    pub fn command(&self, program: &str) -> Command {
        let mut command = account::command(installed::binaries(self.major).join(program));
        command.args(["-D", &self.path("data")]);
        command
    }

    /// Runs one to its end, which must be a good one.
    pub fn run(&self, program: &str, arguments: &[&str]) {
        let output = self.command(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
    }

    pub fn append(&self, file: &str, text: &str) {
        let path = self.folder.path().join("data").join(file);
        let old = fs::read_to_string(&path).unwrap();
        fs::write(path, old + text).unwrap();
    }

    pub fn sql(&self, statements: &str) {
        self.local(&[]).unwrap().batch_execute(statements).unwrap();
    }

    /// New rules for pg_hba.conf, in force when this returns.
    pub fn allow(&self, rules: &str) {
        let path = self.folder.path().join("data/pg_hba.conf");
        fs::write(path, format!("local all postgres trust\n{rules}")).unwrap();
        self.reload();
    }

    pub fn reload(&self) {
        let loaded = || {
            let mut client = self.local(&[]).unwrap();
            let row = client
                .query_one("SELECT pg_conf_load_time()::text", &[])
                .unwrap();
            row.get::<_, String>(0)
        };
        let before = loaded();
        self.run("pg_ctl", &["-s", "reload"]);
        // The postmaster reads its files on its own time; new sessions follow it.
        wait_for(|| loaded() != before);
    }

    /// Connects over the socket as `postgres`, unless the variables say otherwise.
    pub fn local(&self, variables: &[(&str, &str)]) -> Result<Client> {
        self.connector(&self.path(""), variables)?.connect()
    }

    /// Connects over the network, to a name or an address.
    pub fn network(&self, host: &str, variables: &[(&str, &str)]) -> Result<Client> {
        self.connector(host, variables)?.connect()
    }

    pub fn connector(&self, host: &str, variables: &[(&str, &str)]) -> Result<Connector> {
        let mut environment = self.environment();
        let port = self.port.to_string();
        let given = [
            ("PGHOST", host),
            ("PGPORT", &port),
            ("PGUSER", "postgres"),
            ("PGCONNECT_TIMEOUT", "120"),
        ];
        for (name, value) in given.iter().chain(variables) {
            environment
                .variables
                .insert((*name).into(), (*value).into());
        }
        let configuration = Configuration::load(None, &environment)?;
        Connector::new(&configuration.server("primary")?.connection)
    }

    pub fn environment(&self) -> Environment {
        let home = self.folder.path().join("home");
        fs::create_dir_all(home.join(".postgresql")).unwrap();
        Environment {
            variables: Default::default(),
            home: Some(home),
            user_name: Some("postgres".into()),
            is_root: false,
            system_directory: "/nowhere".into(),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if Path::new(&self.path("data/postmaster.pid")).exists() {
            self.run("pg_ctl", &["-s", "-w", "-m", "immediate", "stop"]);
        }
    }
}

pub fn wait_for(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(300);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Certificates made anew for a test, in the folder of its server.
pub struct Certificates<'a>(pub &'a Cluster);

impl Certificates<'_> {
    pub fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(self.0.folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments}: {output:?}");
    }

    /// A root, a certificate of it for localhost, which the server shows from now on, and one for the user `certified`.
    pub fn usual(&self) {
        self.root("root");
        let of_host = Some("subjectAltName=DNS:localhost");
        self.signed("root", "host", "elsewhere", of_host);
        let of_client = Some("keyUsage=digitalSignature");
        self.signed("root", "client", "certified", of_client);
        self.serve("host");
    }

    /// The kind of keys that all certificates of a server have: of RSA, the most common, which takes longer to
    /// find, for the older ones.
    fn key(&self) -> &'static str {
        match self.0.major {
            18 => "ec -pkeyopt ec_paramgen_curve:prime256v1",
            _ => "rsa:2048",
        }
    }

    /// A root, NAME.crt and NAME.key.
    pub fn root(&self, name: &str) {
        let key = self.key();
        self.openssl(&format!(
            "req -x509 -newkey {key} -nodes -days 9 -subj /CN={name} -keyout {name}.key -out {name}.crt"
        ));
    }

    /// A certificate signed by a root; without extensions it is of X.509 version 1.
    pub fn signed(&self, root: &str, name: &str, subject: &str, extensions: Option<&str>) {
        let key = self.key();
        self.openssl(&format!(
            "req -new -newkey {key} -nodes -subj /CN={subject} -keyout {name}.key -out {name}.csr"
        ));
        let sign = format!(
            "x509 -req -in {name}.csr -CA {root}.crt -CAkey {root}.key -CAcreateserial -days 9 -out {name}.crt"
        );
        match extensions {
            None => self.openssl(&sign),
            Some(extensions) => {
                fs::write(self.0.path("extensions"), extensions).unwrap();
                self.openssl(&format!("{sign} -extfile extensions"));
            }
        }
    }

    /// Has the server present a certificate, and trust the clients of `root`.
    pub fn serve(&self, name: &str) {
        let data = self.0.folder.path().join("data");
        for (from, to) in [(name, "server"), ("root", "root")] {
            for suffix in ["crt", "key"] {
                let to = data.join(format!("{to}.{suffix}"));
                fs::copy(self.0.path(&format!("{from}.{suffix}")), &to).unwrap();
                fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
                account::give(&to);
            }
        }
        self.0.sql("ALTER SYSTEM SET ssl = on");
        self.0.sql("ALTER SYSTEM SET ssl_ca_file = 'root.crt'");
        self.0.reload();
    }
}
