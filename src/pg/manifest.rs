//! backup_manifest: every file of a backup with its checksum, and the WAL it
//! needs. pg_verifybackup checks a backup against it, and from 17 on
//! pg_basebackup and pg_combinebackup build on it (backup/backup_manifest.c;
//! read by common/parse_manifest.c).
//!
//! ```text
//! { "PostgreSQL-Backup-Manifest-Version": 2,
//! "System-Identifier": 7710982562572587380,
//! "Files": [
//! { "Path": "PG_VERSION", "Size": 3, "Last-Modified": "2026-11-22 13:10:35 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "994e7be2" }
//! ],
//! "WAL-Ranges": [
//! { "Timeline": 1, "Start-LSN": "0/7000028", "End-LSN": "0/7000120" }
//! ],
//! "Manifest-Checksum": "..."}
//! ```
//!
//! The system identifier is in version 2 only, which 17 introduced. Directories,
//! WAL and the manifest itself are not listed. A CRC-32C is written as its four
//! bytes lie in memory, the lowest first. The last line carries the SHA-256 of
//! all lines before it.

mod reading;
mod writing;

pub use reading::{Checksum, Manifest, ManifestFile, ShaKind};
pub use writing::ManifestWriter;

/// The name of the file, at the top of the data directory.
pub const BACKUP_MANIFEST_FILE: &str = "backup_manifest";

/// How `Last-Modified` is written, always in this zone.
const LAST_MODIFIED: &str = "%Y-%m-%d %H:%M:%S GMT";

/// Bytes as lower-case hexadecimal digits.
fn hexadecimal(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or_default();
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

/// The bytes that hexadecimal digits stand for.
fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let value = |digit: u8| char::from(digit).to_digit(16);
    pairs
        .iter()
        .map(|[high, low]| u8::try_from(value(*high)? << 4 | value(*low)?).ok())
        .collect()
}
