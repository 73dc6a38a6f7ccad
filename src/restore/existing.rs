//! A data directory that is there already, and of which only what differs is to be written.
//!
//! It must be one of the backed up system, of its own account, and nobody's who runs. What tells so is `global/pg_control`.
//! Before anything is changed, that file goes to [`SET_ASIDE_CONTROL_FILE`], so a directory in which a restore was cut short
//! cannot be started, and is still known for what it is.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::pg::control::{CONTROL_FILE, CONTROL_FILE_SIZE, ControlFile};
use crate::pg::relation::positive_number;
use crate::pg::version::Major;
use crate::repository::backup_info::BackupInfo;
use crate::restore::folder::{Account, Folder};
use crate::restore::running;
use crate::restore::tablespaces::{TablespaceMapping, overlap};

/// The control file of what was there, while that is being changed. Not in `global`, where pg_checksums takes every file
/// with a dot in its name for a segment.
pub(super) const SET_ASIDE_CONTROL_FILE: &str = "pg_control.set_aside";

/// The folder of the WAL.
pub(super) const WAL_FOLDER: &str = "pg_wal";

/// A data directory of the backed up system in which no server runs.
pub(super) struct Existing {
    pub(super) above: Folder,
    pub(super) folder: Folder,
    /// Whose it is.
    pub(super) owner: Account,
    /// Where the links of its tablespaces lead, by their OIDs.
    pub(super) tablespaces: Vec<(u32, PathBuf)>,
    /// Where `pg_wal` leads, if that is a link.
    pub(super) wal: Option<PathBuf>,
    /// What speaks against a restore over it.
    pub(super) problems: Vec<Error>,
}

impl Existing {
    /// The data directory that `directory` is; or that an earlier restore of the backup has made in it.
    pub(super) fn find(directory: &Path, info: &BackupInfo) -> Result<Existing> {
        let path = path(directory, info)?;
        let is_root = || Error::usage("the root directory is no data directory");
        let above = Folder::open_without_links(path.parent().ok_or_else(is_root)?)?;
        let name = path.file_name().ok_or_else(is_root)?;
        let folder = above.real_subfolder(Path::new(name))?;
        let (control, owner) = control_file(&folder)?;
        let mut problems = Vec::new();
        let mut expect = |checked: Result<()>| problems.extend(checked.err());
        let running = running::refuse_data_directory(&path);
        expect(running.and_then(|()| running::refuse_server_in(&folder.metadata()?, &path)));
        expect(expect_system(&control, info, &folder));
        expect(expect_owner(&folder, owner));
        let wal = wal_link(&folder, owner);
        expect(wal.as_ref().map(drop).map_err(Error::clone));
        let mut existing = Existing {
            tablespaces: links(&folder)?,
            wal: wal.unwrap_or_default(),
            above,
            folder,
            owner,
            problems,
        };
        let foreign = existing.refuse_foreign();
        existing.problems.extend(foreign.err());
        let shared = existing.refuse_shared(info);
        existing.problems.extend(shared.err());
        Ok(existing)
    }

    /// The tablespaces that stay where their links lead, beside those that are mapped.
    pub(super) fn mappings(
        &self,
        info: &BackupInfo,
        mappings: &[TablespaceMapping],
    ) -> Vec<TablespaceMapping> {
        let mut all = mappings.to_vec();
        for tablespace in info.tablespaces.iter().filter(|one| one.path.is_some()) {
            let link = self
                .tablespaces
                .iter()
                .find(|(oid, _)| *oid == tablespace.oid);
            let is_mapped = mappings.iter().any(|mapping| mapping.fits(tablespace));
            if let Some((oid, folder)) = link
                && !is_mapped
                && Some(folder.as_path()) != tablespace.path.as_deref().map(Path::new)
            {
                all.push(TablespaceMapping::new(*oid, folder.clone()));
            }
        }
        all
    }

    /// Whether one of its tablespaces is in this folder.
    pub(super) fn has_tablespace_in(&self, folder: &Path) -> bool {
        let mut folders = self.tablespaces.iter().map(|(_, folder)| folder);
        folders.any(|one| is_same(one, folder))
    }

