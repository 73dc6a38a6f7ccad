//! Pages of relations: their checksum (storage/checksum_impl.h) and the rule
//! by which a page copied from a running server is found good or bad.
//!
//! The header of a page (storage/bufpage.h, PageHeaderData), as far as it
//! matters here:
//!
//! ```text
//!  0  u32  pd_lsn, upper half   end of the WAL record that last changed it
//!  4  u32  pd_lsn, lower half
//!  8  u16  pd_checksum          zero while checksums are off
//! 14  u16  pd_upper             end of free space; zero in a page never used
//! ```

use crate::pg::little_endian::{u16_at, u32_at};
use crate::pg::lsn::Lsn;

/// Bytes in a page (BLCKSZ), as every packager builds PostgreSQL.
pub const PAGE_SIZE: usize = 8192;

const PD_CHECKSUM: usize = 8;
const PD_UPPER: usize = 14;

/// Hashes that run side by side, each over every 32nd word of the page.
const LANES: usize = 32;
const ROW_BYTES: usize = LANES * 4;

/// The prime of the FNV-1a hash.
const FNV_PRIME: u32 = 16_777_619;

/// Where each lane begins (checksumBaseOffsets); the format fixes them.
const LANE_SEEDS: [u32; LANES] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
];

/// What can be said of a page that was copied during a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageVerdict {
    /// Its checksum is right.
    Good,
    /// It changed after the backup began: it may be torn, and WAL replay
    /// writes it anew.
    NewerThanBackup,
    /// It was never used.
    AllZero,
    /// It is damaged, unless it was being written just then: read it once more.
    Bad {
        /// The checksum of its content.
        expected: u16,
        /// The checksum that it carries.
        found: u16,
        /// When it was last changed, if that can be believed.
        lsn: Lsn,
    },
}

/// Judges one page. `block` counts from the beginning of the relation's fork,
/// over all of its segments. `start` is where the backup began; `upper`, where
/// known, is a position that no page can have been changed after, the end of
/// WAL once the page had been read: a page that claims more is not excused.
///
/// A page is taken for unused only if all of it is zero, where PostgreSQL looks
/// at pd_upper alone and so passes over pages that lost their first half.
pub fn verify(page: &[u8; PAGE_SIZE], block: u32, start: Lsn, upper: Option<Lsn>) -> PageVerdict {
    let lsn = lsn(page);
    if lsn >= start && upper.is_none_or(|upper| lsn <= upper) {
        return PageVerdict::NewerThanBackup;
    }
    let is_new = u16_at(page, PD_UPPER) == 0;
    if is_new && page.iter().all(|byte| *byte == 0) {
        return PageVerdict::AllZero;
    }
    let expected = checksum(page, block);
    let found = u16_at(page, PD_CHECKSUM);
    if expected == found && !is_new {
        return PageVerdict::Good;
    }
    PageVerdict::Bad {
        expected,
        found,
        lsn,
    }
}

/// The end of the WAL record that last changed the page (PageGetLSN).
pub fn lsn(page: &[u8; PAGE_SIZE]) -> Lsn {
    Lsn(u64::from(u32_at(page, 0)) << 32 | u64::from(u32_at(page, 4)))
}

/// The checksum that belongs into the header of a page (pg_checksum_page).
/// `block` counts from the beginning of the relation's fork.
///
/// The lanes do not depend on each other, so that the compiler can keep several
/// of them in one register: this runs over every byte of a cluster.
pub fn checksum(page: &[u8; PAGE_SIZE], block: u32) -> u16 {
    let (rows, _) = page.as_chunks::<ROW_BYTES>();
    let mut lanes = LANE_SEEDS;
    let mut rows = rows.iter();
    if let Some(first) = rows.next() {
        // The checksum does not cover itself.
        let mut header = *first;
        header[PD_CHECKSUM..PD_CHECKSUM + 2].fill(0);
        mix_row(&mut lanes, &header);
    }
    for row in rows {
        mix_row(&mut lanes, row);
    }
    for _ in 0..2 {
        mix_row(&mut lanes, &[0; ROW_BYTES]);
    }
    let folded = lanes.iter().fold(0, |folded, lane| folded ^ lane) ^ block;
    (folded % 65_535 + 1) as u16
}

