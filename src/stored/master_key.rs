//! The master key, from which the keys of every encrypted file are derived.
//!
//! A key file holds 32 random bytes as 64 hexadecimal digits, and a newline. A key is known by its
//! *fingerprint*: 8 bytes, shown as 16 hexadecimal digits, that are derived from it with HKDF-SHA-256 (no salt, the
//! info `pgkeep master key fingerprint`) and tell nothing about it. Every encrypted file carries the
//! fingerprint of its key. Keys that are no longer used for new files lie beside the current one, each with
//! its fingerprint as suffix: `master.key` and `master.key.0f3c6a8d21b7e954`.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use hkdf::Hkdf;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// Bytes of a master key.
const KEY_BYTES: usize = 32;

/// Bytes of a fingerprint.
pub const FINGERPRINT_BYTES: usize = 8;

const FINGERPRINT_INFO: &[u8] = b"pgkeep master key fingerprint";

/// Names a master key without telling anything about it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; FINGERPRINT_BYTES]);

impl Fingerprint {
    /// The fingerprint with these bytes.
    pub fn from_bytes(bytes: [u8; FINGERPRINT_BYTES]) -> Fingerprint {
        Fingerprint(bytes)
    }

    /// Its bytes.
    pub fn to_bytes(self) -> [u8; FINGERPRINT_BYTES] {
        self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no fingerprint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoFingerprint;

impl FromStr for Fingerprint {
    type Err = NoFingerprint;

    fn from_str(text: &str) -> std::result::Result<Fingerprint, NoFingerprint> {
        let mut bytes = [0; FINGERPRINT_BYTES];
        if read_hexadecimal(text.as_bytes(), &mut bytes) {
            Ok(Fingerprint(bytes))
        } else {
            Err(NoFingerprint)
        }
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Fingerprint, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|NoFingerprint| {
            serde::de::Error::custom(format!("{text:?} is no fingerprint of a key"))
        })
    }
}

/// A master key; overwritten when dropped, shown as its fingerprint alone.
pub struct MasterKey {
    // Boxed, so that moving the key leaves no copy behind.
    secret: Box<Zeroizing<[u8; KEY_BYTES]>>,
    fingerprint: Fingerprint,
}

impl MasterKey {
    /// A new random key.
    pub fn generate() -> Result<MasterKey> {
        let mut secret = Box::new(Zeroizing::new([0; KEY_BYTES]));
        fill_random(secret.as_mut_slice())?;
        MasterKey::new(secret)
    }

    fn new(secret: Box<Zeroizing<[u8; KEY_BYTES]>>) -> Result<MasterKey> {
        let mut fingerprint = [0; FINGERPRINT_BYTES];
        expand(&secret[..], None, FINGERPRINT_INFO, &mut fingerprint)?;
        Ok(MasterKey {
            secret,
            fingerprint: Fingerprint(fingerprint),
        })
    }

    /// Reads a key file. It must be the user's own, and nobody else's to read.
    pub fn read(path: &Path) -> Result<MasterKey> {
        let file = File::open(path).map_err(|error| Error::io("open", path, &error))?;
        check_private(path, &file)?;
        let mut text = Zeroizing::new(Vec::with_capacity(READ_BYTES));
        file.take(READ_BYTES as u64)
            .read_to_end(&mut text)
            .map_err(|error| Error::io("read", path, &error))?;
        let mut secret = Box::new(Zeroizing::new([0; KEY_BYTES]));
        if !read_hexadecimal(text.trim_ascii_end(), secret.as_mut_slice()) {
            return Err(Error::usage(format!(
                "{} holds no master key: that is {} hexadecimal digits",
                path.display(),
                2 * KEY_BYTES
            ))
            .hint(
                "correct master_key in the configuration, or create a key with pgkeep master-key",
            ));
        }
        MasterKey::new(secret)
    }

    /// What a key file holds.
    pub fn text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(READ_BYTES));
        for byte in self.secret.iter() {
            for digit in [byte >> 4, byte & 15] {
                text.extend(char::from_digit(digit.into(), 16));
            }
        }
        text.push('\n');
        text
    }

    /// Names it.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Derives secret bytes for one purpose by HKDF-SHA-256, up to 8160 of them.
    pub(super) fn derive(&self, salt: &[u8], info: &[u8], derived: &mut [u8]) -> Result<()> {
        expand(&self.secret[..], Some(salt), info, derived)
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.fingerprint)
    }
}

