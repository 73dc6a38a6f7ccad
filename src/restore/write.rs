//! The workers of a restore: read what is stored, check it, write it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::parallel::{self, Stop};
use crate::pg::control::{CONTROL_FILE, forbid_start_without_label};
use crate::pg::history::{TimelineHistory, WalRange, file_name};
use crate::pg::manifest::{BACKUP_MANIFEST_FILE, ManifestWriter};
use crate::pg::tablespace_map::TABLESPACE_MAP_FILE;
use crate::pg::version::Major;
use crate::progress::Progress;
use crate::repository::contents::{Contents, Portion};
use crate::repository::file_list::{Crc32c, FileEntry};
use crate::repository::layout;
use crate::restore::directory::DataDirectory;
use crate::stored::bundle::visit_members;
use crate::stored::reader::{StoredReader, read_whole};

/// Bytes that are read, checked and written at a time. With 1 MiB, which no longer stays in a core's
/// cache, the same restore took half as long again.
const PART_BYTES: usize = 256 << 10;

/// Not written as stored: the manifest is made anew, and the links of tablespaces are there already.
const LEFT_OUT: [&str; 2] = [BACKUP_MANIFEST_FILE, TABLESPACE_MAP_FILE];

/// Writes all files. Returns the checksum of `global/pg_control`, which is changed on the way:
/// without `backup_label` the cluster must not start.
pub(super) fn write_files(
    contents: &Contents,
    directory: &DataDirectory,
    workers: usize,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Crc32c> {
    let extra = contents.list.files.iter().filter(|file| file.is_extra());
    for file in extra {
        directory.create_extra_folders(&file.path)?;
    }
    let mut workers: Vec<Worker<'_>> = (0..workers)
        .map(|_| Worker {
            contents,
            directory,
            progress,
            part: vec![0; PART_BYTES],
        })
        .collect();
    let portions: Vec<Portion<'_>> = contents
        .portions()
        .into_iter()
        .filter(|portion| !matches!(portion, Portion::Alone(file) if is_special(file)))
        .collect();
    parallel::run(
        &mut workers,
        &portions,
        interrupt,
        |worker, portion, stop| worker.write(portion, stop),
        || Ok(()),
    )?;
    write_control_file(contents, directory)
}

fn is_special(file: &FileEntry) -> bool {
    file.path == CONTROL_FILE || LEFT_OUT.contains(&file.path.as_str())
}

struct Worker<'a> {
    contents: &'a Contents,
    directory: &'a DataDirectory,
    progress: &'a dyn Progress,
    part: Vec<u8>,
}

impl Worker<'_> {
    fn write(&mut self, portion: &Portion<'_>, stop: &Stop<'_>) -> Result<()> {
        let stored = self.contents.folder.stored(&self.contents.stored(portion));
        match portion {
            Portion::Alone(file) => self.write_alone(file, &stored, stop),
            Portion::Bundle(_, members) => {
                let tar = read_whole(&stored, &self.contents.coding)?;
                let mut left = members.len();
                visit_members(&stored, &tar, |path, content| {
                    stop.check()?;
                    // What is in the bundle but not in the list was dropped after it was read.
                    let Some(file) = members.get(path) else {
                        return Ok(());
                    };
                    left -= 1;
                    check(file, content.len() as u64, crc32c::crc32c(content), &stored)?;
                    let path = self.directory.path(path);
                    let mut target = self.directory.create_file(&path)?;
                    write_all(&mut target, content, &path)?;
                    self.progress.advance(file.size);
                    Ok(())
                })?;
                if left == 0 {
                    Ok(())
                } else {
                    Err(
                        Error::damage(format!("{} lacks {left} of its files", stored.display()))
                            .hint("run pgkeep verify on this backup, and restore another one"),
                    )
                }
            }
        }
    }

    fn write_alone(&mut self, file: &FileEntry, stored: &Path, stop: &Stop<'_>) -> Result<()> {
        let path = if file.is_extra() {
            self.directory.extra_path(&file.path)
        } else {
            self.directory.path(&file.path)
        };
        let mut target = self.directory.create_file(&path)?;
        let mut reader = StoredReader::open(stored, &self.contents.coding)?;
        let (mut size, mut crc32c) = (0, 0);
        loop {
            stop.check()?;
            let filled = reader.fill(&mut self.part)?;
            if filled == 0 {
                break;
            }
            let content = &self.part[..filled];
            size += filled as u64;
            crc32c = crc32c::crc32c_append(crc32c, content);
            write_all(&mut target, content, &path)?;
            self.progress.advance(filled as u64);
        }
        check(file, size, crc32c, stored)
    }
}

