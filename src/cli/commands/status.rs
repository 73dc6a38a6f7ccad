mod metrics;

use std::num::NonZero;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;

use crate::cli::app::App;
use crate::cli::arguments::Format;
use crate::cli::commands::columns::Columns;
use crate::cli::commands::describe;
use crate::cli::commands::repository::Repository;
use crate::cli::commands::window;
use crate::cli::report::{Answer, Fields, Value, field};
use crate::cli::table::{Column, Look, Row, Screen, Table, age};
use crate::error::{Error, Result};
use crate::lifecycle::status::{self, Status as Seen};
use crate::parallel;
use crate::repository::identifier::Identifier;
use crate::server::connect::Connector;
use crate::size::readable;

/// How long a server may take to answer, where nothing is configured.
const PATIENCE: Duration = Duration::from_secs(10);

/// Show how the backups of all servers, or of one, are doing
///
/// Exit status 3 where something needs a person: no valid backup, a damaged one, a server that cannot be asked, missing
/// WAL, a verification that is overdue, too little room. With --format table there is a line for each server, and with --format
/// tree what needs a person stands below it. With --format prometheus it prints metrics for a textfile collector.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// The server's name, or a pattern such as 'prod-*'; without it, all that are configured
    server: Option<String>,
    /// Of several servers, how many are looked at at the same time
    #[arg(long, value_name = "N", default_value = "8")]
    jobs: NonZero<usize>,
    #[command(flatten)]
    columns: Columns,
    #[command(flatten)]
    repository: Repository,
}

impl Status {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let mut request = self.repository.request();
        let server = self.server.iter();
        request.extend(server.map(|server| field("Server", server.as_str())));
        request
    }

    /// Looks at all servers.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let names = app.configuration.chosen(self.server.as_deref())?;
        let now = Timestamp::now();
        let mut seen: Vec<(String, Seen)> = Vec::new();
        let mut servers: Vec<Value> = Vec::new();
        let mut table = Table::new(COLUMNS);
        let mut failure = None;
        let looks = parallel::at_once_by(self.jobs, &names, |name| {
            look(app, name, &self.repository, now)
        });
        for (name, looked) in names.into_iter().zip(looks) {
            match looked {
                Ok(one) => {
                    table.add(row(&name, &one, now, app.format.is_tree()));
                    servers.push(describe(&name, &one, now).into());
                    seen.push((name, one));
                }
                // One server's folder that cannot be read says nothing of the others.
                Err(error) => {
                    app.interrupt.check()?;
                    table.add(failed_row(&name, &error));
                    let fields = vec![
                        field("Server", name.as_str()),
                        field("Error", error.message()),
                    ];
                    servers.push(fields.into());
                    failure.get_or_insert(error);
                }
            }
        }
        Ok(Answer {
            response: vec![field("Servers", servers)],
            plain: match app.format {
                Format::Prometheus => Some(metrics::render(&seen, now)),
                Format::Table | Format::Tree => {
                    Some(table.render(self.columns.chosen(), Screen::of_stdout())?)
                }
                Format::Text | Format::Json => None,
            },
            error: failure.or_else(|| needs_a_person(&seen)),
        })
    }
}

fn look(app: &App, name: &str, repository: &Repository, now: Timestamp) -> Result<Seen> {
    let server = repository.server(app, name)?;
    let mut connection = server.configuration.connection.clone();
    connection.connect_timeout.get_or_insert(PATIENCE);
    let request = status::Request {
        server: server.name(),
        folder: &server.folder,
        keys: &server.keys(),
        verification: server.configuration.verification,
        connector: Connector::new(&connection),
    };
    status::look(&request, now, &app.interrupt)
        .map_err(|error| error.context(format_args!("server {name}")))
}

fn needs_a_person(seen: &[(String, Seen)]) -> Option<Error> {
    let mut all = seen.iter().flat_map(|(name, seen)| {
        let attention = seen.attention.iter();
        attention.map(move |what| format!("server {name}: {what}"))
    });
    let first = all.next()?;
    Some(Error::damage(match all.count() {
        0 => first,
        more => format!("{first} (and {more} more)"),
    }))
}

/// What a table says of a server.
const COLUMNS: &[Column] = &[
    Column::text("server", 0),
    Column::text("up", 1),
    Column::text("version", 4),
    Column::number("valid", 1),
    Column::text("newest", 3),
    Column::number("age", 1),
    Column::number("verified", 2),
    Column::number("due", 4),
    Column::text("restorable", 3),
    Column::number("lost", 2),
    Column::number("gaps", 2),
    Column::text("wal", 6),
    Column::number("held", 3),
    Column::number("free", 5),
    Column::text("attention", 0),
];

