//! Files of this machine.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use jiff::Timestamp;
use walkdir::WalkDir;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::storage::durable;

/// What a file holds; nothing where there is none.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::stored("read", &path.display(), &error)),
    }
}

/// Bytes of a file.
pub(super) fn size(path: &Path) -> Result<u64> {
    let metadata = fs::metadata(path).map_err(|error| Error::io("look at", path, &error))?;
    Ok(metadata.len())
}

/// When a file was written; nothing where there is none.
pub(super) fn modified(path: &Path) -> Result<Option<Timestamp>> {
    match fs::metadata(path).and_then(|metadata| metadata.modified()) {
        Ok(modified) => Ok(Timestamp::try_from(modified).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("look at", path, &error)),
    }
}

/// Removes a file; that there is none is fine.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path, &error))
        }
        _ => Ok(()),
    }
}

/// Gives a file one more name; where the file system cannot do that, it is copied.
pub(super) fn link(source: &Path, target: &Path) -> Result<()> {
    if fs::hard_link(source, target).is_err() {
        fs::copy(source, target)
            .map_err(|error| Error::io(&format!("copy {} to", source.display()), target, &error))?;
    }
    Ok(())
}

/// The names in a folder.
pub(super) fn names(folder: &Path) -> Result<Vec<String>> {
    let unreadable = |error: io::Error| Error::io("read the folder", folder, &error);
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        // Nothing of a repository has a name that is no text.
        names.extend(entry.map_err(unreadable)?.file_name().into_string());
    }
    Ok(names)
}

/// The paths of all files below a folder.
pub(super) fn files(folder: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    if !durable::exists(folder)? {
        return Ok(files);
    }
    for entry in WalkDir::new(folder) {
        let unreadable = |error: walkdir::Error| {
            Error::failed(format!(
                "cannot read the folder {}: {error}",
                folder.display()
            ))
        };
        let entry = entry.map_err(unreadable)?;
        if !entry.file_type().is_dir()
            && let Ok(path) = entry.path().strip_prefix(folder)
        {
            files.push(path.to_string_lossy().into_owned());
        }
    }
    Ok(files)
}

/// Bytes on disk, a file with several names counted once.
pub(super) fn held(folder: &Path, interrupt: &Interrupt) -> Result<u64> {
    const SECTOR: u64 = 512;
    if !durable::exists(folder)? {
        return Ok(0);
    }
    let mut linked = HashSet::new();
    let mut held = 0;
    for entry in WalkDir::new(folder) {
        interrupt.check()?;
        // What goes while it is looked at is no longer held.
        let Some(metadata) = entry.ok().and_then(|entry| entry.metadata().ok()) else {
            continue;
        };
        if metadata.nlink() == 1 || linked.insert((metadata.dev(), metadata.ino())) {
            held += metadata.blocks() * SECTOR;
        }
    }
    Ok(held)
}

/// The folder, or the first one above it that is there.
pub(super) fn existing(folder: &Path) -> &Path {
    let mut above = folder.ancestors();
    above.find(|above| above.exists()).unwrap_or(folder)
}

/// Bytes that are free where a folder is, or shall be.
pub(super) fn room(folder: &Path) -> Result<u64> {
    let existing = existing(folder);
    let room = rustix::fs::statvfs(existing)
        .map_err(|error| Error::io("look at", existing, &error.into()))?;
    Ok(room.f_bavail.saturating_mul(room.f_frsize))
}

/// An error where nothing can be written into a folder that is, or shall be, there.
pub(super) fn check_writable(folder: &Path) -> Result<()> {
    let existing = existing(folder);
    rustix::fs::access(existing, rustix::fs::Access::WRITE_OK)
        .map_err(|error| Error::io("write into", existing, &error.into()))
}

/// Whether this is root, and the folder, if it is there, somebody else's.
pub(super) fn is_guest(folder: &Path) -> Result<bool> {
    if !rustix::process::geteuid().is_root() {
        return Ok(false);
    }
    match fs::metadata(folder) {
        Ok(metadata) => Ok(metadata.uid() != 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("look at", folder, &error)),
    }
}

/// Makes a file durable.
pub(super) fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|error| Error::io("sync", path, &error))
}
