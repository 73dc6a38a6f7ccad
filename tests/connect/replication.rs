//! Sessions in the replication protocol, and base backups taken over them.

use super::{Certificates, Cluster, PASSWORD, VERSIONS, assert_refused, refusal, wait_for};
use pgkeep::error::{Error, Kind, Result};
use pgkeep::interrupt::Interrupt;
use pgkeep::pg::version::Major;
use pgkeep::server::replication::{
    Archive, BaseBackup, BaseBackupOptions, ReplicationSession, ServerCompression,
};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The versions whose base backups are read.
const BACKUP_VERSIONS: [&str; 4] = ["15", "16", "17", "18"];

/// How long what was stopped may still take.
const PROMPTLY: Duration = Duration::from_secs(5);

fn session(
    cluster: &Cluster,
    host: &str,
    variables: &[(&str, &str)],
) -> Result<ReplicationSession> {
    cluster
        .connector(host, variables)?
        .connect_replication(&Interrupt::default())
}

fn local(cluster: &Cluster) -> ReplicationSession {
    session(cluster, &cluster.path(""), &[]).unwrap()
}

/// The one value of a command, or of one column of it.
fn value(session: &mut ReplicationSession, command: &str) -> String {
    let rows = session.query(command).unwrap();
    rows[0][0].clone().unwrap()
}

fn asked(cluster: &Cluster, query: &str) -> String {
    let mut client = cluster.local(&[]).unwrap();
    client.query_one(query, &[]).unwrap().get(0)
}

/// Whether the only replication session uses TLS.
fn is_over_tls(cluster: &Cluster) -> bool {
    let query = "SELECT ssl::text FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                 WHERE backend_type = 'walsender'";
    asked(cluster, query) == "true"
}

/// A session that was dropped goes away on the server too.
fn wait_for_no_sender(cluster: &Cluster) {
    let query = "SELECT count(*)::text FROM pg_stat_activity WHERE backend_type = 'walsender'";
    let begin = Instant::now();
    wait_for(|| asked(cluster, query) == "0");
    assert!(begin.elapsed() < PROMPTLY * 4);
}

#[test]
fn a_session_knows_its_server_and_is_not_timed_out() {
    for version in VERSIONS {
        let cluster = Cluster::start(version);
        cluster.append(
            "postgresql.conf",
            "idle_session_timeout = '1s'\nwal_sender_timeout = '1s'\nstatement_timeout = '1s'\n",
        );
        cluster.reload();
        let mut session = local(&cluster);
        assert_eq!(session.major().unwrap().to_string(), version);
        assert!(session.server_version().starts_with(version));
        let system = asked(
            &cluster,
            "SELECT system_identifier::text FROM pg_control_system()",
        );
        thread::sleep(Duration::from_secs(2));
        assert_eq!(value(&mut session, "IDENTIFY_SYSTEM"), system);
        for setting in [
            "idle_session_timeout",
            "wal_sender_timeout",
            "statement_timeout",
        ] {
            assert_eq!(value(&mut session, &format!("SHOW {setting}")), "0");
        }
        assert_eq!(value(&mut session, "SHOW application_name"), "pgkeep");

        let unknown = session.query("SHOW nothing").unwrap_err();
        assert_eq!(unknown.sqlstate(), Some("42704"));
        let error = Error::from(unknown);
        assert!(
            error
                .message()
                .starts_with("cannot run SHOW nothing at host ")
        );
        assert!(error.message().contains("for replication: unrecognized"));
        assert_eq!(value(&mut session, "IDENTIFY_SYSTEM"), system);
        drop(session);
        wait_for_no_sender(&cluster);
    }
}

