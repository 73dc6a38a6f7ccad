//! A finished backup opened for reading: what it holds, and where.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fs;

use crate::error::{Error, Result};
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::repository::backup_info::BackupInfo;
use crate::repository::checksums::Checksums;
use crate::repository::durable;
use crate::repository::file_list::{FileEntry, FileList};
use crate::repository::layout::{self, BackupFolder};
use crate::stored::checksum::sha512;
use crate::stored::coding::Coding;
use crate::stored::master_key::Keyring;
use crate::stored::reader::read_hashed;

/// A backup whose own lists have been read and are sound. The files they name have not been looked at.
pub struct Contents {
    /// Where it lies.
    pub folder: BackupFolder,
    /// What is known about it.
    pub info: BackupInfo,
    /// How its stored files are read.
    pub coding: Coding,
    /// Every file of the cluster.
    pub list: FileList,
    /// Every stored file.
    pub checksums: Checksums,
}

/// Stored content that is read in one go.
pub enum Portion<'a> {
    /// A file stored by itself.
    Alone(&'a FileEntry),
    /// Small files in one bundle, by their paths in it.
    Bundle(u32, BTreeMap<Cow<'a, str>, &'a FileEntry>),
}

impl Contents {
    /// Reads the lists of a backup, with the master key that it is encrypted with.
    pub fn read(folder: &BackupFolder, keys: &Keyring) -> Result<Contents> {
        let info = BackupInfo::read(folder)?;
        let coding = info.coding(keys)?;
        Contents::read_lists(folder, info, coding)
    }

    /// Reads the lists of a backup of which this is known.
    pub fn read_lists(folder: &BackupFolder, info: BackupInfo, coding: Coding) -> Result<Contents> {
        let checksums = read_checksums(folder, &info)?;
        let list = read_list(folder, &coding, &checksums)?;
        Ok(Contents {
            folder: folder.clone(),
            info,
            coding,
            list,
            checksums,
        })
    }

    /// Where a portion is stored, as a path in the backup's folder.
    pub fn stored(&self, portion: &Portion<'_>) -> String {
        match portion {
            Portion::Alone(file) => layout::stored_file(&file.stored_path(), self.info.suffix()),
            Portion::Bundle(number, _) => layout::bundle(*number, self.info.suffix()),
        }
    }

    /// All content, the largest files first.
    pub fn portions(&self) -> Vec<Portion<'_>> {
        let mut alone = Vec::new();
        let mut bundles: BTreeMap<u32, BTreeMap<Cow<'_, str>, &FileEntry>> = BTreeMap::new();
        for file in &self.list.files {
            match file.bundle {
                None => alone.push(file),
                Some(number) => {
                    let members = bundles.entry(number).or_default();
                    members.insert(file.stored_path(), file);
                }
            }
        }
        alone.sort_by_key(|file| std::cmp::Reverse(file.size));
        let bundles = bundles
            .into_iter()
            .map(|(number, members)| Portion::Bundle(number, members));
        alone
            .into_iter()
            .map(Portion::Alone)
            .chain(bundles)
            .collect()
    }

    /// The WAL segments that the backup needs and does not hold.
    pub fn missing_wal(&self) -> Result<Vec<String>> {
        let info = &self.info;
        let size = SegmentSize::new(info.wal_segment_size)
            .ok_or_else(|| Error::damage("backup.info has an impossible WAL segment size"))?;
        let held: HashSet<SegmentNumber> = self
            .list
            .files
            .iter()
            .filter_map(|file| SegmentName::parse(file.path.strip_prefix("pg_wal/")?, size))
            .map(|segment| segment.number)
            .collect();
        let first = info.start_lsn.segment(size).0;
        let last = info.end_lsn.previous_segment(size).0.max(first);
        let name = |number| SegmentName {
            timeline: info.end_timeline,
            number,
        };
        Ok((first..=last)
            .map(SegmentNumber)
            .filter(|number| !held.contains(number))
            .map(|number| name(number).file_name(size))
            .collect())
    }
}

/// An error where a stored file of a backup is not there; none of them is opened.
pub fn check_presence(folder: &BackupFolder, info: &BackupInfo) -> Result<()> {
    let checksums = read_checksums(folder, info)?;
    for (path, _) in checksums.iter() {
        let path = folder.stored(path);
        if !durable::exists(&path)? {
            return Err(Error::damage(format!(
                "backup {} lacks its file {}",
                info.backup,
                path.display()
            ))
            .hint("choose another backup, or make a full one"));
        }
    }
    Ok(())
}

/// Reads `backup.sha512`, which must be the one that `backup.info` knows.
pub fn read_checksums(folder: &BackupFolder, info: &BackupInfo) -> Result<Checksums> {
    let path = folder.checksums();
    let text = fs::read(&path).map_err(|error| Error::stored("read", &path, &error))?;
    if Some(sha512(&text)) != info.checksums_digest() {
        return Err(Error::damage(format!(
            "{} was changed since the backup was made",
            path.display()
        ))
        .hint("choose another backup"));
    }
    Checksums::parse(&String::from_utf8_lossy(&text)).map_err(|error| error.context(path.display()))
}

/// The list is read whole; it has a line a file.
fn read_list(folder: &BackupFolder, coding: &Coding, checksums: &Checksums) -> Result<FileList> {
    let stored = layout::file_list(coding.suffix());
    let path = folder.stored(&stored);
    let mut text = Vec::new();
    let mut part = vec![0; 64 * 1024];
    let (digest, decoded) = read_hashed(&path, coding, &mut part, |bytes| {
        text.extend_from_slice(bytes);
    })?;
    let damaged = |why: &str| {
        Error::damage(format!("{} {why}", path.display())).hint("choose another backup")
    };
    if checksums.get(&stored) != Some(digest) {
        return Err(damaged("was changed since the backup was made"));
    }
    decoded.map_err(|why| damaged(&format!("cannot be decoded: {why}")))?;
    FileList::read(&text[..]).map_err(|error| error.context(path.display()))
}
