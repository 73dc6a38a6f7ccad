//! The catalogs as they were at the record that is being read: who has which file, and what its name is.
//!
//! They begin with what a backup holds of pg_class, pg_namespace and pg_database, and follow what WAL does to these
//! tables row by row, so that a table of a minute's life has a name too, and a DROP is told from a TRUNCATE and from a
//! VACUUM FULL, all of which remove files in the same way.

pub(crate) mod backed_up;
mod pattern;

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use crate::pg::catalog::{
    CatalogRow, ClassRow, FIRST_NORMAL, PG_CATALOG_SCHEMA, PG_CLASS, PG_DATABASE, PG_NAMESPACE,
    PG_TOAST_SCHEMA, is_being_dropped,
};
use crate::pg::changed_blocks::RelationFork;
use crate::pg::heap_page::{self, RowPlace};
use crate::pg::lsn::Lsn;
use crate::pg::page::PAGE_SIZE;
use crate::pg::relation::Fork;
use crate::pg::relation_map::RelationMap;
use crate::pg::version::Major;
use crate::pg::wal::{
    BlockContent, DatabaseChange, HeapChange, Record, RowChange, changed_in_place, new_row,
};

pub(crate) use pattern::matches;

/// The schema that has what no other one was named for, which databases have from the beginning (catalog/pg_namespace.dat).
const PUBLIC_SCHEMA: u32 = 2200;

/// A relation's files, by their database and their number there. Zero is the database of what all databases share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RelationFiles {
    pub(crate) database: u32,
    pub(crate) relfilenumber: u32,
}

impl From<RelationFork> for RelationFiles {
    fn from(fork: RelationFork) -> RelationFiles {
        RelationFiles {
            database: fork.database,
            relfilenumber: fork.relfilenumber,
        }
    }
}

/// A relation of a database.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Relation {
    pub(crate) database: u32,
    pub(crate) class: ClassRow,
}

impl Relation {
    fn files(&self) -> RelationFiles {
        RelationFiles {
            database: self.database,
            relfilenumber: self.class.relfilenumber,
        }
    }
}

/// What a record did to a relation, for all that its transaction may yet fail.
#[derive(Debug, Clone)]
pub(crate) enum RelationChange {
    Created(Rc<Relation>),
    /// Its files are other ones.
    Refiled {
        old: Rc<Relation>,
        new: Rc<Relation>,
        /// Whether these were another relation's before, which it was rewritten into.
        were_others: bool,
    },
    Dropped(Rc<Relation>),
}

/// What was known before a record, to go back to.
#[derive(Debug)]
pub(crate) enum Before {
    Relation((u32, u32), Option<Rc<Relation>>),
    Files(RelationFiles, Option<Rc<Relation>>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Catalog {
    Relations,
    Schemas,
    Databases,
}

/// How much the rows of a page are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Belief {
    /// They are how things are where reading begins: those that are in force replace what was known.
    Beginning,
    /// They are from the middle of the way, where more is known than a page can tell.
    OnTheWay,
    /// They are from later, and only say what was not known.
    Hindsight,
}

pub(crate) struct Catalogs {
    major: Major,
    followed: HashMap<RelationFiles, Catalog>,
    /// The files of catalogs that pg_filenode.map tells of.
    mapped: HashSet<RelationFiles>,
    rows: HashMap<(RelationFiles, RowPlace), CatalogRow>,
    /// By database and OID.
    relations: HashMap<(u32, u32), Rc<Relation>>,
    /// What had another name or schema before.
    renamed: Vec<Rc<Relation>>,
    /// Those that had these files last.
    owners: HashMap<RelationFiles, Rc<Relation>>,
    /// By database and OID.
    schemas: HashMap<(u32, u32), String>,
    databases: HashMap<u32, String>,
    /// Databases that somebody has begun to drop, and where the record begins that says so.
    being_dropped: HashMap<u32, Lsn>,
}

impl Catalogs {
    pub(crate) fn new(major: Major) -> Catalogs {
        Catalogs {
            major,
            followed: HashMap::new(),
            mapped: HashSet::new(),
            rows: HashMap::new(),
            relations: HashMap::new(),
            renamed: Vec::new(),
            owners: HashMap::new(),
            schemas: HashMap::new(),
            databases: HashMap::new(),
            being_dropped: HashMap::new(),
        }
    }

