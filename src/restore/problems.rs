//! What speaks against a restore, found before anything is changed.

use crate::error::Error;

/// All of it; the restore fails with the first.
#[derive(Debug)]
pub struct Problems {
    first: Error,
    further: Vec<Error>,
}

impl Problems {
    /// Nothing wrong, or all of these.
    pub(super) fn expect_none(found: Vec<Error>) -> Result<(), Problems> {
        let mut found = found.into_iter();
        match found.next() {
            None => Ok(()),
            Some(first) => Err(Problems {
                first,
                further: found.collect(),
            }),
        }
    }

    /// One after the other.
    pub(super) fn into_list(self) -> Vec<Error> {
        let mut list = vec![self.first];
        list.extend(self.further);
        list
    }
}

impl From<Error> for Problems {
    fn from(first: Error) -> Problems {
        Problems {
            first,
            further: Vec::new(),
        }
    }
}

impl From<Problems> for Error {
    fn from(problems: Problems) -> Error {
        problems.first
    }
}
