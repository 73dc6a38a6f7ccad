//! Pages whose checksum is wrong, and which of them are damaged.
//!
//! A page that is being written while it is read looks damaged too; replay mends it, because the
//! server writes whole pages into the WAL during a backup. Such a page is newer than the backup's start.
//! A page that claims to be newer than the backup's end was never written by this server.

use crate::backup::plan::Plan;
use crate::pg::changed_blocks::{ChangedBlocks, RelationFork};
use crate::pg::lsn::Lsn;
use crate::pg::page::{PAGE_SIZE, PageVerdict, lsn, verify};
use crate::pg::relation::RelationFile;
use crate::repository::backup_info::CorruptPage;

/// A page whose checksum does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Suspect {
    /// The file's place in the plan.
    pub(super) file: usize,
    /// The page's number in that file.
    pub(super) block: u32,
    expected: u16,
    found: u16,
    lsn: Lsn,
}

/// How pages are judged in this backup.
pub(super) struct PageCheck {
    start: Lsn,
    segment_blocks: u32,
}

/// What one worker sees of the pages that it reads.
pub(super) struct Pages<'a> {
    /// Where pages carry checksums.
    check: Option<&'a PageCheck>,
    /// The newest page whose checksum, if it has one, fits: the server's WAL went that far at least.
    pub(super) newest: Lsn,
}

impl<'a> Pages<'a> {
    /// None yet.
    pub(super) fn new(check: Option<&'a PageCheck>) -> Pages<'a> {
        Pages {
            check,
            newest: Lsn::default(),
        }
    }

    /// The pages in `content` whose checksums do not fit; `first_block` is its first page's number in the file.
    pub(super) fn look_at(
        &mut self,
        file: usize,
        relation: RelationFile<'_>,
        first_block: u32,
        content: &[u8],
    ) -> Vec<Suspect> {
        let suspects: Vec<Suspect> = match self.check {
            Some(check) => check
                .suspects(file, relation, first_block, content)
                .collect(),
            None => Vec::new(),
        };
        let mut torn = suspects.iter().map(|suspect| suspect.block).peekable();
        let (pages, _) = content.as_chunks::<PAGE_SIZE>();
        for (block, page) in (first_block..).zip(pages) {
            if torn.next_if_eq(&block).is_none() {
                self.newest = self.newest.max(lsn(page));
            }
        }
        suspects
    }
}

impl PageCheck {
    /// For a backup that starts here, of relations with so many blocks a segment file.
    pub(super) fn new(start: Lsn, segment_blocks: u32) -> PageCheck {
        PageCheck {
            start,
            segment_blocks,
        }
    }

    /// The pages in `content` whose checksums do not fit; `first_block` is its first page's number in the file.
    pub(super) fn suspects<'a>(
        &'a self,
        file: usize,
        relation: RelationFile<'_>,
        first_block: u32,
        content: &'a [u8],
    ) -> impl Iterator<Item = Suspect> + 'a {
        let base = relation.segment.wrapping_mul(self.segment_blocks);
        let (pages, _) = content.as_chunks::<PAGE_SIZE>();
        (first_block..).zip(pages).filter_map(move |(block, page)| {
            // No LSN excuses a page here: which are too new is known only at the end.
            match verify(page, base.wrapping_add(block), Lsn(u64::MAX), Some(Lsn(0))) {
                PageVerdict::Bad {
                    expected,
                    found,
                    lsn,
                } => Some(Suspect {
                    file,
                    block,
                    expected,
                    found,
                    lsn,
                }),
                _ => None,
            }
        })
    }

    /// Whether it is worth reading the page again: it did not change during the backup, so it may
    /// have been half written just then.
    pub(super) fn is_worth_another_look(&self, suspect: &Suspect) -> bool {
        suspect.lsn < self.start
    }
}

/// Which blocks of which relations these are.
pub(super) fn doubtful(suspects: &[Suspect], plan: &Plan, segment_blocks: u32) -> ChangedBlocks {
    let mut blocks = ChangedBlocks::new();
    for suspect in suspects {
        if let Some((fork, block)) = block_of(suspect, plan, segment_blocks) {
            blocks.mark(fork, block);
        }
    }
    blocks
}

