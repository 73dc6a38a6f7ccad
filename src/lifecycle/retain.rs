//! Keeping a backup from retention, and giving it back.

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::repository::backup_info::BackupInfo;
use crate::repository::identifier::Identifier;
use crate::repository::layout::ServerFolder;
use crate::repository::lock::{InfoLock, ServerLock};

/// How far the wish reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The backup alone.
    One,
    /// The backup and all it is an increment of, down to the full one.
    Ancestors,
}

/// Sets whether backups are kept; returns which, the one that was named first.
pub fn keep(
    folder: &ServerFolder,
    identifier: Identifier,
    keep: bool,
    reach: Reach,
    interrupt: &Interrupt,
) -> Result<Vec<Identifier>> {
    let _lock = ServerLock::take(folder)?;
    // Nothing is changed where an ancestor cannot be read.
    let identifiers = match reach {
        Reach::One => vec![identifier],
        Reach::Ancestors => with_ancestors(folder, identifier)?,
    };
    let lock = InfoLock::take(folder, interrupt)?;
    for identifier in &identifiers {
        BackupInfo::change(&folder.backup(*identifier), &lock, |info| {
            info.keep = keep;
            Ok(())
        })?;
    }
    Ok(identifiers)
}

fn with_ancestors(folder: &ServerFolder, identifier: Identifier) -> Result<Vec<Identifier>> {
    let mut chain = Vec::new();
    let mut next = Some(identifier);
    while let Some(identifier) = next {
        if chain.contains(&identifier) {
            return Err(Error::damage(format!(
                "backup {identifier} is among its own ancestors"
            )));
        }
        chain.push(identifier);
        let info = BackupInfo::read(&folder.backup(identifier))?;
        next = info.incremental.map(|increment| increment.parent);
    }
    Ok(chain)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pg::lsn::{Lsn, Timeline};
    use crate::repository::backup_info::tests::example;
    use crate::repository::backup_info::{ChangeSource, Increment};

    const FULL: &str = "20260101000000";
    const MIDDLE: &str = "20260102000000";
    const NEWEST: &str = "20260103000000";

    fn chain() -> (tempfile::TempDir, ServerFolder) {
        let base = tempfile::tempdir().unwrap();
        let folder = ServerFolder::new(base.path(), "primary");
        folder.create().unwrap();
        for (name, parent) in [(FULL, None), (MIDDLE, Some(FULL)), (NEWEST, Some(MIDDLE))] {
            put(&folder, name, parent);
        }
        (base, folder)
    }

    fn put(folder: &ServerFolder, name: &str, parent: Option<&str>) {
        let mut info = example(name);
        info.incremental = parent.map(|parent| Increment {
            parent: parent.parse().unwrap(),
            from_lsn: Lsn(0x4F00_0060),
            from_timeline: Timeline(1),
            sources: vec![ChangeSource::Wal],
        });
        let backup = folder.backup(name.parse().unwrap());
        backup.place().create_folder().unwrap();
        info.write(&backup).unwrap();
    }

    fn kept(folder: &ServerFolder) -> Vec<bool> {
        [FULL, MIDDLE, NEWEST]
            .map(|name| {
                let backup = folder.backup(name.parse().unwrap());
                BackupInfo::read(&backup).unwrap().keep
            })
            .to_vec()
    }

    #[test]
    fn ancestors_are_taken_along_where_that_is_asked_for() {
        let (_base, folder) = chain();
        let set = |name: &str, value, reach| {
            let changed = keep(
                &folder,
                name.parse().unwrap(),
                value,
                reach,
                &Interrupt::default(),
            )
            .unwrap();
            changed.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(set(MIDDLE, true, Reach::One), [MIDDLE]);
        assert_eq!(kept(&folder), [false, true, false]);
        let all = set(NEWEST, true, Reach::Ancestors);
        assert_eq!(all, [NEWEST, MIDDLE, FULL]);
        assert_eq!(kept(&folder), [true, true, true]);
        set(MIDDLE, false, Reach::Ancestors);
        assert_eq!(kept(&folder), [false, false, true]);
    }

    #[test]
    fn nothing_changes_where_an_ancestor_is_missing_or_the_chain_has_no_end() {
        let (_base, folder) = chain();
        let newest: Identifier = NEWEST.parse().unwrap();
        put(&folder, FULL, Some(NEWEST));
        assert!(
            keep(
                &folder,
                newest,
                true,
                Reach::Ancestors,
                &Interrupt::default()
            )
            .is_err()
        );
        assert_eq!(kept(&folder), [false, false, false]);
        folder
            .backup(FULL.parse().unwrap())
            .info()
            .remove()
            .unwrap();
        assert!(
            keep(
                &folder,
                newest,
                true,
                Reach::Ancestors,
                &Interrupt::default()
            )
            .is_err()
        );
        put(&folder, FULL, None);
        assert_eq!(kept(&folder), [false, false, false]);
    }
}
