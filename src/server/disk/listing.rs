//! All files of the data directory, as the file system lists them.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Errno;

use super::DataDirectory;
use crate::error::{Error, Result};
use crate::pg::relative_path::stays_inside;
use crate::server::links::State;
use crate::server::listing::{Cluster, LeftOut, Listing, join};
use crate::server::reading::FileReader;

impl DataDirectory {
    /// Lists it, but for what the rules leave out anyway.
    pub(in crate::server) fn list(
        &self,
        cluster: Cluster<'_>,
        reader: &mut FileReader,
        listing: &mut Listing,
    ) -> Result<()> {
        let mut walk = Walk {
            directory: self,
            cluster,
            listing,
            followed: Vec::new(),
            left_out: LeftOut::default(),
            folders: vec![String::new()],
        };
        while let Some(folder) = walk.folders.pop() {
            walk.folder(&folder)?;
        }
        walk.left_out.warn();
        // A link that is gone by now led to what was just being dropped.
        for path in walk.followed {
            if !self.is_the_same(&path, reader)? && reader.state(&path)?.is_some() {
                return Err(Error::server(format!(
                    "{path} in the server's data directory is a link that leads to another folder here than for the server"
                ))
                .hint("set source = sql, or run pgkeep where it sees the same disks as the server"));
            }
        }
        Ok(())
    }

    fn folder(&self, path: &str) -> Result<Option<OwnedFd>, Errno> {
        let path = if path.is_empty() { "." } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat(&self.folder, path, flags, Mode::empty()) {
            Ok(folder) => Ok(Some(folder)),
            // It was removed just now.
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

struct Walk<'a> {
    directory: &'a DataDirectory,
    cluster: Cluster<'a>,
    listing: &'a mut Listing,
    /// Links to folders that were followed.
    followed: Vec<String>,
    left_out: LeftOut,
    /// Those that are still to be looked into.
    folders: Vec<String>,
}

impl Walk<'_> {
    fn folder(&mut self, within: &str) -> Result<()> {
        let failed = |error: Errno| self.directory.failed("list", within, &error.into());
        let Some(folder) = self.directory.folder(within).map_err(failed)? else {
            return Ok(());
        };
        for entry in Dir::read_from(&folder).map_err(failed)? {
            let entry =
                entry.map_err(|error| self.directory.failed("list", within, &error.into()))?;
            let Ok(name) = entry.file_name().to_str() else {
                let name = entry.file_name().to_bytes().escape_ascii().to_string();
                self.left_out.unnameable.push(join(within, &name));
                continue;
            };
            if stays_inside(name) {
                self.entry(&folder, within, name)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, folder: &OwnedFd, within: &str, name: &str) -> Result<()> {
        let path = join(within, name);
        let is_own_file = self.cluster.is_own_file(&path);
        if !is_own_file && !self.cluster.keeps(&path) {
            return Ok(());
        }
        let Some(stat) = self.stat(folder, &path, name, AtFlags::SYMLINK_NOFOLLOW)? else {
            return Ok(());
        };
        let found = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink if self.cluster.follows(&path) => {
                let Some(target) = self.stat(folder, &path, name, AtFlags::empty())? else {
                    return Ok(());
                };
                let is_directory = is_directory(&target);
                if is_directory && self.cluster.is_strange_folder(&path) {
                    self.left_out.links.push(path);
                    return Ok(());
                }
                if is_directory {
                    self.followed.push(path.clone());
                }
                target
            }
            FileType::Symlink => {
                self.left_out.links.push(path);
                return Ok(());
            }
            _ => stat,
        };
        match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => self.listing.push(&path, state(&found)),
            FileType::Directory if self.cluster.keeps(&path) => {
                self.listing.push(&path, state(&found));
                if self.cluster.rules.descends_into(&path) {
                    self.folders.push(path);
                }
            }
            FileType::Directory => {}
            _ => self.left_out.special.push(path),
        }
        Ok(())
    }

    /// What is there; nothing where it was removed just now, or a link leads nowhere.
    fn stat(
        &self,
        folder: &OwnedFd,
        path: &str,
        name: &str,
        flags: AtFlags,
    ) -> Result<Option<Stat>> {
        match statat(folder.as_fd(), name, flags) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.directory.failed("look at", path, &error.into())),
        }
    }
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn state(stat: &Stat) -> State {
    State {
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        modified: stat.st_mtime,
        is_directory: is_directory(stat),
    }
}
