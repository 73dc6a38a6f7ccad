//! `backup.sha512`: the digest of every stored file, as `sha512sum` reads it.

use std::io::{self, Write};

use crate::error::{Error, Result};
use crate::pg::paths::{PathPlace, Paths};
use crate::stored::checksum::Sha512Digest;

/// Digests by the stored file's path in the backup's folder.
#[derive(Debug, Clone, Default)]
pub struct Checksums {
    paths: Paths,
    digests: Vec<(PathPlace, Sha512Digest)>,
}

impl Checksums {
    /// Remembers a stored file's digest.
    pub fn insert(&mut self, path: &str, digest: Sha512Digest) {
        self.digests.push((self.paths.push(path), digest));
    }

    /// Takes over all of another's, in whatever order: the shorter list is added to the longer.
    pub fn append(&mut self, mut other: Checksums) {
        if other.len() > self.len() {
            std::mem::swap(self, &mut other);
        }
        let paths = &self.paths;
        let digests = other.digests.into_iter();
        self.digests
            .extend(digests.map(|(path, digest)| (path.behind(paths), digest)));
        self.paths.append(&other.paths);
    }

    /// Forgets stored files that are taken back.
    pub fn retain(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.digests
            .retain(|(path, _)| is_kept(self.paths.get(*path)));
    }

    /// Puts them into the order of their paths, in which they are found and written.
    pub fn sort(&mut self) {
        let paths = &self.paths;
        self.digests
            .sort_by(|(one, _), (other, _)| paths.get(*one).cmp(paths.get(*other)));
    }

    /// The place of a stored file among all of them.
    pub fn find(&self, path: &str) -> Option<usize> {
        self.digests
            .binary_search_by(|(known, _)| self.paths.get(*known).cmp(path))
            .ok()
    }

    /// The stored file at a place.
    pub fn at(&self, place: usize) -> (&str, Sha512Digest) {
        let (path, digest) = self.digests[place];
        (self.paths.get(path), digest)
    }

    /// The digest of a stored file.
    pub fn get(&self, path: &str) -> Option<Sha512Digest> {
        self.find(path).map(|place| self.digests[place].1)
    }

    /// How many stored files there are.
    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// All stored files.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Sha512Digest)> {
        let digests = self.digests.iter();
        digests.map(|(path, digest)| (self.paths.get(*path), *digest))
    }

    /// Writes the file's content: `DIGEST  PATH` a line; where the path has a
    /// backslash or a newline the line opens with a backslash and both are escaped.
    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        for (path, digest) in self.iter() {
            if path.contains(['\\', '\n', '\r']) {
                let escaped = path
                    .replace('\\', "\\\\")
                    .replace('\n', "\\n")
                    .replace('\r', "\\r");
                writeln!(out, "\\{digest}  {escaped}")?;
            } else {
                writeln!(out, "{digest}  {path}")?;
            }
        }
        Ok(())
    }
}

/// The path and the digest in a line of the file.
pub fn read_line(number: u64, line: &str) -> Result<(String, Sha512Digest)> {
    parse_line(line).ok_or_else(|| Error::damage(format!("line {number} is no digest and path")))
}

fn parse_line(line: &str) -> Option<(String, Sha512Digest)> {
    let (line, escaped) = match line.strip_prefix('\\') {
        Some(rest) => (rest, true),
        None => (line, false),
    };
    let (digest, path) = line.split_once("  ")?;
    let path = if escaped {
        unescape(path)?
    } else {
        path.to_owned()
    };
    Some((path, digest.parse().ok()?))
}

fn unescape(path: &str) -> Option<String> {
    let mut plain = String::new();
    let mut letters = path.chars();
    while let Some(letter) = letters.next() {
        plain.push(match letter {
            '\\' => match letters.next()? {
                'n' => '\n',
                'r' => '\r',
                '\\' => '\\',
                _ => return None,
            },
            other => other,
        });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::stored::checksum::sha512;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_path_comes_back(paths in prop::collection::btree_set("[^\\x00]{1,20}", 0..6)) {
            let mut checksums = Checksums::default();
            for path in &paths {
                checksums.insert(path, sha512(path.as_bytes()));
            }
            checksums.sort();
            let mut text = Vec::new();
            checksums.write(&mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            let read: Vec<_> = text
                .split_terminator('\n')
                .map(|line| read_line(1, line).unwrap())
                .collect();
            let expected = paths.iter().map(|path| (path.clone(), sha512(path.as_bytes())));
            prop_assert_eq!(read, expected.collect::<Vec<_>>());
            for path in &paths {
                prop_assert_eq!(checksums.get(path), Some(sha512(path.as_bytes())));
            }
        }
    }

    #[test]
    fn a_damaged_line_is_named() {
        let error = read_line(1, "abc  data/PG_VERSION").unwrap_err();
        assert_eq!(error.message(), "line 1 is no digest and path");
    }
}
