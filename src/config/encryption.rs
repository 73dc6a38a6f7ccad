//! How stored files are encrypted.

use std::fmt;

/// A cipher, the size of its key and its mode of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encryption {
    /// Files are stored in clear.
    #[default]
    None,
    /// AES-256 in CBC mode.
    Aes256Cbc,
    /// AES-192 in CBC mode.
    Aes192Cbc,
    /// AES-128 in CBC mode.
    Aes128Cbc,
    /// AES-256 in CTR mode.
    Aes256Ctr,
    /// AES-192 in CTR mode.
    Aes192Ctr,
    /// AES-128 in CTR mode.
    Aes128Ctr,
    /// AES-256 in GCM mode.
    Aes256Gcm,
    /// AES-192 in GCM mode.
    Aes192Gcm,
    /// AES-128 in GCM mode.
    Aes128Gcm,
}

impl Encryption {
    /// What `encryption` may be, for messages.
    pub(super) const ALLOWED: &'static str =
        "none, or aes-KEY-MODE with a key of 256, 192 or 128 bits and the mode cbc, ctr or gcm";

    /// Reads a value of `encryption`; where pgmoneta 0.20 leaves out key or
    /// mode, it means 256 bits and CBC.
    pub(super) fn parse(text: &str) -> Option<Encryption> {
        match text.to_ascii_lowercase().as_str() {
            "none" | "off" => Some(Encryption::None),
            "aes" | "aes-256" | "aes-256-cbc" => Some(Encryption::Aes256Cbc),
            "aes-192" | "aes-192-cbc" => Some(Encryption::Aes192Cbc),
            "aes-128" | "aes-128-cbc" => Some(Encryption::Aes128Cbc),
            "aes-256-ctr" => Some(Encryption::Aes256Ctr),
            "aes-192-ctr" => Some(Encryption::Aes192Ctr),
            "aes-128-ctr" => Some(Encryption::Aes128Ctr),
            "aes-256-gcm" => Some(Encryption::Aes256Gcm),
            "aes-192-gcm" => Some(Encryption::Aes192Gcm),
            "aes-128-gcm" => Some(Encryption::Aes128Gcm),
            _ => None,
        }
    }
}

impl fmt::Display for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Encryption::None => "none",
            Encryption::Aes256Cbc => "aes-256-cbc",
            Encryption::Aes192Cbc => "aes-192-cbc",
            Encryption::Aes128Cbc => "aes-128-cbc",
            Encryption::Aes256Ctr => "aes-256-ctr",
            Encryption::Aes192Ctr => "aes-192-ctr",
            Encryption::Aes128Ctr => "aes-128-ctr",
            Encryption::Aes256Gcm => "aes-256-gcm",
            Encryption::Aes192Gcm => "aes-192-gcm",
            Encryption::Aes128Gcm => "aes-128-gcm",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_is_read_as_it_is_shown() {
        for key in ["256", "192", "128"] {
            for mode in ["cbc", "ctr", "gcm"] {
                let name = format!("aes-{key}-{mode}");
                let shown = Encryption::parse(&name).map(|encryption| encryption.to_string());
                assert_eq!(shown, Some(name));
            }
        }
        assert_eq!(Encryption::parse("none"), Some(Encryption::None));
    }

    #[test]
    fn short_names_mean_cbc() {
        assert_eq!(Encryption::parse("AES"), Some(Encryption::Aes256Cbc));
        assert_eq!(Encryption::parse("aes-256"), Some(Encryption::Aes256Cbc));
        assert_eq!(Encryption::parse("aes-192"), Some(Encryption::Aes192Cbc));
        assert_eq!(Encryption::parse("aes-128"), Some(Encryption::Aes128Cbc));
        assert_eq!(Encryption::parse("aes-512"), None);
    }
}
