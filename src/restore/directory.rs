//! The data directory while it is being restored.

use std::cmp::Reverse;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink,
};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::pg::control::CONTROL_FILE;
use crate::pg::relation::positive_number;
use crate::pg::version::Major;
use crate::pg::wal::CreatedTablespace;
use crate::repository::contents::Contents;
use crate::repository::durable;
use crate::restore::tablespaces::{Placed, elsewhere};

/// Where `global/pg_control` waits until everything else is on disk.
const WAITING_CONTROL_FILE: &str = "global/pg_control.restoring";

/// A data directory that this restore owns. Dropped before it is complete, it is emptied again.
pub(super) struct DataDirectory {
    root: PathBuf,
    tablespaces: Vec<Placed>,
    /// The folders in which recovery will create tablespaces.
    created: Vec<PathBuf>,
    version_directory: String,
    group_access: bool,
    owner: Option<(u32, u32)>,
    /// The folders that were made, to be given away once nothing more is written into them by name: whoever
    /// has a folder can put links into it.
    made: Mutex<Vec<PathBuf>>,
    root_is_new: bool,
    complete: bool,
}

impl DataDirectory {
    /// Makes sure that nothing is lost and nobody is running there; with `force` what is there goes. The same
    /// holds for the folders of tablespaces that recovery will create, which takes over what is in there.
    pub(super) fn claim(
        root: &Path,
        contents: &Contents,
        tablespaces: &[Placed],
        created: &[CreatedTablespace],
        force: bool,
    ) -> Result<DataDirectory> {
        let info = &contents.info;
        let major = Major::from_number(info.major_version)
            .ok_or_else(|| Error::damage("backup.info has an unknown major version"))?;
        let version_directory = major.tablespace_directory();
        refuse_running_server(root)?;
        if tablespaces.iter().any(|tablespace| tablespace.is_original)
            && let Some(data_directory) = &info.data_directory
        {
            let running = refuse_running_server(Path::new(data_directory));
            running.map_err(|error| {
                error.hint("its tablespaces are in use: give the restored cluster others with --tablespace OLD=NEW")
            })?;
        }
        let folders = tablespaces
            .iter()
            .map(|tablespace| tablespace.folder.as_path());
        let extra = extra_folder(root);
        for folder in [root, extra.as_path()].into_iter().chain(folders) {
            if !force && !is_empty(folder)? {
                return Err(Error::failed(format!("{} is not empty", folder.display())).hint(
                    if folder == root || folder == extra {
                        "restore into another directory, or replace what is there with --force"
                    } else {
                        "give the tablespace another folder with --tablespace OLD=NEW, or replace what is there with --force"
                    },
                ));
            }
        }
        for created in created {
            let is_placed = |placed: &Placed| placed.folder == created.folder;
            if !tablespaces.iter().any(is_placed) {
                claim_created(created, info.data_directory.as_deref(), force)?;
            }
        }
        let parent = root.parent().unwrap_or(Path::new("/"));
        durable::create_folder(parent)?;
        let directory = DataDirectory {
            root: root.to_owned(),
            tablespaces: tablespaces.to_vec(),
            created: created
                .iter()
                .map(|created| created.folder.clone())
                .collect(),
            version_directory,
            group_access: info.group_access,
            owner: owner_for(parent)?,
            made: Mutex::default(),
            root_is_new: !root.exists(),
            complete: false,
        };
        directory.empty()?;
        Ok(directory)
    }

    /// Where a path of PGDATA is written: below the root, or in a tablespace's folder.
    pub(super) fn path(&self, relative: &str) -> PathBuf {
        if relative == CONTROL_FILE {
            return self.root.join(WAITING_CONTROL_FILE);
        }
        match self.in_tablespace(relative) {
            Some((tablespace, "")) => tablespace.folder.clone(),
            Some((tablespace, inside)) => tablespace.folder.join(inside),
            None => self.root.join(relative),
        }
    }

