//! All files of the data directory: from its disk, where that is at hand, or by few queries.
//!
//! By SQL, folders are listed level by level, all those of a level by one query. Symbolic links are followed where PostgreSQL
//! itself has a file or folder of that name, and left out elsewhere, as backup/basebackup.c leaves out what is neither
//! file nor folder: one may lead back up, or to what is none of the cluster's.

use std::collections::{BTreeMap, HashSet};

use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::{ToSql, Type};

use crate::error::{Error, Result};
use crate::pg::exclusion::Exclusion;
use crate::pg::own_path;
use crate::pg::paths::{PathPlace, Paths};
use crate::pg::relative_path::stays_inside;
use crate::server::conflict;
use crate::server::connect::server_error;
use crate::server::links::{self, Found, State, Way};
use crate::server::reading::FileReader;
use crate::server::text::ServerText;

/// A file or directory of the server.
#[derive(Debug, Clone, Copy)]
pub struct Listed {
    /// Relative to PGDATA; absolute below an absolute root.
    pub path: PathPlace,
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970.
    pub modified: i64,
    /// A directory, or a link to one.
    pub is_directory: bool,
}

/// Very many of them.
#[derive(Debug, Default)]
pub struct Listing {
    /// Their paths.
    pub paths: Paths,
    /// What there is beside these.
    pub entries: Vec<Listed>,
}

/// Deeper than anybody's folders go; where links cannot be told, one that leads back up ends here.
const DEEPEST: usize = 24;

/// How many are named of what is left out.
const NAMED: usize = 20;

/// The entries of folders. What is named like a relation's file in a folder of relations, which is nearly everything, is
/// looked at in the same query; NULL tells that it vanished in between, and is left out. No function here minds names that are not
/// valid in the database's encoding.
const ENTRIES: &str = "\
SELECT f.number::int4 - 1, n.name, s.size, floor(extract(epoch FROM s.modification))::int8, s.isdir
  FROM unnest($1::text[], $2::bool[]) WITH ORDINALITY AS f(path, holds_relations, number),
       pg_ls_dir(CASE f.path WHEN '' THEN '.' ELSE f.path END, true, false) AS n(name),
       LATERAL (SELECT f.holds_relations AND btrim(textsend(n.name), '0123456789')
                       IN ('', '.', '_fsm', '_fsm.', '_vm', '_vm.', '_init', '_init.')) AS k(is_relation),
       pg_stat_file(CASE WHEN k.is_relation THEN f.path || '/' || n.name END, true) AS s
 WHERE NOT k.is_relation OR s.isdir IS NOT NULL";

/// Whether every file name in UTF-8 can be said in the database's encoding.
const TAKES_UTF8: &str = "\
SELECT getdatabaseencoding() = 'UTF8' OR pg_encoding_max_length(pg_char_to_encoding(getdatabaseencoding())) = 1";

/// Lists the data directory, but for what the rules leave out anyway. `databases` are the OIDs of those that the
/// catalog has.
pub fn data_directory(
    reader: &mut FileReader,
    rules: &Exclusion,
    databases: &HashSet<u32>,
    listing: &mut Listing,
) -> Result<()> {
    let cluster = Cluster { rules, databases };
    match reader.disk() {
        Some(disk) => disk.list(cluster, reader, listing),
        None => Walk::new(reader.client(), Some(cluster), listing)?.run(String::new()),
    }
}

/// Lists a further file, or a folder with all below it, links followed. Nothing there is an error.
pub fn extra(reader: &mut FileReader, path: &str, listing: &mut Listing) -> Result<()> {
    let client = reader.client();
    let inside = path.trim_matches('/');
    if path.starts_with("//") || !inside.is_empty() && !stays_inside(inside) {
        return Err(Error::server(format!(
            "{path} cannot be stored: its path is not a plain one"
        ))
        .hint(
            "write it without \"..\", \".\" and \"//\", in `extra` or in the server's settings",
        ));
    }
    match links::follow(client, &[path])?[..] {
        [Found::Entry(state)] if state.is_directory => {
            let root = Some(path.trim_end_matches('/')).filter(|path| !path.is_empty());
            let listed = Walk::new(client, None, listing)?.run(root.unwrap_or("/").to_owned());
            listed.map_err(|error| match error.is_momentary() {
                true => error,
                false => error
                    .context(format_args!("the further folder {path} cannot be stored"))
                    .hint("mend what is in it, or name only parts of it: `extra` in the configuration"),
            })
        }
        [Found::Entry(state)] => {
            listing.push(path, state);
            Ok(())
        }
        _ => Err(Error::server(format!("the server has no file {path}"))
            .hint("correct `extra` in the configuration")),
    }
}