    /// Learns which files a database's catalogs are in; zero for what is shared.
    pub(crate) fn follow(&mut self, database: u32, map: &RelationMap) {
        for (oid, catalog) in [
            (PG_CLASS, Catalog::Relations),
            (PG_DATABASE, Catalog::Databases),
        ] {
            if let Some(relfilenumber) = map.relfilenumber(oid) {
                let files = RelationFiles {
                    database,
                    relfilenumber,
                };
                self.followed.insert(files, catalog);
            }
        }
        self.mapped
            .extend(map.relfilenumbers().map(|relfilenumber| RelationFiles {
                database,
                relfilenumber,
            }));
    }

    /// The file of a database's schemas, which is known once its relations are.
    pub(crate) fn schemas_file(&self, database: u32) -> Option<u32> {
        let schemas = self.relations.get(&(database, PG_NAMESPACE))?;
        Some(schemas.class.relfilenumber)
    }

    /// Forgets where rows are: WAL is missing, or what is known is not of where reading begins.
    pub(crate) fn forget_places(&mut self) {
        self.rows.clear();
    }

    /// Takes all rows of a page of a table that is followed.
    pub(crate) fn page(
        &mut self,
        files: RelationFiles,
        block: u32,
        page: &[u8; PAGE_SIZE],
        belief: Belief,
    ) {
        let Some(catalog) = self.followed.get(&files).copied() else {
            return;
        };
        for stored in heap_page::rows(page) {
            let Some(row) = CatalogRow::of(stored.content) else {
                continue;
            };
            let place = RowPlace {
                block,
                offset: stored.offset,
            };
            if belief != Belief::Hindsight {
                self.rows.insert((files, place), row);
            }
            let is_preferred = stored.is_current && belief == Belief::Beginning;
            self.know(files.database, catalog, &row, is_preferred);
        }
    }

    /// What a row says, where nothing else is known, or it is to be preferred.
    fn know(&mut self, database: u32, catalog: Catalog, row: &CatalogRow, is_preferred: bool) {
        match catalog {
            Catalog::Relations => {
                let class = row.class(self.major);
                let relation = Rc::new(Relation { database, class });
                let oid = (database, relation.class.oid);
                if is_preferred || !self.relations.contains_key(&oid) {
                    self.relations.insert(oid, Rc::clone(&relation));
                }
                self.follow_schemas(&relation);
                let files = relation.files();
                let is_new = !self.owners.contains_key(&files);
                if files.relfilenumber != 0 && (is_preferred || is_new) {
                    self.owners.insert(files, relation);
                }
            }
            Catalog::Schemas => {
                let oid = (database, row.oid());
                if is_preferred || !self.schemas.contains_key(&oid) {
                    self.schemas.insert(oid, row.name());
                }
            }
            Catalog::Databases => {
                if is_preferred || !self.databases.contains_key(&row.oid()) {
                    self.databases.insert(row.oid(), row.name());
                }
            }
        }
    }

    fn follow_schemas(&mut self, relation: &Relation) {
        let files = relation.files();
        if relation.class.oid == PG_NAMESPACE && files.relfilenumber != 0 {
            self.followed.insert(files, Catalog::Schemas);
        }
    }

    /// Follows a record; `visit` gets what it did to a relation, and what was known before.
    pub(crate) fn record(
        &mut self,
        record: &Record<'_>,
        heap: Option<&HeapChange>,
        visit: &mut dyn FnMut(Option<RelationChange>, Vec<Before>),
    ) {
        if let Some((database, map)) = RelationMap::of(record) {
            self.follow(database, &map);
            return;
        }
        let is_followed = |fork: &RelationFork| {
            fork.fork == Fork::Main && self.followed.contains_key(&RelationFiles::from(*fork))
        };
        if !record.blocks.iter().any(|block| is_followed(&block.fork)) {
            return;
        }
        let contents = record.block_contents(self.major);
        let change = heap.map(|heap| (RelationFiles::from(heap.relation), heap.change));
        let row_at = |catalogs: &Catalogs, place| {
            let (files, _) = change?;
            catalogs.rows.get(&(files, place)).copied()
        };
        let (old_place, new_place) = match change {
            Some((_, RowChange::Inserted(new))) => (None, Some(new)),
            Some((_, RowChange::Updated { old, new })) => (Some(old), Some(new)),
            Some((_, RowChange::Deleted(old))) => (Some(old), None),
            _ => (None, None),
        };
        let old = old_place.and_then(|place| row_at(self, place));
        for content in &contents {
            let fork = content.reference.fork;
            if let Some(page) = content.image.and_then(|image| image.page())
                && fork.fork == Fork::Main
            {
                let block = content.reference.block;
                self.page(fork.into(), block, &page, Belief::OnTheWay);
            }
        }
        if let Some(offset) = changed_in_place(record) {
            self.in_place(record.start, offset, contents.first());
        }
        let Some((files, _)) = change else {
            return;
        };
        let Some(catalog) = self.followed.get(&files).copied() else {
            return;
        };
        // The image has the row that was replaced, too.
        let old = old.or_else(|| old_place.and_then(|place| row_at(self, place)));
        if let (Some(place), Some(content)) = (new_place, contents.first())
            && content.image.is_none()
        {
            let row = new_row(record, content.data, old_place.is_some())
                .and_then(|row| CatalogRow::of_new(old.as_ref(), &row));
            match row {
                Some(row) => self.rows.insert((files, place), row),
                // Whose row it is now, is not known any more.
                None => self.rows.remove(&(files, place)),
            };
        }
        let new = new_place.and_then(|place| row_at(self, place));
        match (catalog, old, new) {
            (Catalog::Relations, old, new) => self.relation(files.database, old, new, visit),
            (_, _, Some(row)) => self.know(files.database, catalog, &row, true),
            (_, _, None) => {}
        }
    }

