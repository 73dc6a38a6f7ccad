//! Which server certificates are accepted.
//!
//! rustls knows only what `verify-full` asks for; libpq's other modes are
//! written here, and two things that OpenSSL accepts and rustls does not, for
//! they are what PostgreSQL's manual tells people to make: a certificate that
//! is its own root, and one whose only name is the common name of its subject.
//! Follows interfaces/libpq/fe-secure-common.c:
//! pq_verify_peer_name_matches_certificate(), wildcard_certificate_match().

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};

/// RFC 5280, section 4.2.1.6: the subject alternative name.
const SUBJECT_ALTERNATIVE_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");

/// RFC 4519, section 2.3: the common name.
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// Accepts or refuses server certificates.
#[derive(Debug)]
pub(super) struct Verifier {
    trusted: Option<Trusted>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Whose certificates are accepted.
#[derive(Debug)]
struct Trusted {
    roots: RootCertStore,
    /// The same, for servers that present one of them as their own.
    certificates: Vec<CertificateDer<'static>>,
    check_name: bool,
}

impl Verifier {
    /// Accepts every certificate whose key the server proves to have: what is
    /// sent is encrypted, to whomever.
    pub(super) fn of_anyone(algorithms: WebPkiSupportedAlgorithms) -> Verifier {
        Verifier {
            trusted: None,
            algorithms,
        }
    }

