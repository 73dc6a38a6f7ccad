//! The log: lines on stderr, and in a file where one is asked for.
//!
//! Who reads stderr decides what a line looks like. On a terminal errors and warnings are
//! coloured, and a progress bar steps aside. The journal of systemd gets the level in front,
//! `<3>` for an error (sd-daemon(3)), and names program and time itself.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use indicatif::ProgressBar;
use jiff::Timestamp;
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::error::{Error, Result};

/// The one log of the process: there is one stderr.
static LOG: Sink = Sink {
    reader: OnceLock::new(),
    bar: OnceLock::new(),
    file: OnceLock::new(),
};

struct Sink {
    reader: OnceLock<Reader>,
    bar: OnceLock<ProgressBar>,
    file: OnceLock<Mutex<File>>,
}

/// Who reads stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// A terminal that shows colours.
    Colours,
    /// The journal of systemd.
    Journal,
    /// A file, a mail, another program.
    Other,
}

impl Reader {
    fn find() -> Reader {
        let stderr = std::io::stderr();
        let is_empty = |name: &str| std::env::var_os(name).is_none_or(|value| value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        if is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref()) {
            Reader::Journal
        } else if stderr.is_terminal() && is_empty("NO_COLOR") && !is_dumb {
            Reader::Colours
        } else {
            Reader::Other
        }
    }
}

/// Whether the variable by which systemd says what the journal's end of a stream is, device and
/// inode, means stderr: it is inherited by those whose stderr is something else (systemd.exec(5)).
fn is_journal(variable: Option<&str>) -> bool {
    let named = variable.and_then(|text| text.split_once(':'));
    let Ok(stderr) = rustix::fs::fstat(std::io::stderr()) else {
        return false;
    };
    named.is_some_and(|(device, inode)| {
        device.parse() == Ok(stderr.st_dev) && inode.parse() == Ok(stderr.st_ino)
    })
}

/// A message, and what to do about it, as lines of text.
fn lines(reader: Reader, level: Level, message: &str, hint: Option<&str>) -> String {
    let name = level.as_str().to_lowercase();
    let hints = hint.into_iter().flat_map(str::lines);
    match reader {
        Reader::Journal => {
            // Those of syslog(3), which has no trace.
            let number = match level {
                Level::Error => 3,
                Level::Warn => 4,
                Level::Info => 6,
                Level::Debug | Level::Trace => 7,
            };
            let hints = hints.map(|hint| format!("hint: {hint}"));
            let all = message.lines().map(str::to_owned).chain(hints);
            all.map(|line| format!("<{number}>{line}\n")).collect()
        }
        Reader::Colours | Reader::Other => {
            let (colour, plain) = match (reader, level) {
                (Reader::Colours, Level::Error) => ("\x1b[31m", "\x1b[0m"),
                (Reader::Colours, Level::Warn) => ("\x1b[33m", "\x1b[0m"),
                _ => ("", ""),
            };
            let hints = hints.map(|hint| format!("  hint: {hint}\n"));
            let hints: String = hints.collect();
            format!("{colour}pgkeep: {name}:{plain} {message}\n{hints}")
        }
    }
}

impl Sink {
    fn write(&self, level: Level, message: &str, hint: Option<&str>) {
        let reader = *self.reader.get_or_init(Reader::find);
        tell(&lines(reader, level, message, hint));
        let Some(file) = self.file.get() else {
            return;
        };
        let name = level.as_str().to_lowercase();
        let (now, process) = (Timestamp::now(), std::process::id());
        let hints = hint.into_iter().flat_map(str::lines);
        let hints = hints.map(|hint| format!("{now:.3} [{process}] hint: {hint}\n"));
        let text = format!(
            "{now:.3} [{process}] {name}: {message}\n{}",
            hints.collect::<String>()
        );
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether the log can be written does not decide over a backup.
        let _ = file.write_all(text.as_bytes());
    }
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The libraries' own debugging is of no use to an operator.
        metadata.target().starts_with("pgkeep") || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.write(record.level(), &record.args().to_string(), None);
        }
    }

    fn flush(&self) {}
}

/// Writes all that follows into a file too.
pub(super) fn write_to(path: &Path) -> Result<()> {
    let opened = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path);
    let opened = opened.map_err(|error| {
        Error::usage(Error::io("open the log file", path, &error).message())
            .hint("correct log_file in the configuration, or --log-file")
    })?;
    LOG.file.get_or_init(|| Mutex::new(opened));
    Ok(())
}

/// Sets the log up, once.
pub(super) fn start(level: LevelFilter) -> Result<()> {
    log::set_logger(&LOG)
        .map_err(|error| Error::failed(format!("cannot set up the log: {error}")))?;
    log::set_max_level(level);
    Ok(())
}

/// Shares the terminal with a progress bar.
pub(super) fn step_aside_for(bar: &ProgressBar) {
    LOG.bar.get_or_init(|| bar.clone());
}

/// Prints text to stderr, ended lines. Whether that works does not decide over a backup.
pub(super) fn tell(text: &str) {
    let print = || {
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    };
    match LOG.bar.get() {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

/// Says what went wrong and what to do, on stderr and in the log file.
pub(super) fn report_error(error: &Error) {
    LOG.write(Level::Error, error.message(), error.advice());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_decides_what_a_line_looks_like() {
        let shown = |reader, level| lines(reader, level, "the disk is full", Some("free some"));
        assert_eq!(
            shown(Reader::Other, Level::Error),
            "pgkeep: error: the disk is full\n  hint: free some\n"
        );
        assert_eq!(
            shown(Reader::Colours, Level::Error),
            "\x1b[31mpgkeep: error:\x1b[0m the disk is full\n  hint: free some\n"
        );
        assert_eq!(
            shown(Reader::Journal, Level::Warn),
            "<4>the disk is full\n<4>hint: free some\n"
        );
        assert_eq!(
            lines(Reader::Journal, Level::Info, "a\nb", None),
            "<6>a\n<6>b\n"
        );
    }

    #[test]
    fn the_journal_is_told_by_device_and_inode() {
        assert!(!is_journal(None));
        assert!(!is_journal(Some("")));
        assert!(!is_journal(Some("0:0")));
        assert!(!is_journal(Some("8:1:2")));
    }
}
