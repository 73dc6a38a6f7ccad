//! CBC and CTR mode: one ciphertext, and an HMAC over all of the file.

use std::io::{self, Read};

use aes::cipher::{
    Array, BlockModeDecrypt, BlockModeEncrypt, InnerIvInit, KeyInit, StreamCipher, consts::U16,
};
use ctr::{Ctr128BE, CtrCore};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::aes::{Aes, BLOCK_BYTES};
use super::header::{FileKeys, Header};
use super::{Fault, read_up_to};

const MAC_BYTES: usize = 32;

/// Bytes decrypted at a time; whole blocks.
const PART_BYTES: usize = 64 << 10;

/// A part is decrypted while at least so many bytes follow it: the HMAC, and before it the block with the padding.
const HELD_BYTES: usize = BLOCK_BYTES + MAC_BYTES;

/// Encrypts, then authenticates.
pub(super) struct Encryptor {
    mode: Encrypting,
    mac: Hmac<Sha256>,
}

enum Encrypting {
    Cbc {
        cipher: Box<cbc::Encryptor<Aes>>,
        /// Less than a block.
        pending: Vec<u8>,
    },
    Ctr(Box<Ctr128BE<Aes>>),
}

impl Encryptor {
    pub(super) fn cbc(header: &Header, keys: &FileKeys) -> Encryptor {
        let cipher = cbc::Encryptor::inner_iv_init(keys.aes(), keys.initialisation_vector());
        let mode = Encrypting::Cbc {
            cipher: Box::new(cipher),
            pending: Vec::with_capacity(BLOCK_BYTES),
        };
        Encryptor {
            mode,
            mac: begin_mac(header, keys),
        }
    }

    pub(super) fn ctr(header: &Header, keys: &FileKeys) -> Encryptor {
        Encryptor {
            mode: Encrypting::Ctr(Box::new(counter(keys))),
            mac: begin_mac(header, keys),
        }
    }

    pub(super) fn push(&mut self, content: &[u8], out: &mut Vec<u8>) {
        let begin = out.len();
        match &mut self.mode {
            Encrypting::Cbc { cipher, pending } => {
                let complete = (pending.len() + content.len()) / BLOCK_BYTES * BLOCK_BYTES;
                if complete == 0 {
                    pending.extend_from_slice(content);
                    return;
                }
                let (blocks, rest) = content.split_at(complete - pending.len());
                out.append(pending);
                out.extend_from_slice(blocks);
                pending.extend_from_slice(rest);
                let (blocks, _) = Array::<u8, U16>::slice_as_chunks_mut(&mut out[begin..]);
                cipher.encrypt_blocks(blocks);
            }
            Encrypting::Ctr(cipher) => {
                out.extend_from_slice(content);
                cipher.apply_keystream(&mut out[begin..]);
            }
        }
        self.mac.update(&out[begin..]);
    }

    pub(super) fn finish(mut self, out: &mut Vec<u8>) {
        if let Encrypting::Cbc { pending, .. } = &self.mode {
            let missing = BLOCK_BYTES - pending.len();
            self.push(&[missing as u8; BLOCK_BYTES][..missing], out);
        }
        out.extend_from_slice(&self.mac.finalize().into_bytes());
    }
}

/// Decrypts, and authenticates at the end.
pub(super) struct Decryptor {
    mode: Decrypting,
    mac: Hmac<Sha256>,
    ahead: Vec<u8>,
}

enum Decrypting {
    Cbc(Box<cbc::Decryptor<Aes>>),
    Ctr(Box<Ctr128BE<Aes>>),
}

impl Decryptor {
    pub(super) fn cbc(header: &Header, keys: &FileKeys) -> Decryptor {
        let cipher = cbc::Decryptor::inner_iv_init(keys.aes(), keys.initialisation_vector());
        Decryptor::new(Decrypting::Cbc(Box::new(cipher)), header, keys)
    }

    pub(super) fn ctr(header: &Header, keys: &FileKeys) -> Decryptor {
        Decryptor::new(Decrypting::Ctr(Box::new(counter(keys))), header, keys)
    }

    fn new(mode: Decrypting, header: &Header, keys: &FileKeys) -> Decryptor {
        Decryptor {
            mode,
            mac: begin_mac(header, keys),
            ahead: Vec::with_capacity(PART_BYTES + HELD_BYTES),
        }
    }

    /// Puts the next part into `part`; true where it is the last, and all was authentic.
    pub(super) fn next(&mut self, source: &mut impl Read, part: &mut Vec<u8>) -> io::Result<bool> {
        let wanted = PART_BYTES + HELD_BYTES;
        read_up_to(source, wanted - self.ahead.len(), &mut self.ahead)?;
        if self.ahead.len() == wanted {
            part.extend_from_slice(&self.ahead[..PART_BYTES]);
            self.ahead.copy_within(PART_BYTES.., 0);
            self.ahead.truncate(HELD_BYTES);
            self.mac.update(part);
            self.decrypt(part);
            return Ok(false);
        }
        let (rest, mac) = self
            .ahead
            .split_last_chunk::<MAC_BYTES>()
            .ok_or(Fault::TooShort)?;
        self.mac.update(rest);
        let computed = self.mac.clone();
        computed.verify(&Array(*mac)).map_err(|_| Fault::Changed)?;
        part.extend_from_slice(rest);
        self.decrypt(part);
        if let Decrypting::Cbc(_) = self.mode {
            remove_padding(part)?;
        }
        Ok(true)
    }

    fn decrypt(&mut self, bytes: &mut [u8]) {
        match &mut self.mode {
            Decrypting::Cbc(cipher) => {
                let (blocks, _) = Array::<u8, U16>::slice_as_chunks_mut(bytes);
                cipher.decrypt_blocks(blocks);
            }
            Decrypting::Ctr(cipher) => cipher.apply_keystream(bytes),
        }
    }
}

fn counter(keys: &FileKeys) -> Ctr128BE<Aes> {
    let vector = keys.initialisation_vector();
    Ctr128BE::from_core(CtrCore::inner_iv_init(keys.aes(), vector))
}

fn begin_mac(header: &Header, keys: &FileKeys) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new(keys.mac_key());
    mac.update(&header.to_bytes());
    mac
}

/// PKCS #7: each byte of the padding is their number. It was authentic, so that whoever wrote the file
/// wrote this.
fn remove_padding(content: &mut Vec<u8>) -> Result<(), Fault> {
    let padding = usize::from(*content.last().ok_or(Fault::TooShort)?);
    if !(1..=BLOCK_BYTES).contains(&padding) || !content.len().is_multiple_of(BLOCK_BYTES) {
        return Err(Fault::Changed);
    }
    content.truncate(content.len() - padding);
    Ok(())
}
