//! A range of WAL, pieced together from whatever knows what changed in it.

use std::iter::Peekable;

use crate::pg::history::WalRange;
use crate::pg::lsn::{Lsn, Timeline};
use crate::repository::block_maps::StoredMap;
use crate::server::pg_wal::Summary;

/// A source for a part of the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// A WAL summary of the server.
    Summary(Summary),
    /// A block map of the repository.
    BlockMap(&'a StoredMap),
    /// WAL that has to be read.
    Wal(WalRange),
}

impl Piece<'_> {
    /// The WAL it is of.
    pub(super) fn range(&self) -> WalRange {
        let name = match self {
            Piece::Wal(range) => return *range,
            Piece::Summary(summary) => summary.name,
            Piece::BlockMap(map) => map.name,
        };
        WalRange {
            timeline: name.timeline,
            start: name.start,
            end: name.end,
        }
    }
}

/// Pieces that cover the range in its order. A piece may begin before the range or the piece in front
/// of it, and end after it: what is said to have changed and did not costs little. Where a summary does,
/// no block map is taken.
pub(super) fn cover<'a>(
    range: &WalRange,
    summaries: &[Summary],
    maps: &'a [StoredMap],
) -> Vec<Piece<'a>> {
    let summaries = summaries.iter().copied().map(Piece::Summary);
    let mut summaries = Line::new(range.timeline, summaries);
    let mut maps = Line::new(range.timeline, maps.iter().map(Piece::BlockMap));
    let mut pieces = Vec::new();
    let mut position = range.start;
    while position < range.end {
        summaries.advance(position);
        maps.advance(position);
        let piece = summaries.at(position).or_else(|| maps.at(position));
        let piece = piece.unwrap_or_else(|| {
            let next = [summaries.next_start(), maps.next_start()];
            let next = next.into_iter().flatten().min();
            Piece::Wal(WalRange {
                timeline: range.timeline,
                start: position,
                end: next.map_or(range.end, |start| start.min(range.end)),
            })
        });
        pieces.push(piece);
        position = piece.range().end;
    }
    pieces
}

/// The pieces of one kind on a timeline, gone along once: there is one for each segment of the WAL, so up to
/// millions.
struct Line<'a> {
    /// Those that begin behind the position reached, in order.
    ahead: Peekable<std::vec::IntoIter<Piece<'a>>>,
    /// The one that goes furthest of those that begin before.
    furthest: Option<Piece<'a>>,
}

impl<'a> Line<'a> {
    fn new(timeline: Timeline, pieces: impl Iterator<Item = Piece<'a>>) -> Line<'a> {
        let mut of_timeline: Vec<Piece<'a>> = pieces
            .filter(|piece| piece.range().timeline == timeline)
            .collect();
        of_timeline.sort_by_key(|piece| piece.range().start);
        Line {
            ahead: of_timeline.into_iter().peekable(),
            furthest: None,
        }
    }

    /// Goes on to a position, which never lies before the last one.
    fn advance(&mut self, position: Lsn) {
        while let Some(piece) = self.ahead.next_if(|piece| piece.range().start <= position) {
            let reached = self.furthest.map(|furthest| furthest.range().end);
            if reached <= Some(piece.range().end) {
                self.furthest = Some(piece);
            }
        }
    }

    /// The piece that goes furthest of those that have the position reached.
    fn at(&self, position: Lsn) -> Option<Piece<'a>> {
        self.furthest.filter(|piece| position < piece.range().end)
    }

    /// Where the next piece begins.
    fn next_start(&mut self) -> Option<Lsn> {
        Some(self.ahead.peek()?.range().start)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::pg::changed_blocks::SummaryName;

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
        covered_with(summaries, &[])
    }

    fn covered_with(summaries: &[Summary], maps: &[StoredMap]) -> Vec<(char, u64, u64)> {
        let range = WalRange {
            timeline: Timeline(2),
            start: Lsn(100),
            end: Lsn(200),
        };
        cover(&range, summaries, maps)
            .into_iter()
            .map(|piece| {
                let kind = match piece {
                    Piece::Summary(_) => 's',
                    Piece::BlockMap(_) => 'm',
                    Piece::Wal(_) => 'w',
                };
                (kind, piece.range().start.0, piece.range().end.0)
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
    fn block_maps_serve_where_no_summary_does() {
        let maps = [(90, 130), (130, 170)].map(|(start, end)| StoredMap {
            name: summary(2, start, end).name,
            path: PathBuf::new().into(),
        });
        assert_eq!(
            covered_with(&[summary(2, 120, 150)], &maps),
            [
                ('m', 90, 130),
                ('s', 120, 150),
                ('m', 130, 170),
                ('w', 170, 200)
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

    #[test]
    fn as_many_pieces_as_a_large_archive_has_are_gone_along_once() {
        let maps: Vec<StoredMap> = (0..100_000)
            .map(|number| StoredMap {
                name: summary(2, 10 * number, 10 * number + 10).name,
                path: PathBuf::new().into(),
            })
            .collect();
        // A summary for every second one.
        let summaries: Vec<Summary> = (0..100_000)
            .step_by(2)
            .map(|number| summary(2, 10 * number, 10 * number + 10))
            .collect();
        let range = WalRange {
            timeline: Timeline(2),
            start: Lsn(5),
            end: Lsn(1_000_005),
        };
        let pieces = cover(&range, &summaries, &maps);
        assert_eq!(pieces.len(), 100_001);
        let mut position = range.start;
        for piece in &pieces {
            assert!(piece.range().start <= position && piece.range().end > position);
            position = piece.range().end;
        }
        assert_eq!(position, range.end);
        assert!(matches!(pieces[100], Piece::Summary(_)));
        assert!(matches!(pieces[101], Piece::BlockMap(_)));
        assert!(matches!(pieces[100_000], Piece::Wal(_)));
    }
}