    /// The tablespace with a folder of its own that a path is in, and the rest of the path.
    fn in_tablespace<'a>(&self, relative: &'a str) -> Option<(&Placed, &'a str)> {
        let path = relative.strip_prefix("pg_tblspc/")?;
        let (oid, inside) = path.split_once('/').unwrap_or((path, ""));
        let oid = positive_number(oid)?;
        let tablespace = self.tablespaces.iter().find(|one| one.oid == oid)?;
        Some((tablespace, inside))
    }

    /// Where further files of the server go: beside the data directory.
    pub(super) fn extra_path(&self, absolute: &str) -> PathBuf {
        extra_folder(&self.root).join(absolute.trim_start_matches('/'))
    }

    /// Creates the folders above a further file, all of them the owner's.
    pub(super) fn create_extra_folders(&self, absolute: &str) -> Result<()> {
        let top = extra_folder(&self.root);
        let path = self.extra_path(absolute);
        let mut missing: Vec<&Path> = path
            .ancestors()
            .skip(1)
            .take_while(|folder| folder.starts_with(&top))
            .filter(|folder| !folder.exists())
            .collect();
        missing.reverse();
        missing
            .into_iter()
            .try_for_each(|folder| self.create_folder(folder))
    }

    /// All folders that are written to, each once a file system at least.
    pub(super) fn folders(&self) -> impl Iterator<Item = &Path> {
        let tablespaces = self
            .tablespaces
            .iter()
            .map(|tablespace| tablespace.folder.as_path());
        [self.root.as_path()].into_iter().chain(tablespaces)
    }

    /// Creates the directories of PGDATA, and the links of tablespaces.
    pub(super) fn create_folders(&self, directories: &[String]) -> Result<()> {
        self.create_folder(&self.root)?;
        for directory in directories {
            self.create_folder(&self.path(directory))?;
        }
        for tablespace in &self.tablespaces {
            self.create_folder(&tablespace.folder)?;
            let link = self.root.join(format!("pg_tblspc/{}", tablespace.oid));
            symlink(&tablespace.folder, &link)
                .map_err(|error| Error::io("create the link", &link, &error))?;
            if let Some((user, group)) = self.owner {
                lchown(&link, Some(user), Some(group))
                    .map_err(|error| Error::io("give away", &link, &error))?;
            }
        }
        // Replay makes the link, and what is in the folder, but not the folder itself.
        self.created
            .iter()
            .try_for_each(|folder| self.create_folder(folder))
    }

    /// Creates a folder with the mode PostgreSQL demands, and those above it that are missing: the server
    /// has to get there.
    fn create_folder(&self, path: &Path) -> Result<()> {
        let mode = if self.group_access { 0o750 } else { 0o700 };
        let above = path.ancestors().skip(1);
        let missing: Vec<&Path> = above.take_while(|folder| !folder.exists()).collect();
        for folder in missing.into_iter().rev().chain([path]) {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(folder)
                .and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(mode)))
                .map_err(|error| Error::io("create the folder", folder, &error))?;
            let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            made.push(folder.to_owned());
        }
        Ok(())
    }

    /// Creates a file with the mode PostgreSQL demands.
    pub(super) fn create_file(&self, path: &Path) -> Result<fs::File> {
        let mode = if self.group_access { 0o640 } else { 0o600 };
        let created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path);
        created
            .and_then(|file| {
                // Whatever the umask took away.
                file.set_permissions(fs::Permissions::from_mode(mode))?;
                if let Some((user, group)) = self.owner {
                    std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
                }
                Ok(file)
            })
            .map_err(|error| Error::io("create", path, &error))
    }

    /// Gives all folders to the account, the deepest first: it reaches none of them before it has the root.
    fn give_folders_away(&self) -> Result<()> {
        let Some((user, group)) = self.owner else {
            return Ok(());
        };
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let mut folders: Vec<&Path> = made.iter().map(PathBuf::as_path).collect();
        folders.sort_by_key(|folder| Reverse(folder.components().count()));
        folders.into_iter().try_for_each(|folder| {
            lchown(folder, Some(user), Some(group))
                .map_err(|error| Error::io("give away", folder, &error))
        })
    }

    /// Syncs everything, and only then lets the cluster be started.
    pub(super) fn complete(mut self) -> Result<()> {
        self.sync()?;
        let waiting = self.root.join(WAITING_CONTROL_FILE);
        fs::rename(&waiting, self.root.join(CONTROL_FILE))
            .map_err(|error| Error::io("rename", &waiting, &error))?;
        self.complete = true;
        durable::sync_folder(&self.root.join("global"))?;
        durable::sync_folder(&self.root)?;
        durable::sync_folder(self.root.parent().unwrap_or(Path::new("/")))?;
        self.give_folders_away()
    }

    fn sync(&self) -> Result<()> {
        let mut synced = Vec::new();
        for folder in self.folders() {
            let device = fs::metadata(folder)
                .map_err(|error| Error::io("look at", folder, &error))?
                .dev();
            if !synced.contains(&device) {
                durable::sync_file_system(folder)?;
                synced.push(device);
            }
        }
        Ok(())
    }

    /// Removes what is in the data directory, pg_control first, and this version's part of the tablespaces.
    fn empty(&self) -> Result<()> {
        remove_file(&self.root.join(CONTROL_FILE))?;
        durable::remove_folder(&extra_folder(&self.root))?;
        let placed = self.tablespaces.iter().map(|tablespace| &tablespace.folder);
        for folder in placed.chain(&self.created) {
            durable::remove_folder(&folder.join(&self.version_directory))?;
        }
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|error| Error::io("read the folder", &self.root, &error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| Error::io("read the folder", &self.root, &error))?;
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder {
                durable::remove_folder(&entry.path())?;
            } else {
                remove_file(&entry.path())?;
            }
        }
        Ok(())
    }
}

