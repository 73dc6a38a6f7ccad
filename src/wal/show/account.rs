//! What is told of it all: what was destroyed first, then the newest transactions and events, no more than are wanted.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;

use jiff::Timestamp;

use crate::catalogs::{Catalogs, Name, Relation, RelationChange, RelationFiles};
use crate::pg::lsn::{Lsn, Timeline};
use crate::wal::show::transactions::{AtOnce, End, Rows, Work};
use crate::wal::show::wanted::Wanted;

/// What is spoken of, by its name where that is known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Told {
    /// A relation.
    Relation(Name),
    /// A relation whose name is not known.
    Files {
        /// The OID of its database.
        database: u32,
        /// The number of its files.
        relfilenumber: u32,
    },
    /// A database, by its name or its OID.
    Database(String),
    /// A tablespace, by its OID.
    Tablespace(u32),
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Told::Relation(name) => {
                write!(f, "{}/{}.{}", name.database, name.schema, name.relation)
            }
            Told::Files {
                database,
                relfilenumber,
            } => write!(f, "{database}/{relfilenumber}"),
            Told::Database(name) => f.write_str(name),
            Told::Tablespace(oid) => write!(f, "{oid}"),
        }
    }
}

/// What was destroyed, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// A database.
    DropDatabase,
    /// A tablespace.
    DropTablespace,
    /// A table or a view.
    Drop,
    /// All rows of a table.
    Truncate,
    /// Files, of which it is not known why: a relation's that was dropped, truncated or rewritten.
    FilesRemoved,
    /// Many rows of a table.
    Delete,
    /// The former content of many rows of a table.
    Update,
}

impl Loss {
    /// As SQL has it.
    pub fn name(self) -> &'static str {
        match self {
            Loss::DropDatabase => "DROP DATABASE",
            Loss::DropTablespace => "DROP TABLESPACE",
            Loss::Drop => "DROP",
            Loss::Truncate => "TRUNCATE",
            Loss::FilesRemoved => "FILES REMOVED",
            Loss::Delete => "DELETE",
            Loss::Update => "UPDATE",
        }
    }
}

/// What a transaction destroyed.
#[derive(Debug, Clone)]
pub struct Destroyed {
    /// How.
    pub loss: Loss,
    /// What it was.
    pub what: Told,
    /// How many rows, where that is known.
    pub rows: Option<u64>,
    /// The transaction.
    pub xid: u32,
    /// When that ended.
    pub time: Timestamp,
    /// Where the record of that begins.
    pub at: Lsn,
    /// How to say on a command line that it is to be restored to before.
    pub position: String,
}

/// What a transaction did to one relation.
#[derive(Debug, Clone)]
pub struct Changed {
    /// Which.
    pub relation: Told,
    /// Its rows.
    pub rows: Rows,
}

/// A transaction that did something, and has ended.
#[derive(Debug, Clone)]
pub struct Transaction {
    /// Its number.
    pub xid: u32,
    /// When it ended.
    pub time: Timestamp,
    /// Whether that was by COMMIT PREPARED or ROLLBACK PREPARED.
    pub was_prepared: bool,
    /// Where its first record begins.
    pub first: Lsn,
    /// Where the record of its end begins.
    pub at: Lsn,
    /// Whole things that came, went or were made anew: what, and which.
    pub whole: Vec<(Whole, Told)>,
    /// Rows, those of most first.
    pub changed: Vec<Changed>,
    /// Rows of PostgreSQL's own catalogs that changed.
    pub catalog_rows: u64,
}

/// What became of something as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Whole {
    /// It is new.
    Created,
    /// It is gone.
    Dropped,
    /// All its rows are gone.
    Truncated,
    /// It has other files, with the same rows: by VACUUM FULL, CLUSTER, ALTER TABLE and the like.
    Rewritten,
    /// Its files are gone.
    FilesRemoved,
    /// A database is new.
    DatabaseCreated,
    /// A database is gone.
    DatabaseDropped,
    /// A tablespace is new.
    TablespaceCreated,
    /// A tablespace is gone.
    TablespaceDropped,
}

