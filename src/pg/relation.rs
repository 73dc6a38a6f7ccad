//! The names of the files that tables, indexes and other relations are kept in
//! (common/relpath.h; storage/file/reinit.c,
//! parse_filename_for_nontemp_relation; storage/file/fd.c,
//! looks_like_temp_rel_name).
//!
//! A relation has a number, up to four forks, and for each fork a file of at
//! most 1 GiB for each segment: `16384`, `16384.1`, `16384_fsm`, `16384_vm.2`.
//! PostgreSQL removes, skips and rebuilds files on the strength of such names, so
//! the rules are strict: a file that a user put among them is no relation.

use std::fmt;

/// One of the parallel files of a relation, by its number in WAL (enum ForkNumber).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Fork {
    /// The data.
    Main = 0,
    /// Where there is room in the data.
    FreeSpaceMap = 1,
    /// Which pages of the data all transactions can see.
    VisibilityMap = 2,
    /// What an unlogged relation is reset to after a crash.
    Init = 3,
}

impl Fork {
    /// All of them, in the order of their numbers.
    pub const ALL: [Fork; 4] = [
        Fork::Main,
        Fork::FreeSpaceMap,
        Fork::VisibilityMap,
        Fork::Init,
    ];

    /// The fork's number in WAL.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The fork with this number.
    pub fn from_number(number: u8) -> Option<Fork> {
        Fork::ALL.get(usize::from(number)).copied()
    }

    /// What the names of the fork's files end in, before any segment.
    fn suffix(self) -> &'static str {
        match self {
            Fork::Main => "",
            Fork::FreeSpaceMap => "_fsm",
            Fork::VisibilityMap => "_vm",
            Fork::Init => "_init",
        }
    }
}

/// A file that holds a segment of a fork of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationFile<'a> {
    /// Where it is, below the data directory: `base/5`, `global` or
    /// `pg_tblspc/16390/PG_15_202209061/5`.
    pub directory: &'a str,
    /// The relation's number in that directory.
    pub relfilenumber: u32,
    /// The fork.
    pub fork: Fork,
    /// The segment; zero for the first, which has no number in its name.
    pub segment: u32,
}

impl<'a> RelationFile<'a> {
    /// Reads a path below the data directory, with slashes. The tablespace
    /// directory is [`Major::tablespace_directory`]'s.
    ///
    /// [`Major::tablespace_directory`]: crate::pg::version::Major::tablespace_directory
    pub fn parse(path: &'a str, tablespace_directory: &str) -> Option<RelationFile<'a>> {
        let (directory, name) = path.rsplit_once('/')?;
        if directory != "global" && !is_database_directory(directory, tablespace_directory) {
            return None;
        }
        let (digits, rest) = split_digits(name);
        let (fork, rest) = split_fork(rest);
        let segment = match rest.strip_prefix('.') {
            Some(segment) => positive_number(segment)?,
            None if rest.is_empty() => 0,
            None => return None,
        };
        Some(RelationFile {
            directory,
            relfilenumber: positive_number(digits)?,
            fork,
            segment,
        })
    }
}

impl fmt::Display for RelationFile<'_> {
    /// The path below the data directory.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RelationFile {
            directory,
            relfilenumber,
            fork,
            segment,
        } = self;
        write!(f, "{directory}/{relfilenumber}{}", fork.suffix())?;
        if *segment > 0 {
            write!(f, ".{segment}")?;
        }
        Ok(())
    }
}

/// Whether a path below the data directory is a file of some session's
/// temporary relation, `t3_16384` and the like: they die with the server.
pub fn is_temporary_relation(path: &str, tablespace_directory: &str) -> bool {
    let Some((directory, name)) = path.rsplit_once('/') else {
        return false;
    };
    let Some(name) = name.strip_prefix('t') else {
        return false;
    };
    let (session, rest) = split_digits(name);
    let Some(rest) = rest.strip_prefix('_') else {
        return false;
    };
    let (number, rest) = split_digits(rest);
    let (_, rest) = split_fork(rest);
    let segment_is_valid = match rest.strip_prefix('.') {
        Some(segment) => !segment.is_empty() && split_digits(segment).1.is_empty(),
        None => rest.is_empty(),
    };
    !session.is_empty()
        && !number.is_empty()
        && segment_is_valid
        && is_database_directory(directory, tablespace_directory)
}

/// Whether a directory holds the relations of one database: `base/5` or
/// `pg_tblspc/16390/PG_15_202209061/5`.
fn is_database_directory(directory: &str, tablespace_directory: &str) -> bool {
    let mut parts = directory.split('/');
    let database = match parts.next() {
        Some("base") => parts.next(),
        Some("pg_tblspc") => {
            let tablespace = parts.next().and_then(positive_number);
            if tablespace.is_none() || parts.next() != Some(tablespace_directory) {
                return false;
            }
            parts.next()
        }
        _ => return false,
    };
    database.and_then(positive_number).is_some() && parts.next().is_none()
}

/// An OID or a segment's number as PostgreSQL writes it in a name: more than
/// zero, at most 2^32-1, no sign and no leading zeros.
pub(crate) fn positive_number(text: &str) -> Option<u32> {
    let (digits, rest) = split_digits(text);
    if !rest.is_empty() || digits.starts_with('0') {
        return None;
    }
    digits.parse().ok()
}

fn split_digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

