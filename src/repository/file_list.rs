//! `backup.files`: every file of the cluster, and where it is stored.
//!
//! JSON, one object a line, so that it is read and written as a stream:
//!
//! ```text
//! {"directory":"base/5"}
//! {"file":"base/5/1259","size":114688,"modified":1732000000,"crc32c":"994e7be2","bundle":3}
//! {"file":"base/5/16384","size":1073741824,"modified":1732000000,"crc32c":"0d1fae00"}
//! {"file":"base/5/16390","size":24576,"modified":1732000000,"crc32c":"5f0a7b11","blocks":2,"length":1136}
//! {"file":"/etc/postgresql/15/main/pg_hba.conf","size":5002,"modified":1732000000,"crc32c":"…"}
//! ```
//!
//! Paths of files and directories are those in PGDATA, tablespaces being
//! `pg_tblspc/OID/…`; an absolute path is that of a further file of the server. Sizes are bytes of plain content, times seconds since 1970, the checksum
//! is CRC-32C of the plain content, most significant digit first. Without `bundle` the
//! file is stored by itself. With `blocks` and `length` what is stored is an incremental file
//! ([`incremental`](crate::pg::incremental)) of so many blocks, of a file that had `length` blocks; size and checksum are
//! then those of the incremental file.

use std::borrow::Cow;
use std::io::{BufRead, Write};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::pg::incremental;
use crate::pg::page::PAGE_SIZE;
use crate::pg::relative_path::stays_inside;

/// CRC-32C of a file's plain content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crc32c(pub u32);

impl Serialize for Crc32c {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:08x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Crc32c {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Crc32c, D::Error> {
        let digits = Cow::<str>::deserialize(deserializer)?;
        u32::from_str_radix(&digits, 16)
            .map(Crc32c)
            .map_err(serde::de::Error::custom)
    }
}

/// A file of the backup: its plain content, and where that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Relative to PGDATA; of a further file, absolute on the server.
    pub path: String,
    /// Bytes of plain content.
    pub size: u64,
    /// Seconds since 1970.
    pub modified: i64,
    /// Of the plain content.
    pub crc32c: Crc32c,
    /// The bundle that holds it; `None` for a stored file of its own.
    pub bundle: Option<u32>,
    /// How much of the file is stored.
    pub kind: FileKind,
}

/// How much of a file a backup stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// All of it.
    Whole,
    /// The blocks that changed since the parent, as an incremental file.
    Incremental {
        /// How many blocks it holds.
        blocks: u32,
        /// How many blocks the file itself had.
        length: u32,
    },
}

impl FileKind {
    /// The path under which so much of a file is stored.
    pub fn stored_path(self, path: &str) -> Cow<'_, str> {
        match self {
            FileKind::Whole => Cow::Borrowed(path),
            FileKind::Incremental { .. } => Cow::Owned(incremental::file_path(path)),
        }
    }
}

impl FileEntry {
    /// Its path in `data/`, in a bundle and in the manifest.
    pub fn stored_path(&self) -> Cow<'_, str> {
        self.kind.stored_path(&self.path)
    }

    /// Bytes of the file once it is restored.
    pub fn restored_size(&self) -> u64 {
        match self.kind {
            FileKind::Whole => self.size,
            FileKind::Incremental { length, .. } => u64::from(length) * PAGE_SIZE as u64,
        }
    }

    /// Whether it is a further file of the server, not one of PGDATA.
    pub fn is_extra(&self) -> bool {
        self.path.starts_with('/')
    }
}

/// Every file and directory of a backup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileList {
    /// Directories of PGDATA, parents first.
    pub directories: Vec<String>,
    /// Files, in the order of their paths.
    pub files: Vec<FileEntry>,
}

/// One line: a directory, or a file with all that belongs to it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    directory: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    file: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    modified: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crc32c: Option<Crc32c>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocks: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<u32>,
}

