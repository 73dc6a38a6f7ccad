//! A range of WAL, pieced together from whatever knows what changed in it.

use crate::pg::history::WalRange;
use crate::pg::lsn::Lsn;
use crate::repository::backup_info::ChangeSource;
use crate::server::pg_wal::Summary;

/// A source for a part of the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// A WAL summary of the server.
    Summary(Summary),
    /// WAL that has to be read.
    Wal(WalRange),
}

impl Piece {
    /// What kind of source it is.
    pub(super) fn source(&self) -> ChangeSource {
        match self {
            Piece::Summary(_) => ChangeSource::Summaries,
            Piece::Wal(_) => ChangeSource::Wal,
        }
    }
}

/// Pieces that cover the range in its order. A piece may begin before the range or the piece in front
/// of it, and end after it: what is said to have changed and did not costs little.
pub(super) fn cover(range: &WalRange, summaries: &[Summary]) -> Vec<Piece> {
    let of_timeline = || {
        summaries
            .iter()
            .filter(|summary| summary.name.timeline == range.timeline)
    };
    let mut pieces = Vec::new();
    let mut position = range.start;
    while position < range.end {
        let furthest = of_timeline()
            .filter(|summary| summary.name.start <= position && position < summary.name.end)
            .max_by_key(|summary| summary.name.end);
        if let Some(summary) = furthest {
            pieces.push(Piece::Summary(*summary));
            position = summary.name.end;
            continue;
        }
        let next: Lsn = of_timeline()
            .map(|summary| summary.name.start)
            .filter(|start| *start > position)
            .min()
            .map_or(range.end, |start| start.min(range.end));
        pieces.push(Piece::Wal(WalRange {
            timeline: range.timeline,
            start: position,
            end: next,
        }));
        position = next;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::changed_blocks::SummaryName;
    use crate::pg::lsn::Timeline;

    fn summary(timeline: u32, start: u64, end: u64) -> Summary {
        Summary {
            name: SummaryName {
                timeline: Timeline(timeline),
                start: Lsn(start),
                end: Lsn(end),
            },
            size: 32,
        }
    }

    fn covered(summaries: &[Summary]) -> Vec<(char, u64, u64)> {
        let range = WalRange {
            timeline: Timeline(2),
            start: Lsn(100),
            end: Lsn(200),
        };
        cover(&range, summaries)
            .into_iter()
            .map(|piece| match piece {
                Piece::Summary(summary) => ('s', summary.name.start.0, summary.name.end.0),
                Piece::Wal(range) => ('w', range.start.0, range.end.0),
            })
            .collect()
    }

    #[test]
    fn summaries_serve_as_far_as_they_go() {
        let all = [
            summary(2, 50, 120),
            summary(2, 120, 150),
            summary(2, 150, 230),
        ];
        assert_eq!(
            covered(&all),
            [('s', 50, 120), ('s', 120, 150), ('s', 150, 230)]
        );
    }

    #[test]
    fn wal_fills_what_they_leave_open() {
        assert_eq!(covered(&[]), [('w', 100, 200)]);
        assert_eq!(
            covered(&[
                summary(2, 120, 150),
                summary(2, 160, 190),
                summary(1, 0, 500)
            ]),
            [
                ('w', 100, 120),
                ('s', 120, 150),
                ('w', 150, 160),
                ('s', 160, 190),
                ('w', 190, 200)
            ]
        );
    }

    #[test]
    fn summaries_that_overlap_or_lie_outside_do_no_harm() {
        let all = [
            summary(2, 90, 130),
            summary(2, 90, 160),
            summary(2, 10, 90),
            summary(2, 200, 300),
        ];
        assert_eq!(covered(&all), [('s', 90, 160), ('w', 160, 200)]);
    }
}
