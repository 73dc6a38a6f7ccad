//! Tables as they were at a moment, as pg_dump writes them.
//!
//! Of the cluster only that is rebuilt which the dump needs: what all databases share, the catalogs of the wanted database, and the
//! files of the wanted tables. All other files come as holes ([`Selection`]), over which recovery goes to the position. The server,
//! which nobody else can reach, is then asked what the wanted tables are by then: they may have been renamed, or rewritten into
//! other files, or have partitions that were not known. Where files that the dump needs turn out to be holes, all of it is done
//! again with these whole, until there are none left.
//!
//! To PostgreSQL a hole is an empty table. So before anything is dumped, the server is shut down and all files that are holes are
//! removed: whatever reads one of them fails, and so does the dump.

mod backed_up;
mod dump;
mod pattern;
mod relations;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use postgres_protocol::escape::escape_literal;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::changed_blocks::RelationFork;
use crate::pg::relation::RelationFile;
use crate::pg::version::Major;
use crate::private_server::{Entrance, Host, PrivateServer, Programs, Rebuild, Scratch, Settings};
use crate::progress::Progress;
use crate::repository::chain::Chain;
use crate::restore::databases::Databases;
use crate::restore::plan::major;
use crate::restore::recovery::Recovery;
use crate::restore::selection::Selection;
use crate::server::connect::server_error;
use crate::size::readable;
use crate::storage::Place;

pub use dump::{DumpFormat, DumpPart};
pub use pattern::TablePattern;

use backed_up::Whole;
use dump::{Dump, Output};
use relations::{Relation, Relations};

/// More rounds than a position needs: each makes whole what the one before found to be wanted.
const ROUNDS: u32 = 5;

/// What to extract, and whereto.
pub struct Request<'a> {
    /// The backup, with all that it needs.
    pub chain: &'a Chain,
    /// How the rebuilt cluster recovers to the position.
    pub recovery: Recovery,
    /// The databases of the backup and of the position.
    pub databases: &'a Databases,
    /// The database; where it is not named, the only one there is.
    pub database: Option<&'a str>,
    /// The tables; none for all of the database.
    pub tables: &'a [TablePattern],
    /// What is wanted of them.
    pub purpose: Purpose<'a>,
    /// Where the server's programs are.
    pub programs: &'a Programs,
    /// A folder for the rebuilt cluster.
    pub work_dir: &'a Path,
    /// What the server reads to get archived WAL.
    pub reads: &'a [PathBuf],
    /// A role that the cluster may have, such as the one that made the backup.
    pub role: &'a str,
    /// Threads that write, and sessions that dump.
    pub workers: usize,
}

/// What is wanted of the tables.
#[derive(Debug, Clone, Copy)]
pub enum Purpose<'a> {
    /// Which there are.
    List,
    /// A dump.
    Dump(DumpRequest<'a>),
}

/// How a dump is written.
#[derive(Debug, Clone, Copy)]
pub struct DumpRequest<'a> {
    /// As what.
    pub format: DumpFormat,
    /// How much.
    pub part: DumpPart,
    /// Whether roles and tablespaces come in front.
    pub globals: bool,
    /// Where to; nothing for the standard output.
    pub to: Option<&'a Path>,
}

/// What came of it.
#[derive(Debug)]
pub struct Extracted {
    /// The server that was started, such as `17.11`.
    pub server_version: String,
    /// The database.
    pub database: String,
    /// The tables, views and sequences, in the order of their names.
    pub tables: Vec<Table>,
    /// Bytes that were restored whole, and how often it was begun.
    pub restored: u64,
    /// See `restored`.
    pub rounds: u32,
}

/// A table as of the position.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Its schema.
    pub schema: String,
    /// Its own name.
    pub name: String,
    /// What it is.
    pub kind: &'static str,
    /// Its bytes, with what is stored outside of its rows, but without indexes; nothing where that was not asked for.
    pub size: Option<u64>,
    /// How many rows it has by the planner's estimate, where there is one.
    pub rows: Option<u64>,
}

