//! What a restore would do, without any of it.
//!
//! What speaks against it is found by the checks that the restore itself begins with, and is told all at once.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, accessat};
use walkdir::WalkDir;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::relation::positive_number;
use crate::pg::version::Major;
use crate::progress::Progress;
use crate::restore::directory::{account_for, ground, nearest, problems};
use crate::restore::folder::Folder;
use crate::restore::plan::major;
use crate::restore::tablespaces::{self, Placed};
use crate::restore::{
    Differences, Request, data_directory_name, existing_directory, expect_own_wal, made, space,
    write,
};

/// What a restore would do.
pub struct Preview {
    /// The data directory.
    pub root: PathBuf,
    /// Where its tablespaces would go.
    pub tablespaces: Vec<Placed>,
    /// Of a data directory that is there: what is different in it. Nothing where something speaks against the restore.
    pub differences: Option<Differences>,
    /// All that speaks against it; the restore would fail with the first.
    pub problems: Vec<Error>,
}

/// What a restore into an empty folder would do.
pub fn preview(request: &Request<'_>) -> Result<Preview> {
    let contents = &request.chain.newest;
    let root = request.target.path().join(data_directory_name(contents));
    let mut found: Vec<Error> = expect_own_wal(contents).err().into_iter().collect();
    let tablespaces = tablespaces::place(&contents.info, request.mappings, request.created)?;
    found.extend(problems(
        &root,
        contents,
        &tablespaces,
        request.created,
        request.force,
    ));
    match Grounds::find(request, &root, &tablespaces) {
        Err(error) => found.push(error),
        Ok(grounds) => {
            let held = match request.force {
                true => weigh(&root, &tablespaces, &major(&contents.info)?),
                false => BTreeMap::new(),
            };
            let held = |device| held.get(&device).copied().unwrap_or(0);
            found.extend(grounds.problems.iter().cloned());
            found.extend(
                space::check(
                    contents,
                    request.selection,
                    |path| Ok(grounds.of(path)),
                    held,
                )
                .err(),
            );
        }
    }
    Ok(Preview {
        root,
        tablespaces,
        differences: None,
        problems: found,
    })
}

/// What a restore over a data directory that is there would do: all in it is compared with the backup.
pub fn preview_over(
    request: &Request<'_>,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Preview> {
    let contents = &request.chain.newest;
    let (mut directory, root) = match existing_directory(request, true) {
        Ok(found) => found,
        Err(problems) => {
            return Ok(Preview {
                root: request.target.path().to_owned(),
                tablespaces: Vec::new(),
                differences: None,
                problems: problems.into_list(),
            });
        }
    };
    progress.step("look at what is there", None);
    let survey = directory.survey(contents, &made(request))?;
    directory.count_strays(&survey);
    let folder_for = |path: &str| directory.folder_for(path);
    let space = space::check(contents, request.selection, folder_for, |device| {
        survey.held(device)
    });
    progress.step("compare", Some(contents.info.restore_size));
    write::write_stored_files(
        request.chain,
        request.selection,
        &directory,
        request.workers,
        progress,
        interrupt,
    )?;
    Ok(Preview {
        root,
        tablespaces: directory.placed(),
        differences: Some(directory.differences()?),
        problems: space.err().into_iter().collect(),
    })
}

/// The folders that there are, in which others would be made.
struct Grounds {
    root: Folder,
    tablespaces: Vec<(u32, Folder)>,
    problems: Vec<Error>,
}

impl Grounds {
    fn find(request: &Request<'_>, root: &Path, tablespaces: &[Placed]) -> Result<Grounds> {
        let mut grounds = Grounds {
            root: nearest(root)?,
            tablespaces: Vec::new(),
            problems: Vec::new(),
        };
        grounds
            .problems
            .extend(expect_ours(&grounds.root, root).err());
        // A folder that root would make is root's own.
        let above = request.target.path();
        let account = match above.exists() {
            true => account_for(&nearest(above)?)?,
            false => None,
        };
        for placed in tablespaces {
            match ground(&placed.folder, placed.is_original, account) {
                Ok(folder) => {
                    grounds
                        .problems
                        .extend(expect_ours(&folder, &placed.folder).err());
                    grounds.tablespaces.push((placed.oid, folder));
                }
                Err(error) => grounds.problems.push(error),
            }
        }
        Ok(grounds)
    }

    /// Where a file of the backup goes, as far as that is there.
    fn of(&self, path: &str) -> &Folder {
        let inside = path.strip_prefix("pg_tblspc/");
        let oid = inside.and_then(|inside| positive_number(inside.split_once('/')?.0));
        let mut tablespaces = self.tablespaces.iter();
        let found = tablespaces.find(|(one, _)| Some(*one) == oid);
        found.map_or(&self.root, |(_, folder)| folder)
    }
}

/// An error where what is to be there cannot be made, or given its mode.
fn expect_ours(folder: &Folder, path: &Path) -> Result<()> {
    let ours = rustix::process::geteuid();
    if ours.is_root() {
        return Ok(());
    }
    if folder.path() == path {
        let owner = folder.metadata()?.uid();
        return match owner == ours.as_raw() {
            true => Ok(()),
            false => Err(Error::failed(format!(
                "{} belongs to user {owner}, and pgkeep runs as user {}",
                path.display(),
                ours.as_raw()
            ))
            .hint("run pgkeep as the user who owns that folder")),
        };
    }
    let access = Access::WRITE_OK | Access::EXEC_OK;
    accessat(folder, ".", access, AtFlags::empty())
        .map_err(|error| Error::io("create the folder", path, &error.into()))
}

/// Bytes on each file system that `--force` would free.
fn weigh(root: &Path, tablespaces: &[Placed], major: &Major) -> BTreeMap<u64, u64> {
    let version = major.tablespace_directory();
    let folders = tablespaces
        .iter()
        .map(|placed| placed.folder.join(&version));
    let mut weights = BTreeMap::new();
    for folder in folders.chain([root.to_owned()]) {
        for entry in WalkDir::new(folder).into_iter().flatten() {
            if let Ok(found) = entry.metadata()
                && found.is_file()
                && found.nlink() == 1
            {
                *weights.entry(found.dev()).or_default() += found.blocks() * 512;
            }
        }
    }
    weights
}
