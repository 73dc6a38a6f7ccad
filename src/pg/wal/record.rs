//! WAL records (access/xlogrecord.h; the rules are those of DecodeXLogRecord in
//! access/transam/xlogreader.c).
//!
//! ```text
//!  0  u32  xl_tot_len   bytes in the record, these 24 included
//!  4  u32  xl_xid
//!  8  u64  xl_prev      where the record before it begins
//! 16  u8   xl_info      the lower four bits are flags of the WAL itself
//! 17  u8   xl_rmid
//! 18  u16  padding
//! 20  u32  xl_crc       CRC-32C of what follows and then of the twenty bytes before
//! ```
//!
//! Then, unaligned, a header for each part, and after the last header the content
//! of the parts in the same order. Each header begins with its number:
//!
//! ```text
//! 0..=32  a block
//!    u8   fork_flags      the fork in the lower four bits; an image follows 0x10,
//!                         has data 0x20, begins the block 0x40, of the same
//!                         relation as the last 0x80
//!    u16  data_length
//!    with an image:
//!      u16  length
//!      u16  hole_offset
//!      u8   bimg_info
//!      u16  hole_length   with a hole in a compressed image
//!    unless it is of the same relation:
//!      u32  tablespace, u32  database, u32  relfilenumber
//!    u32  block
//! 252     the transaction above this one: u32
//! 253     where a replicated change comes from: u16
//! 254     the main data, always the last: u32 length
//! 255     the same: u8 length
//! ```
//!
//! What bimg_info says changed in 15: in 14 the bits are a hole 1, compressed 2, to
//! be replayed 4; since then a hole 1, to be replayed 2, compressed by pglz 4, lz4 8
//! or zstd 0x10.

use std::fmt;

use super::image::{ImageCompression, ImageHeader, PageImage};
use crate::error::Error;
use crate::pg::changed_blocks::RelationFork;
use crate::pg::little_endian::{u16_at, u32_at, u64_at};
use crate::pg::lsn::Lsn;
use crate::pg::page::PAGE_SIZE;
use crate::pg::relation::Fork;
use crate::pg::version::Major;

/// Bytes in front of a record's parts.
pub(super) const RECORD_HEADER: usize = 24;
/// Bytes of it that the checksum covers.
const CHECKED_HEADER: usize = 20;

/// The bits of xl_info that are the resource manager's (XLR_RMGR_INFO_MASK).
pub(super) const OPERATION: u8 = 0xF0;
/// What leaves a segment, among the WAL's own records.
pub(super) const XLOG_SWITCH: u8 = 0x40;
/// An image of a page in which nothing changed but hints (catalog/pg_control.h, XLOG_FPI_FOR_HINT).
const XLOG_IMAGE_FOR_HINT: u8 = 0xA0;
/// The end of a primary's backup, which says where that begins (catalog/pg_control.h, XLOG_BACKUP_END).
const XLOG_BACKUP_END: u8 = 0x50;

const MAX_BLOCK_ID: u8 = 32;
const TOPLEVEL_XID: u8 = 252;
const ORIGIN: u8 = 253;
const DATA_LONG: u8 = 254;
const DATA_SHORT: u8 = 255;

const FORK_MASK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const BEGINS_BLOCK: u8 = 0x40;
const SAME_RELATION: u8 = 0x80;

const IMAGE_HAS_HOLE: u8 = 0x01;

/// The bit of an image that is there to be replayed, not only to be compared with what replay makes.
fn replayed(major: Major) -> u8 {
    if major == Major::V14 { 0x04 } else { 0x02 }
}

/// A record, as long as the reader holds it.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Where it begins.
    pub start: Lsn,
    /// Where the next one begins, or the page that the next one is the first on.
    pub end: Lsn,
    /// Whose record it is.
    pub resource_manager: ResourceManager,
    /// What it is to that resource manager, in the upper four bits; the others are
    /// flags of the WAL itself.
    pub info: u8,
    /// The transaction that wrote it; zero if none did.
    pub xid: u32,
    /// The blocks it changes.
    pub blocks: &'a [BlockReference],
    /// What else it says, as its resource manager has it.
    pub main_data: &'a [u8],
    /// All that is behind its header, which the blocks' contents are a part of.
    pub parts: &'a [u8],
}

