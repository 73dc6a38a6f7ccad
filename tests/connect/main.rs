//! Connecting to real servers: every way in, and every way to be refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    missing_docs,
    reason = "a test that cannot go on should say where, and nothing here is a public interface"
)]

#[path = "../support"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "most of it serves the tests of whole backups"
)]
mod support {
    pub mod account;
    pub mod ground;
    pub mod initialized;
    pub mod installed;
}

mod cluster;
mod replication;

use cluster::{Certificates, Cluster, wait_for};
use pgkeep::error::{Error, Kind, Result};
use pgkeep::server::connect::server_error;
use postgres::Client;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

const VERSIONS: [&str; 2] = ["15", "18"];
const PASSWORD: &str = "sw0rd:f\\ish";

fn show(client: &mut Client, setting: &str) -> String {
    let row = client
        .query_one("SELECT current_setting($1)", &[&setting])
        .unwrap();
    row.get(0)
}

fn uses_tls(client: &mut Client) -> bool {
    let row = client
        .query_one(
            "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
            &[],
        )
        .unwrap();
    row.get(0)
}

/// The failure's message and hint; a password is in neither.
fn refusal<T>(result: Result<T>) -> (String, Error) {
    let error = match result {
        Ok(_) => panic!("connected"),
        Err(error) => error,
    };
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains(PASSWORD), "{shown}");
    (error.message().to_owned(), error)
}

/// Refused by the server or on the way there, for this reason and with this advice.
#[track_caller]
fn assert_refused<T>(result: Result<T>, reason: &str, advice: &str) {
    let (message, error) = refusal(result);
    assert_eq!(error.kind(), Kind::Server, "{message}");
    assert!(message.contains(reason), "{message}");
    let hint = error.advice().unwrap_or_default();
    assert!(hint.contains(advice), "{message}: {hint}");
}

#[test]
fn sessions_are_prepared_against_the_settings_of_roles() {
    for version in VERSIONS {
        let cluster = Cluster::start(version);
        cluster.sql(
            "ALTER ROLE postgres SET statement_timeout = '10s';
             ALTER ROLE postgres SET idle_session_timeout = '10s';
             ALTER ROLE postgres SET search_path = public;
             ALTER ROLE postgres SET bytea_output = 'escape'",
        );
        let mut client = cluster
            .local(&[("PGOPTIONS", "-c cpu_tuple_cost=7")])
            .unwrap();
        let expected = [
            ("statement_timeout", "0"),
            ("idle_session_timeout", "0"),
            ("idle_in_transaction_session_timeout", "0"),
            ("search_path", "pg_catalog"),
            ("bytea_output", "hex"),
            ("jit", "off"),
            ("work_mem", "64MB"),
            ("application_name", "pgkeep"),
            ("cpu_tuple_cost", "7"),
        ];
        for (setting, value) in expected {
            assert_eq!(show(&mut client, setting), value, "{setting} in {version}");
        }
        if version == "18" {
            assert_eq!(show(&mut client, "transaction_timeout"), "0");
        }
    }
}

