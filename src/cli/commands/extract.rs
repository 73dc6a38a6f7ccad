use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

use crate::cli::app::{App, Server};
use crate::cli::arguments::Format;
use crate::cli::commands::preview::{answer, describe_chain, describe_time, describe_wal};
use crate::cli::commands::repository::Reading;
use crate::cli::commands::wanted::{POSITION, Way, describe_route, parse_position};
use crate::cli::report::{Answer, Fields, Value, field};
use crate::error::{Error, Result};
use crate::extract::{
    self, DumpFormat, DumpPart, DumpRequest, Preview, Purpose, Table, TablePattern,
};
use crate::pg::recovery::target::TargetAction;
use crate::private_server::Programs;
use crate::repository::identifier::Selector;
use crate::restore::position::{Position, Replay};
use crate::restore::tablespaces::elsewhere;

/// Get tables back as they were, as pg_dump writes them
///
/// Of the backup only what the tables need is rebuilt, in a folder of its own, and recovered to POSITION by a server that
/// nobody else can reach. pg_dump of its version writes them to standard output, or to --to; then all of it is removed.
/// TABLE is orders, sales.orders or shop/sales.orders, as wal show tells it, with * for any letters and ? for one. A partitioned
/// table comes with its partitions, each table with its indexes and sequences.
#[derive(Debug, Args)]
#[command(after_help = POSITION)]
pub(crate) struct Extract {
    /// The server's name
    server: String,
    /// Identifier or its first digits, newest, latest or oldest
    backup: Selector,
    /// How far to replay; then the tables, none for all of a database that is named
    #[arg(value_name = "[POSITION] TABLE", num_args = 0..)]
    rest: Vec<String>,
    /// The database, where it is not the only one; without a TABLE all of it is wanted
    #[arg(short, long, value_name = "DATABASE")]
    database: Option<String>,
    /// The file to write, or the folder [default: standard output]
    #[arg(long, value_name = "FILE|DIR", value_hint = ValueHint::AnyPath)]
    to: Option<PathBuf>,
    /// What pg_dump writes: plain SQL, or an archive for pg_restore, custom or directory
    #[arg(
        long = "as",
        value_name = "FORMAT",
        hide_possible_values = true,
        default_value = "plain"
    )]
    dump_format: Kind,
    /// Only definitions, no rows
    #[arg(long, conflicts_with = "data_only")]
    schema_only: bool,
    /// Only rows, no definitions
    #[arg(long)]
    data_only: bool,
    /// Roles, their settings and tablespaces too, in front; with nothing else, these alone
    #[arg(long)]
    globals: bool,
    /// Only tell which tables there are at that position, and how large they are
    #[arg(long, conflicts_with_all = ["to", "schema_only", "data_only", "globals"])]
    list: bool,
    /// Only tell what would be read and restored, and what speaks against it
    #[arg(long)]
    dry_run: bool,
    /// The folder of the server's programs, where they are not found by themselves
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    bin_dir: Option<PathBuf>,
    /// A folder with room for what is rebuilt [default: $TMPDIR or /tmp]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    work_dir: Option<PathBuf>,
    #[command(flatten)]
    repository: Reading,
}

/// What pg_dump writes.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// SQL.
    Plain,
    /// One file for pg_restore.
    Custom,
    /// A folder for pg_restore.
    Directory,
}

impl From<Kind> for DumpFormat {
    fn from(kind: Kind) -> DumpFormat {
        match kind {
            Kind::Plain => DumpFormat::Plain,
            Kind::Custom => DumpFormat::Custom,
            Kind::Directory => DumpFormat::Directory,
        }
    }
}

