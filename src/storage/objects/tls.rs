//! Whose certificates are believed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::config::SYSTEM_ROOTS;
use crate::error::{Error, Result};

use super::settings::{Scheme, Settings};

/// What connections to the store are encrypted with.
pub(super) fn configuration(settings: &Settings) -> Result<Arc<ClientConfig>> {
    let named = settings.authorities.clone().or_else(|| {
        let is_s3 = settings.location.scheme == Scheme::S3;
        let variable = settings.credentials.variable(&["AWS_CA_BUNDLE"]);
        variable.filter(|_| is_s3).map(PathBuf::from)
    });
    let roots = match named {
        Some(path) => roots(&path)?,
        None => {
            let variable = settings.credentials.variable(&["SSL_CERT_FILE"]);
            let candidates = variable.into_iter().chain(SYSTEM_ROOTS).map(Path::new);
            match candidates.into_iter().find(|path| path.is_file()) {
                Some(path) => roots(path)?,
                None => RootCertStore::empty(),
            }
        }
    };
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::failed(format!("cannot set TLS up: {error}")))?;
    let configuration = builder.with_root_certificates(roots).with_no_client_auth();
    Ok(Arc::new(configuration))
}

fn roots(path: &Path) -> Result<RootCertStore> {
    let text = fs::read(path).map_err(|error| Error::io("read certificates from", path, &error))?;
    let found = CertificateDer::pem_slice_iter(&text).filter_map(|found| found.ok());
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found);
    if usable == 0 {
        return Err(Error::usage(format!(
            "{} holds no certificate that can be used",
            path.display()
        ))
        .hint("it must hold certificates in PEM format; convert one with: openssl x509 -inform DER -in FILE"));
    }
    Ok(roots)
}