#[test]
fn passwords_come_from_where_libpq_takes_them() {
    for version in VERSIONS {
        let cluster = Cluster::start(version);
        cluster.sql(&format!("CREATE ROLE ann LOGIN PASSWORD '{PASSWORD}'"));
        cluster.allow("local all ann scram-sha-256\n");
        let ann = ("PGUSER", "ann");

        cluster.local(&[ann, ("PGPASSWORD", PASSWORD)]).unwrap();
        assert_refused(
            cluster.local(&[ann, ("PGPASSWORD", "guess")]),
            "password authentication failed for user \"ann\"",
            "~/.pgpass",
        );
        assert_refused(cluster.local(&[ann]), "none is given", "~/.pgpass");

        let passfile = cluster.path("passfile");
        fs::write(
            &passfile,
            format!("{}:*:*:ann:sw0rd\\:f\\\\ish\n", cluster.path("")),
        )
        .unwrap();
        fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).unwrap();
        cluster.local(&[ann, ("PGPASSFILE", &passfile)]).unwrap();
        fs::set_permissions(&passfile, fs::Permissions::from_mode(0o644)).unwrap();
        let exposed = cluster.local(&[ann, ("PGPASSFILE", &passfile)]);
        assert_refused(exposed, "none is given", "~/.pgpass");

        let services = cluster.path("services");
        fs::write(&services, format!("[s]\nuser=ann\npassword={PASSWORD}\n")).unwrap();
        let of_service = [("PGSERVICEFILE", &*services), ("PGSERVICE", "s")];
        let mut client = cluster.local(&of_service).unwrap();
        let row = client.query_one("SELECT session_user::text", &[]).unwrap();
        assert_eq!(row.get::<_, String>(0), "ann");

        // SCRAM needs TLS for this, and sockets have none.
        let bound = [
            ann,
            ("PGPASSWORD", PASSWORD),
            ("PGCHANNELBINDING", "require"),
        ];
        assert_refused(cluster.local(&bound), "has no TLS", "over TLS");
    }
}