/// What a record holds of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockContent<'a> {
    /// Which block.
    pub reference: BlockReference,
    /// The whole block as the record leaves it.
    pub image: Option<PageImage<'a>>,
    /// What the resource manager says of it; nothing where the image stands for that.
    pub data: &'a [u8],
}

/// What a resource manager's number stands for (access/rmgrlist.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceManager(pub u8);

impl ResourceManager {
    /// The WAL's own records, such as checkpoints.
    pub const XLOG: ResourceManager = ResourceManager(0);
    /// Ends of transactions.
    pub const TRANSACTION: ResourceManager = ResourceManager(1);
    /// Files of relations that are made and truncated.
    pub const STORAGE: ResourceManager = ResourceManager(2);
    /// Databases that are created and dropped.
    pub const DATABASE: ResourceManager = ResourceManager(4);
    /// Tablespaces that are created and dropped.
    pub const TABLESPACE: ResourceManager = ResourceManager(5);
    /// The files of those catalogs that have no entry in pg_class to tell of theirs.
    pub const RELATION_MAP: ResourceManager = ResourceManager(7);
    /// More of what is done to rows, several at once.
    pub const HEAP2: ResourceManager = ResourceManager(9);
    /// What is done to rows of tables.
    pub const HEAP: ResourceManager = ResourceManager(10);

    /// The last that is PostgreSQL's own, for logical messages.
    const LAST_BUILT_IN: u8 = 21;
    /// From here on they are extensions', since 15.
    const FIRST_CUSTOM: u8 = 128;

    fn is_known(self, major: Major) -> bool {
        self.0 <= ResourceManager::LAST_BUILT_IN
            || (major >= Major::V15 && self.0 >= ResourceManager::FIRST_CUSTOM)
    }
}

/// A block that a record changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockReference {
    /// The fork that the block is in.
    pub fork: RelationFork,
    /// Its number from the beginning of the fork.
    pub block: u32,
    /// Whether the record holds the whole block.
    pub has_image: bool,
    /// Whether replay takes nothing over of what the block was before: the record holds all of it, to be replayed, or begins
    /// the block anew (REGBUF_WILL_INIT).
    pub is_begun: bool,
}

/// The fields that every record begins with.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordHeader {
    pub(super) length: usize,
    xid: u32,
    previous: Lsn,
    info: u8,
    resource_manager: ResourceManager,
    checksum: u32,
}

impl RecordHeader {
    /// Reads the header of the record that begins at `start`, which must follow the
    /// one at `previous`, if that is known (ValidXLogRecordHeader).
    pub(super) fn parse(
        bytes: &[u8; RECORD_HEADER],
        major: Major,
        start: Lsn,
        previous: Option<Lsn>,
    ) -> Result<RecordHeader, RecordDefect> {
        let header = RecordHeader {
            length: length(u32_at(bytes, 0))?,
            xid: u32_at(bytes, 4),
            previous: Lsn(u64_at(bytes, 8)),
            info: bytes[16],
            resource_manager: ResourceManager(bytes[17]),
            checksum: u32_at(bytes, CHECKED_HEADER),
        };
        if !header.resource_manager.is_known(major) {
            return Err(RecordDefect::ResourceManager(header.resource_manager.0));
        }
        let is_linked = match previous {
            Some(previous) => header.previous == previous,
            None => header.previous < start,
        };
        if !is_linked {
            return Err(RecordDefect::Previous(header.previous));
        }
        Ok(header)
    }

    /// Whether the record leaves its segment.
    pub(super) fn is_switch(&self) -> bool {
        self.resource_manager == ResourceManager::XLOG && self.info & OPERATION == XLOG_SWITCH
    }
}

/// The length of a record by its first field.
pub(super) fn length(field: u32) -> Result<usize, RecordDefect> {
    let length = field as usize;
    if length < RECORD_HEADER {
        return Err(RecordDefect::Length(field));
    }
    Ok(length)
}

impl<'a> Record<'a> {
    /// Whether nothing changed but hints, which others find out again.
    pub fn is_hint(&self) -> bool {
        self.resource_manager == ResourceManager::XLOG
            && self.info & OPERATION == XLOG_IMAGE_FOR_HINT
    }

