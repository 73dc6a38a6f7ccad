use std::time::Duration;

use clap::Args;

use crate::cli::app::{App, Server};
use crate::cli::commands::wal::gaps;
use crate::cli::many::{Chosen, Servers};
use crate::cli::report::{Answer, Fields, field};
use crate::config;
use crate::error::Result;
use crate::wal::copy::{self, Copied};

/// Copy all WAL that is not here yet
///
/// One run copies every segment and history file of the server, primary or standby, that
/// the archive lacks, checks each, and then the unfinished segment as far as it is flushed. With wal_slot and
/// create_slot = yes in the configuration the server keeps its WAL until it is here. A gap, WAL that the
/// server has removed before it was copied, is exit status 3, and the copy goes on behind it.
#[derive(Debug, Args)]
pub(crate) struct Copy {
    #[command(flatten)]
    servers: Servers,
    /// Go on for so long, such as 1H, with what the server writes
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    follow: Option<Duration>,
}

fn duration(text: &str) -> std::result::Result<Duration, String> {
    config::parse_duration(text).ok_or_else(|| format!("expected {}", config::DURATIONS))
}

impl Copy {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let mut request = Vec::new();
        if let Some(follow) = self.follow {
            request.push(field("Follow", follow.as_secs()));
        }
        request.extend(self.servers.request());
        request
    }

    /// Copies it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let name = match self.servers.chosen(app)? {
            Chosen::Several(names) => return self.servers.run(app, &names),
            Chosen::One(name) => name,
        };
        let server = app.server(&name)?;
        app.recorded(&server.folder, "wal copy", |_| self.copy(app, &server))
    }

    fn copy(&self, app: &App, server: &Server) -> Result<Answer> {
        let configuration = &server.configuration;
        let request = copy::Request {
            server: server.name(),
            folder: &server.folder,
            coding: &server.coding()?,
            keys: server.keys(),
            workers: server.workers,
            max_rate: configuration.max_rate.map(u64::from),
            source: configuration.source,
            slot: configuration.wal_slot.as_deref(),
            create_slot: configuration.create_slot,
            follow: self.follow,
        };
        let copied = copy::run(
            &request,
            &server.connector()?,
            &*app.progress,
            &app.interrupt,
        )?;
        log::info!(
            "WAL of {}: {} segments copied, held up to {}",
            server.name(),
            copied.segments.len(),
            copied.end
        );
        Ok(Answer {
            response: describe(server.name(), &copied),
            error: copied.trouble,
            plain: None,
        })
    }
}

fn describe(server: &str, copied: &Copied) -> Fields {
    let mut fields = vec![
        field("Server", server),
        field("Segments", copied.segments.len() as u64),
    ];
    if let (Some(first), Some(last)) = (copied.segments.first(), copied.segments.last()) {
        fields.push(field("First", first.as_str()));
        fields.push(field("Last", last.as_str()));
    }
    fields.push(field("Histories", copied.histories));
    if let Some((segment, end)) = &copied.partial {
        let partial = vec![field("WAL", segment.as_str()), field("EndLSN", *end)];
        fields.push(field("Partial", partial));
    }
    if let Some(timeline) = copied.timeline {
        fields.push(field("Timeline", timeline.0));
    }
    fields.push(field("EndLSN", copied.end));
    if let Some(position) = copied.slot {
        fields.push(field("SlotLSN", position));
    }
    fields.push(field("Gaps", gaps(&copied.gaps)));
    fields
}
