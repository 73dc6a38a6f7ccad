use std::num::NonZeroUsize;

use clap::Args;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::cli::app::App;
use crate::cli::commands::repository::Moment;
use crate::cli::report::{Answer, Fields, Value, field};
use crate::error::{Error, Result};
use crate::pg::lsn::Timeline;
use crate::pg::timestamp;
use crate::repository::roll_forward::MissingWal;
use crate::wal::show::{
    self, Bound, Changed, Destroyed, Event, Newest, Rows, Shown, Told, Transaction, Unended,
    Wanted, What, Whole,
};

const BOUNDS: &str = "\
FROM and TO are one of
  2026-11-22 02:30     a time; without a zone or an offset such as +01 it is in this
                       machine's time zone
  2H                   so long ago: S, M, H, D or W
  4711                 the end of that transaction
  16/B374D848          a position in the WAL
  before_upgrade       a restore point
  time=, xid=, lsn=, name= with one of these, as in a POSITION
Without FROM it begins with the newest backup, or with the newest before TO.
TABLE is orders, public.orders or shop/public.orders, with * for any letters and ? for
one, or database/relfilenode or relfilenode.";

/// Show what happened when, and how to restore to before it
///
/// Reads the archived WAL, and that of the backups, and tells what was destroyed: dropped, truncated, deleted or updated in
/// masses, each with the POSITION for a restore to just before; then each transaction with its time, its number and
/// how many rows of which tables it changed. Names of tables come from a backup, and from what happened to
/// them since. Needs no connection and writes nothing.
#[derive(Debug, Args)]
#[command(after_help = BOUNDS)]
pub(crate) struct Show {
    /// The server's name
    server: String,
    /// Only these tables and transactions
    #[arg(value_name = "TABLE|XID")]
    wanted: Vec<Wanted>,
    /// Where to begin
    #[arg(long)]
    from: Option<String>,
    /// Where to end
    #[arg(long)]
    to: Option<String>,
    /// Which timeline to follow, instead of the newest that descends from the newest backup's
    #[arg(long, value_name = "NUMBER")]
    timeline: Option<u32>,
    /// How much to tell of each kind: of what was destroyed the worst, of transactions and events the newest
    #[arg(long, value_name = "NUMBER", default_value = "100")]
    limit: NonZeroUsize,
    /// From how many deleted or updated rows of a table on it counts as destroyed
    #[arg(long, value_name = "NUMBER", default_value = "100")]
    rows: u64,
    /// Only what was destroyed, no transactions
    #[arg(long)]
    destroyed: bool,
    #[command(flatten)]
    moment: Moment,
}

impl Show {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let mut request = self.moment.request();
        let bound = |key, bound: &Option<String>| bound.as_ref().map(|it| field(key, it.as_str()));
        request.extend(bound("From", &self.from));
        request.push(field("Limit", self.limit.get() as u64));
        request.push(field("Rows", self.rows));
        request.push(field("Server", self.server.as_str()));
        request.extend(self.timeline.map(|timeline| field("Timeline", timeline)));
        request.extend(bound("To", &self.to));
        if !self.wanted.is_empty() {
            let wanted = self.wanted.iter().map(|wanted| wanted.to_string().into());
            request.push(field("Wanted", wanted.collect::<Vec<Value>>()));
        }
        request
    }

    /// Shows it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let now = Timestamp::now();
        let (from, to) = (bound("from", &self.from, now)?, bound("to", &self.to, now)?);
        let mut server = app.server(&self.server)?;
        server.folder = self.moment.of(server.folder)?;
        let request = show::Request {
            folder: &server.folder,
            keys: &server.keys(),
            from: from.as_ref(),
            to: to.as_ref(),
            timeline: self.timeline.map(Timeline),
            wanted: &self.wanted,
            limit: self.limit.get(),
            many: self.rows.max(1),
            progress: &*app.progress,
            interrupt: &app.interrupt,
        };
        let shown = show::run(&request, &server.catalogue()?)?;
        Ok(Answer {
            response: self.describe(server.name(), &shown),
            error: shown.trouble,
            plain: None,
        })
    }

    fn describe(&self, server: &str, shown: &Shown) -> Fields {
        let account = &shown.account;
        let mut fields = vec![field("Server", server), field("Timeline", shown.timeline.0)];
        fields.extend(shown.backup.map(|backup| field("Backup", backup)));
        fields.extend(shown.start.map(|start| field("StartLSN", start)));
        fields.push(field("EndLSN", shown.end));
        if let Some((first, last)) = account.times {
            fields.push(field("StartTime", timestamp::text(first)));
            fields.push(field("EndTime", timestamp::text(last)));
        }
        fields.extend([
            field("Committed", account.committed),
            field("Aborted", account.aborted),
            field("CatalogOnly", account.internal),
        ]);
        let destroyed: Vec<Value> = account.destroyed.iter().map(destroyed).collect();
        fields.push(field("Destroyed", destroyed));
        fields.extend(omitted("DestroyedOmitted", account.destroyed_omitted));
        let relations: Vec<Value> = account.relations.iter().map(relation).collect();
        fields.push(field("Relations", relations));
        fields.extend(omitted("RelationsOmitted", account.relations_omitted));
        let events: Vec<Value> = account.events.kept.iter().map(event).collect();
        fields.push(field("Events", events));
        fields.extend(omitted("EventsOmitted", account.events.omitted));
        if !self.destroyed {
            fields.extend(list("Transactions", &account.transactions));
            fields.extend(list("RolledBack", &account.rolled_back));
            let running = shown.unended.iter().take(self.limit.get());
            let running: Vec<Value> = running.map(unended).collect();
            if !running.is_empty() {
                fields.push(field("Running", running));
            }
        }
        if !shown.missing.is_empty() {
            let missing: Vec<Value> = shown.missing.iter().map(gap).collect();
            fields.push(field("Gaps", missing));
        }
        fields.extend(omitted("RecordsNotCounted", shown.forgotten));
        fields
    }
}

