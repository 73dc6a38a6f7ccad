//! Whether there is room for the restored cluster, before anything is written.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::repository::contents::Contents;
use crate::restore::folder::Folder;
use crate::restore::selection::Selection;
use crate::size::readable;

/// An error where a file system has less room than its part of the cluster needs. On each that is `held` which the cluster
/// has there already.
pub(super) fn check<'a>(
    contents: &Contents,
    selection: &Selection,
    folder_for: impl Fn(&str) -> Result<&'a Folder>,
    held: impl Fn(u64) -> u64,
) -> Result<()> {
    let mut folders: BTreeMap<&Path, (&Folder, u64)> = BTreeMap::new();
    for (place, file) in contents.list.files.iter().enumerate() {
        if file.is_extra() || !selection.is_whole(place) {
            continue;
        }
        let folder = folder_for(file.path)?;
        folders.entry(folder.path()).or_insert((folder, 0)).1 += file.restored_size();
    }
    let mut needed: BTreeMap<u64, (&Folder, u64)> = BTreeMap::new();
    for (folder, bytes) in folders.into_values() {
        let device = folder.metadata()?.dev();
        needed.entry(device).or_insert((folder, 0)).1 += bytes;
    }
    for (device, (folder, bytes)) in needed {
        let free = folder.room()?.saturating_add(held(device));
        if free < bytes {
            return Err(Error::failed(format!(
                "{} has {} free, and the restored cluster needs {} there",
                folder.path().display(),
                readable(free),
                readable(bytes)
            ))
            .hint("free some space there, or restore into another directory"));
        }
    }
    Ok(())
}
