//! WAL for tests, written the way PostgreSQL writes it (access/transam/xloginsert.c
//! and xlog.c).

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::page::WAL_PAGE_SIZE;
use super::record::{BlockReference, ResourceManager, XLOG_SWITCH};
use crate::pg::changed_blocks::RelationFork;
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::relation::Fork;
use crate::pg::segment::{SegmentNumber, SegmentSize};
use crate::pg::version::Major;

pub(super) const CLUSTER: u64 = 7_710_982_562_572_587_380;

/// A record to be written, or one that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) resource_manager: ResourceManager,
    pub(super) info: u8,
    pub(super) xid: u32,
    pub(super) blocks: Vec<BlockReference>,
    pub(super) main_data: Vec<u8>,
}

impl Content {
    /// A record of no blocks.
    pub(super) fn of(resource_manager: ResourceManager, info: u8, main_data: Vec<u8>) -> Content {
        Content {
            resource_manager,
            info,
            xid: 700,
            blocks: Vec::new(),
            main_data,
        }
    }
}

/// The bytes of WAL from the beginning of a segment.
#[derive(Debug, Clone)]
pub(super) struct Wal {
    pub(super) major: Major,
    pub(super) segment_size: SegmentSize,
    pub(super) timeline: Timeline,
    pub(super) start: Lsn,
    pub(super) bytes: Vec<u8>,
    previous: Lsn,
}

impl Wal {
    /// No WAL yet, from the seventh segment of 1 MiB on.
    pub(super) fn new(major: Major) -> Wal {
        let segment_size = SegmentSize::new(1 << 20).unwrap();
        let start = SegmentNumber(7).start(segment_size);
        Wal {
            major,
            segment_size,
            timeline: Timeline(1),
            start,
            bytes: Vec::new(),
            previous: Lsn(start.0 - 24),
        }
    }

    /// Where the next byte goes.
    pub(super) fn end(&self) -> Lsn {
        Lsn(self.start.0 + self.bytes.len() as u64)
    }