    /// Where the primary's backup begins whose end this is; nothing in any other record.
    pub fn ended_backup(&self) -> Option<Lsn> {
        let is_end = self.resource_manager == ResourceManager::XLOG
            && self.info & OPERATION == XLOG_BACKUP_END;
        let start = self.main_data.first_chunk().filter(|_| is_end)?;
        Some(Lsn(u64::from_le_bytes(*start)))
    }

    /// The error of a record whose main data ends too early.
    pub(super) fn too_short(&self) -> Error {
        Error::damage(format!(
            "the WAL record at {} is too short for what it is",
            self.start
        ))
    }

    /// What the record holds of each of its blocks, in their order.
    pub fn block_contents(&self, major: Major) -> Vec<BlockContent<'a>> {
        let mut extents = Vec::with_capacity(self.blocks.len());
        let mut blocks = Vec::with_capacity(self.blocks.len());
        let parts = Parts::new(self.parts, major);
        // It was taken apart before, or it would be no record.
        let Some(mut content) = parts.headers(&mut |block, extent| {
            blocks.push(block);
            extents.push(extent);
        }) else {
            return Vec::new();
        };
        let mut contents = Vec::with_capacity(blocks.len());
        for (reference, Extent { image, data }) in blocks.into_iter().zip(extents) {
            let image = match image {
                None => None,
                Some((header, length)) => match content.split_at_checked(length) {
                    None => return contents,
                    Some((bytes, behind)) => {
                        content = behind;
                        Some(header.with(bytes))
                    }
                },
            };
            let Some((data, behind)) = content.split_at_checked(data) else {
                return contents;
            };
            content = behind;
            contents.push(BlockContent {
                reference,
                image,
                data,
            });
        }
        contents
    }

    /// Checks and takes apart the whole of a record; `blocks` is where its blocks
    /// go.
    pub(super) fn decode(
        bytes: &'a [u8],
        header: &RecordHeader,
        major: Major,
        start: Lsn,
        end: Lsn,
        blocks: &'a mut Vec<BlockReference>,
    ) -> Result<Record<'a>, RecordDefect> {
        let parts = &bytes[RECORD_HEADER..];
        let checksum = crc32c::crc32c_append(crc32c::crc32c(parts), &bytes[..CHECKED_HEADER]);
        if checksum != header.checksum {
            return Err(RecordDefect::Checksum {
                expected: checksum,
                found: header.checksum,
            });
        }
        blocks.clear();
        let main_data = Parts::new(parts, major)
            .decode(blocks)
            .ok_or(RecordDefect::Parts)?;
        Ok(Record {
            start,
            end,
            resource_manager: header.resource_manager,
            info: header.info,
            xid: header.xid,
            blocks,
            main_data,
            parts,
        })
    }
}

/// How many bytes a record holds of a block.
struct Extent {
    image: Option<(ImageHeader, usize)>,
    data: usize,
}

/// What is behind a record's header, as far as it is not read yet. Nothing comes of
/// what PostgreSQL never writes.
struct Parts<'a> {
    left: &'a [u8],
    major: Major,
    /// Bytes of content that the headers so far announce.
    announced: usize,
    /// Of these, bytes of main data, which come last.
    main_data: usize,
    last_block: Option<u8>,
}

impl<'a> Parts<'a> {
    fn new(bytes: &'a [u8], major: Major) -> Parts<'a> {
        Parts {
            left: bytes,
            major,
            announced: 0,
            main_data: 0,
            last_block: None,
        }
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.left.split_at_checked(length)?;
        self.left = left;
        Some(taken)
    }

    /// Adds the blocks and gives the main data.
    fn decode(mut self, blocks: &mut Vec<BlockReference>) -> Option<&'a [u8]> {
        let content = self.read_headers(&mut |block, _| blocks.push(block))?;
        Some(&content[content.len() - self.main_data..])
    }

