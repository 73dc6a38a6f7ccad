//! A file that is written beside the path it shall have.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::storage::durable;

/// What its name ends in until it has its own. PostgreSQL takes no file of `pg_wal` with such a name for WAL.
const SUFFIX: &str = "pgkeep";

/// A file that is not yet in its place. Dropped before, it is removed; what a killed process leaves is
/// written over by the next one.
pub(super) struct Beside {
    target: PathBuf,
    path: PathBuf,
    file: File,
    published: bool,
}

impl Beside {
    /// Begins the file, which no other process may be writing.
    pub(super) fn create(target: &Path) -> Result<Beside> {
        let path = target.with_added_extension(SUFFIX);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Error::io("create", &path, &error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::failed(format!(
                    "another process is writing {} already",
                    path.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path, &error)),
        }
        file.set_len(0)
            .map_err(|error| Error::io("write", &path, &error))?;
        Ok(Beside {
            target: target.to_owned(),
            path,
            file,
            published: false,
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|error| Error::io("write", &self.path, &error))
    }

    /// Puts the file in its place, synced.
    pub(super) fn publish(mut self) -> Result<()> {
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.path, &self.target))
            .map_err(|error| Error::io("write", &self.target, &error))?;
        self.published = true;
        match self.target.parent() {
            Some(folder) if folder != Path::new("") => durable::sync_folder(folder),
            _ => durable::sync_folder(Path::new(".")),
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.published {
            let _: io::Result<()> = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_target_is_there_once_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("RECOVERYXLOG");
        fs::write(
            folder.path().join("RECOVERYXLOG.pgkeep"),
            "left by a killed one",
        )
        .unwrap();
        let mut file = Beside::create(&target).unwrap();
        file.write(b"wal").unwrap();
        assert!(!target.exists());
        assert!(Beside::create(&target).is_err());
        file.publish().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"wal");

        let mut dropped = Beside::create(&target).unwrap();
        dropped.write(b"other").unwrap();
        drop(dropped);
        assert_eq!(fs::read(&target).unwrap(), b"wal");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