/// Something that is no transaction's.
#[derive(Debug, Clone)]
pub struct Event {
    /// Where its record begins.
    pub at: Lsn,
    /// When, where that is known.
    pub time: Option<Timestamp>,
    /// What.
    pub what: What,
}

/// What happened to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Somebody made a restore point of this name.
    RestorePoint(String),
    /// It was promoted from one timeline to another.
    Promoted(Timeline, Timeline),
    /// It was shut down, or had recovered from a crash.
    Quiet,
    /// It was started with other settings.
    Reconfigured,
}

/// A transaction that has not ended where the WAL ends.
#[derive(Debug, Clone)]
pub struct Unended {
    /// Its number, or a subtransaction's.
    pub xid: u32,
    /// Where its first record begins.
    pub first: Lsn,
    /// Whether it is prepared.
    pub is_prepared: bool,
    /// What it did.
    pub changed: Vec<Changed>,
}

/// What is asked for.
#[derive(Debug)]
pub(super) struct Scope<'a> {
    /// Only these; all where there are none.
    pub wanted: &'a [Wanted],
    /// How many of each kind are told, at most.
    pub limit: usize,
    /// From how many rows of a table on it counts as destroyed.
    pub many: u64,
    /// The timeline to name in positions, where it is not the one that is followed anyway.
    pub timeline: Option<Timeline>,
}

/// The newest of many, and how many there were.
#[derive(Debug)]
pub struct Newest<T> {
    /// The newest, in order.
    pub kept: VecDeque<T>,
    /// How many came before.
    pub omitted: u64,
    limit: usize,
}

impl<T> Newest<T> {
    fn new(limit: usize) -> Newest<T> {
        Newest {
            kept: VecDeque::new(),
            omitted: 0,
            limit,
        }
    }

    fn push(&mut self, item: T) {
        self.kept.push_back(item);
        if self.kept.len() > self.limit {
            self.kept.pop_front();
            self.omitted += 1;
        }
    }
}

/// Everything that is told.
#[derive(Debug)]
pub struct Account {
    /// What was destroyed, the worst first.
    pub destroyed: Vec<Destroyed>,
    /// How many more.
    pub destroyed_omitted: u64,
    /// What committed transactions did to each relation, all together: those that lost most first.
    pub relations: Vec<Changed>,
    /// How many more.
    pub relations_omitted: u64,
    /// Transactions that committed, in order.
    pub transactions: Newest<Transaction>,
    /// Transactions that did not, in order. Each that went back to a savepoint is another one, and of a function that
    /// catches exceptions there are many.
    pub rolled_back: Newest<Transaction>,
    /// Events, in order.
    pub events: Newest<Event>,
    /// Transactions that committed.
    pub committed: u64,
    /// Transactions that did not, and what went back to a savepoint.
    pub aborted: u64,
    /// Transactions that changed nothing but PostgreSQL's own catalogs.
    pub internal: u64,
    /// When the first one ended, and the last one.
    pub times: Option<(Timestamp, Timestamp)>,
    sums: HashMap<Told, Rows>,
}

impl Account {
    pub(super) fn new(limit: usize) -> Account {
        Account {
            destroyed: Vec::new(),
            destroyed_omitted: 0,
            relations: Vec::new(),
            relations_omitted: 0,
            transactions: Newest::new(limit),
            rolled_back: Newest::new(limit),
            events: Newest::new(limit),
            committed: 0,
            aborted: 0,
            internal: 0,
            times: None,
            sums: HashMap::new(),
        }
    }

    pub(super) fn event(&mut self, event: Event) {
        self.events.push(event);
    }