    /// Hands over the blocks and gives the content behind all headers.
    fn headers(mut self, visit: &mut impl FnMut(BlockReference, Extent)) -> Option<&'a [u8]> {
        self.read_headers(visit)
    }

    fn read_headers(&mut self, visit: &mut impl FnMut(BlockReference, Extent)) -> Option<&'a [u8]> {
        let mut last = None;
        while self.left.len() > self.announced {
            match self.take(1)?[0] {
                DATA_SHORT => {
                    self.main_data = usize::from(self.take(1)?[0]);
                    self.announced += self.main_data;
                    break;
                }
                DATA_LONG => {
                    self.main_data = u32_at(self.take(4)?, 0) as usize;
                    self.announced += self.main_data;
                    break;
                }
                ORIGIN => {
                    self.take(2)?;
                }
                TOPLEVEL_XID => {
                    self.take(4)?;
                }
                number @ 0..=MAX_BLOCK_ID if self.last_block.is_none_or(|last| number > last) => {
                    self.last_block = Some(number);
                    let (block, extent) = self.block(last.as_ref())?;
                    last = Some(block);
                    visit(block, extent);
                }
                _ => return None,
            }
        }
        let is_complete = self.left.len() == self.announced;
        is_complete.then_some(self.left)
    }

    fn block(&mut self, last: Option<&BlockReference>) -> Option<(BlockReference, Extent)> {
        let header = self.take(3)?;
        let (flags, data) = (header[0], u16_at(header, 1));
        if (flags & HAS_DATA != 0) != (data > 0) {
            return None;
        }
        self.announced += usize::from(data);
        let has_image = flags & HAS_IMAGE != 0;
        let image = if has_image { Some(self.image()?) } else { None };
        let fork = Fork::from_number(flags & FORK_MASK)?;
        let fork = if flags & SAME_RELATION != 0 {
            RelationFork { fork, ..last?.fork }
        } else {
            let relation = self.take(12)?;
            RelationFork {
                tablespace: u32_at(relation, 0),
                database: u32_at(relation, 4),
                relfilenumber: u32_at(relation, 8),
                fork,
            }
        };
        let reference = BlockReference {
            fork,
            block: u32_at(self.take(4)?, 0),
            has_image,
            is_begun: flags & BEGINS_BLOCK != 0
                || image.is_some_and(|(header, _)| header.is_replayed),
        };
        let data = usize::from(data);
        Some((reference, Extent { image, data }))
    }

    /// The header of a block's image, cross-checked as PostgreSQL does, and the bytes of it.
    fn image(&mut self) -> Option<(ImageHeader, usize)> {
        let header = self.take(5)?;
        let (length, hole_offset) = (usize::from(u16_at(header, 0)), u16_at(header, 2));
        let has_hole = header[4] & IMAGE_HAS_HOLE != 0;
        let compression = header[4] & compressions(self.major);
        let is_compressed = compression != 0;
        let hole_length = match (is_compressed, has_hole) {
            (true, true) => usize::from(u16_at(self.take(2)?, 0)),
            (true, false) => 0,
            (false, _) => PAGE_SIZE.checked_sub(length)?,
        };
        let is_sound = if has_hole {
            hole_offset > 0 && hole_length > 0 && length < PAGE_SIZE
        } else {
            hole_offset == 0 && hole_length == 0 && is_compressed == (length < PAGE_SIZE)
        };
        self.announced += length;
        let header = ImageHeader {
            hole_offset: usize::from(hole_offset),
            hole_length,
            compression: ImageCompression::of(compression, self.major),
            is_replayed: header[4] & replayed(self.major) != 0,
        };
        is_sound.then_some((header, length))
    }
}

/// The bits of bimg_info that tell that an image is compressed.
fn compressions(major: Major) -> u8 {
    if major == Major::V14 { 0x02 } else { 0x1C }
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordDefect {
    /// It is shorter than its own header.
    Length(u32),
    /// Its resource manager is none of this release's.
    ResourceManager(u8),
    /// It follows another record than the one before it.
    Previous(Lsn),
    Checksum {
        /// The CRC-32C of the bytes.
        expected: u32,
        /// The one that the record carries.
        found: u32,
    },
    /// Its parts are not what their headers say.
    Parts,
}

impl fmt::Display for RecordDefect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordDefect::Length(found) => write!(f, "has the impossible length {found}"),
            RecordDefect::ResourceManager(found) => {
                write!(f, "is of the unknown resource manager {found}")
            }
            RecordDefect::Previous(found) => {
                write!(f, "follows a record at {found}, which is not before it")
            }
            RecordDefect::Checksum { expected, found } => write!(
                f,
                "has the checksum {found:08X} where {expected:08X} fits its content"
            ),
            RecordDefect::Parts => f.write_str("contradicts itself"),
        }
    }
}