#[inline(always)]
fn mix_row(lanes: &mut [u32; LANES], row: &[u8; ROW_BYTES]) {
    let (words, _) = row.as_chunks::<4>();
    for (lane, word) in lanes.iter_mut().zip(words) {
        let mixed = *lane ^ u32::from_le_bytes(*word);
        *lane = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Lsn = Lsn(0x0700_0028);

    /// A used page, last changed at `lsn`, with a right checksum.
    fn page(lsn: Lsn, block: u32) -> [u8; PAGE_SIZE] {
        let mut page = [0; PAGE_SIZE];
        for (index, byte) in page.iter_mut().enumerate() {
            *byte = (index * 31 % 251) as u8;
        }
        page[..4].copy_from_slice(&lsn.high().to_le_bytes());
        page[4..8].copy_from_slice(&lsn.low().to_le_bytes());
        let checksum = checksum(&page, block);
        page[PD_CHECKSUM..PD_CHECKSUM + 2].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    #[test]
    fn reads_the_upper_half_of_the_lsn_first() {
        assert_eq!(lsn(&page(Lsn(0x16_B374_D848), 0)), Lsn(0x16_B374_D848));
    }

    #[test]
    fn judges_pages() {
        let older = page(Lsn(0x0700_0027), 9);
        assert_eq!(verify(&older, 9, START, None), PageVerdict::Good);
        let bad = PageVerdict::Bad {
            expected: checksum(&older, 10),
            found: checksum(&older, 9),
            lsn: Lsn(0x0700_0027),
        };
        assert_eq!(verify(&older, 10, START, None), bad);
        assert_eq!(
            verify(&[0; PAGE_SIZE], 9, START, None),
            PageVerdict::AllZero
        );
    }

    #[test]
    fn excuses_newer_pages_unless_their_lsn_is_absurd() {
        let upper = Some(Lsn(0x0800_0000));
        let mut torn = page(START, 0);
        torn[5000] ^= 1;
        let newer = PageVerdict::NewerThanBackup;
        assert_eq!(verify(&torn, 0, START, None), newer);
        assert_eq!(verify(&torn, 0, START, upper), newer);
        assert_eq!(verify(&page(Lsn(0x0800_0000), 0), 1, START, upper), newer);
        let absurd = page(Lsn(0x0800_0001), 0);
        let verdict = verify(&absurd, 1, START, upper);
        assert!(matches!(verdict, PageVerdict::Bad { .. }), "{verdict:?}");
        assert_eq!(verify(&absurd, 1, START, None), newer);
    }

    #[test]
    fn an_unused_page_with_content_is_bad() {
        let mut headless = page(Lsn(1), 0);
        headless[..4096].fill(0);
        let verdict = verify(&headless, 0, START, None);
        assert!(matches!(verdict, PageVerdict::Bad { .. }), "{verdict:?}");
        // Even if its checksum happens to be right.
        let checksum = checksum(&headless, 0);
        headless[PD_CHECKSUM..PD_CHECKSUM + 2].copy_from_slice(&checksum.to_le_bytes());
        let verdict = verify(&headless, 0, START, None);
        assert!(matches!(verdict, PageVerdict::Bad { .. }), "{verdict:?}");
    }

    #[test]
    fn sums_as_postgresql_does() {
        let page = page(Lsn(0x16_B374_D848), 0);
        // What pg_checksum_page of PostgreSQL 18 returns for the same page.
        assert_eq!(checksum(&page, 0), 51360);
        assert_eq!(checksum(&page, 9), 51367);
        assert_eq!(checksum(&page, u32::MAX), 14177);
    }

    #[test]
    fn the_checksum_covers_all_but_itself() {
        let sound = page(Lsn(1), 7);
        for offset in (0..PAGE_SIZE).step_by(61).chain(0..32) {
            let mut changed = sound;
            changed[offset] ^= 0x10;
            let is_covered = !(PD_CHECKSUM..PD_CHECKSUM + 2).contains(&offset);
            assert_eq!(
                checksum(&changed, 7) != checksum(&sound, 7),
                is_covered,
                "{offset}"
            );
        }
    }
}
