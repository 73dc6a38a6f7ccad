//! The main data of records, which most have as numbers of four bytes.

/// The fields of four bytes that are left of a record's main data.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    /// The next one.
    pub(super) fn next(&mut self) -> Option<u32> {
        let (field, left) = self.0.split_first_chunk()?;
        self.0 = left;
        Some(u32::from_le_bytes(*field))
    }

    /// Passes over some.
    pub(super) fn skip(&mut self, fields: usize) -> Option<()> {
        self.0 = self.0.get(fields * 4..)?;
        Some(())
    }
}