#[test]
fn every_way_to_log_in_is_one_for_replication_too() {
    for version in VERSIONS {
        let cluster = Cluster::start(version);
        cluster.sql(&format!(
            "CREATE ROLE ann LOGIN REPLICATION PASSWORD '{PASSWORD}';
             SET password_encryption = 'md5';
             CREATE ROLE hashed LOGIN REPLICATION PASSWORD '{PASSWORD}';
             CREATE ROLE encrypted LOGIN REPLICATION; CREATE ROLE plain LOGIN REPLICATION;
             CREATE ROLE certified LOGIN REPLICATION;"
        ));
        cluster.allow(
            "local all,replication ann scram-sha-256
             hostssl all,replication ann ::1/128 scram-sha-256
             host all,replication ann 127.0.0.1/32 scram-sha-256
             host all,replication hashed 127.0.0.1/32 md5
             host all,replication postgres 127.0.0.1/32 password
             hostssl all,replication encrypted 127.0.0.1/32 trust
             hostnossl all,replication plain 127.0.0.1/32 trust
             hostssl all,replication certified 127.0.0.1/32 cert\n",
        );
        cluster.sql(&format!("ALTER ROLE postgres PASSWORD '{PASSWORD}'"));
        let user = |name: &'static str| ("PGUSER", name);
        let password = ("PGPASSWORD", PASSWORD);
        let mode = |mode: &'static str| ("PGSSLMODE", mode);
        let socket = cluster.path("");
        for (host, name) in [
            (&*socket, "ann"),
            ("127.0.0.1", "ann"),
            ("127.0.0.1", "hashed"),
            ("127.0.0.1", "postgres"),
        ] {
            let mut session = session(&cluster, host, &[user(name), password]).unwrap();
            assert!(!value(&mut session, "IDENTIFY_SYSTEM").is_empty());
            assert!(!is_over_tls(&cluster), "{name}");
            drop(session);
            wait_for_no_sender(&cluster);
        }

        let certificates = Certificates(&cluster);
        certificates.usual();
        let root = cluster.path("root.crt");
        let verified = [mode("verify-full"), ("PGSSLROOTCERT", &*root)];
        let bound = [user("ann"), password, ("PGCHANNELBINDING", "require")];
        let (certificate, key) = (cluster.path("client.crt"), cluster.path("client.key"));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let files = [("PGSSLCERT", &*certificate), ("PGSSLKEY", &*key)];
        let with_tls = [
            [&bound[..], &verified].concat(),
            [&bound[..], &[mode("require")]].concat(),
            vec![user("encrypted"), mode("allow")],
            vec![user("encrypted"), mode("prefer")],
            [&[user("certified")], &verified[..], &files].concat(),
        ];
        let direct = [&bound[..], &verified, &[("PGSSLNEGOTIATION", "direct")]].concat();
        // TLS from the first byte came with 17.
        let direct = (version == "18").then_some(direct);
        for variables in with_tls.into_iter().chain(direct) {
            let session = session(&cluster, "localhost", &variables)
                .unwrap_or_else(|error| panic!("{variables:?}: {error}"));
            assert!(is_over_tls(&cluster), "{variables:?}");
            drop(session);
            wait_for_no_sender(&cluster);
        }
        for weak in ["allow", "prefer"] {
            let session = session(&cluster, "localhost", &[user("plain"), mode(weak)]).unwrap();
            assert!(!is_over_tls(&cluster));
            drop(session);
            wait_for_no_sender(&cluster);
        }

        // A backup passes through TLS whole.
        let session = session(&cluster, "localhost", &[&bound[..], &verified].concat()).unwrap();
        let files = contents(begin(session, ServerCompression::None));
        assert_same_as_on_disk(&files[&None], &cluster.folder.path().join("data"));
    }
}

