//! Writing a stored file, encrypted where asked for, and hashed as it passes.

use std::io::Write;

use crate::error::{Error, Result};
use crate::storage::{Memory, Place, Sink};
use crate::stored::checksum::{Sha512Digest, Sha512Hasher};
use crate::stored::coding::Coding;
use crate::stored::encryption::Encryptor;

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

/// A stored file being written, mode 0600. Where it is one of this machine it is not synced: whoever publishes it does that.
pub struct StoredWriter {
    place: Place,
    sink: Sink,
    size: u64,
    hasher: Sha512Hasher,
    encryptor: Option<Encryptor>,
    /// What is encrypted and not yet written.
    encrypted: Vec<u8>,
}

impl StoredWriter {
    /// Creates the file; it must not exist.
    pub fn create(place: impl Into<Place>, coding: &Coding) -> Result<StoredWriter> {
        let place = place.into();
        StoredWriter::to(place.create_new()?, place, coding)
    }

    /// The same of a file that is held in memory, and shall lie in a folder.
    pub fn to_memory(folder: &Place, content: &Memory, coding: &Coding) -> Result<StoredWriter> {
        StoredWriter::to(Sink::to_memory(content), folder.clone(), coding)
    }

    fn to(sink: Sink, place: Place, coding: &Coding) -> Result<StoredWriter> {
        let mut encrypted = Vec::new();
        let encryptor = match &coding.encryption {
            Some(encryption) => Some(Encryptor::begin(encryption, &mut encrypted)?),
            None => None,
        };
        Ok(StoredWriter {
            place,
            sink,
            size: 0,
            hasher: Sha512Hasher::default(),
            encryptor,
            encrypted,
        })
    }

    /// Appends content that is compressed already.
    pub fn append(&mut self, frame: &[u8]) -> Result<()> {
        for part in frame.chunks(WRITE_BYTES) {
            match &mut self.encryptor {
                None => self.write(part)?,
                Some(encryptor) => {
                    encryptor.push(part, &mut self.encrypted)?;
                    self.write_encrypted()?;
                }
            }
        }
        Ok(())
    }

    /// Ends the file.
    pub fn finish(mut self) -> Result<Written> {
        if let Some(encryptor) = self.encryptor.take() {
            encryptor.finish(&mut self.encrypted)?;
            self.write_encrypted()?;
        }
        self.sink.finish()?;
        Ok(Written {
            size: self.size,
            sha512: self.hasher.finish(),
        })
    }

    fn write_encrypted(&mut self) -> Result<()> {
        let mut encrypted = std::mem::take(&mut self.encrypted);
        self.write(&encrypted)?;
        encrypted.clear();
        self.encrypted = encrypted;
        Ok(())
    }

    /// Writes bytes as they shall lie on disk.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.sink
            .write_all(bytes)
            .map_err(|error| Error::at("write", &self.place, &error))?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }
}

/// Writes a whole stored file from memory; its content is compressed already.
pub fn write_whole(place: impl Into<Place>, coding: &Coding, frame: &[u8]) -> Result<Written> {
    let mut writer = StoredWriter::create(place, coding)?;
    writer.append(frame)?;
    writer.finish()
}
