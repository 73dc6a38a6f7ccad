//! The hash that binds SCRAM to a TLS channel: tls-server-end-point, RFC 5929, section 4.1.
//!
//! The server computes it of its own certificate (libpq/be-secure-openssl.c, be_tls_get_certificate_hash()),
//! so that one who sits in between with another certificate cannot pass the proof of the password on.

use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::oid::db::rfc5912::{
    ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384, ECDSA_WITH_SHA_512, SHA_1_WITH_RSA_ENCRYPTION,
    SHA_256_WITH_RSA_ENCRYPTION, SHA_384_WITH_RSA_ENCRYPTION, SHA_512_WITH_RSA_ENCRYPTION,
};

/// RFC 3279, section 2.2.3: ecdsa-with-SHA1.
const ECDSA_WITH_SHA_1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.1");

/// The hash of a server's certificate, by the algorithm of the certificate's signature; SHA-1
/// counts as SHA-256. None where that algorithm has no such hash, as Ed25519.
pub(super) fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let signature = Certificate::from_der(certificate)
        .ok()?
        .signature_algorithm
        .oid;
    Some(match signature {
        SHA_1_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_1 => Sha256::digest(certificate).to_vec(),
        SHA_256_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_256 => Sha256::digest(certificate).to_vec(),
        SHA_384_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_384 => Sha384::digest(certificate).to_vec(),
        SHA_512_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_512 => Sha512::digest(certificate).to_vec(),
        _ => return None,
    })
}