    /// An error where a tablespace would be made in another data directory.
    fn refuse_foreign(&self) -> Result<()> {
        let own = self.folder.path();
        let is_foreign = |folder: &Path| is_cluster(folder) && !is_same(folder, own);
        let mut tablespaces = self.tablespaces.iter();
        match tablespaces.find(|(_, folder)| folder.ancestors().any(is_foreign)) {
            None => Ok(()),
            Some((oid, folder)) => Err(Error::failed(format!(
                "{} leads to {}, which is in another data directory",
                own.join(format!("pg_tblspc/{oid}")).display(),
                folder.display()
            ))
            .hint("remove the link; give a tablespace another folder with --tablespace OLD=NEW")),
        }
    }

    /// An error where what lies outside of the data directory is that of the data directory that was backed up as well: this
    /// one is a copy of it, links and all.
    fn refuse_shared(&self, info: &BackupInfo) -> Result<()> {
        let Some(source) = info.data_directory.as_deref().map(Path::new) else {
            return Ok(());
        };
        if !source.is_dir() || is_same(source, self.folder.path()) {
            return Ok(());
        }
        let tablespaces = self.tablespaces.iter();
        let tablespaces = tablespaces.map(|(oid, folder)| (format!("pg_tblspc/{oid}"), folder));
        let wal = self
            .wal
            .iter()
            .map(|folder| (WAL_FOLDER.to_owned(), folder));
        for (link, folder) in tablespaces.chain(wal) {
            if is_same(&source.join(&link), folder) {
                return Err(Error::failed(format!(
                    "{} leads to {}, and so does that of {}, which would lose what is in there",
                    self.folder.path().join(&link).display(),
                    folder.display(),
                    source.display()
                ))
                .hint(
                    "remove the link; give a tablespace another folder with --tablespace OLD=NEW",
                ));
            }
        }
        Ok(())
    }
}

/// Where the data directory is, without links.
fn path(directory: &Path, info: &BackupInfo) -> Result<PathBuf> {
    let below = directory.join(format!("{}-{}", info.server, info.backup));
    for path in [directory, &below] {
        let has_control_file = [CONTROL_FILE, SET_ASIDE_CONTROL_FILE]
            .iter()
            .any(|name| path.join(name).symlink_metadata().is_ok());
        if has_control_file {
            return without_links(path);
        }
    }
    Err(Error::failed(format!(
        "neither {} nor {} is a data directory: they have no {CONTROL_FILE}",
        directory.display(),
        below.display()
    ))
    .hint("name the data directory itself; without --delta a new one is written"))
}

/// The path of a folder that is there.
/// Whether a folder is a data directory.
fn is_cluster(folder: &Path) -> bool {
    ["PG_VERSION", CONTROL_FILE]
        .iter()
        .all(|name| folder.join(name).is_file())
}

fn without_links(path: &Path) -> Result<PathBuf> {
    path.canonicalize()
        .map_err(|error| Error::io("find", path, &error))
}

/// The control file, also where a restore has set it aside, and whose it is.
fn control_file(folder: &Folder) -> Result<(ControlFile, Account)> {
    for name in [CONTROL_FILE, SET_ASIDE_CONTROL_FILE] {
        let Some((content, metadata)) = folder.read(Path::new(name), CONTROL_FILE_SIZE)? else {
            continue;
        };
        let control = ControlFile::parse(&content).map_err(|fault| {
            Error::failed(format!(
                "cannot tell which system {} belongs to: {fault}",
                folder.path().display()
            ))
            .hint("restore into another directory")
        })?;
        return Ok((control, Account::owning(&metadata)));
    }
    Err(Error::failed(format!(
        "{} is no readable file in {}",
        CONTROL_FILE,
        folder.path().display()
    ))
    .hint("restore into another directory"))
}