impl Listing {
    pub(super) fn push(&mut self, path: &str, state: State) {
        let path = self.paths.push(path);
        self.entries.push(Listed {
            path,
            size: state.size,
            modified: state.modified,
            is_directory: state.is_directory,
        });
    }
}

/// What is known of a data directory before it is listed.
#[derive(Clone, Copy)]
pub(super) struct Cluster<'a> {
    pub(super) rules: &'a Exclusion,
    databases: &'a HashSet<u32>,
}

impl Cluster<'_> {
    pub(super) fn is_own_file(self, path: &str) -> bool {
        own_path::is_file(path, self.rules.tablespace_directory())
    }

    pub(super) fn is_own_folder(self, path: &str) -> bool {
        let tablespace_directory = self.rules.tablespace_directory();
        own_path::is_folder(path, tablespace_directory)
            && own_path::database(path, tablespace_directory)
                .is_none_or(|oid| self.databases.contains(&oid))
    }

    pub(super) fn keeps(self, path: &str) -> bool {
        self.rules.keeps_file(path) || self.rules.keeps_directory(path)
    }

    /// Whether an entry is looked at as what it leads to, should it be a link. Of what a backup does not look into, a
    /// link is as good as a folder.
    pub(super) fn follows(self, path: &str) -> bool {
        self.is_own_file(path)
            || self.is_own_folder(path)
            || !self.rules.keeps_file(path)
            || !self.rules.descends_into(path)
    }

    /// Whether a folder that a backup looks into is none of PostgreSQL's.
    pub(super) fn is_strange_folder(self, path: &str) -> bool {
        !self.is_own_folder(path) && self.rules.descends_into(path)
    }
}

/// A folder whose entries are still to be listed.
struct Folder {
    path: String,
    /// Where links are told from folders: the way to a folder of strangers. PostgreSQL's own may be links.
    way: Option<Way>,
}

/// An entry of a folder that is still to be looked at.
struct Entry {
    path: String,
    folder: usize,
}

struct Walk<'a> {
    client: &'a mut Client,
    /// None of further folders of the server.
    cluster: Option<Cluster<'a>>,
    /// Whether links can be told; not known before there is something to tell.
    tells_links: Option<bool>,
    takes_utf8: bool,
    listing: &'a mut Listing,
    left_out: LeftOut,
}

/// What a listing does without, of which its reader is told.
#[derive(Default)]
pub(super) struct LeftOut {
    pub(super) links: Vec<String>,
    /// Entries of further folders that lead to nothing.
    dangling: Vec<String>,
    pub(super) unnameable: Vec<String>,
    /// Pipes, sockets and devices.
    pub(super) special: Vec<String>,
}

