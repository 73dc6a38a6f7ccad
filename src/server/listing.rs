//! All files of the data directory, by one query.

use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::ToSql;

use crate::error::{Error, Result};
use crate::pg::relative_path::stays_inside;
use crate::server::conflict;
use crate::server::connect::server_error;

/// A file or directory of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Relative to PGDATA; absolute below an absolute root.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970.
    pub modified: i64,
    /// A directory, or a link to one.
    pub is_directory: bool,
}

/// What not to look into.
#[derive(Debug, Clone, Default)]
pub struct Skipped<'a> {
    /// Directories whose entries are not listed; they themselves are.
    pub contents_of: Vec<&'a str>,
    /// The one directory of a tablespace that is this server's, such as
    /// `PG_15_202209061`.
    pub tablespace_directory: &'a str,
}

/// Deeper than any data directory goes; a link that leads back up ends here.
const DEEPEST: i32 = 24;

/// One pg_ls_dir a directory and one pg_stat_file an entry. Whatever vanishes
/// in between is left out: pg_stat_file gives NULL for it.
const LIST: &str = "\
WITH RECURSIVE entry AS (
    SELECT $1::text || n.name AS path, n.name, 1 AS depth, s.size, s.modification, s.isdir
      FROM pg_ls_dir($2) AS n(name), pg_stat_file($1::text || n.name, true) AS s
     WHERE s.isdir IS NOT NULL
    UNION ALL
    SELECT e.path || '/' || n.name, n.name, e.depth + 1, s.size, s.modification, s.isdir
      FROM entry AS e, pg_ls_dir(e.path, true, false) AS n(name),
           pg_stat_file(e.path || '/' || n.name, true) AS s
     WHERE e.isdir AND e.depth < $3 AND e.path <> ALL ($4::text[]) AND e.name NOT LIKE 'pgsql\\_tmp%'
       AND NOT (e.depth = 2 AND e.path LIKE 'pg\\_tblspc/%' AND n.name <> $5)
       AND s.isdir IS NOT NULL
)
SELECT path, size, extract(epoch FROM modification)::int8, isdir, depth FROM entry";

const STAT: &str = "\
SELECT s.size, extract(epoch FROM s.modification)::int8, s.isdir FROM pg_stat_file($1, true) AS s";

/// Lists the data directory.
pub fn data_directory(client: &mut Client, skipped: &Skipped<'_>) -> Result<Vec<Listed>> {
    list(client, "", ".", skipped)
}

/// Lists a further file, or a folder with all below it. Nothing there is an error.
pub fn extra(client: &mut Client, path: &str) -> Result<Vec<Listed>> {
    let row = conflict::repeated(|| client.query_one(STAT, &[&path]))
        .map_err(|error| server_error(&format!("look at {path}"), &error))?;
    let is_directory: Option<bool> = row
        .try_get(2)
        .map_err(|error| server_error(&format!("look at {path}"), &error))?;
    match is_directory {
        None => Err(Error::server(format!("the server has no file {path}"))
            .hint("correct `extra` in the configuration")),
        Some(true) => list(
            client,
            &format!("{}/", path.trim_end_matches('/')),
            path,
            &Skipped::default(),
        ),
        Some(false) => Ok(vec![Listed {
            path: path.to_owned(),
            size: row
                .try_get::<_, i64>(0)
                .ok()
                .and_then(|size| u64::try_from(size).ok())
                .ok_or_else(|| Error::server(format!("the server gives {path} no size")))?,
            modified: row
                .try_get(1)
                .map_err(|error| server_error(&format!("look at {path}"), &error))?,
            is_directory: false,
        }]),
    }
}

fn list(
    client: &mut Client,
    prefix: &str,
    root: &str,
    skipped: &Skipped<'_>,
) -> Result<Vec<Listed>> {
    let parameters: [&(dyn ToSql + Sync); 5] = [
        &prefix,
        &root,
        &DEEPEST,
        &skipped.contents_of,
        &skipped.tablespace_directory,
    ];
    let (listed, deepest) = conflict::repeated(|| {
        let mut listed = Vec::new();
        let mut deepest = None;
        let mut rows = client.query_raw(LIST, parameters)?;
        while let Some(row) = rows.next()? {
            let entry = Listed {
                path: row.try_get(0)?,
                size: u64::try_from(row.try_get::<_, i64>(1)?).unwrap_or(u64::MAX),
                modified: row.try_get(2)?,
                is_directory: row.try_get(3)?,
            };
            if row.try_get::<_, i32>(4)? == DEEPEST {
                deepest.get_or_insert_with(|| entry.path.clone());
            }
            listed.push(entry);
        }
        Ok((listed, deepest))
    })
    .map_err(|error| server_error("list the server's files", &error))?;
    let inside = |path: &str| path.strip_prefix(prefix).is_some_and(stays_inside);
    if let Some(wrong) = listed
        .iter()
        .find(|entry| entry.size > i64::MAX as u64 || !inside(&entry.path))
    {
        return Err(Error::server(format!(
            "the server lists what cannot be a file of its own: {:?}",
            wrong.path
        ))
        .hint("somebody may have replaced its functions pg_ls_dir or pg_stat_file: trust nothing that comes from it"));
    }
    match deepest {
        None => Ok(listed),
        Some(path) => Err(
            Error::server(format!("the server's folders nest too deeply: {path}"))
                .hint("remove the symbolic link in there that leads back up"),
        ),
    }
}
