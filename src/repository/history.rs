//! The runs of a server so far: what was done, when, and what came of it.
//!
//! An object cannot be appended to, so each run writes a file of its own, one line of JSON. Who finds many of them
//! folds them into one, and forgets the oldest. Nothing else depends on what is here: lines that cannot be read are
//! skipped.

use std::collections::{BTreeMap, HashMap};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::parallel;
use crate::repository::identifier::Identifier;
use crate::repository::layout::ServerFolder;
use crate::repository::lock::HistoryLock;
use crate::storage::objects::Version;
use crate::storage::{Place, durable};

/// One run of pgkeep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// What tells it from others: when it began, and which process it was.
    #[serde(rename = "run")]
    pub name: String,
    /// What was done, as it is typed.
    pub command: String,
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// Its exit status.
    pub status: u8,
    /// The backup that it made or worked on, as far as it came to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<Identifier>,
    /// Bytes that it worked through.
    pub bytes: u64,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Run {
    /// A run of this process that ended now, and well.
    pub fn ended(command: &str, start: Timestamp) -> Run {
        // The number of the process tells those apart that began in the same moment.
        let moment = start.as_nanosecond();
        Run {
            name: format!("{moment:020}-{}", std::process::id()),
            command: command.to_owned(),
            start,
            end: Timestamp::now(),
            status: 0,
            backup: None,
            bytes: 0,
            error: None,
        }
    }

    /// How long it took.
    pub fn took(&self) -> SignedDuration {
        self.end
            .duration_since(self.start)
            .max(SignedDuration::ZERO)
    }

    /// Bytes a second; nothing of a run that was too short to tell.
    pub fn rate(&self) -> Option<u64> {
        let milliseconds = u64::try_from(self.took().as_millis()).ok()?;
        let bytes = u128::from(self.bytes) * 1000;
        u64::try_from(bytes.checked_div(milliseconds.into())?).ok()
    }

    fn line(&self) -> Result<String> {
        serde_json::to_string(self)
            .map(|line| format!("{line}\n"))
            .map_err(|error| Error::failed(format!("cannot write a run as JSON: {error}")))
    }
}

/// What all runs but the newest are folded into.
const FOLDED: &str = "runs.jsonl";
/// What the file of one run ends with.
const SUFFIX: &str = ".json";
/// So many files of one run each are left alone.
const LOOSE: usize = 32;
/// In an object store, one run of so many looks how many there are.
const LOOKS: i64 = 8;
/// So many runs of each command are kept.
pub const KEPT: usize = 500;
/// So much is kept of an error, in characters.
const ERROR_LENGTH: usize = 2000;
/// What was begun so long ago nobody is writing any more.
const GIVEN_UP: SignedDuration = SignedDuration::from_hours(1);

/// Adds a run to what is known of a server. Nothing comes of it where the server has no folder yet, which might be mistyped or
/// not mounted, nor where root works in that of somebody else, who could neither read what root adds nor fold it.
pub fn record(folder: &ServerFolder, run: &Run) -> Result<()> {
    // A run that was told to stop has happened too; and a store that does not answer is not waited for.
    let folder = &folder.for_cleaning_up();
    let local = folder.root().local();
    if let Some(root) = local
        && (!durable::exists(root)? || !folder.is_begun()? || folder.root().is_guest()?)
    {
        return Ok(());
    }
    let history = folder.history();
    history.create_folder()?;
    let mut run = run.clone();
    if let Some(error) = &mut run.error
        && let Some((end, _)) = error.char_indices().nth(ERROR_LENGTH)
    {
        error.truncate(end);
        error.push('…');
    }
    let file = history.join(&format!("{}{SUFFIX}", run.name));
    file.create(run.line()?.as_bytes())?;
    // Each look into a store is a request, which most runs leave to others.
    if local.is_none() && run.start.as_microsecond() % LOOKS != 0 {
        return Ok(());
    }
    let names = history.names()?;
    if names.iter().filter(|name| is_loose(name)).count() > LOOSE {
        fold(folder, &names)?;
    }
    Ok(())
}

/// All runs that are known of a server, the oldest first; and what could not be read.
pub fn read(folder: &ServerFolder) -> Result<(Vec<Run>, Vec<String>)> {
    folder.check_format()?;
    let history = folder.history();
    // In this order: what is folded meanwhile is found twice rather than not at all.
    let loose = read_loose(&history, &history.names()?);
    let (folded, _) = read_folded(&history)?;
    let mut found = Lines::default();
    found.add_all(&history.join(FOLDED), &folded);
    for (place, content) in &loose {
        match content {
            Ok(content) => found.add_all(place, content),
            Err(error) => found.unreadable.push(error.message().to_owned()),
        }
    }
    let mut runs: Vec<Run> = found.runs.into_values().map(|(run, _)| run).collect();
    runs.sort_by(|one, other| (one.start, &one.name).cmp(&(other.start, &other.name)));
    Ok((runs, found.unreadable))
}

