//! A new file, until it is whole and gets its name.

use std::fs::{self, File, FileTimes, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::original::Original;
use crate::storage::durable;

/// A file being written beside its target, mode 0600. Dropped before it is published, it is removed; what
/// a killed process leaves is taken over by the next one.
pub(crate) struct Incoming {
    target: PathBuf,
    path: PathBuf,
    file: File,
    size: u64,
    published: bool,
}

impl Incoming {
    /// Begins a file that shall become `target`, which must not be there.
    pub(crate) fn create(target: &Path) -> Result<Incoming> {
        if target.symlink_metadata().is_ok() {
            return Err(taken(target));
        }
        let path = target.with_added_extension("incoming");
        let file = open_locked(&path)?;
        let incoming = Incoming {
            target: target.to_owned(),
            path,
            file,
            size: 0,
            published: false,
        };
        incoming
            .file
            .set_len(0)
            .map_err(|error| incoming.unwritable(&error))?;
        Ok(incoming)
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|error| self.unwritable(&error))?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// The file, for a program that writes it.
    pub(crate) fn handle(&self) -> Result<File> {
        self.file
            .try_clone()
            .map_err(|error| self.unwritable(&error))
    }

    /// Gives it mode, times and owner of the file whose place it takes.
    pub(super) fn resemble(&self, original: &Original) -> Result<()> {
        self.take_over(original)
            .map_err(|error| self.unwritable(&error))
    }

    /// Gives it its name. On disk when this returns; its bytes are returned.
    pub(crate) fn publish(mut self) -> Result<u64> {
        self.file
            .sync_all()
            .map_err(|error| self.unwritable(&error))?;
        if !durable::rename_to_new(&self.path, &self.target)? {
            return Err(taken(&self.target));
        }
        self.published = true;
        durable::sync_parent(&self.target)?;
        Ok(self.size)
    }

    fn take_over(&self, original: &Original) -> io::Result<()> {
        let metadata = original.metadata();
        if rustix::process::geteuid().is_root() {
            fchown(&self.file, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        self.file
            .set_permissions(Permissions::from_mode(metadata.mode() & 0o777))?;
        let times = FileTimes::new()
            .set_accessed(metadata.accessed()?)
            .set_modified(metadata.modified()?);
        self.file.set_times(times)
    }

    fn unwritable(&self, error: &io::Error) -> Error {
        Error::io("write", &self.path, error)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.published {
            // Why it was not finished is told; that its remains cannot be removed adds nothing.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn taken(target: &Path) -> Error {
    Error::failed(format!("{} is there already", target.display()))
        .hint("move or remove it first, if it is not needed")
}

/// Opens the file, of this process alone. A name means that file only as long as whoever holds
/// the lock has not renamed or removed it.
fn open_locked(path: &Path) -> Result<File> {
    loop {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .map_err(|error| Error::io("create", path, &error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(
                    Error::locked(format!("another pgkeep is writing {}", path.display()))
                        .hint("wait until it has ended"),
                );
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", path, &error)),
        }
        let ours = file
            .metadata()
            .map_err(|error| Error::io("look at", path, &error))?;
        let named = fs::symlink_metadata(path);
        if named.is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())) {
            return Ok(file);
        }
    }
}
