//! One backup, file by file.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::{Component, Path};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::parallel::{self, Stop};
use crate::repository::backup_info::BackupInfo;
use crate::repository::catalogue::Link;
use crate::repository::checksums::Checksums;
use crate::repository::contents;
use crate::repository::layout::{BackupFolder, CHECKSUMS};
use crate::repository::staging::Staging;
use crate::storage::Place;
use crate::stored::checksum::{Sha512Digest, Sha512Hasher};
use crate::transfer::Work;

/// The part of the target's folder for an unfinished backup that it is copied into. Its name is no number, so that no backup
/// that is made there takes it for a pass of one that died.
const PART: &str = "copied";

/// Bytes that are copied at a time.
const PART_BYTES: usize = 256 << 10;

/// Copies a backup and publishes it; gives the bytes that were moved.
pub(super) fn copy(work: &Work<'_>, link: &Link<'_>) -> Result<u64> {
    let Link { folder, info } = link;
    let copied = copy_files(work, link).map_err(|error| match still_there(work, link) {
        // Whatever failed while it went, failed because of that.
        Err(gone) => gone,
        Ok(_) => error,
    });
    let (staging, part, bytes) = copied?;
    work.interrupt.check()?;
    let latest = still_there(work, link)?;
    log::info!("backup {} of {} is copied", info.backup, folder.place());
    // It says where the stored files lie, which the target does in its own way.
    let latest = BackupInfo {
        files_in: None,
        ..latest
    };
    latest.write(&part)?;
    staging.publish(&part)?;
    Ok(bytes)
}

/// What is noted of the backup by now; an error where it is gone, or is another one.
fn still_there(work: &Work<'_>, link: &Link<'_>) -> Result<BackupInfo> {
    let source = work.request.source.name;
    let identifier = link.info.backup;
    let changed = |what: &str| {
        Error::failed(format!(
            "backup {identifier} of {source} was {what} while it was copied"
        ))
        .hint("run the same command again")
    };
    match BackupInfo::read_if_there(link.folder)? {
        None => Err(changed("removed")),
        Some(latest) if latest.checksums != link.info.checksums => Err(changed("replaced")),
        Some(latest) => Ok(latest),
    }
}

fn copy_files(work: &Work<'_>, link: &Link<'_>) -> Result<(Staging, BackupFolder, u64)> {
    let Link { folder, info } = link;
    let checksums = contents::read_checksums(folder, info)?;
    let own = info
        .checksums_digest()
        .ok_or_else(|| Error::damage(format!("{} has no SHA-512 of {CHECKSUMS}", folder.info())))?;
    check_paths(folder, &checksums)?;
    let name = format!("copy {}", info.backup);
    work.progress.step(&name, Some(info.backup_size));
    let target = work.request.target.folder;
    let (mut staging, part) = Staging::resume(target, work.lock, info.backup, PART)?;
    make_folders(&part, &checksums)?;
    let moved = AtomicU64::new(0);
    // The list itself comes last.
    let task = |number: usize| match number.checked_sub(checksums.len()) {
        None => Some(checksums.at(number)),
        Some(0) => Some((CHECKSUMS, own)),
        Some(_) => None,
    };
    let mut workers = vec![vec![0; PART_BYTES]; work.request.workers];
    let copied = parallel::run_dealt(
        &mut workers,
        task,
        work.interrupt,
        |buffer, (path, digest), stop| {
            let file = File {
                source: folder.stored(path),
                target: part.stored(path),
                digest,
            };
            let bytes = file.copy(work, buffer, stop)?;
            moved.fetch_add(bytes, Ordering::Relaxed);
            Ok(())
        },
        || Ok(()),
    );
    if let Err(error) = copied {
        if work.interrupt.leaves() {
            staging.leave();
        }
        return Err(error);
    }
    Ok((staging, part, moved.into_inner()))
}

/// Nothing may be written outside of the backup's own folder, whatever its list says.
fn check_paths(folder: &BackupFolder, checksums: &Checksums) -> Result<()> {
    let is_inside = |path: &str| {
        let mut parts = Path::new(path).components();
        parts.all(|part| matches!(part, Component::Normal(_)))
    };
    match checksums.iter().find(|(path, _)| !is_inside(path)) {
        None => Ok(()),
        Some((path, _)) => Err(Error::damage(format!(
            "{} names {path:?}, which lies outside of the backup",
            folder.checksums()
        ))),
    }
}

fn make_folders(part: &BackupFolder, checksums: &Checksums) -> Result<()> {
    let above = |path: &str| Some(path.rsplit_once('/')?.0.to_owned());
    let folders: BTreeSet<String> = checksums
        .iter()
        .filter_map(|(path, _)| above(path))
        .collect();
    folders
        .iter()
        .try_for_each(|path| part.stored(path).create_folder())
}

/// A stored file, and where it goes.
struct File {
    source: Place,
    target: Place,
    digest: Sha512Digest,
}

impl File {
    /// Copies it, and gives the bytes that were moved.
    fn copy(&self, work: &Work<'_>, buffer: &mut [u8], stop: &Stop<'_>) -> Result<u64> {
        if self.is_left(work, buffer, stop)? {
            return Ok(0);
        }
        let mut sink = self.target.create_new()?;
        let (digest, bytes) = read_through(&self.source, buffer, |part| {
            stop.check()?;
            work.rate.take(part.len() as u64, || stop.is_set());
            sink.write_all(part)
                .map_err(|error| Error::at("write", &self.target, &error))?;
            work.progress.advance(part.len() as u64);
            Ok(())
        })?;
        if digest != self.digest {
            return Err(Error::damage(format!(
                "{} is not as it was stored: its SHA-512 is another one",
                self.source
            ))
            .hint("nobody should rely on this backup: verify tells all that is wrong with it"));
        }
        sink.finish()?;
        Ok(bytes)
    }

    /// Whether a run that was killed has copied it already. What it left of it by halves goes.
    fn is_left(&self, work: &Work<'_>, buffer: &mut [u8], stop: &Stop<'_>) -> Result<bool> {
        // In a store, nothing is left.
        if self.target.local().is_none() || !self.target.exists()? {
            return Ok(false);
        }
        let (digest, bytes) = read_through(&self.target, buffer, |_| stop.check())?;
        if digest == self.digest {
            work.progress.advance(bytes);
            return Ok(true);
        }
        self.target.remove()?;
        Ok(false)
    }
}

/// Reads a file to its end, and gives its digest and its size.
fn read_through(
    place: &Place,
    buffer: &mut [u8],
    mut pass: impl FnMut(&[u8]) -> Result<()>,
) -> Result<(Sha512Digest, u64)> {
    let mut source = place.open()?;
    let mut hasher = Sha512Hasher::default();
    let mut size = 0;
    loop {
        let part = match source.read(buffer) {
            Ok(0) => return Ok((hasher.finish(), size)),
            Ok(read) => &buffer[..read],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::stored("read", place, &error)),
        };
        hasher.update(part);
        size += part.len() as u64;
        pass(part)?;
    }
}