impl From<&Relation> for Table {
    fn from(relation: &Relation) -> Table {
        Table {
            schema: relation.name.schema.clone(),
            name: relation.name.relation.clone(),
            kind: relation.kind_name(),
            size: relation.size,
            rows: (relation.rows >= 0.0 && matches!(relation.kind, 'r' | 'm' | 'p'))
                .then_some(relation.rows as u64),
        }
    }
}

/// Extracts it.
pub fn run(
    request: &Request<'_>,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Extracted> {
    let chain = request.chain;
    crate::restore::expect_own_wal(&chain.newest)?;
    let host = Host::find(
        request.programs,
        chain.newest.info.major_version,
        request.work_dir,
    )?;
    expect_readable(&host, request.reads)?;
    expect_programs(&host, request.purpose)?;
    let output = match request.purpose {
        Purpose::List => None,
        Purpose::Dump(dump) => Some(Output::open(dump.to, dump.format)?),
    };
    let database = choose_database(request)?;
    let mut superusers = backed_up::superusers(chain, interrupt)?;
    superusers.push(request.role.to_owned());
    let mut extraction = Extraction {
        request,
        host: &host,
        major: major(&chain.newest.info)?,
        choice: Choice::of(request, database.oid, interrupt)?,
        database: &database,
        superusers,
        progress,
        interrupt,
    };
    let (ready, rounds) = extraction.recover()?;
    let mut extracted = Extracted {
        server_version: host.installation.version.clone(),
        database: ready.database.clone(),
        tables: Vec::new(),
        restored: ready.selection.bytes(chain),
        rounds,
    };
    extracted.tables = ready
        .relations
        .sorted(&ready.wanted)
        .into_iter()
        .map(Table::from)
        .collect();
    if let (Purpose::Dump(dump), Some(output)) = (request.purpose, output) {
        extraction.dump(ready, dump, &output)?;
        interrupt.check()?;
        output.publish()?;
    }
    Ok(extracted)
}

/// What an extraction would do.
pub struct Preview {
    /// The database, by the name that the backup knows it by.
    pub database: String,
    /// What would be restored at first; where the position has other tables than the backup, more will be.
    pub selection: Selection,
    /// The server that would be started, such as `17.11`; nothing where there is none.
    pub server_version: Option<String>,
    /// All that speaks against it; the extraction would fail with the first.
    pub problems: Vec<Error>,
}

/// Tells what would be done, and does nothing of it.
pub fn preview(request: &Request<'_>, interrupt: &Interrupt) -> Result<Preview> {
    let chain = request.chain;
    let mut problems = Vec::new();
    problems.extend(crate::restore::expect_own_wal(&chain.newest).err());
    let major = chain.newest.info.major_version;
    let server_version = match Host::find(request.programs, major, request.work_dir) {
        Err(error) => {
            problems.push(error);
            None
        }
        Ok(host) => {
            problems.extend(expect_readable(&host, request.reads).err());
            problems.extend(expect_programs(&host, request.purpose).err());
            Some(host.installation.version)
        }
    };
    if let Purpose::Dump(DumpRequest { to: Some(to), .. }) = request.purpose {
        problems.extend(dump::expect_absent(to).err());
    }
    let database = choose_database(request)?;
    let selection = Choice::of(request, database.oid, interrupt)?.selection(chain)?;
    let needed = selection.bytes(chain);
    let room = Place::from(request.work_dir).room()?;
    if let Some(room) = room.filter(|room| *room < needed) {
        let place = request.work_dir.display();
        problems.push(
            Error::failed(format!(
                "{place} has room for {}, and what the tables need takes {}",
                readable(room),
                readable(needed)
            ))
            .hint("name a folder with more room by --work-dir"),
        );
    }
    Ok(Preview {
        database: database.names.first().cloned().unwrap_or_default(),
        selection,
        server_version,
        problems,
    })
}

/// Whether all of the database is wanted.
fn is_whole_database(request: &Request<'_>) -> bool {
    request.tables.is_empty()
        && request.database.is_some()
        && !matches!(request.purpose, Purpose::List)
}

