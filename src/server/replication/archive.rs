//! One tar archive of a base backup.

use super::base_backup::BaseBackup;
use crate::error::{Error, Result};
use crate::stored::compression::decompress;
use std::io::{self, BufRead, Read};

/// A tablespace as a tar archive, read as it arrives: the bytes are those that the server sent, compressed where
/// that was asked for.
///
/// An error of reading has one of pgkeep's inside, which [`Error::from_io`] takes out again.
pub struct Archive<'a> {
    backup: &'a mut BaseBackup,
    tablespace: Option<u32>,
}

impl<'a> Archive<'a> {
    pub(super) fn new(backup: &'a mut BaseBackup, tablespace: Option<u32>) -> Archive<'a> {
        Archive { backup, tablespace }
    }

    /// The OID of the tablespace; None of the data directory.
    pub fn tablespace(&self) -> Option<u32> {
        self.tablespace
    }

    /// Reads the tar archive itself, in whatever way the server compresses it. One that is cut short is an error.
    pub fn decompressed(self) -> Result<Box<dyn Read + 'a>> {
        let algorithm = self.backup.algorithm();
        decompress(algorithm, self)
            .map_err(|error| Error::from_io("decompress what the server sends", &error))
    }
}

impl Read for Archive<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let arrived = self.fill_buf()?;
        let count = arrived.len().min(buffer.len());
        buffer[..count].copy_from_slice(&arrived[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Archive<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.backup.fill().map_err(io::Error::other)
    }

    fn consume(&mut self, bytes: usize) {
        self.backup.consume(bytes);
    }
}

/// Whose archive has this name: `Some(None)` is the data directory's. Its suffix is that of the compression.
pub(super) fn tablespace_of(name: &[u8], suffix: &str) -> Option<Option<u32>> {
    let stem = str::from_utf8(name)
        .ok()?
        .strip_suffix(suffix)?
        .strip_suffix(".tar")?;
    if stem == "base" {
        return Some(None);
    }
    let oid: u32 = stem.parse().ok()?;
    // Neither zero nor any other spelling.
    (oid != 0 && oid.to_string() == stem).then_some(Some(oid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_archives_are_those_the_server_makes() {
        let of = |name: &str, suffix| tablespace_of(name.as_bytes(), suffix);
        assert_eq!(of("base.tar", ""), Some(None));
        assert_eq!(of("base.tar.zst", ".zst"), Some(None));
        assert_eq!(of("16385.tar.gz", ".gz"), Some(Some(16385)));
        assert_eq!(of("4294967295.tar", ""), Some(Some(u32::MAX)));
        let others = [
            "",
            ".tar",
            "base",
            "0.tar",
            "01.tar",
            "+1.tar",
            "-1.tar",
            "4294967296.tar",
            "../base.tar",
            "/1.tar",
            "1/2.tar",
            "base.tar.zst",
            "base.tar.gz",
            "BASE.tar",
        ];
        for name in others {
            assert_eq!(of(name, ""), None, "{name}");
        }
        assert_eq!(of("base.tar", ".zst"), None);
        assert_eq!(tablespace_of(b"\xff.tar", ""), None);
    }
}
