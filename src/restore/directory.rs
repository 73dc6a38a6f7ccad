//! The data directory while it is being restored.

mod over;
mod survey;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::pg::control::CONTROL_FILE;
use crate::pg::relation::positive_number;
use crate::pg::version::Major;
use crate::pg::wal::CreatedTablespace;
use crate::repository::contents::Contents;
use crate::restore::existing::{SET_ASIDE_CONTROL_FILE, WAL_FOLDER};
use crate::restore::folder::{Account, Folder, real};
use crate::restore::problems::Problems;
use crate::restore::tablespaces::{Placed, elsewhere, overlap};
use crate::restore::{Target, running};

use over::Over;

/// Where `global/pg_control` waits until everything else is on disk.
const WAITING_CONTROL_FILE: &str = "global/pg_control.restoring";

/// A data directory that this restore owns. Dropped before it is complete, it is emptied again.
///
/// Root restores for the account that has the folder above. Until all is written, that account has no access to the data
/// directory and the folders of tablespaces, not even to those that are its own.
pub(super) struct DataDirectory {
    root: Claimed,
    /// By the OIDs of the tablespaces.
    tablespaces: Vec<(u32, Claimed)>,
    /// The folders in which recovery will create tablespaces.
    created: Vec<Claimed>,
    /// Where `pg_wal` leads, if that is a link.
    wal: Option<Claimed>,
    /// The folder of further files, where it was there.
    extra: Option<Claimed>,
    /// What concerns only a data directory that was there, whose files are kept as far as they are as they are wanted.
    over: Option<Over>,
    version_directory: String,
    group_access: bool,
    account: Option<Account>,
    /// Whether what was there before is gone, so that whatever is left is this restore's.
    is_cleared: bool,
    complete: bool,
}

/// A folder that is written to, and the one above it that was there before.
struct Claimed {
    above: Folder,
    folder: Folder,
    /// Whose it was, where it was there.
    before: Option<Account>,
}

impl DataDirectory {
    /// Makes sure that nothing is lost and nobody is running there; with `force` what is there goes. The same
    /// holds for the folders of tablespaces that recovery will create, which takes over what is in there.
    pub(super) fn claim(
        target: &Target,
        name: &str,
        contents: &Contents,
        tablespaces: &[Placed],
        created: &[CreatedTablespace],
        reads: &[PathBuf],
        force: bool,
    ) -> Result<DataDirectory> {
        let info = &contents.info;
        let major = Major::from_number(info.major_version)
            .ok_or_else(|| Error::damage("backup.info has an unknown major version"))?;
        let root = &target.path().join(name);
        Problems::expect_none(problems(root, contents, tablespaces, created, force))?;
        let created = created.iter().filter(|one| !is_placed(one, tablespaces));
        let parent = target.open()?;
        let account = account_for(&parent)?;
        let mode = if info.group_access { 0o750 } else { 0o700 };
        let mut directory = DataDirectory {
            root: Claimed::below(parent, Path::new(name), mode, account)?,
            tablespaces: Vec::new(),
            created: Vec::new(),
            wal: None,
            extra: None,
            over: None,
            version_directory: major.tablespace_directory(),
            group_access: info.group_access,
            account,
            is_cleared: false,
            complete: false,
        };
        for placed in tablespaces {
            let claimed = Claimed::at(&placed.folder, placed.is_original, mode, account)?;
            directory.tablespaces.push((placed.oid, claimed));
        }
        for created in created {
            let claimed = Claimed::at(&created.folder, true, mode, account)?;
            directory.created.push(claimed);
        }
        directory.warn_of_closed_folders(reads);
        directory.is_cleared = true;
        directory.empty()?;
        Ok(directory)
    }

    /// Where a file or folder of the backup goes: below the root, into a tablespace's folder, or, where its path is
    /// absolute, beside the root.
    fn place(&self, path: &str) -> Result<(&Folder, PathBuf)> {
        if let Some(absolute) = path.strip_prefix('/') {
            if let Some(claimed) = &self.extra {
                return Ok((&claimed.folder, absolute.into()));
            }
            let extra = extra_folder(Path::new(self.root.folder.name()));
            return Ok((&self.root.above, extra.join(absolute)));
        }
        if path == CONTROL_FILE {
            return Ok((&self.root.folder, WAITING_CONTROL_FILE.into()));
        }
        if let Some(claimed) = &self.wal
            && let Some(inside) = path.strip_prefix(WAL_FOLDER)
            && let Some(inside) = inside.strip_prefix('/')
        {
            return Ok((&claimed.folder, inside.into()));
        }
        match self.in_tablespace(path) {
            Some((folder, inside)) if self.is_of_this_version(inside) => {
                Ok((folder, inside.into()))
            }
            Some(_) => Err(Error::damage(format!(
                "the backup lists {path}, and a tablespace holds nothing but {}",
                self.version_directory
            ))),
            None => Ok((&self.root.folder, path.into())),
        }
    }

