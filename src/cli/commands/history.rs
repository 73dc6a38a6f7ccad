use std::num::NonZero;

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use crate::cli::app::App;
use crate::cli::commands::columns::Columns;
use crate::cli::commands::repository::Repository;
use crate::cli::report::{Answer, Fields, Value, field};
use crate::cli::table::{Column, Look, Row, Screen, Table, rate, span};
use crate::error::{Error, Result};
use crate::repository::history::{self, Run};
use crate::repository::identifier::Identifier;
use crate::size::readable;

/// Show what was run so far, and what came of it
///
/// Each backup, verification, drill, copy of WAL, restore, archive, expiry, deletion and copy of backups, with its times, its
/// exit status, the backup it was about, the bytes it worked through, and the error where it failed.
#[derive(Debug, Args)]
pub(crate) struct History {
    /// The server's name, or a pattern such as 'prod-*'; without it, all that are configured
    server: Option<String>,
    /// How many runs are shown, the newest
    #[arg(long, value_name = "N", default_value = "20")]
    last: NonZero<usize>,
    /// Only runs of this command; drill is verify with --start
    #[arg(long, value_enum, value_name = "COMMAND")]
    of: Option<Recorded>,
    /// Only runs that failed
    #[arg(long)]
    failed: bool,
    #[command(flatten)]
    columns: Columns,
    #[command(flatten)]
    repository: Repository,
}

/// The commands whose runs are noted.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Recorded {
    Backup,
    Verify,
    Drill,
    #[value(alias = "wal copy")]
    WalCopy,
    Restore,
    Archive,
    Copy,
    Delete,
    Expire,
}

impl Recorded {
    /// Its name in the history.
    fn name(self) -> &'static str {
        match self {
            Recorded::Backup => "backup",
            Recorded::Verify => "verify",
            Recorded::Drill => "drill",
            Recorded::WalCopy => "wal copy",
            Recorded::Restore => "restore",
            Recorded::Archive => "archive",
            Recorded::Copy => "copy",
            Recorded::Delete => "delete",
            Recorded::Expire => "expire",
        }
    }
}

impl History {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let mut request = vec![
            field("Failed", self.failed),
            field("Last", self.last.get() as u64),
        ];
        request.extend(self.of.map(|of| field("Of", of.name())));
        request.extend(self.repository.request());
        let server = self.server.iter();
        request.extend(server.map(|server| field("Server", server.as_str())));
        request
    }

    /// Shows it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let names = app.configuration.chosen(self.server.as_deref())?;
        let mut runs: Vec<(String, Run)> = Vec::new();
        let mut failure: Option<Error> = None;
        for name in names {
            let found = self
                .repository
                .server(app, &name)
                .and_then(|server| history::read(&server.folder));
            match found {
                Ok((found, unreadable)) => {
                    unreadable.iter().for_each(|why| log::warn!("{why}"));
                    runs.extend(found.into_iter().map(|run| (name.clone(), run)));
                }
                // One server's history that cannot be read says nothing of the others.
                Err(error) => {
                    app.interrupt.check()?;
                    failure.get_or_insert(error.context(format_args!("server {name}")));
                }
            }
        }
        let is_wanted = |run: &Run| {
            (!self.failed || run.status != 0) && self.of.is_none_or(|of| of.name() == run.command)
        };
        runs.retain(|(_, run)| is_wanted(run));
        runs.sort_by_key(|(_, run)| run.start);
        let shown = &runs[runs.len().saturating_sub(self.last.get())..];
        let plain = match app.format.is_table() {
            true => {
                let mut table = Table::new(COLUMNS);
                shown.iter().map(row).for_each(|row| table.add(row));
                Some(table.render(self.columns.chosen(), Screen::of_stdout())?)
            }
            false => None,
        };
        let shown: Vec<Value> = shown.iter().map(describe).collect();
        Ok(Answer {
            response: vec![field("Runs", shown)],
            error: failure,
            plain,
        })
    }
}

/// What a table says of a run.
const COLUMNS: &[Column] = &[
    Column::text("start", 0),
    Column::text("server", 0),
    Column::text("command", 0),
    Column::text("backup", 3),
    Column::number("took", 1),
    Column::number("size", 2),
    Column::number("rate", 4),
    Column::text("status", 0),
    Column::text("error", 0),
];

fn row((server, run): &(String, Run)) -> Row {
    let took = u64::try_from(run.took().as_millis()).unwrap_or(0);
    let size = |bytes: Option<u64>, shown: fn(u64) -> String| {
        bytes
            .filter(|bytes| *bytes > 0)
            .map_or(String::new(), shown)
    };
    Row {
        cells: vec![
            moment(run.start),
            server.clone(),
            run.command.clone(),
            run.backup
                .map_or(String::new(), |backup| backup.to_string()),
            span(took),
            size(Some(run.bytes), readable),
            size(run.rate(), rate),
            match run.status {
                0 => "done".to_owned(),
                status => format!("failed {status}"),
            },
            run.error.clone().unwrap_or_default(),
        ],
        below: Vec::new(),
        look: if run.status == 0 {
            Look::Plain
        } else {
            Look::Bad
        },
    }
}

fn moment(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn describe((server, run): &(String, Run)) -> Value {
    let seconds = u64::try_from(run.took().as_millis())
        .unwrap_or(0)
        .div_ceil(1000);
    let mut fields = vec![
        field("Command", run.command.as_str()),
        field("Server", server.as_str()),
        field("Status", run.status == 0),
        field("ExitStatus", u32::from(run.status)),
        field("Start", Identifier::at(run.start)),
        field("End", Identifier::at(run.end)),
        field("Elapsed", Value::Seconds(seconds)),
    ];
    fields.extend(run.backup.map(|backup| field("Backup", backup)));
    if run.bytes > 0 {
        fields.push(field("Size", Value::Size(run.bytes)));
        fields.extend(run.rate().map(|rate| field("Rate", Value::Size(rate))));
    }
    fields.extend(run.error.as_deref().map(|error| field("Error", error)));
    Value::Map(fields)
}
