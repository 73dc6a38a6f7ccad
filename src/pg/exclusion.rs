//! What a backup leaves out of a data directory, by the rules of
//! backup/basebackup.c (excludeDirContents, excludeFiles, sendDir) and
//! storage/file/reinit.c for unlogged relations.
//!
//! All paths are below the data directory, with slashes, and tablespaces are
//! below `pg_tblspc/OID`, their locations followed.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::pg::changed_blocks::RelationFork;
use crate::pg::relation::{Fork, RelationFile, is_temporary_relation, positive_number};
use crate::pg::version::Major;

/// Directories that a backup keeps, but without their content: the server
/// removes or rebuilds it when it starts. Only these at the top of the data
/// directory are meant. The WAL that a backup needs, it adds itself.
pub const CONTENTS_EXCLUDED: &[&str] = &[
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_wal",
];

/// The other directories of every cluster (bin/initdb/initdb.c, subdirs). No
/// setting can empty these.
pub const CONTENTS_NEEDED: &[&str] = &[
    "base",
    "global",
    "pg_commit_ts",
    "pg_logical",
    "pg_multixact",
    "pg_stat",
    "pg_tblspc",
    "pg_twophase",
    "pg_xact",
];

/// Files left out wherever they are. `backup_label`, `tablespace_map` and
/// `backup_manifest` would belong to another backup than this one.
const FILES_EXCLUDED: &[&str] = &[
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "backup_label",
    "backup_label.old",
    "tablespace_map",
    "tablespace_map.old",
    "backup_manifest",
    "backup_manifest.tmp",
    "postmaster.pid",
    "postmaster.opts",
    ".DS_Store",
];

/// Files at the top left out as well. PostgreSQL itself copies them; but they say
/// what the source becomes, and what a restored cluster becomes is said when it
/// is restored.
const SIGNAL_FILES: &[&str] = &["standby.signal", "recovery.signal"];

/// Temporary files and the directories they are in (PG_TEMP_FILE_PREFIX).
const TEMPORARY_PREFIX: &str = "pgsql_tmp";

/// Caches of the catalogs, which every start rebuilds (RELCACHE_INIT_FILENAME).
const RELATION_CACHE_PREFIX: &str = "pg_internal.init";

/// The directories below pg_wal that the server expects; a backup makes them.
pub fn wal_directories(major: Major) -> &'static [&'static str] {
    if major >= Major::V17 {
        &["pg_wal/archive_status", "pg_wal/summaries"]
    } else {
        &["pg_wal/archive_status"]
    }
}

/// The rules for one cluster.
#[derive(Debug, Clone)]
pub struct Exclusion {
    tablespace_directory: String,
    emptied: Vec<String>,
}

impl Exclusion {
    /// The rules for a release. Of the directories in `emptied` a backup keeps
    /// no content either: the log directory, 14's `stats_temp_directory`, and
    /// tablespaces whose location is inside the data directory, which would
    /// else be copied twice. One that is, or holds, or is inside something
    /// PostgreSQL needs is not emptied, whatever the setting says.
    pub fn new(major: Major, emptied: impl IntoIterator<Item = String>) -> Exclusion {
        let emptied = emptied.into_iter().filter(|directory| {
            let top = directory.split('/').next().unwrap_or_default();
            !matches!(top, "" | "." | "..") && !CONTENTS_NEEDED.contains(&top)
        });
        Exclusion {
            tablespace_directory: major.tablespace_directory(),
            emptied: emptied
                .map(|directory| directory.trim_end_matches('/').to_owned())
                .collect(),
        }
    }

    /// The release's directory in a tablespace's location.
    pub fn tablespace_directory(&self) -> &str {
        &self.tablespace_directory
    }

    /// Whether a backup holds this file.
    pub fn keeps_file(&self, path: &str) -> bool {
        let (directory, name) = split_name(path);
        self.descends_into(directory)
            && !name.starts_with(TEMPORARY_PREFIX)
            && !name.starts_with(RELATION_CACHE_PREFIX)
            && !FILES_EXCLUDED.contains(&name)
            && !SIGNAL_FILES.contains(&path)
            && !is_temporary_relation(path, &self.tablespace_directory)
            && !is_beside_version_directory(path)
    }

