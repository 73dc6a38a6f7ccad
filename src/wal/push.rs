//! One file from a server's `archive_command`.
//!
//! Only once the file is in the archive, checked and on disk, does this return without an error:
//! PostgreSQL then forgets the file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::parallel;
use crate::pg::control::{CONTROL_FILE, ControlFile};
use crate::pg::history::TimelineHistory;
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::segment::SegmentName;
use crate::pg::version::Major;
use crate::pg::wal::{FirstPage, behind_page_header};
use crate::pg::wal_file::{WalFileKind, WalFileName};
use crate::repository::block_maps::BlockMaps;
use crate::repository::catalogue::Catalogue;
use crate::repository::incoming::Finished;
use crate::repository::layout::ServerFolder;
use crate::repository::wal_archive::{ClusterIdentity, Stored, WalArchive};
use crate::stored::coding::Coding;
use crate::stored::master_key::Keyring;
use crate::stored::reader::StoredReader;
use crate::wal::examine::Examiner;
use crate::wal::{admit, partial};

/// What to archive, whereto and how.
pub struct Request<'a> {
    /// The server's name in the configuration.
    pub server: &'a str,
    /// Its part of the repository.
    pub folder: &'a ServerFolder,
    /// The file, named as in `pg_wal`.
    pub path: &'a Path,
    /// How segments and block maps are stored.
    pub coding: &'a Coding,
    /// The keys that the archive's files may be encrypted with.
    pub keys: Keyring,
}

/// More than any history or backup history file has.
const TEXT_LIMIT: u64 = 1 << 20;

/// Bytes that are read and stored at a time.
const PART_BYTES: usize = 256 << 10;

/// Archives the file.
pub fn run(request: &Request<'_>, interrupt: &Interrupt) -> Result<Stored> {
    let file_name = request.path.file_name().unwrap_or_default();
    let name = file_name
        .to_str()
        .and_then(WalFileName::parse)
        .ok_or_else(|| {
            Error::usage(format!(
                "{} is not named as a file of the WAL is",
                request.path.display()
            ))
            .hint("archive_command = 'pgkeep wal push SERVER %p'")
        })?;
    match (name.kind(), name.timeline_of_history()) {
        (WalFileKind::Segment, _) => push_segment(request, &name, interrupt),
        (WalFileKind::Partial, _) => push_partial(request, &name, interrupt),
        (WalFileKind::History, Some(timeline)) => push_text(request, &name, |text| {
            TimelineHistory::parse(timeline, text).map(drop)
        }),
        (WalFileKind::History | WalFileKind::BackupHistory, _) => {
            push_text(request, &name, |text| {
                if text.starts_with("START WAL LOCATION: ") {
                    Ok(())
                } else {
                    Err(Error::damage("it is no backup history file"))
                }
            })
        }
    }
}

/// Neither kind has anything secret in it, and both are small: they are stored as they are.
fn push_text(
    request: &Request<'_>,
    name: &WalFileName,
    check: impl Fn(&str) -> Result<()>,
) -> Result<Stored> {
    let path = request.path;
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(TEXT_LIMIT).read_to_end(&mut content))
        .map_err(|error| Error::io("read", path, &error))?;
    check(&String::from_utf8_lossy(&content)).map_err(|error| error.context(path.display()))?;
    let archive = claim(request, cluster_of_text(request)?)?;
    let mut file = archive.begin(&Coding::PLAIN)?;
    file.append(&content)?;
    archive.store(name, file.finish()?)
}

fn push_segment(
    request: &Request<'_>,
    name: &WalFileName,
    interrupt: &Interrupt,
) -> Result<Stored> {
    let (archive, segment) = open_segment(request, name)?;
    if let Some(stored) = archive.find(name)? {
        archive.expect_same(&stored, &mut source(request)?)?;
        return Ok(Stored::Already);
    }
    let (file, examiner) = parallel::both(
        || copy(request, &archive, interrupt),
        || Examiner::in_front_of(segment, &archive),
    );
    let (file, mut examiner) = (file?, examiner?);
    match examiner.examine(segment, &mut file.open()?) {
        Ok(maps) => {
            let block_maps = BlockMaps::of(request.folder);
            admit(&archive, &block_maps, name, file, maps, request.coding)
        }
        Err(error) => match switch_inside(&archive, segment)? {
            Some(switch) => store_left(request, &archive, segment, switch, &file)
                .map_err(|_| rejected(request, &error)),
            None => Err(rejected(request, &error)),
        },
    }
}

fn push_partial(
    request: &Request<'_>,
    name: &WalFileName,
    interrupt: &Interrupt,
) -> Result<Stored> {
    let (archive, segment) = open_segment(request, name)?;
    let file = copy(request, &archive, interrupt)?;
    let end = partial::end_of_records(archive.cluster(), segment, &mut file.open()?)?;
    partial::store(&archive, segment, end, file)
}