    /// The folder of the tablespace that a path is in, and the rest of the path.
    fn in_tablespace<'a>(&self, path: &'a str) -> Option<(&Folder, &'a str)> {
        let (oid, inside) = path.strip_prefix("pg_tblspc/")?.split_once('/')?;
        let oid = positive_number(oid)?;
        let (_, claimed) = self.tablespaces.iter().find(|(one, _)| *one == oid)?;
        Some((&claimed.folder, inside))
    }

    /// Root makes nothing else in a folder that the backed up server named.
    fn is_of_this_version(&self, inside: &str) -> bool {
        inside.split('/').next() == Some(&self.version_directory)
    }

    /// The folder whose file system takes a file of the backup.
    pub(super) fn folder_for(&self, path: &str) -> Result<&Folder> {
        self.place(path).map(|(folder, _)| folder)
    }

    /// Creates the directories of PGDATA, and the links of tablespaces.
    pub(super) fn create_folders(&self, directories: &[String]) -> Result<()> {
        for directory in directories {
            if !self.is_tablespace(directory) && !self.is_linked_wal(directory) {
                self.create_folder(directory)?;
            }
        }
        for (oid, claimed) in &self.tablespaces {
            let link = format!("pg_tblspc/{oid}");
            self.create_folder("pg_tblspc")?;
            let link = Path::new(&link);
            if self.over.is_none() || !self.root.folder.has_link(link)? {
                let target = claimed.folder.path();
                self.root.folder.create_link(link, target, self.account)?;
            }
        }
        Ok(())
    }

    fn is_linked_wal(&self, directory: &str) -> bool {
        self.wal.is_some() && directory == WAL_FOLDER
    }

    /// Whether this is a tablespace's place in PGDATA, where its link will be.
    fn is_tablespace(&self, directory: &str) -> bool {
        let oid = directory
            .strip_prefix("pg_tblspc/")
            .and_then(positive_number);
        self.tablespaces.iter().any(|(one, _)| Some(*one) == oid)
    }

    /// Creates the folders above a further file.
    pub(super) fn create_extra_folders(&self, absolute: &str) -> Result<()> {
        match absolute.rsplit_once('/') {
            Some((above, _)) => self.create_folder(&format!("{above}/")),
            None => Ok(()),
        }
    }

    /// Creates a folder with the mode PostgreSQL demands, and those above it that are missing.
    fn create_folder(&self, path: &str) -> Result<()> {
        let (folder, inside) = self.place(path)?;
        folder.create_folders(&inside, self.folder_mode())
    }

    fn folder_mode(&self) -> u32 {
        if self.group_access { 0o750 } else { 0o700 }
    }

    fn file_mode(&self) -> u32 {
        if self.group_access { 0o640 } else { 0o600 }
    }

    /// Creates a file with the mode PostgreSQL demands; returns its name too.
    pub(super) fn create_file(&self, path: &str) -> Result<(File, PathBuf)> {
        let (folder, inside) = self.place(path)?;
        if let Some(over) = &self.over {
            folder.remove_file(&inside)?;
            over.note_made(path);
        }
        let file = folder.create_file(&inside, self.file_mode(), self.account)?;
        Ok((file, folder.path().join(inside)))
    }

    /// Syncs everything, and only then lets the cluster be started.
    pub(super) fn complete(mut self) -> Result<()> {
        self.sync()?;
        self.expect_name()?;
        let root = &self.root.folder;
        root.rename(Path::new(WAITING_CONTROL_FILE), Path::new(CONTROL_FILE))?;
        root.subfolder(Path::new("global"))?.sync()?;
        root.sync()?;
        self.root.above.sync()?;
        if self.over.is_some() {
            root.remove_file(Path::new(SET_ASIDE_CONTROL_FILE))?;
            root.sync()?;
        }
        self.complete = true;
        self.give_away()
    }

    /// An error where the data directory is no longer where it is reported to be.
    fn expect_name(&self) -> Result<()> {
        let Claimed { above, folder, .. } = &self.root;
        let named = above
            .subfolder(Path::new(folder.name()))
            .and_then(|found| found.metadata());
        let ours = folder.metadata()?;
        if named.is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())) {
            return Ok(());
        }
        Err(Error::failed(format!(
            "{} was moved away while it was being restored",
            folder.path().display()
        )))
    }

    /// Lets the account have all, the root last: without it no server starts.
    fn give_away(&self) -> Result<()> {
        let Some(account) = self.account else {
            return Ok(());
        };
        for claimed in self.others().chain([&self.root]) {
            claimed.folder.give_away(account)?;
            claimed.above.give_away(account)?;
            claimed.folder.own(account)?;
        }
        Ok(())
    }

    /// Everything once a file system.
    fn sync(&self) -> Result<()> {
        let mut synced = Vec::new();
        for claimed in self.others().chain([&self.root]) {
            let device = claimed.folder.metadata()?.dev();
            if !synced.contains(&device) {
                claimed.folder.sync_file_system()?;
                synced.push(device);
            }
        }
        Ok(())
    }

    /// The folders of tablespaces, and those of the WAL and of further files that were there.
    fn others(&self) -> impl Iterator<Item = &Claimed> {
        let tablespaces = self.tablespaces.iter().map(|(_, claimed)| claimed);
        let elsewhere = self.wal.iter().chain(&self.extra);
        tablespaces.chain(&self.created).chain(elsewhere)
    }

    /// Removes what is in the data directory, pg_control first, and this version's part of the tablespaces.
    fn empty(&self) -> Result<()> {
        let Claimed { above, folder, .. } = &self.root;
        folder.remove(Path::new(CONTROL_FILE))?;
        above.remove(&extra_folder(Path::new(folder.name())))?;
        for claimed in self.others() {
            claimed.folder.remove(Path::new(&self.version_directory))?;
        }
        folder.empty()
    }

    /// Leaves nothing behind, and lets the account have again what it had.
    fn withdraw(&self) -> Result<()> {
        if self.is_cleared {
            self.empty()?;
        }
        for claimed in self.others().chain([&self.root]) {
            claimed.above.remove_made()?;
            if let (Some(before), Some(_)) = (claimed.before, self.account) {
                claimed.folder.own(before)?;
            }
        }
        Ok(())
    }

    /// Says where the account does not get to what root restores for it, or to what the server reads while it recovers.
    fn warn_of_closed_folders(&self, reads: &[PathBuf]) {
        for path in reads {
            if let Some(closed) = self.account.and_then(|account| account.kept_from(path)) {
                log::warn!(
                    "the server's account may not read {}, which it needs for archived WAL: open {} to it before you start the server",
                    path.display(),
                    closed.display()
                );
            }
        }
        for claimed in self.others().chain([&self.root]) {
            // Of a folder that was there, root has taken the folder itself.
            let path = claimed.folder.path();
            let above = match claimed.above.path() {
                itself if itself == path => path.parent().unwrap_or(path),
                above => above,
            };
            if let Some(closed) = self.account.and_then(|account| account.kept_out_of(above)) {
                log::warn!(
                    "the server's account may not enter {}, and does not get to {} then: open it before you start the server",
                    closed.display(),
                    claimed.folder.path().display()
                );
            }
        }
    }
}

