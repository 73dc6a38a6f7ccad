//! Whether there is room for the restored cluster, before anything is written.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::repository::contents::Contents;
use crate::restore::directory::DataDirectory;
use crate::size::readable;

/// An error where a file system has less room than its part of the cluster needs.
pub(super) fn check(contents: &Contents, directory: &DataDirectory) -> Result<()> {
    let mut needed: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    let mut folders: BTreeMap<PathBuf, u64> = BTreeMap::new();
    for file in contents.list.files.iter().filter(|file| !file.is_extra()) {
        let path = directory.path(&file.path);
        let folder = directory
            .folders()
            .find(|folder| path.starts_with(folder))
            .map(existing);
        if let Some(folder) = folder {
            *folders.entry(folder).or_default() += file.restored_size();
        }
    }
    for (folder, bytes) in folders {
        let device = fs::metadata(&folder)
            .map_err(|error| Error::io("look at", &folder, &error))?
            .dev();
        needed.entry(device).or_insert((folder, 0)).1 += bytes;
    }
    for (folder, bytes) in needed.into_values() {
        let room = rustix::fs::statvfs(&folder)
            .map_err(|error| Error::io("look at", &folder, &error.into()))?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        if free < bytes {
            return Err(Error::failed(format!(
                "{} has {} free, and the restored cluster needs {} there",
                folder.display(),
                readable(free),
                readable(bytes)
            ))
            .hint("free some space there, or restore into another directory"));
        }
    }
    Ok(())
}

/// The folder itself, or the nearest one above it that exists.
fn existing(folder: &Path) -> PathBuf {
    folder
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"))
        .to_owned()
}
