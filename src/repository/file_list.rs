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
use std::io::Write;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::pg::incremental;
use crate::pg::page::PAGE_SIZE;
use crate::pg::paths::{PathPlace, Paths};
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileEntry<'a> {
    /// Relative to PGDATA; of a further file, absolute on the server.
    pub path: &'a str,
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

impl<'a> FileEntry<'a> {
    /// Its path in `data/`, in a bundle and in the manifest.
    pub fn stored_path(&self) -> Cow<'a, str> {
        self.kind.stored_path(self.path)
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

/// Very many files: 40 bytes for each, and its path.
#[derive(Debug, Clone, Default)]
pub struct Files {
    paths: Paths,
    files: Vec<Compact>,
}

/// What there is of a [`FileEntry`] beside its path.
#[derive(Debug, Clone, Copy)]
struct Compact {
    path: PathPlace,
    size: u64,
    modified: i64,
    crc32c: Crc32c,
    /// `NONE` outside of bundles.
    bundle: u32,
    /// `NONE` for a whole file, as is its length.
    blocks: u32,
    length: u32,
}

/// No bundle has this number, and no file so many blocks.
const NONE: u32 = u32::MAX;

impl Files {
    /// An empty list with room for so many files: one that grows by halves leaves holes behind. Files with
    /// these paths share them.
    pub fn sharing(paths: &Paths, files: usize) -> Files {
        Files {
            paths: paths.clone(),
            files: Vec::with_capacity(files),
        }
    }

    /// All paths, and some that are no longer in the list.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Adds a file behind the others.
    pub fn push(&mut self, file: FileEntry<'_>) {
        let (blocks, length) = match file.kind {
            FileKind::Whole => (NONE, NONE),
            FileKind::Incremental { blocks, length } => (blocks, length),
        };
        self.files.push(Compact {
            path: self.paths.push(file.path),
            size: file.size,
            modified: file.modified,
            crc32c: file.crc32c,
            bundle: file.bundle.unwrap_or(NONE),
            blocks,
            length,
        });
    }

    /// Adds all files of another list, in whatever order: the shorter one is added to the longer.
    pub fn append(&mut self, mut other: Files) {
        if other.len() > self.len() {
            std::mem::swap(self, &mut other);
        }
        if self.paths.are_shared_with(&other.paths) {
            self.files.append(&mut other.files);
            return;
        }
        if other.is_empty() {
            return;
        }
        let paths = &self.paths;
        let behind = other.files.into_iter().map(|file| Compact {
            path: file.path.behind(paths),
            ..file
        });
        self.files.extend(behind);
        self.paths.append(&other.paths);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The file at a place.
    pub fn get(&self, place: usize) -> FileEntry<'_> {
        self.entry(&self.files[place])
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = FileEntry<'_>> {
        self.files.iter().map(|file| self.entry(file))
    }

    fn entry(&self, file: &Compact) -> FileEntry<'_> {
        FileEntry {
            path: self.paths.get(file.path),
            size: file.size,
            modified: file.modified,
            crc32c: file.crc32c,
            bundle: (file.bundle != NONE).then_some(file.bundle),
            kind: match (file.blocks, file.length) {
                (NONE, _) => FileKind::Whole,
                (blocks, length) => FileKind::Incremental { blocks, length },
            },
        }
    }

    /// Puts them into the order of their paths.
    pub fn sort(&mut self) {
        let paths = &self.paths;
        self.files
            .sort_by(|one, other| paths.get(one.path).cmp(paths.get(other.path)));
    }

    /// Keeps those alone that are wanted.
    pub fn retain(&mut self, mut is_wanted: impl FnMut(FileEntry<'_>) -> bool) {
        let mut files = std::mem::take(&mut self.files);
        files.retain(|file| is_wanted(self.entry(file)));
        self.files = files;
    }

    /// The place of a file, by its path. They are in the order of their paths.
    pub fn place(&self, path: &str) -> Option<usize> {
        self.search(path).ok()
    }

    /// The place of a path, or the one where it would be.
    fn search(&self, path: &str) -> std::result::Result<usize, usize> {
        self.files
            .binary_search_by(|file| self.paths.get(file.path).cmp(path))
    }

    /// Looks for one path after the other, which are in their order for the most part. So are the files.
    pub fn search_on(&self) -> SearchOn<'_> {
        SearchOn {
            files: self,
            next: 0,
        }
    }
}

