//! What a worker reads files with.

use crate::error::{Error, Result};
use crate::server::reading::FileReader;

/// A worker's session, where the role may read files at all.
pub(in crate::backup) struct Session<'a>(Option<&'a mut FileReader>);

impl<'a> Session<'a> {
    /// With a reader.
    pub(in crate::backup) fn of(reader: &'a mut FileReader) -> Session<'a> {
        Session(Some(reader))
    }

    /// Without: there is nothing but what the server sends of its own accord.
    pub(in crate::backup) fn none() -> Session<'a> {
        Session(None)
    }

    /// The reader.
    pub(super) fn reader(&mut self) -> Result<&mut FileReader> {
        self.0
            .as_deref_mut()
            .ok_or_else(|| Error::server("this role may not read the server's files"))
    }

    /// Whether there is one.
    pub(super) fn reads(&self) -> bool {
        self.0.is_some()
    }
}