#[test]
fn each_refusal_has_its_sentence() {
    let cluster = Cluster::start("18");
    cluster.sql(
        "CREATE ROLE crowd LOGIN CONNECTION LIMIT 0; CREATE ROLE nologin;
         CREATE ROLE peer LOGIN; CREATE ROLE ann LOGIN",
    );
    // A batch is one transaction, in which no database can be created.
    cluster.sql("CREATE DATABASE closed");
    cluster.sql("REVOKE CONNECT ON DATABASE closed FROM public");
    cluster.allow("local all peer peer\nlocal postgres,closed,nowhere all trust\n");
    let local =
        |user: &str, database: &str| cluster.local(&[("PGUSER", user), ("PGDATABASE", database)]);
    let cases = [
        (
            local("ann", "template1"),
            "no pg_hba.conf entry",
            "pg_hba.conf",
        ),
        (
            local("nobody", "postgres"),
            "role \"nobody\" does not exist",
            "create the role",
        ),
        (
            local("nologin", "postgres"),
            "not permitted to log in",
            "LOGIN",
        ),
        (
            local("ann", "nowhere"),
            "database \"nowhere\" does not exist",
            "PGDATABASE",
        ),
        (
            local("ann", "closed"),
            "permission denied for database",
            "GRANT CONNECT",
        ),
        (
            local("crowd", "postgres"),
            "too many connections",
            "connection limit",
        ),
        (
            local("peer", "postgres"),
            "authentication failed",
            "another proof",
        ),
        (
            cluster.local(&[("PGHOST", "/nowhere")]),
            "there is no socket /nowhere/.s.PGSQL.",
            "unix_socket_directories",
        ),
        (
            cluster.network("127.0.0.1", &[("PGPORT", "1")]),
            "the connection was refused",
            "listen_addresses",
        ),
        (
            cluster.network("no-such-host.invalid", &[]),
            "cannot find the server",
            "spelling",
        ),
    ];
    for (result, reason, advice) in cases {
        assert_refused(result, reason, advice);
    }
    let described = refusal(cluster.local(&[("PGDATABASE", "nowhere")])).0;
    let expected = format!(
        "cannot connect to host {} port {} user postgres database nowhere: ",
        cluster.path(""),
        cluster.port
    );
    assert!(described.starts_with(&expected), "{described}");
    for (wanted, reason) in [
        ("standby", "is not a standby"),
        ("read-only", "lets sessions write"),
    ] {
        assert_refused(
            cluster.local(&[("PGTARGETSESSIONATTRS", wanted)]),
            reason,
            "PGTARGETSESSIONATTRS",
        );
    }
    for wanted in ["primary", "read-write", "prefer-standby"] {
        cluster.local(&[("PGTARGETSESSIONATTRS", wanted)]).unwrap();
    }

    cluster.run("pg_ctl", &["-s", "-w", "-m", "immediate", "stop"]);
    assert_refused(cluster.local(&[]), "there is no socket", "runs");
    let socket = cluster.path(&format!(".s.PGSQL.{}", cluster.port));
    drop(UnixListener::bind(socket).unwrap());
    assert_refused(
        cluster.local(&[]),
        "no server listens on the socket",
        "crash",
    );
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let cluster = Cluster::start("15");
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mute.local_addr().unwrap().port().to_string();
    let begin = Instant::now();
    let late = cluster.network(
        "127.0.0.1",
        &[("PGPORT", &port), ("PGCONNECT_TIMEOUT", "1")],
    );
    assert_refused(late, "did not answer within 1 s", "PGCONNECT_TIMEOUT");
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[test]
fn all_sessions_reach_the_server_of_the_first() {
    let first = Cluster::start("18");
    let second = Cluster::start("15");
    let ports = format!("{},{}", first.port, second.port);
    let variables = [("PGPORT", &*ports)];
    let hosts = format!("{},{}", first.path(""), second.path(""));
    let connector = first.connector(&hosts, &variables).unwrap();
    assert!(
        connector.describe().contains(" or host "),
        "{}",
        connector.describe()
    );

    first.run("pg_ctl", &["-s", "-w", "-m", "immediate", "stop"]);
    let mut client = connector.connect().unwrap();
    assert!(show(&mut client, "server_version").starts_with("15."));
    assert!(
        !connector.describe().contains(" or "),
        "{}",
        connector.describe()
    );

    first.start_server();
    let mut client = connector.clone().connect().unwrap();
    assert!(show(&mut client, "server_version").starts_with("15."));
    let mut fresh = first
        .connector(&hosts, &variables)
        .unwrap()
        .connect()
        .unwrap();
    assert!(show(&mut fresh, "server_version").starts_with("18."));

    // A host that refuses is an answer; the next one is not asked.
    second.sql("CREATE ROLE ann LOGIN");
    let as_ann = [("PGPORT", &*ports), ("PGUSER", "ann")];
    let refused = first.connector(&hosts, &as_ann).unwrap().connect();
    assert_refused(refused, "role \"ann\" does not exist", "PGUSER");
}

#[test]
fn errors_of_sql_say_what_was_being_done() {
    let cluster = Cluster::start("18");
    cluster.sql("CREATE ROLE ann LOGIN");
    let connector = cluster
        .connector(&cluster.path(""), &[("PGUSER", "ann")])
        .unwrap();

    let mut client = connector.connect().unwrap();
    let denied = client
        .batch_execute("SELECT pg_read_binary_file('PG_VERSION')")
        .unwrap_err();
    let denied = server_error("read a file", &denied);
    assert_eq!(denied.kind(), Kind::Server);
    assert!(
        denied
            .message()
            .starts_with("cannot read a file: permission denied")
    );
    assert!(denied.advice().unwrap().contains("pgkeep permissions"));

    let wrong = server_error("ask", &client.batch_execute("SELECT nothing").unwrap_err());
    assert_eq!(wrong.kind(), Kind::Failed);

    let token = client.cancel_token();
    let sleeper = std::thread::spawn(move || client.batch_execute("SELECT pg_sleep(60)"));
    wait_for(|| {
        let mut client = cluster.local(&[]).unwrap();
        let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        client.query_one(asleep, &[]).unwrap().get::<_, i64>(0) == 1
    });
    connector.cancel(&token).unwrap();
    let cancelled = server_error("wait", &sleeper.join().unwrap().unwrap_err());
    assert!(cancelled.message().contains("cancel"), "{cancelled}");

    let mut client = connector.connect().unwrap();
    cluster.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'ann'");
    let ended = server_error("ask", &client.batch_execute("SELECT 1").unwrap_err());
    assert_eq!(ended.kind(), Kind::Server);
    let lost = server_error("ask again", &client.batch_execute("SELECT 1").unwrap_err());
    assert_eq!(lost.kind(), Kind::Server);
    assert_eq!(
        lost.message(),
        "cannot ask again: the connection to the server was lost"
    );
}

#[test]
fn tls_is_as_safe_as_sslmode_says() {
    for version in VERSIONS {
        let cluster = Cluster::start(version);
        cluster.sql(&format!(
            "CREATE ROLE ann LOGIN PASSWORD '{PASSWORD}'; CREATE ROLE certified LOGIN;
             CREATE ROLE encrypted LOGIN; CREATE ROLE plain LOGIN"
        ));
        cluster.allow(
            "host all postgres 127.0.0.1/32 trust
             host all ann 127.0.0.1/32 scram-sha-256
             hostssl all certified 127.0.0.1/32 cert
             hostssl all encrypted 127.0.0.1/32 trust
             hostnossl all plain 127.0.0.1/32 trust\n",
        );
        let mode = |mode: &'static str| ("PGSSLMODE", mode);
        assert!(!uses_tls(&mut cluster.network("localhost", &[]).unwrap()));
        let required = cluster.network("localhost", &[mode("require")]);
        assert_refused(required, "does not support TLS", "postgresql.conf");

        let certificates = Certificates(&cluster);
        certificates.usual();
        certificates.root("stranger");
        let root = cluster.path("root.crt");
        let trusted = ("PGSSLROOTCERT", &*root);
        let stranger = cluster.path("stranger.crt");
        let distrusted = ("PGSSLROOTCERT", &*stranger);

        // Names and roots.
        for allowed in ["allow", "prefer", "require", "verify-ca", "verify-full"] {
            let mut client = cluster
                .network("localhost", &[mode(allowed), trusted])
                .unwrap();
            assert_eq!(
                uses_tls(&mut client),
                allowed != "allow",
                "{allowed} {version}"
            );
        }
        assert!(uses_tls(&mut cluster.network("localhost", &[]).unwrap()));
        let by_address = cluster.network("127.0.0.1", &[mode("verify-full"), trusted]);
        assert_refused(by_address, "is not made out to 127.0.0.1", "hostaddr");
        cluster
            .network("127.0.0.1", &[mode("verify-ca"), trusted])
            .unwrap();
        let named = [mode("verify-full"), trusted, ("PGHOSTADDR", "127.0.0.1")];
        cluster.network("localhost", &named).unwrap();
        let other_name = cluster.network("elsewhere", &named);
        assert_refused(other_name, "is not made out to elsewhere", "hostaddr");
        for refused in ["require", "verify-ca", "verify-full"] {
            let result = cluster.network("localhost", &[mode(refused), distrusted]);
            assert_refused(result, "is not signed by anyone who is trusted", "root.crt");
        }
        let personal = cluster.folder.path().join("home/.postgresql/root.crt");
        fs::copy(&root, &personal).unwrap();
        cluster
            .network("localhost", &[mode("verify-full")])
            .unwrap();
        fs::remove_file(&personal).unwrap();

        // The weaker modes take what they get; the first refusal is told.
        let as_user = |user: &'static str| ("PGUSER", user);
        for weak in ["allow", "prefer"] {
            let mut client = cluster
                .network("localhost", &[mode(weak), as_user("encrypted")])
                .unwrap();
            assert!(uses_tls(&mut client), "{weak}");
            let mut client = cluster
                .network("localhost", &[mode(weak), as_user("plain")])
                .unwrap();
            assert!(!uses_tls(&mut client), "{weak}");
        }
        let mut client = cluster
            .network("localhost", &[mode("prefer"), distrusted])
            .unwrap();
        assert!(!uses_tls(&mut client));
        let strict = cluster.network("localhost", &[mode("require"), as_user("plain")]);
        assert_refused(strict, "no pg_hba.conf entry", "pg_hba.conf");

        // Channel binding.
        let bound = [
            as_user("ann"),
            ("PGPASSWORD", PASSWORD),
            ("PGCHANNELBINDING", "require"),
        ];
        cluster
            .network("localhost", &[&bound[..], &[mode("require")]].concat())
            .unwrap();
        cluster
            .network(
                "localhost",
                &[&bound[..], &[("PGREQUIREAUTH", "scram-sha-256")]].concat(),
            )
            .unwrap();
        let unbound = cluster.network("localhost", &[&bound[..], &[mode("disable")]].concat());
        assert_refused(unbound, "does not offer it", "hostssl");
        let trust = [mode("require"), ("PGCHANNELBINDING", "require")];
        assert_refused(
            cluster.network("localhost", &trust),
            "does not offer it",
            "scram",
        );

        // Client certificates.
        let certified = [mode("require"), as_user("certified")];
        assert_refused(
            cluster.network("localhost", &certified),
            "connection requires a valid client certificate",
            "PGSSLCERT",
        );
        let (certificate, key) = (cluster.path("client.crt"), cluster.path("client.key"));
        let files = [("PGSSLCERT", &*certificate), ("PGSSLKEY", &*key)];
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let mut client = cluster
            .network("localhost", &[&certified[..], &files].concat())
            .unwrap();
        assert!(uses_tls(&mut client));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let (message, error) =
            refusal(cluster.network("localhost", &[&certified[..], &files].concat()));
        assert!(message.contains("may be read by others"), "{message}");
        assert_eq!(error.kind(), Kind::Usage);
        certificates.signed(
            "stranger",
            "foreign",
            "certified",
            Some("keyUsage=digitalSignature"),
        );
        let (certificate, key) = (cluster.path("foreign.crt"), cluster.path("foreign.key"));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let files = [("PGSSLCERT", &*certificate), ("PGSSLKEY", &*key)];
        let foreign = cluster.network("localhost", &[&certified[..], &files].concat());
        assert_refused(
            foreign,
            "does not trust the client certificate's issuer",
            "server's log",
        );

        // A cancel request goes the same way.
        let connector = cluster
            .connector("localhost", &[mode("verify-full"), trusted])
            .unwrap();
        let mut client = connector.connect().unwrap();
        connector.cancel(&client.cancel_token()).unwrap();
        client
            .batch_execute("SELECT 1")
            .or_else(|_| client.batch_execute("SELECT 1"))
            .unwrap();

        // TLS from the first byte came with 17.
        let direct = [mode("verify-full"), trusted, ("PGSSLNEGOTIATION", "direct")];
        let result = cluster.network("localhost", &direct);
        match version {
            "18" => assert!(uses_tls(&mut result.unwrap())),
            _ => assert_refused(result, "closed the connection", "log"),
        }
    }
}

#[test]
fn certificates_made_by_the_manual_s_recipes_are_accepted() {
    let cluster = Cluster::start("15");
    cluster.allow("hostssl all postgres 127.0.0.1/32 trust\n");
    let certificates = Certificates(&cluster);
    certificates.root("root");

    // Its own root, with no name but the common one.
    certificates.root("localhost");
    certificates.serve("localhost");
    let own = cluster.path("localhost.crt");
    let verified = [("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", &*own)];
    assert!(uses_tls(
        &mut cluster.network("localhost", &verified).unwrap()
    ));
    let by_address = cluster.network("127.0.0.1", &verified);
    assert_refused(by_address, "is not made out to 127.0.0.1", "hostaddr");

    // Version 1: fine to encrypt with, too old to be verified.
    certificates.signed("root", "old", "localhost", None);
    certificates.serve("old");
    let required = ("PGSSLMODE", "require");
    assert!(uses_tls(
        &mut cluster.network("localhost", &[required]).unwrap()
    ));
    let root = cluster.path("root.crt");
    let old = cluster.network("localhost", &[required, ("PGSSLROOTCERT", &*root)]);
    assert_refused(old, "cannot be used", "X.509 version 3");
}