/// Read of a key file at most: more than its digits, so that a longer one is noticed.
const READ_BYTES: usize = 4 * KEY_BYTES;

fn expand(secret: &[u8], salt: Option<&[u8]>, info: &[u8], derived: &mut [u8]) -> Result<()> {
    Hkdf::<Sha256>::new(salt, secret)
        .expand(info, derived)
        .map_err(|error| Error::failed(format!("cannot derive a key: {error}")))
}

/// Fills a buffer from the kernel's random generator.
pub(super) fn fill_random(mut bytes: &mut [u8]) -> Result<()> {
    while !bytes.is_empty() {
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(&mut *bytes, flags) {
            Ok(filled) => bytes = &mut bytes[filled..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                return Err(Error::failed(format!(
                    "cannot get random bytes from the system: {error}"
                )));
            }
        }
    }
    Ok(())
}

/// Reads exactly as many bytes as `bytes` has; false if the text is not that.
fn read_hexadecimal(text: &[u8], bytes: &mut [u8]) -> bool {
    let digit = |character: u8| char::from(character).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = text.as_chunks::<2>();
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return false;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        match (digit(*high), digit(*low)) {
            (Some(high), Some(low)) => *byte = high << 4 | low,
            _ => return false,
        }
    }
    true
}

/// As ssh does with its keys: a key that others can read is none.
fn check_private(path: &Path, file: &File) -> Result<()> {
    let metadata = file
        .metadata()
        .map_err(|error| Error::io("look at", path, &error))?;
    let refused = |why: String| Error::usage(format!("the key file {} {why}", path.display()));
    if !metadata.is_file() {
        return Err(refused("is no plain file".to_owned()));
    }
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user {
        return Err(refused(format!(
            "belongs to user {}, and pgkeep runs as user {user}",
            metadata.uid()
        ))
        .hint("run pgkeep as the owner of the key, or give the key to this user"));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(refused(format!(
            "is open to others than its owner: its mode is {mode:04o}"
        ))
        .hint(format!("chmod 0600 {}", path.display())));
    }
    Ok(())
}

/// The current master key and those before it, as files.
#[derive(Debug, Clone)]
pub struct Keyring {
    path: Option<PathBuf>,
}

impl Keyring {
    /// The keys at this path: the current one, and beside it earlier ones. `None` where nothing says
    /// where they would be, which is an error only once a key is needed.
    pub fn new(path: Option<PathBuf>) -> Keyring {
        Keyring { path }
    }

    /// The file of the current key.
    pub fn path(&self) -> Result<&Path> {
        self.path.as_deref().ok_or_else(|| {
            Error::usage("there is no place for the master key: neither master_key nor HOME is set")
                .hint("set master_key in the configuration")
        })
    }

    /// The file of an earlier key.
    pub fn path_of(&self, fingerprint: Fingerprint) -> Result<PathBuf> {
        let current = self.path()?;
        Ok(current.with_added_extension(fingerprint.to_string()))
    }

    /// The key that new files are encrypted with.
    pub fn current(&self) -> Result<Arc<MasterKey>> {
        let path = self.path()?;
        let key = read_if_there(path)?.ok_or_else(|| {
            Error::usage(format!(
                "there is no master key: {} does not exist",
                path.display()
            ))
            .hint("create one with pgkeep master-key, or set master_key in the configuration")
        })?;
        Ok(Arc::new(key))
    }

    /// The key with this fingerprint, be it the current one or an earlier one.
    pub fn find(&self, fingerprint: Fingerprint) -> Result<Arc<MasterKey>> {
        let current = self.path()?;
        let beside = self.path_of(fingerprint)?;
        for path in [current, &beside] {
            if let Some(key) = read_if_there(path)?
                && key.fingerprint == fingerprint
            {
                return Ok(Arc::new(key));
            }
        }
        Err(Error::failed(format!(
            "the master key {fingerprint} is needed, and neither {} nor {} is it",
            current.display(),
            beside.display()
        ))
        .hint(format!(
            "put that key's file at {}, owned by this user and with mode 0600",
            beside.display()
        )))
    }
}

fn read_if_there(path: &Path) -> Result<Option<MasterKey>> {
    match path.try_exists() {
        Ok(false) => Ok(None),
        Ok(true) => MasterKey::read(path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
        Err(error) => Err(Error::io("look at", path, &error)),
    }
}