/// A search that goes on from where it found something last.
pub struct SearchOn<'a> {
    files: &'a Files,
    next: usize,
}

impl<'a> SearchOn<'a> {
    /// The place of a path.
    pub fn find(&mut self, path: &str) -> Option<usize> {
        let next = self.files.files.get(self.next);
        let found = match next {
            Some(next) if self.files.paths.get(next.path) == path => Ok(self.next),
            _ => self.files.search(path),
        };
        self.next = found.map_or_else(|behind| behind, |place| place + 1);
        found.ok()
    }
}

/// Every file and directory of a backup.
#[derive(Debug, Clone, Default)]
pub struct FileList {
    /// Directories of PGDATA, parents first.
    pub directories: Vec<String>,
    /// Files, in the order of their paths.
    pub files: Files,
}

/// One line: a directory, or a file with all that belongs to it.
#[derive(Default, Serialize, Deserialize)]
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
            ..Line::default()
        }
    }

    fn file(entry: FileEntry<'a>) -> Line<'a> {
        let (blocks, length) = match entry.kind {
            FileKind::Whole => (None, None),
            FileKind::Incremental { blocks, length } => (Some(blocks), Some(length)),
        };
        Line {
            directory: None,
            file: Some(entry.path.into()),
            size: Some(entry.size),
            modified: Some(entry.modified),
            crc32c: Some(entry.crc32c),
            bundle: entry.bundle,
            blocks,
            length,
        }
    }

    /// What the line says. Paths that would leave their folder are refused.
    fn listed(&self) -> std::result::Result<Listed<'_>, String> {
        let outside = |path: &str| Err(format!("the path {path:?} leads out of its folder"));
        match self {
            Line {
                directory: Some(path),
                file: None,
                ..
            } => {
                if !stays_inside(path) {
                    return outside(path);
                }
                Ok(Listed::Directory(path))
            }
            &Line {
                directory: None,
                file: Some(ref path),
                size: Some(size),
                modified: Some(modified),
                crc32c: Some(crc32c),
                bundle,
                blocks,
                length,
            } => {
                if [bundle, blocks, length].contains(&Some(NONE)) {
                    return Err(format!("it has a number that is too large, {NONE}"));
                }
                let kind = match (blocks, length) {
                    (None, None) => FileKind::Whole,
                    (Some(blocks), Some(length)) => FileKind::Incremental { blocks, length },
                    _ => return Err("it says only half of an incremental file".to_owned()),
                };
                if !stays_inside(path.strip_prefix('/').unwrap_or(path)) {
                    return outside(path);
                }
                Ok(Listed::File(FileEntry {
                    path,
                    size,
                    modified,
                    crc32c,
                    bundle,
                    kind,
                }))
            }
            _ => Err("it is neither a directory nor a whole file".to_owned()),
        }
    }
}

