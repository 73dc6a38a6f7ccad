//! The four commands that put a file in the place of another.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::app::App;
use crate::cli::report::{Answer, Fields, Value, field};
use crate::error::Result;
use crate::files::{self, Converted};
use crate::stored::encryption::Encryption;

/// Encrypt a file in place: FILE becomes FILE.aes
///
/// With the cipher that encryption in the configuration names, or aes-256-gcm, and the master
/// key. FILE is removed once FILE.aes is on disk.
#[derive(Debug, Args)]
pub(crate) struct Encrypt {
    /// The file to encrypt
    file: PathBuf,
}

/// Decrypt a file in place: FILE.aes becomes FILE
///
/// With the master key that the file names, the current one or an earlier one beside it. A file that
/// was damaged or cut is left as it is.
#[derive(Debug, Args)]
pub(crate) struct Decrypt {
    /// The file to decrypt, whose name ends in .aes
    file: PathBuf,
}

/// Compress a file in place: FILE becomes FILE.zstd
///
/// As compression and compression_level in the configuration say. FILE is removed once the new file is on disk.
#[derive(Debug, Args)]
pub(crate) struct Compress {
    /// The file to compress
    file: PathBuf,
}

/// Decompress a file in place: FILE.zstd becomes FILE
///
/// The name tells the compression: .zstd, .gz, .lz4 or .bz2.
#[derive(Debug, Args)]
pub(crate) struct Decompress {
    /// The file to decompress
    file: PathBuf,
}

impl Encrypt {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        vec![asked(&self.file)]
    }

    /// Encrypts it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let encryption = Encryption {
            cipher: app.configuration.encryption().unwrap_or_default(),
            key: app.keys().current()?,
        };
        let converted = files::encrypt(&self.file, &encryption, &*app.progress, &app.interrupt)?;
        let mut response = described(&converted);
        response.extend(encrypted_with(&encryption));
        Ok(Answer::success(response))
    }
}

impl Decrypt {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        vec![asked(&self.file)]
    }

    /// Decrypts it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let keys = app.keys();
        let (converted, encryption) =
            files::decrypt(&self.file, &keys, &*app.progress, &app.interrupt)?;
        let mut response = described(&converted);
        response.extend(encrypted_with(&encryption));
        Ok(Answer::success(response))
    }
}

impl Compress {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        vec![asked(&self.file)]
    }

    /// Compresses it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let compression = app.configuration.compression()?;
        let converted = files::compress(&self.file, compression, &*app.progress, &app.interrupt)?;
        let mut response = described(&converted);
        response.push(field("Compression", compression.algorithm.to_string()));
        Ok(Answer::success(response))
    }
}

impl Decompress {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        vec![asked(&self.file)]
    }

    /// Decompresses it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let (converted, algorithm) = files::decompress(&self.file, &*app.progress, &app.interrupt)?;
        let mut response = described(&converted);
        response.push(field("Compression", algorithm.to_string()));
        Ok(Answer::success(response))
    }
}

fn asked(file: &Path) -> (String, Value) {
    field("File", file.display().to_string())
}

fn described(converted: &Converted) -> Fields {
    vec![
        field("File", converted.path.display().to_string()),
        field("Size", Value::Size(converted.size)),
        field("OriginalSize", Value::Size(converted.original_size)),
    ]
}

fn encrypted_with(encryption: &Encryption) -> Fields {
    vec![
        field("Encryption", encryption.cipher.to_string()),
        field("MasterKey", encryption.key.fingerprint().to_string()),
    ]
}
