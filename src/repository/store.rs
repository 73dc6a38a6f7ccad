//! Storing the files of a backup, and keeping account of them: up to its manifest, the list of
//! files and `backup.sha512`.

use std::fs;

use crate::error::{Error, Result};
use crate::pg::history::WalRange;
use crate::pg::manifest::{BACKUP_MANIFEST_FILE, ManifestWriter};
use crate::pg::version::Major;
use crate::repository::checksums::Checksums;
use crate::repository::file_list::{Crc32c, FileEntry, FileKind, FileList};
use crate::repository::layout::{self, BackupFolder};
use crate::stored::checksum::{Sha512Digest, sha512};
use crate::stored::coding::{Coding, Suffix};
use crate::stored::compression::Compressor;
use crate::stored::writer::{Written, write_whole};

/// Bytes of plain content that are compressed at a time.
/// Large enough for a codec to find what repeats, small enough for many workers' memory.
pub const SLICE_BYTES: u64 = 2 << 20;

/// Files up to here go into bundles, where files are compressed or encrypted.
pub const BUNDLED_BYTES: u64 = 128 << 10;

/// Everything that was stored so far.
#[derive(Default)]
pub struct Stored {
    /// The files of the cluster, in no order.
    pub files: Vec<FileEntry>,
    /// The stored files.
    pub checksums: Checksums,
    /// Bytes of the stored files.
    pub bytes: u64,
}

impl Stored {
    /// Notes a stored file.
    pub fn add(&mut self, path: String, written: Written) {
        self.checksums.insert(path, written.sha512);
        self.bytes += written.size;
    }

    /// Takes files out again, by their places; what is in a bundle stays there, and is not listed any more.
    pub fn take_out(
        &mut self,
        mut places: Vec<usize>,
        suffix: Suffix,
        folder: &BackupFolder,
    ) -> Result<Vec<FileEntry>> {
        places.sort_unstable();
        let mut taken = Vec::with_capacity(places.len());
        for place in places.into_iter().rev() {
            let entry = self.files.swap_remove(place);
            if entry.bundle.is_none() {
                let relative = layout::stored_file(&entry.stored_path(), suffix);
                let path = folder.stored(&relative);
                let size = fs::metadata(&path).map(|metadata| metadata.len());
                let removed = size.and_then(|size| fs::remove_file(&path).map(|()| size));
                self.bytes -= removed.map_err(|error| Error::io("remove", &path, &error))?;
                self.checksums.remove(&relative);
            }
            taken.push(entry);
        }
        Ok(taken)
    }

    /// Takes over what another worker stored.
    pub fn append(&mut self, other: Stored) {
        self.files.extend(other.files);
        self.checksums.append(other.checksums);
        self.bytes += other.bytes;
    }
}

/// Compresses, encrypts and stores what is in memory. One a worker.
pub struct Store<'a> {
    folder: &'a BackupFolder,
    coding: &'a Coding,
    /// Compresses as the coding says.
    pub compressor: Compressor,
    frame: Vec<u8>,
    /// The account.
    pub stored: Stored,
}

/// A backup whose files are all stored, and listed.
pub struct Sealed {
    /// The files of the cluster.
    pub list: FileList,
    /// Bytes of all stored files.
    pub bytes: u64,
    /// Of `backup.sha512`.
    pub checksums: Sha512Digest,
}

impl<'a> Store<'a> {
    /// Stores into a backup's folder.
    pub fn new(folder: &'a BackupFolder, coding: &'a Coding) -> Result<Store<'a>> {
        Ok(Store {
            folder,
            coding,
            compressor: Compressor::new(coding.compression)?,
            frame: Vec::new(),
            stored: Stored::default(),
        })
    }

    /// The path in the backup's folder of a file that is stored by itself.
    pub fn path_of(&self, path: &str) -> String {
        layout::stored_file(path, self.coding.suffix())
    }

    /// Stores a file of the cluster by itself, whole.
    pub fn file(&mut self, path: &str, modified: i64, content: &[u8]) -> Result<()> {
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
    pub fn keep(&mut self, entry: FileEntry, content: &[u8]) -> Result<()> {
        self.content(self.path_of(&entry.stored_path()), content)?;
        self.stored.files.push(entry);
        Ok(())
    }

    /// Stores any content under a path in the backup's folder.
    pub fn content(&mut self, path: String, content: &[u8]) -> Result<()> {
        self.compressor.compress(content, &mut self.frame)?;
        let written = write_whole(&self.folder.stored(&path), self.coding, &self.frame)?;
        self.stored.add(path, written);
        Ok(())
    }

    /// Stores `backup_manifest` over the plain content of all files so far. Neither WAL nor further files are in it.
    pub fn manifest(
        &mut self,
        modified: i64,
        major: Major,
        system_identifier: u64,
        ranges: &[WalRange],
    ) -> Result<()> {
        let failed =
            |error: std::io::Error| Error::failed(format!("cannot make the manifest: {error}"));
        self.sort();
        let version = major.manifest_version();
        let mut manifest =
            ManifestWriter::new(Vec::new(), version, system_identifier).map_err(failed)?;
        let files = self.stored.files.iter();
        for file in files.filter(|file| !file.is_extra() && !file.path.starts_with("pg_wal/")) {
            manifest
                .file(&file.stored_path(), file.size, file.modified, file.crc32c.0)
                .map_err(failed)?;
        }
        let manifest = manifest.finish(ranges).map_err(failed)?;
        self.file(BACKUP_MANIFEST_FILE, modified, &manifest)
    }

    /// Writes the list of files, and last `backup.sha512`.
    pub fn seal(mut self, directories: Vec<String>) -> Result<Sealed> {
        self.sort();
        let mut neighbours = self.stored.files.windows(2);
        if let Some(twice) = neighbours.find(|pair| pair[0].path == pair[1].path) {
            return Err(Error::server(format!(
                "the server lists {} twice",
                twice[0].path
            )));
        }
        let list = FileList {
            directories,
            files: std::mem::take(&mut self.stored.files),
        };
        let mut text = Vec::new();
        list.write(&mut text)
            .map_err(|error| Error::failed(format!("cannot make the list of files: {error}")))?;
        self.content(layout::file_list(self.coding.suffix()), &text)?;
        let checksums = self.stored.checksums.format();
        write_whole(
            &self.folder.checksums(),
            &Coding::PLAIN,
            checksums.as_bytes(),
        )?;
        Ok(Sealed {
            list,
            bytes: self.stored.bytes + checksums.len() as u64,
            checksums: sha512(checksums.as_bytes()),
        })
    }

    fn sort(&mut self) {
        self.stored
            .files
            .sort_by(|one, other| one.path.cmp(&other.path));
    }
}
