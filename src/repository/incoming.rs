//! A stored file on its way into a folder that several processes write to.
//!
//! It is written in the subfolder `incoming`, under a name of its own, and gets its name in the
//! folder above only when it is whole and synced: by a rename that replaces nothing, or on
//! purpose by one that does. As long as its writer lives it is locked, so what a
//! killed process left is told from what another one is writing just now.
//!
//! In an object store it is held in memory until it is whole, as it has no other way to appear in one step, and only where
//! nothing has its name: a segment of WAL as it is stored, at most.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::storage::{Memory, Place, durable};
use crate::stored::coding::Coding;
use crate::stored::compression::Compressor;
use crate::stored::reader::StoredReader;
use crate::stored::writer::StoredWriter;

const FOLDER: &str = "incoming";

/// Plain bytes that become one frame of the stored file.
const SLICE_BYTES: usize = 4 << 20;

/// Bytes that are copied at a time.
const COPIED_BYTES: usize = 256 << 10;

/// A stored file being written. Dropped before it is published, it is removed.
pub struct Incoming {
    draft: Draft,
    coding: Coding,
    writer: StoredWriter,
    compressor: Compressor,
    slice: Vec<u8>,
    frame: Vec<u8>,
    has_frame: bool,
}

/// A file until it has its name in a folder.
enum Draft {
    File { folder: PathBuf, file: LockedFile },
    Memory { folder: Place, content: Memory },
}

/// A file of this machine.
struct LockedFile {
    path: PathBuf,
    /// Holds the lock, and syncs.
    file: File,
    published: bool,
}

impl Incoming {
    /// Begins a file for `folder`, which must be there.
    pub fn create(folder: &Place, coding: &Coding) -> Result<Incoming> {
        let (draft, writer) = match folder {
            Place::Local(path) => {
                let incoming = path.join(FOLDER);
                durable::create_folder(&incoming)?;
                let (file, writer) = create_locked(&incoming, coding)?;
                let folder = path.clone();
                (Draft::File { folder, file }, writer)
            }
            Place::Object(..) => {
                let content = Memory::default();
                let writer = StoredWriter::to_memory(folder, &content, coding)?;
                let folder = folder.clone();
                (Draft::Memory { folder, content }, writer)
            }
        };
        Ok(Incoming {
            draft,
            coding: coding.clone(),
            writer,
            compressor: Compressor::new(coding.compression)?,
            slice: Vec::new(),
            frame: Vec::new(),
            has_frame: false,
        })
    }

    /// A copy of a stored file as it is, which must be published under its whole name. `pass` hears of the bytes.
    pub fn copy_of(
        folder: &Place,
        stored: &Place,
        pass: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Finished> {
        let mut copy = Incoming::create(folder, &Coding::PLAIN)?;
        let mut source = stored.open()?;
        let mut part = vec![0; COPIED_BYTES];
        loop {
            match source.read(&mut part) {
                Ok(0) => return copy.finish(),
                Ok(read) => {
                    copy.append(&part[..read])?;
                    pass(read as u64)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::stored("read", stored, &error)),
            }
        }
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
        if let Draft::File { file, .. } = &self.draft {
            let LockedFile { path, file, .. } = file;
            file.sync_all()
                .map_err(|error| Error::io("sync", path, &error))?;
        }
        Ok(Finished {
            draft: self.draft,
            coding: self.coding,
        })
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed now, the next writer removes.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A file that is whole and synced, and has no name in its folder yet.
pub struct Finished {
    draft: Draft,
    coding: Coding,
}

impl Finished {
    /// Reads it back.
    pub fn open(&self) -> Result<StoredReader> {
        match &self.draft {
            Draft::File { file, .. } => StoredReader::open(&file.path, &self.coding),
            Draft::Memory { folder, content } => {
                StoredReader::of_memory(folder, content, &self.coding)
            }
        }
    }

    /// Gives it a name, and the suffix of what was done to it, if that is free; false where it is
    /// taken, and what has it is as it was.
    pub fn publish(&mut self, name: &str) -> Result<bool> {
        let name = self.stored_name(name);
        match &mut self.draft {
            Draft::File { folder, file } => {
                if !durable::rename_to_new(&file.path, &folder.join(name))? {
                    return Ok(false);
                }
                file.published = true;
                durable::sync_folder(folder)?;
                Ok(true)
            }
            Draft::Memory { folder, content } => folder.join(&name).create(&content.bytes()),
        }
    }

    /// Gives it a name, in place of what has that name; returns where it lies then. In a store, a request for an earlier file that
    /// comes late puts nothing in the place of this one.
    pub fn replace(mut self, name: &str) -> Result<Place> {
        let name = self.stored_name(name);
        match &mut self.draft {
            Draft::File { folder, file } => {
                let target = folder.join(name);
                fs::rename(&file.path, &target)
                    .map_err(|error| Error::io("write", &target, &error))?;
                file.published = true;
                durable::sync_folder(folder)?;
                Ok(Place::Local(target))
            }
            Draft::Memory { folder, content } => {
                let target = folder.join(&name);
                let is_replaced = match target.version()? {
                    None => target.create(&content.bytes())?,
                    version => target.replace_version(&content.bytes(), version.as_ref())?,
                };
                match is_replaced {
                    true => Ok(target),
                    false => Err(Error::failed(format!("{target} was replaced meanwhile"))
                        .hint("run the same command again")),
                }
            }
        }
    }

    /// What it is called in its folder.
    pub fn stored_name(&self, name: &str) -> String {
        format!("{name}{}", self.coding.suffix())
    }
}

/// A new file that this process alone has, and has locked.
fn create_locked(incoming: &Path, coding: &Coding) -> Result<(LockedFile, StoredWriter)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Processes of different machines or containers may have the same number.
    let moment = jiff::Timestamp::now().as_nanosecond();
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = incoming.join(format!("{}-{moment}-{number}", std::process::id()));
        let writer = StoredWriter::create(&path, coding)?;
        // Until it is locked, another process may take it for a leftover.
        match lock(&path) {
            Ok(Some(file)) => {
                let locked = LockedFile {
                    path,
                    file,
                    published: false,
                };
                return Ok((locked, writer));
            }
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
pub fn remove_leftovers(folder: &Place) -> Result<()> {
    let Some(folder) = folder.local() else {
        return Ok(());
    };
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
        let mut incoming = Incoming::create(&folder.into(), &Coding::default()).unwrap();
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
        let read = read_whole(base.path().join("a.zstd"), &Coding::default()).unwrap();
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
        remove_leftovers(&base.path().into()).unwrap();
        assert!(!left.exists());
        assert!(written.publish("a").unwrap());
    }

    #[test]
    fn one_of_many_that_publish_at_once_wins() {
        let base = tempfile::tempdir().unwrap();
        let publish = &|number: u8| {
            remove_leftovers(&base.path().into()).unwrap();
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