#[test]
fn each_refusal_of_replication_says_what_to_do() {
    let cluster = Cluster::start("18");
    cluster.sql(&format!(
        "CREATE ROLE \"weak one\" LOGIN; CREATE ROLE ann LOGIN REPLICATION PASSWORD '{PASSWORD}'"
    ));
    cluster.allow(
        "local all all trust
         local replication \"weak one\" trust
         host all all 127.0.0.1/32 trust
         host replication ann 127.0.0.1/32 scram-sha-256\n",
    );
    let socket = cluster.path("");
    let as_user = |host: &str, user: &str, more: &[(&str, &str)]| {
        session(&cluster, host, &[&[("PGUSER", user)], more].concat())
    };
    assert_refused(
        as_user(&socket, "weak one", &[]),
        "permission denied to start WAL sender",
        "ALTER ROLE \"weak one\" REPLICATION;",
    );
    assert_refused(
        as_user(&socket, "ann", &[]),
        "no pg_hba.conf entry for replication",
        "local replication ann scram-sha-256",
    );
    assert_refused(
        as_user("127.0.0.1", "weak one", &[]),
        "no pg_hba.conf entry for replication",
        "host replication \"weak one\" 127.0.0.1/32 scram-sha-256",
    );
    let wrong = as_user("127.0.0.1", "ann", &[("PGPASSWORD", "guess")]);
    assert_refused(wrong, "password authentication failed", "~/.pgpass");
    assert_refused(
        as_user("127.0.0.1", "ann", &[]),
        "none is given",
        "~/.pgpass",
    );
    let unbound = [("PGPASSWORD", PASSWORD), ("PGCHANNELBINDING", "require")];
    let connector = cluster
        .connector("127.0.0.1", &[&[("PGUSER", "ann")], &unbound[..]].concat())
        .unwrap();
    assert_refused(
        connector.connect_replication(&Interrupt::default()),
        "does not offer it",
        "hostssl",
    );
    let (message, _) = refusal(as_user("127.0.0.1", "ann", &[("PGPASSWORD", "guess")]));
    assert!(message.contains("user ann for replication: "), "{message}");

    cluster.append("postgresql.conf", "max_wal_senders = 1\n");
    cluster.allow("local replication all trust\n");
    cluster.run("pg_ctl", &["-s", "-w", "-m", "fast", "stop"]);
    cluster.start_server();
    let held = local(&cluster);
    let busy = session(&cluster, &socket, &[]);
    assert!(busy.as_ref().is_err_and(Error::is_momentary));
    assert_refused(busy, "max_wal_senders", "raise max_wal_senders");
    drop(held);

    let raised = Interrupt::default();
    raised.raise();
    let connector = cluster.connector(&socket, &[]).unwrap();
    let (message, _) = refusal(connector.connect_replication(&raised));
    assert_eq!(message, "interrupted");
}

/// A backup as fast as can be.
fn begin(session: ReplicationSession, compression: ServerCompression) -> BaseBackup {
    let options = BaseBackupOptions {
        compression,
        ..BaseBackupOptions::new("it's a test")
    };
    session
        .base_backup(&options)
        .unwrap_or_else(|error| panic!("{compression:?}: {error:?}"))
}

/// The files of a tar archive by their paths.
type Files = BTreeMap<PathBuf, Vec<u8>>;

fn unpacked(archive: Archive<'_>) -> io::Result<Files> {
    let mut files = Files::new();
    for entry in tar::Archive::new(archive.decompressed().unwrap()).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            files.insert(entry.path()?.into_owned(), content);
        }
    }
    Ok(files)
}

/// The files of all archives, by tablespace.
fn contents(mut backup: BaseBackup) -> BTreeMap<Option<u32>, Files> {
    let mut found = BTreeMap::new();
    let start = backup.start();
    while let Some(archive) = backup.next_archive().unwrap() {
        let tablespace = archive.tablespace();
        found.insert(tablespace, unpacked(archive).unwrap());
    }
    let end = backup.finish().unwrap();
    assert!(end.0 > start.0 && end.1 == start.1, "{start:?} {end:?}");
    let label = String::from_utf8_lossy(&found[&None][Path::new("backup_label")]);
    assert!(label.contains("LABEL: it's a test"), "{label}");
    assert!(
        label.contains(&format!("START WAL LOCATION: {} ", start.0)),
        "{label}"
    );
    found
}

/// The relations' files, which nothing changes; those of a tablespace are below its version.
fn is_settled(path: &Path) -> bool {
    let folder = path.iter().next().unwrap_or_default().to_string_lossy();
    let name = path.file_name().unwrap_or_default();
    (matches!(&*folder, "base" | "global") || folder.starts_with("PG_"))
        && name != "pg_control"
        && name != "pg_internal.init"
}

fn on_disk(folder: &Path, below: &Path, files: &mut Files) {
    for entry in fs::read_dir(folder.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => on_disk(folder, &path, files),
            kind if kind.is_file() => {
                files.insert(path, fs::read(entry.path()).unwrap());
            }
            _ => {}
        }
    }
}

fn assert_same_as_on_disk(found: &Files, folder: &Path) {
    let mut expected = Files::new();
    on_disk(folder, Path::new(""), &mut expected);
    expected.retain(|path, _| is_settled(path));
    assert!(!expected.is_empty());
    let found: BTreeMap<_, _> = found.iter().filter(|(path, _)| is_settled(path)).collect();
    assert!(
        found.keys().copied().eq(expected.keys()),
        "other files than on disk"
    );
    for (path, content) in found {
        assert!(*content == expected[path], "{} differs", path.display());
    }
}