    /// A transaction has ended. `removed` are the files that went with that.
    pub(super) fn transaction(
        &mut self,
        scope: &Scope<'_>,
        catalogs: &Catalogs,
        end: End,
        work: &Work,
        removed: &[RelationFiles],
    ) {
        let first = self
            .times
            .map_or(end.time, |(first, _)| first.min(end.time));
        let last = self.times.map_or(end.time, |(_, last)| last.max(end.time));
        self.times = Some((first, last));
        let teller = Teller {
            scope,
            catalogs,
            is_wanted: scope.wanted.is_empty()
                || scope.wanted.iter().any(|it| it.is_transaction(end.xid)),
        };
        let (changed, catalog_rows) = teller.changed(&work.rows);
        let mut whole = teller.at_once(work);
        let relations = Relations::of(work, removed, catalogs);
        if end.is_committed {
            whole.extend(teller.whole(&relations));
        }
        let shows_catalogs = catalog_rows > 0 && !scope.wanted.is_empty() && teller.is_wanted;
        if changed.is_empty() && whole.is_empty() && !shows_catalogs {
            self.internal += u64::from(catalog_rows > 0 && scope.wanted.is_empty());
            return;
        }
        let transaction = Transaction {
            xid: end.xid,
            time: end.time,
            was_prepared: work.is_prepared,
            first: work.first.unwrap_or(end.at),
            at: end.at,
            whole,
            changed,
            catalog_rows,
        };
        if end.is_committed {
            self.committed += 1;
            for Changed { relation, rows } in &transaction.changed {
                match self.sums.get_mut(relation) {
                    Some(sum) => sum.add(*rows),
                    None => {
                        self.sums.insert(relation.clone(), *rows);
                    }
                }
            }
            self.destroyed(scope, &transaction);
            self.transactions.push(transaction);
        } else {
            self.aborted += 1;
            self.rolled_back.push(transaction);
        }
    }

    fn destroyed(&mut self, scope: &Scope<'_>, transaction: &Transaction) {
        let on = scope
            .timeline
            .map_or_else(String::new, |timeline| format!(",timeline={timeline}"));
        let before_end = format!("xid={},inclusive=off{on}", transaction.xid);
        // What is done at once is done before its transaction's end: recovery that stops there has done it.
        let before_all = format!("lsn={},inclusive=off{on}", transaction.first);
        let entry = |loss, relation: &Told, rows| Destroyed {
            loss,
            what: relation.clone(),
            rows,
            xid: transaction.xid,
            time: transaction.time,
            at: transaction.at,
            position: match loss {
                Loss::DropDatabase | Loss::DropTablespace => before_all.clone(),
                _ => before_end.clone(),
            },
        };
        for (what, relation) in &transaction.whole {
            let loss = match what {
                Whole::Dropped => Loss::Drop,
                Whole::Truncated => Loss::Truncate,
                Whole::FilesRemoved => Loss::FilesRemoved,
                Whole::DatabaseDropped => Loss::DropDatabase,
                Whole::TablespaceDropped => Loss::DropTablespace,
                Whole::Created
                | Whole::Rewritten
                | Whole::DatabaseCreated
                | Whole::TablespaceCreated => continue,
            };
            self.destroyed.push(entry(loss, relation, None));
        }
        for Changed { relation, rows } in &transaction.changed {
            for (loss, rows) in [(Loss::Delete, rows.deleted), (Loss::Update, rows.updated)] {
                if rows >= scope.many {
                    self.destroyed.push(entry(loss, relation, Some(rows)));
                }
            }
        }
        if self.destroyed.len() > 2 * scope.limit {
            self.leave_the_worst(scope.limit);
        }
    }

    /// There is no more to come.
    pub(super) fn close(&mut self, limit: usize) {
        self.leave_the_worst(limit);
        let sums = std::mem::take(&mut self.sums).into_iter();
        self.relations = sums
            .map(|(relation, rows)| Changed { relation, rows })
            .collect();
        self.relations.sort_by(|one, other| {
            let weight = |it: &Changed| (it.rows.deleted, it.rows.updated, it.rows.inserted);
            let heavier = weight(other).cmp(&weight(one));
            heavier.then_with(|| one.relation.cmp(&other.relation))
        });
        self.relations_omitted = self.relations.len().saturating_sub(limit) as u64;
        self.relations.truncate(limit);
    }

