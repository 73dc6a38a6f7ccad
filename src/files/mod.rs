//! Encrypting, decrypting, compressing and decompressing a file in place.
//!
//! What is done to a file is told by its name: `F` becomes `F.aes` or `F.zstd`, and back. The new file is
//! written beside the old one, gets its name once it is whole and on disk, and only then the old one goes. So at any
//! moment, be it kill -9 or a crash of the machine, the old file is there or the new one, or both, and each of
//! them whole.

pub(crate) mod incoming;
mod original;

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::storage::durable;
use crate::stored::coding::{Coding, Suffix};
use crate::stored::compression::{Algorithm, Compression, Compressor};
use crate::stored::encryption::{Encryption, Encryptor};
use crate::stored::master_key::Keyring;
use crate::stored::reader::decode;

use incoming::Incoming;
use original::Original;

/// Bytes of content that become one compressed frame.
const SLICE_BYTES: usize = 4 << 20;

/// A file that another one took the place of.
#[derive(Debug)]
pub struct Converted {
    /// The new file.
    pub path: PathBuf,
    /// Its bytes.
    pub size: u64,
    /// Bytes of the file that is gone.
    pub original_size: u64,
}

/// Replaces `F` by `F.aes`.
pub fn encrypt(
    path: &Path,
    encryption: &Encryption,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Converted> {
    if suffix(path).is_encrypted {
        return Err(unfit(path, "is encrypted already, by its name"));
    }
    let to = Coding {
        encryption: Some(encryption.clone()),
        ..Coding::PLAIN
    };
    let target = with_suffix(path, to.suffix());
    convert(path, &Coding::PLAIN, &target, &to, progress, interrupt)
}

/// Replaces `F.aes` by `F`, with the master key that it was encrypted with. Returns how it was encrypted, too.
pub fn decrypt(
    path: &Path,
    keys: &Keyring,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<(Converted, Encryption)> {
    if !suffix(path).is_encrypted {
        return Err(unfit(path, "does not end in .aes, as encrypted files do"));
    }
    let target = without_suffix(path)?;
    original::check_kind(path)?;
    let from = Coding::of_file(path, keys)?;
    let Some(encryption) = from.encryption.clone() else {
        return Err(unfit(path, "is not encrypted"));
    };
    let from = Coding {
        compression: Compression::NONE,
        ..from
    };
    let converted = convert(path, &from, &target, &Coding::PLAIN, progress, interrupt)?;
    Ok((converted, encryption))
}

/// Replaces `F` by `F.zstd`, or what the algorithm's suffix is.
pub fn compress(
    path: &Path,
    compression: Compression,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Converted> {
    if compression.algorithm == Algorithm::None {
        return Err(Error::usage("compression = none is configured")
            .hint("set compression = zstd, or another one, in the configuration"));
    }
    match suffix(path) {
        Suffix::PLAIN => {}
        Suffix {
            is_encrypted: true, ..
        } => {
            return Err(unfit(
                path,
                "is encrypted, by its name, which leaves nothing to compress",
            )
            .hint("decrypt it first, compress it, and encrypt it again"));
        }
        _ => return Err(unfit(path, "is compressed already, by its name")),
    }
    let to = Coding {
        compression,
        encryption: None,
    };
    let target = with_suffix(path, to.suffix());
    convert(path, &Coding::PLAIN, &target, &to, progress, interrupt)
}

/// Replaces `F.zstd`, or what another algorithm's suffix is, by `F`.
pub fn decompress(
    path: &Path,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<(Converted, Algorithm)> {
    let suffix = suffix(path);
    if suffix.is_encrypted {
        return Err(unfit(path, "is encrypted, by its name").hint("decrypt it first"));
    }
    if suffix.is_plain() {
        return Err(unfit(
            path,
            "ends in none of .zstd, .gz, .lz4 and .bz2, as compressed files do",
        ));
    }
    let from = Coding {
        compression: Compression::of(suffix.algorithm),
        encryption: None,
    };
    let target = without_suffix(path)?;
    let converted = convert(path, &from, &target, &Coding::PLAIN, progress, interrupt)?;
    Ok((converted, suffix.algorithm))
}

fn suffix(path: &Path) -> Suffix {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Suffix::split(&name).1
}

fn with_suffix(path: &Path, suffix: Suffix) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(suffix.to_string());
    name.into()
}

fn without_suffix(path: &Path) -> Result<PathBuf> {
    match path.extension() {
        Some(_) => Ok(path.with_extension("")),
        None => Err(unfit(path, "would be left without a name")),
    }
}

fn unfit(path: &Path, why: &str) -> Error {
    Error::usage(format!("{} {why}", path.display()))
}

fn convert(
    path: &Path,
    from: &Coding,
    target: &Path,
    to: &Coding,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Converted> {
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|error| Error::io("find the file", path, &error))
    };
    let (path, target) = (absolute(path)?, absolute(target)?);
    let original = Original::open(&path)?;
    progress.step("convert", Some(original.size()));
    let mut incoming = Incoming::create(&target)?;
    write(&original, from, &mut incoming, to, progress, interrupt)?;
    interrupt.check()?;
    original.check_unchanged()?;
    incoming.resemble(&original)?;
    let size = incoming.publish()?;
    original.remove()?;
    durable::sync_parent(&path)?;
    Ok(Converted {
        path: target,
        size,
        original_size: original.size(),
    })
}

/// Writes the content of a file, coded in one way, in another one.
fn write(
    original: &Original,
    from: &Coding,
    incoming: &mut Incoming,
    to: &Coding,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<()> {
    let mut out = Vec::new();
    let mut encryptor = match &to.encryption {
        Some(encryption) => Some(Encryptor::begin(encryption, &mut out)?),
        None => None,
    };
    let mut compressor = Compressor::new(to.compression)?;
    let (mut slice, mut frame) = (Vec::with_capacity(SLICE_BYTES), Vec::new());
    let counted = original.reader(progress);
    let mut content = decode(counted, from).map_err(|error| original.unreadable(&error))?;
    let mut is_first = true;
    loop {
        interrupt.check()?;
        slice.clear();
        let mut part = content.by_ref().take(SLICE_BYTES as u64);
        part.read_to_end(&mut slice)
            .map_err(|error| original.unreadable(&error))?;
        // Even of nothing there is one frame.
        if slice.is_empty() && !is_first {
            break;
        }
        is_first = false;
        compressor.compress(&slice, &mut frame)?;
        match &mut encryptor {
            None => incoming.append(&frame)?,
            Some(encryptor) => {
                encryptor.push(&frame, &mut out)?;
                incoming.append(&out)?;
                out.clear();
            }
        }
    }
    if let Some(encryptor) = encryptor {
        encryptor.finish(&mut out)?;
        incoming.append(&out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