    /// Accepts certificates that one of the roots vouches for; none if no root
    /// can be used.
    pub(super) fn of_roots(
        certificates: Vec<CertificateDer<'static>>,
        check_name: bool,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Option<Verifier> {
        let mut roots = RootCertStore::empty();
        let (usable, _) = roots.add_parsable_certificates(certificates.iter().cloned());
        (usable > 0).then_some(Verifier {
            trusted: Some(Trusted {
                roots,
                certificates,
                check_name,
            }),
            algorithms,
        })
    }
}

impl Trusted {
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), Error> {
        if self.certificates.contains(end_entity) {
            check_period(end_entity, now)?;
        } else {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &self.roots,
                intermediates,
                now,
                algorithms.all,
            )?;
        }
        if !self.check_name {
            return Ok(());
        }
        let by_alternative_name = ParsedCertificate::try_from(end_entity)
            .and_then(|certificate| verify_server_name(&certificate, name));
        match by_alternative_name {
            Err(_) if matches_common_name(end_entity, &name.to_str()) => Ok(()),
            result => result,
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(trusted) = &self.trusted {
            trusted.verify(
                end_entity,
                intermediates,
                server_name,
                now,
                &self.algorithms,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    // Checked in every mode: SCRAM's channel binding is with the certificate, and
    // would bind to nothing if its key need not be there.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // webpki reads certificates of X.509 version 3 alone, but a key is a key.
        match public_key(cert) {
            Some(key) => verify_tls13_signature_with_raw_key(
                message,
                &SubjectPublicKeyInfoDer::from(key),
                dss,
                &self.algorithms,
            ),
            None => verify_tls13_signature(message, cert, dss, &self.algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let key = certificate.tbs_certificate.subject_public_key_info;
    key.to_der().ok()
}

/// A certificate that is trusted itself must still be of today.
fn check_period(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let certificate =
        Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let validity = certificate.tbs_certificate.validity;
    let begin = validity.not_before.to_unix_duration().as_secs();
    let end = validity.not_after.to_unix_duration().as_secs();
    match now.as_secs() {
        second if second < begin => Err(CertificateError::NotValidYet.into()),
        second if second > end => Err(CertificateError::Expired.into()),
        _ => Ok(()),
    }
}

/// The common name counts where there is no alternative name.
fn matches_common_name(certificate: &CertificateDer<'_>, host: &str) -> bool {
    let Ok(certificate) = Certificate::from_der(certificate) else {
        return false;
    };
    let certificate = certificate.tbs_certificate;
    let has_alternative_name = certificate
        .extensions
        .iter()
        .flatten()
        .any(|extension| extension.extn_id == SUBJECT_ALTERNATIVE_NAME);
    let names = certificate
        .subject
        .0
        .iter()
        .flat_map(|names| names.0.iter());
    !has_alternative_name
        && names
            .filter(|name| name.oid == COMMON_NAME)
            .filter_map(|name| std::str::from_utf8(name.value.value()).ok())
            .any(|pattern| matches_host(pattern, host))
}

/// `*.example.org` stands for one label in front of `.example.org`.
fn matches_host(pattern: &str, host: &str) -> bool {
    let exactly = pattern.eq_ignore_ascii_case(host);
    let by_wildcard = pattern.strip_prefix("*.").is_some_and(|domain| {
        host.split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(domain))
    });
    exactly || by_wildcard
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use rustls::crypto::ring;
    use rustls::pki_types::pem::PemObject;
    use std::time::Duration;

    /// Its own root, for the common name `*.example.org`, of 2026 to 2126; made with
    /// `openssl req -x509 -days 36500`.
    const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBqTCCAU+gAwIBAgIUDwPCyjKG9bW1KmEwEIQ/5uaCAzkwCgYIKoZIzj0EAwIw
KTEPMA0GA1UECgwGcGdrZWVwMRYwFAYDVQQDDA0qLmV4YW1wbGUub3JnMCAXDTI2
MTEyMjE2MTA1MloYDzIxMjYxMDI5MTYxMDUyWjApMQ8wDQYDVQQKDAZwZ2tlZXAx
FjAUBgNVBAMMDSouZXhhbXBsZS5vcmcwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AASvE04HwjZ+roeGljf0NzsQEhP4syAVH1wBD3A3UsKBVm+WXhLCQ39t8s/gZBP1
PHKhjBybBzEl5hLtIK8QdSjJo1MwUTAdBgNVHQ4EFgQUtMFVuCQnO3ycYOZZwGId
889X+PcwHwYDVR0jBBgwFoAUtMFVuCQnO3ycYOZZwGId889X+PcwDwYDVR0TAQH/
BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiEA2sHzyCJjCsJa6YMZvS6u/egbCrWm
a3KQ1XVW0++Kt90CIC+jGguMn8K4frmIVzqljMUDAgh0a3oW5yULymPW7iov
-----END CERTIFICATE-----
";

    /// Verifies the certificate as if `year` were now.
    fn verify(year: u64, name: &str, check_name: bool) -> Result<ServerCertVerified, Error> {
        let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
        let algorithms = ring::default_provider().signature_verification_algorithms;
        let verifier =
            Verifier::of_roots(vec![certificate.clone()], check_name, algorithms).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs((year - 1970) * 31_556_952));
        let name = ServerName::try_from(name).unwrap();
        verifier.verify_server_cert(&certificate, &[], &name, &[], now)
    }

    #[test]
    fn a_certificate_that_is_its_own_root_has_its_period() {
        assert!(verify(2050, "db.example.org", true).is_ok());
        let error = |year| verify(year, "db.example.org", true).unwrap_err();
        assert_eq!(error(2020), CertificateError::NotValidYet.into());
        assert_eq!(error(2130), CertificateError::Expired.into());
    }

    #[test]
    fn the_common_name_counts_only_where_names_are_checked() {
        assert!(verify(2050, "example.org", true).is_err());
        assert!(verify(2050, "10.0.0.1", true).is_err());
        assert!(verify(2050, "example.org", false).is_ok());
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        let cases = [
            ("db.example.org", "db.example.org", true),
            ("DB.example.org", "db.Example.org", true),
            ("*.example.org", "db.example.org", true),
            ("*.example.org", "a.db.example.org", false),
            ("*.example.org", "example.org", false),
            ("*.example.org", ".example.org", false),
            ("*", "db", false),
            ("db.*", "db.example", false),
            ("db", "db.example.org", false),
            ("10.0.0.1", "10.0.0.1", true),
        ];
        for (pattern, host, expected) in cases {
            assert_eq!(matches_host(pattern, host), expected, "{pattern} {host}");
        }
    }
}