#[test]
fn base_backups_are_what_is_on_disk() {
    for version in BACKUP_VERSIONS {
        let cluster = Cluster::start(version);
        cluster.append("postgresql.conf", "autovacuum = off\n");
        cluster.reload();
        let beside = cluster.folder.folder("beside");
        cluster
            .local(&[])
            .unwrap()
            .execute(
                &format!("CREATE TABLESPACE beside LOCATION '{}'", beside.display()),
                &[],
            )
            .unwrap();
        cluster.sql(
            "CREATE TABLE public.here AS SELECT i, md5(i::text) FROM generate_series(1, 10000) i;
             CREATE TABLE public.there TABLESPACE beside AS SELECT * FROM public.here",
        );
        let oid: u32 = asked(
            &cluster,
            "SELECT oid::text FROM pg_tablespace WHERE spcname = 'beside'",
        )
        .parse()
        .unwrap();
        let level = None;
        let compressions = [
            ServerCompression::Gzip { level: Some(1) },
            ServerCompression::Lz4 { level },
            ServerCompression::Zstd {
                level: Some(1),
                workers: None,
            },
            ServerCompression::Zstd {
                level,
                workers: Some(2),
            },
        ];
        // All of them have been in all of these versions: each of the older shows one.
        let compressions = match version {
            "15" => &compressions[..1],
            "16" => &compressions[1..2],
            "17" => &compressions[2..3],
            _ => &compressions[..],
        };
        for compression in [&[ServerCompression::None][..], compressions].concat() {
            let backup = begin(local(&cluster), compression);
            let [tablespace] = backup.tablespaces() else {
                panic!("{:?}", backup.tablespaces());
            };
            assert_eq!((tablespace.oid, &tablespace.location), (oid, &beside));
            let found = contents(backup);
            assert_eq!(found.len(), 2);
            assert_same_as_on_disk(&found[&None], &cluster.folder.path().join("data"));
            assert_same_as_on_disk(&found[&Some(oid)], &beside);
            assert!(found[&None].contains_key(Path::new("tablespace_map")));
        }
        // Archives that nobody reads, with a manifest and without.
        let options = BaseBackupOptions {
            with_manifest: true,
            ..BaseBackupOptions::new("unread")
        };
        let backup = local(&cluster).base_backup(&options).unwrap();
        backup.finish().unwrap();

        let impossible = BaseBackupOptions {
            compression: ServerCompression::Gzip { level: Some(99) },
            ..options
        };
        let refused = local(&cluster).base_backup(&impossible).err().unwrap();
        assert!(refused.is_unsupported(), "{refused:?}");
        assert!(
            refused.error().message().contains("compression"),
            "{refused:?}"
        );
        wait_for_no_sender(&cluster);
    }
}

#[test]
fn base_backups_of_14_are_refused() {
    let cluster = Cluster::start("14");
    let session = local(&cluster);
    assert_eq!(session.major().unwrap(), Major::V14);
    let refused = session
        .base_backup(&BaseBackupOptions::new("old"))
        .err()
        .unwrap();
    assert!(!refused.is_unsupported());
    assert!(refused.error().message().contains("PostgreSQL 14"));
}

/// A backup that would take minutes.
fn slow(session: ReplicationSession) -> BaseBackup {
    let options = BaseBackupOptions {
        max_rate: Some(32),
        ..BaseBackupOptions::new("slow")
    };
    session.base_backup(&options).unwrap()
}

/// Reads all archives until that fails, which it must.
fn failure(mut backup: BaseBackup) -> Error {
    loop {
        let mut archive = match backup.next_archive() {
            Ok(Some(archive)) => archive,
            Ok(None) => panic!("the backup came to its end"),
            Err(error) => return error,
        };
        if let Err(error) = io::copy(&mut archive, &mut io::sink()) {
            return Error::from_io("read", &error);
        }
    }
}