fn list(key: &str, transactions: &Newest<Transaction>) -> Fields {
    let told: Vec<Value> = transactions.kept.iter().map(transaction).collect();
    let mut fields = vec![field(key, told)];
    fields.extend(omitted(&format!("{key}Omitted"), transactions.omitted));
    fields
}

fn transaction(transaction: &Transaction) -> Value {
    let mut fields = vec![
        field("Time", timestamp::text(transaction.time)),
        field("XID", transaction.xid),
        field("LSN", transaction.at),
        field("FirstLSN", transaction.first),
    ];
    if transaction.was_prepared {
        fields.push(field("Prepared", true));
    }
    for (whole, key) in WHOLES {
        let all = transaction.whole.iter();
        let these: Vec<&Told> = all
            .filter(|(what, _)| *what == whole)
            .map(|(_, told)| told)
            .collect();
        if !these.is_empty() {
            let names = these
                .iter()
                .take(LISTED)
                .map(|told| told.to_string().into());
            fields.push(field(key, names.collect::<Vec<Value>>()));
            let rest = these.len().saturating_sub(LISTED);
            fields.extend(omitted(&format!("{key}Omitted"), rest as u64));
        }
    }
    fields.extend(relations(&transaction.changed));
    fields.extend(omitted("CatalogRows", transaction.catalog_rows));
    Value::Map(fields)
}

fn unended(unended: &Unended) -> Value {
    let mut fields = vec![
        field("XID", unended.xid),
        field("FirstLSN", unended.first),
        field("Prepared", unended.is_prepared),
    ];
    fields.extend(relations(&unended.changed));
    Value::Map(fields)
}

fn relations(changed: &[Changed]) -> Fields {
    if changed.is_empty() {
        return Vec::new();
    }
    let told: Vec<Value> = changed.iter().take(LISTED).map(relation).collect();
    let mut fields = vec![field("Relations", told)];
    let rest = changed.len().saturating_sub(LISTED);
    fields.extend(omitted("RelationsOmitted", rest as u64));
    fields
}

/// How many relations of one transaction are listed, at most.
const LISTED: usize = 100;

const WHOLES: [(Whole, &str); 9] = [
    (Whole::DatabaseDropped, "DatabasesDropped"),
    (Whole::TablespaceDropped, "TablespacesDropped"),
    (Whole::Dropped, "Dropped"),
    (Whole::Truncated, "Truncated"),
    (Whole::FilesRemoved, "FilesRemoved"),
    (Whole::Rewritten, "Rewritten"),
    (Whole::Created, "Created"),
    (Whole::DatabaseCreated, "DatabasesCreated"),
    (Whole::TablespaceCreated, "TablespacesCreated"),
];

fn bound(option: &str, text: &Option<String>, now: Timestamp) -> Result<Option<Bound>> {
    let Some(text) = text else {
        return Ok(None);
    };
    let local = TimeZone::try_system().ok();
    Bound::parse(text, now, local.as_ref())
        .map(Some)
        .map_err(|why| Error::usage(format!("--{option} {text:?}: {why}")))
}

/// A number that is of interest where it is not zero.
fn omitted(key: &str, number: u64) -> Option<(String, Value)> {
    (number > 0).then(|| field(key, number))
}

fn relation(changed: &Changed) -> Value {
    let Rows {
        inserted,
        updated,
        deleted,
    } = changed.rows;
    let mut fields = vec![field("Relation", changed.relation.to_string())];
    fields.extend(omitted("Inserted", inserted));
    fields.extend(omitted("Updated", updated));
    fields.extend(omitted("Deleted", deleted));
    Value::Map(fields)
}

fn destroyed(destroyed: &Destroyed) -> Value {
    let mut fields = vec![
        field("What", destroyed.loss.name()),
        field("Name", destroyed.what.to_string()),
    ];
    fields.extend(destroyed.rows.map(|rows| field("Rows", rows)));
    fields.extend([
        field("Time", timestamp::text(destroyed.time)),
        field("XID", destroyed.xid),
        field("LSN", destroyed.at),
        field("Position", destroyed.position.as_str()),
    ]);
    Value::Map(fields)
}

fn event(event: &Event) -> Value {
    let mut fields = Vec::new();
    fields.extend(event.time.map(|time| field("Time", timestamp::text(time))));
    fields.push(field("LSN", event.at));
    let what = match &event.what {
        What::RestorePoint(_) => "restore point",
        What::Promoted(..) => "promotion",
        What::Quiet => "shutdown, or end of a recovery",
        What::Reconfigured => "start with other settings",
    };
    fields.push(field("Event", what));
    match &event.what {
        What::RestorePoint(name) => {
            fields.push(field("Name", name.as_str()));
            let position = format!("name={}", name.replace(',', "\\,"));
            fields.push(field("Position", position));
        }
        What::Promoted(before, timeline) => {
            fields.push(field("Timeline", timeline.0));
            fields.push(field("Parent", before.0));
        }
        What::Quiet | What::Reconfigured => {}
    }
    Value::Map(fields)
}

fn gap(missing: &MissingWal) -> Value {
    Value::Map(vec![
        field("First", missing.first.as_str()),
        field("Last", missing.last.as_str()),
        field("StartLSN", missing.start),
        field("EndLSN", missing.end),
    ])
}
