//! A finished backup opened for reading: what it holds, and where.

use std::collections::{BTreeMap, HashSet};
use std::fs;

use crate::error::{Error, Result};
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::repository::backup_info::BackupInfo;
use crate::repository::checksums::Checksums;
use crate::repository::file_list::{FileEntry, FileList};
use crate::repository::layout::{self, BackupFolder};
use crate::stored::checksum::sha512;
use crate::stored::reader::read_hashed;

/// A backup whose own lists have been read and are sound. The files they name have not been looked at.
pub struct Contents {
    /// Where it lies.
    pub folder: BackupFolder,
    /// What is known about it.
    pub info: BackupInfo,
    /// Every file of the cluster.
    pub list: FileList,
    /// Every stored file.
    pub checksums: Checksums,
}

/// Stored content that is read in one go.
pub enum Portion<'a> {
    /// A file stored by itself.
    Alone(&'a FileEntry),
    /// Small files in one bundle, by their paths.
    Bundle(u32, BTreeMap<&'a str, &'a FileEntry>),
}

impl Contents {
    /// Reads the lists of a backup.
    pub fn read(folder: &BackupFolder) -> Result<Contents> {
        let info = BackupInfo::read(folder)?;
        let checksums = read_checksums(folder, &info)?;
        let list = read_list(folder, &info, &checksums)?;
        Ok(Contents {
            folder: folder.clone(),
            info,
            list,
            checksums,
        })
    }

    /// Where a portion is stored, as a path in the backup's folder.
    pub fn stored(&self, portion: &Portion<'_>) -> String {
        match portion {
            Portion::Alone(file) => layout::stored_file(&file.path, self.info.compression),
            Portion::Bundle(number, _) => layout::bundle(*number, self.info.compression),
        }
    }

    /// All content, the largest files first.
    pub fn portions(&self) -> Vec<Portion<'_>> {
        let mut alone = Vec::new();
        let mut bundles: BTreeMap<u32, BTreeMap<&str, &FileEntry>> = BTreeMap::new();
        for file in &self.list.files {
            match file.bundle {
                None => alone.push(file),
                Some(number) => {
                    bundles.entry(number).or_default().insert(&file.path, file);
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
    let mut stored = checksums.iter().map(|(path, _)| folder.stored(path));
    match stored.find(|path| !path.exists()) {
        None => Ok(()),
        Some(path) => Err(Error::damage(format!(
            "backup {} lacks its file {}",
            info.backup,
            path.display()
        ))
        .hint("choose another backup, or make a full one")),
    }
}

/// Reads `backup.sha512`, which must be the one that `backup.info` knows.
pub fn read_checksums(folder: &BackupFolder, info: &BackupInfo) -> Result<Checksums> {
    let path = folder.checksums();
    let text = fs::read(&path)
        .map_err(|error| Error::damage(Error::io("read", &path, &error).message()))?;
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
fn read_list(folder: &BackupFolder, info: &BackupInfo, checksums: &Checksums) -> Result<FileList> {
    let stored = layout::file_list(info.compression);
    let path = folder.stored(&stored);
    let mut text = Vec::new();
    let mut part = vec![0; 64 * 1024];
    let (digest, decoded) = read_hashed(&path, info.compression, &mut part, |bytes| {
        text.extend_from_slice(bytes);
    })
    .map_err(|error| Error::damage(error.message()))?;
    let damaged = |why: &str| {
        Error::damage(format!("{} {why}", path.display())).hint("choose another backup")
    };
    if checksums.get(&stored) != Some(digest) {
        return Err(damaged("was changed since the backup was made"));
    }
    decoded.map_err(|why| damaged(&format!("cannot be decompressed: {why}")))?;
    FileList::read(&text[..]).map_err(|error| error.context(path.display()))
}
