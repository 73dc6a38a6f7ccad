//! rustls, set up from libpq's `ssl*` parameters.

use super::verifier::Verifier;
use crate::config::{ClientCertificate, RootCertificates, SslMode, TlsSettings, TlsVersion};
use crate::error::{Error, Result};
use rustls::ClientConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tokio_postgres_rustls::MakeRustlsConnect;
use zeroize::Zeroizing;

/// libpq-int.h: PG_ALPN_PROTOCOL; sslnegotiation=direct demands it.
pub(super) const ALPN_PROTOCOL: &[u8] = b"postgresql";

/// One set-up, for the driver's connections and for our own.
#[derive(Clone)]
pub(super) struct Tls {
    /// What the driver connects with.
    pub(super) driver: MakeRustlsConnect,
    /// The same for whoever reads and writes without the driver.
    pub(super) config: Arc<ClientConfig>,
}

/// Loads the certificates that the settings name.
pub(super) fn load(settings: &TlsSettings) -> Result<Tls> {
    let provider = Arc::new(ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let verifier = match &settings.roots {
        RootCertificates::None => Verifier::of_anyone(algorithms),
        RootCertificates::File(path) | RootCertificates::System(path) => {
            // As in libpq, roots that are there are used in every mode.
            let check_name = settings.mode == SslMode::VerifyFull;
            Verifier::of_roots(certificates(path)?, check_name, algorithms).ok_or_else(|| {
                Error::usage(format!(
                    "{} holds no root certificate that can be used",
                    path.display()
                ))
                .hint("it must hold certificates in PEM format; export them anew")
            })?
        }
    };
    let versions: &[_] = match settings.minimum_version {
        TlsVersion::Tls12 => &[&TLS12, &TLS13],
        TlsVersion::Tls13 => &[&TLS13],
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(|error| Error::failed(format!("cannot set TLS up: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &settings.client {
        None => builder.with_no_client_auth(),
        Some(ClientCertificate { certificate, key }) => builder
            .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
            .map_err(|error| {
                Error::usage(format!(
                    "client certificate {} and private key {} cannot be used: {error}",
                    certificate.display(),
                    key.display()
                ))
                .hint("check that the two belong together")
            })?,
    };
    config.alpn_protocols = vec![ALPN_PROTOCOL.to_vec()];
    Ok(Tls {
        driver: MakeRustlsConnect::new(config.clone()),
        config: Arc::new(config),
    })
}

/// All certificates of a PEM file; there is at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = fs::read(path).map_err(|error| Error::io("read certificates", path, &error))?;
    let certificates: std::result::Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(Error::usage(format!(
            "{} is no certificate in PEM format",
            path.display()
        ))
        .hint("convert it with: openssl x509 -inform DER -in FILE")),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let text = fs::read(path)
        .map(Zeroizing::new)
        .map_err(|error| Error::io("read private key", path, &error))?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        let is_encrypted = text.windows(9).any(|window| window == b"ENCRYPTED");
        match is_encrypted {
            true => Error::usage(format!("private key {} has a passphrase", path.display()))
                .hint("take it off with: openssl pkey -in FILE -out NEW; chmod 0600 NEW"),
            false => Error::usage(format!(
                "{} is no private key in PEM format",
                path.display()
            ))
            .hint("convert it with: openssl pkey -inform DER -in FILE -out NEW"),
        }
    })
}
