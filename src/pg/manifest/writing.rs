//! Writing a manifest, file by file.

use std::io::{self, Write};
use std::ops::RangeInclusive;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{LAST_MODIFIED, hexadecimal};
use crate::pg::history::WalRange;

/// From the year 1 to nearly the end of 9999, in seconds since 1970.
const DATES: RangeInclusive<i64> = -62_135_596_800..=253_402_207_200;

/// A manifest being written; not one until [`finish`](ManifestWriter::finish)
/// returns.
///
/// Writes a line at a time: give it something buffered.
#[derive(Debug)]
pub struct ManifestWriter<W: Write> {
    output: W,
    checksum: Sha256,
    line: Vec<u8>,
    has_files: bool,
    /// A time, and how it is written: many files were changed in the same second.
    time: Option<(Timestamp, String)>,
}

impl<W: Write> ManifestWriter<W> {
    /// Begins a manifest of the version that a release writes,
    /// [`Major::manifest_version`](crate::pg::version::Major::manifest_version).
    pub fn new(output: W, version: u8, system_identifier: u64) -> io::Result<ManifestWriter<W>> {
        let mut writer = ManifestWriter {
            output,
            checksum: Sha256::new(),
            line: Vec::new(),
            has_files: false,
            time: None,
        };
        writeln!(
            writer.line,
            "{{ \"PostgreSQL-Backup-Manifest-Version\": {version},"
        )?;
        if version >= 2 {
            writeln!(writer.line, "\"System-Identifier\": {system_identifier},")?;
        }
        write!(writer.line, "\"Files\": [")?;
        writer.write_out()?;
        Ok(writer)
    }

    /// Lists a file: its path below the data directory with slashes, its size
    /// in bytes, when it was last changed, and the CRC-32C of its content.
    pub fn file(
        &mut self,
        path: &str,
        size: u64,
        modified_unix_seconds: i64,
        crc32c: u32,
    ) -> io::Result<()> {
        // A file's time can be any number; here it is a date, for people alone.
        let modified = modified_unix_seconds.clamp(*DATES.start(), *DATES.end());
        let modified = Timestamp::from_second(modified)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.begin_element(!self.has_files)?;
        self.has_files = true;
        write!(self.line, "{{ \"Path\": ")?;
        // JSON escapes as escape_json in utils/adt/json.c writes them.
        serde_json::to_writer(&mut self.line, path)?;
        let same = self.time.take().filter(|(time, _)| *time == modified);
        let written = || (modified, modified.strftime(LAST_MODIFIED).to_string());
        let (_, time) = self.time.insert(same.unwrap_or_else(written));
        write!(
            self.line,
            ", \"Size\": {size}, \"Last-Modified\": \"{time}\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\" }}",
            hexadecimal(&crc32c.to_le_bytes())
        )?;
        self.write_out()
    }

    /// Lists the WAL that the backup needs, newest timeline first, and ends the
    /// manifest. Returns the output, to be flushed and synced.
    pub fn finish(mut self, ranges: &[WalRange]) -> io::Result<W> {
        write!(self.line, "\n],\n\"WAL-Ranges\": [")?;
        for (index, range) in ranges.iter().enumerate() {
            self.begin_element(index == 0)?;
            write!(
                self.line,
                "{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}",
                range.timeline, range.start, range.end
            )?;
        }
        write!(self.line, "\n],\n")?;
        self.write_out()?;
        let checksum = hexadecimal(&self.checksum.finalize());
        writeln!(self.output, "\"Manifest-Checksum\": \"{checksum}\"}}")?;
        Ok(self.output)
    }

    fn begin_element(&mut self, is_first: bool) -> io::Result<()> {
        self.line.write_all(if is_first { b"\n" } else { b",\n" })
    }

    fn write_out(&mut self) -> io::Result<()> {
        self.checksum.update(&self.line);
        self.output.write_all(&self.line)?;
        self.line.clear();
        Ok(())
    }
}
