//! Answers a shell that asks what may come next on a command line.
//!
//! The scripts in `completions/` set `PGKEEP_COMPLETE` and pass the words typed so far, the
//! last of which is to be completed: `pgkeep -- pgkeep info primary 2026`. The answer has one
//! candidate a line: the word, a tab, and what it means. A line without a word asks the shell
//! itself for `files` or `folders`. Configuration and repository are read for it, quickly
//! and silently; no server is ever asked.

mod candidates;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Arg, ArgMatches, Command, CommandFactory, ValueEnum, ValueHint};
use clap_complete::engine::{self, ArgValueCompleter, CompletionCandidate};

use crate::cli::arguments::Arguments;
use crate::config::{Configuration, Environment};

/// The variable that tells a completion from a command.
const ASKED: &str = "PGKEEP_COMPLETE";

/// A shell whose completion there is a script for.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Shell {
    /// bash 4.3 or newer
    Bash,
    /// zsh
    Zsh,
    /// fish 3.1 or newer
    Fish,
}

impl Shell {
    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Shell::Bash => "bash",
            Shell::Zsh => "zsh",
            Shell::Fish => "fish",
        }
    }

    /// The script that has pgkeep asked.
    pub(super) fn script(self) -> &'static str {
        match self {
            Shell::Bash => include_str!("../../completions/pgkeep.bash"),
            Shell::Zsh => include_str!("../../completions/_pgkeep"),
            Shell::Fish => include_str!("../../completions/pgkeep.fish"),
        }
    }
}

/// The answer to a shell, where it is a shell that asks.
pub(super) fn answer() -> Option<String> {
    std::env::var_os(ASKED).filter(|asked| !asked.is_empty())?;
    let words = std::env::args_os().skip_while(|word| word != "--").skip(1);
    Some(complete(words.collect()))
}

/// What the last of the words may become.
fn complete(mut words: Vec<OsString>) -> String {
    // One dash is the beginning of a long option too, which says more than its letter.
    if let Some(current) = words.last_mut().filter(|current| *current == "-") {
        current.push("-");
    }
    let Some((current, before)) = words.split_last() else {
        return String::new();
    };
    let nothing_yet = current.is_empty();
    let place = before.len();
    let typed = Arc::new(Typed::read(before));
    let mut command = with_completers(Arguments::command(), &typed);
    let mut found = engine::complete(&mut command, words, place, None).unwrap_or_default();
    // Options stand back until somebody types a dash or nothing else can come.
    let is_option = |candidate: &CompletionCandidate| {
        candidate.get_value().as_encoded_bytes().starts_with(b"-")
    };
    if nothing_yet && found.iter().any(|candidate| !is_option(candidate)) {
        found.retain(|candidate| !is_option(candidate));
    }
    found.iter().map(line).collect()
}

/// Marks a candidate that is no word but a request to the shell.
const REQUEST: char = '\u{1}';

/// What the shell itself completes better: it knows `~`, and how its user wants files shown.
fn from_shell(hint: ValueHint) -> Vec<CompletionCandidate> {
    let what = if hint == ValueHint::DirPath {
        "folders"
    } else {
        "files"
    };
    vec![CompletionCandidate::new(format!("{REQUEST}{what}"))]
}

fn line(candidate: &CompletionCandidate) -> String {
    let word = candidate.get_value().to_string_lossy();
    if let Some((_, what)) = word.rsplit_once(REQUEST) {
        return format!("\t{what}\n");
    }
    let help = candidate.get_help().map(ToString::to_string);
    let help = help.as_deref().and_then(|help| help.lines().next());
    format!("{word}\t{}\n", help.unwrap_or_default())
}