fn expect_programs(host: &Host, purpose: Purpose<'_>) -> Result<()> {
    let Purpose::Dump(dump) = purpose else {
        return Ok(());
    };
    expect_program(host, "pg_dump")?;
    match dump.globals {
        true => expect_program(host, "pg_dumpall"),
        false => Ok(()),
    }
}

fn expect_program(host: &Host, name: &str) -> Result<()> {
    let program = host.installation.program(name);
    if program.is_file() {
        return Ok(());
    }
    Err(Error::failed(format!("{} is not there", program.display()))
        .hint("install the client programs of that version, or name the folder of another server's with --bin-dir"))
}

/// An error where the account that runs the server does not get at the archive.
fn expect_readable(host: &Host, reads: &[PathBuf]) -> Result<()> {
    let closed = |path: &PathBuf| Some((path.clone(), host.account?.kept_from(path)?));
    match reads.iter().find_map(closed) {
        None => Ok(()),
        Some((path, closed)) => Err(Error::failed(format!(
            "the account that would run the server may not read {}, which it needs for archived WAL",
            path.display()
        ))
        .hint(format!(
            "open {} to it, or run pgkeep as the user whose repository it is",
            closed.display()
        ))),
    }
}

/// The database that is wanted, as the backup knows it.
struct Database {
    oid: u32,
    names: Vec<String>,
}

/// The one that is named, or the only one that a user has made.
fn choose_database(request: &Request<'_>) -> Result<Database> {
    let named = request
        .tables
        .iter()
        .filter_map(|pattern| pattern.database.as_deref());
    let mut named: BTreeSet<&str> = named.chain(request.database).collect();
    let mut both = named.iter();
    if let (Some(one), Some(other)) = (both.next(), both.next()) {
        return Err(Error::usage(format!(
            "the tables are of two databases, {one:?} and {other:?}: extract them one after the other"
        )));
    }
    let databases = request.databases;
    let is_of_all = request.tables.is_empty() && !matches!(request.purpose, Purpose::List);
    let oid = match named.pop_first() {
        Some(name) => databases.find(name, request.chain)?,
        // Roles and tablespaces are the same in any.
        None if is_of_all => databases.find("template1", request.chain)?,
        None => databases.only_one(request.chain)?,
    };
    Ok(Database {
        oid,
        names: databases.names_of(oid),
    })
}

/// What is restored whole.
struct Choice {
    /// The wanted database.
    database: u32,
    /// Databases that the wanted one is copied from on the way.
    sources: BTreeSet<u32>,
    /// Whether all of the wanted database comes whole: where all is wanted, and where recovery copies it by its files, as it does
    /// where it was moved to another tablespace. There nobody could tell a copied hole from an empty table.
    has_no_holes: bool,
    /// The files of the wanted database that come whole.
    whole: Whole,
}

impl Choice {
    /// What is known to be needed before anything is restored.
    fn of(request: &Request<'_>, database: u32, interrupt: &Interrupt) -> Result<Choice> {
        let is_whole = is_whole_database(request);
        let tables = match request.purpose {
            Purpose::List => &[],
            Purpose::Dump(_) => request.tables,
        };
        Ok(Choice {
            database,
            sources: request.databases.sources(database),
            has_no_holes: is_whole || request.databases.is_copied_to(database),
            whole: match is_whole {
                true => Whole::default(),
                false => backed_up::choose(request.chain, database, tables, interrupt)?,
            },
        })
    }

    fn is_whole(&self, fork: &RelationFork) -> bool {
        let is_wanted = fork.database == self.database
            && (self.has_no_holes || self.whole.has(fork.relfilenumber));
        fork.database == 0 || is_wanted || self.sources.contains(&fork.database)
    }

    fn selection(&self, chain: &Chain) -> Result<Selection> {
        let is_open = |database| database == self.database || self.sources.contains(&database);
        Selection::new(chain, |fork| self.is_whole(fork), is_open)
    }
}

