//! Reading a manifest, PostgreSQL's or our own.

use std::collections::HashSet;
use std::io::Read;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{LAST_MODIFIED, from_hexadecimal};
use crate::error::{Error, Result};
use crate::pg::history::WalRange;
use crate::pg::lsn::{Lsn, Timeline};

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// 1, or 2 from PostgreSQL 17 on.
    pub version: u8,
    /// The cluster's; only version 2 has it.
    pub system_identifier: Option<u64>,
    /// In the order of the manifest; no path is there twice.
    pub files: Vec<ManifestFile>,
    /// The WAL that the backup needs, newest timeline first.
    pub wal_ranges: Vec<WalRange>,
}

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Below the data directory, with slashes.
    pub path: String,
    /// In bytes.
    pub size: u64,
    /// When it was last changed, in seconds since 1970.
    pub modified_unix_seconds: i64,
    /// Of its content.
    pub checksum: Checksum,
}

/// The checksum of a file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    /// The backup was taken without checksums.
    None,
    /// A CRC-32C.
    Crc32c(u32),
    /// A hash of the SHA-2 family, in the usual order of its bytes.
    Sha(ShaKind, Vec<u8>),
}

/// One of the SHA-2 family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShaKind {
    /// 28 bytes.
    Sha224,
    /// 32 bytes.
    Sha256,
    /// 48 bytes.
    Sha384,
    /// 64 bytes.
    Sha512,
}

impl ShaKind {
    fn length(self) -> usize {
        match self {
            ShaKind::Sha224 => 28,
            ShaKind::Sha256 => 32,
            ShaKind::Sha384 => 48,
            ShaKind::Sha512 => 64,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: u8,
    #[serde(rename = "System-Identifier")]
    system_identifier: Option<u64>,
    #[serde(rename = "Files")]
    files: Vec<FileEntry>,
    #[serde(rename = "WAL-Ranges")]
    wal_ranges: Vec<RangeEntry>,
    #[serde(rename = "Manifest-Checksum")]
    checksum: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct FileEntry {
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    size: u64,
    #[serde(rename = "Last-Modified")]
    last_modified: String,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    checksum: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeEntry {
    #[serde(rename = "Timeline")]
    timeline: Timeline,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

impl Manifest {
    /// Reads a manifest to its end and checks the checksum it carries.
    pub fn parse(mut reader: impl Read) -> Result<Manifest> {
        let mut bytes = Vec::new();
        reader
            .read_to_end(&mut bytes)
            .map_err(|error| Error::failed(format!("cannot read backup_manifest: {error}")))?;
        let document: Document = serde_json::from_slice(&bytes)
            .map_err(|error| damaged(format!("it is no manifest: {error}")))?;
        check_checksum(&bytes, &document.checksum)?;
        drop(bytes);
        if !matches!(
            (document.version, document.system_identifier),
            (1, None) | (2, Some(_))
        ) {
            return Err(damaged(format!(
                "it is of version {} {} a system identifier",
                document.version,
                document.system_identifier.map_or("without", |_| "with")
            )));
        }
        let files = document.files.into_iter().map(FileEntry::into_file);
        let files = files.collect::<Result<Vec<_>>>()?;
        refuse_duplicates(&files)?;
        let wal_ranges = document.wal_ranges.into_iter().map(|range| WalRange {
            timeline: range.timeline,
            start: range.start,
            end: range.end,
        });
        Ok(Manifest {
            version: document.version,
            system_identifier: document.system_identifier,
            files,
            wal_ranges: wal_ranges.collect(),
        })
    }
}

impl FileEntry {
    fn into_file(self) -> Result<ManifestFile> {
        let path = match (self.path, self.encoded_path) {
            (Some(path), None) => path,
            (None, Some(encoded)) => decoded_path(&encoded)?,
            _ => return Err(damaged("a file has no path, or two")),
        };
        let modified_unix_seconds = modified(&self.last_modified).ok_or_else(|| {
            damaged(format!(
                "\"{path}\" has \"{}\" as the time of its last change",
                self.last_modified
            ))
        })?;
        let checksum = checksum(self.algorithm.as_deref(), self.checksum.as_deref())
            .ok_or_else(|| damaged(format!("\"{path}\" has an invalid checksum")))?;
        Ok(ManifestFile {
            path,
            size: self.size,
            modified_unix_seconds,
            checksum,
        })
    }
}

/// The last line is not covered; what is before it is, its newline included.
fn check_checksum(bytes: &[u8], stated: &str) -> Result<()> {
    let covered = bytes
        .strip_suffix(b"}\n")
        .and_then(|body| body.iter().rposition(|byte| *byte == b'\n'))
        .map(|newline| &bytes[..=newline])
        .ok_or_else(|| damaged("it does not end in a line of its own with its checksum"))?;
    let stated_bytes =
        from_hexadecimal(stated).ok_or_else(|| damaged(format!("\"{stated}\" is no checksum")))?;
    if Sha256::digest(covered).as_slice() != stated_bytes {
        return Err(damaged("its checksum does not match its content"));
    }
    Ok(())
}

fn refuse_duplicates(files: &[ManifestFile]) -> Result<()> {
    let mut paths = HashSet::with_capacity(files.len());
    match files.iter().find(|file| !paths.insert(&file.path)) {
        Some(file) => Err(damaged(format!("it lists \"{}\" twice", file.path))),
        None => Ok(()),
    }
}

/// PostgreSQL encodes paths that are not valid UTF-8, and any if told so.
fn decoded_path(encoded: &str) -> Result<String> {
    let bytes = from_hexadecimal(encoded)
        .ok_or_else(|| damaged(format!("\"{encoded}\" is no encoded path")))?;
    String::from_utf8(bytes).map_err(|error| {
        let path = String::from_utf8_lossy(error.as_bytes()).into_owned();
        Error::failed(format!(
            "backup_manifest lists \"{path}\", whose name is not UTF-8"
        ))
        .hint("rename that file in the data directory and take a new backup")
    })
}

fn modified(text: &str) -> Option<i64> {
    let time = DateTime::strptime(LAST_MODIFIED, text).ok()?;
    let time = TimeZone::UTC.to_timestamp(time).ok()?;
    Some(time.as_second())
}

fn checksum(algorithm: Option<&str>, text: Option<&str>) -> Option<Checksum> {
    let kind = match (algorithm, text) {
        (None, None) => return Some(Checksum::None),
        (Some("CRC32C"), Some(text)) => {
            let bytes = from_hexadecimal(text)?.try_into().ok()?;
            return Some(Checksum::Crc32c(u32::from_le_bytes(bytes)));
        }
        (Some("SHA224"), _) => ShaKind::Sha224,
        (Some("SHA256"), _) => ShaKind::Sha256,
        (Some("SHA384"), _) => ShaKind::Sha384,
        (Some("SHA512"), _) => ShaKind::Sha512,
        _ => return None,
    };
    let hash = from_hexadecimal(text?)?;
    (hash.len() == kind.length()).then_some(Checksum::Sha(kind, hash))
}

fn damaged(why: impl std::fmt::Display) -> Error {
    Error::damage(format!("backup_manifest is damaged: {why}"))
}