impl Drop for DataDirectory {
    fn drop(&mut self) {
        if !self.complete {
            // A restore that failed has told why. What remains cannot be started, without pg_control.
            let _ = match &self.over {
                Some(over) if over.is_begun => self.leave_half_done(),
                _ => self.withdraw(),
            };
        }
    }
}

impl Claimed {
    /// A folder of this name.
    fn below(above: Folder, name: &Path, mode: u32, account: Option<Account>) -> Result<Claimed> {
        let is_new = !above.has(name)?;
        above.create_folders(name, mode)?;
        let folder = above.subfolder(name)?;
        Claimed::take(above, folder, is_new, mode, account)
    }

    /// A folder for a tablespace. Where only the backup names it, root makes it for the account in what is the
    /// account's alone: whoever had the backed up server could choose any.
    fn at(path: &Path, is_original: bool, mode: u32, account: Option<Account>) -> Result<Claimed> {
        let above = ground(path, is_original, account)?;
        let inside = path.strip_prefix(above.path()).unwrap_or(path);
        let is_new = !inside.as_os_str().is_empty();
        above.create_folders(inside, mode)?;
        let folder = if is_new {
            above.subfolder(inside)?
        } else {
            above.again()?
        };
        Claimed::take(above, folder, is_new, mode, account)
    }

    fn take(
        above: Folder,
        folder: Folder,
        is_new: bool,
        mode: u32,
        account: Option<Account>,
    ) -> Result<Claimed> {
        let owner = Account::owning(&folder.metadata()?);
        folder.take(mode, account.is_some())?;
        Ok(Claimed {
            above,
            folder,
            before: (!is_new).then_some(owner),
        })
    }
}

