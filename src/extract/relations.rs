//! The relations of the wanted database as of the position, by the server that was recovered to it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use postgres::Client;
use postgres::types::Oid;
use postgres_protocol::escape::escape_identifier;

use crate::catalogs::Name;
use crate::config::nearest;
use crate::error::{Error, Result};
use crate::extract::backed_up::LARGE_OBJECTS;
use crate::extract::pattern::TablePattern;
use crate::pg::catalog::FIRST_NORMAL;
use crate::server::connect::server_error;

/// All that have a name or files; sizes with their TOAST tables, where they are asked for.
const RELATIONS: &str = "
    SELECT c.oid, n.nspname, c.relname, c.relkind::text, c.relpersistence = 'u', c.reltoastrelid,
        pg_relation_filepath(c.oid), CASE WHEN $1 AND c.relkind IN ('r', 'm') THEN pg_table_size(c.oid) END, c.reltuples
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relpersistence <> 't'";

/// Partitions, and what they are of.
const PARTITIONS: &str = "
    SELECT i.inhparent, i.inhrelid FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE c.relispartition";

/// Indexes that pg_dump reads through: those of TOAST tables, and those of tables whose extension has only some of their rows
/// dumped, which it asks for by a query.
const INDEXES: &str = "
    SELECT i.indrelid, i.indexrelid FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
    WHERE c.relkind = 't' OR c.oid IN (SELECT unnest(extconfig) FROM pg_extension)";

/// Tables of extensions whose rows pg_dump leaves to the extension.
const OF_EXTENSIONS: &str = "
    SELECT d.objid, e.extname FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
    WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
        AND NOT d.objid = ANY (coalesce(e.extconfig, '{}'))";

/// One of them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Relation {
    pub(super) name: Name,
    /// As pg_class has it.
    pub(super) kind: char,
    pub(super) is_unlogged: bool,
    toast: Oid,
    /// Relative to the data directory; none of what has no file.
    path: Option<String>,
    pub(super) size: Option<u64>,
    /// As the planner estimates; below zero where it does not know.
    pub(super) rows: f32,
}

impl Relation {
    /// Whether pg_dump takes it for a table.
    fn is_named(&self) -> bool {
        matches!(self.kind, 'r' | 'p' | 'f' | 'v' | 'm' | 'S')
    }

    /// What it is called, for a person.
    pub(super) fn kind_name(&self) -> &'static str {
        match self.kind {
            'r' => "table",
            'p' => "partitioned table",
            'f' => "foreign table",
            'v' => "view",
            'm' => "materialized view",
            _ => "sequence",
        }
    }

    /// As an argument of pg_dump that means no other one.
    pub(super) fn quoted(&self) -> String {
        let quoted = |name: &str| escape_identifier(name).trim().to_owned();
        format!(
            "{}.{}",
            quoted(&self.name.schema),
            quoted(&self.name.relation)
        )
    }
}

/// All of a database.
#[derive(Debug)]
pub(super) struct Relations {
    all: BTreeMap<Oid, Relation>,
    partitions: HashMap<Oid, Vec<Oid>>,
    indexes: HashMap<Oid, Vec<Oid>>,
    of_extensions: HashMap<Oid, String>,
}

impl Relations {
    /// Asks for them.
    pub(super) fn read(client: &mut Client, database: &str, with_sizes: bool) -> Result<Relations> {
        let failed =
            |error| server_error(&format!("read the catalogs of database {database}"), &error);
        let mut all = BTreeMap::new();
        for row in client.query(RELATIONS, &[&with_sizes]).map_err(failed)? {
            let kind: String = row.try_get(3).map_err(failed)?;
            let size: Option<i64> = row.try_get(7).map_err(failed)?;
            let relation = Relation {
                name: Name {
                    database: database.to_owned(),
                    schema: row.try_get(1).map_err(failed)?,
                    relation: row.try_get(2).map_err(failed)?,
                },
                kind: kind.chars().next().unwrap_or(' '),
                is_unlogged: row.try_get(4).map_err(failed)?,
                toast: row.try_get(5).map_err(failed)?,
                path: row.try_get(6).map_err(failed)?,
                size: size.and_then(|size| size.try_into().ok()),
                rows: row.try_get(8).map_err(failed)?,
            };
            all.insert(row.try_get(0).map_err(failed)?, relation);
        }
        let mut pairs = |query: &str| -> Result<HashMap<Oid, Vec<Oid>>> {
            let mut pairs: HashMap<Oid, Vec<Oid>> = HashMap::new();
            for row in client.query(query, &[]).map_err(failed)? {
                let of = pairs.entry(row.try_get(0).map_err(failed)?).or_default();
                of.push(row.try_get(1).map_err(failed)?);
            }
            Ok(pairs)
        };
        let (partitions, indexes) = (pairs(PARTITIONS)?, pairs(INDEXES)?);
        let mut of_extensions = HashMap::new();
        for row in client.query(OF_EXTENSIONS, &[]).map_err(failed)? {
            let extension: String = row.try_get(1).map_err(failed)?;
            of_extensions.insert(row.try_get(0).map_err(failed)?, extension);
        }
        Ok(Relations {
            all,
            partitions,
            indexes,
            of_extensions,
        })
    }

