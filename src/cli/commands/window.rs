use clap::Args;
use jiff::{SignedDuration, Timestamp};

use crate::cli::app::App;
use crate::cli::commands::columns::Columns;
use crate::cli::commands::repository::Repository;
use crate::cli::report::{Answer, Fields, Value, field};
use crate::cli::table::{Column, Look, Row, Screen, Table, age};
use crate::error::{Error, Result};
use crate::lifecycle::window::{self, Hole, Windows};
use crate::pg::lsn::Lsn;
use crate::pg::timestamp;
use crate::repository::roll_forward::HeldWal;

/// Show from when to when any moment can be restored
///
/// On each timeline, from where the first valid backup is consistent to the last transaction that is archived behind it without
/// a gap, with every hole in between, its times, and the WAL or the backups that are missing. Age is how long ago the last
/// transaction was that is kept: what would be lost if the server were lost now.
#[derive(Debug, Args)]
pub(crate) struct Window {
    /// The server's name, or a pattern such as 'prod-*'; without it, all that are configured
    server: Option<String>,
    #[command(flatten)]
    columns: Columns,
    #[command(flatten)]
    repository: Repository,
}

/// What a table says of a window.
const COLUMNS: &[Column] = &[
    Column::text("server", 0),
    Column::number("timeline", 2),
    Column::text("from", 0),
    Column::text("to", 0),
    Column::number("age", 1),
    Column::text("backup", 3),
    Column::text("from-lsn", 5),
    Column::text("to-lsn", 4),
];

impl Window {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let mut request = self.repository.request();
        let server = self.server.iter();
        request.extend(server.map(|server| field("Server", server.as_str())));
        request
    }

    /// Shows it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let now = Timestamp::now();
        let mut table = Table::new(COLUMNS);
        let mut servers: Vec<Value> = Vec::new();
        let mut failure: Option<Error> = None;
        for name in app.configuration.chosen(self.server.as_deref())? {
            let error = match self.look(app, &name) {
                Ok(restorable) => {
                    rows(&name, &restorable, now)
                        .into_iter()
                        .for_each(|row| table.add(row));
                    let mut fields = vec![field("Server", name.as_str())];
                    fields.extend(describe(&restorable, now));
                    servers.push(fields.into());
                    let unreadable = restorable.windows.iter();
                    let why = unreadable.filter_map(|window| window.unreadable.as_deref());
                    why.map(Error::damage).next()
                }
                // One server's folder that cannot be read says nothing of the others.
                Err(error) => {
                    app.interrupt.check()?;
                    let fields = vec![
                        field("Server", name.as_str()),
                        field("Error", error.message()),
                    ];
                    servers.push(fields.into());
                    Some(error)
                }
            };
            let error = error.map(|error| error.context(format_args!("server {name}")));
            failure = failure.or(error);
        }
        let plain = match app.format.is_table() {
            true => Some(table.render(self.columns.chosen(), Screen::of_stdout())?),
            false => None,
        };
        Ok(Answer {
            response: vec![field("Servers", servers)],
            error: failure,
            plain,
        })
    }

    fn look(&self, app: &App, name: &str) -> Result<Windows> {
        let server = self.repository.server(app, name)?;
        let catalogue = server.catalogue()?;
        let mut held = HeldWal::look(&server.folder, server.keys())?;
        window::look(&catalogue, held.as_mut(), &app.interrupt)
    }
}

/// All windows and holes.
fn describe(restorable: &Windows, now: Timestamp) -> Fields {
    let windows = restorable.windows.iter().map(|window| {
        let mut fields = vec![
            field("Timeline", window.timeline.0),
            field("FromBackup", window.backup),
        ];
        fields.extend(moment("From", (window.from, window.from_time)));
        fields.extend(moment("To", (window.to, window.to_time)));
        let unreadable = window.unreadable.as_deref();
        fields.extend(unreadable.map(|why| field("Error", why)));
        Value::Map(fields)
    });
    let mut fields = summary(restorable, now);
    fields.push(field("Windows", windows.collect::<Vec<Value>>()));
    let holes = restorable.holes.iter().map(|hole| {
        let mut fields = vec![field("Timeline", hole.timeline.0)];
        fields.extend(moment("After", hole.after));
        fields.extend(
            hole.before
                .into_iter()
                .flat_map(|before| moment("Before", before)),
        );
        let missing = hole.missing.as_deref();
        fields.extend(missing.map(|missing| field("Missing", missing)));
        let invalid = hole.invalid.iter().map(|backup| Value::from(*backup));
        fields.push(field("Invalid", invalid.collect::<Vec<Value>>()));
        Value::Map(fields)
    });
    fields.push(field("Holes", holes.collect::<Vec<Value>>()));
    fields
}

/// The window that a lost server is restored in, and how much would be lost.
pub(super) fn summary(restorable: &Windows, now: Timestamp) -> Fields {
    let mut fields = Vec::new();
    if let Some(newest) = restorable.newest() {
        let times = [("From", newest.from_time), ("To", newest.to_time)];
        let known = times
            .into_iter()
            .filter_map(|(key, time)| Some((key, time?)));
        fields.extend(known.map(|(key, time)| field(key, timestamp::text(time))));
        let age = restorable.age(now).map(seconds);
        fields.extend(age.map(|age| field("Age", Value::Seconds(age))));
    }
    fields
}

fn seconds(duration: SignedDuration) -> u64 {
    u64::try_from(duration.as_secs()).unwrap_or(0)
}

fn moment(key: &str, (position, time): (Lsn, Option<Timestamp>)) -> Fields {
    let mut fields = vec![field(&format!("{key}LSN"), position)];
    fields.extend(time.map(|time| field(&format!("{key}Time"), timestamp::text(time))));
    fields
}

/// A line for each window, with the hole behind it below.
fn rows(name: &str, restorable: &Windows, now: Timestamp) -> Vec<Row> {
    let shown = |time: Option<Timestamp>| {
        time.map_or("?".to_owned(), |time| {
            time.strftime("%Y-%m-%d %H:%M:%S").to_string()
        })
    };
    let row = |window: &window::Window| {
        let holes = restorable
            .holes
            .iter()
            .filter(|hole| hole.timeline == window.timeline && hole.after.0 == window.to);
        let since = window.to_time.map(|time| seconds(now.duration_since(time)));
        let mut below: Vec<String> = holes.map(why).collect();
        below.extend(window.unreadable.clone());
        Row {
            cells: vec![
                name.to_owned(),
                window.timeline.to_string(),
                shown(window.from_time),
                shown(window.to_time),
                since.map_or(String::new(), age),
                window.backup.to_string(),
                window.from.to_string(),
                window.to.to_string(),
            ],
            look: match window.unreadable {
                Some(_) => Look::Bad,
                None => Look::Plain,
            },
            below,
        }
    };
    if restorable.windows.is_empty() {
        let mut cells = vec![String::new(); COLUMNS.len()];
        cells[0] = name.to_owned();
        return vec![Row {
            cells,
            below: vec!["nothing can be restored".to_owned()],
            look: Look::Bad,
        }];
    }
    restorable.windows.iter().map(row).collect()
}

/// A hole in a sentence.
fn why(hole: &Hole) -> String {
    let mut why = match hole.before {
        Some(_) => "then a hole".to_owned(),
        None => "what is behind cannot be reached".to_owned(),
    };
    match &hole.missing {
        Some(missing) => why.push_str(&format!(": {missing} missing")),
        None => why.push_str(": no WAL is archived there"),
    }
    for invalid in &hole.invalid {
        why.push_str(&format!(", backup {invalid} not valid"));
    }
    why
}
