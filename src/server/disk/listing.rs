//! All files of the data directory, as the file system lists them.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Errno;

use super::DataDirectory;
use crate::error::{Error, Result};
use crate::parallel;
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

/// How many entries of a folder are looked at together.
const TOGETHER: usize = 16 * 1024;

/// What there is of an entry that a backup may keep.
enum Look {
    /// It was removed just now, or leads nowhere.
    Nothing,
    File(State),
    Folder(State),
    /// A link that PostgreSQL itself follows.
    LinkToFolder(State),
    /// One that nobody follows.
    Link,
    /// A pipe, socket or device.
    Special,
}

impl Walk<'_> {
    fn folder(&mut self, within: &str) -> Result<()> {
        let failed = |error: Errno| self.directory.failed("list", within, &error.into());
        let Some(folder) = self.directory.folder(within).map_err(failed)? else {
            return Ok(());
        };
        let mut entries = Dir::read_from(&folder).map_err(failed)?;
        let mut is_at_end = false;
        while !std::mem::replace(&mut is_at_end, true) {
            let mut names = Vec::new();
            for entry in entries.by_ref().take(TOGETHER) {
                is_at_end = false;
                let entry = entry.map_err(failed)?;
                match entry.file_name().to_str() {
                    Ok(name) if stays_inside(name) => names.push(name.to_owned()),
                    Ok(_) => {}
                    Err(_) => {
                        let name = entry.file_name().to_bytes().escape_ascii().to_string();
                        self.left_out.unnameable.push(join(within, &name));
                    }
                }
            }
            // Each look is a call of the system.
            let looks = parallel::map(&names, |name| {
                let path = join(within, name);
                self.look(&folder, &path, name).map(|look| (path, look))
            });
            for look in looks {
                let (path, look) = look?;
                self.take(path, look);
            }
        }
        Ok(())
    }

    fn take(&mut self, path: String, look: Look) {
        match look {
            Look::Nothing => {}
            Look::Link => self.left_out.links.push(path),
            Look::Special => self.left_out.special.push(path),
            Look::File(state) => self.listing.push(&path, state),
            Look::Folder(state) | Look::LinkToFolder(state) => {
                if matches!(look, Look::LinkToFolder(_)) {
                    self.followed.push(path.clone());
                }
                if self.cluster.keeps(&path) {
                    self.listing.push(&path, state);
                    if self.cluster.rules.descends_into(&path) {
                        self.folders.push(path);
                    }
                }
            }
        }
    }

    fn look(&self, folder: &OwnedFd, path: &str, name: &str) -> Result<Look> {
        if !self.cluster.is_own_file(path) && !self.cluster.keeps(path) {
            return Ok(Look::Nothing);
        }
        let stat = |flags| match statat(folder.as_fd(), name, flags) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.directory.failed("look at", path, &error.into())),
        };
        let Some(found) = stat(AtFlags::SYMLINK_NOFOLLOW)? else {
            return Ok(Look::Nothing);
        };
        if file_type(&found) != FileType::Symlink {
            return Ok(match file_type(&found) {
                FileType::RegularFile => Look::File(state(&found)),
                FileType::Directory => Look::Folder(state(&found)),
                _ => Look::Special,
            });
        }
        if !self.cluster.follows(path) {
            return Ok(Look::Link);
        }
        let Some(target) = stat(AtFlags::empty())? else {
            return Ok(Look::Nothing);
        };
        Ok(match file_type(&target) {
            FileType::Directory if self.cluster.is_strange_folder(path) => Look::Link,
            FileType::Directory => Look::LinkToFolder(state(&target)),
            FileType::RegularFile => Look::File(state(&target)),
            _ => Look::Special,
        })
    }
}

fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn state(stat: &Stat) -> State {
    State {
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        modified: stat.st_mtime,
        is_directory: file_type(stat) == FileType::Directory,
    }
}
