//! Reading a stored file back: its plain content, and its SHA-512 where asked for.

use std::io::{self, Read};

use crate::error::{Error, Result};
use crate::storage::{Memory, Place, Source};
use crate::stored::checksum::{BackgroundHasher, Sha512Digest, Sha512Hasher};
use crate::stored::coding::Coding;
use crate::stored::compression::decompress;
use crate::stored::encryption::Decryptor;

/// Bytes read from disk at a time.
const READ_BYTES: usize = 256 * 1024;

/// From here on a thread of its own hashes a file.
const LARGE_FILE_BYTES: u64 = 4 << 20;

/// The plain content of a stored file.
pub struct StoredReader {
    place: Place,
    plain: Box<dyn Read>,
}

impl StoredReader {
    /// Opens a stored file of this coding.
    pub fn open(place: impl Into<Place>, coding: &Coding) -> Result<StoredReader> {
        let place = place.into();
        StoredReader::of(place.open()?, place, coding)
    }

    /// The same of a file that is held in memory, and shall lie in a folder.
    pub fn of_memory(folder: &Place, content: &Memory, coding: &Coding) -> Result<StoredReader> {
        StoredReader::of(Source::of_memory(content), folder.clone(), coding)
    }

    fn of(source: Source, place: Place, coding: &Coding) -> Result<StoredReader> {
        let plain = decode(source, coding).map_err(|error| undecodable(&place, &error))?;
        Ok(StoredReader { place, plain })
    }

    /// Fills `buffer` as far as the content goes; returns the bytes filled,
    /// fewer than asked for at the content's end only.
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        fill(&mut self.plain, buffer).map_err(|error| undecodable(&self.place, &error))
    }

    /// Passes over bytes of the content, as far as it goes.
    pub fn skip(&mut self, bytes: u64) -> Result<()> {
        io::copy(&mut self.plain.by_ref().take(bytes), &mut io::sink())
            .map(|_| ())
            .map_err(|error| undecodable(&self.place, &error))
    }

    /// Reads the rest of the content into memory.
    pub fn read_to_end(&mut self, content: &mut Vec<u8>) -> Result<()> {
        self.plain
            .read_to_end(content)
            .map(|_| ())
            .map_err(|error| undecodable(&self.place, &error))
    }
}

/// Reads a whole stored file's plain content into memory.
pub fn read_whole(place: impl Into<Place>, coding: &Coding) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    StoredReader::open(place, coding)?.read_to_end(&mut content)?;
    Ok(content)
}

/// Hashes a stored file while its plain content goes to `consume` in parts of
/// up to `part` bytes; every byte on disk is read once. An `Err` inside tells why the bytes cannot be
/// decrypted or decompressed; the digest is that of the whole file all the same.
pub fn read_hashed(
    place: &Place,
    coding: &Coding,
    part: &mut [u8],
    mut consume: impl FnMut(&[u8]),
) -> Result<(Sha512Digest, std::result::Result<(), String>)> {
    let unreadable = |error: io::Error| Error::stored("read", place, &error);
    let source = place.open()?;
    let is_large = source.size() > LARGE_FILE_BYTES;
    let mut hashed = HashedRead {
        source,
        hasher: if is_large {
            Hasher::Background(BackgroundHasher::start().map_err(unreadable)?)
        } else {
            Hasher::Here(Sha512Hasher::default())
        },
        failure: None,
    };
    let decoded = read_parts(&mut hashed, coding, part, &mut consume);
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

/// The content of a stored file: undoes what was done to it. Only what is read to its end without an error is
/// what was stored.
pub fn decode<'a>(stored: impl Read + 'a, coding: &Coding) -> io::Result<Box<dyn Read + 'a>> {
    let algorithm = coding.compression.algorithm;
    let buffered = io::BufReader::with_capacity(READ_BYTES, stored);
    match &coding.encryption {
        None => decompress(algorithm, buffered),
        Some(encryption) => decompress(algorithm, Decryptor::begin(buffered, &encryption.key)?),
    }
}

fn read_parts(
    hashed: &mut HashedRead,
    coding: &Coding,
    part: &mut [u8],
    consume: &mut impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut plain = decode(hashed, coding)?;
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
/// apart from bytes that cannot be decoded.
struct HashedRead {
    source: Source,
    hasher: Hasher,
    failure: Option<io::Error>,
}

impl Read for HashedRead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.source.read(buffer) {
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

fn undecodable(place: &Place, error: &io::Error) -> Error {
    if error.raw_os_error().is_some() || Error::inside(error).is_some() {
        return Error::stored("read", place, error);
    }
    Error::damage(format!("{place} cannot be decoded: {error}"))
        .hint("run pgkeep verify on this backup, and restore another one")
}