fn split_fork(text: &str) -> (Fork, &str) {
    [Fork::FreeSpaceMap, Fork::VisibilityMap, Fork::Init]
        .into_iter()
        .find_map(|fork| Some((fork, text.strip_prefix(fork.suffix())?)))
        .unwrap_or((Fork::Main, text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const VERSION_DIRECTORY: &str = "PG_15_202209061";

    fn parse(path: &str) -> Option<RelationFile<'_>> {
        RelationFile::parse(path, VERSION_DIRECTORY)
    }

    #[test]
    fn reads_names() {
        for (path, relfilenumber, fork, segment) in [
            ("base/5/16384", 16384, Fork::Main, 0),
            ("base/5/16384.1", 16384, Fork::Main, 1),
            ("base/5/16384_fsm", 16384, Fork::FreeSpaceMap, 0),
            ("base/5/16384_vm.12", 16384, Fork::VisibilityMap, 12),
            ("base/5/16384_init", 16384, Fork::Init, 0),
            ("global/1262", 1262, Fork::Main, 0),
            ("base/4294967295/4294967295", u32::MAX, Fork::Main, 0),
            (
                "pg_tblspc/16390/PG_15_202209061/5/16391",
                16391,
                Fork::Main,
                0,
            ),
        ] {
            let file = parse(path).unwrap();
            assert_eq!(
                (file.relfilenumber, file.fork, file.segment),
                (relfilenumber, fork, segment)
            );
            assert_eq!(file.to_string(), path);
        }
    }

    #[test]
    fn refuses_what_is_no_relation() {
        for path in [
            "16384",
            "base/16384",
            "base/5/016384",
            "base/5/0",
            "base/5/4294967296",
            "base/5/+1",
            "base/5/",
            "base/5/16384.0",
            "base/5/16384.01",
            "base/5/16384.",
            "base/5/16384.4294967296",
            "base/5/16384_",
            "base/5/16384_main",
            "base/5/16384_fsm_vm",
            "base/5/16384.1_fsm",
            "base/5/16384_vm.1.2",
            "base/5/16384 ",
            "base/5/１６３８４",
            "base/5/t3_16384",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "base/5/INCREMENTAL.16384",
            "base/05/16384",
            "base/x/16384",
            "base/5/5/16384",
            "base/pgsql_tmp/16384",
            "global/5/1262",
            "pg_xact/1",
            "pg_wal/16384",
            "pg_tblspc/16390/16384",
            "pg_tblspc/16390/5/16384",
            "pg_tblspc/016390/PG_15_202209061/5/16391",
            "pg_tblspc/16390/PG_14_202107181/5/16391",
            "pg_tblspc/16390/PG_15_202209061/16391",
            "pg_tblspc/16390/PG_15_202209061/5/6/16391",
            "./base/5/16384",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
    }

    #[test]
    fn knows_temporary_relations() {
        for (path, is_temporary) in [
            ("base/5/t3_16384", true),
            ("base/5/t3_16384_fsm", true),
            ("base/5/t3_16384_vm.1", true),
            ("base/5/t3_16384.10", true),
            ("pg_tblspc/16390/PG_15_202209061/5/t3_16384", true),
            ("base/5/16384", false),
            ("base/5/t3", false),
            ("base/5/t_16384", false),
            ("base/5/t3_", false),
            ("base/5/t3_16384.", false),
            ("base/5/t3_16384_x", false),
            ("base/5/t3_16384.1a", false),
            ("base/5/T3_16384", false),
            ("global/t3_16384", false),
            ("t3_16384", false),
            ("scripts/t3_16384", false),
        ] {
            assert_eq!(
                is_temporary_relation(path, VERSION_DIRECTORY),
                is_temporary,
                "{path}"
            );
        }
    }

    /// The parts of a relation's file.
    fn relation_file() -> impl Strategy<Value = (String, u32, Fork, u32)> {
        let directory = prop_oneof![
            Just("global".to_owned()),
            (1_u32..).prop_map(|database| format!("base/{database}")),
            (1_u32.., 1_u32..).prop_map(|(tablespace, database)| {
                format!("pg_tblspc/{tablespace}/{VERSION_DIRECTORY}/{database}")
            }),
        ];
        let fork = prop::sample::select(vec![
            Fork::Main,
            Fork::FreeSpaceMap,
            Fork::VisibilityMap,
            Fork::Init,
        ]);
        (directory, 1_u32.., fork, any::<u32>())
    }

    #[test]
    fn numbers_of_forks_there_and_back() {
        for (number, fork) in (0..).zip(Fork::ALL) {
            assert_eq!(fork.number(), number);
            assert_eq!(Fork::from_number(number), Some(fork));
        }
        assert_eq!(Fork::from_number(4), None);
    }

    proptest! {
        #[test]
        fn there_and_back((directory, relfilenumber, fork, segment) in relation_file()) {
            let file = RelationFile { directory: &directory, relfilenumber, fork, segment };
            let path = file.to_string();
            prop_assert_eq!(parse(&path), Some(file));
        }

        #[test]
        fn what_is_read_is_written_the_same(path in "(base/[0-9]{1,3}|global)/t?[0-9]{1,11}(_[a-z0-9]{1,4})?([.][0-9]{0,11})?") {
            if let Some(file) = parse(&path) {
                prop_assert_eq!(file.to_string(), path);
            }
        }

        #[test]
        fn never_panics(path: String) {
            let _ = parse(&path);
            let _ = is_temporary_relation(&path, VERSION_DIRECTORY);
        }
    }
}