#[test]
fn an_interrupt_ends_a_transfer_on_both_sides() {
    let cluster = Cluster::start("17");
    let interrupt = Arc::new(Interrupt::default());
    let connector = cluster.connector(&cluster.path(""), &[]).unwrap();
    let backup = slow(connector.connect_replication(&interrupt).unwrap());
    // It sends no more, and does not go away either.
    let pid = asked(
        &cluster,
        "SELECT pid::text FROM pg_stat_activity WHERE backend_type = 'walsender'",
    );
    let sender = Pid::from_raw(pid.parse().unwrap()).unwrap();
    kill_process(sender, Signal::STOP).unwrap();
    let raiser = Arc::clone(&interrupt);
    let raised = thread::spawn(move || {
        thread::sleep(Duration::from_secs(1));
        raiser.raise();
        Instant::now()
    });
    let error = failure(backup);
    let raised = raised.join().unwrap();
    assert_eq!(error.message(), "interrupted");
    assert!(raised.elapsed() < PROMPTLY);
    kill_process(sender, Signal::CONT).unwrap();
    wait_for_no_sender(&cluster);
}

#[test]
fn a_server_that_ends_the_session_in_the_midst_is_a_passing_failure() {
    let cluster = Cluster::start("16");
    let backup = slow(local(&cluster));
    cluster.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'",
    );
    let error = failure(backup);
    assert_eq!(error.kind(), Kind::Server);
    assert!(error.is_momentary());
    assert!(error.message().contains("administrator command"), "{error}");
}

/// What stands between, and lets through only so much.
struct Proxy {
    port: String,
    is_mute: Arc<AtomicBool>,
}

impl Proxy {
    /// Cuts each connection behind so many bytes of the server's.
    fn start(server: u16, most: u64) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let is_mute = Arc::new(AtomicBool::new(false));
        let mute = Arc::clone(&is_mute);
        thread::spawn(move || {
            let mut held = Vec::new();
            for client in listener.incoming() {
                let client = client.unwrap();
                if mute.load(Ordering::SeqCst) {
                    held.push(client);
                    continue;
                }
                let server = TcpStream::connect(("127.0.0.1", server)).unwrap();
                let (mut up, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || io::copy(&mut up, &mut to));
                thread::spawn(move || {
                    let mut client = client;
                    let _ = io::copy(&mut (&server).take(most), &mut client);
                    let _ = client.flush();
                    let _ = client.shutdown(Shutdown::Both);
                    let _ = server.shutdown(Shutdown::Both);
                });
            }
        });
        Proxy { port, is_mute }
    }
}

#[test]
fn a_connection_that_is_cut_in_the_midst_is_a_passing_failure() {
    let cluster = Cluster::start("18");
    let proxy = Proxy::start(cluster.port, 3_000_000);
    let through = [("PGPORT", &*proxy.port)];
    let session = session(&cluster, "127.0.0.1", &through).unwrap();
    let error = failure(begin(session, ServerCompression::None));
    assert_eq!(error.kind(), Kind::Server);
    assert!(error.is_momentary());
    let message = error.message();
    assert!(
        message.starts_with("cannot take a base backup from host 127.0.0.1 port "),
        "{message}"
    );
    assert!(
        message.ends_with(": the connection to the server was lost"),
        "{message}"
    );
}

#[test]
fn an_interrupt_ends_the_wait_for_a_server_that_says_nothing() {
    let cluster = Cluster::start("15");
    let proxy = Proxy::start(cluster.port, u64::MAX);
    let through = [("PGPORT", &*proxy.port), ("PGSSLMODE", "disable")];
    let connector = cluster.connector("127.0.0.1", &through).unwrap();
    connector.connect().unwrap();
    proxy.is_mute.store(true, Ordering::SeqCst);
    let interrupt = Arc::new(Interrupt::default());
    let raiser = Arc::clone(&interrupt);
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        raiser.raise();
    });
    let begin = Instant::now();
    let (message, _) = refusal(connector.connect_replication(&interrupt));
    assert_eq!(message, "interrupted");
    assert!(begin.elapsed() < PROMPTLY);

    let hasty = [&through[..], &[("PGCONNECT_TIMEOUT", "1")]].concat();
    proxy.is_mute.store(false, Ordering::SeqCst);
    let connector = cluster.connector("127.0.0.1", &hasty).unwrap();
    connector.connect().unwrap();
    proxy.is_mute.store(true, Ordering::SeqCst);
    let late = connector.connect_replication(&Interrupt::default());
    assert_refused(late, "did not answer within 1 s", "PGCONNECT_TIMEOUT");
}
