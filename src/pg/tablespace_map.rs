//! tablespace_map, from which the server makes the links in pg_tblspc again
//! when it starts from a backup (access/transam/xlogrecovery.c,
//! read_tablespace_map; written in access/transam/xlog.c, do_pg_backup_start).
//!
//! One line for each tablespace: its OID, a space, its location. A backslash
//! stands before every newline, carriage return and backslash in the location.

use crate::error::{Error, Result};
use crate::pg::relation::positive_number;

/// The name of the file, at the top of the data directory.
pub const TABLESPACE_MAP_FILE: &str = "tablespace_map";

/// Where each tablespace is, outside of the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TablespaceMap {
    /// In the order of the file.
    pub tablespaces: Vec<TablespaceLocation>,
}

/// A tablespace and the directory it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceLocation {
    /// Its OID, which is also the name of its link in pg_tblspc.
    pub oid: u32,
    /// Its directory.
    pub path: String,
}

impl TablespaceMap {
    /// Reads the content of a tablespace_map.
    pub fn parse(text: &str) -> Result<TablespaceMap> {
        let mut tablespaces = Vec::new();
        let mut line = String::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            match character {
                // An empty line is what follows the \r of \r\n.
                '\n' | '\r' if line.is_empty() => {}
                '\n' | '\r' => tablespaces.push(location(&std::mem::take(&mut line))?),
                '\\' => line.push(characters.next().ok_or_else(|| unterminated(&line))?),
                character => line.push(character),
            }
        }
        if !line.is_empty() {
            return Err(unterminated(&line));
        }
        Ok(TablespaceMap { tablespaces })
    }

    /// The content of the file.
    pub fn format(&self) -> String {
        let mut text = String::new();
        for TablespaceLocation { oid, path } in &self.tablespaces {
            text.push_str(&oid.to_string());
            text.push(' ');
            for character in path.chars() {
                if matches!(character, '\n' | '\r' | '\\') {
                    text.push('\\');
                }
                text.push(character);
            }
            text.push('\n');
        }
        text
    }
}

fn location(line: &str) -> Result<TablespaceLocation> {
    line.split_once(' ')
        .and_then(|(oid, path)| {
            Some(TablespaceLocation {
                oid: positive_number(oid)?,
                path: Some(path).filter(|path| !path.is_empty())?.to_owned(),
            })
        })
        .ok_or_else(|| {
            Error::damage(format!(
                "tablespace_map has a line that is not an OID and a path: \"{line}\""
            ))
        })
}

fn unterminated(line: &str) -> Error {
    Error::damage(format!(
        "tablespace_map ends in the middle of a line: \"{line}\""
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escapes_newlines_and_backslashes() {
        let map = TablespaceMap {
            tablespaces: vec![
                TablespaceLocation {
                    oid: 16390,
                    path: "/mnt/fast disk".to_owned(),
                },
                TablespaceLocation {
                    oid: 16391,
                    path: "/mnt/a\nb\\c\rd".to_owned(),
                },
            ],
        };
        let text = "16390 /mnt/fast disk\n16391 /mnt/a\\\nb\\\\c\\\rd\n";
        assert_eq!(map.format(), text);
        assert_eq!(TablespaceMap::parse(text).unwrap(), map);
        assert_eq!(
            TablespaceMap::parse("16390 /mnt\r\n").unwrap().format(),
            "16390 /mnt\n"
        );
    }

    #[test]
    fn refuses_damaged_files() {
        for text in [
            "16390 /mnt",
            "16390\n",
            "16390 \n",
            "x /mnt\n",
            "0 /mnt\n",
            " /mnt\n",
            "1 /mnt\\",
        ] {
            assert!(TablespaceMap::parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn there_and_back(tablespaces in prop::collection::vec((1_u32.., "(?s)/.*"), 0..4)) {
            let tablespaces = tablespaces.into_iter();
            let map = TablespaceMap {
                tablespaces: tablespaces
                    .map(|(oid, path)| TablespaceLocation { oid, path })
                    .collect(),
            };
            prop_assert_eq!(TablespaceMap::parse(&map.format()).unwrap(), map);
        }

        #[test]
        fn never_panics(text: String) {
            let _ = TablespaceMap::parse(&text);
        }
    }
}
