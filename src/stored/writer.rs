//! Writing a stored file, hashed as it passes.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::stored::checksum::{Sha512Digest, Sha512Hasher};

/// Bytes that are written and hashed at a time: what stays in a core's cache.
const WRITE_BYTES: usize = 256 * 1024;

/// What came of writing a stored file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes on disk.
    pub size: u64,
    /// The SHA-512 of these bytes.
    pub sha512: Sha512Digest,
}

/// A stored file being written, mode 0600. Not synced: whoever publishes it does that.
pub struct StoredWriter {
    path: PathBuf,
    file: File,
    size: u64,
    hasher: Sha512Hasher,
}

impl StoredWriter {
    /// Creates the file; it must not exist.
    pub fn create(path: &Path) -> Result<StoredWriter> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| Error::io("create", path, &error))?;
        Ok(StoredWriter {
            path: path.to_owned(),
            file,
            size: 0,
            hasher: Sha512Hasher::default(),
        })
    }

    /// Appends bytes as they shall lie on disk.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        for part in bytes.chunks(WRITE_BYTES) {
            self.file
                .write_all(part)
                .map_err(|error| Error::io("write", &self.path, &error))?;
            self.hasher.update(part);
        }
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Ends the file.
    pub fn finish(self) -> Written {
        Written {
            size: self.size,
            sha512: self.hasher.finish(),
        }
    }
}

/// Writes a whole stored file from memory.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<Written> {
    let mut writer = StoredWriter::create(path)?;
    writer.append(bytes)?;
    Ok(writer.finish())
}
