//! What can stand in the place of a server, a backup, a position.

use std::ffi::OsStr;
use std::path::Path;

use clap::ValueHint;
use clap_complete::engine::CompletionCandidate;

use super::{Typed, from_shell};
use crate::config::{Configuration, RepositoryName, ServerName};
use crate::repository::backup_info::BackupInfo;
use crate::repository::catalogue::Catalogue;
use crate::repository::identifier::Identifier;
use crate::repository::layout::{BackupFolder, ServerFolder};
use crate::repository::staging;
use crate::size::readable;
use crate::storage::Place;

/// Words and what they mean, those that begin with what is typed.
fn beginning<'a>(
    current: &OsStr,
    words: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    let fitting = words
        .into_iter()
        .filter(|(word, _)| word.starts_with(current.as_ref()));
    fitting.map(|(word, help)| candidate(word, help)).collect()
}

fn candidate(word: &str, help: &str) -> CompletionCandidate {
    CompletionCandidate::new(word).help(Some(help.to_owned().into()))
}

/// The servers of the configuration; where it has none, those that have backups.
pub(super) fn servers(typed: &Typed, current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(configuration) = typed.configuration() else {
        return Vec::new();
    };
    let configured: Vec<String> = configuration.servers().map(ToString::to_string).collect();
    let (names, help) = if configured.is_empty() {
        (kept(&configuration), "server with backups")
    } else {
        (configured, "server")
    };
    beginning(current, names.iter().map(|name| (name.as_str(), help)))
}

/// The servers that have a folder for backups below `base_dir`.
fn kept(configuration: &Configuration) -> Vec<String> {
    // Without sections any name will do, and they all have the same base_dir.
    let Ok(any) = configuration.server("any") else {
        return Vec::new();
    };
    // Nobody waits for an answer from afar.
    let Some(base) = any.storage.base_dir.local() else {
        return Vec::new();
    };
    let has_backups = |name: &String| {
        let folder = ServerFolder::new(base, name).backups();
        ServerName::new(name).is_ok() && folder.local().is_some_and(Path::is_dir)
    };
    let names = Place::from(base).names().unwrap_or_default().into_iter();
    let mut names: Vec<String> = names.filter(has_backups).collect();
    names.sort();
    names
}

/// The server that was typed: its name, and its place in the repository.
fn server(typed: &Typed) -> Option<(&str, ServerFolder)> {
    let name = typed.value("server")?.to_str()?;
    let from = typed.value("from").and_then(OsStr::to_str);
    let from = from.map_or(Ok(RepositoryName::MAIN), str::parse).ok()?;
    let configuration = typed.configuration()?.server(name).ok()?.at(from).ok()?;
    let base = configuration.storage.base_dir.local()?;
    Some((name, ServerFolder::new(base, name)))
}

/// The repositories of the server that was typed; where none was, all names that one can have.
pub(super) fn repositories(typed: &Typed, current: &OsStr) -> Vec<CompletionCandidate> {
    let named = || {
        let name = typed.value("server")?.to_str()?;
        typed.configuration()?.server(name).ok()
    };
    let configuration = named();
    let is_there = |name: &RepositoryName| match &configuration {
        Some(server) => server.clone().at(*name).is_ok(),
        None => true,
    };
    let names = RepositoryName::ALL.into_iter().filter(is_there);
    let names: Vec<String> = names.map(|name| name.to_string()).collect();
    beginning(
        current,
        names.iter().map(|name| (name.as_str(), "repository")),
    )
}

/// How many backups are looked into to describe them: as many as a screen may show, so
/// that years of backups do not make anybody wait.
const DESCRIBED: usize = 50;

