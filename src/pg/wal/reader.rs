//! Reads WAL record by record (access/transam/xlogreader.c, XLogDecodeNextRecord and
//! XLogFindNextRecord).
//!
//! Records follow each other at multiples of eight bytes, with the headers of pages
//! in between, also in the middle of a record. A record that does not fit on its page
//! goes on behind the next page's header, and so on. Behind a switch the rest of the
//! segment says nothing.

use std::fmt;

use super::page::{Beginning, Origin, PageDefect, WAL_PAGE_SIZE};
use super::record::{self, BlockReference, RECORD_HEADER, Record, RecordHeader};
use crate::error::{Error, Result};
use crate::pg::little_endian::u32_at;
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::version::Major;

/// What records are aligned to (MAXALIGN).
const ALIGNMENT: u64 = 8;

/// Bytes that tell the length of a record; never parted by the end of a page.
const LENGTH_FIELD: usize = 4;

/// Reads the records in WAL that passes by in pieces of any length.
///
/// Pages are checked by their headers; records by their checksum, their structure
/// and the position of the record before that each one carries. A record on one
/// page is handed over where it lies; one on several is put together in memory,
/// where it stays below 1 GiB as PostgreSQL has it (XLogRecordMaxSize).
#[derive(Debug)]
pub struct RecordReader {
    origin: Origin,
    from: Lsn,
    /// Of the next byte to come in.
    at: Lsn,
    /// Bytes before this say nothing, headers of pages included.
    skip_to: Lsn,
    /// The header of the page that is coming in, as far as it is there.
    page_header: Vec<u8>,
    /// The last page's; zero before the first.
    timeline: Timeline,
    /// Whether it is known where a record begins.
    is_aligned: bool,
    /// Where the next record begins, headers of pages in front of it included.
    next: Lsn,
    /// Where the record that is coming in begins.
    start: Lsn,
    /// The record that is coming in, as far as it is there, unless it is whole.
    pending: Vec<u8>,
    /// Where the last whole record began.
    previous: Option<Lsn>,
    blocks: Vec<BlockReference>,
}

impl RecordReader {
    /// Reads the records that begin at `from` or above. The first byte to come in is
    /// the first of the segment that holds `from`; what is in that segment before
    /// the page that holds `from` is not read.
    pub fn new(
        major: Major,
        system_identifier: u64,
        segment_size: SegmentSize,
        from: Lsn,
    ) -> RecordReader {
        RecordReader {
            origin: Origin {
                major,
                system_identifier,
                segment_size,
            },
            from,
            at: from.segment(segment_size).start(segment_size),
            skip_to: Lsn(0),
            page_header: Vec::with_capacity(super::page::LONG_HEADER),
            timeline: Timeline(0),
            is_aligned: false,
            next: Lsn(0),
            start: Lsn(0),
            pending: Vec::new(),
            previous: None,
            blocks: Vec::new(),
        }
    }

    /// Expects the first byte of the page that holds `from` first.
    pub fn without_earlier_pages(mut self) -> RecordReader {
        self.at = page_start(self.from);
        self
    }

