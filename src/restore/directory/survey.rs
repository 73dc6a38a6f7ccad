//! What a data directory that was there holds, held against what belongs there.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use cap_std::fs::{Metadata, MetadataExt as _};

use crate::error::Result;
use crate::pg::wal_file::WalFileName;
use crate::repository::contents::Contents;
use crate::repository::file_list::Files;
use crate::restore::directory::DataDirectory;
use crate::restore::existing::{SET_ASIDE_CONTROL_FILE, WAL_FOLDER};
use crate::restore::folder::{Account, Entry, Folder};
use crate::restore::write::is_special_path;

/// What there is to be changed before any file is written.
#[derive(Default)]
pub(in crate::restore) struct Survey {
    /// What does not belong there: files, links and whole folders.
    pub(super) strays: Vec<(Part, PathBuf)>,
    /// Folders that belong there, of another mode or owner.
    mended: Vec<(Part, PathBuf)>,
    /// Bytes on each file system that the cluster needs no more room for.
    held: BTreeMap<u64, u64>,
}

/// The folder that something is in.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Root,
    /// By their places.
    Tablespace(usize),
    Created(usize),
    Dropped(usize),
    Wal,
}

impl Survey {
    /// Bytes on a file system that are there already, or go.
    pub(in crate::restore) fn held(&self, device: u64) -> u64 {
        self.held.get(&device).copied().unwrap_or(0)
    }
}

impl DataDirectory {
    /// Looks through all that is there. No link is followed but those of tablespaces and of `pg_wal`.
    ///
    /// Those that are `made` are written anew in any case.
    pub(in crate::restore) fn survey(&self, contents: &Contents, made: &[&str]) -> Result<Survey> {
        let list = &contents.list;
        let mut surveyor = Surveyor {
            directory: self,
            folders: list.directories.iter().map(String::as_str).collect(),
            files: &list.files,
            made,
            survey: Survey::default(),
        };
        surveyor.folders.insert("pg_tblspc");
        surveyor.visit(Part::Root, &self.root.folder, Path::new(""), "")?;
        if let Some(claimed) = &self.wal {
            surveyor.visit(Part::Wal, &claimed.folder, Path::new(""), "pg_wal/")?;
        }
        let version = Path::new(&self.version_directory);
        for (number, (oid, claimed)) in self.tablespaces.iter().enumerate() {
            let path = format!("pg_tblspc/{oid}/{}", self.version_directory);
            surveyor.visit_version(Part::Tablespace(number), &claimed.folder, version, &path)?;
        }
        // Recovery makes them, in what it finds empty; and those that are gone hold nothing.
        for (number, claimed) in self.created.iter().enumerate() {
            surveyor.visit_version(Part::Created(number), &claimed.folder, version, "")?;
        }
        let dropped = self.over.iter().flat_map(|over| &over.dropped);
        for (number, folder) in dropped.enumerate() {
            surveyor.visit_version(Part::Dropped(number), folder, version, "")?;
        }
        Ok(surveyor.survey)
    }

    /// Removes what does not belong there. The links of tablespaces go last: by them a second run finds what they lead to.
    pub(super) fn clear_away(&self, survey: Survey) -> Result<()> {
        let Survey { strays, mended, .. } = survey;
        let (links, others): (Vec<_>, Vec<_>) = strays.into_iter().partition(|(part, inside)| {
            matches!(part, Part::Root) && inside.starts_with("pg_tblspc")
        });
        for (part, inside) in others.into_iter().chain(links) {
            if let Some(folder) = self.part(part) {
                folder.remove(&inside)?;
            }
        }
        for (part, inside) in mended {
            if let Some(folder) = self.part(part) {
                let folder = folder.subfolder(&inside)?;
                if let Some(account) = self.account {
                    folder.own(account)?;
                }
                folder.take(self.folder_mode(), false)?;
            }
        }
        Ok(())
    }

    fn part(&self, part: Part) -> Option<&Folder> {
        match part {
            Part::Root => Some(&self.root.folder),
            Part::Tablespace(number) => self.tablespaces.get(number).map(|(_, one)| &one.folder),
            Part::Created(number) => self.created.get(number).map(|one| &one.folder),
            Part::Dropped(number) => self.over.as_ref()?.dropped.get(number),
            Part::Wal => self.wal.as_ref().map(|one| &one.folder),
        }
    }
}

struct Surveyor<'a> {
    directory: &'a DataDirectory,
    folders: HashSet<&'a str>,
    files: &'a Files,
    made: &'a [&'a str],
    survey: Survey,
}

