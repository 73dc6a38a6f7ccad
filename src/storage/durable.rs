//! Replacing a file so that a crash leaves the old content or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Writes `content` beside `path`, syncs it, renames it into place and syncs the folder.
pub fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let beside = path.with_added_extension("tmp");
    let renamed = write_synced(&beside, content).and_then(|()| fs::rename(&beside, path));
    if let Err(error) = renamed {
        // The failure is told; that its remains cannot be removed adds nothing.
        let _ = fs::remove_file(&beside);
        return Err(Error::io("write", path, &error));
    }
    sync_parent(path)
}

/// The same for a new file; false where something has that name, which is left as it is. Only one process may
/// do so at a time.
pub fn create(path: &Path, content: &[u8]) -> Result<bool> {
    let beside = path.with_added_extension("tmp");
    let created = write_synced(&beside, content)
        .map_err(|error| Error::io("write", path, &error))
        .and_then(|()| rename_to_new(&beside, path));
    if !matches!(created, Ok(true)) {
        // What failed is told; that its remains cannot be removed adds nothing.
        let _ = fs::remove_file(&beside);
        return created;
    }
    sync_parent(path)?;
    Ok(true)
}

fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Makes the name of a file durable.
pub fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(folder) => sync_folder(folder),
        None => Ok(()),
    }
}

/// Writes a file that is not there yet; false where it is. Several processes may do so at once. The folder is not synced.
pub fn create_file(path: &Path, content: &[u8]) -> Result<bool> {
    let moment = jiff::Timestamp::now().as_nanosecond();
    let own = path.with_added_extension(format!("{}-{moment}", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&own)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .map_err(|error| Error::io("write", path, &error));
    let renamed = written.and_then(|()| rename_to_new(&own, path));
    if !matches!(renamed, Ok(true)) {
        let _ = fs::remove_file(&own);
    }
    renamed
}

/// Renames a file to a name that must be free; false where it is taken. Not synced.
pub fn rename_to_new(from: &Path, to: &Path) -> Result<bool> {
    match rename_noreplace(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::io("write", to, &error)),
    }
}

fn rename_noreplace(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems, NFS among them, have no such rename. A link replaces nothing either.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        renamed => renamed.map_err(io::Error::from),
    }
}

/// Makes the names in a folder durable.
pub fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::io("sync", folder, &error))
}

/// Makes everything written so far on the file system that holds `folder`
/// durable: one call instead of an fsync for each of many thousand files.
pub fn sync_file_system(folder: &Path) -> Result<()> {
    let open = File::open(folder).map_err(|error| Error::io("open", folder, &error))?;
    rustix::fs::syncfs(&open).map_err(|error| Error::io("sync", folder, &error.into()))
}

/// Creates a folder with mode 0700, and its parents where they are missing.
pub fn create_folder(folder: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| Error::io("create the folder", folder, &error))
}

/// Creates a folder that must not be there yet, with mode 0700.
pub fn create_new_folder(folder: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(folder)
        .map_err(|error| Error::io("create the folder", folder, &error))
}

/// Creates a folder as [`create_folder`] does, and the name of each one that is made is on disk before anything is made in it.
pub fn create_synced_folder(folder: &Path) -> Result<()> {
    if exists(folder)? {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        create_synced_folder(parent)?;
    }
    create_folder(folder)?;
    sync_parent(folder)
}

/// Whether there is anything at a path. That this cannot be told just now is an error: what is not seen need not be gone.
pub fn exists(path: &Path) -> Result<bool> {
    path.try_exists()
        .map_err(|error| Error::io("look at", path, &error))
}

/// Removes a folder with all it holds; that it is not there is fine.
pub fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", folder, &error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_replaced_file_is_private_and_leaves_nothing_beside_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("backup.info");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
