//! A folder that is held open while it is written to.
//!
//! Root restores into folders of the server's account, which may rename them and put links into them meanwhile. What is
//! made below a folder that is held lands in that very folder, whatever its name leads to by then, and no link leads out
//! of it.

use std::cmp::Reverse;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, Permissions, TryLockError};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, DirBuilder, DirBuilderExt, MetadataExt as _, OpenOptions, OpenOptionsExt};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, openat2};

use crate::error::{Error, Result};
use crate::storage::durable;

/// Whom files and folders are given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

const ROOT: Account = Account { uid: 0, gid: 0 };

impl Account {
    /// Whose a file or folder is.
    pub(crate) fn owning(metadata: &Metadata) -> Account {
        Account {
            uid: metadata.uid(),
            gid: metadata.gid(),
        }
    }

    /// The first folder on the way to a path, itself included, that the account may not enter; groups besides its own
    /// are not known here.
    pub(crate) fn kept_out_of(self, path: &Path) -> Option<PathBuf> {
        let is_closed = |folder: &&Path| {
            let Ok(found) = folder.metadata() else {
                return false;
            };
            let bits = self.bits(&found, 0o1);
            self.uid != 0 && found.is_dir() && found.mode() & bits == 0
        };
        let closed = path.ancestors().filter(is_closed).last();
        closed.map(Path::to_owned)
    }

    /// What keeps the account from reading a file, or from what a folder holds.
    pub(crate) fn kept_from(self, path: &Path) -> Option<PathBuf> {
        self.kept_out_of(path).or_else(|| {
            let found = path.metadata().ok().filter(Metadata::is_file)?;
            let bits = self.bits(&found, 0o4);
            (self.uid != 0 && found.mode() & bits == 0).then(|| path.to_owned())
        })
    }

    /// Those of the owner, the group or all, as they concern the account.
    fn bits(self, found: &Metadata, of_all: u32) -> u32 {
        match Account::owning(found) {
            owner if owner.uid == self.uid => of_all << 6,
            owner if owner.gid == self.gid => of_all << 3,
            _ => of_all,
        }
    }

    /// Makes it the owner of an open file or folder.
    pub(crate) fn own(self, file: &File) -> io::Result<()> {
        fchown(file, Some(self.uid), Some(self.gid))
    }
}

/// A path without links, as far as it exists.
pub(crate) fn real(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).map_err(|error| Error::io("find", path, &error))?;
    let existing = path.ancestors().find_map(|above| {
        let real = above.canonicalize().ok()?;
        Some(real.join(path.strip_prefix(above).ok()?))
    });
    Ok(existing.unwrap_or(path))
}

/// What a folder holds of a name.
pub(crate) struct Entry {
    pub(crate) name: OsString,
    pub(crate) metadata: cap_std::fs::Metadata,
}

/// A folder that is held open.
#[derive(Debug)]
pub struct Folder {
    dir: Dir,
    /// The same, open for reading: what is open as a place alone can neither be synced nor given away.
    readable: File,
    path: PathBuf,
    /// The folders that were made below it.
    made: Mutex<Vec<PathBuf>>,
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

impl Folder {
    /// Holds the folder that a path leads to now.
    pub(crate) fn open(path: &Path) -> Result<Folder> {
        let open = Dir::open_ambient_dir(path, ambient_authority());
        Folder::hold(open, path.to_owned())
    }

    /// The same, where no link is on the way.
    pub(crate) fn open_without_links(path: &Path) -> Result<Folder> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolved = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
        let open = resolved.map(|folder| Dir::from_std_file(folder.into()));
        Folder::hold(open.map_err(io::Error::from), path.to_owned()).map_err(|error| {
            error.hint(
                "name its real path, without links, or make the folder that is missing yourself",
            )
        })
    }

    /// Holds the folder that a path leads to, which is made with mode 0700 where it is missing.
    pub fn create(path: &Path) -> Result<Folder> {
        durable::create_folder(path)?;
        Folder::open(path)
    }

    /// Holds a folder below this one.
    pub(crate) fn subfolder(&self, inside: &Path) -> Result<Folder> {
        Folder::hold(self.dir.open_dir(inside), self.path.join(inside))
    }

