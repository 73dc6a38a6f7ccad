//! libpq's password file, `~/.pgpass`.
//!
//! Lines of `host:port:database:user:password`; `*` alone matches anything, a
//! backslash makes `:` and `\` plain, a line that begins with `#` is a comment.
//! Follows interfaces/libpq/fe-connect.c: passwordFromFile(),
//! pwdfMatchesString().

use super::secret::Secret;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// What a line must match.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// A host name or address; `localhost` for the default socket folder.
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// A password file that may be used.
#[derive(Debug)]
pub(super) struct PasswordFile {
    pub(super) path: PathBuf,
    text: Zeroizing<String>,
}

impl PasswordFile {
    /// Opens the file. As in libpq, one that others may read is not used, one
    /// that is not there is nothing to speak of.
    pub(super) fn open(path: &Path) -> Option<PasswordFile> {
        let metadata = fs::metadata(path).ok()?;
        if !metadata.is_file() {
            log::warn!("password file {} is not a plain file", path.display());
            return None;
        }
        if metadata.permissions().mode() & 0o077 != 0 {
            log::warn!(
                "password file {} is ignored because others may read it: run chmod 0600 on it",
                path.display()
            );
            return None;
        }
        match fs::read(path) {
            Ok(bytes) => Some(PasswordFile {
                path: path.to_owned(),
                text: Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()),
            }),
            Err(error) => {
                log::warn!("cannot read password file {}: {error}", path.display());
                None
            }
        }
    }

    /// The password of the first line that matches.
    pub(super) fn password(&self, wanted: Wanted<'_>) -> Option<Secret> {
        self.text.lines().find_map(|line| match_line(line, wanted))
    }
}

fn match_line(line: &str, wanted: Wanted<'_>) -> Option<Secret> {
    if line.starts_with('#') {
        return None;
    }
    let port = wanted.port.to_string();
    let mut rest = line;
    for expected in [wanted.host, &port, wanted.database, wanted.user] {
        let (field, after) = split_field(rest)?;
        if field != "*" && *unescape(field) != expected {
            return None;
        }
        rest = after;
    }
    Some(rest)
        .filter(|password| !password.is_empty())
        .map(|password| Secret::new(unescape(password).to_string()))
}

/// A field as written, and what follows its colon.
fn split_field(line: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (at, character) in line.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ':' => return Some((line.get(..at)?, line.get(at + 1..)?)),
            _ => {}
        }
    }
    None
}

/// A backslash stands for the character behind it.
fn unescape(field: &str) -> Zeroizing<String> {
    let mut plain = Zeroizing::new(String::with_capacity(field.len()));
    let mut characters = field.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => plain.extend(characters.next()),
            _ => plain.push(character),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    const WANTED: Wanted<'static> = Wanted {
        host: "db.example",
        port: 5432,
        database: "postgres",
        user: "ann",
    };

    fn password_in(text: &str) -> Option<String> {
        let file = PasswordFile {
            path: PathBuf::from("f"),
            text: Zeroizing::new(text.to_owned()),
        };
        file.password(WANTED)
            .map(|secret| secret.reveal().to_owned())
    }

    #[test]
    fn the_first_line_that_matches_counts() {
        let cases = [
            ("db.example:5432:postgres:ann:x", Some("x")),
            ("*:*:*:*:x", Some("x")),
            ("other:*:*:*:x\r\n*:*:*:ann:y\r\n*:*:*:*:z", Some("y")),
            ("#db.example:5432:postgres:ann:x", None),
            ("db.example:5433:*:*:x", None),
            ("*:*:template1:*:x", None),
            ("*:*:*:bob:x", None),
            ("*:*:*:ann", None),
            ("*:*:*:ann:", None),
            ("**:*:*:ann:x", None),
            ("\\*:*:*:ann:x", None),
            ("*:*:*:ann:a:b", Some("a:b")),
            ("*:*:*:ann:a\\:b\\\\c", Some("a:b\\c")),
            ("*:*:*:a\\nn:x", Some("x")),
            ("", None),
            ("\\", None),
        ];
        for (text, expected) in cases {
            assert_eq!(password_in(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pgpass");
        fs::write(&path, "*:*:*:*:x").unwrap();
        for (mode, used) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(PasswordFile::open(&path).is_some(), used, "{mode:o}");
        }
        assert!(PasswordFile::open(folder.path()).is_none());
        assert!(PasswordFile::open(&folder.path().join("none")).is_none());
    }

    fn escape(field: &str) -> String {
        field.replace('\\', "\\\\").replace(':', "\\:")
    }

    proptest! {
        #[test]
        fn escaped_fields_come_back(user in "[^\r\n]{1,8}", password in "[^\r\n]{1,12}") {
            // A first field of "*" alone is the wildcard; everything else is literal.
            let line = format!("*:*:*:{}:{}", escape(&user), escape(&password));
            let found = match_line(&line, Wanted { user: &user, ..WANTED });
            prop_assert_eq!(found.map(|secret| secret.reveal().to_owned()), Some(password));
        }

        #[test]
        fn any_text_is_read(text in "(\\PC|[:*\\\\\r\n#])*") {
            let _ = password_in(&text);
        }
    }
}