/// What the rounds have in common.
struct Extraction<'a> {
    request: &'a Request<'a>,
    host: &'a Host,
    major: Major,
    choice: Choice,
    database: &'a Database,
    superusers: Vec<String>,
    progress: &'a dyn Progress,
    interrupt: &'a Interrupt,
}

/// A server that has recovered to the position, with all that is wanted.
struct Ready {
    // Dropped in this order: the server's files go last.
    server: PrivateServer,
    scratch: Scratch,
    data: PathBuf,
    selection: Selection,
    superuser: String,
    database: String,
    relations: Relations,
    wanted: BTreeSet<u32>,
}

impl Extraction<'_> {
    /// Rebuilds the cluster and lets it recover until nothing that is wanted is a hole.
    fn recover(&mut self) -> Result<(Ready, u32)> {
        for round in 1..=ROUNDS {
            let ready = self.round()?;
            let missing = self.missing(&ready)?;
            if missing.is_empty() {
                return Ok((ready, round));
            }
            log::info!(
                "files that are wanted were not restored, and all is done again with them: {}",
                Vec::from_iter(missing.iter().map(String::as_str)).join(", ")
            );
            let numbers = missing.iter().filter_map(|path| self.fork(path));
            let numbers: Vec<u32> = numbers.map(|fork| fork.relfilenumber).collect();
            self.choice.whole.0.extend(numbers);
        }
        Err(Error::failed(format!(
            "after {ROUNDS} rounds there are still files missing that are wanted"
        ))
        .hint("restore --database has all of the database"))
    }

    /// The fork that a path of a relation is of.
    fn fork(&self, path: &str) -> Option<RelationFork> {
        RelationFork::of(&RelationFile::parse(
            path,
            &self.major.tablespace_directory(),
        )?)
    }

    /// Rebuilds the cluster once, and asks it.
    fn round(&self) -> Result<Ready> {
        let request = self.request;
        let chain = request.chain;
        let selection = self.choice.selection(chain)?;
        let purpose = format!("extract-{}", std::process::id());
        let scratch = Scratch::create(chain, request.work_dir, &purpose, Some(self.host))?;
        let rebuild = Rebuild {
            chain,
            selection: &selection,
            recovery: request.recovery.clone(),
            workers: request.workers,
        };
        let data = scratch.rebuild(&rebuild, self.progress, self.interrupt)?;
        self.progress.step("recover", None);
        let mut settings = Settings::of("recovery", self.major, &data, request.workers)?;
        settings.has_holes = selection.holes().next().is_some();
        settings.restores_wal = request.recovery.restores_wal();
        let raised = request.recovery.raised().iter();
        for (_, value) in raised.filter(|(name, _)| *name == "max_prepared_transactions") {
            settings.max_prepared_transactions = settings.max_prepared_transactions.max(*value);
        }
        let mut server = PrivateServer::start(self.host, &data, scratch.folder(), &settings)?;
        let names: Vec<&str> = self.database.names.iter().map(String::as_str).collect();
        let entrance = Entrance {
            databases: &names,
            roles: &self.superusers,
        };
        let superuser = server.wait_until_recovered(&entrance, self.interrupt)?;
        let (database, mut client) = self.connect(&server, &names, &superuser)?;
        let is_list = matches!(request.purpose, Purpose::List);
        Self::roll_back_prepared(&mut client)?;
        let relations = Relations::read(&mut client, &database, is_list)?;
        let wanted = match request.tables {
            [] if is_list || is_whole_database(request) => relations.users(),
            tables => relations.named(tables)?,
        };
        Ok(Ready {
            server,
            scratch,
            data,
            selection,
            superuser,
            database,
            relations,
            wanted,
        })
    }

    /// A session in the database, whatever it is called by now.
    fn connect(
        &self,
        server: &PrivateServer,
        names: &[&str],
        superuser: &str,
    ) -> Result<(String, postgres::Client)> {
        let mut first = None;
        for name in names {
            match server.connect(name, superuser, self.interrupt) {
                Ok(client) => return Ok(((*name).to_owned(), client)),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or_else(|| Error::failed("the database has no name")))
    }

    /// The files that the dump needs and that are holes; an error where recovery missed pages of them.
    fn missing(&self, ready: &Ready) -> Result<BTreeSet<String>> {
        let listed = &self.request.chain.newest.list.files;
        let mut needed: BTreeSet<&str> = match self.request.purpose {
            // The lengths of holes are right, too.
            Purpose::List => ready.relations.files(&BTreeSet::new()),
            Purpose::Dump(_) => ready.relations.files(&ready.wanted),
        };
        if self.choice.has_no_holes {
            needed.clear();
        }
        for path in ready.server.relations_with_invalid_pages()? {
            let fork = self.fork(&path);
            if needed.contains(path.as_str()) || fork.is_none_or(|fork| self.choice.is_whole(&fork))
            {
                return Err(Error::damage(format!(
                    "recovery missed pages of {path}: the backup or its WAL is not complete"
                ))
                .hint("run pgkeep verify on this backup, and extract from another one"));
            }
        }
        let is_hole = |path: &&&str| {
            let place = listed.place(path);
            place.is_some_and(|place| !ready.selection.is_whole(place))
        };
        Ok(needed
            .iter()
            .filter(is_hole)
            .map(|path| (*path).to_owned())
            .collect())
    }

    /// Ends the transactions that are prepared: nobody will commit them here, and whoever asks for a table's size or dumps it
    /// would wait for their locks for ever.
    fn roll_back_prepared(client: &mut postgres::Client) -> Result<()> {
        let failed = |error| server_error("roll back prepared transactions", &error);
        let prepared = client
            .query(
                "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()",
                &[],
            )
            .map_err(failed)?;
        for row in prepared {
            let name: String = row.try_get(0).map_err(failed)?;
            log::warn!(
                "transaction {name:?} was prepared and not yet committed: what it did is not in the dump"
            );
            let rollback = format!("ROLLBACK PREPARED {}", escape_literal(&name));
            client.batch_execute(&rollback).map_err(failed)?;
        }
        Ok(())
    }

    /// Removes what is not whole, and dumps the rest.
    fn dump(&self, ready: Ready, wanted: DumpRequest<'_>, output: &Output) -> Result<()> {
        let request = self.request;
        let Ready {
            server,
            scratch,
            data,
            selection,
            superuser,
            database,
            relations,
            wanted: tables,
        } = ready;
        server.shut_down(self.interrupt)?;
        let listed = &request.chain.newest.list.files;
        for place in selection.holes() {
            let file = listed.get(place);
            // Nobody gets into the others.
            if self
                .fork(file.path)
                .is_some_and(|fork| fork.database == self.database.oid)
            {
                scratch.remove(request.chain, file.path)?;
            }
        }
        self.progress.step("dump", None);
        let settings = Settings::of("dump", self.major, &data, request.workers)?;
        let mut server = PrivateServer::start(self.host, &data, scratch.folder(), &settings)?;
        let entrance = Entrance {
            databases: &[&database],
            roles: std::slice::from_ref(&superuser),
        };
        server.wait_until_recovered(&entrance, self.interrupt)?;
        let dump = Dump {
            host: self.host,
            server: &server,
            superuser: &superuser,
            database: &database,
            place: scratch.folder(),
            workers: request.workers,
            output,
            interrupt: self.interrupt,
        };
        if wanted.globals {
            dump.globals()?;
        }
        if wanted.part != DumpPart::Schema {
            relations.warn_of_missing_rows(&tables);
        }
        if is_whole_database(request) {
            dump.tables(&[], wanted.format, wanted.part)
        } else if request.tables.is_empty() {
            Ok(())
        } else {
            let quoted: Vec<String> = relations
                .sorted(&tables)
                .into_iter()
                .map(Relation::quoted)
                .collect();
            dump.tables(&quoted, wanted.format, wanted.part)
        }
    }
}
