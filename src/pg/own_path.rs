//! Which paths of a data directory PostgreSQL itself knows.
//!
//! What has such a name is part of the cluster also where an administrator moved it to another disk and left a symbolic
//! link, which the server follows. Anything else is a stranger: of an extension, or somebody's.

use crate::pg::control::CONTROL_FILE;
use crate::pg::exclusion::{CONTENTS_EXCLUDED, CONTENTS_NEEDED};
use crate::pg::relation::{RelationFile, is_temporary_relation, positive_number};
use crate::pg::slru;

/// Folders of initdb's below its others (bin/initdb/initdb.c, subdirs).
const INNER_DIRECTORIES: [&str; 4] = [
    "pg_logical/mappings",
    "pg_logical/snapshots",
    "pg_multixact/members",
    "pg_multixact/offsets",
];

/// Files that every cluster has, or whose names are the defaults of settings.
const FILES: [&str; 13] = [
    "PG_VERSION",
    "current_logfiles",
    "pg_hba.conf",
    "pg_ident.conf",
    "postgresql.auto.conf",
    "postgresql.conf",
    "root.crl",
    "root.crt",
    "server.crt",
    "server.key",
    CONTROL_FILE,
    "global/pg_filenode.map",
    "pg_logical/replorigin_checkpoint",
];

/// Files that every database has.
const DATABASE_FILES: [&str; 2] = ["PG_VERSION", "pg_filenode.map"];

/// Whether PostgreSQL has a file of this path below the data directory.
pub fn is_file(path: &str, tablespace_directory: &str) -> bool {
    let in_database = |(directory, name): (&str, &str)| {
        DATABASE_FILES.contains(&name) && database(directory, tablespace_directory).is_some()
    };
    FILES.contains(&path)
        || RelationFile::parse(path, tablespace_directory).is_some()
        || is_temporary_relation(path, tablespace_directory)
        || slru::is_segment(path)
        || path.rsplit_once('/').is_some_and(in_database)
}

/// Whether PostgreSQL has a folder of this path below the data directory, be it of a database that is none any more.
pub fn is_folder(path: &str, tablespace_directory: &str) -> bool {
    let mut parts = path.split('/');
    if parts.next() == Some("pg_tblspc")
        && let Some(tablespace) = parts.next()
    {
        let own = positive_number(tablespace).is_some();
        return match parts.next() {
            None => own,
            Some(version) if parts.next().is_none() => own && version == tablespace_directory,
            Some(_) => database(path, tablespace_directory).is_some(),
        };
    }
    CONTENTS_NEEDED.contains(&path)
        || CONTENTS_EXCLUDED.contains(&path)
        || INNER_DIRECTORIES.contains(&path)
        || database(path, tablespace_directory).is_some()
}

/// The OID of the database that a folder, by its name, belongs to.
pub fn database(directory: &str, tablespace_directory: &str) -> Option<u32> {
    let (_, name) = directory.rsplit_once('/')?;
    positive_number(name).filter(|_| holds_relations(directory, tablespace_directory))
}

/// Whether a folder, by its name, is one of relations: `global`, or a database's.
pub fn holds_relations(directory: &str, tablespace_directory: &str) -> bool {
    RelationFile::parse(&format!("{directory}/1"), tablespace_directory).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION_DIRECTORY: &str = "PG_15_202209061";

    #[test]
    fn postgresql_knows_its_own() {
        for path in [
            "PG_VERSION",
            "postgresql.conf",
            "global/pg_control",
            "global/1262",
            "base/5/16384_vm.1",
            "base/5/t3_16384",
            "base/5/pg_filenode.map",
            "pg_multixact/offsets/0000",
            "pg_xact/0000",
            "pg_tblspc/16390/PG_15_202209061/5/16391",
            "pg_tblspc/16390/PG_15_202209061/5/PG_VERSION",
        ] {
            assert!(is_file(path, VERSION_DIRECTORY), "{path}");
            assert!(!is_folder(path, VERSION_DIRECTORY), "{path}");
        }
        for path in [
            "base",
            "base/5",
            "global",
            "pg_wal",
            "pg_multixact/offsets",
            "pg_tblspc",
            "pg_tblspc/16390",
            "pg_tblspc/16390/PG_15_202209061",
            "pg_tblspc/16390/PG_15_202209061/5",
        ] {
            assert!(is_folder(path, VERSION_DIRECTORY), "{path}");
            assert!(!is_file(path, VERSION_DIRECTORY), "{path}");
        }
        for path in [
            "loop",
            "16384",
            "conf.d",
            "conf.d/PG_VERSION",
            "base/loop",
            "base/5/loop",
            "base/5/016384",
            "base/5/base/5/16384",
            "pg_tblspc/loop",
            "pg_tblspc/16390/PG_14_202107181",
            "pg_tblspc/16390/PG_14_202107181/5",
            "pg_xact/loop",
        ] {
            assert!(!is_file(path, VERSION_DIRECTORY), "{path}");
            assert!(!is_folder(path, VERSION_DIRECTORY), "{path}");
        }
    }

    #[test]
    fn relations_lie_in_global_and_in_databases() {
        for (directory, holds) in [
            ("global", true),
            ("base/5", true),
            ("pg_tblspc/16390/PG_15_202209061/5", true),
            ("base", false),
            ("", false),
            ("base/5/5", false),
        ] {
            assert_eq!(holds_relations(directory, VERSION_DIRECTORY), holds);
            let database = (holds && directory != "global").then_some(5);
            assert_eq!(super::database(directory, VERSION_DIRECTORY), database);
        }
    }
}
