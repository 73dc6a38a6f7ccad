//! The one writer of a server's folder, and the one who changes what is noted of its backups.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::interrupt::Interrupt;
use crate::repository::layout::ServerFolder;

/// Held as long as this lives; the kernel lets it go when the process ends, however it ends.
#[derive(Debug)]
pub struct ServerLock {
    _file: File,
}

impl ServerLock {
    /// Takes the lock at once, or says who has it.
    pub fn take(folder: &ServerFolder) -> Result<ServerLock> {
        Ok(ServerLock {
            _file: lock(&folder.lock(), folder)?,
        })
    }
}

/// The lock of whoever replaces the `backup.info` of a finished backup, or its folder.
///
/// It is held for moments, while a [`ServerLock`] is held as long as a backup takes: so what a
/// verification showed is noted though a backup is being made. Who needs both takes that one first.
#[derive(Debug)]
pub struct InfoLock {
    _file: File,
}

/// How long a lock that is held for moments is waited for, and how often it is tried.
const PATIENCE: Duration = Duration::from_secs(10);
const PACE: Duration = Duration::from_millis(10);

impl InfoLock {
    /// Takes the lock as soon as it is free.
    pub fn take(folder: &ServerFolder, interrupt: &Interrupt) -> Result<InfoLock> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match lock(&folder.info_lock(), folder) {
                Ok(file) => return Ok(InfoLock { _file: file }),
                Err(error) if error.kind() == Kind::Locked && Instant::now() < give_up => {
                    interrupt.check()?;
                    std::thread::sleep(PACE);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn lock(path: &Path, folder: &ServerFolder) -> Result<File> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| Error::io("open", path, &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let holder = match file.read_to_string(&mut holder) {
                Ok(_) if !holder.trim().is_empty() => format!("process {}", holder.trim()),
                _ => "another process".to_owned(),
            };
            return Err(Error::locked(format!(
                "{holder} is working in {} already",
                folder.root().display()
            ))
            .hint("wait until it has ended, then run the same command again"));
        }
        Err(TryLockError::Error(error)) => return Err(Error::io("lock", path, &error)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|error| Error::io("write", path, &error))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_second_holder_is_told_the_first_ones_pid() {
        let base = tempfile::tempdir().unwrap();
        let folder = ServerFolder::new(base.path(), "primary");
        folder.create().unwrap();
        let held = ServerLock::take(&folder).unwrap();
        let refused = ServerLock::take(&folder).unwrap_err();
        assert_eq!(refused.kind(), Kind::Locked);
        assert!(refused.message().contains(&std::process::id().to_string()));
        drop(held);
        ServerLock::take(&folder).unwrap();
    }

    #[test]
    fn what_is_noted_waits_for_other_notes_and_not_for_the_writer() {
        let base = tempfile::tempdir().unwrap();
        let folder = ServerFolder::new(base.path(), "primary");
        folder.create().unwrap();
        let interrupt = Interrupt::default();
        let _writer = ServerLock::take(&folder).unwrap();
        let held = InfoLock::take(&folder, &interrupt).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| InfoLock::take(&folder, &interrupt));
            std::thread::sleep(5 * PACE);
            assert!(!waiting.is_finished());
            drop(held);
            waiting.join().unwrap().unwrap();
        });
    }
}
