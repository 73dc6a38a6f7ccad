//! Where each parameter comes from, and what it may be.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::config::testing::{configuration, environment};
use crate::config::{Host, SslMode, SslNegotiation};
use std::fs;
use std::path::Path;

type Variables<'a> = &'a [(&'a str, &'a str)];

fn from(variables: &[(&str, &str)]) -> Result<ConnectionSettings> {
    resolve(None, &environment(variables)).map(|(settings, _)| settings)
}

fn hosts(variables: &[(&str, &str)]) -> Vec<String> {
    let endpoints = from(variables).unwrap().endpoints;
    endpoints.iter().map(ToString::to_string).collect()
}

#[test]
fn without_anything_libpqs_defaults_count() {
    let settings = from(&[]).unwrap();
    assert_eq!(settings.user, "ann");
    assert_eq!(settings.database, "postgres");
    assert_eq!(settings.connect_timeout, Some(DEFAULT_CONNECT_TIMEOUT));
    assert_eq!(settings.target, TargetSession::Any);
    assert_eq!(settings.channel_binding, ChannelBinding::Prefer);
    assert_eq!(settings.tls.mode, SslMode::Prefer);
    assert_eq!(settings.tls.negotiation, SslNegotiation::Postgres);
    let [endpoint] = settings.endpoints.as_slice() else {
        unreachable!("{:?}", settings.endpoints);
    };
    assert!(matches!(endpoint.host, Host::Socket(_)));
    assert_eq!(endpoint.port, 5432);
}

#[test]
fn hosts_addresses_and_ports_are_paired() {
    let host = ("PGHOST", "a,/s,b");
    let cases: [(Variables, &[&str]); 7] = [
        (&[("PGHOST", "a")], &["host a port 5432"]),
        (
            &[host, ("PGPORT", "1")],
            &["host a port 1", "host /s port 1", "host b port 1"],
        ),
        (
            &[host, ("PGPORT", "1,2,")],
            &["host a port 1", "host /s port 2", "host b port 5432"],
        ),
        (&[("PGHOSTADDR", "::1")], &["host ::1 port 5432"]),
        (
            &[("PGHOST", "a"), ("PGHOSTADDR", "10.0.0.1")],
            &["host a (10.0.0.1) port 5432"],
        ),
        (
            &[("PGHOST", "a,b"), ("PGHOSTADDR", ",10.0.0.1")],
            &["host a port 5432", "host b (10.0.0.1) port 5432"],
        ),
        (&[("PGHOST", "/s")], &["host /s port 5432"]),
    ];
    for (variables, expected) in cases {
        assert_eq!(hosts(variables), expected, "{variables:?}");
    }
}

#[test]
fn bad_parameters_are_named_with_their_origin() {
    let cases: [(Variables, &str); 18] = [
        (&[("PGPORT", "x")], "$PGPORT: port cannot be \"x\""),
        (&[("PGPORT", "1,2")], "there are 1 hosts, but 2 ports"),
        (
            &[("PGHOSTADDR", "db")],
            "$PGHOSTADDR: hostaddr cannot be \"db\"",
        ),
        (
            &[("PGHOST", "a"), ("PGHOSTADDR", "::1,::2")],
            "there are 1 hosts, but 2 addresses",
        ),
        (
            &[("PGCONNECT_TIMEOUT", "soon")],
            "$PGCONNECT_TIMEOUT: connect_timeout cannot be \"soon\"",
        ),
        (
            &[("PGTARGETSESSIONATTRS", "best")],
            "$PGTARGETSESSIONATTRS: target_session_attrs cannot be \"best\"",
        ),
        (
            &[("PGCHANNELBINDING", "yes")],
            "$PGCHANNELBINDING: channel_binding cannot be \"yes\"",
        ),
        (
            &[("PGREQUIREPEER", "postgres")],
            "$PGREQUIREPEER: requirepeer = postgres is not supported",
        ),
        (
            &[("PGGSSENCMODE", "require")],
            "$PGGSSENCMODE: gssencmode = require is not supported",
        ),
        (
            &[("PGREQUIREAUTH", "gss")],
            "$PGREQUIREAUTH: require_auth = gss is not supported",
        ),
        (
            &[("PGREQUIREAUTH", "scram-sha-256")],
            "$PGREQUIREAUTH: require_auth = scram-sha-256 is not supported",
        ),
        (
            &[("PGREQUIREAUTH", "!password")],
            "$PGREQUIREAUTH: require_auth = !password is not supported",
        ),
        (
            &[("PGSSLMODE", "on")],
            "$PGSSLMODE: sslmode cannot be \"on\"",
        ),
        (
            &[("PGSSLCRL", "f")],
            "$PGSSLCRL: sslcrl is not supported: certificates are not checked for revocation",
        ),
        (
            &[("PGSSLCRLDIR", "f")],
            "$PGSSLCRLDIR: sslcrldir is not supported: certificates are not checked for revocation",
        ),
        (
            &[("PGSSLCERTMODE", "require")],
            "sslcertmode=require is not supported",
        ),
        (
            &[("PGSSLMAXPROTOCOLVERSION", "TLSv1.2")],
            "$PGSSLMAXPROTOCOLVERSION: ssl_max_protocol_version cannot be \"TLSv1.2\"",
        ),
        (
            &[("PGSSLNEGOTIATION", "direct")],
            "sslnegotiation=direct cannot be used with a weaker sslmode than require",
        ),
    ];
    for (variables, message) in cases {
        let error = from(variables).err().unwrap();
        assert_eq!(error.message(), message);
        assert_eq!(error.kind(), crate::error::Kind::Usage);
        assert!(error.advice().is_some(), "{message}");
    }
}

