//! The ciphers that stored files may be encrypted with: AES with three sizes of key in three modes.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A cipher, as `encryption` names it: `aes-256-cbc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cipher {
    /// The size of its key.
    pub key_size: KeySize,
    /// Its mode of operation.
    pub mode: Mode,
}

/// The size of an AES key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySize {
    /// 128 bits.
    Aes128,
    /// 192 bits.
    Aes192,
    /// 256 bits.
    Aes256,
}

/// A mode of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Cipher block chaining.
    Cbc,
    /// Counter mode.
    Ctr,
    /// Galois/counter mode.
    Gcm,
}

impl KeySize {
    const ALL: [KeySize; 3] = [KeySize::Aes256, KeySize::Aes192, KeySize::Aes128];

    /// Bytes of a key.
    pub fn bytes(self) -> u8 {
        match self {
            KeySize::Aes128 => 16,
            KeySize::Aes192 => 24,
            KeySize::Aes256 => 32,
        }
    }
}

impl Mode {
    const ALL: [Mode; 3] = [Mode::Cbc, Mode::Ctr, Mode::Gcm];

    /// The mode's number in the header of an encrypted file.
    pub fn number(self) -> u8 {
        match self {
            Mode::Cbc => 1,
            Mode::Ctr => 2,
            Mode::Gcm => 3,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Mode::Cbc => "cbc",
            Mode::Ctr => "ctr",
            Mode::Gcm => "gcm",
        }
    }
}

/// What is taken where something shall be encrypted and nothing says how.
impl Default for Cipher {
    fn default() -> Cipher {
        Cipher {
            key_size: KeySize::Aes256,
            mode: Mode::Gcm,
        }
    }
}

impl Cipher {
    /// What `encryption` may be, for messages.
    pub const ALLOWED: &'static str =
        "none, or aes-KEY-MODE with a key of 256, 192 or 128 bits and the mode cbc, ctr or gcm";

    /// Every cipher there is.
    pub fn all() -> impl Iterator<Item = Cipher> {
        let of_size = |key_size| Mode::ALL.map(|mode| Cipher { key_size, mode });
        KeySize::ALL.into_iter().flat_map(of_size)
    }

    /// Reads a cipher's name; where pgmoneta 0.20 leaves out key or mode, it
    /// means 256 bits and CBC.
    pub fn parse(text: &str) -> Option<Cipher> {
        let name = match text.to_ascii_lowercase() {
            name if name == "aes" => "aes-256-cbc".to_owned(),
            name if name.matches('-').count() == 1 => format!("{name}-cbc"),
            name => name,
        };
        Cipher::all().find(|cipher| cipher.to_string() == name)
    }

    /// The cipher that a header's two bytes mean.
    pub fn from_numbers(mode: u8, key_bytes: u8) -> Option<Cipher> {
        Cipher::all()
            .find(|cipher| cipher.mode.number() == mode && cipher.key_size.bytes() == key_bytes)
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = u32::from(self.key_size.bytes()) * 8;
        write!(f, "aes-{bits}-{}", self.mode.name())
    }
}

impl Serialize for Cipher {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cipher {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Cipher, D::Error> {
        let name = String::deserialize(deserializer)?;
        Cipher::parse(&name)
            .ok_or_else(|| serde::de::Error::custom(format!("{name:?} is no cipher")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cipher_is_read_as_it_is_shown() {
        assert_eq!(Cipher::all().count(), 9);
        for key in ["256", "192", "128"] {
            for mode in ["cbc", "ctr", "gcm"] {
                let name = format!("aes-{key}-{mode}");
                let cipher = Cipher::parse(&name);
                assert_eq!(cipher.map(|cipher| cipher.to_string()), Some(name));
                let numbers = cipher.map(|cipher| (cipher.mode.number(), cipher.key_size.bytes()));
                let read = numbers.and_then(|(mode, key)| Cipher::from_numbers(mode, key));
                assert_eq!(read, cipher);
            }
        }
    }

    #[test]
    fn short_names_mean_cbc() {
        for (short, long) in [
            ("AES", "aes-256-cbc"),
            ("aes-256", "aes-256-cbc"),
            ("aes-192", "aes-192-cbc"),
            ("aes-128", "aes-128-cbc"),
        ] {
            assert_eq!(Cipher::parse(short), Cipher::parse(long), "{short}");
        }
        for wrong in ["", "aes-512", "aes-", "none", "aes-256-ecb", "-"] {
            assert_eq!(Cipher::parse(wrong), None, "{wrong}");
        }
    }
}
