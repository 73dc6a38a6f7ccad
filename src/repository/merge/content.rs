//! Plain content on its way from one stored file into another.

use crate::error::Result;
use crate::parallel::Stop;
use crate::repository::blocks::check;
use crate::repository::content_writer::ContentWriter;
use crate::repository::file_list::FileEntry;
use crate::storage::Place;
use crate::stored::coding::Coding;
use crate::stored::reader::StoredReader;

/// Bytes that are read and checked at a time; whole blocks.
const PART_BYTES: usize = 256 << 10;

/// Copies the plain content of a stored file, and checks it.
pub(super) fn copy(
    file: FileEntry<'_>,
    stored: &Place,
    coding: &Coding,
    writer: &mut ContentWriter,
    stop: &Stop<'_>,
) -> Result<()> {
    let mut reader = StoredReader::open(stored, coding)?;
    let mut part = vec![0; PART_BYTES];
    let (mut size, mut crc32c) = (0, 0);
    loop {
        stop.check()?;
        let filled = reader.fill(&mut part)?;
        if filled == 0 {
            return check(file, size, crc32c, stored);
        }
        size += filled as u64;
        crc32c = crc32c::crc32c_append(crc32c, &part[..filled]);
        writer.push(&part[..filled])?;
    }
}