impl<'a> Walk<'a> {
    fn new(
        client: &'a mut Client,
        cluster: Option<Cluster<'a>>,
        listing: &'a mut Listing,
    ) -> Result<Walk<'a>> {
        let takes_utf8 = conflict::repeated(|| client.query_typed_one(TAKES_UTF8, &[]))
            .and_then(|row| row.try_get(0))
            .map_err(|error| server_error("ask for the database's encoding", &error))?;
        Ok(Walk {
            client,
            cluster,
            tells_links: None,
            takes_utf8,
            listing,
            left_out: LeftOut::default(),
        })
    }

    fn run(mut self, root: String) -> Result<()> {
        let mut folders = vec![Folder {
            path: root,
            way: None,
        }];
        let mut depth = 0;
        while let Some(deepest) = folders.first() {
            if depth >= DEEPEST && self.tells_links != Some(true) {
                return Err(Error::server(format!(
                    "the server's folders nest too deeply: {}",
                    deepest.path
                ))
                .hint("remove the symbolic link in there that leads back up"));
            }
            folders = self.level(&folders)?;
            depth += 1;
        }
        self.left_out.warn();
        Ok(())
    }

    /// Lists the entries of these folders; gives the folders among them to look into.
    fn level(&mut self, folders: &[Folder]) -> Result<Vec<Folder>> {
        let entries = self.entries(folders)?;
        let (own, mut strangers): (Vec<Entry>, Vec<Entry>) =
            entries.into_iter().partition(|entry| {
                self.cluster
                    .is_none_or(|cluster| cluster.follows(&entry.path))
            });
        let mut next = Vec::new();
        let paths: Vec<&str> = own.iter().map(|entry| entry.path.as_str()).collect();
        let found = match paths.is_empty() {
            true => Vec::new(),
            false => links::follow(self.client, &paths)?,
        };
        for (entry, found) in own.into_iter().zip(found) {
            match found {
                Found::Entry(state)
                    if state.is_directory
                        && self
                            .cluster
                            .is_some_and(|cluster| cluster.is_strange_folder(&entry.path)) =>
                {
                    strangers.push(entry);
                }
                Found::Entry(state) => next.extend(self.take(entry.path, state, None)?),
                Found::Nothing if self.cluster.is_none() => self.left_out.dangling.push(entry.path),
                Found::Link | Found::Nothing => {}
            }
        }
        self.strangers(folders, strangers, &mut next)?;
        Ok(next)
    }

    /// Asks for the entries of folders. Relations are listed at once; the rest is still to be looked at.
    fn entries(&mut self, folders: &[Folder]) -> Result<Vec<Entry>> {
        let paths: Vec<&str> = folders.iter().map(|folder| folder.path.as_str()).collect();
        let holds_relations: Vec<bool> = paths
            .iter()
            .map(|path| self.holds_relations(path))
            .collect();
        let parameters: [(&(dyn ToSql + Sync), Type); 2] = [
            (&paths, Type::TEXT_ARRAY),
            (&holds_relations, Type::BOOL_ARRAY),
        ];
        let (cluster, takes_utf8) = (self.cluster, self.takes_utf8);
        let (known, bytes) = (self.listing.entries.len(), self.listing.paths.bytes());
        let unnameable = self.left_out.unnameable.len();
        let mut entries = Vec::new();
        let wrong = conflict::repeated(|| {
            entries.clear();
            self.listing.entries.truncate(known);
            self.listing.paths.truncate(bytes);
            self.left_out.unnameable.truncate(unnameable);
            let mut rows = self.client.query_typed_raw(ENTRIES, parameters.clone())?;
            while let Some(row) = rows.next()? {
                let folder: i32 = row.try_get(0)?;
                let name: ServerText = row.try_get(1)?;
                let state = State::of(row.try_get(2)?, row.try_get(3)?, row.try_get(4)?);
                let Some((folder, within)) = usize::try_from(folder)
                    .ok()
                    .and_then(|folder| Some((folder, *paths.get(folder)?)))
                else {
                    return Ok(Some(name.to_string()));
                };
                let name = match name.utf8() {
                    Ok(name) if name.is_ascii() || takes_utf8 => name,
                    Ok(name) => {
                        self.left_out.unnameable.push(join(within, &name));
                        continue;
                    }
                    Err(name) => {
                        self.left_out
                            .unnameable
                            .push(join(within, &name.to_string()));
                        continue;
                    }
                };
                let is_impossible = state.is_some_and(State::is_impossible);
                if !stays_inside(&name) || name.contains('/') || is_impossible {
                    return Ok(Some(name));
                }
                let path = join(within, &name);
                let is_own_file = |cluster: Cluster<'_>| cluster.is_own_file(&path);
                match state {
                    Some(state) if !state.is_directory && cluster.is_some_and(is_own_file) => {
                        self.listing.push(&path, state);
                    }
                    _ if cluster.is_none_or(|cluster| cluster.keeps(&path)) => {
                        entries.push(Entry { path, folder });
                    }
                    _ => {}
                }
            }
            Ok(None)
        })
        .map_err(|error| server_error("list the server's files", &error))?;
        match wrong {
            Some(name) => Err(impossible(&name)),
            None => Ok(entries),
        }
    }

    fn holds_relations(&self, path: &str) -> bool {
        self.cluster.is_some_and(|cluster| {
            own_path::holds_relations(path, cluster.rules.tablespace_directory())
        })
    }

    /// Looks at what PostgreSQL does not know, and leaves out the links.
    fn strangers(
        &mut self,
        folders: &[Folder],
        strangers: Vec<Entry>,
        next: &mut Vec<Folder>,
    ) -> Result<()> {
        let mut ways = BTreeMap::<usize, Option<Way>>::new();
        let mut by_way = BTreeMap::<Option<Way>, Vec<String>>::new();
        for Entry { path, folder } in strangers {
            let way = match ways.get(&folder) {
                Some(way) => *way,
                None => {
                    let way = self.way(&folders[folder])?;
                    ways.insert(folder, way);
                    way
                }
            };
            by_way.entry(way).or_default().push(path);
        }
        for (way, paths) in by_way {
            let asked: Vec<&str> = paths.iter().map(String::as_str).collect();
            let found = match way {
                Some(way) => links::look(self.client, &asked, way)?,
                None => links::follow(self.client, &asked)?,
            };
            for (path, found) in paths.into_iter().zip(found) {
                match found {
                    Found::Entry(state) => next.extend(self.take(path, state, way)?),
                    Found::Link => self.left_out.links.push(path),
                    Found::Nothing => {}
                }
            }
        }
        Ok(())
    }

    /// The way to a folder, if links can be told there.
    fn way(&mut self, folder: &Folder) -> Result<Option<Way>> {
        if folder.way.is_some() {
            return Ok(folder.way);
        }
        if self.tells_links.is_none() {
            let tells = links::way(self.client, "")?.is_some();
            if !tells {
                log::debug!("the server does not let links be told from folders");
            }
            self.tells_links = Some(tells);
        }
        match self.tells_links {
            Some(true) => links::way(self.client, &folder.path),
            _ => Ok(None),
        }
    }

    /// Lists an entry; gives the folder that is to be looked into.
    fn take(&mut self, path: String, state: State, way: Option<Way>) -> Result<Option<Folder>> {
        if state.is_impossible() {
            return Err(impossible(&path));
        }
        let is_entered = state.is_directory
            && self
                .cluster
                .is_none_or(|cluster| cluster.rules.descends_into(&path));
        let folder = is_entered.then(|| Folder {
            path: path.clone(),
            way,
        });
        self.listing.push(&path, state);
        Ok(folder)
    }
}

