//! A finished backup opened for reading: what it holds, and where.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};

use crate::error::{Error, Result};
use crate::pg::history::{TimelineHistory, WalRange, file_name};
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::repository::backup_info::BackupInfo;
use crate::repository::checksums::{self, Checksums};
use crate::repository::file_list::{FileList, ListReader, Listed};
use crate::repository::layout::{self, BackupFolder};
use crate::repository::portions::{Portion, Portions};
use crate::stored::checksum::{Sha512Digest, Sha512Hasher};
use crate::stored::coding::Coding;
use crate::stored::master_key::Keyring;
use crate::stored::reader::{read_hashed, read_whole};

/// A backup whose list of files has been read and is sound. The files it names have not been looked at.
pub struct Contents {
    /// Where it lies.
    pub folder: BackupFolder,
    /// What is known about it.
    pub info: BackupInfo,
    /// How its stored files are read.
    pub coding: Coding,
    /// Every file of the cluster.
    pub list: FileList,
}

impl Contents {
    /// Reads the list of a backup, with the master key that it is encrypted with.
    pub fn read(folder: &BackupFolder, keys: &Keyring) -> Result<Contents> {
        let info = BackupInfo::read(folder)?;
        let coding = info.coding(keys)?;
        Contents::read_list(folder, info, coding)
    }

    /// Reads the list of a backup of which this is known.
    pub fn read_list(folder: &BackupFolder, info: BackupInfo, coding: Coding) -> Result<Contents> {
        let mut list = FileList::default();
        visit_list(folder, &info, &coding, |listed| list.push(listed))?;
        list.files.sort();
        Ok(Contents {
            folder: folder.clone(),
            info,
            coding,
            list,
        })
    }

    /// All content by the files' places in the list, the largest files first.
    pub fn portions(&self) -> Portions<u32> {
        let files = self.list.files.iter().enumerate();
        Portions::new(files.map(|(place, file)| (place, file.size, file.bundle)))
    }

    /// Where a portion is stored, as a path in the backup's folder.
    pub fn stored(&self, portion: Portion<'_, u32>) -> String {
        let suffix = self.coding.suffix();
        match portion {
            Portion::Alone(place) => {
                layout::stored_file(&self.list.files.get(place).stored_path(), suffix)
            }
            Portion::Bundle(number, _) => layout::bundle(number, suffix),
        }
    }

    /// The WAL that the backup needs to become consistent, by the history of its timeline that it holds.
    pub fn wal_ranges(&self) -> Result<Vec<WalRange>> {
        let info = &self.info;
        let timeline = info.end_timeline;
        let path = format!("pg_wal/{}", file_name(timeline));
        let history = match self.list.find(&path) {
            None => TimelineHistory::without_ancestors(timeline),
            Some(_) => {
                let stored = layout::stored_file(&path, self.coding.suffix());
                let text = read_whole(self.folder.stored(&stored), &self.coding)?;
                TimelineHistory::parse(timeline, &String::from_utf8_lossy(&text))?
            }
        };
        history.ranges(info.start_lsn, info.end_lsn, timeline)
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
    let mut missing = vec![true; checksums.len()];
    for path in folder.place().files()? {
        if let Some(place) = checksums.find(&path) {
            missing[place] = false;
        }
    }
    match missing.iter().position(|is_missing| *is_missing) {
        None => Ok(()),
        Some(place) => Err(Error::damage(format!(
            "backup {} lacks its file {}",
            info.backup,
            folder.stored(checksums.at(place).0)
        ))
        .hint("choose another backup, or make a full one")),
    }
}

/// Reads `backup.sha512`, which must be the one that `backup.info` knows.
pub fn read_checksums(folder: &BackupFolder, info: &BackupInfo) -> Result<Checksums> {
    let mut all = Checksums::default();
    visit_checksums(folder, info, |path, digest| all.insert(path, digest))?;
    all.sort();
    Ok(all)
}

/// Reads `backup.sha512` line by line. What was visited counts for nothing where it is not the file that `backup.info` knows.
fn visit_checksums(
    folder: &BackupFolder,
    info: &BackupInfo,
    mut visit: impl FnMut(&str, Sha512Digest),
) -> Result<()> {
    let path = folder.checksums();
    let unreadable = |error| Error::stored("read", &path, &error);
    let mut text = BufReader::new(path.open()?);
    let mut hasher = Sha512Hasher::default();
    let mut wrong = Ok(());
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if text.read_until(b'\n', &mut line).map_err(unreadable)? == 0 {
            break;
        }
        hasher.update(&line);
        let line = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line));
        match checksums::read_line(number, &line) {
            Ok((path, digest)) => visit(&path, digest),
            Err(error) => wrong = wrong.and(Err(error)),
        }
    }
    if Some(hasher.finish()) != info.checksums_digest() {
        return Err(
            Error::damage(format!("{path} was changed since the backup was made"))
                .hint("choose another backup"),
        );
    }
    wrong.map_err(|error| error.context(&path))
}

/// Reads the list of a backup's files, line by line. Where an error comes of it, what was visited counts for nothing.
pub fn visit_list(
    folder: &BackupFolder,
    info: &BackupInfo,
    coding: &Coding,
    mut visit: impl FnMut(Listed<'_>),
) -> Result<()> {
    let stored = layout::file_list(coding.suffix());
    let path = folder.stored(&stored);
    let mut expected = None;
    visit_checksums(folder, info, |path, digest| {
        if path == stored {
            expected = Some(digest);
        }
    })?;
    let mut lines = ListReader::default();
    let mut visited = Ok(());
    let mut part = vec![0; 64 * 1024];
    let (digest, decoded) = read_hashed(&path, coding, &mut part, |text| {
        if visited.is_ok() {
            visited = lines.push(text, &mut visit);
        }
    })?;
    let damaged = |why: &str| Error::damage(format!("{path} {why}")).hint("choose another backup");
    if expected != Some(digest) {
        return Err(damaged("was changed since the backup was made"));
    }
    decoded.map_err(|why| damaged(&format!("cannot be decoded: {why}")))?;
    visited
        .and_then(|()| lines.finish(&mut visit))
        .map_err(|error| error.context(&path))
}
