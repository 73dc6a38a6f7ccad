//! What a pass has stored so far, written down as it goes: a backup that dies leaves that to the next one.
//!
//! In the folder of the pass, until that is sealed or becomes the backup:
//!
//! ```text
//! journal/backup.info               what the pass is of, and where it began
//! journal/changed[SUFFIX]           what had changed by then since the layer below, where there is one: as a WAL summary
//! journal/WORKER-NUMBER.tar[SUFFIX] what one worker has stored since it wrote the one before
//!     backup.sha512                 the stored files
//!     backup.files                  the files of the cluster in them
//!     doubtful                      blocks that were torn or damaged when they were read: as a WAL summary
//!     newest                        the LSN of the newest page
//! ```
//!
//! Nothing of it is synced, nor are the stored files: whoever takes them over believes their checksums alone.

use std::time::{Duration, Instant};

use crate::backup::corruption::Suspect;
use crate::error::{Error, Result};
use crate::pg::changed_blocks::ChangedBlocks;
use crate::pg::lsn::Lsn;
use crate::repository::backup_info::BackupInfo;
use crate::repository::checksums::{self, Checksums};
use crate::repository::file_list::{FileList, ListReader, Listed};
use crate::repository::layout::{BackupFolder, CHECKSUMS, JOURNAL};
use crate::repository::store::{Store, Stored};
use crate::storage::Place;
use crate::stored::bundle::{BundleBuilder, visit_members};
use crate::stored::coding::Coding;
use crate::stored::reader::read_whole;

const PART: &str = ".tar";
const CHANGED: &str = "changed";
const FILES: &str = "backup.files";
const DOUBTFUL: &str = "doubtful";
const NEWEST: &str = "newest";

/// The journal of a pass.
pub(super) struct Journal<'a> {
    folder: BackupFolder,
    coding: &'a Coding,
}

/// How often a worker writes down what it stored: so much is lost of a pass that dies early …
const PACE: Duration = Duration::from_secs(1);
/// … and this part of its time later on.
const LOST_PART: u32 = 100;

impl<'a> Journal<'a> {
    /// Begins the journal of a pass; `changed` is what had changed by then since the layer below.
    pub(super) fn begin(
        pass: &BackupFolder,
        coding: &'a Coding,
        info: &BackupInfo,
        changed: Option<&ChangedBlocks>,
    ) -> Result<Journal<'a>> {
        let folder = BackupFolder::new(pass.stored(JOURNAL));
        folder.place().create_new_folder()?;
        if let Some(changed) = changed {
            let path = format!("{CHANGED}{}", coding.suffix());
            Store::new(&folder, coding)?.content(&path, &changed.to_bytes())?;
        }
        info.write(&folder)?;
        Ok(Journal { folder, coding })
    }

    /// For one worker.
    pub(super) fn of_worker(&self, worker: usize) -> Result<Notes<'_>> {
        Ok(Notes {
            store: Store::new(&self.folder, self.coding)?,
            coding: self.coding,
            worker,
            number: 0,
            noted: Noted::default(),
            began: Instant::now(),
            due: Instant::now() + PACE,
        })
    }
}

/// Removes the journal of a pass that is at its end.
pub(super) fn remove(pass: &BackupFolder) -> Result<()> {
    pass.stored(JOURNAL).remove_folder()
}

/// What one worker writes down.
pub(super) struct Notes<'a> {
    store: Store<'a>,
    coding: &'a Coding,
    worker: usize,
    number: u32,
    noted: Noted,
    began: Instant,
    due: Instant,
}

/// How many of the things that a worker keeps account of are written down.
#[derive(Default)]
struct Noted {
    files: usize,
    checksums: usize,
    suspects: usize,
}

