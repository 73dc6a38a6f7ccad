//! `backup.sha512`: the digest of every stored file, as `sha512sum` reads it.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::stored::checksum::Sha512Digest;

/// Digests by the stored file's path in the backup's folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checksums(BTreeMap<String, Sha512Digest>);

impl Checksums {
    /// Remembers a stored file's digest.
    pub fn insert(&mut self, path: String, digest: Sha512Digest) {
        self.0.insert(path, digest);
    }

    /// Forgets a stored file that is taken back.
    pub fn remove(&mut self, path: &str) {
        self.0.remove(path);
    }

    /// The digest of a stored file.
    pub fn get(&self, path: &str) -> Option<Sha512Digest> {
        self.0.get(path).copied()
    }

    /// All stored files in the order of their paths.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Sha512Digest)> {
        self.0.iter().map(|(path, digest)| (path.as_str(), *digest))
    }

    /// The file's content: `DIGEST  PATH` a line; where the path has a
    /// backslash or a newline the line opens with a backslash and both are escaped.
    pub fn format(&self) -> String {
        let mut text = String::new();
        for (path, digest) in self.iter() {
            if path.contains(['\\', '\n', '\r']) {
                let escaped = path
                    .replace('\\', "\\\\")
                    .replace('\n', "\\n")
                    .replace('\r', "\\r");
                text.push_str(&format!("\\{digest}  {escaped}\n"));
            } else {
                text.push_str(&format!("{digest}  {path}\n"));
            }
        }
        text
    }

    /// Reads the file's content back.
    pub fn parse(text: &str) -> Result<Checksums> {
        let mut checksums = Checksums::default();
        for (index, line) in text.lines().enumerate() {
            let (path, digest) = parse_line(line).ok_or_else(|| {
                Error::damage(format!("line {} is no digest and path", index + 1))
            })?;
            checksums.insert(path, digest);
        }
        Ok(checksums)
    }
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
            for path in paths {
                let digest = sha512(path.as_bytes());
                checksums.insert(path, digest);
            }
            prop_assert_eq!(Checksums::parse(&checksums.format()).unwrap(), checksums);
        }
    }

    #[test]
    fn a_damaged_line_is_named() {
        let error = Checksums::parse("abc  data/PG_VERSION\n").unwrap_err();
        assert_eq!(error.message(), "line 1 is no digest and path");
    }
}
