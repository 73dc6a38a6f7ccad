//! Transport security: libpq's `ssl*` parameters.
//!
//! Follows interfaces/libpq/fe-secure-openssl.c: initialize_SSL(). Stricter
//! than libpq in one point: a file that is named must be there.

use super::endpoint::Host;
use super::environment::Environment;
use super::libpq::{Sources, bad_value};
use super::origin::{Origin, Sourced};
use crate::error::{Error, Result};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How a connection over the network is secured. Unix sockets never use TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// How much security is asked for.
    pub mode: SslMode,
    /// How TLS begins.
    pub negotiation: SslNegotiation,
    /// Whom to trust.
    pub roots: RootCertificates,
    /// How the client proves who it is.
    pub client: Option<ClientCertificate>,
    /// The oldest version that may be spoken.
    pub minimum_version: TlsVersion,
}

/// `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS only if the server wants nothing else.
    Allow,
    /// TLS if the server has it.
    Prefer,
    /// Only TLS; the certificate is checked if there are root certificates.
    Require,
    /// Only TLS with a certificate that the roots vouch for.
    VerifyCa,
    /// As `VerifyCa`, and the certificate is made out to the host's name.
    VerifyFull,
}

/// `sslnegotiation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslNegotiation {
    /// The client asks whether the server speaks TLS.
    Postgres,
    /// TLS begins at once (PostgreSQL 17 and later).
    Direct,
}

/// `sslrootcert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootCertificates {
    /// No certificate is checked.
    None,
    /// Those of a file in PEM format.
    File(PathBuf),
    /// Those that the operating system trusts.
    System(PathBuf),
}

/// `sslcert` and `sslkey`, both in PEM format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, with its chain.
    pub certificate: PathBuf,
    /// The private key; its mode has been checked.
    pub key: PathBuf,
}

/// A version of TLS; older ones are never spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

const MODES: &[(&str, SslMode)] = &[
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

const NEGOTIATION: &[(&str, SslNegotiation)] = &[
    ("postgres", SslNegotiation::Postgres),
    ("direct", SslNegotiation::Direct),
];

const MINIMUM_VERSIONS: &[(&str, TlsVersion)] = &[
    ("TLSv1", TlsVersion::Tls12),
    ("TLSv1.1", TlsVersion::Tls12),
    ("TLSv1.2", TlsVersion::Tls12),
    ("TLSv1.3", TlsVersion::Tls13),
];

/// Where operating systems keep the certificates they trust, in one file.
pub(crate) const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

impl TlsSettings {
    /// Resolves the parameters and checks the files they name.
    pub(super) fn resolve(sources: &Sources<'_>, environment: &Environment) -> Result<TlsSettings> {
        let given_roots = sources.get("sslrootcert");
        let from_system = given_roots
            .as_ref()
            .is_some_and(|given| given.value == "system");
        // tls_ca_file in a section asks for a server that it vouches for.
        let from_section = given_roots
            .as_ref()
            .is_some_and(|given| matches!(given.origin, Origin::File { .. }));
        let default_mode = match (from_system, from_section) {
            (true, _) => SslMode::VerifyFull,
            (_, true) => SslMode::VerifyCa,
            _ => SslMode::Prefer,
        };
        let mode = sources.choice("sslmode", MODES)?.unwrap_or(default_mode);
        if from_system && mode != SslMode::VerifyFull {
            return Err(Error::usage(
                "sslrootcert=system cannot be used with a weaker sslmode than verify-full",
            )
            .hint("set PGSSLMODE=verify-full, or name a file of root certificates"));
        }
        let negotiation = sources
            .choice("sslnegotiation", NEGOTIATION)?
            .unwrap_or(SslNegotiation::Postgres);
        if negotiation == SslNegotiation::Direct
            && matches!(mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer)
        {
            return Err(Error::usage(
                "sslnegotiation=direct cannot be used with a weaker sslmode than require",
            )
            .hint("set PGSSLMODE=require, or better verify-full"));
        }
        refuse_unsupported(sources)?;
        let mut settings = TlsSettings {
            mode,
            negotiation,
            roots: RootCertificates::None,
            client: None,
            minimum_version: sources
                .choice("ssl_min_protocol_version", MINIMUM_VERSIONS)?
                .unwrap_or(TlsVersion::Tls12),
        };
        if mode != SslMode::Disable {
            settings.roots = roots(given_roots, mode, environment)?;
            settings.client = client_certificate(sources, environment)?;
        }
        Ok(settings)
    }

    /// A host given as an address alone has no name that a certificate could be made out to.
    pub(super) fn check_host(&self, host: &Host) -> Result<()> {
        match host {
            Host::Network {
                name,
                address: Some(address),
            } if self.mode == SslMode::VerifyFull && *name == address.to_string() => {
                Err(Error::usage(format!(
                    "sslmode verify-full needs a host name beside the address {address}"
                ))
                .hint("set host to the name that the server's certificate is made out to"))
            }
            _ => Ok(()),
        }
    }
}

fn refuse_unsupported(sources: &Sources<'_>) -> Result<()> {
    for keyword in ["sslcrl", "sslcrldir"] {
        if let Some(given) = sources.get(keyword) {
            return Err(Error::usage(format!(
                "{}: {keyword} is not supported: certificates are not checked for revocation",
                given.origin
            ))
            .hint("unset it if that is acceptable here"));
        }
    }
    let choices = [("disable", true), ("allow", true), ("require", false)];
    if sources.choice("sslcertmode", &choices)? == Some(false) {
        return Err(Error::usage("sslcertmode=require is not supported")
            .hint("let the server require a certificate: clientcert=verify-full in pg_hba.conf"));
    }
    match sources.get("ssl_max_protocol_version") {
        Some(given) if given.value != "TLSv1.3" => {
            Err(bad_value("ssl_max_protocol_version", &given, "TLSv1.3"))
        }
        _ => Ok(()),
    }
}

fn roots(
    given: Option<Sourced<String>>,
    mode: SslMode,
    environment: &Environment,
) -> Result<RootCertificates> {
    match given {
        Some(given) if given.value == "system" => system_roots(environment),
        Some(given) => {
            let path = environment.expand(&given.value);
            match path.is_file() {
                true => Ok(RootCertificates::File(path)),
                false => Err(missing("sslrootcert", &path, &given.origin)),
            }
        }
        None => match personal(environment, "root.crt") {
            Some(path) => Ok(RootCertificates::File(path)),
            None if matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull) => Err(Error::usage(
                "sslmode verify-ca and verify-full need the certificates of those to trust",
            )
            .hint(
                "put them into ~/.postgresql/root.crt, or set PGSSLROOTCERT to a file or \"system\"",
            )),
            None => Ok(RootCertificates::None),
        },
    }
}

