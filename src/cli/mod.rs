//! What a person sees: arguments, report, progress, log.
//!
//! Each command is one small file in `commands/`. It says what was asked and
//! returns what came of it; this module prints the report and chooses the exit status.

mod app;
mod arguments;
mod commands;
mod logging;
mod progress;
mod report;
mod signals;
mod status;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use crate::error::{Error, Kind};
use app::App;
use arguments::{Arguments, Format};
use report::{Answer, Report};
use status::{CANNOT_TELL, StatusReader};

/// Runs the command line and returns the exit status.
pub fn main() -> ExitCode {
    let began = Instant::now();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return misunderstood(&error, began),
    };
    let format = arguments.global.format;
    let request = arguments.command.request();
    let name = arguments.command.name();
    let reader = arguments.command.reader();
    if reader == StatusReader::Recovery {
        signals::exit_on_panic(CANNOT_TELL);
    }
    let answer = App::new(&arguments.global).and_then(|app| {
        // A server that recovers wants to see that it was the signal that ended this.
        if reader == StatusReader::Anybody {
            app.watch_signals()?;
        }
        let answer = arguments.command.run(&app);
        // Whatever failed then failed because of it.
        answer.map_err(|error| app.interrupt.check().err().unwrap_or(error))
    });
    let answer = answer.unwrap_or_else(Answer::failure);
    if let Some(error) = answer.what_failed() {
        logging::print_error(error);
    }
    let status = reader.status_of(&answer);
    let text = match answer.plain_text(format) {
        Some(text) => text.to_owned(),
        None => Report::new(name, format, began.elapsed(), request, answer).render(),
    };
    print(&text, status, reader)
}

/// The command line was not understood, or only help was asked for.
fn misunderstood(error: &clap::Error, began: Instant) -> ExitCode {
    // Where even this cannot be printed, nothing can.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let is_json = |word: &String| word.ends_with("json");
    let format = if words.iter().any(is_json) {
        Format::Json
    } else {
        Format::Text
    };
    let command = words
        .iter()
        .find(|word| !word.starts_with('-'))
        .map_or("", String::as_str);
    let message = error.to_string();
    let message = message
        .lines()
        .next()
        .unwrap_or_default()
        .trim_start_matches("error: ");
    let answer = Answer::failure(Error::usage(message));
    let reader = StatusReader::of_words(&words);
    let status = reader.status_of(&answer);
    let report = Report::new(command, format, began.elapsed(), Vec::new(), answer);
    print(&report.render(), status, reader)
}

fn print(text: &str, status: u8, reader: StatusReader) -> ExitCode {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::from(status),
        // A reader that has seen enough, such as head, is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::from(status),
        Err(error) => {
            eprintln!("pgkeep: cannot write the report: {error}");
            ExitCode::from(reader.status(Kind::Failed))
        }
    }
}
