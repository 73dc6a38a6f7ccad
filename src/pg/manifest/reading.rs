//! Reading a manifest, PostgreSQL's or our own.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, BufReader, Read};
use std::marker::PhantomData;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};

use super::{LAST_MODIFIED, from_hexadecimal};
use crate::error::{Error, Result};
use crate::pg::history::WalRange;
use crate::pg::lsn::{Lsn, Timeline};

/// What a manifest says. Its files are collected as they are read, in whatever holds them best.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest<C = Vec<ManifestFile>> {
    /// 1, or 2 from PostgreSQL 17 on.
    pub version: u8,
    /// The cluster's; only version 2 has it.
    pub system_identifier: Option<u64>,
    /// In the order of the manifest.
    pub files: C,
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
#[serde(deny_unknown_fields, bound = "C: Default + Extend<ManifestFile>")]
struct Document<C> {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: u8,
    #[serde(rename = "System-Identifier")]
    system_identifier: Option<u64>,
    #[serde(rename = "Files")]
    files: Collected<C>,
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

/// Files, or why one of them is none.
struct Collected<C>(Result<C>);

impl<'de, C: Default + Extend<ManifestFile>> Deserialize<'de> for Collected<C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_seq(Collecting(PhantomData))
    }
}

struct Collecting<C>(PhantomData<C>);

impl<'de, C: Default + Extend<ManifestFile>> Visitor<'de> for Collecting<C> {
    type Value = Collected<C>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("files")
    }

    fn visit_seq<A: SeqAccess<'de>>(
        self,
        mut files: A,
    ) -> std::result::Result<Collected<C>, A::Error> {
        let mut collected = Ok(C::default());
        while let Some(entry) = files.next_element::<FileEntry>()? {
            if let Ok(already) = &mut collected {
                match entry.into_file() {
                    Ok(file) => already.extend([file]),
                    Err(error) => collected = Err(error),
                }
            }
        }
        Ok(Collected(collected))
    }
}

impl Manifest {
    /// Reads a manifest to its end and checks the checksum it carries, and that no path is in it twice.
    pub fn parse(reader: impl Read) -> Result<Manifest> {
        let manifest: Manifest = Manifest::collect(reader)?;
        refuse_duplicates(&manifest.files)?;
        Ok(manifest)
    }
}

impl<C: Default + Extend<ManifestFile>> Manifest<C> {
    /// Reads a manifest to its end and checks the checksum it carries.
    pub fn collect(reader: impl Read) -> Result<Manifest<C>> {
        let mut covered = Covered {
            reader,
            checksum: Sha256::new(),
            lines: Vec::new(),
            failure: None,
        };
        let document = serde_json::from_reader(BufReader::new(&mut covered));
        if let Some(failure) = covered.failure {
            return Err(Error::from_io("read backup_manifest", &failure));
        }
        let document: Document<C> =
            document.map_err(|error| damaged(format!("it is no manifest: {error}")))?;
        covered.check(&document.checksum)?;
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
        let wal_ranges = document.wal_ranges.into_iter().map(|range| WalRange {
            timeline: range.timeline,
            start: range.start,
            end: range.end,
        });
        Ok(Manifest {
            version: document.version,
            system_identifier: document.system_identifier,
            files: document.files.0?,
            wal_ranges: wal_ranges.collect(),
        })
    }
}

/// A manifest whose checksum is computed as it is read.
struct Covered<R> {
    reader: R,
    checksum: Sha256,
    /// What has come of the last line, and of the one at hand where that is another.
    lines: Vec<u8>,
    failure: Option<io::Error>,
}

impl<R: Read> Read for Covered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer).map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.failure = Some(error);
            }
            io::Error::from(kind)
        })?;
        self.lines.extend_from_slice(&buffer[..read]);
        // What is before a line that has begun is covered, where that is not the last one.
        let complete = self.lines.len().saturating_sub(1);
        if let Some(newline) = self.lines[..complete]
            .iter()
            .rposition(|byte| *byte == b'\n')
        {
            self.checksum.update(&self.lines[..=newline]);
            self.lines.drain(..=newline);
        }
        Ok(read)
    }
}

impl<R> Covered<R> {
    /// The last line is not covered; what is before it is, its newline included.
    fn check(self, stated: &str) -> Result<()> {
        if !self.lines.ends_with(b"}\n") {
            return Err(damaged(
                "it does not end in a line of its own with its checksum",
            ));
        }
        let stated_bytes = from_hexadecimal(stated)
            .ok_or_else(|| damaged(format!("\"{stated}\" is no checksum")))?;
        if self.checksum.finalize().as_slice() != stated_bytes {
            return Err(damaged("its checksum does not match its content"));
        }
        Ok(())
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

fn refuse_duplicates(files: &[ManifestFile]) -> Result<()> {
    let mut paths = HashSet::with_capacity(files.len());
    match files.iter().find(|file| !paths.insert(&file.path)) {
        Some(file) => Err(damaged(format!("it lists \"{}\" twice", file.path))),
        None => Ok(()),
    }
}

/// PostgreSQL encodes paths that are not valid UTF-8, and any if told so. One that is not is shown like `\xe9`: a backup of
/// pgkeep's has no file of such a name.
fn decoded_path(encoded: &str) -> Result<String> {
    let bytes = from_hexadecimal(encoded)
        .ok_or_else(|| damaged(format!("\"{encoded}\" is no encoded path")))?;
    Ok(
        String::from_utf8(bytes)
            .unwrap_or_else(|error| error.as_bytes().escape_ascii().to_string()),
    )
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