fn write_all(target: &mut File, content: &[u8], path: &Path) -> Result<()> {
    target
        .write_all(content)
        .map_err(|error| Error::io("write", path, &error))
}

/// What came out must be what went in.
fn check(file: &FileEntry, size: u64, crc32c: u32, stored: &Path) -> Result<()> {
    let damaged = |why: String| {
        Error::damage(format!(
            "{} is damaged: {} {why}",
            stored.display(),
            file.path
        ))
        .hint("run pgkeep verify on this backup, and restore another one")
    };
    if size != file.size {
        return Err(damaged(format!(
            "has {size} bytes in it, not {}",
            file.size
        )));
    }
    if Crc32c(crc32c) != file.crc32c {
        return Err(damaged("does not fit its checksum".to_owned()));
    }
    Ok(())
}

fn write_control_file(contents: &Contents, directory: &DataDirectory) -> Result<Crc32c> {
    let stored = layout::stored_file(CONTROL_FILE, contents.info.suffix());
    let stored = contents.folder.stored(&stored);
    let mut content = read_whole(&stored, &contents.coding)?;
    let file = contents
        .list
        .files
        .iter()
        .find(|file| file.path == CONTROL_FILE)
        .ok_or_else(|| {
            Error::damage(format!(
                "backup {} lists no {CONTROL_FILE}",
                contents.info.backup
            ))
        })?;
    check(
        file,
        content.len() as u64,
        crc32c::crc32c(&content),
        &stored,
    )?;
    forbid_start_without_label(&mut content)
        .map_err(|fault| Error::damage(format!("{}: {fault}", stored.display())))?;
    let path = directory.path(CONTROL_FILE);
    write_all(&mut directory.create_file(&path)?, &content, &path)?;
    Ok(Crc32c(crc32c::crc32c(&content)))
}

/// A manifest of what was written, for pg_verifybackup.
pub(super) fn write_manifest(
    contents: &Contents,
    directory: &DataDirectory,
    control_file: Crc32c,
) -> Result<()> {
    let info = &contents.info;
    let path = directory.path(BACKUP_MANIFEST_FILE);
    let failed = |error: std::io::Error| Error::io("write", &path, &error);
    let major = Major::from_number(info.major_version)
        .ok_or_else(|| Error::damage("backup.info has an unknown major version"))?;
    let target = BufWriter::new(directory.create_file(&path)?);
    let mut manifest =
        ManifestWriter::new(target, major.manifest_version(), info.system_identifier)
            .map_err(failed)?;
    let written = contents.list.files.iter().filter(|file| {
        !file.is_extra()
            && !file.path.starts_with("pg_wal/")
            && !LEFT_OUT.contains(&file.path.as_str())
    });
    for file in written {
        let crc32c = if file.path == CONTROL_FILE {
            control_file
        } else {
            file.crc32c
        };
        manifest
            .file(&file.path, file.size, file.modified, crc32c.0)
            .map_err(failed)?;
    }
    let mut target = manifest
        .finish(&wal_ranges(contents, directory)?)
        .map_err(failed)?;
    target.flush().map_err(failed)
}

fn wal_ranges(contents: &Contents, directory: &DataDirectory) -> Result<Vec<WalRange>> {
    let info = &contents.info;
    let path = directory.path(&format!("pg_wal/{}", file_name(info.end_timeline)));
    let history = match std::fs::read_to_string(&path) {
        Ok(text) => TimelineHistory::parse(info.end_timeline, &text)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            TimelineHistory::without_ancestors(info.end_timeline)
        }
        Err(error) => return Err(Error::io("read", &path, &error)),
    };
    history.ranges(info.start_lsn, info.end_lsn, info.end_timeline)
}