    /// Takes the next bytes of WAL and hands over the records that end in them. The
    /// bytes go on from segment to segment; where WAL was continued on another
    /// timeline, the first segment of that one, which begins with a copy of the
    /// old one's, takes the place of the old one's.
    ///
    /// Bytes that were not yet written, zeros or the remains of a recycled segment, are
    /// a fault like any other: no more may be pushed than the server has flushed.
    /// After a fault, `visit`'s included, the reader is of no more use.
    pub fn push(
        &mut self,
        mut bytes: &[u8],
        visit: &mut dyn FnMut(&Record<'_>) -> Result<()>,
    ) -> Result<()> {
        // Far from any real WAL; nothing below overflows.
        if self.at.0.saturating_add(bytes.len() as u64) > i64::MAX as u64 {
            return Err(self.fault("the WAL", self.at, "is beyond the last position"));
        }
        while !bytes.is_empty() {
            let page_offset = self.at.0 as usize % WAL_PAGE_SIZE;
            let page = Lsn(self.at.0 - page_offset as u64);
            let header_length = self.origin.header_length(page);
            let taken = if self.at < self.skip_to {
                bytes.len().min((self.skip_to.0 - self.at.0) as usize)
            } else if page_offset < header_length {
                let taken = bytes.len().min(header_length - page_offset);
                self.page_header.extend_from_slice(&bytes[..taken]);
                if self.page_header.len() == header_length {
                    self.end_page_header(page)?;
                }
                taken
            } else {
                let on_page = bytes.len().min(WAL_PAGE_SIZE - page_offset);
                self.take_content(&bytes[..on_page], visit)?
            };
            self.at.0 += taken as u64;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// The position of the byte that is to come in next.
    pub fn awaited(&self) -> Lsn {
        self.at
    }

    /// Where the next record begins: all records that begin at `from` or above and
    /// below this were handed over. As in PostgreSQL, that is the page's beginning if
    /// the record is the first on its page.
    pub fn position(&self) -> Lsn {
        self.next.max(self.from)
    }

    fn end_page_header(&mut self, page: Lsn) -> Result<()> {
        let header = self
            .origin
            .header(&self.page_header, page)
            .map_err(|defect| self.fault("the WAL page", page, defect))?;
        let content = Lsn(page.0 + self.page_header.len() as u64);
        let page_end = Lsn(page.0 + WAL_PAGE_SIZE as u64);
        self.page_header.clear();
        if header.timeline < self.timeline {
            let defect = PageDefect::TimelineBelow {
                lowest: self.timeline,
                found: header.timeline,
            };
            return Err(self.fault("the WAL page", page, defect));
        }
        self.timeline = header.timeline;
        if page_end <= self.from {
            self.skip_to = page_start(self.from);
            return Ok(());
        }
        if !self.is_aligned {
            let rest = match header.beginning {
                Beginning::Rest(length) => u64::from(length).next_multiple_of(ALIGNMENT),
                Beginning::Record | Beginning::InsteadOfRest => 0,
            };
            self.is_aligned = content.0 + rest < page_end.0;
            self.skip_to = page_end.min(Lsn(content.0 + rest));
            if self.is_aligned {
                self.next = self.skip_to;
            }
            return Ok(());
        }
        match (header.beginning, self.missing()) {
            (Beginning::Record, None) | (Beginning::InsteadOfRest, None) => Ok(()),
            (Beginning::Rest(length), Some(missing)) if length as usize == missing => Ok(()),
            (Beginning::InsteadOfRest, Some(_)) => {
                self.pending.clear();
                self.next = content;
                Ok(())
            }
            _ => Err(self.fault("the WAL page", page, PageDefect::Continuation)),
        }
    }

    /// Bytes that are missing of the record that is coming in; nothing between two
    /// records. Asked at the end of a page, where its length is known.
    fn missing(&self) -> Option<usize> {
        let length = self.pending.first_chunk::<LENGTH_FIELD>()?;
        Some(u32::from_le_bytes(*length) as usize - self.pending.len())
    }

    /// Takes content from behind a page's header, and gives how much of it.
    fn take_content(
        &mut self,
        content: &[u8],
        visit: &mut dyn FnMut(&Record<'_>) -> Result<()>,
    ) -> Result<usize> {
        if self.pending.is_empty() {
            self.start = self.at;
            if let Some(header) = content.first_chunk() {
                let header = self.record_header(header)?;
                if let Some(record) = content.get(..header.length) {
                    self.end_record(record, &header, record.len(), visit)?;
                    return Ok(record.len());
                }
            }
        }
        // First what tells the length, then the header, then all of it.
        let known = self.pending.len();
        let wanted = match known {
            0..LENGTH_FIELD => LENGTH_FIELD,
            LENGTH_FIELD..RECORD_HEADER => RECORD_HEADER,
            _ => u32_at(&self.pending, 0) as usize,
        };
        let taken = content.len().min(wanted - known);
        self.pending.extend_from_slice(&content[..taken]);
        if self.pending.len() == LENGTH_FIELD {
            record::length(u32_at(&self.pending, 0)).map_err(|defect| self.bad_record(defect))?;
        }
        if let Some(header) = self.pending.first_chunk() {
            let header = self.record_header(header)?;
            if self.pending.len() == header.length {
                let pending = std::mem::take(&mut self.pending);
                self.end_record(&pending, &header, taken, visit)?;
                self.pending = pending;
                self.pending.clear();
            }
        }
        Ok(taken)
    }

    fn record_header(&self, header: &[u8; RECORD_HEADER]) -> Result<RecordHeader> {
        RecordHeader::parse(header, self.origin.major, self.start, self.previous)
            .map_err(|defect| self.bad_record(defect))
    }

    /// Hands over a record whose last bytes, this many, are coming in.
    fn end_record(
        &mut self,
        bytes: &[u8],
        header: &RecordHeader,
        last: usize,
        visit: &mut dyn FnMut(&Record<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut end = (self.at.0 + last as u64).next_multiple_of(ALIGNMENT);
        if header.is_switch() {
            end = end.next_multiple_of(self.origin.segment_size.bytes());
        }
        let mut blocks = std::mem::take(&mut self.blocks);
        let record = Record::decode(
            bytes,
            header,
            self.origin.major,
            self.start,
            Lsn(end),
            &mut blocks,
        )
        .map_err(|defect| self.bad_record(defect))?;
        if self.start >= self.from {
            visit(&record)?;
        }
        self.blocks = blocks;
        self.previous = Some(self.start);
        self.next = Lsn(end);
        self.skip_to = Lsn(end);
        Ok(())
    }

    fn bad_record(&self, defect: record::RecordDefect) -> Error {
        self.fault("the WAL record", self.start, defect)
    }

    fn fault(&self, what: &str, position: Lsn, why: impl fmt::Display) -> Error {
        let size = self.origin.segment_size;
        let segment = SegmentName {
            timeline: self.timeline,
            number: position.segment(size),
        };
        let name = segment.file_name(size);
        Error::damage(format!("{what} at {position} in segment {name} {why}"))
    }
}

/// Where the page that holds a position begins.
fn page_start(position: Lsn) -> Lsn {
    Lsn(position.0 - position.0 % WAL_PAGE_SIZE as u64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::super::record::{ResourceManager, XLOG_SWITCH};
    use super::super::testing::{CLUSTER, Content, Wal, content};
    use super::*;

    fn reader(wal: &Wal, from: Lsn) -> RecordReader {
        RecordReader::new(wal.major, CLUSTER, wal.segment_size, from)
    }

    /// The records that are handed over from `from` on, with where they begin and end.
    fn read(wal: &Wal, from: Lsn, piece: usize) -> Result<(Vec<(Lsn, Content)>, Lsn)> {
        let mut reader = reader(wal, from);
        let (mut records, mut end) = (Vec::new(), None);
        let skipped = from.segment(wal.segment_size).start(wal.segment_size).0 - wal.start.0;
        for bytes in wal.bytes[skipped as usize..].chunks(piece) {
            reader.push(bytes, &mut |record| {
                assert!(end.is_none_or(|end| end <= record.start));
                end = Some(record.end);
                assert_contents(record, wal.major);
                let content = Content {
                    resource_manager: record.resource_manager,
                    info: record.info,
                    xid: record.xid,
                    blocks: record.blocks.to_vec(),
                    main_data: record.main_data.to_vec(),
                };
                records.push((record.start, content));
                Ok(())
            })?;
        }
        assert!(end.is_none_or(|end| end <= reader.position()));
        Ok((records, reader.position()))
    }

    /// What is in the record of its blocks, as `testing` writes it.
    fn assert_contents(record: &Record<'_>, major: Major) {
        let contents = record.block_contents(major);
        assert_eq!(contents.len(), record.blocks.len());
        for (content, reference) in contents.iter().zip(record.blocks) {
            assert_eq!(content.reference, *reference);
            assert_eq!(content.image.is_some(), reference.has_image);
            let data = if reference.block % 3 == 0 { 5 } else { 0 };
            assert_eq!(content.data, [0x5A; 5][..data].to_vec());
            let page = content.image.and_then(|image| image.page());
            assert!(page.is_none_or(|page| page[8191] == 0xA5));
        }
    }

    fn written(major: Major, contents: &[Content]) -> (Wal, Vec<(Lsn, Content)>) {
        let mut wal = Wal::new(major);
        let mut records = Vec::new();
        for (index, content) in contents.iter().enumerate() {
            if index % 7 == 6 {
                wal.timeline.0 += 1;
            }
            let start = wal.append(content);
            records.push((start, content.clone()));
            if content.main_data.len() == 7 {
                let switch = Content::of(ResourceManager::XLOG, XLOG_SWITCH, Vec::new());
                records.push((wal.switch(), switch));
            }
        }
        (wal, records)
    }

    fn some_records(count: usize, length: usize) -> Vec<Content> {
        let data = vec![1; length];
        vec![Content::of(ResourceManager(10), 0, data); count]
    }

    #[test]
    fn an_unfinished_record_is_no_fault() {
        let (wal, records) = written(Major::V18, &some_records(3, 9000));
        let last = records[2].0;
        for length in (last.0 - wal.start.0) as usize..wal.bytes.len() - 8 {
            let mut cut = wal.clone();
            cut.bytes.truncate(length);
            let (found, position) = read(&cut, wal.start, 4096).unwrap();
            assert_eq!(found, records[..2]);
            // Alignment alone may lie between the record before and this one.
            assert_eq!(position, last);
        }
    }

    #[test]
    fn names_what_is_broken() {
        let mut wal = Wal::new(Major::V18);
        let records: Vec<_> = some_records(400, 100)
            .iter()
            .map(|content| wal.append(content))
            .collect();
        let fault = |offset: usize, bytes: &[u8]| {
            let mut wal = wal.clone();
            wal.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
            let error = read(&wal, wal.start, 1000).unwrap_err();
            assert_eq!(error.kind(), crate::error::Kind::Damage);
            error.message().to_owned()
        };
        let (offset, start) = ((records[3].0 - wal.start.0) as usize, records[3]);
        let place = format!("the WAL record at {start} in segment 000000010000000000000007 ");
        for (at, bytes, why) in [
            (0, &[0, 0, 0, 0][..], "has the impossible length 0"),
            (0, &[23], "has the impossible length 23"),
            (8, &[1], "follows a record at 0/700101"),
            (17, &[22], "is of the unknown resource manager 22"),
            (30, &[2], "has the checksum "),
        ] {
            let message = fault(offset + at, bytes);
            assert!(message.starts_with(&(place.clone() + why)), "{message}");
        }
        let page = "the WAL page at 0/702000 in segment 000000010000000000000007 ";
        for (at, byte, why) in [
            (0, 0, "has the magic number D100 instead of D118"),
            (2, 0, "does not go on with the record"),
            (2, 0x11, "has the invalid flags 0011"),
            (4, 0, "is of no timeline"),
            (9, 0x40, "belongs to position 0/704000 instead of 0/702000"),
            (16, 0, "does not go on with the record"),
        ] {
            let message = fault(8192 + at, &[byte]);
            assert!(message.starts_with(&(page.to_owned() + why)), "{message}");
        }
        let mut later = wal.clone();
        later.bytes[8196] = 2;
        let error = read(&later, later.start, 1000).unwrap_err();
        let why = "at 0/704000 in segment 000000020000000000000007 is of timeline 1, which cannot follow timeline 2";
        assert!(error.message().ends_with(why), "{error}");
        let mut other = wal.clone();
        other.bytes[24] ^= 1;
        let from = Lsn(other.start.0 + 9000);
        let message = read(&other, from, 1000).unwrap_err().message().to_owned();
        assert!(message.contains("is of the cluster"), "{message}");
    }

    #[test]
    fn stops_where_the_visitor_fails() {
        let (wal, records) = written(Major::V15, &some_records(3, 20));
        let mut reader = reader(&wal, wal.start);
        let failed = reader.push(&wal.bytes, &mut |record| {
            assert_eq!(record.start, records[0].0);
            Err(Error::failed("enough"))
        });
        assert_eq!(failed.unwrap_err().message(), "enough");
    }

    #[test]
    fn what_lies_behind_a_switch_says_nothing() {
        let mut wal = Wal::new(Major::V16);
        wal.append(&some_records(1, 20)[0]);
        wal.switch();
        wal.bytes[5000..1_000_000].fill(0xFF);
        let last = wal.append(&some_records(1, 20)[0]);
        assert_eq!(last, Lsn(0x80_0028));
        let (records, position) = read(&wal, wal.start, 8192).unwrap();
        assert_eq!(records.len(), 3);
        assert_eq!(records[2].0, last);
        assert_eq!(position, wal.end());
    }

    #[test]
    fn no_position_overflows() {
        let size = SegmentSize::new(1 << 30).unwrap();
        for from in [0, u64::MAX / 2 - 5, u64::MAX] {
            let mut reader = RecordReader::new(Major::V14, CLUSTER, size, Lsn(from));
            assert_eq!(reader.position(), Lsn(from));
            let pushed = reader.push(&[0; 10_000], &mut |_| Ok(()));
            assert_eq!(pushed.unwrap_err().kind(), crate::error::Kind::Damage);
        }
    }

    proptest! {
        #[test]
        fn hands_over_what_was_written(
            major in prop::sample::select(&Major::ALL[..]),
            contents in prop::collection::vec(content(), 0..40),
            piece in prop_oneof![1..100_usize, 8000..9000_usize, Just(1 << 22)],
            from: prop::sample::Index,
        ) {
            let (wal, mut records) = written(major, &contents);
            prop_assert_eq!(&read(&wal, wal.start, piece).unwrap().0, &records);
            // From anywhere, in the middle of a record too.
            let from = Lsn(wal.start.0 + from.index(wal.bytes.len() + 1) as u64);
            let before = records.iter().rfind(|(start, _)| *start < from);
            prop_assume!(before.is_none_or(|(_, content)| content.info != XLOG_SWITCH));
            let (found, position) = read(&wal, from, piece).unwrap();
            records.retain(|(start, _)| *start >= from);
            prop_assert_eq!(&found, &records);
            prop_assert!(position >= from && position <= wal.end().max(from));
            let page = page_start(from);
            let mut starts = Vec::new();
            let mut alone = reader(&wal, from).without_earlier_pages();
            alone.push(&wal.bytes[(page.0 - wal.start.0) as usize..], &mut |record| {
                starts.push(record.start);
                Ok(())
            }).unwrap();
            prop_assert!(starts.iter().eq(records.iter().map(|(start, _)| start)));
        }

        #[test]
        fn passes_over_what_a_crash_cut_off(
            contents in prop::collection::vec((content(), prop::bool::weighted(0.3)), 0..30),
            piece in prop_oneof![1..100_usize, Just(1 << 22)],
        ) {
            let mut wal = Wal::new(Major::V17);
            let mut records = Vec::new();
            for (content, is_cut) in contents {
                if !(is_cut && wal.cut_off(&content)) {
                    records.push((wal.append(&content), content));
                }
            }
            prop_assert_eq!(read(&wal, wal.start, piece).unwrap().0, records);
        }

        #[test]
        fn no_changed_byte_goes_unseen(
            contents in prop::collection::vec(content(), 1..10),
            at: prop::sample::Index,
            bit in 0..8_u8,
        ) {
            let (mut wal, records) = written(Major::V17, &contents);
            let at = at.index(wal.bytes.len());
            wal.bytes[at] ^= 1 << bit;
            // Padding apart, a record is lost at least; an impossible length can look
            // like a record that is still to come.
            if let Ok((found, _)) = read(&wal, wal.start, 1 << 22) {
                prop_assert!(found.len() <= records.len());
                for (index, record) in found.iter().enumerate() {
                    prop_assert_eq!(record, &records[index]);
                }
            }
        }

        #[test]
        fn never_panics(
            contents in prop::collection::vec(content(), 0..10),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
            piece in 1..10_000_usize,
            from: prop::sample::Index,
        ) {
            let (mut wal, _) = written(Major::V15, &contents);
            wal.bytes.extend([0; 100]);
            for (at, byte) in changes {
                let at = at.index(wal.bytes.len());
                wal.bytes[at] = byte;
            }
            let from = Lsn(wal.start.0 + from.index(wal.bytes.len()) as u64);
            let _ = read(&wal, from, piece);
        }
    }
}