    /// A row was changed for good, whatever becomes of the transaction. Of interest is that a database is marked so before
    /// anything else is done to drop it (commands/dbcommands.c, dropdb).
    fn in_place(&mut self, at: Lsn, offset: u16, content: Option<&BlockContent<'_>>) {
        let Some(BlockContent {
            reference,
            image,
            data,
        }) = content
        else {
            return;
        };
        if self.followed.get(&reference.fork.into()) != Some(&Catalog::Databases) {
            return;
        }
        let mut mark = |row: &[u8]| {
            if let Some(database) = CatalogRow::of(row)
                && is_being_dropped(row, self.major)
            {
                self.being_dropped.insert(database.oid(), at);
            }
        };
        match image.and_then(|image| image.page()) {
            None => mark(data),
            Some(page) => heap_page::rows(&page)
                .filter(|row| row.offset == offset)
                .for_each(|row| mark(row.content)),
        }
    }

    /// Where somebody began to drop a database, as far as that is known.
    pub(crate) fn being_dropped(&self, database: u32) -> Option<Lsn> {
        self.being_dropped.get(&database).copied()
    }

    /// A row of pg_class came, changed or went.
    fn relation(
        &mut self,
        database: u32,
        old: Option<CatalogRow>,
        new: Option<CatalogRow>,
        visit: &mut dyn FnMut(Option<RelationChange>, Vec<Before>),
    ) {
        let relation = |row: CatalogRow| {
            let class = row.class(self.major);
            Rc::new(Relation { database, class })
        };
        let (old, new) = (old.map(relation), new.map(relation));
        let Some(new) = new else {
            visit(old.map(RelationChange::Dropped), Vec::new());
            return;
        };
        self.follow_schemas(&new);
        let (oid, files) = ((database, new.class.oid), new.files());
        let before = self.relations.insert(oid, Rc::clone(&new));
        let called = |relation: &Relation| (relation.class.schema, relation.class.name.clone());
        let is_renamed = |before: &&Rc<Relation>| called(before) != called(&new);
        self.renamed
            .extend(before.as_ref().filter(is_renamed).cloned());
        let mut known = vec![Before::Relation(oid, before)];
        let mut were_others = false;
        if files.relfilenumber != 0 {
            let owner = self.owners.insert(files, Rc::clone(&new));
            were_others = owner
                .as_ref()
                .is_some_and(|owner| owner.class.oid != new.class.oid);
            known.push(Before::Files(files, owner));
        }
        let change = match old {
            None => Some(RelationChange::Created(new)),
            Some(old) if old.class.relfilenumber != new.class.relfilenumber => {
                Some(RelationChange::Refiled {
                    were_others: were_others || old.class.tablespace != new.class.tablespace,
                    old,
                    new,
                })
            }
            Some(_) => None,
        };
        visit(change, known);
    }

    /// Takes back what a transaction had done, the last first.
    pub(crate) fn take_back(&mut self, known: Vec<Before>) {
        for before in known.into_iter().rev() {
            match before {
                Before::Relation(oid, Some(relation)) => {
                    self.relations.insert(oid, relation);
                }
                Before::Relation(oid, None) => {
                    self.relations.remove(&oid);
                }
                Before::Files(files, Some(relation)) => {
                    self.owners.insert(files, relation);
                }
                // What it was called is told of what it did.
                Before::Files(_, None) => {}
            }
        }
    }