/// The words for a backup, then all backups, the newest first.
pub(super) fn backups(typed: &Typed, current: &OsStr) -> Vec<CompletionCandidate> {
    let words = [
        ("newest", "the newest valid backup"),
        ("oldest", "the oldest valid backup"),
    ];
    let mut found = beginning(current, words);
    if found.is_empty() {
        found = beginning(current, [("latest", "the newest valid backup")]);
    }
    let Some((_, folder)) = server(typed) else {
        return found;
    };
    let current = current.to_string_lossy();
    let mut backups = staging::finished(&folder).unwrap_or_default();
    backups.sort_unstable_by_key(|(identifier, _)| std::cmp::Reverse(*identifier));
    let names = backups
        .iter()
        .map(|(identifier, folder)| (identifier, folder, identifier.to_string()));
    let fitting = names.filter(|(.., name)| name.starts_with(current.as_ref()));
    found.extend(
        fitting
            .enumerate()
            .map(|(place, (identifier, folder, name))| {
                let help = if place < DESCRIBED {
                    description(*identifier, folder)
                } else {
                    String::new()
                };
                candidate(&name, &help)
            }),
    );
    found
}

/// Date, kind and size.
fn description(identifier: Identifier, folder: &BackupFolder) -> String {
    let date = match identifier.time() {
        Some(time) => time.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        None => String::new(),
    };
    match BackupInfo::read(folder) {
        Ok(info) if info.incremental.is_none() => {
            format!("{date}, full, {}", readable(info.backup_size))
        }
        Ok(info) => format!("{date}, incremental, {}", readable(info.backup_size)),
        Err(_) => format!("{date}, damaged"),
    }
}

/// The keys of the backup's comments.
pub(super) fn comments(typed: &Typed, current: &OsStr) -> Vec<CompletionCandidate> {
    let named = || {
        let (name, folder) = server(typed)?;
        let catalogue = Catalogue::read(name, &folder).ok()?;
        let selector = typed.value("backup")?.to_str()?.parse().ok()?;
        let info = catalogue.select(&selector).ok()?.info.as_ref().ok()?;
        Some(info.comments.clone())
    };
    let comments = named().unwrap_or_default();
    let words = comments
        .iter()
        .map(|(key, text)| (key.as_str(), text.as_str()));
    beginning(current, words)
}

/// The keys of the configuration in force.
pub(super) fn settings(typed: &Typed, current: &OsStr) -> Vec<CompletionCandidate> {
    let entries = typed
        .configuration()
        .and_then(|configuration| configuration.entries().ok())
        .unwrap_or_default();
    let words = entries
        .iter()
        .map(|entry| (entry.key.as_str(), entry.value.as_str()));
    beginning(current, words)
}

/// What a position may hold.
const POSITIONS: [(&str, &str); 14] = [
    ("current", "all WAL held here"),
    ("immediate", "the backup's own WAL alone"),
    ("time=", "up to a time"),
    ("lsn=", "up to a position in the WAL"),
    ("xid=", "up to a transaction"),
    ("name=", "up to a restore point"),
    ("inclusive=on", "with the target itself"),
    ("inclusive=off", "up to just before the target"),
    ("timeline=", "along a timeline"),
    ("action=pause", "there wait"),
    ("action=promote", "there open for writing"),
    ("action=shutdown", "there stop"),
    ("primary", "as a server of its own"),
    ("replica", "as a standby of the server"),
];

/// `[POSITION]`, and what nobody can know without a server.
pub(super) fn positions(typed: &Typed, current: &OsStr) -> Vec<CompletionCandidate> {
    if !typed.values("rest").is_empty() {
        return Vec::new();
    }
    let current = current.to_string_lossy();
    let begun = current.rfind(',').map_or(0, |comma| comma + 1);
    let (before, last) = current.split_at(begun);
    let words = beginning(OsStr::new(last), POSITIONS);
    let words = words.into_iter().map(|word| word.add_prefix(before));
    words.collect()
}

/// `[POSITION] DIRECTORY`; a position is a list with commas.
pub(super) fn position_and_folder(typed: &Typed, current: &OsStr) -> Vec<CompletionCandidate> {
    let mut found = positions(typed, current);
    let current = current.to_string_lossy();
    if found.is_empty() || !current.contains(['=', ',']) {
        found.extend(from_shell(ValueHint::DirPath));
    }
    found
}

/// `[DIRECTORY] [failed|all]`.
pub(super) fn folder_and_listing(typed: &Typed, current: &OsStr) -> Vec<CompletionCandidate> {
    let mut found = beginning(
        current,
        [("failed", "list failed files"), ("all", "list all files")],
    );
    if typed.values("rest").is_empty() {
        found.extend(from_shell(ValueHint::DirPath));
    }
    found
}
