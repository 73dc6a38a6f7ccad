//! A data directory that was there, and is kept as far as it is as it is wanted.

use std::fs::{File, Metadata, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::pg::control::CONTROL_FILE;
use crate::pg::version::Major;
use crate::pg::wal::CreatedTablespace;
use crate::repository::contents::Contents;
use crate::repository::file_list::Crc32c;
use crate::restore::directory::survey::Survey;
use crate::restore::directory::{
    Claimed, DataDirectory, belongs_to_another, claim_created, extra_folder, is_empty, nearest,
    refuse_link, refuse_nested, warn_of_root,
};
use crate::restore::existing::{Existing, SET_ASIDE_CONTROL_FILE, is_same};
use crate::restore::folder::{Account, Folder};
use crate::restore::problems::Problems;
use crate::restore::running;
use crate::restore::tablespaces::Placed;
use crate::restore::target_file::{Differences, Tally, TargetFile, has_checksum};

/// What concerns only a data directory that was there.
pub(super) struct Over {
    /// Tablespaces that do not belong to the cluster any more.
    pub(super) dropped: Vec<Folder>,
    placed: Vec<Placed>,
    owner: Account,
    tally: Tally,
    /// Nothing is written.
    only_looks: bool,
    /// Whether what is there cannot be started any more.
    pub(super) is_begun: bool,
    removed: u64,
    /// What is written anew in any case.
    made: Mutex<Vec<String>>,
}

impl Over {
    pub(super) fn note_made(&self, path: &str) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.push(path.to_owned());
    }
}

impl DataDirectory {
    /// Makes sure that nothing is lost that is not this data directory's, and nobody is running there.
    pub(in crate::restore) fn over(
        existing: Existing,
        contents: &Contents,
        tablespaces: &[Placed],
        created: &[CreatedTablespace],
        reads: &[PathBuf],
        only_looks: bool,
    ) -> std::result::Result<DataDirectory, Problems> {
        let info = &contents.info;
        let major = Major::from_number(info.major_version)
            .ok_or_else(|| Error::damage("backup.info has an unknown major version"))?;
        let mut problems = existing.problems.clone();
        let mut expect = |checked: Result<()>| problems.extend(checked.err());
        let extra = extra_folder(existing.folder.path());
        expect(refuse_link(&extra));
        if !only_looks {
            expect(existing.folder.lock());
        }
        for placed in tablespaces {
            expect(claim_tablespace(placed, &existing));
        }
        let is_placed = |folder: &Path| tablespaces.iter().any(|one| is_same(&one.folder, folder));
        let created = created.iter().filter(|one| !is_placed(&one.folder));
        for created in created.clone() {
            if !existing.has_tablespace_in(&created.folder) {
                expect(claim_created(
                    created,
                    info.data_directory.as_deref(),
                    false,
                ));
            }
        }
        let account = rustix::process::geteuid()
            .is_root()
            .then_some(existing.owner);
        warn_of_root(account);
        let mut dropped = Vec::new();
        for (_, folder) in &existing.tablespaces {
            let is_created = created.clone().any(|one| is_same(&one.folder, folder));
            if !is_placed(folder) && !is_created {
                let found = dropped_tablespace(folder, account);
                expect(found.map(|folder| dropped.extend(folder)));
            }
        }
        Problems::expect_none(problems)?;
        let mode = if info.group_access { 0o750 } else { 0o700 };
        let at = |folder: &Path, is_original| match only_looks {
            true => Claimed::seen(folder),
            false => Claimed::at(folder, is_original, mode, account),
        };
        let wal = existing.wal.as_ref();
        let wal = wal.map(|folder| at(folder, true)).transpose()?;
        let has_extra = contents.list.files.iter().any(|file| file.is_extra());
        let extra = has_extra.then(|| match only_looks {
            true => Claimed::seen(&extra),
            false => extra_claimed(&existing, &extra, mode, account),
        });
        let extra = extra.transpose()?;
        let Existing { above, folder, .. } = existing;
        let mut directory = DataDirectory {
            root: Claimed {
                above,
                folder,
                before: Some(existing.owner),
            },
            tablespaces: Vec::new(),
            created: Vec::new(),
            wal,
            extra,
            over: Some(Over {
                dropped,
                placed: tablespaces.to_vec(),
                owner: existing.owner,
                tally: Tally::default(),
                only_looks,
                is_begun: false,
                removed: 0,
                made: Mutex::default(),
            }),
            version_directory: major.tablespace_directory(),
            group_access: info.group_access,
            account,
            is_cleared: false,
            complete: only_looks,
        };
        for placed in tablespaces {
            let claimed = at(&placed.folder, placed.is_original)?;
            directory.tablespaces.push((placed.oid, claimed));
        }
        for created in created {
            directory.created.push(at(&created.folder, true)?);
        }
        if !only_looks {
            directory.root.folder.take(mode, account.is_some())?;
        }
        directory.warn_of_closed_folders(reads);
        Ok(directory)
    }