impl LeftOut {
    /// Says what it is.
    pub(super) fn warn(&self) {
        for (left_out, why) in [
            (
                &self.links,
                "a symbolic link; where PostgreSQL knows no file or folder of that name, links are not followed \
                 (`extra` in the configuration can name what it leads to)",
            ),
            (
                &self.dangling,
                "a link that leads to nothing, or removed just now",
            ),
            (
                &self.unnameable,
                "its name is not UTF-8, or not valid in the encoding of the database that pgkeep connects to",
            ),
            (&self.special, "neither a file nor a folder"),
        ] {
            for path in left_out.iter().take(NAMED) {
                log::warn!("left out of the backup: {path}: {why}");
            }
            if left_out.len() > NAMED {
                log::warn!(
                    "left out of the backup for the same reason: {} more",
                    left_out.len() - NAMED
                );
            }
        }
    }
}

pub(super) fn join(folder: &str, name: &str) -> String {
    match folder {
        "" => name.to_owned(),
        "/" => format!("/{name}"),
        _ => format!("{folder}/{name}"),
    }
}

/// What no server of PostgreSQL's lists.
fn impossible(path: &impl ToString) -> Error {
    Error::server(format!(
        "the server lists what cannot be a file of its own: {:?}",
        path.to_string()
    ))
    .hint("somebody may have replaced its functions pg_ls_dir or pg_stat_file: trust nothing that comes from it")
}
