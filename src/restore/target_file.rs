//! A file that is written: a new one, or one that is there, of which only those pages are written that differ.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::pg::page::PAGE_SIZE;
use crate::repository::file_list::Crc32c;

/// What a restore over a data directory came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Differences {
    /// Files that were as they are wanted.
    pub same_files: u64,
    /// Files that were there and differed, or were not to be written to.
    pub changed_files: u64,
    /// Files that were not there.
    pub new_files: u64,
    /// Files, links and whole folders that did not belong there.
    pub removed: u64,
    /// Bytes that were read in the data directory and its tablespaces.
    pub read: u64,
    /// Bytes of content that were taken from the repository.
    pub fetched: u64,
    /// Bytes that were written.
    pub written: u64,
}

/// The same while workers count.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) same_files: AtomicU64,
    pub(super) changed_files: AtomicU64,
    pub(super) new_files: AtomicU64,
    pub(super) read: AtomicU64,
    pub(super) fetched: AtomicU64,
    pub(super) written: AtomicU64,
}

impl Tally {
    pub(super) fn add(counter: &AtomicU64, number: u64) {
        counter.fetch_add(number, Ordering::Relaxed);
    }

    pub(super) fn differences(&self, removed: u64) -> Differences {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Differences {
            same_files: of(&self.same_files),
            changed_files: of(&self.changed_files),
            new_files: of(&self.new_files),
            removed,
            read: of(&self.read),
            fetched: of(&self.fetched),
            written: of(&self.written),
        }
    }
}

/// A file that is being written.
pub(super) struct TargetFile<'a> {
    path: PathBuf,
    /// Nothing where the file is not there and nothing is to be written.
    file: Option<File>,
    /// Bytes that it had before.
    before: u64,
    /// Where what comes next goes.
    position: u64,
    over: Option<Over<'a>>,
}

/// What there is to a file in a data directory that was there.
struct Over<'a> {
    tally: &'a Tally,
    /// Whether it is only looked at.
    only_looks: bool,
    /// What the file has where something is to be written.
    there: Vec<u8>,
    differs: bool,
}

