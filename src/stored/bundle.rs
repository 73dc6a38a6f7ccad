//! Bundles: many small files in one stored tar.
//!
//! Written one by one, the 80 000 files of 20 000 tables cost more than their
//! content. A bundle is a plain tar with the paths of PGDATA, small enough to be
//! held in memory, compressed as one slice.

use std::fmt;
use std::io::{self, Cursor};

use crate::error::{Error, Result};

/// A bundle being filled, in memory.
pub struct BundleBuilder {
    tar: tar::Builder<Vec<u8>>,
}

impl BundleBuilder {
    /// An empty bundle that reuses `buffer`'s memory.
    pub fn new(mut buffer: Vec<u8>) -> BundleBuilder {
        buffer.clear();
        BundleBuilder {
            tar: tar::Builder::new(buffer),
        }
    }

    /// Adds a file. `modified` is in seconds since 1970.
    pub fn add(&mut self, path: &str, modified: i64, content: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(modified).unwrap_or(0));
        self.tar
            .append_data(&mut header, path, content)
            .map_err(|error| Error::failed(format!("cannot put {path} into a bundle: {error}")))
    }

    /// The finished tar.
    pub fn finish(self) -> Result<Vec<u8>> {
        self.tar
            .into_inner()
            .map_err(|error| Error::failed(format!("cannot finish a bundle: {error}")))
    }
}

/// Calls `visit` with the path and content of each file of a bundle's tar.
/// `bundle` is where it lies, for messages.
pub fn visit_members(
    bundle: &dyn fmt::Display,
    tar: &[u8],
    mut visit: impl FnMut(&str, &[u8]) -> Result<()>,
) -> Result<()> {
    let damaged =
        |error: &io::Error| Error::damage(format!("{bundle} is no readable tar: {error}"));
    let mut archive = tar::Archive::new(Cursor::new(tar));
    let entries = archive
        .entries_with_seek()
        .map_err(|error| damaged(&error))?;
    for entry in entries {
        let entry = entry.map_err(|error| damaged(&error))?;
        let path = entry.path().map_err(|error| damaged(&error))?;
        let begin = entry.raw_file_position() as usize;
        let content = begin
            .checked_add(entry.size() as usize)
            .and_then(|end| tar.get(begin..end))
            .ok_or_else(|| damaged(&io::ErrorKind::UnexpectedEof.into()))?;
        visit(&path.to_string_lossy(), content)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn members_come_back_as_they_went_in() {
        let long = format!("pg_tblspc/16390/{}", "x".repeat(180));
        let mut builder = BundleBuilder::new(Vec::new());
        builder
            .add("base/5/112", 1_700_000_000, &[7; 8192])
            .unwrap();
        builder.add(&long, -1, b"").unwrap();
        let tar = builder.finish().unwrap();
        let mut members = Vec::new();
        visit_members(&"b", &tar, |path, content| {
            members.push((path.to_owned(), content.len()));
            Ok(())
        })
        .unwrap();
        assert_eq!(members, [("base/5/112".to_owned(), 8192), (long, 0)]);
        assert!(visit_members(&"b", &tar[..700], |_, _| Ok(())).is_err());
    }
}
