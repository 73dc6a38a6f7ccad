//! The one writer of a server's folder, and the one who changes what is noted of its backups.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::interrupt::Interrupt;
use crate::repository::layout::ServerFolder;
use crate::storage::Place;
use crate::storage::lease::{Lease, Refusal, Terms};

/// What is held. The kernel lets a file go when the process ends, however it ends; in an object store, a lock that its
/// holder does not renew ends by itself.
enum Held {
    /// Open as long as it is held.
    File {
        _file: File,
    },
    Lease(Lease),
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Held")
    }
}

impl Held {
    fn check(&self) -> Result<()> {
        match self {
            Held::File { .. } => Ok(()),
            Held::Lease(lease) => lease.check(),
        }
    }
}

/// Held as long as this, or any clone of it, lives.
#[derive(Debug, Clone)]
pub struct ServerLock {
    held: Arc<Held>,
}

/// For how long the locks of an object store count that are held as long as the work takes …
const LONG: Terms = Terms {
    length: Duration::from_secs(60),
};
/// … and those that are held for moments.
const SHORT: Terms = Terms {
    length: Duration::from_secs(15),
};

impl ServerLock {
    /// Takes the lock at once, or says who has it.
    pub fn take(folder: &ServerFolder) -> Result<ServerLock> {
        Ok(ServerLock {
            held: Arc::new(lock(&folder.lock(), folder, LONG)?),
        })
    }

    /// An error where somebody else may have it by now, so that nothing may be published.
    pub fn check(&self) -> Result<()> {
        self.held.check()
    }
}

/// The lock of whoever replaces the `backup.info` of a finished backup, or its folder.
///
/// It is held for moments, while a [`ServerLock`] is held as long as a backup takes: so what a
/// verification showed is noted though a backup is being made. Who needs both takes that one first.
#[derive(Debug)]
pub struct InfoLock {
    held: Held,
}

/// How long a lock that is held for moments is waited for, and how often it is tried.
const PATIENCE: Duration = Duration::from_secs(10);
const PACE: Duration = Duration::from_millis(10);
/// The same in an object store, where a lock may have to end by itself, and each try is a few requests.
const PATIENCE_AFAR: Duration = Duration::from_secs(30);
const PACE_AFAR: Duration = Duration::from_millis(500);

impl InfoLock {
    /// Takes the lock as soon as it is free.
    pub fn take(folder: &ServerFolder, interrupt: &Interrupt) -> Result<InfoLock> {
        let place = folder.info_lock();
        let patience = match place {
            Place::Local(_) => PATIENCE,
            Place::Object(..) => PATIENCE_AFAR,
        };
        let give_up = Instant::now() + patience;
        let held = wait_for(&place, folder, SHORT, give_up, interrupt)?;
        Ok(InfoLock { held })
    }

    /// An error where somebody else may have it by now.
    pub fn check(&self) -> Result<()> {
        self.held.check()
    }
}

/// The lock of the one who copies a server's WAL. Who pushes WAL needs none.
pub struct CopyLock {
    _held: Held,
}

impl CopyLock {
    /// Takes the lock as soon as it is free, or says who has it when that is not before `give_up`.
    pub fn take(
        folder: &ServerFolder,
        give_up: Instant,
        interrupt: &Interrupt,
    ) -> Result<CopyLock> {
        let held = wait_for(&folder.copy_lock(), folder, LONG, give_up, interrupt)?;
        Ok(CopyLock { _held: held })
    }
}

/// The lock of the one who folds a server's history.
pub struct HistoryLock {
    held: Held,
}

impl HistoryLock {
    /// Takes the lock at once, or says who has it.
    pub fn take(folder: &ServerFolder) -> Result<HistoryLock> {
        let held = lock(&folder.history_lock(), folder, SHORT)?;
        Ok(HistoryLock { held })
    }

    /// An error where somebody else may have it by now.
    pub fn check(&self) -> Result<()> {
        self.held.check()
    }
}

fn wait_for(
    place: &Place,
    folder: &ServerFolder,
    terms: Terms,
    give_up: Instant,
    interrupt: &Interrupt,
) -> Result<Held> {
    let pace = match place {
        Place::Local(_) => PACE,
        Place::Object(..) => PACE_AFAR,
    };
    loop {
        match lock(place, folder, terms) {
            Err(error) if error.kind() == Kind::Locked && Instant::now() < give_up => {
                interrupt.check()?;
                std::thread::sleep(pace);
            }
            locked => return locked,
        }
    }
}

fn lock(place: &Place, folder: &ServerFolder, terms: Terms) -> Result<Held> {
    match place {
        Place::Local(path) => Ok(Held::File {
            _file: lock_file(path, folder)?,
        }),
        Place::Object(store, key) => match Lease::take(store, key, terms) {
            Ok(lease) => Ok(Held::Lease(lease)),
            Err(Refusal::Taken(holder)) => Err(taken(&holder, folder)),
            Err(Refusal::Failed(error)) => Err(error),
        },
    }
}

fn taken(holder: &str, folder: &ServerFolder) -> Error {
    Error::locked(format!("{holder} is working in {} already", folder.root()))
        .hint("wait until it has ended, then run the same command again")
}

fn lock_file(path: &Path, folder: &ServerFolder) -> Result<File> {
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
            return Err(taken(&holder, folder));
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