impl<'a> TargetFile<'a> {
    /// A file that was just made.
    pub(super) fn new(file: File, path: PathBuf) -> TargetFile<'a> {
        TargetFile {
            path,
            file: Some(file),
            before: 0,
            position: 0,
            over: None,
        }
    }

    /// One of so many bytes that is there, or with none a new one, in a data directory that was there.
    pub(super) fn over(
        file: Option<File>,
        path: PathBuf,
        before: Option<u64>,
        tally: &'a Tally,
        only_looks: bool,
    ) -> TargetFile<'a> {
        let counter = match before {
            Some(_) => &tally.changed_files,
            None => &tally.new_files,
        };
        Tally::add(counter, 1);
        TargetFile {
            path,
            file,
            before: before.unwrap_or(0),
            position: 0,
            over: Some(Over {
                tally,
                only_looks,
                there: Vec::new(),
                differs: before.is_none(),
            }),
        }
    }

    /// Writes what comes next.
    pub(super) fn write(&mut self, content: &[u8]) -> Result<()> {
        self.note_fetched(content.len());
        let position = self.position;
        self.position += content.len() as u64;
        self.write_at(content, position)
    }

    /// Counts what comes from the repository.
    pub(super) fn note_fetched(&self, bytes: usize) {
        if let Some(over) = &self.over {
            Tally::add(&over.tally.fetched, bytes as u64);
        }
    }

    /// Writes what is to be at an offset: where that is there already, nothing.
    pub(super) fn write_at(&mut self, content: &[u8], offset: u64) -> Result<()> {
        let compared = self.read_before(offset, content.len())?;
        if compared == 0 {
            return self.put(content, offset);
        }
        let mut differing: Option<Range<usize>> = None;
        for (number, page) in content.chunks(PAGE_SIZE).enumerate() {
            let begin = number * PAGE_SIZE;
            let end = begin + page.len();
            let there = self.over.as_ref().map_or(&[][..], |over| &over.there);
            if there[..compared].get(begin..end) == Some(page) {
                continue;
            }
            differing = match differing {
                Some(run) if run.end == begin => Some(run.start..end),
                Some(run) => {
                    self.put(&content[run.clone()], offset + run.start as u64)?;
                    Some(begin..end)
                }
                None => Some(begin..end),
            };
        }
        match differing {
            Some(run) => self.put(&content[run.clone()], offset + run.start as u64),
            None => Ok(()),
        }
    }

    /// Makes sure that a page is all zeros, in a file that is long enough for it.
    pub(super) fn zero_page(&mut self, offset: u64) -> Result<()> {
        if offset >= self.before {
            return Ok(());
        }
        self.write_at(&[0; PAGE_SIZE], offset)
    }

    /// Gives the file its length; what is added is zeros.
    pub(super) fn set_length(&mut self, length: u64) -> Result<()> {
        let is_as_long = self.over.is_some() && length == self.before;
        if !is_as_long {
            self.differ();
            self.set_file_length(length)?;
        }
        self.before = self.before.min(length);
        Ok(())
    }

    /// Takes away what the file has behind what was written.
    pub(super) fn cut(&mut self) -> Result<()> {
        if self.before > self.position {
            self.set_length(self.position)?;
        }
        Ok(())
    }

    fn set_file_length(&self, length: u64) -> Result<()> {
        match self.writable() {
            Some(file) => file.set_len(length).map_err(|error| self.failed(&error)),
            None => Ok(()),
        }
    }

    /// Reads what the file had at an offset, as much of it as there is; returns how much that is.
    fn read_before(&mut self, offset: u64, length: usize) -> Result<usize> {
        let length = (length as u64).min(self.before.saturating_sub(offset)) as usize;
        let (Some(over), Some(file)) = (&mut self.over, &self.file) else {
            return Ok(0);
        };
        if over.there.len() < length {
            over.there.resize(length, 0);
        }
        let read = file.read_exact_at(&mut over.there[..length], offset);
        read.map_err(|error| Error::io("read", &self.path, &error))?;
        Tally::add(&over.tally.read, length as u64);
        Ok(length)
    }

    fn put(&mut self, content: &[u8], offset: u64) -> Result<()> {
        if content.is_empty() {
            return Ok(());
        }
        self.differ();
        if let Some(over) = &self.over {
            Tally::add(&over.tally.written, content.len() as u64);
        }
        match self.writable() {
            Some(file) => file
                .write_all_at(content, offset)
                .map_err(|error| self.failed(&error)),
            None => Ok(()),
        }
    }

    /// The file, unless it is only looked at.
    fn writable(&self) -> Option<&File> {
        let only_looks = self.over.as_ref().is_some_and(|over| over.only_looks);
        self.file.as_ref().filter(|_| !only_looks)
    }

    fn differ(&mut self) {
        if let Some(over) = &mut self.over {
            over.differs = true;
        }
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::io("write", &self.path, error)
    }
}

impl Drop for TargetFile<'_> {
    /// What was opened to be changed may turn out to be as it is wanted.
    fn drop(&mut self) {
        let Some(over) = &self.over else {
            return;
        };
        if over.differs {
            log::info!("{} differs", self.path.display());
        } else {
            over.tally.changed_files.fetch_sub(1, Ordering::Relaxed);
            Tally::add(&over.tally.same_files, 1);
        }
    }
}

/// Whether a file of the right size has this checksum; and how much of it was read.
pub(super) fn has_checksum(
    mut file: &File,
    path: &Path,
    expected: Crc32c,
    part: &mut [u8],
) -> Result<(bool, u64)> {
    let (mut crc32c, mut size) = (0, 0);
    loop {
        let read = file
            .read(part)
            .map_err(|error| Error::io("read", path, &error))?;
        if read == 0 {
            return Ok((Crc32c(crc32c) == expected, size));
        }
        crc32c = crc32c::crc32c_append(crc32c, &part[..read]);
        size += read as u64;
    }
}