/// All that speaks against a data directory there, in the order in which a restore would say it.
pub(super) fn problems(
    root: &Path,
    contents: &Contents,
    tablespaces: &[Placed],
    created: &[CreatedTablespace],
    force: bool,
) -> Vec<Error> {
    let info = &contents.info;
    let source = info.data_directory.as_deref();
    let mut problems = Vec::new();
    let mut expect = |checked: Result<()>| problems.extend(checked.err());
    expect(running::refuse_data_directory(root));
    if tablespaces.iter().any(|tablespace| tablespace.is_original)
        && let Some(source) = source
    {
        let running = running::refuse_data_directory(Path::new(source));
        expect(running.map_err(|error| {
            error.hint("its tablespaces are in use: give the restored cluster others with --tablespace OLD=NEW")
        }));
    }
    for placed in tablespaces {
        let running = running::refuse_tablespace(&placed.folder);
        expect(running.map_err(|error| {
            error.hint("give the restored cluster another folder with --tablespace OLD=NEW")
        }));
    }
    let extra = extra_folder(root);
    for folder in [root, extra.as_path()] {
        expect(refuse_link(folder));
    }
    for placed in tablespaces {
        expect(refuse_nested(&placed.folder, root));
    }
    if !force {
        for folder in [root, extra.as_path()] {
            expect(expect_empty(
                folder,
                "restore into another directory, or replace what is there with --force",
            ));
        }
        for placed in tablespaces {
            expect(expect_empty(
                &placed.folder,
                "give the tablespace another folder with --tablespace OLD=NEW, or replace what is there with --force",
            ));
        }
    }
    for created in created.iter().filter(|one| !is_placed(one, tablespaces)) {
        expect(claim_created(created, source, force));
    }
    problems
}

fn expect_empty(folder: &Path, hint: &str) -> Result<()> {
    match is_empty(folder)? {
        true => Ok(()),
        false => Err(Error::failed(format!("{} is not empty", folder.display())).hint(hint)),
    }
}

fn is_placed(created: &CreatedTablespace, tablespaces: &[Placed]) -> bool {
    tablespaces
        .iter()
        .any(|placed| placed.folder == created.folder)
}

/// The folder that a tablespace's is made in, or that folder itself. Where only the backup names it, that must be the account's.
pub(super) fn ground(path: &Path, is_original: bool, account: Option<Account>) -> Result<Folder> {
    let above = nearest(path)?;
    let is_new = above.path() != path;
    if let Some(account) = account.filter(|account| account.uid != 0)
        && above.metadata()?.uid() != account.uid
    {
        if is_original || !is_new {
            return Err(belongs_to_another(path, &above, account));
        }
        // It may be the account's link that has led there.
        return Folder::open_without_links(above.path());
    }
    Ok(above)
}

/// The folder of this path, or else the nearest above it that is there.
pub(super) fn nearest(path: &Path) -> Result<Folder> {
    let existing = path.ancestors().find(|folder| folder.exists());
    Folder::open(existing.unwrap_or(Path::new("/")))
}

fn belongs_to_another(path: &Path, above: &Folder, account: Account) -> Error {
    let Account { uid, gid } = account;
    let path = path.display();
    Error::failed(format!(
        "{path} would be a tablespace's folder for user {uid}, to whom the restored cluster goes, and {} is not that user's",
        above.path().display()
    ))
    .hint(format!(
        "make it: install -d -m 700 -o {uid} -g {gid} {path}; or choose another folder with --tablespace OLD=NEW"
    ))
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
    let running = running::refuse_data_directory(Path::new(data_directory.unwrap_or_default()))
        .and_then(|()| running::refuse_tablespace(folder));
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

/// A folder of that name is written to, not what a link of that name leads to.
fn refuse_link(folder: &Path) -> Result<()> {
    match fs::symlink_metadata(folder) {
        Ok(found) if found.is_symlink() => Err(Error::failed(format!(
            "{} is a symbolic link",
            folder.display()
        ))
        .hint("remove it, or restore into the directory above the folder that it leads to")),
        _ => Ok(()),
    }
}

/// PostgreSQL wants a tablespace's folder outside of the data directory.
fn refuse_nested(tablespace: &Path, root: &Path) -> Result<()> {
    match overlap(&real(tablespace)?, &real(root)?) {
        true => Err(Error::usage(format!(
            "{} and the data directory {} would lie in one another",
            tablespace.display(),
            root.display()
        ))
        .hint("give the tablespace a folder of its own with --tablespace OLD=NEW")),
        false => Ok(()),
    }
}

/// Further files go beside the data directory, where pg_verifybackup does not look.
fn extra_folder(root: &Path) -> PathBuf {
    let mut folder = root.to_owned().into_os_string();
    folder.push("-extra");
    folder.into()
}

fn is_empty(folder: &Path) -> Result<bool> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Error::io("read the folder", folder, &error)),
    }
}

/// PostgreSQL does not run as root: what root restores goes to the owner of the folder above.
pub(super) fn account_for(parent: &Folder) -> Result<Option<Account>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let account = Some(Account::owning(&parent.metadata()?));
    warn_of_root(account);
    Ok(account)
}

fn warn_of_root(account: Option<Account>) {
    if account.is_some_and(|account| account.uid == 0) {
        log::warn!(
            "the restored files will belong to root; give them to the server's user before you start it"
        );
    }
}