/// Takes out the pages that the backup's WAL has images of, by which replay writes them anew without a look at what they hold
/// (access/transam/xlogutils.c, XLogReadBufferForRedoExtended). One that was read half written is among them: the first change
/// of a page since the backup's start brings its image (access/transam/xloginsert.c, XLogRecordAssemble).
pub(super) fn forget_replaced(
    suspects: &mut Vec<Suspect>,
    images: &ChangedBlocks,
    plan: &Plan,
    segment_blocks: u32,
) {
    suspects.retain(|suspect| {
        let named = block_of(suspect, plan, segment_blocks);
        let changes = named.and_then(|(fork, block)| Some((images.get(&fork)?, block)));
        changes.is_none_or(|(changes, block)| !changes.blocks.contains(block))
    });
}

/// Which block of which fork it is.
fn block_of(suspect: &Suspect, plan: &Plan, segment_blocks: u32) -> Option<(RelationFork, u32)> {
    let relation = plan.files.get(suspect.file).relation()?;
    let first = relation.segment.saturating_mul(segment_blocks);
    let fork = RelationFork::of(&relation)?;
    Some((fork, first.saturating_add(suspect.block)))
}

/// The suspects that no replay mends, now that the backup's end is known.
pub(super) fn corrupt_pages(
    suspects: &[Suspect],
    start: Lsn,
    stop: Lsn,
    path: impl Fn(usize) -> String,
) -> Vec<CorruptPage> {
    let mut corrupt: Vec<CorruptPage> = suspects
        .iter()
        .filter(|suspect| suspect.lsn < start || suspect.lsn > stop)
        .map(|suspect| CorruptPage {
            file: path(suspect.file),
            block: suspect.block,
            fault: fault(suspect, stop),
        })
        .collect();
    corrupt.sort_by(|one, other| (&one.file, one.block).cmp(&(&other.file, other.block)));
    corrupt
}

fn fault(suspect: &Suspect, stop: Lsn) -> String {
    let Suspect {
        expected,
        found,
        lsn,
        ..
    } = suspect;
    let checksum = format!("checksum {found:04X} where {expected:04X} fits its content");
    if *lsn > stop {
        format!("{checksum}, LSN {lsn} beyond the end of the WAL")
    } else {
        format!("{checksum}, LSN {lsn}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pg::page::checksum;
    use crate::pg::version::Major;
    use crate::stored::coding::Suffix;

    fn page(lsn: u64, block: u32, good: bool) -> Vec<u8> {
        let mut page = [7_u8; PAGE_SIZE];
        page[0..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        let sum = checksum(&page, block);
        page[8..10].copy_from_slice(&(if good { sum } else { !sum }).to_le_bytes());
        page.to_vec()
    }

    #[test]
    fn what_replay_writes_anew_is_not_corrupt() {
        let plan = Plan::unlisted(Major::V15, Suffix::PLAIN, 0);
        let place = plan.files.arrive("base/5/16384.1", 4 * PAGE_SIZE as u64, 0);
        let relation = plan.files.get(place).relation().unwrap();
        let content = [page(50, 131_072, false), page(50, 131_073, false)].concat();
        let check = PageCheck::new(Lsn(100), 131_072);
        let mut suspects: Vec<Suspect> = check.suspects(place, relation, 0, &content).collect();
        let mut images = ChangedBlocks::new();
        images.mark(RelationFork::of(&relation).unwrap(), 131_073);
        forget_replaced(&mut suspects, &images, &plan, 131_072);
        let left: Vec<u32> = suspects.iter().map(|suspect| suspect.block).collect();
        assert_eq!(left, [0]);
    }

    #[test]
    fn only_old_and_absurd_pages_are_corrupt() {
        let relation = RelationFile::parse("base/5/16384.1", "PG_15_202209061").unwrap();
        let check = PageCheck::new(Lsn(100), 131_072);
        let content = [
            page(50, 131_072, true),
            page(50, 131_073, false),
            page(150, 131_074, false),
            page(500, 131_075, false),
            vec![0xFF; PAGE_SIZE],
        ]
        .concat();
        let suspects: Vec<Suspect> = check.suspects(3, relation, 0, &content).collect();
        assert_eq!(suspects.len(), 4);
        assert!(check.is_worth_another_look(&suspects[0]));
        assert!(!check.is_worth_another_look(&suspects[1]));
        let corrupt = corrupt_pages(&suspects, Lsn(100), Lsn(200), |_| {
            "base/5/16384.1".to_owned()
        });
        let blocks: Vec<u32> = corrupt.iter().map(|page| page.block).collect();
        assert_eq!(blocks, [1, 3, 4]);
        assert!(corrupt[1].fault.contains("beyond the end"));
    }
}
