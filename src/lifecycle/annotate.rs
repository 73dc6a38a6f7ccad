//! Comments on a backup, each under a key.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::repository::backup_info::BackupInfo;
use crate::repository::identifier::Identifier;
use crate::repository::layout::ServerFolder;
use crate::repository::lock::{InfoLock, ServerLock};

/// What happens to the comment of one key. Key and comment are any text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new key with its comment.
    Add {
        /// The key, which has no comment yet.
        key: String,
        /// Its comment.
        comment: String,
    },
    /// Another comment for a key.
    Update {
        /// The key, which has a comment.
        key: String,
        /// The comment that replaces it.
        comment: String,
    },
    /// The key goes, with its comment.
    Remove {
        /// The key, which has a comment.
        key: String,
    },
}

/// Changes a comment of a backup.
pub fn annotate(
    folder: &ServerFolder,
    identifier: Identifier,
    change: Change,
    interrupt: &Interrupt,
) -> Result<()> {
    let _lock = ServerLock::take(folder)?;
    let lock = InfoLock::take(folder, interrupt)?;
    BackupInfo::change(&folder.backup(identifier), &lock, |info| {
        apply(change, &mut info.comments)
            .map_err(|error| error.context(format_args!("backup {identifier}")))
    })
}

fn apply(change: Change, comments: &mut BTreeMap<String, String>) -> Result<()> {
    let missing = |key: &str| {
        Error::failed(format!("there is no comment {key:?}"))
            .hint("info shows the comments; add makes a new one")
    };
    match change {
        Change::Add { key, .. } if comments.contains_key(&key) => {
            Err(Error::failed(format!("there is a comment {key:?} already"))
                .hint("update replaces it"))
        }
        Change::Add { key, comment } => {
            comments.insert(key, comment);
            Ok(())
        }
        Change::Update { key, comment } => match comments.get_mut(&key) {
            Some(old) => {
                *old = comment;
                Ok(())
            }
            None => Err(missing(&key)),
        },
        Change::Remove { key } => match comments.remove(&key) {
            Some(_) => Ok(()),
            None => Err(missing(&key)),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn add(key: &str, comment: &str) -> Change {
        Change::Add {
            key: key.to_owned(),
            comment: comment.to_owned(),
        }
    }

    fn update(key: &str, comment: &str) -> Change {
        Change::Update {
            key: key.to_owned(),
            comment: comment.to_owned(),
        }
    }

    fn remove(key: &str) -> Change {
        Change::Remove {
            key: key.to_owned(),
        }
    }

    #[test]
    fn a_key_is_added_once_and_changed_only_where_it_is() {
        let mut comments = BTreeMap::new();
        assert!(apply(update("why", "x"), &mut comments).is_err());
        assert!(apply(remove("why"), &mut comments).is_err());
        apply(add("why", "upgrade"), &mut comments).unwrap();
        let error = apply(add("why", "again"), &mut comments).unwrap_err();
        assert_eq!(error.message(), "there is a comment \"why\" already");
        assert_eq!(comments["why"], "upgrade");
        apply(update("why", "downgrade"), &mut comments).unwrap();
        assert_eq!(comments["why"], "downgrade");
        apply(remove("why"), &mut comments).unwrap();
        assert!(comments.is_empty());
    }
}
