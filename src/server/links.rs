//! Whether a file or folder of the server is a symbolic link, which SQL has no function to ask.
//!
//! pg_stat_file follows links (adt/genfile.c). But Linux follows at most 40 in one path, and fails at the next one with
//! ELOOP (fs/namei.c, MAXSYMLINKS). `/proc/PID/root` and `/proc/PID/cwd` are links, to the folder `/` and, in a session of
//! the server, to the data directory: after `/proc/PID/root` 39 times and `/proc/PID/cwd` once, any further link is one
//! too many, and everything else is found as usual. The server notes each link as an error in its log.

use postgres::Client;
use postgres::error::SqlState;
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::{ToSql, Type};

use crate::error::Result;
use crate::server::conflict;
use crate::server::connect::server_error;

/// How many links Linux follows in one path.
const MOST_LINKS: i32 = 40;

/// One row a path, NULL where nothing is there. `$2` links are followed before the path; with none, it is taken as it is.
const STATE: &str = "\
SELECT p.number::int4, s.size, floor(extract(epoch FROM s.modification))::int8, s.isdir
  FROM unnest($1::text[]) WITH ORDINALITY AS p(path, number),
       pg_stat_file(CASE WHEN $2 > 0 THEN repeat('/proc/' || pg_backend_pid() || '/root', $2 - 1)
                                          || '/proc/' || pg_backend_pid() || '/cwd/'
                         ELSE '' END || p.path, true) AS s";

/// A file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    /// Bytes.
    pub(super) size: u64,
    /// Seconds since 1970.
    pub(super) modified: i64,
    /// Whether it is a folder.
    pub(super) is_directory: bool,
}

impl State {
    /// None where nothing is there. The columns are those of pg_stat_file.
    pub(super) fn of(
        size: Option<i64>,
        modified: Option<i64>,
        is_directory: Option<bool>,
    ) -> Option<State> {
        Some(State {
            // A size below zero is found to be impossible by whoever looks at the sizes.
            size: u64::try_from(size?).unwrap_or(u64::MAX),
            modified: modified?,
            is_directory: is_directory?,
        })
    }

    /// Whether no file has such a size.
    pub(super) fn is_impossible(self) -> bool {
        self.size > i64::MAX as u64
    }
}

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// A file or folder.
    Entry(State),
    /// A symbolic link, wherever it leads.
    Link,
    /// Nothing, or nothing any more.
    Nothing,
}

/// What is there at each path; links are followed.
pub(super) fn follow(client: &mut Client, paths: &[&str]) -> Result<Vec<Found>> {
    ask(client, paths, 0, |_, error| {
        Err(server_error("list the server's files", &error))
    })
}

/// What is there at each path, below the data directory, to which `way` links are followed: a further one is not.
pub(super) fn look(client: &mut Client, paths: &[&str], way: Way) -> Result<Vec<Found>> {
    let mut denied = Vec::new();
    let mut found = ask(client, paths, MOST_LINKS - way.0, |path, error| {
        if error.code() == Some(&SqlState::INTERNAL_ERROR) {
            return Ok(Found::Link);
        }
        denied.push(path);
        Ok(Found::Nothing)
    })?;
    // Asked as usual, it is there, or the error names it as usual.
    for path in denied {
        found[path] = follow(client, &paths[path..=path])?
            .pop()
            .unwrap_or(Found::Nothing);
    }
    Ok(found)
}

/// How many links are followed on the way from the data directory to a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Way(i32);

/// The way to a folder below the data directory. None where it cannot be told: the server's system is not Linux, or
/// hides `/proc` from it.
pub(super) fn way(client: &mut Client, folder: &str) -> Result<Option<Way>> {
    for links in 0..MOST_LINKS {
        let found = ask(client, &[folder], MOST_LINKS - links, |_, error| {
            Ok(match error.code() {
                Some(code) if *code == SqlState::INTERNAL_ERROR => Found::Link,
                _ => Found::Nothing,
            })
        })?;
        match found[..] {
            [Found::Entry(_)] => return Ok(Some(Way(links))),
            [Found::Link] => {}
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// Asks for all of the paths. The server answers up to the first that it fails at; `failed` says what that one is, and
/// the rest is asked for again.
fn ask(
    client: &mut Client,
    paths: &[&str],
    links: i32,
    mut failed: impl FnMut(usize, postgres::Error) -> Result<Found>,
) -> Result<Vec<Found>> {
    let mut found = Vec::with_capacity(paths.len());
    let mut conflicts = 0;
    while found.len() < paths.len() {
        let before = found.len();
        match answers(client, &paths[before..], links, &mut found) {
            Ok(()) if found.len() == paths.len() => {}
            Ok(()) => {
                return Err(crate::error::Error::server(format!(
                    "the server told of {} of {} of its files",
                    found.len(),
                    paths.len()
                )));
            }
            Err(error) if conflict::is_conflict(&error) => {
                conflicts = if found.len() > before {
                    0
                } else {
                    conflicts + 1
                };
                if conflicts == conflict::TRIES {
                    return Err(server_error("list the server's files", &error));
                }
            }
            Err(error) if error.code().is_some() && found.len() < paths.len() => {
                let path = found.len();
                found.push(failed(path, error)?);
            }
            Err(error) => return Err(server_error("list the server's files", &error)),
        }
    }
    Ok(found)
}

fn answers(
    client: &mut Client,
    paths: &[&str],
    links: i32,
    found: &mut Vec<Found>,
) -> std::result::Result<(), postgres::Error> {
    let parameters: [(&(dyn ToSql + Sync), Type); 2] =
        [(&paths, Type::TEXT_ARRAY), (&links, Type::INT4)];
    let mut rows = client.query_typed_raw(STATE, parameters)?;
    let mut expected = 0;
    while let Some(row) = rows.next()? {
        expected += 1;
        // One row a path, in their order.
        if row.try_get::<_, i32>(0)? != expected || expected as usize > paths.len() {
            break;
        }
        let state = State::of(row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        found.push(state.map_or(Found::Nothing, Found::Entry));
    }
    Ok(())
}