/// Tells each argument, by its name and kind, what it may be.
fn with_completers(command: Command, typed: &Arc<Typed>) -> Command {
    let name = command.get_name().to_owned();
    command
        .mut_args(|argument| match completer(&name, &argument) {
            Some(candidates) => {
                let typed = Arc::clone(typed);
                let complete = move |current: &OsStr| candidates(&typed, current);
                argument.add(ArgValueCompleter::new(complete))
            }
            None => argument,
        })
        .mut_subcommands(|below| with_completers(below, typed))
}

/// Finds what an argument may be, from the words before it and the beginning of its own.
type Completer = fn(&Typed, &OsStr) -> Vec<CompletionCandidate>;

fn completer(command: &str, argument: &Arg) -> Option<Completer> {
    match (command, argument.get_id().as_str()) {
        (_, "server") => Some(candidates::servers),
        (_, "backup" | "parent") => Some(candidates::backups),
        ("extract", "rest") => Some(candidates::positions),
        ("extract", "to") => Some(|_, _| from_shell(ValueHint::AnyPath)),
        (_, "from" | "to") => Some(candidates::repositories),
        ("restore" | "archive", "rest") => Some(candidates::position_and_folder),
        ("verify", "rest") => Some(candidates::folder_and_listing),
        ("get", "key") => Some(candidates::settings),
        ("annotate", "key") => Some(candidates::comments),
        _ => match argument.get_value_hint() {
            ValueHint::DirPath => Some(|_, _| from_shell(ValueHint::DirPath)),
            ValueHint::FilePath | ValueHint::AnyPath => Some(|_, _| from_shell(ValueHint::AnyPath)),
            _ => None,
        },
    }
}

/// The words before the one to complete, as far as they make sense.
struct Typed(Option<ArgMatches>);

impl Typed {
    fn read(words: &[OsString]) -> Typed {
        let command = Arguments::command().ignore_errors(true);
        Typed(command.try_get_matches_from(words).ok())
    }

    /// The values of an argument, given its name.
    fn values(&self, argument: &str) -> Vec<&OsStr> {
        let mut matches = self.0.as_ref();
        while let Some((_, below)) = matches.and_then(ArgMatches::subcommand) {
            matches = Some(below);
        }
        let values = matches.and_then(|matches| matches.try_get_raw(argument).ok().flatten());
        values.into_iter().flatten().collect()
    }

    /// The value of an argument that takes one.
    fn value(&self, argument: &str) -> Option<&OsStr> {
        self.values(argument).first().copied()
    }

