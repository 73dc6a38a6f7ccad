//! GCM mode: chunks that are authentic one by one, each bound to its place.

use std::io::{self, Read};

use aes::cipher::consts::U12;
use aes_gcm::aead::AeadInOut;
use aes_gcm::{AesGcm, Nonce, Tag};

use super::aes::Aes;
use super::header::FileKeys;
use super::{Fault, read_up_to};
use crate::error::{Error, Result};

/// Bytes of content in a chunk that is not the last.
const CHUNK_BYTES: usize = 64 << 10;

const TAG_BYTES: usize = 16;

/// The cipher, and the number of the next chunk.
struct Chunks {
    cipher: Box<AesGcm<Aes, U12>>,
    next: u64,
}

impl Chunks {
    fn new(keys: &FileKeys) -> Chunks {
        Chunks {
            cipher: Box::new(AesGcm::from(keys.aes())),
            next: 0,
        }
    }

    fn nonce(&mut self, is_last: bool) -> Nonce<U12> {
        let mut nonce = Nonce::default();
        nonce[3..11].copy_from_slice(&self.next.to_be_bytes());
        nonce[11] = u8::from(is_last);
        self.next += 1;
        nonce
    }

    /// Encrypts in place what `out` holds from `begin` on, and appends the tag.
    fn seal(&mut self, is_last: bool, begin: usize, out: &mut Vec<u8>) -> Result<()> {
        let nonce = self.nonce(is_last);
        let chunk = (&mut out[begin..]).into();
        let tag = self
            .cipher
            .encrypt_inout_detached(&nonce, b"", chunk)
            .map_err(|_| Error::failed("AES-GCM cannot encrypt so much at once"))?;
        out.extend_from_slice(&tag);
        Ok(())
    }

    /// Decrypts a chunk with its tag in place, and takes the tag off.
    fn open(&mut self, is_last: bool, chunk: &mut Vec<u8>) -> std::result::Result<(), Fault> {
        let nonce = self.nonce(is_last);
        let (_, tag) = chunk
            .split_last_chunk::<TAG_BYTES>()
            .ok_or(Fault::TooShort)?;
        let tag = Tag::from(*tag);
        chunk.truncate(chunk.len() - TAG_BYTES);
        self.cipher
            .decrypt_inout_detached(&nonce, b"", chunk.as_mut_slice().into(), &tag)
            .map_err(|_| Fault::Changed)
    }
}

/// Encrypts chunk by chunk.
pub(super) struct Encryptor {
    chunks: Chunks,
    /// Less than a chunk.
    pending: Vec<u8>,
}

impl Encryptor {
    pub(super) fn new(keys: &FileKeys) -> Encryptor {
        Encryptor {
            chunks: Chunks::new(keys),
            pending: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, mut content: &[u8], out: &mut Vec<u8>) -> Result<()> {
        while let Some((rest, after)) = content.split_at_checked(CHUNK_BYTES - self.pending.len()) {
            let begin = out.len();
            out.append(&mut self.pending);
            out.extend_from_slice(rest);
            self.chunks.seal(false, begin, out)?;
            content = after;
        }
        self.pending.extend_from_slice(content);
        Ok(())
    }

    pub(super) fn finish(mut self, out: &mut Vec<u8>) -> Result<()> {
        let begin = out.len();
        out.append(&mut self.pending);
        self.chunks.seal(true, begin, out)
    }
}

/// Decrypts chunk by chunk.
pub(super) struct Decryptor {
    chunks: Chunks,
}

impl Decryptor {
    pub(super) fn new(keys: &FileKeys) -> Decryptor {
        Decryptor {
            chunks: Chunks::new(keys),
        }
    }

    /// Puts the next chunk's content into `part`; true where it is the last.
    pub(super) fn next(&mut self, source: &mut impl Read, part: &mut Vec<u8>) -> io::Result<bool> {
        let whole = CHUNK_BYTES + TAG_BYTES;
        read_up_to(source, whole, part)?;
        let is_last = part.len() < whole;
        self.chunks.open(is_last, part)?;
        Ok(is_last)
    }
}