/// Lines as they were read, by the names of their runs.
#[derive(Default)]
struct Lines {
    runs: BTreeMap<String, (Run, String)>,
    unreadable: Vec<String>,
}

impl Lines {
    fn add_all(&mut self, place: &Place, content: &[u8]) {
        let lines = content.split(|byte| *byte == b'\n').enumerate();
        for (number, line) in lines.filter(|(_, line)| !line.is_empty()) {
            match serde_json::from_slice::<Run>(line) {
                Ok(run) => {
                    // What a later pgkeep may have added stays in the line.
                    let line = String::from_utf8_lossy(line).into_owned();
                    self.runs.entry(run.name.clone()).or_insert((run, line));
                }
                Err(error) => self.unreadable.push(format!(
                    "line {} of {place} is skipped, as it is damaged: {error}",
                    number + 1
                )),
            }
        }
    }

    /// The lines that are kept: the newest of each command.
    fn kept(&self) -> String {
        let mut newest: Vec<&(Run, String)> = self.runs.values().collect();
        newest.sort_by_key(|(run, _)| std::cmp::Reverse(run.start));
        let mut counts: HashMap<&str, usize> = HashMap::new();
        newest.retain(|(run, _)| {
            let count = counts.entry(&run.command).or_default();
            *count += 1;
            *count <= KEPT
        });
        let lines = newest.iter().rev().map(|(_, line)| format!("{line}\n"));
        lines.collect()
    }
}

/// Puts the runs that have a file each into the one file, unless somebody else is about it.
fn fold(folder: &ServerFolder, names: &[String]) -> Result<()> {
    let lock = match HistoryLock::take(folder) {
        Err(error) if error.kind() == Kind::Locked => return Ok(()),
        taken => taken?,
    };
    let history = folder.history();
    let loose = read_loose(&history, names);
    let (folded, version) = read_folded(&history)?;
    let mut found = Lines::default();
    found.add_all(&history.join(FOLDED), &folded);
    let mut done = Vec::new();
    for (place, content) in loose {
        // What cannot be read just now has its turn later.
        if let Ok(content) = content {
            found.add_all(&place, &content);
            done.push(place);
        }
    }
    lock.check()?;
    let file = history.join(FOLDED);
    let content = found.kept();
    let is_written = match (&version, folded.is_empty()) {
        (None, true) if file.local().is_none() => file.create(content.as_bytes())?,
        _ => file.replace_version(content.as_bytes(), version.as_ref())?,
    };
    if !is_written {
        return Ok(());
    }
    Place::remove_all(&done)?;
    for name in names
        .iter()
        .filter(|name| !is_loose(name) && *name != FOLDED)
    {
        let left = history.join(name);
        if left.age()?.is_some_and(|age| age > GIVEN_UP) {
            left.remove()?;
        }
    }
    Ok(())
}

fn read_folded(history: &Place) -> Result<(Vec<u8>, Option<Version>)> {
    let found = history.join(FOLDED).read_version()?;
    Ok(found.unwrap_or_default())
}

/// The files of one run each; without those that have just been folded.
fn read_loose(history: &Place, names: &[String]) -> Vec<(Place, Result<Vec<u8>>)> {
    let places: Vec<Place> = names
        .iter()
        .filter(|name| is_loose(name))
        .map(|name| history.join(name))
        .collect();
    let contents = parallel::at_once(&places, Place::read);
    let read = places.into_iter().zip(contents);
    read.filter_map(|(place, content)| Some((place, content.transpose()?)))
        .collect()
}