    /// Whether a backup holds this directory, be it without its content.
    pub fn keeps_directory(&self, path: &str) -> bool {
        let (parent, name) = split_name(path);
        self.descends_into(parent)
            && !name.starts_with(TEMPORARY_PREFIX)
            && (!is_beside_version_directory(path) || name == self.tablespace_directory)
    }

    /// Whether a backup holds anything of what is in this directory; the data
    /// directory itself is the empty path.
    pub fn descends_into(&self, directory: &str) -> bool {
        if directory.is_empty() {
            return true;
        }
        !CONTENTS_EXCLUDED.contains(&directory)
            && !self.emptied.iter().any(|emptied| emptied == directory)
            && self.keeps_directory(directory)
    }
}

/// The directory that a path is in, empty at the top, and its last name.
fn split_name(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Whether a path is directly in a tablespace's location, where only the
/// directory of the server's own release matters.
fn is_beside_version_directory(path: &str) -> bool {
    let mut parts = path.split('/');
    parts.next() == Some("pg_tblspc")
        && parts.next().and_then(positive_number).is_some()
        && parts.next().is_some()
        && parts.next().is_none()
}

/// The unlogged relations of a cluster: those that have an init fork. After a
/// restore the server makes their other forks from it, so that only the init
/// fork belongs into a backup.
#[derive(Debug, Clone, Default)]
pub struct UnloggedRelations {
    by_directory: HashMap<String, HashSet<u32>>,
}

impl UnloggedRelations {
    /// Finds the init forks among all files of a cluster.
    pub fn find<'a>(files: impl IntoIterator<Item = RelationFile<'a>>) -> UnloggedRelations {
        let mut by_directory = HashMap::<String, HashSet<u32>>::new();
        for file in files {
            if file.fork == Fork::Init {
                by_directory
                    .entry(file.directory.to_owned())
                    .or_default()
                    .insert(file.relfilenumber);
            }
        }
        UnloggedRelations { by_directory }
    }

    /// Whether a backup leaves this file out, because the server makes it anew.
    pub fn leave_out(&self, file: &RelationFile<'_>) -> bool {
        file.fork != Fork::Init
            && self
                .by_directory
                .get(file.directory)
                .is_some_and(|relations| relations.contains(&file.relfilenumber))
    }
}