    /// Writes a record, and gives where it begins.
    pub(super) fn append(&mut self, content: &Content) -> Lsn {
        let mut record = encode(content, self.major, self.previous);
        self.begin_page(0, 0);
        let start = self.end();
        self.previous = start;
        while !record.is_empty() {
            self.begin_page(1, record.len() as u32);
            let room = WAL_PAGE_SIZE - self.bytes.len() % WAL_PAGE_SIZE;
            let now = record.drain(..record.len().min(room));
            self.bytes.extend(now);
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        start
    }

    /// Leaves the segment.
    pub(super) fn switch(&mut self) -> Lsn {
        let start = self.append(&Content::of(ResourceManager::XLOG, XLOG_SWITCH, Vec::new()));
        let end = self
            .bytes
            .len()
            .next_multiple_of(self.segment_size.bytes() as usize);
        self.bytes.resize(end, 0);
        start
    }

    /// Writes a record of which a crash leaves only what fits on the page, if it is
    /// too long for it, and the page that tells so.
    pub(super) fn cut_off(&mut self, content: &Content) -> bool {
        let previous = self.previous;
        let (length, start) = (self.bytes.len(), self.append(content));
        let page_end =
            (start.0 - self.start.0) as usize / WAL_PAGE_SIZE * WAL_PAGE_SIZE + WAL_PAGE_SIZE;
        self.previous = previous;
        if self.bytes.len() <= page_end {
            self.bytes.truncate(length);
            return false;
        }
        self.bytes.truncate(page_end);
        self.begin_page(8, 0);
        true
    }

    /// Writes the header of a page where one begins.
    fn begin_page(&mut self, flags: u16, rest: u32) {
        if !self.bytes.len().is_multiple_of(WAL_PAGE_SIZE) {
            return;
        }
        let page = self.end();
        let is_first = page.offset_in_segment(self.segment_size) == 0;
        let long = u16::from(is_first) << 1;
        self.bytes.extend(self.major.wal_page_magic().to_le_bytes());
        self.bytes.extend((flags | long).to_le_bytes());
        self.bytes.extend(self.timeline.0.to_le_bytes());
        self.bytes.extend(page.0.to_le_bytes());
        self.bytes.extend(rest.to_le_bytes());
        self.bytes.extend([0; 4]);
        if is_first {
            self.bytes.extend(CLUSTER.to_le_bytes());
            self.bytes
                .extend((self.segment_size.bytes() as u32).to_le_bytes());
            self.bytes.extend((WAL_PAGE_SIZE as u32).to_le_bytes());
        }
    }
}

fn encode(content: &Content, major: Major, previous: Lsn) -> Vec<u8> {
    let (mut headers, mut parts) = (Vec::new(), Vec::new());
    let mut last = None;
    for (number, reference) in (0..).zip(&content.blocks) {
        let BlockReference {
            fork,
            block,
            has_image,
            is_begun,
        } = reference;
        let is_same = last == Some((fork.tablespace, fork.database, fork.relfilenumber));
        last = Some((fork.tablespace, fork.database, fork.relfilenumber));
        // A block in three has data.
        let data = if block % 3 == 0 { 5_u16 } else { 0 };
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        headers.push(number);
        headers.push(
            fork.fork.number()
                | flag(*has_image, 0x10)
                | flag(data > 0, 0x20)
                | flag(*is_begun && !has_image, 0x40)
                | flag(is_same, 0x80),
        );
        headers.extend(data.to_le_bytes());
        if *has_image {
            let (length, flags) = image(&mut headers, major, *block);
            if *is_begun {
                headers[flags] |= if major == Major::V14 { 0x04 } else { 0x02 };
            }
            parts.resize(parts.len() + length, 0xA5);
        }
        parts.resize(parts.len() + usize::from(data), 0x5A);
        if !is_same {
            for field in [fork.tablespace, fork.database, fork.relfilenumber] {
                headers.extend(field.to_le_bytes());
            }
        }
        headers.extend(block.to_le_bytes());
    }
    if content.xid % 2 == 1 {
        headers.extend([253, 1, 2, 252, 1, 2, 3, 4]);
    }
    match u8::try_from(content.main_data.len()) {
        Ok(0) => {}
        Ok(length) => headers.extend([255, length]),
        Err(_) => {
            headers.push(254);
            headers.extend((content.main_data.len() as u32).to_le_bytes());
        }
    }
    parts.extend(&content.main_data);
    let length = 24 + headers.len() + parts.len();
    let mut record = (length as u32).to_le_bytes().to_vec();
    record.extend(content.xid.to_le_bytes());
    record.extend(previous.0.to_le_bytes());
    record.extend([content.info, content.resource_manager.0, 0, 0]);
    let checksum = crc32c::crc32c(&[&headers[..], &parts].concat());
    let checksum = crc32c::crc32c_append(checksum, &record);
    record.extend(checksum.to_le_bytes());
    record.extend(headers);
    record.extend(parts);
    record
}

/// Writes the header of an image of one of the kinds there are, and gives how many
/// bytes are stored, and where its flags are.
fn image(headers: &mut Vec<u8>, major: Major, block: u32) -> (usize, usize) {
    let compressions: &[u8] = if major == Major::V14 {
        &[2]
    } else {
        &[4, 8, 16]
    };
    let compression = compressions[block as usize / 4 % compressions.len()];
    let (length, hole_offset, flags, hole_length): (u16, u16, u8, Option<u16>) = match block % 4 {
        0 => (8192, 0, 0, None),
        1 => (6000, 60, 1, None),
        2 => (900, 0, compression, None),
        _ => (700, 60, 1 | compression, Some(3000)),
    };
    headers.extend(length.to_le_bytes());
    headers.extend(hole_offset.to_le_bytes());
    headers.push(flags);
    let place = headers.len() - 1;
    headers.extend(hole_length.into_iter().flat_map(u16::to_le_bytes));
    (usize::from(length), place)
}

/// Any record but a switch.
pub(super) fn content() -> impl Strategy<Value = Content> {
    let flags = (any::<bool>(), any::<bool>());
    let block = (1..3_u32, 0..4_u8, any::<u32>(), flags).prop_map(
        |(relfilenumber, fork, block, (has_image, is_begun))| BlockReference {
            fork: RelationFork {
                tablespace: 1663,
                database: 5,
                relfilenumber,
                fork: Fork::from_number(fork).unwrap(),
            },
            block,
            has_image,
            is_begun,
        },
    );
    let blocks = prop_oneof![
        4 => prop::collection::vec(block.clone(), 0..3),
        1 => prop::collection::vec(block, 0..34),
    ];
    let length = prop_oneof![4 => 0..60_usize, 2 => 200..300_usize, 1 => 0..30_000_usize];
    (0..22_u8, 0..3_u8, any::<u32>(), blocks, length).prop_map(
        |(resource_manager, info, xid, blocks, length)| Content {
            resource_manager: ResourceManager(resource_manager),
            info: info << 4,
            xid,
            blocks,
            main_data: (0..length).map(|byte| byte as u8).collect(),
        },
    )
}