    /// Sets the control file aside, and only then removes what does not belong there.
    pub(in crate::restore) fn begin(&mut self, survey: Survey) -> Result<()> {
        let root = &self.root.folder;
        let control = Path::new(CONTROL_FILE);
        if let Some(over) = &mut self.over {
            over.is_begun = true;
            over.removed = survey.strays.len() as u64;
        }
        // One that was set aside and is the only one is that of a restore that was cut short.
        if root.has(control)? {
            root.rename(control, Path::new(SET_ASIDE_CONTROL_FILE))?;
            root.sync()?;
            root.subfolder(Path::new("global"))?.sync()?;
        }
        self.clear_away(survey)
    }

    /// Where its tablespaces are.
    pub(in crate::restore) fn placed(&self) -> Vec<Placed> {
        let over = self.over.as_ref();
        over.map_or_else(Vec::new, |over| over.placed.clone())
    }

    /// Whether there was one, whose files may be as they are wanted.
    pub(in crate::restore) fn was_there(&self) -> bool {
        self.over.is_some()
    }

    /// Counts what does not belong there, where it stays.
    pub(in crate::restore) fn count_strays(&mut self, survey: &Survey) {
        if let Some(over) = &mut self.over {
            over.removed = survey.strays.len() as u64;
        }
    }

    /// What has been kept, written and removed so far.
    pub(in crate::restore) fn differences(&self) -> Result<Differences> {
        let Some(over) = &self.over else {
            return Ok(Differences::default());
        };
        let mut differences = over.tally.differences(over.removed);
        let made = over.made.lock().unwrap_or_else(PoisonError::into_inner);
        for path in made.iter() {
            let (folder, inside) = self.place(path)?;
            let (_, metadata) = folder.open_file(&inside, false)?.ok_or_else(|| {
                Error::failed(format!("{} is gone", folder.path().join(&inside).display()))
            })?;
            differences.written += metadata.len();
        }
        Ok(differences)
    }

    /// Whether a file is there already, with this size and checksum.
    pub(in crate::restore) fn holds(
        &self,
        path: &str,
        (size, crc32c): (u64, Crc32c),
        part: &mut [u8],
    ) -> Result<bool> {
        let Some(over) = &self.over else {
            return Ok(false);
        };
        let (folder, inside) = self.place(path)?;
        let there = self.usable(over, folder, &inside)?;
        let Some((file, metadata)) = there.filter(|(_, found)| found.len() == size) else {
            return Ok(false);
        };
        let (is_same, read) = has_checksum(&file, &folder.path().join(&inside), crc32c, part)?;
        Tally::add(&over.tally.read, read);
        if is_same {
            Tally::add(&over.tally.same_files, 1);
            self.mend(over, &file, &metadata)?;
        }
        Ok(is_same)
    }