/// Whether a file is of a relation with one of these init forks, and not of that fork.
pub fn is_other_fork(
    path: &str,
    init_forks: &BTreeSet<RelationFork>,
    tablespace_directory: &str,
) -> bool {
    let file = RelationFile::parse(path, tablespace_directory);
    let Some(fork) = file.as_ref().and_then(RelationFork::of) else {
        return false;
    };
    fork.fork != Fork::Init
        && init_forks.contains(&RelationFork {
            fork: Fork::Init,
            ..fork
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn exclusion(emptied: &[&str]) -> Exclusion {
        Exclusion::new(Major::V15, emptied.iter().map(|name| (*name).to_owned()))
    }

    #[test]
    fn keeps_what_a_cluster_needs() {
        let rules = exclusion(&["log"]);
        for path in [
            "PG_VERSION",
            "postgresql.conf",
            "postgresql.auto.conf",
            "current_logfiles",
            "script/standby.signal",
            "global/pg_control",
            "global/pg_filenode.map",
            "base/5/16384",
            "base/5/16384_init",
            "pg_xact/0000",
            "pg_multixact/offsets/0000",
            "pg_logical/snapshots/0-1.snap",
            "pg_stat/pgstat.stat",
            "pg_twophase/0000000A",
            "pg_tblspc/16390/PG_15_202209061/5/16391",
            "conf.d/extra.conf",
            "logs/one",
            "script/pg_wal/file",
            "script/log/file",
            "base/5/INCREMENTAL.config",
        ] {
            assert!(rules.keeps_file(path), "{path}");
        }
    }

    #[test]
    fn leaves_out_what_the_server_makes_anew() {
        let rules = exclusion(&["log"]);
        for path in [
            "postmaster.pid",
            "postmaster.opts",
            "standby.signal",
            "recovery.signal",
            "backup_label",
            "backup_label.old",
            "tablespace_map",
            "backup_manifest",
            "script/backup_manifest",
            "postgresql.auto.conf.tmp",
            ".DS_Store",
            "global/pg_internal.init",
            "base/5/pg_internal.init.1234",
            "base/5/t3_16384",
            "base/pgsql_tmp/pgsql_tmp1234.0",
            "base/pgsql_tmp/other/file",
            "pg_tblspc/16390/PG_15_202209061/pgsql_tmp/pgsql_tmp1.0",
            "pg_tblspc/16390/PG_14_202107181/5/16391",
            "pg_tblspc/16390/notes.txt",
            "pg_wal/000000010000000000000001",
            "pg_wal/archive_status/000000010000000000000001.ready",
            "pg_replslot/one/state",
            "pg_stat_tmp/global.stat",
            "pg_subtrans/0000",
            "log/postgresql.log",
            "log/old/postgresql.log",
        ] {
            assert!(!rules.keeps_file(path), "{path}");
        }
    }

    #[test]
    fn keeps_directories_whose_content_it_leaves_out() {
        let rules = exclusion(&["log", "spaces/one/"]);
        for (path, is_kept, is_entered) in [
            ("", true, true),
            ("base", true, true),
            ("base/5", true, true),
            ("base/pgsql_tmp", false, false),
            ("pg_wal", true, false),
            ("pg_wal/archive_status", false, false),
            ("pg_replslot", true, false),
            ("pg_replslot/one", false, false),
            ("log", true, false),
            ("spaces", true, true),
            ("spaces/one", true, false),
            ("spaces/one/PG_15_202209061", false, false),
            ("pg_tblspc", true, true),
            ("pg_tblspc/16390", true, true),
            ("pg_tblspc/16390/PG_15_202209061", true, true),
            ("pg_tblspc/16390/PG_15_202209061/5", true, true),
            ("pg_tblspc/16390/PG_14_202107181", false, false),
            ("pg_tblspc/16390/lost+found", false, false),
        ] {
            assert_eq!(
                path.is_empty() || rules.keeps_directory(path),
                is_kept,
                "{path}"
            );
            assert_eq!(rules.descends_into(path), is_entered, "{path}");
        }
    }

    #[test]
    fn no_setting_empties_what_a_cluster_needs() {
        let rules = exclusion(&[
            "",
            ".",
            "./",
            "..",
            "base",
            "global/",
            "pg_xact/log",
            "pg_tblspc/16390",
        ]);
        for path in [
            "PG_VERSION",
            "base/5/16384",
            "global/pg_control",
            "pg_xact/0000",
            "pg_xact/log/0000",
            "pg_tblspc/16390/PG_15_202209061/5/16391",
        ] {
            assert!(rules.keeps_file(path), "{path}");
        }
    }

    #[test]
    fn the_lists_hold_every_directory_initdb_makes() {
        let all = CONTENTS_EXCLUDED.len() + CONTENTS_NEEDED.len();
        assert_eq!(all, 17);
        assert!(
            CONTENTS_EXCLUDED
                .iter()
                .all(|directory| !CONTENTS_NEEDED.contains(directory))
        );
    }

    #[test]
    fn leaves_all_forks_but_init_of_unlogged_relations_to_the_server() {
        let directory = Major::V15.tablespace_directory();
        let parse = |path: &'static str| RelationFile::parse(path, &directory).unwrap();
        let files = [
            "base/5/16384",
            "base/5/16384.1",
            "base/5/16384_vm",
            "base/5/16384_init",
            "base/5/16385",
            "base/6/16384",
        ]
        .map(parse);
        let unlogged = UnloggedRelations::find(files);
        let kept: Vec<_> = files
            .iter()
            .filter(|file| !unlogged.leave_out(file))
            .map(ToString::to_string)
            .collect();
        assert_eq!(kept, ["base/5/16384_init", "base/5/16385", "base/6/16384"]);
    }
}
