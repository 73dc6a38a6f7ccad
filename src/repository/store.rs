//! Storing the files of a backup, and keeping account of them: up to its manifest, the list of
//! files and `backup.sha512`.

use std::collections::HashSet;
use std::io;

use crate::error::{Error, Result};
use crate::parallel;
use crate::pg::history::WalRange;
use crate::pg::manifest::{BACKUP_MANIFEST_FILE, ManifestWriter};
use crate::pg::version::Major;
use crate::repository::checksums::Checksums;
use crate::repository::content_writer::ContentWriter;
use crate::repository::file_list::{Crc32c, FileEntry, FileKind, FileList, Files};
use crate::repository::layout::{self, BackupFolder, CHECKSUMS};
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
    pub files: Files,
    /// The stored files.
    pub checksums: Checksums,
    /// Bytes of the stored files.
    pub bytes: u64,
}

impl Stored {
    /// Notes a stored file.
    pub fn add(&mut self, path: &str, written: Written) {
        self.checksums.insert(path, written.sha512);
        self.bytes += written.size;
    }

    /// Takes files out again, and tells their paths; what is in a bundle stays there, and is not listed any more.
    pub fn take_out(
        &mut self,
        is_wanted: impl Fn(&FileEntry<'_>) -> bool,
        suffix: Suffix,
        folder: &BackupFolder,
    ) -> Result<Vec<String>> {
        let mut taken = Vec::new();
        let mut removed = HashSet::new();
        self.files.retain(|entry| {
            let is_wanted = is_wanted(&entry);
            if is_wanted {
                taken.push(entry.path.to_owned());
                if entry.bundle.is_none() {
                    removed.insert(layout::stored_file(&entry.stored_path(), suffix));
                }
            }
            !is_wanted
        });
        for relative in &removed {
            let stored = folder.stored(relative);
            self.bytes -= stored.size()?;
            stored.remove()?;
        }
        if !removed.is_empty() {
            self.checksums.retain(|path| !removed.contains(path));
        }
        Ok(taken)
    }

    /// Takes over what another worker stored.
    pub fn append(&mut self, other: Stored) {
        self.files.append(other.files);
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

impl Sealed {
    /// One without files.
    pub fn of_nothing() -> Sealed {
        Sealed {
            list: FileList::default(),
            bytes: 0,
            checksums: sha512(&[]),
        }
    }
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
                path,
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
    pub fn keep(&mut self, entry: FileEntry<'_>, content: &[u8]) -> Result<()> {
        self.content(&self.path_of(&entry.stored_path()), content)?;
        self.stored.files.push(entry);
        Ok(())
    }

    /// Stores any content under a path in the backup's folder.
    pub fn content(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.compressor.compress(content, &mut self.frame)?;
        let written = write_whole(self.folder.stored(path), self.coding, &self.frame)?;
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
        let failed = |error: io::Error| Error::from_io("make the manifest", &error);
        self.stored.files.sort();
        let stored = self.path_of(BACKUP_MANIFEST_FILE);
        let mut content = ContentWriter::create(self.folder, stored, self.coding)?;
        let files = self.stored.files.iter();
        parallel::piped(&mut content, |output| {
            let version = major.manifest_version();
            let mut manifest = ManifestWriter::new(output, version, system_identifier)?;
            for file in files.filter(|file| !file.is_extra() && !file.path.starts_with("pg_wal/")) {
                manifest.file(&file.stored_path(), file.size, file.modified, file.crc32c.0)?;
            }
            manifest.finish(ranges).map(drop)
        })
        .map_err(failed)?;
        let written = content.finish()?;
        self.stored.add(&written.path, written.written);
        self.stored.files.push(FileEntry {
            path: BACKUP_MANIFEST_FILE,
            size: written.size,
            modified,
            crc32c: written.crc32c,
            bundle: None,
            kind: FileKind::Whole,
        });
        Ok(())
    }

    /// Writes the list of files, and last `backup.sha512`.
    pub fn seal(mut self, directories: Vec<String>) -> Result<Sealed> {
        let Stored {
            files,
            checksums,
            bytes,
        } = &mut self.stored;
        files.sort();
        let behind = files.iter().skip(1);
        if let Some((twice, _)) = files
            .iter()
            .zip(behind)
            .find(|(one, next)| one.path == next.path)
        {
            return Err(Error::server(format!(
                "the server lists {} twice",
                twice.path
            )));
        }
        let list = FileList {
            directories,
            files: std::mem::take(files),
        };
        let stored = layout::file_list(self.coding.suffix());
        let mut content = ContentWriter::create(self.folder, stored, self.coding)?;
        parallel::piped(&mut content, |output| list.write(output))
            .map_err(|error| Error::from_io("make the list of files", &error))?;
        let written = content.finish()?;
        *bytes += written.written.size;
        checksums.insert(&written.path, written.written.sha512);
        checksums.sort();
        let plain = Coding::PLAIN;
        let mut content = ContentWriter::create(self.folder, CHECKSUMS.to_owned(), &plain)?;
        parallel::piped(&mut content, |output| checksums.write(output))
            .map_err(|error| Error::from_io("make the list of checksums", &error))?;
        let written = content.finish()?.written;
        Ok(Sealed {
            list,
            bytes: *bytes + written.size,
            checksums: written.sha512,
        })
    }
}
