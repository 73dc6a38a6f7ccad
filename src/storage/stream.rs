//! A file that is read or written from its beginning to its end.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::storage::objects::{ObjectReader, ObjectWriter};

/// A file that is read.
pub struct Source {
    bytes: Reading,
    size: u64,
}

enum Reading {
    File(File),
    Object(Box<ObjectReader>),
    Memory { content: Memory, position: usize },
}

/// A file that is held in memory until it gets its name.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    /// What was written so far.
    pub fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    pub(super) fn of_file(path: &Path) -> Result<Source> {
        let unreadable = |error| Error::stored("open", &path.display(), &error);
        let file = File::open(path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        Ok(Source {
            bytes: Reading::File(file),
            size,
        })
    }

    pub(super) fn of_object(reader: ObjectReader) -> Source {
        Source {
            size: reader.size(),
            bytes: Reading::Object(Box::new(reader)),
        }
    }

    /// What is held in memory.
    pub fn of_memory(content: &Memory) -> Source {
        Source {
            size: content.bytes().len() as u64,
            bytes: Reading::Memory {
                content: content.clone(),
                position: 0,
            },
        }
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.bytes {
            Reading::File(file) => file.read(buffer),
            Reading::Object(object) => object.read(buffer),
            Reading::Memory { content, position } => {
                let content = content.bytes();
                let read = content.get(*position..).unwrap_or_default().read(buffer)?;
                *position += read;
                Ok(read)
            }
        }
    }
}

/// A file that is written. One of this machine is not synced, and an object may be on its way when it is finished: whoever
/// publishes it waits for that, by [`Place::settle`](crate::storage::Place::settle). No object is there before it is finished.
pub struct Sink(Writing);

enum Writing {
    File(File),
    Object(Box<ObjectWriter>),
    Memory(Memory),
}

impl Sink {
    pub(super) fn to_file(path: &Path) -> Result<Sink> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| Error::io("create", path, &error))?;
        Ok(Sink(Writing::File(file)))
    }

    pub(super) fn to_object(writer: ObjectWriter) -> Sink {
        Sink(Writing::Object(Box::new(writer)))
    }

    /// To be held in memory.
    pub fn to_memory(content: &Memory) -> Sink {
        Sink(Writing::Memory(content.clone()))
    }

    /// Ends it.
    pub fn finish(self) -> Result<()> {
        match self.0 {
            Writing::File(_) | Writing::Memory(_) => Ok(()),
            Writing::Object(object) => object.finish(),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Writing::File(file) => file.write(bytes),
            Writing::Object(object) => object.write(bytes),
            Writing::Memory(content) => content.bytes().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Writing::File(file) => file.flush(),
            Writing::Object(object) => object.flush(),
            Writing::Memory(_) => Ok(()),
        }
    }
}