impl Surveyor<'_> {
    /// Looks through a folder whose entries have these names in PGDATA, behind `prefix`.
    fn visit(&mut self, part: Part, folder: &Folder, inside: &Path, prefix: &str) -> Result<()> {
        for entry in folder.entries()? {
            let path = entry.name.to_str().map(|name| format!("{prefix}{name}"));
            let inside = inside.join(&entry.name);
            self.look_at(part, folder, &entry, inside, path.as_deref())?;
        }
        Ok(())
    }

    /// The same of the folder that is this version's in a tablespace. Others are not ours.
    fn visit_version(
        &mut self,
        part: Part,
        folder: &Folder,
        version: &Path,
        path: &str,
    ) -> Result<()> {
        for entry in folder.entries()? {
            if entry.name == version.as_os_str() {
                self.look_at(part, folder, &entry, version.to_owned(), Some(path))?;
            }
        }
        Ok(())
    }

    fn look_at(
        &mut self,
        part: Part,
        folder: &Folder,
        entry: &Entry,
        inside: PathBuf,
        path: Option<&str>,
    ) -> Result<()> {
        let found = &entry.metadata;
        if matches!(part, Part::Root) && self.is_kept_link(folder, &entry.name, path, found)? {
            return Ok(());
        }
        let is_wanted_folder = path
            .is_some_and(|path| self.folders.contains(path) && !self.directory.is_tablespace(path));
        if found.is_dir() {
            let below = folder.real_subfolder(Path::new(&entry.name))?;
            if let Some(path) = path.filter(|_| is_wanted_folder) {
                self.note_folder(part, &inside, found);
                return self.visit(part, &below, &inside, &format!("{path}/"));
            }
            if self.is_strange_in_wal(part, &inside) {
                return Ok(());
            }
            self.weigh_all(&below)?;
        } else {
            if self.is_strange_in_wal(part, &inside) {
                return Ok(());
            }
            self.weigh(found);
            if path.is_some_and(|path| self.is_wanted(path)) && found.is_file() {
                return Ok(());
            }
        }
        log::info!("{} goes", folder.path().join(&entry.name).display());
        self.survey.strays.push((part, inside));
        Ok(())
    }

    fn is_wanted(&self, path: &str) -> bool {
        let is_listed = self.files.place(path).is_some() && !is_special_path(path);
        is_listed || path == SET_ASIDE_CONTROL_FILE || self.made.contains(&path)
    }

    /// A link that leads to where it is wanted.
    fn is_kept_link(
        &self,
        folder: &Folder,
        name: &std::ffi::OsStr,
        path: Option<&str>,
        found: &Metadata,
    ) -> Result<bool> {
        let Some(path) = path.filter(|_| found.is_symlink()) else {
            return Ok(false);
        };
        if self.directory.is_linked_wal(path) {
            return Ok(true);
        }
        let oid = path.strip_prefix("pg_tblspc/").unwrap_or_default();
        let tablespaces = &self.directory.tablespaces;
        let claimed = tablespaces.iter().find(|(one, _)| one.to_string() == oid);
        let Some((_, claimed)) = claimed else {
            return Ok(false);
        };
        Ok(folder.read_link(Path::new(name))? == claimed.folder.path())
    }

    /// Somebody else's in a folder of WAL that is not in the data directory, such as the `lost+found` of a file system.
    fn is_strange_in_wal(&self, part: Part, inside: &Path) -> bool {
        let is_outermost = inside.components().count() == 1;
        if !matches!(part, Part::Wal) || !is_outermost {
            return false;
        }
        let name = inside.to_string_lossy();
        let is_wal = WalFileName::parse(&name).is_some()
            || self
                .folders
                .contains(format!("{WAL_FOLDER}/{name}").as_str())
            || ["archive_status", "summaries"].contains(&name.as_ref())
            || name.starts_with("xlogtemp.")
            || name.starts_with("RECOVERY");
        !is_wal
    }

    fn note_folder(&mut self, part: Part, inside: &Path, found: &Metadata) {
        let owner = Account {
            uid: found.uid(),
            gid: found.gid(),
        };
        let is_ours = self
            .directory
            .account
            .is_none_or(|account| account == owner);
        if found.mode() & 0o7777 != self.directory.folder_mode() || !is_ours {
            self.survey.mended.push((part, inside.to_owned()));
        }
    }

    fn weigh(&mut self, found: &Metadata) {
        if found.is_file() && found.nlink() == 1 {
            *self.survey.held.entry(found.dev()).or_default() += found.blocks() * 512;
        }
    }

    fn weigh_all(&mut self, folder: &Folder) -> Result<()> {
        for Entry { name, metadata } in folder.entries()? {
            match metadata.is_dir() {
                true => self.weigh_all(&folder.real_subfolder(Path::new(&name))?)?,
                false => self.weigh(&metadata),
            }
        }
        Ok(())
    }
}
