//! Rows on a page of a table (storage/bufpage.h, storage/itemid.h, access/htup_details.h).
//!
//! ```text
//! page   12  u16  pd_lower     end of the line pointers, which begin at 24
//! line pointer, 32 bits: lp_off 15, lp_flags 2 (1: a row is there), lp_len 15
//! row     4  u32  t_xmax
//!        20  u16  t_infomask
//!        22  u8   t_hoff       where its content begins
//! ```

use crate::pg::little_endian::{u16_at, u32_at};
use crate::pg::page::PAGE_SIZE;

const PD_LOWER: usize = 12;
const LINE_POINTERS: usize = 24;
const NORMAL: u32 = 1;
const T_XMAX: usize = 4;
const T_INFOMASK: usize = 20;
const T_HOFF: usize = 22;
const ROW_HEADER: usize = 23;

const XMAX_LOCK_ONLY: u16 = 0x0080;
const XMIN_COMMITTED: u16 = 0x0100;
const XMIN_INVALID: u16 = 0x0200;
const XMAX_INVALID: u16 = 0x0800;

/// Where a row is in its table (ItemPointerData).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowPlace {
    /// The block.
    pub block: u32,
    /// The line pointer on it, from 1.
    pub offset: u16,
}

/// A row as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredRow<'a> {
    /// Its line pointer, from 1.
    pub offset: u16,
    /// Whether nobody is known to have replaced or deleted it, nor the one who wrote it to have failed.
    pub is_current: bool,
    /// What is behind its header.
    pub content: &'a [u8],
}

/// The rows on a page. What cannot be one is passed over.
pub fn rows(page: &[u8; PAGE_SIZE]) -> impl Iterator<Item = StoredRow<'_>> {
    let lower = usize::from(u16_at(page, PD_LOWER)).min(PAGE_SIZE);
    let pointers = page.get(LINE_POINTERS..lower).unwrap_or_default();
    let (pointers, _) = pointers.as_chunks::<4>();
    (1..).zip(pointers).filter_map(|(offset, pointer)| {
        let pointer = u32::from_le_bytes(*pointer);
        let (at, flags, length) = (pointer & 0x7FFF, pointer >> 15 & 3, pointer >> 17);
        let bytes = page.get(at as usize..(at + length) as usize)?;
        if flags != NORMAL || bytes.len() < ROW_HEADER {
            return None;
        }
        let infomask = u16_at(bytes, T_INFOMASK);
        let is_replaced =
            u32_at(bytes, T_XMAX) != 0 && infomask & (XMAX_INVALID | XMAX_LOCK_ONLY) == 0;
        // Both bits together mean that it is frozen.
        let has_failed = infomask & (XMIN_COMMITTED | XMIN_INVALID) == XMIN_INVALID;
        Some(StoredRow {
            offset,
            is_current: !is_replaced && !has_failed,
            content: bytes.get(usize::from(bytes[T_HOFF])..)?,
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_are_where_the_line_pointers_say() {
        let mut page = [0; PAGE_SIZE];
        page[PD_LOWER] = 24 + 4 * 4;
        let mut put = |number: usize, at: u32, flags: u32, length: u32| {
            let pointer = at | flags << 15 | length << 17;
            page[24 + 4 * number..][..4].copy_from_slice(&pointer.to_le_bytes());
        };
        put(0, 8000, 1, 40);
        // A redirection, and one that leads out of the page.
        put(1, 3, 2, 0);
        put(2, 8190, 1, 40);
        put(3, 7000, 1, 30);
        page[8022] = 32;
        page[8032..8040].fill(7);
        page[7022] = 24;
        page[7004] = 9;
        let found: Vec<_> = rows(&page).collect();
        let row = |offset, is_current, content| StoredRow {
            offset,
            is_current,
            content,
        };
        assert_eq!(found, [row(1, true, &[7; 8][..]), row(4, false, &[0; 6])]);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 200), lower: u16) {
            let mut page = [0; PAGE_SIZE];
            for (place, byte) in page.iter_mut().enumerate() {
                *byte = bytes[place % bytes.len()];
            }
            page[PD_LOWER..PD_LOWER + 2].copy_from_slice(&lower.to_le_bytes());
            prop_assert!(rows(&page).count() < PAGE_SIZE);
        }
    }
}
