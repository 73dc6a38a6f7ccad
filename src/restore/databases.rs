//! Some databases of a backup, without the others.
//!
//! Databases are known by the rows of pg_database, as the backup's pages have them and as the WAL up to the position changes them:
//! one may be named as it was called at either end. Two things that recovery does to the files of databases
//! concern what is left out:
//!
//! - It copies a database by its files, where that was made so (`CREATE DATABASE ... STRATEGY file_copy`; before 15 there was
//!   no other way). A copy of holes would be an empty database that nobody is warned of. So what a wanted database
//!   was copied from is restored, too.
//! - It changes a page that was not brought whole by any WAL before. Of a page of zeros it then says that there should be
//!   one, and ends, unless it is told not to mind (`ignore_invalid_pages`; access/transam/xlogutils.c, log_invalid_page).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;

use roaring::RoaringBitmap;

use crate::catalogs::{Belief, Catalogs, backed_up};
use crate::config::nearest;
use crate::error::{Error, Result};
use crate::pg::changed_blocks::RelationFork;
use crate::pg::relation::Fork;
use crate::pg::wal::{BlockReference, DatabaseChange, DatabaseFolder, HeapChange};
use crate::repository::chain::Chain;
use crate::restore::plan::{Route, major};
use crate::restore::replayed::Search;
use crate::restore::selection::Selection;

/// Those that initdb makes, which every cluster is expected to have.
const BUILT_IN: [&str; 3] = ["template0", "template1", "postgres"];

/// The databases of a backup, and what becomes of them up to a position.
#[derive(Debug, Default)]
pub struct Databases {
    /// What each was called where the backup was made, and at the position, which comes first.
    names: BTreeMap<u32, Vec<String>>,
    /// What was copied by its files, in the order of the WAL: from where, whereto.
    copies: Vec<(DatabaseFolder, DatabaseFolder)>,
    /// Those of which WAL changes pages that it never brought whole.
    met: BTreeSet<u32>,
}

/// Databases that are restored, and what that means for the others.
#[derive(Debug)]
pub struct Chosen {
    /// Which files come whole.
    pub selection: Selection,
    /// The names of those that are restored.
    pub kept: Vec<String>,
    /// The names of those that are left out, which the backup has files of.
    pub left_out: Vec<String>,
    /// Whether recovery must not mind pages that are none.
    pub ignores_invalid_pages: bool,
}