impl<'a> Line<'a> {
    fn directory(path: &'a str) -> Line<'a> {
        Line {
            directory: Some(path.into()),
            file: None,
            size: None,
            modified: None,
            crc32c: None,
            bundle: None,
            blocks: None,
            length: None,
        }
    }

    fn file(entry: &'a FileEntry) -> Line<'a> {
        let (blocks, length) = match entry.kind {
            FileKind::Whole => (None, None),
            FileKind::Incremental { blocks, length } => (Some(blocks), Some(length)),
        };
        Line {
            directory: None,
            file: Some((&entry.path).into()),
            size: Some(entry.size),
            modified: Some(entry.modified),
            crc32c: Some(entry.crc32c),
            bundle: entry.bundle,
            blocks,
            length,
        }
    }
}

impl FileList {
    /// Writes the list.
    pub fn write(&self, mut out: impl Write) -> std::io::Result<()> {
        let directories = self.directories.iter().map(|path| Line::directory(path));
        let files = self.files.iter().map(Line::file);
        for line in directories.chain(files) {
            serde_json::to_writer(&mut out, &line)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Reads a list. Paths that would leave their folder are refused.
    pub fn read(source: impl BufRead) -> Result<FileList> {
        let mut list = FileList::default();
        for (index, line) in source.lines().enumerate() {
            line.map_err(|error| error.to_string())
                .and_then(|line| list.take_line(&line))
                .map_err(|why| Error::damage(format!("line {}: {why}", index + 1)))?;
        }
        list.files.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(list)
    }

    /// A file by its path.
    pub fn find(&self, path: &str) -> Option<&FileEntry> {
        let place = self
            .files
            .binary_search_by(|file| file.path.as_str().cmp(path));
        place.ok().map(|place| &self.files[place])
    }

    fn take_line(&mut self, line: &str) -> std::result::Result<(), String> {
        let line: Line<'_> = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let outside = |path: &str| Err(format!("the path {path:?} leads out of its folder"));
        match line {
            Line {
                directory: Some(path),
                file: None,
                ..
            } => {
                if !stays_inside(&path) {
                    return outside(&path);
                }
                self.directories.push(path.into_owned());
            }
            Line {
                directory: None,
                file: Some(path),
                size: Some(size),
                modified: Some(modified),
                crc32c: Some(crc32c),
                bundle,
                blocks,
                length,
            } => {
                let kind = match (blocks, length) {
                    (None, None) => FileKind::Whole,
                    (Some(blocks), Some(length)) => FileKind::Incremental { blocks, length },
                    _ => return Err("it says only half of an incremental file".to_owned()),
                };
                if !stays_inside(path.strip_prefix('/').unwrap_or(&path)) {
                    return outside(&path);
                }
                self.files.push(FileEntry {
                    path: path.into_owned(),
                    size,
                    modified,
                    crc32c,
                    bundle,
                    kind,
                });
            }
            _ => return Err("it is neither a directory nor a whole file".to_owned()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn entries() -> impl Strategy<Value = Vec<FileEntry>> {
        let entry = (
            "/?[a-z\"\\\\\n]{1,8}/[0-9]{1,5}",
            any::<u64>(),
            any::<i64>(),
            any::<u32>(),
            any::<Option<u32>>(),
            any::<Option<(u32, u32)>>(),
        );
        let entry =
            entry.prop_map(
                |(path, size, modified, crc32c, bundle, incremental)| FileEntry {
                    path,
                    size,
                    modified,
                    crc32c: Crc32c(crc32c),
                    bundle,
                    kind: incremental.map_or(FileKind::Whole, |(blocks, length)| {
                        FileKind::Incremental { blocks, length }
                    }),
                },
            );
        prop::collection::vec(entry, 0..5).prop_map(|mut files| {
            files.sort_by(|one, other| one.path.cmp(&other.path));
            files
        })
    }

    proptest! {
        #[test]
        fn a_list_comes_back(files in entries()) {
            let list = FileList { directories: vec!["base".to_owned(), "base/5".to_owned()], files };
            let mut text = Vec::new();
            list.write(&mut text).unwrap();
            let read = FileList::read(&text[..]).unwrap();
            for file in &list.files {
                prop_assert_eq!(&read.find(&file.path).unwrap().path, &file.path);
            }
            prop_assert_eq!(read.find("no such file"), None);
            prop_assert_eq!(read, list);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = FileList::read(&bytes[..]);
        }
    }

    #[test]
    fn a_path_out_of_the_data_directory_is_refused() {
        for path in ["../x", "/etc/passwd", "base/../../x", "base//x", ""] {
            let line = format!("{}\n", serde_json::json!({ "directory": path }));
            assert!(FileList::read(line.as_bytes()).is_err(), "{path}");
        }
    }
}