    /// The configuration that the command would take.
    fn configuration(&self) -> Option<Configuration> {
        let file = self.value("config").map(PathBuf::from);
        Configuration::load(file.as_deref(), &Environment::capture()).ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::repository::backup_info::tests::example;
    use crate::repository::layout::ServerFolder;

    /// A configuration with the servers `primary` and `replica`, and backups of the first.
    fn repository(backups: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().join("pgkeep.conf");
        let folder = base.path().join("keep");
        let text = format!(
            "[pgkeep]\nbase_dir = {}\n[primary]\nhost = /a\n[replica]\nhost = /b\n",
            folder.display()
        );
        std::fs::write(&file, text).unwrap();
        let server = ServerFolder::new(&folder, "primary");
        server.create().unwrap();
        for name in backups {
            let backup = server.backup(name.parse().unwrap());
            backup.place().create_folder().unwrap();
            example(name).write(&backup).unwrap();
        }
        (base, file)
    }

    /// The answer to a line; what follows its last space is to be completed.
    fn answer(file: &std::path::Path, line: &str) -> Vec<String> {
        let mut words: Vec<OsString> = vec!["pgkeep".into(), "-c".into(), file.into()];
        words.extend(line.split(' ').map(OsString::from));
        complete(words).lines().map(str::to_owned).collect()
    }

    fn words(file: &std::path::Path, line: &str) -> Vec<String> {
        let answer = answer(file, line);
        let word = |line: &String| line.split_once('\t').unwrap().0.to_owned();
        answer.iter().map(word).collect()
    }

    #[test]
    fn commands_options_and_their_values_are_known() {
        let (_base, file) = repository(&[]);
        assert_eq!(words(&file, "list"), ["list-backup"]);
        assert_eq!(words(&file, "backup primary --chec"), ["--checkpoint"]);
        assert_eq!(words(&file, "backup --checkpoint "), ["fast", "spread"]);
        assert_eq!(words(&file, "completions "), ["bash", "zsh", "fish"]);
        assert!(words(&file, "info -").contains(&"--format".to_owned()));
        assert!(!words(&file, "").contains(&"--format".to_owned()));
        assert!(words(&file, "check primary ").contains(&"--format".to_owned()));
        assert_eq!(words(&file, "info primary --from "), ["repo1"]);
        let further = words(&file, "copy --to ");
        assert_eq!((further.len(), further[8].as_str()), (9, "repo9"));
    }

    #[test]
    fn servers_are_those_of_the_configuration_in_force() {
        let (base, file) = repository(&[]);
        assert_eq!(words(&file, "check "), ["primary", "replica"]);
        assert_eq!(words(&file, "-v check r"), ["replica"]);
        let other = base.path().join("other.conf");
        std::fs::write(&other, "[elsewhere]\nhost = /c\n").unwrap();
        let line = format!("check -c {} ", other.display());
        assert_eq!(words(&other, &line), ["elsewhere"]);
        let kept = format!("[pgkeep]\nbase_dir = {}/keep\n", base.path().display());
        std::fs::write(&file, kept).unwrap();
        assert_eq!(words(&file, "check "), ["primary"]);
        std::fs::write(&file, "[pgkeep\n").unwrap();
        assert_eq!(words(&file, "check r"), [""; 0]);
    }

    #[test]
    fn backups_come_newest_first_and_say_what_they_are() {
        let (_base, file) = repository(&["20240928065644", "20251001000000"]);
        let backups = answer(&file, "info primary ");
        assert_eq!(
            backups[2..],
            [
                "20251001000000\t2025-10-01 00:00 UTC, full, 8.14MB",
                "20240928065644\t2024-09-28 06:56 UTC, full, 8.14MB"
            ]
        );
        assert_eq!(words(&file, "info primary 2024"), ["20240928065644"]);
        assert_eq!(words(&file, "info primary n"), ["newest"]);
        assert_eq!(words(&file, "info primary l"), ["latest"]);
        assert_eq!(words(&file, "info replica 2"), [""; 0]);
    }

    #[test]
    fn only_the_newest_backups_are_looked_into() {
        let names: Vec<String> = (0..60)
            .map(|second| format!("202409280656{second:02}"))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (_base, file) = repository(&names);
        let described = answer(&file, "info primary 2");
        let described = described.iter().take_while(|line| !line.ends_with('\t'));
        assert_eq!(described.count(), 50);
    }

    #[test]
    fn positions_and_folders_are_offered_where_they_may_stand() {
        let (_base, file) = repository(&["20240928065644"]);
        let first = answer(&file, "restore primary newest ");
        assert!(first.contains(&"current\tall WAL held here".to_owned()));
        assert_eq!(first.last().unwrap(), "\tfolders");
        assert_eq!(
            words(&file, "restore primary newest time=1,action=p"),
            ["time=1,action=pause", "time=1,action=promote"]
        );
        assert_eq!(
            answer(&file, "restore primary newest current "),
            ["\tfolders"]
        );
        assert_eq!(answer(&file, "info --log-file=/v"), ["\tfiles"]);
        assert_eq!(words(&file, "conf get primary.ho"), ["primary.host"]);
    }

    #[test]
    fn any_words_get_an_answer() {
        let (_base, file) = repository(&["20240928065644"]);
        for line in [
            "--nonsense x ",
            "nonsense ",
            "restore --force ",
            "-- ",
            "info a b c d ",
            "--help ",
        ] {
            answer(&file, line);
        }
        assert_eq!(complete(Vec::new()), "");
    }
}
