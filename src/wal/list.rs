//! What the archive holds, by timelines, and what it is good for.

use crate::error::Result;
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::segment::SegmentName;
use crate::repository::backup_info::BackupInfo;
use crate::repository::catalogue::Catalogue;
use crate::repository::identifier::Identifier;
use crate::repository::wal_archive::{ClusterIdentity, Contiguous, Inventory, WalArchive};
use crate::wal::gap::NamedGap;

/// Everything in the archive.
#[derive(Debug)]
pub struct Listing {
    /// Whose WAL it is.
    pub cluster: ClusterIdentity,
    /// Its timelines, in order.
    pub timelines: Vec<TimelineListing>,
    /// Every gap.
    pub gaps: Vec<NamedGap>,
}

/// The WAL of one timeline.
#[derive(Debug)]
pub struct TimelineListing {
    /// Which one.
    pub timeline: Timeline,
    /// The timeline it came from, and where; unknown without its history file.
    pub parent: Option<(Timeline, Lsn)>,
    /// Whether its history file is missing. The first timeline has none.
    pub lacks_history: bool,
    /// Whole segments without a gap in between.
    pub parts: Vec<Part>,
    /// Unfinished segments.
    pub partials: Vec<String>,
}

/// Segments without a gap in between.
#[derive(Debug)]
pub struct Part {
    /// The first one.
    pub first: String,
    /// The last one.
    pub last: String,
    /// How many.
    pub segments: u64,
    /// Where the first one begins.
    pub start: Lsn,
    /// Where the last one ends.
    pub end: Lsn,
    /// The backups that can be rolled forward into it.
    pub backups: Vec<Identifier>,
}

/// Looks through the archive.
pub fn run(archive: &WalArchive, catalogue: &Catalogue) -> Result<Listing> {
    let inventory = archive.inventory()?;
    let ways: Vec<Way> = catalogue
        .valid()
        .filter_map(|backup| backup.info.as_ref().ok())
        .flat_map(|info| ways(&inventory, info))
        .collect();
    let timelines = inventory
        .timelines()
        .into_iter()
        .map(|timeline| list_timeline(archive, &inventory, &ways, timeline))
        .collect();
    Ok(Listing {
        cluster: archive.cluster(),
        timelines,
        gaps: NamedGap::all(&inventory.gaps(), archive.cluster().segment_size),
    })
}

fn list_timeline(
    archive: &WalArchive,
    inventory: &Inventory,
    ways: &[Way],
    timeline: Timeline,
) -> TimelineListing {
    let size = archive.cluster().segment_size;
    let part = |(first, last): (SegmentName, SegmentName)| {
        let leads_here = |way: &&Way| {
            let mut stretches = way.stretches.iter();
            stretches.any(|(begin, end)| *begin <= last && first <= *end)
        };
        let mut backups: Vec<Identifier> = ways
            .iter()
            .filter(leads_here)
            .map(|way| way.backup)
            .collect();
        backups.dedup();
        Part {
            first: first.file_name(size),
            last: last.file_name(size),
            segments: last.number.0 - first.number.0 + 1,
            start: first.number.start(size),
            end: last.number.next().start(size),
            backups,
        }
    };
    let partials = inventory.partials_of(timeline);
    TimelineListing {
        timeline,
        parent: inventory.history(timeline).parent(),
        lacks_history: timeline > Timeline(1) && !inventory.holds_history(timeline),
        parts: inventory.runs_of(timeline).into_iter().map(part).collect(),
        partials: partials.map(|segment| segment.file_name(size)).collect(),
    }
}

/// WAL that a backup can be rolled forward by.
struct Way {
    backup: Identifier,
    /// Of each timeline that it goes along, the first segment and the last one.
    stretches: Vec<(SegmentName, SegmentName)>,
}

/// The ways forward from a backup: one a timeline that goes on from it. Up to its end it has its own WAL.
fn ways(inventory: &Inventory, info: &BackupInfo) -> Vec<Way> {
    let mut ways = Vec::new();
    for timeline in inventory.timelines() {
        let history = inventory.history(timeline);
        let left = history.switch_point(info.end_timeline);
        let leads_on =
            history.contains(info.end_timeline) && left.is_none_or(|left| info.end_lsn <= left);
        if leads_on {
            ways.push(Way {
                backup: info.backup,
                stretches: stretches(&inventory.contiguous(&history, info.end_lsn)),
            });
        }
    }
    ways
}

/// An archive has many segments, and a way goes along few timelines.
fn stretches(wal: &Contiguous) -> Vec<(SegmentName, SegmentName)> {
    let of_timelines = wal
        .segments
        .chunk_by(|one, next| one.timeline == next.timeline);
    of_timelines
        .filter_map(|segments| Some((*segments.first()?, *segments.last()?)))
        .collect()
}
