use clap::Args;

use crate::cli::app::App;
use crate::cli::commands::repository::Reading;
use crate::cli::commands::wal::gaps;
use crate::cli::report::{Answer, Fields, Value, field};
use crate::error::Result;
use crate::repository::wal_archive::WalArchive;
use crate::wal::list::{self, Part, TimelineListing};

/// Show the archived WAL of a server, and every gap in it
///
/// Shows each timeline's segments in parts without a gap, and the backups that can be rolled forward
/// into each part.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// The server's name
    server: String,
    #[command(flatten)]
    repository: Reading,
}

impl List {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let mut request = self.repository.request();
        request.push(field("Server", self.server.as_str()));
        request
    }

    /// Lists it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let server = self.repository.server(app, &self.server)?;
        let mut response = vec![field("Server", server.name())];
        match WalArchive::open(&server.folder, server.keys())? {
            None => {
                response.push(field("Timelines", Value::List(Vec::new())));
                response.push(field("Gaps", gaps(&[])));
            }
            Some(archive) => {
                let listing = list::run(&archive, &server.catalogue()?)?;
                let cluster = listing.cluster;
                let timelines: Vec<Value> = listing.timelines.iter().map(timeline).collect();
                response.extend([
                    field("SystemIdentifier", cluster.system_identifier.to_string()),
                    field("MajorVersion", cluster.major.number()),
                    field("WalSegmentSize", Value::Size(cluster.segment_size.bytes())),
                    field("Timelines", timelines),
                    field("Gaps", gaps(&listing.gaps)),
                ]);
            }
        }
        Ok(Answer::success(response))
    }
}

fn timeline(listing: &TimelineListing) -> Value {
    let mut fields = vec![field("Timeline", listing.timeline.0)];
    if let Some((parent, start)) = listing.parent {
        fields.push(field("Parent", parent.0));
        fields.push(field("StartLSN", start));
    }
    if listing.lacks_history {
        fields.push(field("History", "missing"));
    }
    let parts: Vec<Value> = listing.parts.iter().map(part).collect();
    fields.push(field("Parts", parts));
    let partials: Vec<Value> = listing
        .partials
        .iter()
        .map(|name| name.as_str().into())
        .collect();
    if !partials.is_empty() {
        fields.push(field("Partial", partials));
    }
    Value::Map(fields)
}

fn part(part: &Part) -> Value {
    let backups: Vec<Value> = part.backups.iter().map(|backup| (*backup).into()).collect();
    Value::Map(vec![
        field("First", part.first.as_str()),
        field("Last", part.last.as_str()),
        field("Segments", part.segments),
        field("StartLSN", part.start),
        field("EndLSN", part.end),
        field("Backups", backups),
    ])
}