    /// Holds a folder below this one, which must not be a link.
    pub(crate) fn real_subfolder(&self, name: &Path) -> Result<Folder> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = rustix::fs::openat(&self.dir, name, flags, Mode::empty());
        let open = open.map(|folder| Dir::from_std_file(folder.into()));
        Folder::hold(open.map_err(io::Error::from), self.path.join(name))
    }

    fn hold(open: io::Result<Dir>, path: PathBuf) -> Result<Folder> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let held = open.and_then(|dir| {
            let readable = File::from(rustix::fs::openat(&dir, ".", flags, Mode::empty())?);
            Ok((dir, readable))
        });
        match held {
            Ok((dir, readable)) => Ok(Folder {
                dir,
                readable,
                path,
                made: Mutex::default(),
            }),
            Err(error) => Err(Error::io("open the folder", &path, &error)),
        }
    }

    /// The same folder, held once more.
    pub(crate) fn again(&self) -> Result<Folder> {
        Folder::hold(self.dir.try_clone(), self.path.clone())
    }

    /// Its name in the folder above, when it was opened.
    pub(crate) fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    /// What it was called when it was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Who owns it, and on which file system it is.
    pub(crate) fn metadata(&self) -> Result<Metadata> {
        let metadata = self.readable.metadata();
        metadata.map_err(|error| Error::io("look at", &self.path, &error))
    }

    /// How much room its file system has left for us, in bytes.
    pub(crate) fn room(&self) -> Result<u64> {
        let room = rustix::fs::fstatvfs(&self.readable)
            .map_err(|error| Error::io("look at", &self.path, &error.into()))?;
        Ok(room.f_bavail.saturating_mul(room.f_frsize))
    }

    /// Whether it has something of this name.
    pub(crate) fn has(&self, inside: &Path) -> Result<bool> {
        self.find(inside).map(|found| found.is_some())
    }

    /// Whether it has a folder of this name, which is not a link.
    pub(crate) fn has_real_folder(&self, inside: &Path) -> Result<bool> {
        let found = self.find(inside)?;
        Ok(found.is_some_and(|found| found.is_dir()))
    }

    /// Whether it has a link of this name.
    pub(crate) fn has_link(&self, inside: &Path) -> Result<bool> {
        let found = self.find(inside)?;
        Ok(found.is_some_and(|found| found.is_symlink()))
    }

    /// What has this name, be it a link.
    fn find(&self, inside: &Path) -> Result<Option<cap_std::fs::Metadata>> {
        match self.dir.symlink_metadata(inside) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("look at", inside, &error)),
        }
    }

    /// Where a link leads.
    pub(crate) fn read_link(&self, inside: &Path) -> Result<PathBuf> {
        let target = self.dir.read_link_contents(inside);
        target.map_err(|error| self.failed("read the link", inside, &error))
    }

    /// All it holds; no link is followed.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>> {
        let failed = |error| Error::io("read the folder", &self.path, &error);
        let mut entries = Vec::new();
        for entry in self.dir.entries().map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let metadata = self.find(Path::new(&name))?;
            entries.extend(metadata.map(|metadata| Entry { name, metadata }));
        }
        Ok(entries)
    }

    /// Opens a regular file; nothing where there is none, or where it may not be opened.
    pub(crate) fn open_file(
        &self,
        inside: &Path,
        writes: bool,
    ) -> Result<Option<(File, Metadata)>> {
        let Some(found) = self.find(inside)?.filter(|found| found.is_file()) else {
            return Ok(None);
        };
        let opened = self
            .dir
            .open_with(inside, OpenOptions::new().read(true).write(writes))
            .and_then(|file| {
                let file = file.into_std();
                let metadata = file.metadata()?;
                Ok((file, metadata))
            });
        match opened {
            Ok((file, opened)) => {
                let is_same = (opened.dev(), opened.ino()) == (found.dev(), found.ino());
                Ok(is_same.then_some((file, opened)))
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            Err(error) => Err(self.failed("open", inside, &error)),
        }
    }

    /// Reads the begin of a regular file, up to so many bytes; nothing where there is none.
    pub(crate) fn read(&self, inside: &Path, most: usize) -> Result<Option<(Vec<u8>, Metadata)>> {
        let Some((file, metadata)) = self.open_file(inside, false)? else {
            return Ok(None);
        };
        let mut content = Vec::new();
        match file.take(most as u64).read_to_end(&mut content) {
            Ok(_) => Ok(Some((content, metadata))),
            Err(error) => Err(self.failed("read", inside, &error)),
        }
    }

    /// Gives it exactly this mode, and to root where root restores for another account.
    pub(crate) fn take(&self, mode: u32, from_account: bool) -> Result<()> {
        if from_account {
            self.own(ROOT)?;
        }
        self.readable
            .set_permissions(Permissions::from_mode(mode))
            .map_err(|error| Error::io("change the mode of", &self.path, &error))
    }

    /// Gives it to an account.
    pub(crate) fn own(&self, account: Account) -> Result<()> {
        account
            .own(&self.readable)
            .map_err(|error| Error::io("give away", &self.path, &error))
    }

    /// Creates a folder below this one, and those above it that are missing, with exactly this mode.
    pub(crate) fn create_folders(&self, inside: &Path, mode: u32) -> Result<()> {
        let above = inside.ancestors().filter(|one| !one.as_os_str().is_empty());
        let mut missing = Vec::new();
        for folder in above {
            if self.has(folder)? {
                break;
            }
            missing.push(folder);
        }
        for folder in missing.into_iter().rev() {
            self.dir
                .create_dir_with(folder, DirBuilder::new().mode(mode))
                .map_err(|error| self.failed("create the folder", folder, &error))?;
            // Whatever the umask took away.
            self.subfolder(folder)?.take(mode, false)?;
            self.made().push(folder.to_owned());
        }
        Ok(())
    }

    /// Creates a file below this folder with exactly this mode, for an account where one is named.
    pub(crate) fn create_file(
        &self,
        inside: &Path,
        mode: u32,
        account: Option<Account>,
    ) -> Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(mode);
        let created = self.dir.open_with(inside, &options).and_then(|file| {
            let file = file.into_std();
            // Whatever the umask took away.
            file.set_permissions(Permissions::from_mode(mode))?;
            account.map_or(Ok(()), |account| account.own(&file))?;
            Ok(file)
        });
        created.map_err(|error| self.failed("create", inside, &error))
    }

    /// Creates a link below this folder to wherever.
    pub(crate) fn create_link(
        &self,
        inside: &Path,
        target: &Path,
        account: Option<Account>,
    ) -> Result<()> {
        let created = self.dir.symlink_contents(target, inside).and_then(|()| {
            let Some(Account { uid, gid }) = account else {
                return Ok(());
            };
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            Ok(chownat(
                &self.dir,
                inside,
                uid,
                gid,
                AtFlags::SYMLINK_NOFOLLOW,
            )?)
        });
        created.map_err(|error| self.failed("create the link", inside, &error))
    }

    /// Renames what is below this folder.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.dir
            .rename(from, &self.dir, to)
            .map_err(|error| self.failed("rename", from, &error))
    }

    /// Removes a file, or a folder with all it holds, but follows no link; that it is not there is fine.
    pub(crate) fn remove(&self, inside: &Path) -> Result<()> {
        let removed = self.dir.symlink_metadata(inside).and_then(|found| {
            if found.is_dir() {
                self.dir.remove_dir_all(inside)
            } else {
                self.dir.remove_file(inside)
            }
        });
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed("remove", inside, &error))
            }
            _ => Ok(()),
        }
    }

    /// Removes what is no folder; that it is not there is fine.
    pub(crate) fn remove_file(&self, inside: &Path) -> Result<()> {
        match self.dir.remove_file(inside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed("remove", inside, &error))
            }
            _ => Ok(()),
        }
    }

    /// Removes all it holds.
    pub(crate) fn empty(&self) -> Result<()> {
        let failed = |error| Error::io("read the folder", &self.path, &error);
        for entry in self.dir.entries().map_err(failed)? {
            self.remove(Path::new(&entry.map_err(failed)?.file_name()))?;
        }
        Ok(())
    }

    /// Gives the folders that were made below this one to the account, the deepest first: it reaches none of them before
    /// it has the highest.
    pub(crate) fn give_away(&self, account: Account) -> Result<()> {
        let made = self.deepest_first();
        made.iter()
            .try_for_each(|inside| self.subfolder(inside)?.own(account))
    }

    /// Removes the folders that were made below this one, if they are empty.
    pub(crate) fn remove_made(&self) -> Result<()> {
        self.deepest_first()
            .iter()
            .try_for_each(|inside| match self.dir.remove_dir(inside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(self.failed("remove", inside, &error))
                }
                _ => Ok(()),
            })
    }

    fn deepest_first(&self) -> Vec<PathBuf> {
        let mut made = std::mem::take(&mut *self.made());
        made.sort_by_key(|folder| Reverse(folder.components().count()));
        made
    }

    /// Keeps others of us out of it for as long as it is held, where its file system has such locks.
    pub(crate) fn lock(&self) -> Result<()> {
        match self.readable.try_lock() {
            Err(TryLockError::WouldBlock) => Err(Error::locked(format!(
                "another restore is at work in {}",
                self.path.display()
            ))),
            _ => Ok(()),
        }
    }

    /// Makes the names in it durable.
    pub(crate) fn sync(&self) -> Result<()> {
        let synced = self.readable.sync_all();
        synced.map_err(|error| Error::io("sync", &self.path, &error))
    }

    /// Makes everything written so far on its file system durable.
    pub(crate) fn sync_file_system(&self) -> Result<()> {
        let synced = rustix::fs::syncfs(&self.readable);
        synced.map_err(|error| Error::io("sync", &self.path, &error.into()))
    }

    fn made(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, action: &str, inside: &Path, error: &io::Error) -> Error {
        Error::io(action, &self.path.join(inside), error)
    }
}