impl Notes<'_> {
    /// Whether it is time to write down what is new.
    pub(super) fn are_due(&self) -> bool {
        Instant::now() >= self.due
    }

    /// Writes down what is new of what a worker stored. `doubtful` are the blocks of these suspects.
    pub(super) fn write(
        &mut self,
        stored: &Stored,
        newest: Lsn,
        suspects: &[Suspect],
        doubtful: impl FnOnce(&[Suspect]) -> ChangedBlocks,
    ) -> Result<()> {
        let mut list = FileList::default();
        for place in self.noted.files..stored.files.len() {
            list.files.push(stored.files.get(place));
        }
        let mut checksums = Checksums::default();
        for place in self.noted.checksums..stored.checksums.len() {
            let (path, digest) = stored.checksums.at(place);
            checksums.insert(path, digest);
        }
        let new = &suspects[self.noted.suspects..];
        self.noted = Noted {
            files: stored.files.len(),
            checksums: stored.checksums.len(),
            suspects: suspects.len(),
        };
        let mut part = BundleBuilder::new(Vec::new());
        let mut add = |name: &str, content: &[u8]| part.add(name, 0, content);
        let cannot = |error| Error::failed(format!("cannot write the journal: {error}"));
        let mut text = Vec::new();
        checksums.write(&mut text).map_err(cannot)?;
        add(CHECKSUMS, &text)?;
        text.clear();
        list.write(&mut text).map_err(cannot)?;
        add(FILES, &text)?;
        add(DOUBTFUL, &doubtful(new).to_bytes())?;
        add(NEWEST, newest.to_string().as_bytes())?;
        let (worker, number) = (self.worker, self.number);
        let path = format!("{worker}-{number}{PART}{}", self.coding.suffix());
        self.store.content(&path, &part.finish()?)?;
        self.number += 1;
        let now = Instant::now();
        self.due = now + PACE.max((now - self.began) / LOST_PART);
        Ok(())
    }
}

/// What the journal of a pass says that died.
pub(super) struct Journaled {
    /// The pass.
    pub(super) info: BackupInfo,
    /// What had changed when it began, where there is a layer below.
    pub(super) changed: Option<ChangedBlocks>,
    /// Its files. The stored ones are not looked at.
    pub(super) stored: Stored,
    /// Blocks that were torn or damaged when they were read.
    pub(super) doubtful: ChangedBlocks,
    /// The newest page that was read.
    pub(super) newest: Lsn,
}

impl Journaled {
    /// Reads the journal of a pass; nothing where there is none. What is damaged of it does not count.
    pub(super) fn read(pass: &BackupFolder, coding: &Coding) -> Result<Option<Journaled>> {
        let folder = BackupFolder::new(pass.stored(JOURNAL));
        if !folder.info().exists()? {
            return Ok(None);
        }
        let info = BackupInfo::read(&folder)?;
        let changed = match info.incremental {
            None => None,
            Some(_) => {
                let path = folder.stored(&format!("{CHANGED}{}", coding.suffix()));
                Some(ChangedBlocks::parse(&read_whole(&path, coding)?)?)
            }
        };
        let mut journaled = Journaled {
            newest: info.start_lsn,
            info,
            changed,
            stored: Stored::default(),
            doubtful: ChangedBlocks::new(),
        };
        let ending = format!("{PART}{}", coding.suffix());
        let names = folder.place().names()?.into_iter();
        for name in names.filter(|name| name.ends_with(&ending)) {
            match Part::read(&folder.stored(&name), coding) {
                Ok(part) => journaled.add(part),
                Err(error) => log::debug!("passing over a part of a journal: {error}"),
            }
        }
        Ok(Some(journaled))
    }

    fn add(&mut self, part: Part) {
        self.stored.files.append(part.list.files);
        self.stored.checksums.append(part.checksums);
        self.doubtful.append(part.doubtful);
        self.newest = self.newest.max(part.newest);
    }
}

#[derive(Default)]
struct Part {
    list: FileList,
    checksums: Checksums,
    doubtful: ChangedBlocks,
    newest: Lsn,
}

impl Part {
    fn read(path: &Place, coding: &Coding) -> Result<Part> {
        let tar = read_whole(path, coding)?;
        let mut part = Part::default();
        let mut is_whole = false;
        visit_members(path, &tar, |member, content| {
            match member {
                CHECKSUMS => {
                    let text = String::from_utf8_lossy(content);
                    for (number, line) in (1..).zip(text.lines()) {
                        let (path, digest) = checksums::read_line(number, line)?;
                        part.checksums.insert(&path, digest);
                    }
                }
                FILES => {
                    let mut lines = ListReader::default();
                    let mut visit = |listed: Listed<'_>| part.list.push(listed);
                    lines.push(content, &mut visit)?;
                    lines.finish(&mut visit)?;
                }
                DOUBTFUL => part.doubtful = ChangedBlocks::parse(content)?,
                NEWEST => {
                    let text = String::from_utf8_lossy(content);
                    part.newest = text.parse().map_err(|_| damaged(path))?;
                    is_whole = true;
                }
                _ => return Err(damaged(path)),
            }
            Ok(())
        })?;
        match is_whole {
            true => Ok(part),
            false => Err(damaged(path)),
        }
    }
}

fn damaged(path: &Place) -> Error {
    Error::damage(format!("{path} is no part of a journal"))
}
