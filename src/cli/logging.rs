//! The log: lines on stderr, and in a file where one is asked for.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use log::{LevelFilter, Log, Metadata, Record};

use crate::error::{Error, Result};

struct Sink {
    file: Option<Mutex<File>>,
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The libraries' own debugging is of no use to an operator.
        metadata.target().starts_with("pgkeep") || metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = record.level().as_str().to_lowercase();
        // Whether the log can be written does not decide over a backup.
        let _ = writeln!(
            std::io::stderr().lock(),
            "pgkeep: {level}: {}",
            record.args()
        );
        if let Some(file) = &self.file {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = writeln!(
                file,
                "{:.3} [{}] {level}: {}",
                Timestamp::now(),
                std::process::id(),
                record.args()
            );
        }
    }

    fn flush(&self) {}
}

/// Sets the log up, once.
pub(super) fn start(level: LevelFilter, file: Option<&Path>) -> Result<()> {
    let file = file
        .map(|path| {
            OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(path)
                .map_err(|error| {
                    Error::usage(Error::io("open the log file", path, &error).message())
                })
        })
        .transpose()?
        .map(Mutex::new);
    log::set_boxed_logger(Box::new(Sink { file }))
        .map_err(|error| Error::failed(format!("cannot set up the log: {error}")))?;
    log::set_max_level(level);
    Ok(())
}

/// Prints what went wrong, and what to do, to stderr.
pub(super) fn print_error(error: &Error) {
    let colour = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (red, plain) = if colour {
        ("\x1b[31m", "\x1b[0m")
    } else {
        ("", "")
    };
    eprintln!("{red}pgkeep: error:{plain} {}", error.message());
    if let Some(advice) = error.advice() {
        for line in advice.lines() {
            eprintln!("  hint: {line}");
        }
    }
}