fn system_roots(environment: &Environment) -> Result<RootCertificates> {
    let candidates = environment
        .variable("SSL_CERT_FILE")
        .into_iter()
        .chain(SYSTEM_ROOTS)
        .map(PathBuf::from);
    match candidates.into_iter().find(|path| path.is_file()) {
        Some(path) => Ok(RootCertificates::System(path)),
        None => Err(
            Error::usage("this system has no file of trusted root certificates")
                .hint("install the package ca-certificates, or set SSL_CERT_FILE"),
        ),
    }
}

fn client_certificate(
    sources: &Sources<'_>,
    environment: &Environment,
) -> Result<Option<ClientCertificate>> {
    if sources
        .get("sslcertmode")
        .is_some_and(|given| given.value == "disable")
    {
        return Ok(None);
    }
    let named = |keyword: &str| -> Result<Option<PathBuf>> {
        let Some(given) = sources.get(keyword) else {
            return Ok(None);
        };
        let path = environment.expand(&given.value);
        match path.is_file() {
            true => Ok(Some(path)),
            false => Err(missing(keyword, &path, &given.origin)),
        }
    };
    let certificate = match named("sslcert")? {
        Some(path) => path,
        None => match personal(environment, "postgresql.crt") {
            Some(path) => path,
            None => return Ok(None),
        },
    };
    let key = match named("sslkey")? {
        Some(path) => path,
        None => personal(environment, "postgresql.key").ok_or_else(|| {
            Error::usage(format!(
                "there is a client certificate, {}, but no private key for it",
                certificate.display()
            ))
            .hint("put the key into ~/.postgresql/postgresql.key, or set PGSSLKEY")
        })?,
    };
    check_key_mode(&key)?;
    Ok(Some(ClientCertificate { certificate, key }))
}

/// A file of `~/.postgresql` that is there.
fn personal(environment: &Environment, name: &str) -> Option<PathBuf> {
    let home = environment.home.as_ref()?;
    Some(home.join(".postgresql").join(name)).filter(|path| path.is_file())
}

fn missing(keyword: &str, path: &Path, origin: &Origin) -> Error {
    Error::usage(format!(
        "{origin}: {keyword} names {}, which is no file",
        path.display()
    ))
    .hint("correct the path, or check who may enter the folders above it")
}

