//! The file that another one shall take the place of.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::error::{Error, Result};
use crate::progress::Progress;

/// A plain file with one name.
pub(super) struct Original {
    path: PathBuf,
    file: File,
    metadata: Metadata,
}

/// Refuses what is no plain file: nothing of it could be replaced.
pub(super) fn check_kind(path: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(path).map_err(|error| Error::io("open", path, &error))?;
    let kind = metadata.file_type();
    let found = if kind.is_file() {
        return Ok(());
    } else if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(Error::usage(format!(
        "{} is {found}, not a plain file",
        path.display()
    )))
}

impl Original {
    pub(super) fn open(path: &Path) -> Result<Original> {
        check_kind(path)?;
        let unopened = |error: io::Error| Error::io("open", path, &error);
        // It may have become something else since, which must neither be followed nor waited for.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags.cast_signed())
            .open(path)
            .map_err(unopened)?;
        let metadata = file.metadata().map_err(unopened)?;
        if !metadata.is_file() {
            check_kind(path)?;
        }
        if metadata.nlink() > 1 {
            return Err(Error::failed(format!(
                "{} has another name too, a hard link, under which its content would stay as it is",
                path.display()
            ))
            .hint("remove the other name, or copy the file"));
        }
        Ok(Original {
            path: path.to_owned(),
            file,
            metadata,
        })
    }

    /// Bytes of it.
    pub(super) fn size(&self) -> u64 {
        self.metadata.len()
    }

    /// What is known about it.
    pub(super) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Reads it from its beginning.
    pub(super) fn reader<'a>(&'a self, progress: &'a dyn Progress) -> impl Read + 'a {
        Counted {
            file: &self.file,
            progress,
        }
    }

    /// An error of reading or decoding it.
    pub(super) fn unreadable(&self, error: &io::Error) -> Error {
        match error.raw_os_error() {
            Some(_) => Error::io("read", &self.path, error),
            None => Error::damage(format!(
                "{} cannot be decoded: {error}",
                self.path.display()
            ))
            .hint("the file was left as it is"),
        }
    }

    /// Refuses a file that somebody wrote to while it was read.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        let now = fs::symlink_metadata(&self.path)
            .map_err(|error| Error::io("look at", &self.path, &error))?;
        let identity = |of: &Metadata| {
            let changed = (of.mtime(), of.mtime_nsec());
            (of.dev(), of.ino(), of.nlink(), of.len(), changed)
        };
        if identity(&now) == identity(&self.metadata) {
            return Ok(());
        }
        Err(Error::failed(format!(
            "{} was changed while it was being read",
            self.path.display()
        ))
        .hint("run the same command again once nobody writes to it"))
    }

    pub(super) fn remove(&self) -> Result<()> {
        fs::remove_file(&self.path).map_err(|error| Error::io("remove", &self.path, &error))
    }
}

/// A file whose bytes are counted as they are read.
struct Counted<'a> {
    file: &'a File,
    progress: &'a dyn Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = (&*self.file).read(buffer)?;
        self.progress.advance(read as u64);
        Ok(read)
    }
}
