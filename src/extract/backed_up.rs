//! What of the wanted database is restored whole at first: what its catalogs say in the backup's pages.
//!
//! It is a guess, as the position is another moment than the backup: the server is asked later
//! ([`Relations`](crate::extract::relations::Relations)), and what it needs beyond this is restored whole the next time.
//! What the guess may not lack are the catalogs that the server itself reads.

use std::collections::{BTreeSet, HashMap};

use crate::catalogs::{Belief, Catalogs, RelationFiles, backed_up};
use crate::error::Result;
use crate::extract::pattern::TablePattern;
use crate::interrupt::Interrupt;
use crate::pg::catalog::{ClassRow, FIRST_NORMAL, PG_TOAST_SCHEMA};
use crate::pg::little_endian::u32_at;
use crate::repository::chain::Chain;
use crate::restore::plan::major;

/// The OID of pg_inherits, whose rows begin with a child and its parent.
const PG_INHERITS: u32 = 2611;

/// The OID of pg_authid, whose rows go on behind the name with whether the role is a superuser.
const PG_AUTHID: u32 = 1260;
const ROLE_NAME: usize = 4;
const ROLE_IS_SUPERUSER: usize = 68;

/// Catalogs with users' data, which a table's dump does not need: pg_largeobject and its index.
pub(super) const LARGE_OBJECTS: [u32; 2] = [2613, 2683];

/// The numbers of the files, in the wanted database, that come whole.
#[derive(Debug, Clone, Default)]
pub(super) struct Whole(pub(super) BTreeSet<u32>);

impl Whole {
    /// Whether the files of a number come whole: those that initdb made are catalogs'.
    pub(super) fn has(&self, relfilenumber: u32) -> bool {
        self.0.contains(&relfilenumber)
            || relfilenumber < FIRST_NORMAL && !LARGE_OBJECTS.contains(&relfilenumber)
    }
}

/// Reads what the catalogs of a database tell of its relations, and chooses.
pub(super) fn choose(
    chain: &Chain,
    database: u32,
    tables: &[TablePattern],
    interrupt: &Interrupt,
) -> Result<Whole> {
    let mut catalogs = Catalogs::new(major(&chain.newest.info)?);
    let is_wanted = |one| one == database;
    let belief = Belief::Beginning;
    backed_up::read(chain, &is_wanted, &mut catalogs, belief, interrupt)?;
    let mut whole = Whole(catalogs.mapped_in(database).collect());
    let mut classes: HashMap<u32, Vec<&ClassRow>> = HashMap::new();
    let mut by_name: HashMap<&str, Vec<&ClassRow>> = HashMap::new();
    let mut wanted = BTreeSet::new();
    let mut inherits = BTreeSet::new();
    for relation in catalogs.relations_of(database) {
        let class = &relation.class;
        classes.entry(class.oid).or_default().push(class);
        if class.schema == PG_TOAST_SCHEMA {
            by_name.entry(&class.name).or_default().push(class);
        }
        if class.oid == PG_INHERITS {
            inherits.insert(class.relfilenumber);
        }
        let is_catalog = class.oid < FIRST_NORMAL && !LARGE_OBJECTS.contains(&class.oid);
        // pg_dump of 18 reads all sequences, whatever it is to dump; each is a page.
        if is_catalog || class.kind == b'S' {
            whole.0.insert(class.relfilenumber);
        }
        let name = catalogs.name(relation);
        if class.is_named() && tables.iter().any(|pattern| pattern.fits(&name)) {
            wanted.insert(class.oid);
        }
    }
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for relfilenumber in inherits {
        let files = RelationFiles {
            database,
            relfilenumber,
        };
        backed_up::visit_rows(chain, files, interrupt, &mut |row| {
            if row.len() >= 8 {
                children
                    .entry(u32_at(row, 4))
                    .or_default()
                    .push(u32_at(row, 0));
            }
        })?;
    }
    let mut open = Vec::from_iter(wanted.iter().copied());
    while let Some(table) = open.pop() {
        let below = children.get(&table).into_iter().flatten();
        open.extend(below.filter(|child| wanted.insert(**child)));
    }
    let all = |oid: &u32| classes.get(oid).into_iter().flatten();
    for class in wanted.iter().flat_map(all).filter(|class| class.has_rows()) {
        whole.0.insert(class.relfilenumber);
        for toast in all(&class.toast) {
            whole.0.insert(toast.relfilenumber);
            let index = format!("{}_index", toast.name);
            let index = by_name.get(index.as_str()).into_iter().flatten();
            whole.0.extend(index.map(|index| index.relfilenumber));
        }
    }
    // Of what has no file, or one that the map tells.
    whole.0.remove(&0);
    Ok(whole)
}

/// The names of superusers that the backup knows, the one first that initdb made: the server must be asked by one of them.
pub(super) fn superusers(chain: &Chain, interrupt: &Interrupt) -> Result<Vec<String>> {
    let mut found: Vec<(u32, String)> = Vec::new();
    for files in backed_up::mapped(chain, 0, PG_AUTHID, interrupt)? {
        backed_up::visit_rows(chain, files, interrupt, &mut |row| {
            if row.get(ROLE_IS_SUPERUSER) != Some(&1) {
                return;
            }
            let name = &row[ROLE_NAME..ROLE_IS_SUPERUSER];
            let end = name.iter().position(|byte| *byte == 0);
            if let Ok(name) = std::str::from_utf8(&name[..end.unwrap_or(name.len())]) {
                found.push((u32_at(row, 0), name.to_owned()));
            }
        })?;
    }
    found.sort();
    found.dedup();
    Ok(found.into_iter().map(|(_, name)| name).collect())
}
