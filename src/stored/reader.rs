//! Reading a stored file back: its plain content, and its SHA-512 where asked for.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::stored::checksum::{BackgroundHasher, Sha512Digest, Sha512Hasher};
use crate::stored::compression::{Algorithm, decompress};

/// Bytes read from disk at a time.
const READ_BYTES: usize = 256 * 1024;

/// From here on a thread of its own hashes a file.
const LARGE_FILE_BYTES: u64 = 4 << 20;

/// The plain content of a stored file.
pub struct StoredReader {
    path: PathBuf,
    plain: Box<dyn Read>,
}

impl StoredReader {
    /// Opens a stored file of this compression.
    pub fn open(path: &Path, algorithm: Algorithm) -> Result<StoredReader> {
        let file = File::open(path).map_err(|error| Error::io("open", path, &error))?;
        let buffered = io::BufReader::with_capacity(READ_BYTES, file);
        let plain = decompress(algorithm, buffered).map_err(|error| undecodable(path, &error))?;
        Ok(StoredReader {
            path: path.to_owned(),
            plain,
        })
    }

    /// Fills `buffer` as far as the content goes; returns the bytes filled,
    /// fewer than asked for at the content's end only.
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        fill(&mut self.plain, buffer).map_err(|error| undecodable(&self.path, &error))
    }

    /// Reads the rest of the content into memory.
    pub fn read_to_end(&mut self, content: &mut Vec<u8>) -> Result<()> {
        self.plain
            .read_to_end(content)
            .map(|_| ())
            .map_err(|error| undecodable(&self.path, &error))
    }
}

/// Reads a whole stored file's plain content into memory.
pub fn read_whole(path: &Path, algorithm: Algorithm) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    StoredReader::open(path, algorithm)?.read_to_end(&mut content)?;
    Ok(content)
}

/// Hashes a stored file while its plain content goes to `consume` in parts of
/// up to `part` bytes; every byte on disk is read once. An `Err` inside tells that the bytes do not
/// decompress; the digest is that of the whole file all the same.
pub fn read_hashed(
    path: &Path,
    algorithm: Algorithm,
    part: &mut [u8],
    mut consume: impl FnMut(&[u8]),
) -> Result<(Sha512Digest, std::result::Result<(), String>)> {
    let unreadable = |error: io::Error| Error::io("read", path, &error);
    let file = File::open(path).map_err(|error| Error::io("open", path, &error))?;
    let is_large = file.metadata().map_err(unreadable)?.len() > LARGE_FILE_BYTES;
    let mut hashed = HashedRead {
        file,
        hasher: if is_large {
            Hasher::Background(BackgroundHasher::start().map_err(unreadable)?)
        } else {
            Hasher::Here(Sha512Hasher::default())
        },
        failure: None,
    };
    let decoded = decode(&mut hashed, algorithm, part, &mut consume);
    let drained = io::copy(&mut hashed, &mut io::sink());
    if let Some(failure) = hashed.failure {
        return Err(unreadable(failure));
    }
    drained.map_err(unreadable)?;
    let digest = match hashed.hasher {
        Hasher::Here(hasher) => hasher.finish(),
        Hasher::Background(hasher) => hasher.finish().map_err(unreadable)?,
    };
    Ok((digest, decoded.map_err(|error| error.to_string())))
}

fn decode(
    hashed: &mut HashedRead,
    algorithm: Algorithm,
    part: &mut [u8],
    consume: &mut impl FnMut(&[u8]),
) -> io::Result<()> {
    let buffered = io::BufReader::with_capacity(READ_BYTES, hashed);
    let mut plain = decompress(algorithm, buffered)?;
    loop {
        let filled = fill(&mut plain, part)?;
        if filled == 0 {
            return Ok(());
        }
        consume(&part[..filled]);
    }
}

enum Hasher {
    Here(Sha512Hasher),
    Background(BackgroundHasher),
}

/// A file whose bytes are hashed as they are read. A failing disk is kept
/// apart from bytes that do not decompress.
struct HashedRead {
    file: File,
    hasher: Hasher,
    failure: Option<io::Error>,
}

impl Read for HashedRead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.file.read(buffer) {
            Ok(read) => {
                match &mut self.hasher {
                    Hasher::Here(hasher) => hasher.update(&buffer[..read]),
                    Hasher::Background(hasher) => hasher.update(&buffer[..read]),
                }
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.failure = Some(error);
                Err(kind.into())
            }
        }
    }
}

fn fill(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn undecodable(path: &Path, error: &io::Error) -> Error {
    Error::damage(format!(
        "{} cannot be decompressed: {error}",
        path.display()
    ))
    .hint("run pgkeep verify on this backup, and restore another one")
}