    /// Puts what was destroyed in order, and leaves so many: the worst, of those the most rows, of those the newest.
    fn leave_the_worst(&mut self, limit: usize) {
        self.destroyed
            .sort_by_key(|it| (it.loss, std::cmp::Reverse((it.rows, it.at))));
        self.destroyed_omitted += self.destroyed.len().saturating_sub(limit) as u64;
        self.destroyed.truncate(limit);
    }
}

/// What a transaction did to relations as a whole.
struct Relations<'a> {
    changes: Vec<(Whole, &'a Relation)>,
    /// Files of which nothing is known but that they went.
    removed: Vec<RelationFiles>,
}

impl<'a> Relations<'a> {
    fn of(work: &'a Work, removed: &[RelationFiles], catalogs: &'a Catalogs) -> Relations<'a> {
        let created: HashSet<(u32, u32)> = work
            .created()
            .map(|relation| (relation.database, relation.class.oid))
            .collect();
        let mut explained = HashSet::new();
        let mut dropped = HashSet::new();
        let mut changes: Vec<(Whole, &Relation)> = Vec::new();
        for change in &work.relations {
            let (whole, relation) = match change {
                RelationChange::Created(relation) => (Whole::Created, relation),
                RelationChange::Refiled {
                    old,
                    new,
                    were_others,
                } => {
                    explained.extend([old, new].map(|it| (it.database, it.class.relfilenumber)));
                    match were_others {
                        true => (Whole::Rewritten, new),
                        false => (Whole::Truncated, new),
                    }
                }
                RelationChange::Dropped(relation) => {
                    dropped.insert((relation.database, relation.class.oid));
                    explained.insert((relation.database, relation.class.relfilenumber));
                    (Whole::Dropped, relation)
                }
            };
            let is_told = match whole {
                Whole::Truncated => relation.class.has_rows(),
                _ => relation.class.is_named(),
            };
            let is_new = created.contains(&(relation.database, relation.class.oid));
            if is_told
                && !relation.class.is_temporary
                && !catalogs.is_internal_relation(relation)
                // What came and went in one transaction, nobody ever saw: so is the file that a table is rewritten into.
                && (whole == Whole::Created || !is_new)
            {
                changes.push((whole, relation));
            }
        }
        changes.retain(|(whole, relation)| {
            *whole != Whole::Created || !dropped.contains(&(relation.database, relation.class.oid))
        });
        // Several versions of one row: told once, and a truncated or rewritten table that was dropped then, as dropped.
        changes.retain(|(whole, relation)| {
            *whole <= Whole::Dropped || !dropped.contains(&(relation.database, relation.class.oid))
        });
        let mut seen = HashSet::new();
        changes.retain(|(whole, relation)| {
            seen.insert((*whole, relation.database, relation.class.oid))
        });
        let files_made = work
            .created()
            .map(|it| (it.database, it.class.relfilenumber));
        explained.extend(files_made);
        let is_unexplained = |files: &&RelationFiles| {
            !explained.contains(&(files.database, files.relfilenumber))
                && !catalogs.is_internal(**files)
                && catalogs
                    .owner(**files)
                    .is_none_or(|relation| relation.class.has_rows())
        };
        Relations {
            changes,
            removed: removed.iter().filter(is_unexplained).copied().collect(),
        }
    }
}

/// Says things by their names, as far as they are wanted.
pub(super) struct Teller<'a> {
    scope: &'a Scope<'a>,
    catalogs: &'a Catalogs,
    /// Whether all of the transaction is.
    is_wanted: bool,
}