/// An error where the data directory is of another system or version.
fn expect_system(control: &ControlFile, info: &BackupInfo, folder: &Folder) -> Result<()> {
    let path = folder.path().display();
    let hint = "name the data directory of the server that was backed up, or of a copy of it";
    if control.system_identifier != info.system_identifier {
        return Err(Error::failed(format!(
            "{path} is of system {}, and backup {} of system {}",
            control.system_identifier, info.backup, info.system_identifier
        ))
        .hint(hint));
    }
    let formats = (control.control_version, control.catalog_version);
    if formats != (info.control_version, info.catalog_version) {
        let mut majors = Major::ALL.into_iter();
        let major = majors.find(|one| (one.control_version(), one.catalog_version()) == formats);
        return Err(Error::failed(format!(
            "{path} is of {}, and backup {} of PostgreSQL {}",
            match major {
                Some(major) => format!("PostgreSQL {major}"),
                None => format!("a PostgreSQL with catalog version {}", formats.1),
            },
            info.backup,
            info.major_version
        ))
        .hint(hint));
    }
    Ok(())
}

/// An error where the data directory is not its server's, or not ours.
fn expect_owner(folder: &Folder, owner: Account) -> Result<()> {
    let found = folder.metadata()?.uid();
    let ours = rustix::process::geteuid();
    // Root takes the folder to itself while it restores.
    if found != owner.uid && !(found == 0 && ours.is_root()) {
        return Err(Error::failed(format!(
            "{} belongs to user {found}, and its {CONTROL_FILE} to user {}",
            folder.path().display(),
            owner.uid
        ))
        .hint("give all of it to the user whom the server runs as"));
    }
    if !ours.is_root() && owner.uid != ours.as_raw() {
        return Err(Error::failed(format!(
            "{} belongs to user {}, and pgkeep runs as user {}",
            folder.path().display(),
            owner.uid,
            ours.as_raw()
        ))
        .hint("run pgkeep as the user whom the server runs as"));
    }
    Ok(())
}

/// Where the links of tablespaces lead.
fn links(folder: &Folder) -> Result<Vec<(u32, PathBuf)>> {
    let mut links = Vec::new();
    if !folder.has_real_folder(Path::new("pg_tblspc"))? {
        return Ok(links);
    }
    let tablespaces = folder.real_subfolder(Path::new("pg_tblspc"))?;
    for entry in tablespaces.entries()? {
        let oid = entry.name.to_str().and_then(positive_number);
        if let Some(oid) = oid
            && entry.metadata.is_symlink()
        {
            let target = tablespaces.read_link(Path::new(&entry.name))?;
            if target.is_absolute() {
                links.push((oid, target));
            }
        }
    }
    links.sort();
    Ok(links)
}

/// Where `pg_wal` leads, if it is a link.
fn wal_link(folder: &Folder, owner: Account) -> Result<Option<PathBuf>> {
    let name = Path::new(WAL_FOLDER);
    if !folder.has_link(name)? {
        return Ok(None);
    }
    let target = folder.path().join(folder.read_link(name)?);
    let path = folder.path().join(name);
    if !target.is_dir() {
        return Err(Error::failed(format!(
            "{} leads to {}, which is no folder",
            path.display(),
            target.display()
        ))
        .hint("make that folder, or remove the link"));
    }
    let target = without_links(&target)?;
    if overlap(&target, folder.path()) {
        return Err(Error::failed(format!(
            "{} leads to {}, which is not outside of the data directory",
            path.display(),
            target.display()
        ))
        .hint("remove the link"));
    }
    let found = target.metadata().map(|found| found.uid());
    if owner.uid != 0 && found.is_ok_and(|found| found != owner.uid) {
        return Err(Error::failed(format!(
            "{} leads to {}, which is not user {}'s",
            path.display(),
            target.display(),
            owner.uid
        ))
        .hint("give that folder to the user whom the server runs as, or remove the link"));
    }
    running::refuse_wal(&target)?;
    Ok(Some(target))
}

/// Whether two paths lead to the same folder.
pub(super) fn is_same(one: &Path, other: &Path) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => one == other,
    }
}
