//! Storing files, and keeping account of them.

use crate::error::Result;
use crate::repository::checksums::Checksums;
use crate::repository::file_list::{Crc32c, FileEntry, FileKind};
use crate::repository::layout::{self, BackupFolder};
use crate::stored::coding::Coding;
use crate::stored::compression::Compressor;
use crate::stored::writer::{Written, write_whole};

/// Everything that was stored so far.
#[derive(Default)]
pub(super) struct Stored {
    /// The files of the cluster, in no order.
    pub(super) files: Vec<FileEntry>,
    /// The stored files.
    pub(super) checksums: Checksums,
    /// Bytes of the stored files.
    pub(super) bytes: u64,
}

impl Stored {
    /// Notes a stored file.
    pub(super) fn add(&mut self, path: String, written: Written) {
        self.checksums.insert(path, written.sha512);
        self.bytes += written.size;
    }

    /// Takes over what another worker stored.
    pub(super) fn append(&mut self, other: Stored) {
        self.files.extend(other.files);
        self.checksums.append(other.checksums);
        self.bytes += other.bytes;
    }
}

/// Compresses, encrypts and stores what is in memory. One a worker.
pub(super) struct Store<'a> {
    folder: &'a BackupFolder,
    coding: &'a Coding,
    pub(super) compressor: Compressor,
    frame: Vec<u8>,
    pub(super) stored: Stored,
}

impl<'a> Store<'a> {
    pub(super) fn new(folder: &'a BackupFolder, coding: &'a Coding) -> Result<Store<'a>> {
        Ok(Store {
            folder,
            coding,
            compressor: Compressor::new(coding.compression)?,
            frame: Vec::new(),
            stored: Stored::default(),
        })
    }

    /// The path in the backup's folder of a file that is stored by itself.
    pub(super) fn path_of(&self, path: &str) -> String {
        layout::stored_file(path, self.coding.suffix())
    }

    /// Stores a file of the cluster by itself, whole.
    pub(super) fn file(&mut self, path: &str, modified: i64, content: &[u8]) -> Result<()> {
        self.keep(
            FileEntry {
                path: path.to_owned(),
                size: content.len() as u64,
                modified,
                crc32c: Crc32c(crc32c::crc32c(content)),
                bundle: None,
                kind: FileKind::Whole,
            },
            content,
        )
    }

    /// Stores what an entry describes by itself.
    pub(super) fn keep(&mut self, entry: FileEntry, content: &[u8]) -> Result<()> {
        self.content(self.path_of(&entry.stored_path()), content)?;
        self.stored.files.push(entry);
        Ok(())
    }

    /// Stores any content under a path in the backup's folder.
    pub(super) fn content(&mut self, path: String, content: &[u8]) -> Result<()> {
        self.compressor.compress(content, &mut self.frame)?;
        let written = write_whole(&self.folder.stored(&path), self.coding, &self.frame)?;
        self.stored.add(path, written);
        Ok(())
    }
}
