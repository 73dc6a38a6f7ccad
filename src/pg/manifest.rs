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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::error::Error;
    use crate::pg::history::WalRange;
    use crate::pg::lsn::{Lsn, Timeline};

    const RANGE: WalRange = WalRange {
        timeline: Timeline(1),
        start: Lsn(0x0700_0028),
        end: Lsn(0x0700_0120),
    };

    fn manifest(version: u8) -> String {
        let mut writer =
            ManifestWriter::new(Vec::new(), version, 7_710_982_562_572_587_380).unwrap();
        writer
            .file("PG_VERSION", 3, 1_795_353_035, crc32c::crc32c(b"18\n"))
            .unwrap();
        writer.file("a \"b\"\\\n\u{1}é", 0, -1, 0).unwrap();
        String::from_utf8(writer.finish(&[RANGE]).unwrap()).unwrap()
    }

    #[test]
    fn what_fails_to_arrive_keeps_its_reason() {
        struct Lost;
        impl std::io::Read for Lost {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(std::io::Error::other(Error::server("lost").momentary()))
            }
        }
        let arrived = manifest(2);
        let cut = std::io::Read::chain(&arrived.as_bytes()[..100], Lost);
        assert!(Manifest::parse(cut).unwrap_err().is_momentary());
    }

    /// A manifest around these lines with a right checksum.
    fn sealed(body: &str) -> String {
        use sha2::Digest;
        let checksum = hexadecimal(&sha2::Sha256::digest(body));
        format!("{body}\"Manifest-Checksum\": \"{checksum}\"}}\n")
    }

    #[test]
    fn writes_the_bytes_that_postgresql_writes() {
        let body = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\
            \"System-Identifier\": 7710982562572587380,\n\
            \"Files\": [\n\
            { \"Path\": \"PG_VERSION\", \"Size\": 3, \"Last-Modified\": \"2026-11-22 13:10:35 GMT\", \
            \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"994e7be2\" },\n\
            { \"Path\": \"a \\\"b\\\"\\\\\\n\\u0001é\", \"Size\": 0, \"Last-Modified\": \"1969-12-31 23:59:59 GMT\", \
            \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"00000000\" }\n\
            ],\n\
            \"WAL-Ranges\": [\n\
            { \"Timeline\": 1, \"Start-LSN\": \"0/7000028\", \"End-LSN\": \"0/7000120\" }\n\
            ],\n";
        assert_eq!(manifest(2), sealed(body));
        let first = body.replace("System-Identifier\": 7710982562572587380,\n\"", "");
        assert_eq!(
            manifest(1),
            sealed(&first.replace("Version\": 2", "Version\": 1"))
        );
    }

    #[test]
    fn writes_no_files() {
        let writer = ManifestWriter::new(Vec::new(), 1, 1).unwrap();
        let text = String::from_utf8(writer.finish(&[RANGE]).unwrap()).unwrap();
        assert!(text.contains("\"Files\": [\n],\n\"WAL-Ranges\""), "{text}");
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap().files, []);
    }

    #[test]
    fn a_file_may_be_of_any_time() {
        let mut writer = ManifestWriter::new(Vec::new(), 1, 1).unwrap();
        for (path, modified) in [("a", i64::MIN), ("b", 253_402_300_800), ("c", i64::MAX)] {
            writer.file(path, 0, modified, 0).unwrap();
        }
        let text = writer.finish(&[RANGE]).unwrap();
        let modified = Manifest::parse(text.as_slice()).unwrap().files;
        let modified: Vec<i64> = modified
            .iter()
            .map(|file| file.modified_unix_seconds)
            .collect();
        assert_eq!(
            modified,
            [-62_135_596_800, 253_402_207_200, 253_402_207_200]
        );
    }

    #[test]
    fn reads_every_kind_of_checksum_and_path() {
        let file = |path: &str, checksum: &str| {
            format!(
                "{{ {path}, \"Size\": 1, \"Last-Modified\": \"2026-11-22 13:10:35 GMT\"{checksum} }}"
            )
        };
        let sha224 = "ab".repeat(28);
        let body = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{},\n{}\n],\n\"WAL-Ranges\": [\n],\n",
            file("\"Path\": \"a\"", ""),
            file(
                "\"Encoded-Path\": \"c3a9\"",
                &format!(", \"Checksum-Algorithm\": \"SHA224\", \"Checksum\": \"{sha224}\"")
            ),
        );
        let files = Manifest::parse(sealed(&body).as_bytes()).unwrap().files;
        assert_eq!(files[0].checksum, Checksum::None);
        assert_eq!(files[0].modified_unix_seconds, 1_795_353_035);
        assert_eq!(files[1].path, "é");
        assert_eq!(
            files[1].checksum,
            Checksum::Sha(ShaKind::Sha224, vec![0xAB; 28])
        );
        let no_utf8 = sealed(&body.replace("c3a9", "c3"));
        let files = Manifest::parse(no_utf8.as_bytes()).unwrap().files;
        assert_eq!(files[1].path, "\\xc3");
        for (right, wrong) in [
            ("c3a9", "61"),
            ("c3a9", "c3a"),
            ("SHA224", "SHA256"),
            ("SHA224", "MD5"),
            ("13:10:35 GMT", "13:10:35 CET"),
            ("\"Size\": 1", "\"Size\": -1"),
            ("Encoded-Path", "Path\": \"a\", \"Encoded-Path"),
            ("Files", "Files\": [], \"Files"),
            ("\"WAL-Ranges\": [", "\"Extra\": 1, \"WAL-Ranges\": ["),
            ("Version\": 1", "Version\": 2"),
            ("Version\": 1", "Version\": 3"),
        ] {
            let wrong = sealed(&body.replace(right, wrong));
            let error = Manifest::parse(wrong.as_bytes()).unwrap_err();
            assert!(error.message().starts_with("backup_manifest"), "{error}");
        }
    }

    #[test]
    fn finds_damage() {
        let text = manifest(2);
        for damaged in [
            text.replace("\"Size\": 3", "\"Size\": 4"),
            text.replace("0/7000120", "0/7000128"),
            text.replace("\"}\n", "\"}"),
            text.replace("\"}\n", "\"}\n\n"),
            text.replace("],\n\"Manifest", "], \"Manifest"),
            text[..text.len() / 2].to_owned(),
            String::new(),
        ] {
            assert!(Manifest::parse(damaged.as_bytes()).is_err(), "{damaged}");
        }
    }

    proptest! {
        #[test]
        fn there_and_back(
            system_identifier: u64,
            version in 1_u8..=2,
            files in prop::collection::btree_map("(?s).*", (any::<u64>(), 0_i64..4_000_000_000, any::<u32>()), 0..5),
            ranges in prop::collection::vec((any::<u32>(), any::<u64>(), any::<u64>()), 0..3),
        ) {
            let mut writer = ManifestWriter::new(Vec::new(), version, system_identifier).unwrap();
            for (path, (size, modified, crc32c)) in &files {
                writer.file(path, *size, *modified, *crc32c).unwrap();
            }
            let ranges = ranges.into_iter().map(|(timeline, start, end)| WalRange {
                timeline: Timeline(timeline),
                start: Lsn(start),
                end: Lsn(end),
            });
            let wal_ranges: Vec<_> = ranges.collect();
            let bytes = writer.finish(&wal_ranges).unwrap();
            let files = files.into_iter().map(|(path, (size, modified, crc32c))| ManifestFile {
                path,
                size,
                modified_unix_seconds: modified,
                checksum: Checksum::Crc32c(crc32c),
            });
            prop_assert_eq!(Manifest::parse(&bytes[..]).unwrap(), Manifest {
                version,
                system_identifier: (version == 2).then_some(system_identifier),
                files: files.collect(),
                wal_ranges,
            });
        }

        #[test]
        fn any_changed_byte_is_found(at in 0_usize..300, to: u8) {
            let mut bytes = manifest(2).into_bytes();
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            prop_assert!(Manifest::parse(&bytes[..]).is_err());
        }

        #[test]
        fn never_panics(bytes: Vec<u8>) {
            prop_assert!(Manifest::parse(&bytes[..]).is_err());
        }
    }
}
