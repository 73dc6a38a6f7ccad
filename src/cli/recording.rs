//! Notes in the repository what was run, and what came of it.

use std::cell::Cell;

use jiff::Timestamp;

use crate::cli::app::App;
use crate::cli::report::Answer;
use crate::error::{Error, Result};
use crate::repository::history::{self, Run};
use crate::repository::identifier::Identifier;
use crate::repository::layout::ServerFolder;

/// The backup that a run is about, once that is known.
pub(super) type Subject = Cell<Option<Identifier>>;

/// A run that is going on.
pub(super) struct Recording<'a> {
    app: &'a App,
    command: &'a str,
    began: Timestamp,
    bytes_before: u64,
}

impl<'a> Recording<'a> {
    /// Begins now.
    pub(super) fn begin(app: &'a App, command: &'a str) -> Recording<'a> {
        Recording {
            app,
            command,
            began: Timestamp::now(),
            bytes_before: app.progress.bytes(),
        }
    }

    /// Notes how it ended. That this cannot be noted changes nothing about it.
    pub(super) fn end(
        self,
        folder: &ServerFolder,
        backup: Option<Identifier>,
        error: Option<&Error>,
    ) {
        if folder.root().is_past() {
            // What was cannot be added to.
            return;
        }
        let interrupted = self.app.interrupt.check().err();
        let error = error.map(|error| interrupted.as_ref().unwrap_or(error));
        let run = Run {
            status: error.map_or(0, |error| error.kind().exit_status()),
            error: error.map(|error| error.message().to_owned()),
            backup,
            bytes: self.app.progress.bytes() - self.bytes_before,
            ..Run::ended(self.command, self.began)
        };
        if let Err(error) = history::record(folder, &run) {
            let told = format!("this run is missing in the history: {error}");
            // Who may only read a repository restores from there as well.
            if matches!(self.command, "restore" | "archive") {
                log::info!("{told}");
            } else {
                log::warn!("{told}");
            }
        }
    }
}

impl App {
    /// Does the work of a command on a server, and notes what came of it.
    pub(super) fn recorded(
        &self,
        folder: &ServerFolder,
        command: &str,
        work: impl FnOnce(&Subject) -> Result<Answer>,
    ) -> Result<Answer> {
        let recording = Recording::begin(self, command);
        let subject = Subject::default();
        let answer = work(&subject);
        let error = match &answer {
            Ok(answer) => answer.error.as_ref(),
            Err(error) => Some(error),
        };
        recording.end(folder, subject.get(), error);
        answer
    }
}
