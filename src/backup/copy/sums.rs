//! Whether what arrives in a stream is what the server sent.
//!
//! TCP's own checksums let damage pass now and then, and so do some of what lies between two machines. The server's manifest
//! has the CRC-32C of every file, over what it read and sent.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};

use crate::backup::plan::PlannedFiles;
use crate::error::{Error, Result};
use crate::pg::manifest::{Checksum, Manifest, ManifestFile};

/// A file as it comes, and its sum.
pub(super) struct Summed<R> {
    content: R,
    sum: Sum,
}

/// The length and the CRC-32C of a file.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum {
    size: u64,
    crc32c: u32,
}

impl<R: Read> Summed<R> {
    pub(super) fn new(content: R) -> Summed<R> {
        Summed {
            content,
            sum: Sum::default(),
        }
    }

    /// The sum of the whole file, of which some may not have been read.
    pub(super) fn end(mut self) -> io::Result<Sum> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(self.sum)
    }
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.content.read(buffer)?;
        self.sum.size += bytes as u64;
        self.sum.crc32c = crc32c::crc32c_append(self.sum.crc32c, &buffer[..bytes]);
        Ok(bytes)
    }
}

/// The sums of what has arrived of a plan's files, each hashed together with the file's path: 8 bytes a file.
pub(super) struct Sums {
    /// By the files' places in the plan; 0 of one that has not arrived.
    of_files: Vec<u64>,
}

impl Sums {
    /// Nothing of so many files has arrived; others may come.
    pub(super) fn new(files: usize) -> Sums {
        Sums {
            of_files: vec![0; files],
        }
    }

    pub(super) fn add(&mut self, file: usize, path: &str, sum: Sum) {
        if file >= self.of_files.len() {
            self.of_files.resize(file + 1, 0);
        }
        self.of_files[file] = hashed(path, sum);
    }

    /// Whether a file has arrived.
    pub(super) fn have(&self, file: usize) -> bool {
        self.of_files.get(file).is_some_and(|hash| *hash != 0)
    }

    /// An error where a file is not as the manifest has it.
    pub(super) fn compare(&self, manifest: impl Read, files: &PlannedFiles) -> Result<()> {
        let manifest = Manifest::<Hashes>::collect(manifest)?;
        let mut sent = manifest.files.0;
        sent.sort_unstable();
        let mut arrived = (0..).zip(&self.of_files);
        let other = arrived.find(|(_, hash)| **hash != 0 && sent.binary_search(hash).is_err());
        match other {
            None => Ok(()),
            Some((file, _)) => {
                let path = files.get(file).path;
                Err(on_the_way(&format!("{path} is not as its checksum says")))
            }
        }
    }
}

/// What a manifest says of each file.
#[derive(Default)]
struct Hashes(Vec<u64>);

impl Extend<ManifestFile> for Hashes {
    fn extend<I: IntoIterator<Item = ManifestFile>>(&mut self, files: I) {
        let hashes = files.into_iter().filter_map(|file| match file.checksum {
            Checksum::Crc32c(crc32c) => Some(hashed(
                &file.path,
                Sum {
                    size: file.size,
                    crc32c,
                },
            )),
            Checksum::None | Checksum::Sha(..) => None,
        });
        self.0.extend(hashes);
    }
}

/// Never 0.
fn hashed(path: &str, sum: Sum) -> u64 {
    let mut hasher = DefaultHasher::new();
    (path, sum.size, sum.crc32c).hash(&mut hasher);
    hasher.finish() | 1
}

/// The error of a stream that cannot be read.
pub(in crate::backup) fn arrived_damaged(error: io::Error) -> Error {
    Error::inside(&error)
        .cloned()
        .unwrap_or_else(|| on_the_way(&error.to_string()))
}

fn on_the_way(fault: &str) -> Error {
    Error::server(format!("what the server sent arrived damaged: {fault}"))
        .hint("something on the way from the server changes bytes: connect by TLS (sslmode=require), which notices, or set source = sql; then start the backup again")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn manifest(crc32c: u32) -> Hashes {
        let mut hashes = Hashes::default();
        hashes.extend([ManifestFile {
            path: "base/5/1".to_owned(),
            size: 9,
            modified_unix_seconds: 0,
            checksum: Checksum::Crc32c(crc32c),
        }]);
        hashes
    }

    #[test]
    fn a_sum_is_of_all_there_is_of_a_file() {
        let mut summed = Summed::new(&b"123456789"[..]);
        summed.read_exact(&mut [0; 4]).unwrap();
        let sum = summed.end().unwrap();
        // The check value of CRC-32C.
        assert_eq!(manifest(0xE306_9283).0, [hashed("base/5/1", sum)]);
        assert_ne!(manifest(0xE306_9282).0, [hashed("base/5/1", sum)]);
        assert_ne!(manifest(0xE306_9283).0, [hashed("base/5/2", sum)]);
    }
}
