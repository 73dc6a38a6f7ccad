//! The plain content of a stored file, against all that is known of it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::error::Error;
use crate::pg::incremental::HeaderReader;
use crate::pg::page::{PAGE_SIZE, PageVerdict, verify};
use crate::pg::relation::RelationFile;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::version::Major;
use crate::pg::wal::SegmentCheck;
use crate::repository::backup_info::BackupInfo;
use crate::repository::contents::Contents;
use crate::repository::file_list::{Crc32c, FileEntry, FileKind};
use crate::repository::portions::Portion;
use crate::repository::store::SLICE_BYTES;
use crate::stored::bundle::visit_members;

/// How many of a file's problems are told.
const TOLD: usize = 5;

/// No more memory is taken beforehand for one, whatever a list says of its files.
const LARGEST_BUNDLE: u64 = 2 * SLICE_BYTES;

/// Takes the content of one stored file as it comes.
pub(super) enum Content<'a> {
    /// A file stored by itself.
    Alone(Box<FileContent<'a>>),
    /// A bundle, which is small enough to be held.
    Bundle {
        contents: &'a Contents,
        /// Its files, by their places in the list.
        files: &'a [u32],
        /// Its tar.
        tar: Vec<u8>,
    },
    /// One of the backup's own files, of which only the SHA-512 is known.
    Unknown,
}

impl<'a> Content<'a> {
    pub(super) fn new(contents: &'a Contents, portion: Portion<'a, u32>) -> Content<'a> {
        match portion {
            Portion::Alone(place) => {
                let file = contents.list.files.get(place);
                Content::Alone(Box::new(FileContent::new(&contents.info, file)))
            }
            Portion::Bundle(_, files) => Content::Bundle {
                contents,
                files,
                tar: Vec::with_capacity(tar_bytes(contents, files)),
            },
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
    pub(super) fn problem(self, path: &str) -> Option<String> {
        match self {
            Content::Alone(file) => file.problem(),
            Content::Bundle {
                contents,
                files,
                tar,
            } => bundle_problem(path, contents, files, &tar),
            Content::Unknown => None,
        }
    }
}

/// How long a tar of these files is, if it has no others.
fn tar_bytes(contents: &Contents, files: &[u32]) -> usize {
    let sizes = files
        .iter()
        .map(|place| contents.list.files.get(*place as usize).size);
    // A header each, what fills the last block, and two empty blocks at the end.
    let bytes: u64 = sizes.map(|size| size + 1024).sum::<u64>() + 1024;
    bytes.min(LARGEST_BUNDLE) as usize
}

fn bundle_problem(path: &str, contents: &Contents, files: &[u32], tar: &[u8]) -> Option<String> {
    let listed = files
        .iter()
        .map(|place| contents.list.files.get(*place as usize));
    let mut missing: BTreeMap<Cow<'_, str>, FileEntry<'_>> =
        listed.map(|file| (file.stored_path(), file)).collect();
    let mut problems = Vec::new();
    let visited = visit_members(&path, tar, |member, content| {
        // What is not in the list was dropped after it was read.
        if let Some(file) = missing.remove(member) {
            let mut whole = FileContent::new(&contents.info, file);
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
            .into_keys()
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
    file: FileEntry<'a>,
    blocks: Blocks,
    relation: Option<RelationFile<'a>>,
    wal: Option<SegmentCheck>,
    size: u64,
    crc32c: u32,
    problems: Vec<String>,
}

/// Which blocks of its file a stored file holds.
enum Blocks {
    /// All; so many have come.
    All(u32),
    /// Those of a header that is not complete yet.
    Header(HeaderReader),
    /// Those that the header named and that have not come yet.
    Listed(std::vec::IntoIter<u32>),
    /// There is no telling, the header is bad.
    Unknown,
}

impl<'a> FileContent<'a> {
    fn new(info: &'a BackupInfo, file: FileEntry<'a>) -> FileContent<'a> {
        let major = Major::from_number(info.major_version);
        let relation = major
            .filter(|_| info.data_checksums)
            .and_then(|major| RelationFile::parse(file.path, &major.tablespace_directory()));
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
        let blocks = match file.kind {
            FileKind::Whole => Blocks::All(0),
            FileKind::Incremental { .. } => {
                Blocks::Header(HeaderReader::new(file.size, info.relation_segment_blocks))
            }
        };
        FileContent {
            info,
            file,
            blocks,
            relation,
            wal,
            size: 0,
            crc32c: 0,
            problems: Vec::new(),
        }
    }

    fn take(&mut self, part: &[u8]) {
        let pages = self.take_header(part);
        if let Some(relation) = &self.relation {
            let base = relation
                .segment
                .wrapping_mul(self.info.relation_segment_blocks);
            let (pages, _) = pages.as_chunks::<PAGE_SIZE>();
            for page in pages {
                let Some(block) = self.blocks.next_number() else {
                    break;
                };
                let absolute = base.wrapping_add(block);
                if let PageVerdict::Bad {
                    expected, found, ..
                } = verify(page, absolute, self.info.start_lsn, Some(self.info.end_lsn))
                {
                    self.problems.push(format!(
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

    /// Takes what belongs to the header of an incremental file; what is left are pages.
    fn take_header<'p>(&mut self, part: &'p [u8]) -> &'p [u8] {
        let Blocks::Header(reader) = &mut self.blocks else {
            return part;
        };
        match reader.push(part) {
            Ok(None) => &[],
            Ok(Some((header, pages))) => {
                let found = FileKind::Incremental {
                    blocks: header.blocks.len() as u32,
                    length: header.length,
                };
                if found != self.file.kind {
                    self.problems.push(format!(
                        "its header tells of {} blocks of {}, other than the list of files",
                        header.blocks.len(),
                        header.length
                    ));
                }
                self.blocks = Blocks::Listed(header.blocks.into_iter());
                pages
            }
            Err(error) => {
                self.problems.push(error.message().to_owned());
                self.blocks = Blocks::Unknown;
                &[]
            }
        }
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
        if matches!(self.blocks, Blocks::Header(_)) {
            return Some("ends inside its header".to_owned());
        }
        if let Some(Err(fault)) = self.wal.map(SegmentCheck::finish) {
            return Some(fault.to_string());
        }
        told(self.problems)
    }
}

impl Blocks {
    /// The number of the next block in its file.
    fn next_number(&mut self) -> Option<u32> {
        match self {
            Blocks::All(count) => {
                let block = *count;
                *count = block.wrapping_add(1);
                Some(block)
            }
            Blocks::Listed(numbers) => numbers.next(),
            Blocks::Header(_) | Blocks::Unknown => None,
        }
    }
}
