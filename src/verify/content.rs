//! The plain content of a stored file, against all that is known of it.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Error;
use crate::pg::page::{PAGE_SIZE, PageVerdict, verify};
use crate::pg::relation::RelationFile;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::version::Major;
use crate::pg::wal::SegmentCheck;
use crate::repository::backup_info::BackupInfo;
use crate::repository::contents::Portion;
use crate::repository::file_list::{Crc32c, FileEntry};
use crate::stored::bundle::visit_members;

/// How many of a file's problems are told.
const TOLD: usize = 5;

/// Takes the content of one stored file as it comes.
pub(super) enum Content<'a> {
    /// A file stored by itself.
    Alone(Box<FileContent<'a>>),
    /// A bundle, which is small enough to be held.
    Bundle {
        /// What is known about the backup.
        info: &'a BackupInfo,
        /// Its files.
        members: &'a BTreeMap<&'a str, &'a FileEntry>,
        /// Its tar.
        tar: Vec<u8>,
    },
    /// One of the backup's own files, of which only the SHA-512 is known.
    Unknown,
}

impl<'a> Content<'a> {
    pub(super) fn new(info: &'a BackupInfo, portion: Option<&'a Portion<'a>>) -> Content<'a> {
        match portion {
            Some(Portion::Alone(file)) => Content::Alone(Box::new(FileContent::new(info, file))),
            Some(Portion::Bundle(_, members)) => Content::Bundle {
                info,
                members,
                tar: Vec::new(),
            },
            None => Content::Unknown,
        }
    }

    /// Takes the next bytes; whole pages but for the last.
    pub(super) fn take(&mut self, part: &[u8]) {
        match self {
            Content::Alone(file) => file.take(part),
            Content::Bundle { tar, .. } => tar.extend_from_slice(part),
            Content::Unknown => {}
        }
    }

    /// What is wrong, now that all has been taken.
    pub(super) fn problem(self, path: &Path) -> Option<String> {
        match self {
            Content::Alone(file) => file.problem(),
            Content::Bundle { info, members, tar } => bundle_problem(path, info, members, &tar),
            Content::Unknown => None,
        }
    }
}

fn bundle_problem(
    path: &Path,
    info: &BackupInfo,
    members: &BTreeMap<&str, &FileEntry>,
    tar: &[u8],
) -> Option<String> {
    let mut missing: Vec<&str> = members.keys().copied().collect();
    let mut problems = Vec::new();
    let visited = visit_members(path, tar, |member, content| {
        // What is not in the list was dropped after it was read.
        if let Some(file) = members.get(member) {
            missing.retain(|name| name != &member);
            let mut whole = FileContent::new(info, file);
            whole.take(content);
            problems.extend(
                whole
                    .problem()
                    .map(|problem| format!("{member}: {problem}")),
            );
        }
        Ok(())
    });
    problems.extend(
        visited
            .err()
            .as_ref()
            .map(Error::message)
            .map(str::to_owned),
    );
    problems.extend(
        missing
            .into_iter()
            .map(|member| format!("{member} is missing in it")),
    );
    told(problems)
}

fn told(mut problems: Vec<String>) -> Option<String> {
    let more = problems.len().saturating_sub(TOLD);
    problems.truncate(TOLD);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    (!problems.is_empty()).then(|| problems.join("; "))
}

/// The content of one file of the cluster.
pub(super) struct FileContent<'a> {
    info: &'a BackupInfo,
    file: &'a FileEntry,
    relation: Option<RelationFile>,
    wal: Option<SegmentCheck>,
    size: u64,
    crc32c: u32,
    bad_pages: Vec<String>,
}

impl<'a> FileContent<'a> {
    fn new(info: &'a BackupInfo, file: &'a FileEntry) -> FileContent<'a> {
        let major = Major::from_number(info.major_version);
        let relation = major
            .filter(|_| info.data_checksums)
            .and_then(|major| RelationFile::parse(&file.path, &major.tablespace_directory()));
        // A segment that its timeline left unfinished is cut off where it was left.
        let whole = |segment: &SegmentName| segment.timeline == info.end_timeline;
        let wal = SegmentSize::new(info.wal_segment_size)
            .zip(major)
            .and_then(|(size, major)| {
                let name = file.path.strip_prefix("pg_wal/")?;
                let segment = SegmentName::parse(name, size).filter(whole)?;
                let identifier = info.system_identifier;
                Some(SegmentCheck::new(
                    major,
                    identifier,
                    segment,
                    size,
                    info.end_lsn,
                ))
            });
        FileContent {
            info,
            file,
            relation,
            wal,
            size: 0,
            crc32c: 0,
            bad_pages: Vec::new(),
        }
    }

    fn take(&mut self, part: &[u8]) {
        if let Some(relation) = &self.relation {
            let first = (self.size / PAGE_SIZE as u64) as u32;
            let base = relation
                .segment
                .wrapping_mul(self.info.relation_segment_blocks);
            let (pages, _) = part.as_chunks::<PAGE_SIZE>();
            for (block, page) in (first..).zip(pages) {
                let absolute = base.wrapping_add(block);
                if let PageVerdict::Bad {
                    expected, found, ..
                } = verify(page, absolute, self.info.start_lsn, Some(self.info.end_lsn))
                {
                    self.bad_pages.push(format!(
                        "block {block}: checksum {found:04X} where {expected:04X} fits its content"
                    ));
                }
            }
        }
        if let Some(wal) = &mut self.wal {
            wal.push(part);
        }
        self.size += part.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, part);
    }

    fn problem(self) -> Option<String> {
        if self.size != self.file.size {
            return Some(format!(
                "has {} bytes in it, not {}",
                self.size, self.file.size
            ));
        }
        if Crc32c(self.crc32c) != self.file.crc32c {
            return Some("does not fit its CRC-32C".to_owned());
        }
        if let Some(Err(fault)) = self.wal.map(SegmentCheck::finish) {
            return Some(fault.to_string());
        }
        told(self.bad_pages)
    }
}