impl Extract {
    /// Whether the dump goes to standard output.
    pub(crate) fn takes_stdout(&self) -> bool {
        !self.list && !self.dry_run && self.to.is_none()
    }

    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let (position, tables) = self.split();
        let mut request = vec![field("Backup", self.backup.to_string())];
        request.extend(self.database.as_deref().map(|name| field("Database", name)));
        request.extend(self.repository.request());
        request.push(field("Position", position));
        request.push(field("Server", self.server.as_str()));
        let tables: Vec<Value> = tables.iter().map(|table| table.as_str().into()).collect();
        request.push(field("Tables", tables));
        request.extend(
            self.to
                .as_ref()
                .map(|to| field("To", to.display().to_string())),
        );
        request
    }

    /// The first word is a position where it reads like one: a table of such a name is named with its schema.
    fn split(&self) -> (&str, &[String]) {
        match self.rest.split_first() {
            Some((first, tables)) if first.contains('=') || parse_position(first).is_ok() => {
                (first, tables)
            }
            _ => ("", &self.rest),
        }
    }

    /// Extracts them.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let (position, tables) = self.split();
        let tables = tables
            .iter()
            .map(|table| table.parse().map_err(Error::usage));
        let tables: Vec<TablePattern> = tables.collect::<Result<_>>()?;
        let position = promoted(parse_position(position)?)?;
        self.check(app, &tables)?;
        let server = self.repository.server(app, &self.server)?;
        let way = Way::find(app, &server, &self.backup, &position)?;
        if let Some(created) = way.created.first() {
            return Err(Error::failed(format!(
                "recovery would create tablespace {} in {}, as the server did at {}, and nothing can put it elsewhere",
                created.oid,
                created.folder.display(),
                created.at
            ))
            .hint(elsewhere(created)));
        }
        let absolute =
            |to: &PathBuf| std::path::absolute(to).map_err(|error| Error::io("find", to, &error));
        let to = self.to.as_ref().map(absolute).transpose()?;
        let databases = way.databases(app, &server)?;
        let work_dir = self.work_dir.clone().unwrap_or_else(std::env::temp_dir);
        let programs = Programs {
            bin_dir: self.bin_dir.clone(),
            search_path: std::env::var_os("PATH"),
        };
        let purpose = match self.list {
            true => Purpose::List,
            false => Purpose::Dump(DumpRequest {
                format: self.dump_format.into(),
                part: match (self.schema_only, self.data_only) {
                    (true, _) => DumpPart::Schema,
                    (_, true) => DumpPart::Data,
                    _ => DumpPart::All,
                },
                globals: self.globals,
                to: to.as_deref(),
            }),
        };
        let request = extract::Request {
            chain: &way.chain,
            recovery: way.recovery.clone(),
            databases: &databases,
            database: self.database.as_deref(),
            tables: &tables,
            purpose,
            programs: &programs,
            work_dir: &work_dir,
            reads: &way.reads,
            role: &server.configuration.connection.user,
            workers: server.readers,
        };
        if self.dry_run {
            let preview = extract::preview(&request, &app.interrupt)?;
            return self.tell(&way, &server, preview);
        }
        let extracted = extract::run(&request, &*app.progress, &app.interrupt)?;
        let mut response = vec![
            field("Backup", way.chain.newest.info.backup),
            field("Database", extracted.database.as_str()),
            field("PostgreSQL", extracted.server_version.as_str()),
            field("Restored", Value::Size(extracted.restored)),
            field("Rounds", extracted.rounds),
        ];
        response.extend(describe_route(&way.route));
        let tables: Vec<Value> = extracted.tables.iter().map(describe).collect();
        response.push(field("Tables", tables));
        Ok(Answer::success(response))
    }

    /// Tells what it would do.
    fn tell(&self, way: &Way, server: &Server, preview: Preview) -> Result<Answer> {
        let (info, folder) = (&way.chain.newest.info, &server.folder);
        let restored = preview.selection.bytes(&way.chain);
        let mut response = vec![
            field("Backup", info.backup),
            describe_chain(way),
            field("Database", preview.database.as_str()),
            field("Restored", Value::Size(restored)),
            field("Holes", preview.selection.holes().count() as u64),
        ];
        response.extend(describe_wal(way, folder)?);
        let version = preview.server_version.as_deref();
        response.push(field("PostgreSQL", version.unwrap_or("not installed")));
        response.extend(describe_time(folder, info.backup, restored));
        response.extend(describe_route(&way.route));
        Ok(answer(response, preview.problems))
    }

    /// Refuses what cannot be meant.
    fn check(&self, app: &App, tables: &[TablePattern]) -> Result<()> {
        if tables.is_empty() && self.database.is_none() && !self.list && !self.globals {
            return Err(Error::usage("no table is named").hint(
                "name one, or a database with -d for all of it; --list tells which there are",
            ));
        }
        if self.takes_stdout() {
            if matches!(self.dump_format, Kind::Directory) {
                return Err(Error::usage(
                    "--as directory needs a folder: name it with --to",
                ));
            }
            if app.format != Format::Text {
                return Err(Error::usage(
                    "the dump goes to standard output, and no report: name a file with --to",
                ));
            }
        }
        if self.globals && !matches!(self.dump_format, Kind::Plain) {
            return Err(Error::usage(
                "--globals goes with --as plain alone, as pg_dumpall has it",
            ));
        }
        Ok(())
    }
}

/// The server must become one that can be read, whatever else it would do at the position.
fn promoted(position: Position) -> Result<Position> {
    match position {
        Position::Replica(_) => Err(Error::usage(
            "a replica goes on for ever: extract takes the tables at a position",
        )),
        Position::Primary(Replay::UpTo {
            target, timeline, ..
        }) => Ok(Position::Primary(Replay::UpTo {
            target,
            timeline,
            action: TargetAction::Promote,
        })),
        other => Ok(other),
    }
}

fn describe(table: &Table) -> Value {
    let mut fields = vec![
        field("Schema", table.schema.as_str()),
        field("Name", table.name.as_str()),
        field("Kind", table.kind),
    ];
    fields.extend(table.size.map(|size| field("Size", Value::Size(size))));
    fields.extend(table.rows.map(|rows| field("Rows", rows)));
    Value::Map(fields)
}
