//! What a person sees: arguments, report, progress, log.
//!
//! Each command is one small file in `commands/`. It says what was asked and
//! returns what came of it; this module prints the report and chooses the exit status.

mod app;
mod arguments;
mod commands;
mod completion;
mod help;
mod logging;
#[cfg(test)]
mod manual;
mod many;
mod progress;
mod recording;
mod report;
mod signals;
mod status;
mod systemd;
mod table;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use clap::FromArgMatches;
use clap::error::ErrorKind;

use crate::error::{Error, Kind, Result};
use app::App;
use arguments::{Arguments, Command, Format};
use report::{Answer, Report};
use status::{CANNOT_TELL, StatusReader};

/// Runs the command line and returns the exit status.
pub fn main() -> ExitCode {
    let began = Instant::now();
    if let Some(candidates) = completion::answer() {
        return print(&candidates, 0, StatusReader::Anybody);
    }
    let matches = help::command().try_get_matches();
    let parsed = matches.and_then(|matches| Arguments::from_arg_matches(&matches));
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(error) => return misunderstood(&error, began),
    };
    let mut format = arguments.global.format.unwrap_or(Format::Text);
    let request = arguments.command.request();
    let name = arguments.command.name();
    let reader = arguments.command.reader();
    let takes_stdout = arguments.command.takes_stdout();
    if reader == StatusReader::Recovery {
        signals::exit_on_panic(CANNOT_TELL);
    }
    let answer = run(&arguments, reader, &mut format).unwrap_or_else(Answer::failure);
    if let Some(error) = answer.what_failed() {
        logging::report_error(error);
    }
    let status = reader.status_of(&answer);
    let text = match answer.plain_text(format) {
        // What went wrong was told.
        _ if takes_stdout => String::new(),
        _ if many::is_member() => many::told(&answer),
        Some(text) => text.to_owned(),
        // For cron, which mails whatever is printed.
        None if arguments.global.quiet && format == Format::Text && answer.error.is_none() => {
            String::new()
        }
        None => Report::new(name, format, began.elapsed(), request, answer).render(),
    };
    print(&text, status, reader)
}

/// Does what is asked. How the answer is printed, the configuration may say.
fn run(arguments: &Arguments, reader: StatusReader, format: &mut Format) -> Result<Answer> {
    let has_metrics = matches!(arguments.command, Command::Status(_));
    if *format == Format::Prometheus && !has_metrics {
        return Err(Error::usage("--format prometheus is for status alone"));
    }
    if format.is_table() && !arguments.command.has_table() {
        return Err(Error::usage(format!(
            "--format {} is for {} alone",
            format.name(),
            arguments::TABLES
        )));
    }
    // Every new shell may ask for its script, whatever is wrong with the configuration.
    if let Command::Completions(completions) = &arguments.command {
        return Ok(completions.answer());
    }
    let mut app = App::new(&arguments.global, arguments.command.serves())?;
    if arguments.command.has_table() {
        app.take_configured_format(arguments.global.format);
    }
    *format = app.format;
    // A server that recovers wants to see that it was the signal that ended this.
    if reader == StatusReader::Anybody {
        app.watch_signals()?;
    }
    // Whatever failed after an interrupt failed because of it.
    let answer = arguments.command.run(&app);
    answer.map_err(|error| app.interrupt.check().err().unwrap_or(error))
}

/// The command line was not understood, or only help was asked for.
fn misunderstood(error: &clap::Error, began: Instant) -> ExitCode {
    // Where even this cannot be printed, nothing can.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => return ExitCode::SUCCESS,
        // Nothing was asked, so there is nothing to report on.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return ExitCode::from(Kind::Usage.exit_status());
        }
        _ => {}
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let format = if words.iter().any(|word| word.ends_with("json")) {
        Format::Json
    } else {
        Format::Text
    };
    let line = help::command();
    let is_command = |word: &&String| line.find_subcommand(word).is_some();
    let command = words.iter().find(is_command).map_or("", String::as_str);
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim);
    // The lines up to the first empty one are one sentence, such as what is missing.
    let message: Vec<&str> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
    let message = message.join(" ");
    let wrong = Error::usage(message.trim_start_matches("error: "));
    let answer = Answer::failure(match lines.find_map(|line| line.strip_prefix("tip: ")) {
        Some(tip) => wrong.hint(tip),
        None => wrong,
    });
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
            logging::tell(&format!("pgkeep: cannot write the report: {error}\n"));
            ExitCode::from(reader.status(Kind::Failed))
        }
    }
}
