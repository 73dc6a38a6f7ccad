//! The header of an encrypted file, and the keys that follow from it.

use std::io::{self, Read};

use aes::cipher::Array;
use aes::cipher::consts::{U16, U32, U64, U96, U112};
use zeroize::Zeroizing;

use super::aes::Aes;
use crate::error::{Error, Result};
use crate::storage::Place;
use crate::stored::cipher::{Cipher, KeySize};
use crate::stored::master_key::{FINGERPRINT_BYTES, Fingerprint, MasterKey, fill_random};

const MAGIC: &[u8; 8] = b"PGKEEPAE";
const VERSION: u8 = 1;
const SALT_BYTES: usize = 32;
const INFO_BYTES: usize = 12 + FINGERPRINT_BYTES;

/// Bytes of the header.
pub(super) const HEADER_BYTES: usize = INFO_BYTES + SALT_BYTES;

/// What opens an encrypted file; the layout is in the module above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    cipher: Cipher,
    fingerprint: Fingerprint,
    salt: [u8; SALT_BYTES],
}

/// The keys of one file.
pub(super) struct FileKeys {
    key_size: KeySize,
    bytes: Zeroizing<Array<u8, U112>>,
}

impl Header {
    /// A header with a salt of its own.
    pub(super) fn new(cipher: Cipher, key: &MasterKey) -> Result<Header> {
        let mut salt = [0; SALT_BYTES];
        fill_random(&mut salt)?;
        Ok(Header {
            cipher,
            fingerprint: key.fingerprint(),
            salt,
        })
    }

    /// Reads the header of a file.
    pub fn read(source: &mut impl Read) -> io::Result<Header> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let mut bytes = [0; HEADER_BYTES];
        source.read_exact(&mut bytes).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                invalid("it is too short for a file that pgkeep encrypted".to_owned())
            } else {
                error
            }
        })?;
        let (info, salt) = bytes.split_at(INFO_BYTES);
        let (fixed, fingerprint) = info.split_at(INFO_BYTES - FINGERPRINT_BYTES);
        let [magic @ .., version, mode, key_bytes, reserved] = fixed else {
            return Err(invalid("it is too short".to_owned()));
        };
        if magic != MAGIC {
            return Err(invalid("it is no file that pgkeep encrypted".to_owned()));
        }
        if *version != VERSION {
            return Err(invalid(format!(
                "it is encrypted in format {version}, and this pgkeep knows format {VERSION}"
            )));
        }
        let cipher = Cipher::from_numbers(*mode, *key_bytes).filter(|_| *reserved == 0);
        let (Some(cipher), Ok(fingerprint), Ok(salt)) =
            (cipher, fingerprint.try_into(), salt.try_into())
        else {
            return Err(invalid("its header was changed".to_owned()));
        };
        Ok(Header {
            cipher,
            fingerprint: Fingerprint::from_bytes(fingerprint),
            salt,
        })
    }

    /// Reads the header of a stored file.
    pub fn of_file(place: &Place) -> Result<Header> {
        let header = place.start(HEADER_BYTES)?;
        Header::read(&mut header.as_slice()).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => {
                Error::damage(format!("{place} cannot be decrypted: {error}"))
            }
            _ => Error::at("read", place, &error),
        })
    }

    /// The cipher.
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// The master key that is needed.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let (info, salt) = bytes.split_at_mut(INFO_BYTES);
        info.copy_from_slice(&self.info());
        salt.copy_from_slice(&self.salt);
        bytes
    }

    fn info(&self) -> [u8; INFO_BYTES] {
        let mut info = [0; INFO_BYTES];
        let (fixed, fingerprint) = info.split_at_mut(INFO_BYTES - FINGERPRINT_BYTES);
        let (magic, numbers) = fixed.split_at_mut(MAGIC.len());
        magic.copy_from_slice(MAGIC);
        numbers.copy_from_slice(&[
            VERSION,
            self.cipher.mode.number(),
            self.cipher.key_size.bytes(),
            0,
        ]);
        fingerprint.copy_from_slice(&self.fingerprint.to_bytes());
        info
    }

    pub(super) fn derive_keys(&self, key: &MasterKey) -> Result<FileKeys> {
        let mut bytes = Zeroizing::new(Array::default());
        key.derive(&self.salt, &self.info(), &mut bytes)?;
        Ok(FileKeys {
            key_size: self.cipher.key_size,
            bytes,
        })
    }
}

impl FileKeys {
    /// The cipher.
    pub(super) fn aes(&self) -> Aes {
        let (key, _) = self.bytes.split_ref::<U32>();
        Aes::new(self.key_size, key)
    }

    /// The key of the HMAC.
    pub(super) fn mac_key(&self) -> &Array<u8, U64> {
        let (_, rest) = self.bytes.split_ref::<U32>();
        rest.split_ref().0
    }

    /// The initialisation vector, which is the first value of a counter.
    pub(super) fn initialisation_vector(&self) -> &Array<u8, U16> {
        let (_, vector) = self.bytes.split_ref::<U96>();
        vector
    }
}
