//! The command line with all that `-h` and `--help` show of it: an overview of the
//! commands by what they are for, examples, exit status.

pub(super) mod examples;

use std::fmt::Write;

use clap::builder::{StyledStr, Styles};
use clap::{Command, CommandFactory};

use crate::cli::arguments::Arguments;
use examples::{EXAMPLES, Example};

/// The commands by what they are for, in the order of the overview.
pub(super) const GROUPS: &[(&str, &[&str])] = &[
    ("Back up", &["backup", "wal", "check", "status"]),
    (
        "Look at backups",
        &["list-backup", "info", "window", "verify", "history"],
    ),
    ("Restore", &["restore", "extract", "archive"]),
    (
        "Keep and remove backups",
        &["copy", "annotate", "retain", "expunge", "delete", "expire"],
    ),
    (
        "Treat single files",
        &["encrypt", "decrypt", "compress", "decompress", "master-key"],
    ),
    ("Set up", &["permissions", "conf", "units", "completions"]),
];

/// Exit statuses and what they mean.
pub(super) const EXIT_STATUS: [(u8, &str); 6] = [
    (0, "done"),
    (1, "failed"),
    (2, "wrong usage or configuration"),
    (3, "a check found damage"),
    (4, "another pgkeep holds the lock"),
    (5, "the server cannot be reached, or lacks a permission"),
];

/// The whole command line.
pub(super) fn command() -> Command {
    let command = Arguments::command();
    let overview = overview(&command);
    let short = "'pgkeep COMMAND --help' tells more of a command, with examples; so does 'man pgkeep-COMMAND'.";
    let long = format!("{}\n{}\n{short}", examples(""), exit_status());
    with_examples(command, "")
        .help_template(format!(
            "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{overview}{}{{options}}{{after-help}}",
            heading("Global options")
        ))
        .after_help(short)
        .after_long_help(StyledStr::from(long))
}

/// The commands in their groups, one line each.
fn overview(command: &Command) -> String {
    let literal = Styles::default().get_literal().to_owned();
    let mut text = String::new();
    for (title, names) in GROUPS {
        let mut lines = String::new();
        for name in *names {
            if let Some(command) = command.find_subcommand(name) {
                let about = command.get_about().cloned().unwrap_or_default();
                // Writing to a string cannot fail.
                let _ = writeln!(lines, "  {literal}{name:12}{literal:#} {about}");
            }
        }
        if !lines.is_empty() {
            text.push_str(&format!("{}{lines}\n", heading(title)));
        }
    }
    text
}

/// Gives a command and those below it their examples.
fn with_examples(command: Command, path: &str) -> Command {
    let command = command.mut_subcommands(|below| {
        let path = format!("{path} {}", below.get_name());
        with_examples(below, path.trim_start())
    });
    let notes = command
        .get_after_help()
        .map(|notes| format!("{}\n\n", notes.ansi()));
    let after = format!("{}{}", notes.unwrap_or_default(), examples(path));
    if after.is_empty() {
        return command;
    }
    command.after_long_help(StyledStr::from(after))
}

/// The examples of the command that is typed like this.
pub(super) fn examples_of(path: &str) -> &'static [Example] {
    let found = EXAMPLES.iter().find(|(command, _)| *command == path);
    found.map_or(&[], |(_, examples)| examples)
}

/// The same as a part of the help; nothing where there is none.
fn examples(path: &str) -> String {
    let shown = examples_of(path)
        .iter()
        .map(|Example { does, line }| format!("  # {does}\n  {line}\n"));
    let shown: String = shown.collect();
    if shown.is_empty() {
        return shown;
    }
    format!("{}{shown}", heading("Examples"))
}

fn exit_status() -> String {
    let lines = EXIT_STATUS.map(|(status, meaning)| format!("  {status}  {meaning}\n"));
    format!("{}{}", heading("Exit status"), lines.concat())
}

fn heading(title: &str) -> String {
    let style = Styles::default().get_header().to_owned();
    format!("{style}{title}:{style:#}\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Every command that does something, as it is typed, with what clap knows of it.
    fn commands(command: &Command, path: &str) -> Vec<String> {
        let mut found = Vec::new();
        for below in command.get_subcommands() {
            let path = format!("{path} {}", below.get_name());
            if below.has_subcommands() {
                found.extend(commands(below, &path));
            } else {
                found.push(path.trim_start().to_owned());
            }
        }
        found
    }

    #[test]
    fn every_command_stands_in_one_group() {
        let command = command();
        for name in command.get_subcommands().map(Command::get_name) {
            let groups = GROUPS.iter().filter(|(_, names)| names.contains(&name));
            assert_eq!(groups.count(), 1, "{name}");
        }
    }

    #[test]
    fn every_command_has_examples() {
        for path in commands(&command(), "") {
            assert!(!examples_of(&path).is_empty(), "{path}");
        }
    }

    /// The words that pgkeep gets of a line, without what a shell or postgresql.conf puts around them.
    fn words(line: &str) -> Vec<String> {
        let line = match line.split_once("_command = ") {
            Some((_, value)) => value.trim_matches('\''),
            None => line,
        };
        // PostgreSQL replaces it by a file's name.
        let line = line.replace("%f", "000000010000000000000001");
        let words = shlex::split(&line).unwrap().into_iter();
        words
            .skip_while(|word| word != "pgkeep")
            .take_while(|word| !word.starts_with(['|', '>']))
            .collect()
    }

    #[test]
    fn every_example_can_be_typed() {
        for path in commands(&command(), "").into_iter().chain([String::new()]) {
            for Example { line, .. } in examples_of(&path) {
                let words = words(line);
                if words.is_empty() {
                    continue;
                }
                let parsed = command().try_get_matches_from(&words);
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            }
        }
    }
}