fn row(name: &str, seen: &Seen, now: Timestamp, is_tree: bool) -> Row {
    let since = |time: Option<Timestamp>| {
        let seconds = time.map(|time| now.duration_since(time).as_secs().max(0));
        seconds.map_or(String::new(), |seconds| age(seconds.unsigned_abs()))
    };
    let wal = seen.wal.as_ref().ok().and_then(Option::as_ref);
    let newest = seen.newest;
    let window = seen.restorable.as_ref().ok().and_then(|all| all.newest());
    let shown = |time: Option<Timestamp>| {
        time.map_or(String::new(), |time| {
            time.strftime("%Y-%m-%d %H:%M").to_string()
        })
    };
    let attention = match (is_tree, seen.attention.as_slice()) {
        (_, []) => String::new(),
        (true, several) => several.len().to_string(),
        (false, [one]) => one.clone(),
        (false, [first, rest @ ..]) => format!("{} more, {first}", rest.len()),
    };
    Row {
        cells: vec![
            name.to_owned(),
            if seen.server.is_ok() { "yes" } else { "no" }.to_owned(),
            seen.server
                .as_ref()
                .map_or(String::new(), ToString::to_string),
            format!("{}/{}", seen.valid, seen.backups),
            newest.map_or(String::new(), |newest| newest.to_string()),
            since(newest.and_then(Identifier::time)),
            since(seen.verified),
            seen.due.to_string(),
            shown(window.and_then(|window| window.from_time)),
            since(window.and_then(|window| window.to_time)),
            wal.map_or(String::new(), |wal| wal.gaps.len().to_string()),
            wal.and_then(|wal| wal.head.clone()).unwrap_or_default(),
            readable(seen.held),
            seen.free.map_or(String::new(), readable),
            attention,
        ],
        below: match is_tree {
            true => seen.attention.clone(),
            false => Vec::new(),
        },
        look: match seen.attention.is_empty() {
            true => Look::Plain,
            false => Look::Bad,
        },
    }
}

fn failed_row(name: &str, error: &Error) -> Row {
    let mut cells = vec![String::new(); COLUMNS.len()];
    cells[0] = name.to_owned();
    if let Some(last) = cells.last_mut() {
        *last = error.message().to_owned();
    }
    Row {
        cells,
        below: Vec::new(),
        look: Look::Bad,
    }
}

fn describe(name: &str, seen: &Seen, now: Timestamp) -> Fields {
    let mut fields = vec![
        field("Server", name),
        field("Reachable", seen.server.is_ok()),
    ];
    fields.extend(
        seen.server
            .as_ref()
            .ok()
            .map(|version| field("PostgreSQL", version.to_string())),
    );
    fields.push(field("NumberOfBackups", seen.backups));
    fields.push(field("NumberOfValid", seen.valid));
    if let Some(newest) = seen.newest {
        fields.push(field("Newest", newest));
        let age = newest.time().map(|made| now.duration_since(made).as_secs());
        let age = age.and_then(|seconds| u64::try_from(seconds).ok());
        fields.push(field("Age", Value::Seconds(age.unwrap_or(0))));
    }
    let verified = seen.verified;
    fields.extend(verified.map(|time| field("Verified", Identifier::at(time))));
    fields.push(field("NumberOfDue", seen.due));
    if let Ok(Some(wal)) = &seen.wal {
        let gaps: Vec<Value> = wal.gaps.iter().map(|gap| gap.as_str().into()).collect();
        let mut about = Vec::new();
        about.extend(wal.head.as_deref().map(|head| field("Head", head)));
        about.push(field("Gaps", gaps));
        if let Some(range) = &wal.roll_forward {
            about.push(field("FromBackup", range.backup));
            about.push(field("FromLSN", range.from));
            about.extend(describe::roll_forward(&range.to));
        }
        fields.push(field("WAL", about));
    }
    match &seen.restorable {
        Ok(restorable) => {
            let mut about = window::summary(restorable, now);
            about.push(field("NumberOfHoles", restorable.holes.len() as u64));
            fields.push(field("Window", about));
        }
        Err(error) => fields.push(field("WindowError", error.message())),
    }
    fields.push(field("Held", Value::Size(seen.held)));
    fields.extend(seen.free.map(|free| field("Free", Value::Size(free))));
    let attention: Vec<Value> = seen
        .attention
        .iter()
        .map(|what| what.as_str().into())
        .collect();
    fields.push(field("Attention", attention));
    fields
}