#[test]
fn what_is_demanded_of_the_server_is_honoured_or_refused() {
    let bound = ("PGCHANNELBINDING", "require");
    for methods in ["scram-sha-256", "md5,scram-sha-256", "!password,!md5,!none"] {
        from(&[bound, ("PGREQUIREAUTH", methods)]).unwrap();
    }
    from(&[("PGREQUIREAUTH", "!gss,!sspi,!oauth")]).unwrap();
    from(&[("PGREQUIREAUTH", "none,password,md5,scram-sha-256")]).unwrap();
    assert!(from(&[bound, ("PGREQUIREAUTH", "!scram-sha-256")]).is_err());
    assert!(from(&[bound, ("PGREQUIREAUTH", "none")]).is_err());
    from(&[("PGGSSENCMODE", "prefer")]).unwrap();
}

#[test]
fn a_timeout_of_zero_waits_for_ever() {
    let timeout = |text: &str| {
        from(&[("PGCONNECT_TIMEOUT", text)])
            .unwrap()
            .connect_timeout
    };
    assert_eq!(timeout("3"), Some(Duration::from_secs(3)));
    assert_eq!(timeout("0"), None);
    assert_eq!(timeout("-1"), None);
}

#[test]
fn section_comes_before_service_before_environment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("services");
    fs::write(
        &path,
        "# all\n[other]\nuser=eve\n[s]\nhost=of-service\nport=2\nuser=of-service\n\
         hostaddr=10.0.0.2\napplication_name=x\n[s]\ndbname=twice\n",
    )
    .unwrap();
    let path = path.display().to_string();
    let variables = [
        ("PGSERVICEFILE", path.as_str()),
        ("PGSERVICE", "s"),
        ("PGHOST", "of-environment"),
        ("PGUSER", "of-environment"),
        ("PGDATABASE", "of-environment"),
    ];
    let settings = from(&variables).unwrap();
    assert_eq!(settings.user, "of-service");
    assert_eq!(settings.database, "of-environment");
    assert_eq!(hosts(&variables), ["host of-service (10.0.0.2) port 2"]);

    // The section's host is not sent to the address of another one.
    let file = configuration("[a]\nhost = of-section\nuser = of-section\n", &variables).unwrap();
    let settings = file.server("a").unwrap().connection;
    assert_eq!(settings.user, "of-section");
    let endpoints: Vec<String> = settings.endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(endpoints, ["host of-section port 2"]);
}

#[test]
fn mistakes_in_a_service_are_named_with_their_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("services");
    let place = path.display().to_string();
    let failure = |text: &str| {
        fs::write(&path, text).unwrap();
        let variables = [("PGSERVICEFILE", place.as_str()), ("PGSERVICE", "s")];
        from(&variables).err().unwrap().message().to_owned()
    };
    let cases = [
        (
            "[t]\n",
            "there is no definition of service \"s\"".to_owned(),
        ),
        (
            "[s]\nhost\n",
            format!("{place}:2: this is no connection parameter"),
        ),
        (
            "[s]\nservice=t\n",
            format!("{place}:2: a service cannot refer to another one"),
        ),
        (
            "[s]\nldap://h\n",
            format!("{place}:2: services from LDAP are not supported"),
        ),
        (
            "[s]\nhots=h\n",
            format!("{place}:2: hots is no connection parameter that pgkeep supports"),
        ),
    ];
    for (text, message) in cases {
        assert_eq!(failure(text), message);
    }
    fs::remove_file(&path).unwrap();
    let system = folder.path().display().to_string();
    fs::write(
        folder.path().join("pg_service.conf"),
        "[s]\nhost = of-system\n",
    )
    .unwrap();
    let variables = [
        ("PGSERVICEFILE", place.as_str()),
        ("PGSYSCONFDIR", system.as_str()),
        ("PGSERVICE", "s"),
    ];
    assert_eq!(hosts(&variables), ["host of-system port 5432"]);
}

#[test]
fn passwords_are_looked_up_for_each_host() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pgpass");
    fs::write(
        &path,
        "db:1:*:ann:one\nlocalhost:*:postgres:*:socket\n/s:*:*:*:folder\n10.0.0.1:*:*:*:address\n",
    )
    .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let path = path.display().to_string();
    let file = ("PGPASSFILE", path.as_str());
    let passwords = |variables: &[(&str, &str)]| -> Vec<Option<String>> {
        let endpoints = from(variables).unwrap().endpoints;
        let passwords = endpoints.iter().map(|endpoint| endpoint.password.as_ref());
        passwords
            .map(|found| found.map(|secret| secret.reveal().to_owned()))
            .collect()
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        passwords(&[file, ("PGHOST", "db,db,/s,/tmp"), ("PGPORT", "1,2,3,4")]),
        [some("one"), None, some("folder"), some("socket")]
    );
    assert_eq!(
        passwords(&[file, ("PGHOSTADDR", "10.0.0.1")]),
        [some("address")]
    );
    let given = [file, ("PGHOST", "db"), ("PGPASSWORD", "given")];
    assert_eq!(passwords(&given), [some("given")]);
}

#[test]
fn the_socket_that_is_there_is_taken() {
    // No server of this machine listens on port 1.
    assert_eq!(
        hosts(&[("PGPORT", "1")]),
        ["host /var/run/postgresql port 1"]
    );
    assert!(!Path::new("/var/run/postgresql/.s.PGSQL.1").exists());
}
