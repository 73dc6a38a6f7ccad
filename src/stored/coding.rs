//! How stored files are coded: compressed, then encrypted.

use std::fmt;

use crate::error::Result;
use crate::storage::Place;
use crate::stored::compression::{Algorithm, Compression};
use crate::stored::encryption::{Encryption, Header};
use crate::stored::master_key::Keyring;

/// What is done to content on its way to disk, and undone on the way back.
#[derive(Debug, Clone, Default)]
pub struct Coding {
    /// The compression. Its level matters to writers alone.
    pub compression: Compression,
    /// The encryption; `None` where files are stored in clear.
    pub encryption: Option<Encryption>,
}

impl Coding {
    /// Content as it is.
    pub const PLAIN: Coding = Coding {
        compression: Compression::NONE,
        encryption: None,
    };

    /// How a stored file is read, by what its name ends in, and by the header of an encrypted one.
    pub fn of_file(place: impl Into<Place>, keys: &Keyring) -> Result<Coding> {
        let place = place.into();
        let name = place.name();
        let (_, suffix) = Suffix::split(&name);
        let encryption = if suffix.is_encrypted {
            let header = Header::of_file(&place)?;
            let key = keys
                .find(header.fingerprint())
                .map_err(|error| error.context(format!("{place} is encrypted")))?;
            Some(Encryption {
                cipher: header.cipher(),
                key,
            })
        } else {
            None
        };
        Ok(Coding {
            compression: Compression::of(suffix.algorithm),
            encryption,
        })
    }

    /// What the names of such files end in.
    pub fn suffix(&self) -> Suffix {
        Suffix {
            algorithm: self.compression.algorithm,
            is_encrypted: self.encryption.is_some(),
        }
    }
}

/// What a stored file's name ends in: `.zstd.aes`. It tells what was done to the content, but not with which key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suffix {
    /// The compression.
    pub algorithm: Algorithm,
    /// Whether it was encrypted after that.
    pub is_encrypted: bool,
}

/// What the name of an encrypted file ends in.
pub const ENCRYPTED_SUFFIX: &str = ".aes";

impl Suffix {
    /// No suffix: content as it is.
    pub const PLAIN: Suffix = Suffix {
        algorithm: Algorithm::None,
        is_encrypted: false,
    };

    /// Every suffix that there is.
    pub fn all() -> impl Iterator<Item = Suffix> {
        let of = |algorithm| {
            [false, true].map(|is_encrypted| Suffix {
                algorithm,
                is_encrypted,
            })
        };
        Algorithm::ALL.into_iter().flat_map(of)
    }

    /// Whether content is stored as it is.
    pub fn is_plain(self) -> bool {
        self == Suffix::PLAIN
    }

    /// Splits a stored file's name into the name of its content and the suffix.
    pub fn split(name: &str) -> (&str, Suffix) {
        let (compressed, is_encrypted) = match name.strip_suffix(ENCRYPTED_SUFFIX) {
            Some(compressed) => (compressed, true),
            None => (name, false),
        };
        let (plain, algorithm) = Algorithm::split_suffix(compressed);
        let suffix = Suffix {
            algorithm,
            is_encrypted,
        };
        (plain, suffix)
    }
}

impl fmt::Display for Suffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm.suffix())?;
        f.write_str(if self.is_encrypted {
            ENCRYPTED_SUFFIX
        } else {
            ""
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_what_was_done_to_the_content() {
        for algorithm in Algorithm::ALL {
            for is_encrypted in [false, true] {
                let suffix = Suffix {
                    algorithm,
                    is_encrypted,
                };
                let name = format!("00000001000000000000004F.partial{suffix}");
                let split = Suffix::split(&name);
                assert_eq!(split, ("00000001000000000000004F.partial", suffix));
            }
        }
        assert!(Suffix::split("PG_VERSION").1.is_plain());
    }
}
