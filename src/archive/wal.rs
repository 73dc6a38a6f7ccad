//! The archived WAL that goes with a cluster, so that it recovers wherever it is unpacked.

use std::ops::ControlFlow;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::recovery::target::TargetTimeline;
use crate::pg::segment::SegmentName;
use crate::pg::wal_file::WalFileName;
use crate::repository::contents::Contents;
use crate::repository::roll_forward::{HeldWal, Way};
use crate::restore::plan::Route;

/// Which archived WAL recovery needs.
pub struct NeededWal<'a> {
    /// What is held.
    held: &'a HeldWal,
    /// The timeline that recovery goes to.
    timeline: Timeline,
    /// The position behind the last record that is replayed; nothing for all there is.
    until: Option<Lsn>,
}

/// It, found and read once.
pub(super) struct FoundWal<'a> {
    pub(super) way: Way<'a>,
    /// Segments, with the paths they get.
    pub(super) segments: Vec<(String, SegmentName)>,
    /// History files, with the paths they get.
    pub(super) histories: Vec<(String, Vec<u8>)>,
    /// Bytes of a segment.
    pub(super) segment_bytes: u64,
}

impl FoundWal<'_> {
    /// The paths of all of it.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        let segments = self.segments.iter().map(|(path, _)| path.as_str());
        segments.chain(self.histories.iter().map(|(path, _)| path.as_str()))
    }

    /// Bytes of all of it.
    pub(super) fn bytes(&self) -> u64 {
        let histories = self
            .histories
            .iter()
            .map(|(_, content)| content.len() as u64);
        self.segment_bytes * self.segments.len() as u64 + histories.sum::<u64>()
    }
}

impl<'a> NeededWal<'a> {
    /// What a route needs beyond the backup's own.
    pub fn of(route: &Route, held: &'a HeldWal) -> Option<NeededWal<'a>> {
        let Route::Archive {
            timeline,
            destination,
        } = route
        else {
            return None;
        };
        Some(NeededWal {
            held,
            timeline: *timeline,
            until: destination
                .as_ref()
                .and_then(|destination| destination.landing.lsn),
        })
    }

    /// Finds it, and reads its records: a damaged one PostgreSQL takes for the end of all WAL.
    pub(super) fn find(&self, contents: &Contents, interrupt: &Interrupt) -> Result<FoundWal<'a>> {
        let info = &contents.info;
        let cluster = self.held.archive().cluster();
        let wanted = TargetTimeline::Number(self.timeline);
        let history = self.held.history(info, wanted)?;
        let timelines: Vec<Timeline> = history.path().iter().map(|range| range.timeline).collect();
        let way = self.held.way(&contents.folder, info, history)?;
        let until = self.until.unwrap_or(Lsn(u64::MAX));
        // To stop before a record, recovery reads that one as well.
        let reached = way.path.read(info.start_lsn, interrupt, &mut |record| {
            if record.start >= until {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        if reached < info.end_lsn.max(self.until.unwrap_or_default()) {
            return Err(Error::damage(format!(
                "the WAL that is held for backup {} can be read up to {reached} only",
                info.backup
            ))
            .hint("archive the backup with its own WAL: without a position"));
        }
        let needed = way.path.archived().filter(|(_, start)| *start < reached);
        let segments = needed
            .map(|(segment, _)| {
                let name = segment.file_name(cluster.segment_size);
                (format!("pg_wal/{name}"), segment)
            })
            .collect();
        let archive = self.held.archive();
        let mut histories = Vec::new();
        for timeline in timelines {
            let name = WalFileName::history(timeline);
            if let Some(stored) = archive.find(&name)? {
                let mut content = Vec::new();
                archive.read(&stored)?.read_to_end(&mut content)?;
                histories.push((format!("pg_wal/{name}"), content));
            }
        }
        Ok(FoundWal {
            way,
            segments,
            histories,
            segment_bytes: cluster.segment_size.bytes(),
        })
    }
}
