//! What the server leaves out of a base backup though it is a part of the cluster.
//!
//! It follows the links of tablespaces and that of `pg_wal`. Any other symbolic link, such as one by which an administrator moved a
//! relation to another disk, it skips with a warning (backup/basebackup.c, sendDir): "skipping special file", in whatever
//! language, and the path.

use std::collections::HashSet;

use crate::pg::exclusion::Exclusion;
use crate::pg::own_path;
use crate::server::replication::Tablespace;

/// The first path that a warning names and the cluster cannot do without, below the data directory. `databases` are the OIDs of
/// those that the catalog has.
pub(super) fn needed(
    warnings: &[String],
    tablespaces: &[Tablespace],
    databases: &HashSet<u32>,
    rules: &Exclusion,
) -> Option<String> {
    let mut paths = warnings
        .iter()
        .filter_map(|text| path_in(text, tablespaces));
    paths.find(|path| is_needed(path, databases, rules))
}

/// Without these the restored cluster does not start, and whoever restores it can bring them.
const CONFIGURATION: [&str; 3] = ["pg_hba.conf", "pg_ident.conf", "postgresql.conf"];

/// Files of the configuration that a warning names.
pub(super) fn configuration(warnings: &[String]) -> impl Iterator<Item = &'static str> {
    let names = |name: &&str| {
        warnings
            .iter()
            .any(|text| path_in(text, &[]).as_deref() == Some(*name))
    };
    CONFIGURATION.into_iter().filter(names)
}

/// The path in a warning, if it can be one of PostgreSQL's own: these have no other characters in them.
fn path_in(text: &str, tablespaces: &[Tablespace]) -> Option<String> {
    let behind = |prefix: &str| {
        let (_, behind) = text.split_once(prefix)?;
        let end = behind.find(|character: char| {
            !character.is_ascii_alphanumeric() && !matches!(character, '/' | '.' | '_')
        });
        Some(&behind[..end.unwrap_or(behind.len())])
    };
    let within = tablespaces.iter().find_map(|tablespace| {
        let inside = behind(&format!("{}/", tablespace.location.to_str()?))?;
        Some(format!("pg_tblspc/{}/{inside}", tablespace.oid))
    });
    within.or_else(|| behind("./").map(str::to_owned))
}

/// What people write of the configuration is another matter: it may lie outside of the data directory anyway. What the
/// server writes is none that anybody could bring.
fn is_needed(path: &str, databases: &HashSet<u32>, rules: &Exclusion) -> bool {
    let version_directory = rules.tablespace_directory();
    let database = own_path::database(path, version_directory);
    if database.is_some_and(|oid| !databases.contains(&oid)) {
        return false;
    }
    let is_data = path.contains('/') || ["PG_VERSION", "postgresql.auto.conf"].contains(&path);
    own_path::is_folder(path, version_directory) && rules.descends_into(path)
        || own_path::is_file(path, version_directory) && rules.keeps_file(path) && is_data
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::pg::version::Major;

    #[test]
    fn links_that_are_parts_of_the_cluster_are_found_in_any_language() {
        let rules = Exclusion::new(Major::V15, []);
        let tablespaces = [Tablespace {
            oid: 16_390,
            location: PathBuf::from("/srv/far"),
        }];
        let databases = HashSet::from([5]);
        let of = |text: &str| needed(&[text.to_owned()], &tablespaces, &databases, &rules);
        let found = |text| of(text).unwrap_or_default();
        assert_eq!(
            found("skipping special file \"./base/5/16384_fsm\""),
            "base/5/16384_fsm"
        );
        assert_eq!(found("überspringe besondere Datei »./pg_xact«"), "pg_xact");
        assert_eq!(found("\"./base/5\"をスキップしています"), "base/5");
        assert_eq!(found("\"./postgresql.auto.conf\""), "postgresql.auto.conf");
        assert_eq!(
            found("skipping special file \"/srv/far/PG_15_202209061/5/16391\""),
            "pg_tblspc/16390/PG_15_202209061/5/16391"
        );
        for other in [
            "skipping special file \"./.s.PGSQL.5432\"",
            "skipping special file \"./postgresql.conf\"",
            "skipping special file \"./conf.d\"",
            "skipping special file \"./base/77777\"",
            "skipping special file \"./pg_stat_tmp\"",
            "checksum verification failed",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
        let warnings =
            ["skipping \"./pg_hba.conf\"", "\"./base/5/pg_ident.conf\""].map(str::to_owned);
        assert_eq!(
            configuration(&warnings).collect::<Vec<_>>(),
            ["pg_hba.conf"]
        );
    }
}
