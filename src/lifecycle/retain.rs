//! Keeping a backup from retention, and giving it back.

use crate::error::{Error, Result};
use crate::lifecycle::select_and_lock;
use crate::repository::backup_info::BackupInfo;
use crate::repository::identifier::Selector;
use crate::repository::layout::ServerFolder;

/// How far the wish reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The backup alone.
    One,
    /// The backup and all it is an increment of, down to the full one.
    Ancestors,
}

/// Sets whether backups are kept; returns them, the one that was named first.
pub fn keep(
    server: &str,
    folder: &ServerFolder,
    selector: &Selector,
    keep: bool,
    reach: Reach,
) -> Result<Vec<BackupInfo>> {
    let (identifier, _lock) = select_and_lock(server, folder, selector)?;
    let mut kept: Vec<BackupInfo> = Vec::new();
    let mut next = Some(identifier);
    while let Some(identifier) = next {
        let mut info = BackupInfo::read(&folder.backup(identifier))?;
        info.keep = keep;
        next = match reach {
            Reach::One => None,
            Reach::Ancestors => info.incremental.map(|increment| increment.parent),
        };
        kept.push(info);
        if kept.iter().any(|info| Some(info.backup) == next) {
            return Err(Error::damage(format!(
                "backup {identifier} of server {server} is its own ancestor"
            )));
        }
    }
    // Nothing is changed where an ancestor cannot be read.
    for info in &kept {
        info.write(&folder.backup(info.backup))?;
    }
    Ok(kept)
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
            source: ChangeSource::Wal,
        });
        let backup = folder.backup(name.parse().unwrap());
        std::fs::create_dir_all(backup.path()).unwrap();
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
            let selector = name.parse().unwrap();
            keep("primary", &folder, &selector, value, reach).unwrap()
        };
        let changed = set(MIDDLE, true, Reach::One);
        assert_eq!(changed.len(), 1);
        assert_eq!(kept(&folder), [false, true, false]);
        let changed = set(NEWEST, true, Reach::Ancestors);
        let names: Vec<String> = changed.iter().map(|info| info.backup.to_string()).collect();
        assert_eq!(names, [NEWEST, MIDDLE, FULL]);
        assert_eq!(kept(&folder), [true, true, true]);
        set(MIDDLE, false, Reach::Ancestors);
        assert_eq!(kept(&folder), [false, false, true]);
    }

    #[test]
    fn nothing_changes_where_an_ancestor_is_missing_or_the_chain_has_no_end() {
        let (_base, folder) = chain();
        let newest: Selector = NEWEST.parse().unwrap();
        put(&folder, FULL, Some(NEWEST));
        assert!(keep("primary", &folder, &newest, true, Reach::Ancestors).is_err());
        assert_eq!(kept(&folder), [false, false, false]);
        std::fs::remove_file(folder.backup(FULL.parse().unwrap()).info()).unwrap();
        assert!(keep("primary", &folder, &newest, true, Reach::Ancestors).is_err());
        put(&folder, FULL, None);
        assert_eq!(kept(&folder), [false, false, false]);
    }
}