/// fe-secure-openssl.c lets root own a key that the user's group may read.
fn check_key_mode(path: &Path) -> Result<()> {
    let metadata =
        fs::metadata(path).map_err(|error| Error::io("read private key", path, &error))?;
    let forbidden = match metadata.uid() {
        0 => 0o037,
        _ => 0o077,
    };
    if metadata.mode() & forbidden == 0 {
        return Ok(());
    }
    Err(Error::usage(format!(
        "private key {} may be read by others",
        path.display()
    ))
    .hint("run chmod 0600 on it; a key that root owns may have 0640"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::config::testing::{configuration, environment};
    use std::os::unix::fs::{PermissionsExt, chown};

    fn resolve(environment: &Environment) -> Result<TlsSettings> {
        TlsSettings::resolve(&Sources::new(None, environment)?, environment)
    }

    #[test]
    fn personal_files_are_taken_if_they_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let mut environment = environment(&[("PGSSLMODE", "verify-ca")]);
        environment.home = Some(folder.path().to_owned());
        assert!(resolve(&environment).is_err());

        let own = folder.path().join(".postgresql");
        fs::create_dir(&own).unwrap();
        fs::write(own.join("root.crt"), "").unwrap();
        let settings = resolve(&environment).unwrap();
        assert_eq!(settings.roots, RootCertificates::File(own.join("root.crt")));
        assert_eq!(settings.client, None);

        fs::write(own.join("postgresql.crt"), "").unwrap();
        let error = resolve(&environment).err().unwrap();
        assert!(error.message().contains("no private key"), "{error}");
        let key = own.join("postgresql.key");
        fs::write(&key, "").unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let client = resolve(&environment).unwrap().client.unwrap();
        assert_eq!(client.key, key);

        for (name, value) in [("PGSSLCERTMODE", "disable"), ("PGSSLMODE", "disable")] {
            let mut without = environment.clone();
            without.variables.insert(name.into(), value.into());
            assert_eq!(resolve(&without).unwrap().client, None, "{name}");
        }
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let accepted = |mode: u32| {
            fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
            check_key_mode(file.path()).is_ok()
        };
        let is_roots = rustix::process::geteuid().is_root();
        assert!(accepted(0o600));
        assert!(accepted(0o400));
        assert_eq!(accepted(0o640), is_roots);
        assert!(!accepted(0o644));
        assert!(!accepted(0o660));
        if is_roots {
            chown(file.path(), Some(65_534), None).unwrap();
            assert!(!accepted(0o640));
            assert!(accepted(0o600));
        }
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        for (variable, keyword) in [("PGSSLROOTCERT", "sslrootcert"), ("PGSSLCERT", "sslcert")] {
            let error = resolve(&environment(&[(variable, "/none")])).err().unwrap();
            let expected = format!("${variable}: {keyword} names /none, which is no file");
            assert_eq!(error.message(), expected);
        }
    }

    #[test]
    fn the_systems_roots_need_names_to_be_checked() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bundle = file.path().display().to_string();
        let of_system = [("PGSSLROOTCERT", "system"), ("SSL_CERT_FILE", &*bundle)];
        let settings = resolve(&environment(&of_system)).unwrap();
        assert_eq!(settings.mode, SslMode::VerifyFull);
        assert_eq!(
            settings.roots,
            RootCertificates::System(file.path().to_owned())
        );
        let weaker = [of_system[0], of_system[1], ("PGSSLMODE", "verify-ca")];
        assert!(resolve(&environment(&weaker)).is_err());
    }

    #[test]
    fn an_address_alone_cannot_be_verified() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let roots = file.path().display().to_string();
        let variables = [("PGSSLROOTCERT", &*roots), ("PGSSLMODE", "verify-full")];
        let settings = resolve(&environment(&variables)).unwrap();
        let host = |name: &str| Host::Network {
            name: name.to_owned(),
            address: Some([10, 0, 0, 1].into()),
        };
        assert!(settings.check_host(&host("10.0.0.1")).is_err());
        assert!(settings.check_host(&host("db")).is_ok());
    }

    #[test]
    fn the_oldest_version_can_be_raised() {
        for (text, version) in [("TLSv1", TlsVersion::Tls12), ("TLSv1.3", TlsVersion::Tls13)] {
            let settings = resolve(&environment(&[("PGSSLMINPROTOCOLVERSION", text)])).unwrap();
            assert_eq!(settings.minimum_version, version, "{text}");
        }
    }

    #[test]
    fn a_section_with_roots_does_not_fall_back_to_plain_text() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!("[a]\nhost = h\ntls_ca_file = {}\n", file.path().display());
        let mode = |variables: &[(&str, &str)]| {
            let server = configuration(&text, variables)
                .unwrap()
                .server("a")
                .unwrap();
            server.connection.tls.mode
        };
        assert_eq!(mode(&[]), SslMode::VerifyCa);
        assert_eq!(mode(&[("PGSSLMODE", "verify-full")]), SslMode::VerifyFull);
    }
}
