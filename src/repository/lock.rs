//! The one writer of a server's folder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;

use crate::error::{Error, Result};
use crate::repository::layout::ServerFolder;

/// Held as long as this lives; the kernel lets it go when the process ends, however it ends.
#[derive(Debug)]
pub struct ServerLock {
    _file: File,
}

impl ServerLock {
    /// Takes the lock at once, or says who has it.
    pub fn take(folder: &ServerFolder) -> Result<ServerLock> {
        let path = folder.lock();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Error::io("open", &path, &error))?;
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
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path, &error)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|error| Error::io("write", &path, &error))?;
        Ok(ServerLock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::error::Kind;

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
}