    /// What these patterns name, with all partitions; an error where one names nothing.
    pub(super) fn named(&self, tables: &[TablePattern]) -> Result<BTreeSet<Oid>> {
        let mut wanted = BTreeSet::new();
        for pattern in tables {
            let named = self
                .all
                .iter()
                .filter(|(_, one)| one.is_named() && pattern.fits(&one.name));
            let mut named = named.map(|(oid, _)| *oid).peekable();
            if named.peek().is_none() {
                return Err(self.unknown(pattern));
            }
            wanted.extend(named);
        }
        let mut open = Vec::from_iter(wanted.iter().copied());
        while let Some(table) = open.pop() {
            let below = self.partitions.get(&table).into_iter().flatten();
            open.extend(below.filter(|one| wanted.insert(**one)));
        }
        Ok(wanted)
    }

    /// All that people name, but for PostgreSQL's own.
    pub(super) fn users(&self) -> BTreeSet<Oid> {
        let users = self
            .all
            .iter()
            .filter(|(oid, one)| **oid >= FIRST_NORMAL && one.is_named());
        users.map(|(oid, _)| *oid).collect()
    }

    fn unknown(&self, pattern: &TablePattern) -> Error {
        let users = self.users();
        let names = || {
            users
                .iter()
                .filter_map(|oid| self.all.get(oid))
                .map(|one| &one.name)
        };
        let error = Error::failed(format!("there is no table {pattern} at that position"));
        let near = nearest(pattern.table(), names().map(|name| name.relation.as_str()));
        let near: Vec<String> = names()
            .filter(|name| Some(name.relation.as_str()) == near)
            .map(|name| format!("{}.{}", name.schema, name.relation))
            .collect();
        error.hint(match near.as_slice() {
            [] => "extract --list tells those that there are, and wal show what became of one"
                .to_owned(),
            near => format!("did you mean {}?", near.join(" or ")),
        })
    }

    /// These, in the order of their names.
    pub(super) fn sorted(&self, wanted: &BTreeSet<Oid>) -> Vec<&Relation> {
        let mut sorted: Vec<&Relation> =
            wanted.iter().filter_map(|oid| self.all.get(oid)).collect();
        sorted.sort_by(|one, other| one.name.cmp(&other.name));
        sorted
    }

    /// The files that must be whole for a dump of these: their rows', and those of all catalogs and sequences.
    pub(super) fn files(&self, wanted: &BTreeSet<Oid>) -> BTreeSet<&str> {
        let always = self.all.iter().filter(|(oid, one)| {
            **oid < FIRST_NORMAL && !LARGE_OBJECTS.contains(oid) || one.kind == 'S'
        });
        let mut files: BTreeSet<Oid> = always.map(|(oid, _)| *oid).collect();
        for (oid, table) in wanted
            .iter()
            .filter_map(|oid| Some((oid, self.all.get(oid)?)))
        {
            if table.kind != 'r' {
                continue;
            }
            files.extend([*oid, table.toast]);
            let indexes = [oid, &table.toast].map(|of| self.indexes.get(of));
            files.extend(indexes.into_iter().flatten().flatten());
        }
        let files = files
            .iter()
            .filter_map(|oid| self.all.get(oid)?.path.as_deref());
        files.collect()
    }

    /// What pg_dump will not dump the rows of, for all that somebody may expect it.
    pub(super) fn warn_of_missing_rows(&self, wanted: &BTreeSet<Oid>) {
        for (oid, table) in wanted
            .iter()
            .filter_map(|oid| Some((oid, self.all.get(oid)?)))
        {
            let Name {
                schema, relation, ..
            } = &table.name;
            if table.kind == 'r' && table.is_unlogged {
                log::warn!("{schema}.{relation} is unlogged: no backup has its rows");
            }
            if let Some(extension) = self.of_extensions.get(oid) {
                log::warn!(
                    "{schema}.{relation} is a part of extension {extension}, whose own it is to fill it: pg_dump leaves it out"
                );
            }
            if matches!(table.kind, 'm' | 'f') {
                log::warn!(
                    "{schema}.{relation} is a {}: pg_dump writes its definition, without rows",
                    table.kind_name()
                );
            }
        }
    }
}