/// Whether a file is that of one run.
fn is_loose(name: &str) -> bool {
    let name = name
        .strip_suffix(SUFFIX)
        .and_then(|name| name.split_once('-'));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    name.is_some_and(|(moment, process)| is_number(moment) && is_number(process))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn repository() -> (tempfile::TempDir, ServerFolder) {
        let base = tempfile::tempdir().unwrap();
        let folder = ServerFolder::new(base.path(), "primary");
        folder.create().unwrap();
        (base, folder)
    }

    /// The run of a command that began at this second.
    fn run(command: &str, second: i64) -> Run {
        let start = Timestamp::from_second(1_700_000_000 + second).unwrap();
        let mut run = Run::ended(command, start);
        run.end = start + SignedDuration::from_secs(2);
        run.bytes = 3000;
        run
    }

    fn names(folder: &ServerFolder) -> Vec<String> {
        folder.history().names().unwrap()
    }

    #[test]
    fn a_run_is_found_as_it_was() {
        let (_base, folder) = repository();
        assert_eq!(read(&folder).unwrap(), (Vec::new(), Vec::new()));
        let mut failed = run("backup", 1);
        failed.status = 5;
        failed.error = Some("no \"such\"\nserver".to_owned());
        let mut made = run("backup", 2);
        made.backup = Some("20260101000000".parse().unwrap());
        record(&folder, &made).unwrap();
        record(&folder, &failed).unwrap();
        assert_eq!(made.rate(), Some(1500));
        assert_eq!(read(&folder).unwrap(), (vec![failed, made], Vec::new()));
    }

    #[test]
    fn many_are_folded_into_one_and_the_oldest_of_each_command_go() {
        let (_base, folder) = repository();
        let few = run("backup", 0);
        record(&folder, &few).unwrap();
        let copies: Vec<Run> = (1..=KEPT as i64 + 10)
            .map(|second| run("wal copy", second))
            .collect();
        let (folded, loose) = copies.split_at(KEPT - LOOSE);
        let folded: String = folded.iter().map(|run| run.line().unwrap()).collect();
        folder
            .history()
            .join(FOLDED)
            .replace(folded.as_bytes())
            .unwrap();
        let left = folder.history().join("1-1.json.7-7");
        left.replace(b"{").unwrap();
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
        let file = std::fs::File::open(left.local().unwrap()).unwrap();
        file.set_modified(old).unwrap();
        for copy in loose {
            record(&folder, copy).unwrap();
        }
        // The fold came with the 33rd; what came behind it has files of its own.
        assert_eq!(names(&folder).len(), 1 + 10, "{:?}", names(&folder));
        let (runs, unreadable) = read(&folder).unwrap();
        assert_eq!(unreadable, Vec::<String>::new());
        assert_eq!((runs[0].clone(), runs.len()), (few, 1 + KEPT + 10));
        assert_eq!(runs[1..], copies);
        for copy in (1000..1000 + LOOSE as i64).map(|second| run("wal copy", second)) {
            record(&folder, &copy).unwrap();
        }
        let (runs, _) = read(&folder).unwrap();
        assert_eq!(runs[1], copies[33]);
    }

    #[test]
    fn runs_at_the_same_time_lose_nothing() {
        let (_base, folder) = repository();
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let folder = &folder;
                scope.spawn(move || {
                    for second in 0..25 {
                        record(folder, &run("verify", thread * 1000 + second)).unwrap();
                        let (runs, _) = read(folder).unwrap();
                        let own =
                            |run: &&Run| (run.start.as_second() - 1_700_000_000) / 1000 == thread;
                        assert_eq!(runs.iter().filter(own).count() as i64, second + 1);
                    }
                });
            }
        });
        assert_eq!(read(&folder).unwrap().0.len(), 75);
    }

    #[test]
    fn damaged_lines_are_skipped_with_a_word_and_go_in_the_end() {
        let (_base, folder) = repository();
        for second in 0..LOOSE as i64 + 1 {
            record(&folder, &run("backup", second)).unwrap();
        }
        let file = folder.history().join(FOLDED);
        let mut content = file.read().unwrap().unwrap();
        content[0] = 0xff;
        content.truncate(content.len() - 9);
        file.replace(&content).unwrap();
        let (runs, unreadable) = read(&folder).unwrap();
        assert_eq!(
            (runs.len(), unreadable.len()),
            (LOOSE - 1, 2),
            "{unreadable:?}"
        );
        assert!(
            unreadable[1].contains("runs.jsonl is skipped"),
            "{unreadable:?}"
        );
        // A line of a later pgkeep stays as it is.
        let later = r#"{"run":"1-1","command":"backup","start":"2026-01-01T00:00:00Z","end":"2026-01-01T00:00:00Z","status":0,"bytes":0,"later":1}"#;
        folder
            .history()
            .join("1-1.json")
            .replace(later.as_bytes())
            .unwrap();
        folder.history().join("2-2.json").replace(b"").unwrap();
        for second in 100..100 + LOOSE as i64 {
            record(&folder, &run("backup", second)).unwrap();
        }
        let (runs, unreadable) = read(&folder).unwrap();
        assert_eq!((runs.len(), unreadable), (2 * LOOSE, Vec::new()));
        let content = file.read().unwrap().unwrap();
        assert!(String::from_utf8(content).unwrap().contains(later));
    }

    #[test]
    fn nothing_is_made_where_there_is_no_repository() {
        let base = tempfile::tempdir().unwrap();
        let folder = ServerFolder::new(base.path().join("mounted"), "primary");
        record(&folder, &run("backup", 0)).unwrap();
        assert!(!base.path().join("mounted").exists());
        let (base, _) = repository();
        let mistyped = ServerFolder::new(base.path(), "primry");
        record(&mistyped, &run("verify", 0)).unwrap();
        assert!(!base.path().join("primry").exists());
    }

    #[test]
    fn a_long_error_is_cut() {
        let (_base, folder) = repository();
        let mut long = run("backup", 0);
        long.error = Some("é".repeat(ERROR_LENGTH + 1));
        record(&folder, &long).unwrap();
        let (runs, _) = read(&folder).unwrap();
        let error = runs[0].error.as_ref().unwrap();
        assert_eq!(error.chars().count(), ERROR_LENGTH + 1);
        assert!(error.ends_with('…'));
    }
}
