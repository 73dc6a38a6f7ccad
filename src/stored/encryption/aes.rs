//! AES with a key of any size.

use aes::cipher::{
    Array, BlockCipherDecClosure, BlockCipherDecrypt, BlockCipherEncClosure, BlockCipherEncrypt,
    BlockSizeUser, KeyInit, consts::U16, consts::U32,
};
use aes::{Aes128, Aes192, Aes256};

use crate::stored::cipher::KeySize;

/// Bytes that AES encrypts at a time.
pub(super) const BLOCK_BYTES: usize = 16;

/// AES with its key.
#[derive(Clone)]
pub(super) enum Aes {
    Aes128(Aes128),
    Aes192(Aes192),
    Aes256(Aes256),
}

impl Aes {
    /// Takes as much of the key as is wanted.
    pub(super) fn new(key_size: KeySize, key: &Array<u8, U32>) -> Aes {
        match key_size {
            KeySize::Aes128 => Aes::Aes128(Aes128::new(key.split_ref().0)),
            KeySize::Aes192 => Aes::Aes192(Aes192::new(key.split_ref().0)),
            KeySize::Aes256 => Aes::Aes256(Aes256::new(key)),
        }
    }
}

impl BlockSizeUser for Aes {
    type BlockSize = U16;
}

impl BlockCipherEncrypt for Aes {
    fn encrypt_with_backend(&self, work: impl BlockCipherEncClosure<BlockSize = U16>) {
        match self {
            Aes::Aes128(cipher) => cipher.encrypt_with_backend(work),
            Aes::Aes192(cipher) => cipher.encrypt_with_backend(work),
            Aes::Aes256(cipher) => cipher.encrypt_with_backend(work),
        }
    }
}

impl BlockCipherDecrypt for Aes {
    fn decrypt_with_backend(&self, work: impl BlockCipherDecClosure<BlockSize = U16>) {
        match self {
            Aes::Aes128(cipher) => cipher.decrypt_with_backend(work),
            Aes::Aes192(cipher) => cipher.decrypt_with_backend(work),
            Aes::Aes256(cipher) => cipher.decrypt_with_backend(work),
        }
    }
}