impl Drop for DataDirectory {
    fn drop(&mut self) {
        if self.complete {
            return;
        }
        // A restore that failed has told why. What remains cannot be started, without pg_control.
        let _ = self.empty();
        if self.root_is_new {
            let _ = fs::remove_dir(&self.root);
        }
    }
}

/// The folder in which recovery will create a tablespace must be free. A server that runs may be the one whose it is.
fn claim_created(
    created: &CreatedTablespace,
    data_directory: Option<&str>,
    force: bool,
) -> Result<()> {
    let CreatedTablespace { at, oid, folder } = created;
    if is_empty(folder)? {
        return Ok(());
    }
    let running = refuse_running_server(Path::new(data_directory.unwrap_or_default()));
    let why = match running {
        Err(running) => running.message().to_owned(),
        Ok(()) if force => return Ok(()),
        Ok(()) => format!("{} is not empty", folder.display()),
    };
    Err(Error::failed(format!(
        "recovery would create tablespace {oid} in {}, as the server did at {at}, and take over what is in there: {why}",
        folder.display()
    ))
    .hint(elsewhere(created)))
}

/// Further files go beside the data directory, where pg_verifybackup does not look.
fn extra_folder(root: &Path) -> PathBuf {
    let mut folder = root.to_owned().into_os_string();
    folder.push("-extra");
    folder.into()
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path, &error))
        }
        _ => Ok(()),
    }
}

fn is_empty(folder: &Path) -> Result<bool> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Error::io("read the folder", folder, &error)),
    }
}

/// `postmaster.pid` names the process in its first line (utils/pidfile.h).
fn refuse_running_server(data_directory: &Path) -> Result<()> {
    let Ok(content) = fs::read_to_string(data_directory.join("postmaster.pid")) else {
        return Ok(());
    };
    let pid = content
        .lines()
        .next()
        .and_then(|line| line.trim().parse().ok())
        .and_then(rustix::process::Pid::from_raw);
    match pid {
        Some(pid) if is_alive(pid) => Err(Error::failed(format!(
            "a server is running in {}, process {}",
            data_directory.display(),
            pid.as_raw_nonzero()
        ))
        .hint("stop it first, or restore into another directory")),
        _ => Ok(()),
    }
}

fn is_alive(pid: rustix::process::Pid) -> bool {
    match rustix::process::test_kill_process(pid) {
        Ok(()) => true,
        // It exists, and is another user's.
        Err(error) => error == rustix::io::Errno::PERM,
    }
}

/// PostgreSQL does not run as root: what root restores goes to the owner of the folder above.
fn owner_for(parent: &Path) -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let parent = fs::metadata(parent).map_err(|error| Error::io("look at", parent, &error))?;
    if parent.uid() == 0 {
        log::warn!(
            "the restored files will belong to root; give them to the server's user before you start it"
        );
    }
    Ok(Some((parent.uid(), parent.gid())))
}