/// The archive for the cluster that wrote a segment, and the segment's name.
fn open_segment(request: &Request<'_>, name: &WalFileName) -> Result<(WalArchive, SegmentName)> {
    let path = request.path;
    let unreadable = |error| Error::io("read", path, &error);
    let file = File::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    let mut beginning = Vec::new();
    file.take(FirstPage::BYTES as u64)
        .read_to_end(&mut beginning)
        .map_err(unreadable)?;
    let page = FirstPage::parse(&beginning).ok_or_else(|| {
        Error::damage(format!(
            "{} is no WAL segment of PostgreSQL {} to {}",
            path.display(),
            Major::V14.number(),
            Major::V18.number()
        ))
    })?;
    let size = page.segment_size;
    if length != size.bytes() {
        return Err(Error::damage(format!(
            "{} has {length} bytes, and a segment of its cluster has {}",
            path.display(),
            size.bytes()
        )));
    }
    let segment = name
        .segment_name(size)
        .filter(|segment| segment.number.start(size) == page.address)
        .ok_or_else(|| {
            Error::damage(format!(
                "{} holds the WAL from {} on, which is another segment",
                path.display(),
                page.address
            ))
        })?;
    let cluster = ClusterIdentity {
        system_identifier: page.system_identifier,
        major: page.major,
        segment_size: size,
    };
    Ok((claim(request, cluster)?, segment))
}

fn claim(request: &Request<'_>, cluster: ClusterIdentity) -> Result<WalArchive> {
    WalArchive::claim(
        request.folder,
        request.server,
        cluster,
        request.keys.clone(),
    )
}

/// No text says which cluster it is of. The control file beside `pg_wal` does, or else what the
/// repository has already.
fn cluster_of_text(request: &Request<'_>) -> Result<ClusterIdentity> {
    if let Some(cluster) = cluster_beside(request.path) {
        return Ok(cluster);
    }
    if let Some(archive) = WalArchive::open(request.folder, request.keys.clone())? {
        return Ok(archive.cluster());
    }
    let catalogue = Catalogue::read(request.server, request.folder)?;
    let newest = catalogue.valid().next_back();
    newest
        .and_then(|backup| ClusterIdentity::of_backup(backup.info.as_ref().ok()?))
        .ok_or_else(|| {
            Error::failed(format!(
                "nothing tells which cluster {} is of",
                request.path.display()
            ))
            .hint("archive it from the data directory, or archive a segment first")
        })
}

fn cluster_beside(path: &Path) -> Option<ClusterIdentity> {
    let data_directory = path.parent()?.parent()?;
    let content = std::fs::read(data_directory.join(CONTROL_FILE)).ok()?;
    let control = ControlFile::parse(&content).ok()?;
    Some(ClusterIdentity {
        system_identifier: control.system_identifier,
        major: Major::ALL
            .into_iter()
            .find(|major| major.catalog_version() == control.catalog_version)?,
        segment_size: control.wal_segment_size,
    })
}

fn source(request: &Request<'_>) -> Result<StoredReader> {
    StoredReader::open(request.path, &Coding::PLAIN)
}

/// Writes the file into the archive, still without a name.
fn copy(request: &Request<'_>, archive: &WalArchive, interrupt: &Interrupt) -> Result<Finished> {
    let mut source = source(request)?;
    let mut file = archive.begin(request.coding)?;
    let mut part = vec![0; PART_BYTES];
    loop {
        interrupt.check()?;
        let filled = source.fill(&mut part)?;
        if filled == 0 {
            return file.finish();
        }
        file.append(&part[..filled])?;
    }
}

/// Where a timeline was left inside a segment, as far as the histories that are here tell.
fn switch_inside(archive: &WalArchive, segment: SegmentName) -> Result<Option<Lsn>> {
    let inventory = archive.inventory()?;
    let size = archive.cluster().segment_size;
    let switches = |timeline: Timeline| inventory.history(timeline).switch_point(segment.timeline);
    Ok(inventory
        .timelines()
        .into_iter()
        .filter_map(switches)
        .find(|switch| {
            switch.segment(size) == segment.number && switch.offset_in_segment(size) > 0
        }))
}

/// A standby that archives by itself does not rename the segment in which its primary left a timeline. It is stored as
/// what it is, unfinished.
fn store_left(
    request: &Request<'_>,
    archive: &WalArchive,
    segment: SegmentName,
    switch: Lsn,
    whole: &Finished,
) -> Result<Stored> {
    let cluster = archive.cluster();
    let size = cluster.segment_size;
    let end = partial::check(cluster, segment, switch, &mut whole.open()?)?;
    if behind_page_header(end, size) != behind_page_header(switch, size) {
        return Err(Error::damage(format!(
            "its records end at {end}, and its timeline was left at {switch}"
        )));
    }
    let used = switch.0 - segment.number.start(size).0;
    let mut content = whole.open()?;
    let mut file = archive.begin(request.coding)?;
    let mut part = vec![0; PART_BYTES];
    let mut position = 0;
    loop {
        let filled = content.fill(&mut part)?;
        if filled == 0 {
            break;
        }
        let behind = usize::try_from(used.saturating_sub(position)).unwrap_or(filled);
        part[behind.min(filled)..filled].fill(0);
        file.append(&part[..filled])?;
        position += filled as u64;
    }
    partial::store(archive, segment, end, file.finish()?)
}

fn rejected(request: &Request<'_>, error: &Error) -> Error {
    Error::damage(format!(
        "{} is not archived: {}",
        request.path.display(),
        error.message()
    ))
    .hint("see whether the segment before it is of another server; if not, the file is damaged: make a backup now, and check the disk")
}