/// What one line of a list tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed<'a> {
    /// A directory of PGDATA.
    Directory(&'a str),
    /// A file.
    File(FileEntry<'a>),
}

/// Reads a list as its text comes, in parts of any size.
#[derive(Default)]
pub struct ListReader {
    /// The line at hand, as far as it has come.
    line: Vec<u8>,
    number: u64,
}

impl ListReader {
    /// Hands over what the lines tell that are complete now.
    pub fn push(&mut self, mut text: &[u8], visit: &mut impl FnMut(Listed<'_>)) -> Result<()> {
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = text.split_at(end);
            text = &rest[1..];
            if self.line.is_empty() {
                self.visit_line(line, visit)?;
            } else {
                self.line.extend_from_slice(line);
                let mut line = std::mem::take(&mut self.line);
                self.visit_line(&line, visit)?;
                line.clear();
                self.line = line;
            }
        }
        self.line.extend_from_slice(text);
        Ok(())
    }

    /// Hands over the last line where no newline ends it.
    pub fn finish(mut self, visit: &mut impl FnMut(Listed<'_>)) -> Result<()> {
        let line = std::mem::take(&mut self.line);
        match line.is_empty() {
            true => Ok(()),
            false => self.visit_line(&line, visit),
        }
    }

    fn visit_line(&mut self, line: &[u8], visit: &mut impl FnMut(Listed<'_>)) -> Result<()> {
        self.number += 1;
        let damaged = |why: String| Error::damage(format!("line {}: {why}", self.number));
        let line: Line<'_> =
            serde_json::from_slice(line).map_err(|error| damaged(error.to_string()))?;
        visit(line.listed().map_err(damaged)?);
        Ok(())
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

    /// Adds what a line tells.
    pub fn push(&mut self, listed: Listed<'_>) {
        match listed {
            Listed::Directory(path) => self.directories.push(path.to_owned()),
            Listed::File(file) => self.files.push(file),
        }
    }

    /// A file by its path.
    pub fn find(&self, path: &str) -> Option<FileEntry<'_>> {
        self.files.place(path).map(|place| self.files.get(place))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// Reads a list that comes in parts of so many bytes.
    fn read(text: &[u8], part: usize) -> Result<FileList> {
        let mut list = FileList::default();
        let mut visit = |listed: Listed<'_>| list.push(listed);
        let mut reader = ListReader::default();
        for part in text.chunks(part) {
            reader.push(part, &mut visit)?;
        }
        reader.finish(&mut visit)?;
        list.files.sort();
        Ok(list)
    }

    fn files() -> impl Strategy<Value = Files> {
        let entry = (
            "/?[a-z\"\\\\\n]{1,8}/[0-9]{1,5}",
            any::<u64>(),
            any::<i64>(),
            any::<u32>(),
            prop::option::of(0..NONE),
            prop::option::of((0..NONE, 0..NONE)),
        );
        prop::collection::vec(entry, 0..5).prop_map(|entries| {
            let mut files = Files::default();
            for (path, size, modified, crc32c, bundle, incremental) in &entries {
                files.push(FileEntry {
                    path,
                    size: *size,
                    modified: *modified,
                    crc32c: Crc32c(*crc32c),
                    bundle: *bundle,
                    kind: incremental.map_or(FileKind::Whole, |(blocks, length)| {
                        FileKind::Incremental { blocks, length }
                    }),
                });
            }
            files.sort();
            files
        })
    }

    proptest! {
        #[test]
        fn a_list_comes_back(files in files(), part in 1_usize..100) {
            let list = FileList { directories: vec!["base".to_owned(), "base/5".to_owned()], files };
            let mut text = Vec::new();
            list.write(&mut text).unwrap();
            let read = read(&text, part).unwrap();
            let mut search = read.files.search_on();
            for file in list.files.iter() {
                prop_assert_eq!(read.find(file.path).unwrap().path, file.path);
                let place = search.find(file.path).unwrap();
                prop_assert_eq!(read.files.get(place).path, file.path);
            }
            prop_assert_eq!(read.find("no such file"), None);
            prop_assert_eq!(&read.directories, &list.directories);
            prop_assert_eq!(
                read.files.iter().collect::<Vec<_>>(),
                list.files.iter().collect::<Vec<_>>()
            );
        }

        #[test]
        fn files_are_found_in_whatever_order_they_are_looked_for(
            files in files(),
            others in files(),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let mut files = files;
            files.append(others);
            files.sort();
            let mut search = files.search_on();
            for index in order {
                prop_assert_eq!(search.find("no such file"), None);
                if !files.is_empty() {
                    let path = files.get(index.index(files.len())).path;
                    let place = search.find(path).unwrap();
                    prop_assert_eq!(files.get(place).path, path);
                }
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, 7);
        }
    }

    #[test]
    fn a_path_out_of_the_data_directory_is_refused() {
        for path in ["../x", "/etc/passwd", "base/../../x", "base//x", ""] {
            let line = format!("{}\n", serde_json::json!({ "directory": path }));
            assert!(read(line.as_bytes(), 100).is_err(), "{path}");
        }
    }

    #[test]
    fn a_file_takes_forty_bytes() {
        assert_eq!(size_of::<Compact>(), 40);
    }
}