impl Databases {
    /// Reads what the backup tells of its databases, and the WAL that is replayed.
    pub fn read(search: &Search<'_>, chain: &Chain, route: &Route) -> Result<Databases> {
        let contents = &chain.newest;
        let major = major(&contents.info)?;
        let mut catalogs = Catalogs::new(major);
        let is_shared = |database| database == 0;
        let interrupt = search.interrupt;
        backed_up::read(
            chain,
            &is_shared,
            &mut catalogs,
            Belief::Beginning,
            interrupt,
        )?;
        let mut databases = Databases::default();
        databases.note_names(&catalogs);
        let mut begun = Begun::default();
        search.progress.step("look at what replay does", None);
        search.visit(contents, route, &mut |record| {
            catalogs.record(record, HeapChange::of(record)?.as_ref(), &mut |_, _| {});
            if let Some(DatabaseChange::Copied { from, to }) = DatabaseChange::of(major, record)? {
                databases.copies.push((from, to));
            }
            for block in record.blocks {
                let database = block.fork.database;
                if !databases.met.contains(&database) && begun.is_met(block) {
                    databases.met.insert(database);
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        databases.note_names(&catalogs);
        Ok(databases)
    }

    fn note_names(&mut self, catalogs: &Catalogs) {
        for (oid, name) in catalogs.databases() {
            let names = self.names.entry(oid).or_default();
            if names.first().is_none_or(|known| known != name) {
                names.insert(0, name.to_owned());
            }
        }
    }

    /// The OIDs of the databases that had a name.
    fn named(&self, name: &str) -> impl Iterator<Item = u32> {
        let is_called = move |names: &[String]| names.iter().any(|one| one == name);
        let named = self.names.iter().filter(move |(_, names)| is_called(names));
        named.map(|(oid, _)| *oid)
    }

    /// All names of a database, or its OID.
    fn name(&self, database: u32) -> String {
        match self.names.get(&database) {
            Some(names) => names.join(", "),
            None => database.to_string(),
        }
    }

    /// The database of this name, by the position's names first.
    pub fn find(&self, name: &str, chain: &Chain) -> Result<u32> {
        let newest = |is_called: &dyn Fn(&[String]) -> bool| {
            let mut names = self.names.iter().rev();
            names
                .find(|(_, names)| is_called(names))
                .map(|(oid, _)| *oid)
        };
        newest(&|names| names.first().is_some_and(|one| one == name))
            .or_else(|| newest(&|names| names.iter().any(|one| one == name)))
            .ok_or_else(|| self.unknown(name, chain))
    }

    /// The only database beside those that every cluster has; `postgres` where there is none.
    pub fn only_one(&self, chain: &Chain) -> Result<u32> {
        let is_built_in = |name: &String| BUILT_IN.contains(&name.as_str());
        let users = self
            .names
            .iter()
            .filter(|(_, names)| !names.iter().all(is_built_in));
        let users: Vec<(u32, &Vec<String>)> = users.map(|(oid, names)| (*oid, names)).collect();
        match users.as_slice() {
            [] => self.find("postgres", chain),
            [(oid, _)] => Ok(*oid),
            _ => {
                let names = users.iter().filter_map(|(_, names)| names.first());
                let names = Vec::from_iter(names.map(String::as_str)).join(", ");
                Err(
                    Error::usage("there are several databases, and none was named")
                        .hint(format!("-d names one of {names}; or postgres")),
                )
            }
        }
    }

    /// All names of a database, that at the position first.
    pub fn names_of(&self, database: u32) -> Vec<String> {
        self.names.get(&database).cloned().unwrap_or_default()
    }

    /// Whether recovery copies files into a database: those of another one, or its own into another tablespace.
    pub fn is_copied_to(&self, database: u32) -> bool {
        self.copies.iter().any(|(_, to)| to.database == database)
    }

    /// The databases whose files a database is copied from on the way, beside itself.
    pub fn sources(&self, database: u32) -> BTreeSet<u32> {
        let mut sources = BTreeSet::from([database]);
        self.add_sources(&mut sources);
        sources.remove(&database);
        sources
    }

    /// Adds those that others of the wanted ones are copied from.
    fn add_sources(&self, wanted: &mut BTreeSet<u32>) {
        for (from, to) in self.copies.iter().rev() {
            if wanted.contains(&to.database) && wanted.insert(from.database) {
                log::warn!(
                    "database {} is restored as well: database {} was copied from its files",
                    self.name(from.database),
                    self.name(to.database)
                );
            }
        }
    }

    /// Chooses the databases of these names, with those that every cluster has.
    pub fn choose(&self, wanted: &[String], chain: &Chain) -> Result<Chosen> {
        let mut kept: BTreeSet<u32> = BUILT_IN.iter().flat_map(|name| self.named(name)).collect();
        for name in wanted {
            let mut found = self.named(name).peekable();
            if found.peek().is_none() {
                return Err(self.unknown(name, chain));
            }
            kept.extend(found);
        }
        self.add_sources(&mut kept);
        let is_kept = |database| kept.contains(&database);
        let selection = Selection::new(chain, |fork| is_kept(fork.database), is_kept)?;
        let left_out: BTreeSet<u32> = self.left_out(&selection, chain)?;
        for (from, _) in &self.copies {
            if left_out.contains(&from.database) {
                log::warn!(
                    "recovery copies the files of database {}, which is left out, and they take up their full size then",
                    self.name(from.database)
                );
            }
        }
        let names = |databases: &BTreeSet<u32>| {
            let names = databases.iter().map(|database| self.name(*database));
            names.collect()
        };
        Ok(Chosen {
            kept: names(&kept),
            ignores_invalid_pages: !left_out.is_disjoint(&self.met),
            left_out: names(&left_out),
            selection,
        })
    }

    /// Those of which there are holes, or will be.
    fn left_out(&self, selection: &Selection, chain: &Chain) -> Result<BTreeSet<u32>> {
        let mut left_out = selection.databases(chain)?;
        for (from, to) in &self.copies {
            if left_out.contains(&from.database) {
                left_out.insert(to.database);
            }
        }
        Ok(left_out)
    }

    fn unknown(&self, name: &str, chain: &Chain) -> Error {
        let names = || self.names.values().flatten().map(String::as_str);
        let error = Error::usage(format!(
            "backup {} has no database {name:?}",
            chain.newest.info.backup
        ));
        match nearest(name, names()) {
            Some(near) => error.hint(format!("did you mean {near:?}?")),
            None => error.hint(format!(
                "it has {}",
                Vec::from_iter(names().collect::<BTreeSet<_>>()).join(", ")
            )),
        }
    }
}

/// The pages that WAL has brought whole so far.
#[derive(Default)]
struct Begun(HashMap<RelationFork, RoaringBitmap>);

impl Begun {
    /// Whether replay of a record would meet a page as the backup has it, instead of one that the WAL has brought. The maps
    /// of free space and of visibility may be empty.
    fn is_met(&mut self, block: &BlockReference) -> bool {
        if matches!(block.fork.fork, Fork::FreeSpaceMap | Fork::VisibilityMap) {
            return false;
        }
        let begun = self.0.entry(block.fork).or_default();
        if block.is_begun {
            begun.insert(block.block);
            return false;
        }
        !begun.contains(block.block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(database: u32) -> DatabaseFolder {
        DatabaseFolder {
            tablespace: 1663,
            database,
        }
    }

    #[test]
    fn what_a_wanted_database_is_copied_from_is_wanted_too() {
        let copies = [(5, 6), (9, 10), (6, 7), (8, 5), (7, 7)];
        let databases = Databases {
            copies: copies.map(|(from, to)| (folder(from), folder(to))).into(),
            ..Databases::default()
        };
        let mut wanted = BTreeSet::from([7]);
        databases.add_sources(&mut wanted);
        // What 5 became afterwards does not matter.
        assert_eq!(wanted, BTreeSet::from([5, 6, 7]));
    }

    #[test]
    fn a_page_is_met_that_no_record_has_brought() {
        let mut begun = Begun::default();
        let mut is_met = |fork, block, is_begun| {
            begun.is_met(&BlockReference {
                fork: RelationFork {
                    tablespace: 1663,
                    database: 5,
                    relfilenumber: 16_393,
                    fork,
                },
                block,
                has_image: false,
                is_begun,
            })
        };
        assert!(!is_met(Fork::Main, 1, true));
        assert!(!is_met(Fork::Main, 1, false));
        assert!(is_met(Fork::Main, 2, false));
        assert!(is_met(Fork::Init, 1, false));
        assert!(!is_met(Fork::VisibilityMap, 7, false));
    }
}