    /// A database that is a copy of another one's files has its names, too.
    pub(crate) fn database(&mut self, change: &DatabaseChange) {
        let DatabaseChange::Copied { from, to } = change else {
            return;
        };
        let (from, to) = (from.database, to.database);
        let at = |files: &RelationFiles| RelationFiles {
            database: to,
            ..*files
        };
        let relation = |relation: &Rc<Relation>| {
            Rc::new(Relation {
                database: to,
                class: relation.class.clone(),
            })
        };
        let followed: Vec<_> = self
            .followed
            .iter()
            .filter(|(files, _)| files.database == from)
            .map(|(files, catalog)| (at(files), *catalog))
            .collect();
        self.followed.extend(followed);
        let mapped: Vec<_> = self
            .mapped
            .iter()
            .filter(|files| files.database == from)
            .map(at)
            .collect();
        self.mapped.extend(mapped);
        let rows: Vec<_> = self
            .rows
            .iter()
            .filter(|((files, _), _)| files.database == from)
            .map(|((files, place), row)| ((at(files), *place), *row))
            .collect();
        self.rows.extend(rows);
        let relations: Vec<_> = self
            .relations
            .iter()
            .filter(|((database, _), _)| *database == from)
            .map(|((_, oid), known)| ((to, *oid), relation(known)))
            .collect();
        self.relations.extend(relations);
        let owners: Vec<_> = self
            .owners
            .iter()
            .filter(|(files, _)| files.database == from)
            .map(|(files, known)| (at(files), relation(known)))
            .collect();
        self.owners.extend(owners);
        let schemas: Vec<_> = self
            .schemas
            .iter()
            .filter(|((database, _), _)| *database == from)
            .map(|((_, oid), name)| ((to, *oid), name.clone()))
            .collect();
        self.schemas.extend(schemas);
    }

    /// Who had these files last.
    pub(crate) fn owner(&self, files: RelationFiles) -> Option<&Rc<Relation>> {
        self.owners.get(&files)
    }

    /// Whether files are of PostgreSQL's own catalogs, or hold a part of other tables' rows.
    pub(crate) fn is_internal(&self, files: RelationFiles) -> bool {
        match self.owner(files) {
            Some(relation) => self.is_internal_relation(relation),
            None => {
                files.database == 0
                    || files.relfilenumber < FIRST_NORMAL
                    || self.mapped.contains(&files)
            }
        }
    }

    /// The same of a relation whose name is known.
    pub(crate) fn is_internal_relation(&self, relation: &Relation) -> bool {
        let schema = relation.class.schema;
        relation.database == 0
            || schema == PG_CATALOG_SCHEMA
            || schema == PG_TOAST_SCHEMA
            || self
                .schemas
                .get(&(relation.database, schema))
                .is_some_and(|name| name == "information_schema")
    }

    /// The databases by their OIDs and names.
    pub(crate) fn databases(&self) -> impl Iterator<Item = (u32, &str)> {
        self.databases
            .iter()
            .map(|(oid, name)| (*oid, name.as_str()))
    }

    /// The relations of a database, those too that had other files before.
    pub(crate) fn relations_of(&self, database: u32) -> impl Iterator<Item = &Relation> {
        let all = self.relations.values().chain(self.owners.values());
        all.map(Rc::as_ref)
            .filter(move |relation| relation.database == database)
    }

    /// The numbers of a database's files that pg_filenode.map tells of.
    pub(crate) fn mapped_in(&self, database: u32) -> impl Iterator<Item = u32> {
        let mapped = self.mapped.iter();
        mapped
            .filter(move |files| files.database == database)
            .map(|files| files.relfilenumber)
    }

    /// The name of a database, or its OID.
    pub(crate) fn database_name(&self, database: u32) -> String {
        match self.databases.get(&database) {
            Some(name) => name.clone(),
            None => database.to_string(),
        }
    }

    /// `schema.table`.
    pub(crate) fn name(&self, relation: &Relation) -> Name {
        let schema = relation.class.schema;
        let known = self.schemas.get(&(relation.database, schema));
        let schema = match (known, schema) {
            (Some(name), _) => name.clone(),
            (None, PG_CATALOG_SCHEMA) => "pg_catalog".to_owned(),
            (None, PG_TOAST_SCHEMA) => "pg_toast".to_owned(),
            (None, PUBLIC_SCHEMA) => "public".to_owned(),
            (None, oid) => oid.to_string(),
        };
        Name {
            database: self.database_name(relation.database),
            schema,
            relation: relation.class.name.clone(),
        }
    }

    /// All names of what people name, former ones too.
    pub(crate) fn names(&self) -> impl Iterator<Item = Name> {
        self.relations
            .values()
            .chain(self.owners.values())
            .chain(&self.renamed)
            .filter(|relation| relation.class.is_named())
            .map(|relation| self.name(relation))
    }
}

/// The full name of a relation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Its database.
    pub database: String,
    /// Its schema.
    pub schema: String,
    /// Its own.
    pub relation: String,
}
