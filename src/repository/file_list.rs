//! `backup.files`: every file of the cluster, and where it is stored.
//!
//! JSON, one object a line, so that it is read and written as a stream:
//!
//! ```text
//! {"directory":"base/5"}
//! {"file":"base/5/1259","size":114688,"modified":1732000000,"crc32c":"994e7be2","bundle":3}
//! {"file":"base/5/16384","size":1073741824,"modified":1732000000,"crc32c":"0d1fae00"}
//! {"extra":"/etc/postgresql/15/main/pg_hba.conf","size":5002,"modified":1732000000,"crc32c":"…"}
//! ```
//!
//! Paths of files and directories are those in PGDATA, tablespaces being
//! `pg_tblspc/OID/…`. Sizes are bytes of plain content, times seconds since 1970, the checksum
//! is CRC-32C of the plain content, most significant digit first. Without `bundle` the
//! file is stored by itself.

use std::io::{BufRead, Write};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

/// CRC-32C of a file's plain content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crc32c(pub u32);

impl Serialize for Crc32c {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:08x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Crc32c {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Crc32c, D::Error> {
        let digits = std::borrow::Cow::<str>::deserialize(deserializer)?;
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
}

/// Every file and directory of a backup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileList {
    /// Directories of PGDATA, parents first.
    pub directories: Vec<String>,
    /// Files of PGDATA, in the order of their paths.
    pub files: Vec<FileEntry>,
    /// Further files of the server.
    pub extra: Vec<FileEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line<'a> {
    Directory {
        directory: std::borrow::Cow<'a, str>,
    },
    File {
        file: std::borrow::Cow<'a, str>,
        #[serde(flatten)]
        attributes: Attributes,
    },
    Extra {
        extra: std::borrow::Cow<'a, str>,
        #[serde(flatten)]
        attributes: Attributes,
    },
}

#[derive(Serialize, Deserialize)]
struct Attributes {
    size: u64,
    modified: i64,
    crc32c: Crc32c,
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle: Option<u32>,
}

impl From<&FileEntry> for Attributes {
    fn from(entry: &FileEntry) -> Attributes {
        Attributes {
            size: entry.size,
            modified: entry.modified,
            crc32c: entry.crc32c,
            bundle: entry.bundle,
        }
    }
}

impl Attributes {
    fn into_entry(self, path: String) -> FileEntry {
        FileEntry {
            path,
            size: self.size,
            modified: self.modified,
            crc32c: self.crc32c,
            bundle: self.bundle,
        }
    }
}

impl FileList {
    /// Writes the list.
    pub fn write(&self, mut out: impl Write) -> std::io::Result<()> {
        let directories = self.directories.iter().map(|path| Line::Directory {
            directory: path.into(),
        });
        let files = self.files.iter().map(|entry| Line::File {
            file: (&entry.path).into(),
            attributes: entry.into(),
        });
        let extra = self.extra.iter().map(|entry| Line::Extra {
            extra: (&entry.path).into(),
            attributes: entry.into(),
        });
        for line in directories.chain(files).chain(extra) {
            serde_json::to_writer(&mut out, &line)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Reads a list. Paths that would leave PGDATA are refused.
    pub fn read(source: impl BufRead) -> Result<FileList> {
        let mut list = FileList::default();
        for (index, line) in source.lines().enumerate() {
            let damaged = |why: String| Error::damage(format!("line {}: {why}", index + 1));
            let line = line.map_err(|error| damaged(error.to_string()))?;
            let line = serde_json::from_str(&line).map_err(|error| damaged(error.to_string()))?;
            match line {
                Line::Directory { directory } if stays_inside(&directory) => {
                    list.directories.push(directory.into_owned());
                }
                Line::File { file, attributes } if stays_inside(&file) => {
                    list.files.push(attributes.into_entry(file.into_owned()));
                }
                Line::Extra { extra, attributes }
                    if extra.strip_prefix('/').is_some_and(stays_inside) =>
                {
                    list.extra.push(attributes.into_entry(extra.into_owned()));
                }
                Line::Directory { directory: path }
                | Line::File { file: path, .. }
                | Line::Extra { extra: path, .. } => {
                    return Err(damaged(format!("the path {path:?} leads out of its folder")));
                }
            }
        }
        Ok(list)
    }
}

/// Whether a relative path has only plain names in it: no root, no `..`, no
/// empty part.
pub fn stays_inside(path: &str) -> bool {
    path.split('/')
        .all(|name| !matches!(name, "" | "." | "..") && !name.contains('\0'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn entries(absolute: bool) -> impl Strategy<Value = Vec<FileEntry>> {
        let entry = ("[a-z\"\\\\\n]{1,8}/[0-9]{1,5}", any::<u64>(), any::<i64>(), any::<u32>(), any::<Option<u32>>());
        let entry = entry.prop_map(move |(path, size, modified, crc32c, bundle)| FileEntry {
            path: if absolute { format!("/{path}") } else { path },
            size,
            modified,
            crc32c: Crc32c(crc32c),
            bundle,
        });
        prop::collection::vec(entry, 0..5)
    }

    proptest! {
        #[test]
        fn a_list_comes_back(files in entries(false), extra in entries(true)) {
            let list = FileList { directories: vec!["base".to_owned(), "base/5".to_owned()], files, extra };
            let mut text = Vec::new();
            list.write(&mut text).unwrap();
            prop_assert_eq!(FileList::read(&text[..]).unwrap(), list);
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
