//! Encrypted files: their format, written and read as a stream.
//!
//! A file opens with a header of 52 bytes:
//!
//! ```text
//! offset bytes
//!      0     8  magic, the letters PGKEEPAE
//!      8     1  version of this format, 1
//!      9     1  mode: 1 CBC, 2 CTR, 3 GCM
//!     10     1  bytes of the AES key: 16, 24 or 32
//!     11     1  0
//!     12     8  fingerprint of the master key
//!     20    32  salt, random for each file
//! ```
//!
//! HKDF-SHA-256 with the master key as input, that salt, and the header's first 20 bytes as info gives 112
//! bytes that are this file's alone: 32 for the AES key, of which a shorter key takes the first ones, 64 for the
//! HMAC key, and 16 for the initialisation vector. All of the header goes into them, so nothing in it can be changed unnoticed.
//!
//! In CBC and CTR mode the header is followed by one ciphertext and the HMAC-SHA-256 of header and ciphertext:
//!
//! ```text
//!     52     n  ciphertext: in CBC mode with PKCS #7 padding, in CTR mode with a
//!               counter of 128 bits, most significant byte first
//!   52+n    32  HMAC-SHA-256 of the 52+n bytes before it
//! ```
//!
//! So `openssl` can decrypt what lies between header and HMAC. Such a file is authenticated only at its end: a reader gets
//! content before, and an error in place of the end where the HMAC does not fit.
//!
//! In GCM mode the header is followed by chunks. Each is the ciphertext of 65536 bytes, in the
//! last chunk of fewer and maybe of none, and its tag of 16 bytes. The nonce of a chunk is:
//!
//! ```text
//!      0     3  0
//!      3     8  number of the chunk, from 0, most significant byte first
//!     11     1  1 in the last chunk, 0 in all others
//! ```
//!
//! So chunks cannot be left out, repeated, swapped, or appended, and the file cannot be cut.
//!
//! Nothing binds a file to its name, so that `decrypt` needs no more than the key. In a backup it is the list of
//! files that does, which is encrypted itself: it has size and CRC-32C of the content of each, and restore and verify compare them.

mod aes;
mod chunks;
mod header;
mod mac;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, BufRead, Read};
use std::sync::Arc;

use crate::error::Result;
use crate::stored::cipher::{Cipher, Mode};
use crate::stored::master_key::MasterKey;

pub use header::Header;

/// How files are encrypted: with which cipher, and the master key.
#[derive(Debug, Clone)]
pub struct Encryption {
    /// The cipher of new files. A file that is read tells its own.
    pub cipher: Cipher,
    /// The master key.
    pub key: Arc<MasterKey>,
}

/// Turns content into an encrypted file, part by part.
pub struct Encryptor {
    layout: EncryptorLayout,
}

enum EncryptorLayout {
    WithMac(mac::Encryptor),
    InChunks(chunks::Encryptor),
}

impl Encryptor {
    /// Begins a file; its header goes to `out`.
    pub fn begin(encryption: &Encryption, out: &mut Vec<u8>) -> Result<Encryptor> {
        let header = Header::new(encryption.cipher, &encryption.key)?;
        let keys = header.derive_keys(&encryption.key)?;
        out.extend_from_slice(&header.to_bytes());
        let layout = match encryption.cipher.mode {
            Mode::Cbc => EncryptorLayout::WithMac(mac::Encryptor::cbc(&header, &keys)),
            Mode::Ctr => EncryptorLayout::WithMac(mac::Encryptor::ctr(&header, &keys)),
            Mode::Gcm => EncryptorLayout::InChunks(chunks::Encryptor::new(&keys)),
        };
        Ok(Encryptor { layout })
    }

    /// Takes the next bytes of content; what is encrypted is appended to `out`.
    pub fn push(&mut self, content: &[u8], out: &mut Vec<u8>) -> Result<()> {
        match &mut self.layout {
            EncryptorLayout::WithMac(encryptor) => {
                encryptor.push(content, out);
                Ok(())
            }
            EncryptorLayout::InChunks(encryptor) => encryptor.push(content, out),
        }
    }

    /// Ends the file; the rest is appended to `out`.
    pub fn finish(self, out: &mut Vec<u8>) -> Result<()> {
        match self.layout {
            EncryptorLayout::WithMac(encryptor) => {
                encryptor.finish(out);
                Ok(())
            }
            EncryptorLayout::InChunks(encryptor) => encryptor.finish(out),
        }
    }
}

/// The content of an encrypted file. Only one that reads to its end without an error is what was encrypted;
/// after an error it never ends, but fails again.
pub struct Decryptor<R> {
    source: R,
    layout: DecryptorLayout,
    part: Vec<u8>,
    taken: usize,
    state: State,
}

enum DecryptorLayout {
    WithMac(mac::Decryptor),
    InChunks(chunks::Decryptor),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    Ended,
    Failed,
}

/// Why an encrypted file cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    TooShort,
    Changed,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::TooShort => "the encrypted file is cut off",
            Fault::Changed => "the encrypted file was changed since it was written",
        })
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, fault.to_string())
    }
}

impl<R: Read> Decryptor<R> {
    /// Reads the header. The file must have been encrypted with this key.
    pub fn begin(mut source: R, key: &MasterKey) -> io::Result<Decryptor<R>> {
        let header = Header::read(&mut source)?;
        if header.fingerprint() != key.fingerprint() {
            let why = format!(
                "it was encrypted with the master key {}, not with {}",
                header.fingerprint(),
                key.fingerprint()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let keys = header.derive_keys(key).map_err(io::Error::other)?;
        let layout = match header.cipher().mode {
            Mode::Cbc => DecryptorLayout::WithMac(mac::Decryptor::cbc(&header, &keys)),
            Mode::Ctr => DecryptorLayout::WithMac(mac::Decryptor::ctr(&header, &keys)),
            Mode::Gcm => DecryptorLayout::InChunks(chunks::Decryptor::new(&keys)),
        };
        Ok(Decryptor {
            source,
            layout,
            part: Vec::new(),
            taken: 0,
            state: State::Reading,
        })
    }

    /// Decrypts the next part, in place of the one before.
    fn advance(&mut self) -> io::Result<()> {
        // Until it is known to be sound.
        self.state = State::Failed;
        self.part.clear();
        self.taken = 0;
        let is_last = match &mut self.layout {
            DecryptorLayout::WithMac(decryptor) => decryptor.next(&mut self.source, &mut self.part),
            DecryptorLayout::InChunks(decryptor) => {
                decryptor.next(&mut self.source, &mut self.part)
            }
        }
        .inspect_err(|_| self.part.clear())?;
        self.state = if is_last {
            State::Ended
        } else {
            State::Reading
        };
        Ok(())
    }
}

impl<R: Read> BufRead for Decryptor<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.taken == self.part.len() && self.state != State::Ended {
            if self.state == State::Failed {
                return Err(Fault::Changed.into());
            }
            self.advance()?;
        }
        Ok(&self.part[self.taken..])
    }

    fn consume(&mut self, bytes: usize) {
        self.taken = self.part.len().min(self.taken + bytes);
    }
}

impl<R: Read> Read for Decryptor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

/// Appends up to `bytes` from `source`; fewer at its end only.
fn read_up_to(source: &mut impl Read, bytes: usize, buffer: &mut Vec<u8>) -> io::Result<()> {
    source.by_ref().take(bytes as u64).read_to_end(buffer)?;
    Ok(())
}