impl Teller<'_> {
    /// Rows by relations, those of most first, and how many rows of PostgreSQL's own.
    fn changed(&self, rows: &[(RelationFiles, Rows)]) -> (Vec<Changed>, u64) {
        let mut changed: Vec<Changed> = Vec::new();
        let mut internal = 0;
        for (files, rows) in rows.iter().filter(|(_, rows)| rows.total() > 0) {
            let is_internal = self.catalogs.is_internal(*files);
            if is_internal {
                internal += rows.total();
            }
            let name = self.name(*files);
            let is_told = match self.is_wanted {
                true => !is_internal,
                false => self.is_wanted(*files, name.as_ref(), is_internal),
            };
            if is_told {
                let relation = told(*files, name);
                // A table that was rewritten has had several files.
                match changed.iter_mut().find(|known| known.relation == relation) {
                    Some(known) => known.rows.add(*rows),
                    None => changed.push(Changed {
                        relation,
                        rows: *rows,
                    }),
                }
            }
        }
        changed.sort_by_key(|changed| std::cmp::Reverse(changed.rows.total()));
        (changed, internal)
    }

    fn whole(&self, relations: &Relations<'_>) -> Vec<(Whole, Told)> {
        let named = relations.changes.iter().filter_map(|(whole, relation)| {
            let files = RelationFiles {
                database: relation.database,
                relfilenumber: relation.class.relfilenumber,
            };
            let name = self.catalogs.name(relation);
            let is_wanted = self.is_wanted || self.is_wanted(files, Some(&name), false);
            is_wanted.then_some((*whole, Told::Relation(name)))
        });
        let removed = relations.removed.iter().filter_map(|files| {
            let name = self.name(*files);
            let is_wanted = self.is_wanted || self.is_wanted(*files, name.as_ref(), false);
            is_wanted.then(|| (Whole::FilesRemoved, told(*files, name)))
        });
        named.chain(removed).collect()
    }

    fn at_once(&self, work: &Work) -> Vec<(Whole, Told)> {
        if !self.is_wanted {
            return Vec::new();
        }
        let mut all: Vec<(Whole, Told)> = Vec::new();
        for what in &work.at_once {
            let database = |oid| Told::Database(self.catalogs.database_name(oid));
            let told = match what {
                AtOnce::DatabaseCreated(folder) => {
                    (Whole::DatabaseCreated, database(folder.database))
                }
                AtOnce::DatabaseDropped(folder) => {
                    (Whole::DatabaseDropped, database(folder.database))
                }
                AtOnce::TablespaceCreated(oid) => {
                    (Whole::TablespaceCreated, Told::Tablespace(*oid))
                }
                AtOnce::TablespaceDropped(oid) => {
                    (Whole::TablespaceDropped, Told::Tablespace(*oid))
                }
            };
            // One of several tablespaces has a folder in each.
            if !all.contains(&told) {
                all.push(told);
            }
        }
        all
    }

    fn is_wanted(&self, files: RelationFiles, name: Option<&Name>, is_internal: bool) -> bool {
        let mut wanted = self.scope.wanted.iter();
        wanted.any(|it| it.is_relation(files, name, is_internal))
    }

    fn name(&self, files: RelationFiles) -> Option<Name> {
        let relation = self.catalogs.owner(files)?;
        Some(self.catalogs.name(relation))
    }
}

fn told(files: RelationFiles, name: Option<Name>) -> Told {
    name.map_or(
        Told::Files {
            database: files.database,
            relfilenumber: files.relfilenumber,
        },
        Told::Relation,
    )
}

/// What a transaction that has not ended did, as far as it is wanted.
pub(super) fn unended(
    scope: &Scope<'_>,
    catalogs: &Catalogs,
    xid: u32,
    work: &Work,
) -> Option<Unended> {
    let teller = Teller {
        scope,
        catalogs,
        is_wanted: scope.wanted.is_empty() || scope.wanted.iter().any(|it| it.is_transaction(xid)),
    };
    let (changed, _) = teller.changed(&work.rows);
    (!changed.is_empty()).then(|| Unended {
        xid,
        first: work.first.unwrap_or_default(),
        is_prepared: work.is_prepared,
        changed,
    })
}
