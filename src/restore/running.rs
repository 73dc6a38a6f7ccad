//! Servers that run on this machine, and the folders that are theirs.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use crate::error::{Error, Result};

/// Who runs in a data directory, in its first line (utils/pidfile.h).
const LOCK_FILE: &str = "postmaster.pid";

/// An error where a server runs in this data directory.
pub(super) fn refuse_data_directory(data_directory: &Path) -> Result<()> {
    match postmaster(data_directory) {
        Some(pid) if is_alive(pid) => Err(is_running(data_directory, pid)),
        _ => Ok(()),
    }
}

/// An error where a server works in this folder, whatever is left of its lock file.
pub(super) fn refuse_server_in(folder: &Metadata, path: &Path) -> Result<()> {
    let is_here = |process: &Process| {
        fs::metadata(&process.works_in).is_ok_and(|found| is_same(&found, folder))
    };
    match processes().find(|process| is_here(process) && process.is_postgres()) {
        Some(Process { pid, .. }) => Err(is_running(path, pid)),
        None => Ok(()),
    }
}

fn is_running(data_directory: &Path, pid: Pid) -> Error {
    Error::failed(format!(
        "a server is running in {}, process {}",
        data_directory.display(),
        pid.as_raw_nonzero()
    ))
    .hint("stop it first, or restore into another directory")
}

/// An error where a server that runs has its WAL in this folder.
pub(super) fn refuse_wal(folder: &Path) -> Result<()> {
    let Ok(ours) = fs::metadata(folder) else {
        return Ok(());
    };
    let is_this = |data_directory: &PathBuf| {
        fs::metadata(data_directory.join("pg_wal")).is_ok_and(|found| is_same(&found, &ours))
    };
    match data_directories().find(is_this) {
        None => Ok(()),
        Some(data_directory) => Err(Error::failed(format!(
            "{} holds the WAL of the server that is running in {}",
            folder.display(),
            data_directory.display()
        ))),
    }
}

/// An error where a server that runs has a tablespace in this folder. For root those of all accounts are found, for
/// anybody else their own.
pub(super) fn refuse_tablespace(folder: &Path) -> Result<()> {
    let Ok(ours) = fs::metadata(folder) else {
        return Ok(());
    };
    let is_this = |link: &Path| fs::metadata(link).is_ok_and(|found| is_same(&found, &ours));
    for data_directory in data_directories() {
        let links = fs::read_dir(data_directory.join("pg_tblspc"));
        let mut links = links.into_iter().flatten().flatten();
        if links.any(|link| is_this(&link.path())) {
            return Err(Error::failed(format!(
                "{} is a tablespace of the server that is running in {}",
                folder.display(),
                data_directory.display()
            )));
        }
    }
    Ok(())
}

/// Where servers run: each works in its data directory.
fn data_directories() -> impl Iterator<Item = PathBuf> {
    let postmasters = processes().filter(|one| postmaster(&one.works_in) == Some(one.pid));
    postmasters.map(|process| process.works_in)
}

/// A process of this machine whose folder we may know.
struct Process {
    pid: Pid,
    works_in: PathBuf,
}

impl Process {
    /// Whether it is a server's, by the name of its program.
    fn is_postgres(&self) -> bool {
        let name = fs::read_to_string(format!("/proc/{}/comm", self.pid.as_raw_nonzero()));
        name.is_ok_and(|name| name.trim_end() == "postgres")
    }
}

fn processes() -> impl Iterator<Item = Process> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|process| {
        let pid: i32 = process.file_name().to_str()?.parse().ok()?;
        Some(Process {
            pid: Pid::from_raw(pid)?,
            works_in: fs::read_link(process.path().join("cwd")).ok()?,
        })
    })
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// The process that a data directory belongs to, or did. That of `postgres --single` is noted below zero
/// (utils/init/miscinit.c, CreateLockFile).
fn postmaster(data_directory: &Path) -> Option<Pid> {
    let content = fs::read_to_string(data_directory.join(LOCK_FILE)).ok()?;
    let noted: i32 = content.lines().next()?.trim().parse().ok()?;
    Pid::from_raw(noted.checked_abs()?)
}

fn is_alive(pid: Pid) -> bool {
    match rustix::process::test_kill_process(pid) {
        Ok(()) => true,
        // It exists, and is another user's.
        Err(error) => error == rustix::io::Errno::PERM,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn whatever_a_lock_file_says_is_understood() {
        let folder = tempfile::tempdir().unwrap();
        let noted = |content: &str| {
            fs::write(folder.path().join(LOCK_FILE), content).unwrap();
            postmaster(folder.path()).map(|pid| pid.as_raw_nonzero().get())
        };
        assert_eq!(noted("4711\n/data\n"), Some(4711));
        assert_eq!(noted("-4711\n/data\n"), Some(4711));
        for nobody in ["", "\n", "x\n", "0\n", "-2147483648\n", "99999999999\n"] {
            assert_eq!(noted(nobody), None, "{nobody:?}");
        }
    }
}
