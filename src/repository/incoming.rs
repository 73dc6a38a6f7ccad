//! A stored file on its way into a folder that several processes write to.
//!
//! It is written in the subfolder `incoming`, under a name of its own, and gets its name in the
//! folder above only when it is whole and synced: by a rename that replaces nothing, or on
//! purpose by one that does. As long as its writer lives it is locked, so what a
//! killed process left is told from what another one is writing just now.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::repository::durable;
use crate::stored::coding::Coding;
use crate::stored::compression::Compressor;
use crate::stored::reader::StoredReader;
use crate::stored::writer::StoredWriter;

const FOLDER: &str = "incoming";

/// Plain bytes that become one frame of the stored file.
const SLICE_BYTES: usize = 4 << 20;

/// A stored file being written. Dropped before it is published, it is removed.
pub struct Incoming {
    place: Place,
    writer: StoredWriter,
    compressor: Compressor,
    slice: Vec<u8>,
    frame: Vec<u8>,
    has_frame: bool,
}

/// Where a file lies until it has its name.
struct Place {
    folder: PathBuf,
    path: PathBuf,
    coding: Coding,
    /// Holds the lock, and syncs.
    file: File,
    published: bool,
}

impl Incoming {
    /// Begins a file for `folder`, which must be there.
    pub fn create(folder: &Path, coding: &Coding) -> Result<Incoming> {
        let incoming = folder.join(FOLDER);
        durable::create_folder(&incoming)?;
        let (path, file, writer) = create_locked(&incoming, coding)?;
        Ok(Incoming {
            place: Place {
                folder: folder.to_owned(),
                path,
                coding: coding.clone(),
                file,
                published: false,
            },
            writer,
            compressor: Compressor::new(coding.compression)?,
            slice: Vec::new(),
            frame: Vec::new(),
            has_frame: false,
        })
    }

    /// Appends plain content.
    pub fn append(&mut self, mut plain: &[u8]) -> Result<()> {
        while !plain.is_empty() {
            let room = SLICE_BYTES - self.slice.len();
            let (now, later) = plain.split_at(plain.len().min(room));
            self.slice.extend_from_slice(now);
            if self.slice.len() == SLICE_BYTES {
                self.write_slice()?;
            }
            plain = later;
        }
        Ok(())
    }

    fn write_slice(&mut self) -> Result<()> {
        self.compressor.compress(&self.slice, &mut self.frame)?;
        self.slice.clear();
        self.has_frame = true;
        self.writer.append(&self.frame)
    }

    /// Writes what is left to write, and syncs.
    pub fn finish(mut self) -> Result<Finished> {
        // Even of nothing there is one frame.
        if !self.slice.is_empty() || !self.has_frame {
            self.write_slice()?;
        }
        self.writer.finish()?;
        let place = self.place;
        place
            .file
            .sync_all()
            .map_err(|error| Error::io("sync", &place.path, &error))?;
        Ok(Finished(place))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed now, the next writer removes.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A file that is whole and synced, and has no name in its folder yet.
pub struct Finished(Place);

impl Finished {
    /// Reads it back.
    pub fn open(&self) -> Result<StoredReader> {
        StoredReader::open(&self.0.path, &self.0.coding)
    }

    /// Gives it a name, and the suffix of what was done to it, if that is free; false where it is
    /// taken, and what has it is as it was.
    pub fn publish(&mut self, name: &str) -> Result<bool> {
        if !durable::rename_to_new(&self.0.path, &self.target(name))? {
            return Ok(false);
        }
        self.0.published = true;
        durable::sync_folder(&self.0.folder)?;
        Ok(true)
    }

    /// Gives it a name, in place of what has that name; returns where it lies then.
    pub fn replace(mut self, name: &str) -> Result<PathBuf> {
        let target = self.target(name);
        fs::rename(&self.0.path, &target).map_err(|error| Error::io("write", &target, &error))?;
        self.0.published = true;
        durable::sync_folder(&self.0.folder)?;
        Ok(target)
    }

    fn target(&self, name: &str) -> PathBuf {
        let suffix = self.0.coding.suffix();
        self.0.folder.join(format!("{name}{suffix}"))
    }
}

/// A new file that this process alone has, and has locked.
fn create_locked(incoming: &Path, coding: &Coding) -> Result<(PathBuf, File, StoredWriter)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Processes of different machines or containers may have the same number.
    let moment = jiff::Timestamp::now().as_nanosecond();
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = incoming.join(format!("{}-{moment}-{number}", std::process::id()));
        let writer = StoredWriter::create(&path, coding)?;
        // Until it is locked, another process may take it for a leftover.
        match lock(&path) {
            Ok(Some(file)) => return Ok((path, file, writer)),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("lock", &path, &error)),
        }
    }
}

/// Locks a file, unless somebody else has, or it is not there any more.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok((file.metadata()?.nlink() > 0).then_some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Removes what processes that were killed left in the folder's `incoming`.
pub fn remove_leftovers(folder: &Path) -> Result<()> {
    let incoming = folder.join(FOLDER);
    let entries = match fs::read_dir(&incoming) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| Error::io("read the folder", &incoming, &error))?,
    };
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("read the folder", &incoming, &error))?;
        let path = entry.path();
        // What vanishes meanwhile was published, or removed by somebody else.
        if let Ok(Some(_locked)) = lock(&path) {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::stored::reader::read_whole;

    fn finished(folder: &Path, content: &[u8]) -> Finished {
        let mut incoming = Incoming::create(folder, &Coding::default()).unwrap();
        incoming.append(content).unwrap();
        incoming.finish().unwrap()
    }

    fn count(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn content_of_many_slices_comes_back() {
        let base = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..2 * SLICE_BYTES + 77)
            .map(|byte| (byte / 3) as u8)
            .collect();
        assert!(finished(base.path(), &content).publish("a").unwrap());
        let read = read_whole(&base.path().join("a.zstd"), &Coding::default()).unwrap();
        assert!(read == content);
        assert_eq!(count(&base.path().join(FOLDER)), 0);
    }

    #[test]
    fn a_name_that_is_taken_stays_as_it_is() {
        let base = tempfile::tempdir().unwrap();
        assert!(finished(base.path(), b"one").publish("a").unwrap());
        assert!(!finished(base.path(), b"two").publish("a").unwrap());
        let path = base.path().join("a.zstd");
        assert_eq!(read_whole(&path, &Coding::default()).unwrap(), b"one");
        finished(base.path(), b"three").replace("a").unwrap();
        assert_eq!(read_whole(&path, &Coding::default()).unwrap(), b"three");
        assert_eq!(count(&base.path().join(FOLDER)), 0);
    }

    #[test]
    fn only_what_nobody_writes_is_a_leftover() {
        let base = tempfile::tempdir().unwrap();
        let mut written = finished(base.path(), b"one");
        let left = base.path().join(FOLDER).join("1-0");
        fs::write(&left, "x").unwrap();
        remove_leftovers(base.path()).unwrap();
        assert!(!left.exists());
        assert!(written.publish("a").unwrap());
    }

    #[test]
    fn one_of_many_that_publish_at_once_wins() {
        let base = tempfile::tempdir().unwrap();
        let publish = &|number: u8| {
            remove_leftovers(base.path()).unwrap();
            finished(base.path(), &[number; 1000]).publish("a").unwrap()
        };
        let wins: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|number| scope.spawn(move || publish(number)))
                .collect();
            threads
                .into_iter()
                .map(|thread| usize::from(thread.join().unwrap()))
                .sum()
        });
        assert_eq!(wins, 1);
    }
}
