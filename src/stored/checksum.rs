//! The SHA-512 that `backup.sha512` keeps of every stored file.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};

use sha2::{Digest, Sha512};

/// A SHA-512 digest; its text is 128 hexadecimal digits, as `sha512sum` prints it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sha512Digest([u8; 64]);

impl fmt::Display for Sha512Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha512Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no SHA-512 digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoDigest;

impl FromStr for Sha512Digest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Sha512Digest, NoDigest> {
        if text.len() != 128 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NoDigest);
        }
        let mut digest = [0; 64];
        for (byte, digits) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| NoDigest)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| NoDigest)?;
        }
        Ok(Sha512Digest(digest))
    }
}

/// Computes a digest from bytes as they pass.
#[derive(Clone, Default)]
pub struct Sha512Hasher(Sha512);

impl Sha512Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes taken.
    pub fn finish(self) -> Sha512Digest {
        Sha512Digest(self.0.finalize().into())
    }
}

/// Computes a digest on a thread of its own, because SHA-512 takes about as long as
/// decompressing the same bytes does.
pub struct BackgroundHasher {
    bytes: SyncSender<Vec<u8>>,
    thread: JoinHandle<Sha512Digest>,
}

/// How many parts wait for the thread at most.
const WAITING_PARTS: usize = 8;

impl BackgroundHasher {
    /// Starts the thread.
    pub fn start() -> io::Result<BackgroundHasher> {
        let (bytes, parts) = mpsc::sync_channel::<Vec<u8>>(WAITING_PARTS);
        let thread = thread::Builder::new().spawn(move || {
            let mut hasher = Sha512Hasher::default();
            for part in parts {
                hasher.update(&part);
            }
            hasher.finish()
        })?;
        Ok(BackgroundHasher { bytes, thread })
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        // A thread that is gone is noticed when its digest is asked for.
        let _ = self.bytes.send(bytes.to_vec());
    }

    /// The digest of all bytes taken.
    pub fn finish(self) -> io::Result<Sha512Digest> {
        drop(self.bytes);
        self.thread
            .join()
            .map_err(|_| io::Error::other("the thread that computes SHA-512 ended early"))
    }
}

/// The digest of bytes held in memory.
pub fn sha512(bytes: &[u8]) -> Sha512Digest {
    let mut hasher = Sha512Hasher::default();
    hasher.update(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_background_computes_the_same() {
        let mut background = BackgroundHasher::start().unwrap();
        for part in [7_u8; 100_000].chunks(999) {
            background.update(part);
        }
        assert_eq!(background.finish().unwrap(), sha512(&[7; 100_000]));
    }

    #[test]
    fn a_digest_reads_as_sha512sum_prints_it() {
        let empty = sha512(b"");
        let text = empty.to_string();
        assert!(text.starts_with("cf83e1357eefb8bdf1542850d66d8007"));
        assert_eq!(text.parse::<Sha512Digest>().unwrap(), empty);
        assert!("cf83".parse::<Sha512Digest>().is_err());
        assert!("é".repeat(64).parse::<Sha512Digest>().is_err());
    }
}