    /// A file to be written: what is there of it is kept as far as it is the same.
    pub(in crate::restore) fn target(&self, path: &str) -> Result<TargetFile<'_>> {
        let Some(over) = &self.over else {
            let (file, path) = self.create_file(path)?;
            return Ok(TargetFile::new(file, path));
        };
        let (folder, inside) = self.place(path)?;
        let (file, before) = match self.usable(over, folder, &inside)? {
            Some((file, metadata)) => {
                self.mend(over, &file, &metadata)?;
                (Some(file), Some(metadata.len()))
            }
            None if over.only_looks => (None, None),
            None => {
                folder.remove_file(&inside)?;
                let file = folder.create_file(&inside, self.file_mode(), self.account)?;
                (Some(file), None)
            }
        };
        let path = folder.path().join(inside);
        let (tally, only_looks) = (&over.tally, over.only_looks);
        Ok(TargetFile::over(file, path, before, tally, only_looks))
    }

    /// A file that may be written to: one with another name would change there too.
    fn usable(
        &self,
        over: &Over,
        folder: &Folder,
        inside: &Path,
    ) -> Result<Option<(File, Metadata)>> {
        let file = folder.open_file(inside, !over.only_looks)?;
        Ok(file.filter(|(_, found)| {
            let is_ours = self.account.is_some() || found.uid() == over.owner.uid;
            found.nlink() == 1 && is_ours
        }))
    }

    /// Gives a file the mode and owner that it would have were it new.
    fn mend(&self, over: &Over, file: &File, found: &Metadata) -> Result<()> {
        if over.only_looks {
            return Ok(());
        }
        let mode = self.file_mode();
        let failed = |error| Error::io("change a file of", self.root.folder.path(), &error);
        if let Some(account) = self.account
            && Account::owning(found) != account
        {
            account.own(file).map_err(failed)?;
        }
        if found.mode() & 0o7777 != mode {
            let mode = Permissions::from_mode(mode);
            file.set_permissions(mode).map_err(failed)?;
        }
        Ok(())
    }

    /// Leaves what is there to the next run, and lets the account have it again: it cannot be started.
    pub(super) fn leave_half_done(&self) -> Result<()> {
        log::warn!(
            "{} is half changed and cannot be started: the same command, run again, goes on with it",
            self.root.folder.path().display()
        );
        self.give_away()
    }
}

/// The folder of further files, which the account may have filled with links: none leads out of it.
fn extra_claimed(
    existing: &Existing,
    path: &Path,
    mode: u32,
    account: Option<Account>,
) -> Result<Claimed> {
    let above = existing.above.again()?;
    let name = Path::new(path.file_name().unwrap_or_default());
    let is_new = !above.has(name)?;
    above.create_folders(name, mode)?;
    let folder = above.real_subfolder(name)?;
    match account.filter(|account| account.uid != 0 && !is_new) {
        Some(account) if folder.metadata()?.uid() != account.uid => Err(Error::failed(format!(
            "{} is not user {}'s, to whom the further files of the backup go",
            path.display(),
            account.uid
        ))
        .hint("move it away")),
        _ => Claimed::take(above, folder, is_new, mode, account),
    }
}

/// A tablespace's folder must be free, or be this data directory's already.
fn claim_tablespace(placed: &Placed, existing: &Existing) -> Result<()> {
    let folder = &placed.folder;
    running::refuse_tablespace(folder).map_err(|error| {
        error.hint("give the restored cluster another folder with --tablespace OLD=NEW")
    })?;
    refuse_nested(folder, existing.folder.path())?;
    if existing.has_tablespace_in(folder) || is_empty(folder)? {
        return Ok(());
    }
    Err(Error::failed(format!(
        "{} is not empty, and no tablespace of {}",
        folder.display(),
        existing.folder.path().display()
    ))
    .hint("give the tablespace another folder with --tablespace OLD=NEW, or empty that one"))
}

/// The folder of a tablespace that the cluster will not have any more, if it is there.
fn dropped_tablespace(folder: &Path, account: Option<Account>) -> Result<Option<Folder>> {
    if !folder.is_dir() {
        return Ok(None);
    }
    running::refuse_tablespace(folder)?;
    let held = Folder::open(folder)?;
    match account.filter(|account| account.uid != 0) {
        // Whoever has the data directory could make its links lead anywhere.
        Some(account) if held.metadata()?.uid() != account.uid => {
            Err(belongs_to_another(folder, &held, account))
        }
        _ => Ok(Some(held)),
    }
}

impl Claimed {
    /// A folder that is only looked at; where it is not there, the one that it would be made in.
    fn seen(path: &Path) -> Result<Claimed> {
        let folder = nearest(path)?;
        Ok(Claimed {
            above: folder.again()?,
            folder,
            before: None,
        })
    }
}
