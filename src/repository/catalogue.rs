//! The backups of one server.

use crate::error::{Error, Kind, Result};
use crate::parallel;
use crate::repository::backup_info::{BackupInfo, Increment};
use crate::repository::identifier::{Identifier, Selector};
use crate::repository::layout::{BackupFolder, ServerFolder};
use crate::repository::staging;

/// A finished backup as it lies in the repository.
#[derive(Debug)]
pub struct Backup {
    /// Its name.
    pub identifier: Identifier,
    /// Where it lies.
    pub folder: BackupFolder,
    /// What is known about it; an error where that cannot be read, which makes the backup invalid.
    /// Whether what it needs is there too, [`Catalogue::check`] tells.
    pub info: Result<BackupInfo>,
}

/// A backup that another one needs.
#[derive(Debug, Clone, Copy)]
pub struct Link<'a> {
    /// Where it lies.
    pub folder: &'a BackupFolder,
    /// What is known about it.
    pub info: &'a BackupInfo,
}

/// Every finished backup of a server, the oldest first.
#[derive(Debug)]
pub struct Catalogue {
    server: String,
    backups: Vec<Backup>,
}

impl Catalogue {
    /// What is known of the newest backup of which anything can be read.
    pub fn newest_info(&self) -> Option<&BackupInfo> {
        let mut backups = self.backups.iter().rev();
        backups.find_map(|backup| backup.info.as_ref().ok())
    }

    /// Reads the catalogue. A server without any backup has an empty one.
    pub fn read(server: &str, folder: &ServerFolder) -> Result<Catalogue> {
        folder.check_format()?;
        let finished = staging::finished(folder)?;
        let infos = parallel::at_once(&finished, |(identifier, folder)| {
            BackupInfo::read(folder).and_then(|info| named(*identifier, info))
        });
        let mut backups: Vec<Backup> = finished
            .into_iter()
            .zip(infos)
            .filter(|(_, info)| {
                let error = info.as_ref().err();
                error.is_none_or(|error| error.kind() != Kind::Absent)
            })
            .map(|((identifier, folder), info)| {
                let files_in = info.as_ref().ok().and_then(|info| info.files_in.as_deref());
                Backup {
                    identifier,
                    folder: files_in.map_or(folder.clone(), |name| folder.with_files_in(name)),
                    info,
                }
            })
            .collect();
        backups.sort_by_key(|backup| backup.identifier);
        Ok(Catalogue {
            server: server.to_owned(),
            backups,
        })
    }

    /// All backups, the oldest first.
    pub fn backups(&self) -> &[Backup] {
        &self.backups
    }

    /// A backup by its full name.
    pub fn get(&self, identifier: Identifier) -> Option<&Backup> {
        let place = self
            .backups
            .binary_search_by_key(&identifier, |backup| backup.identifier);
        place.ok().map(|place| &self.backups[place])
    }

    /// A backup by its full name, which was there a moment ago.
    pub fn find(&self, identifier: Identifier) -> Result<&Backup> {
        self.get(identifier).ok_or_else(|| {
            Error::failed(format!(
                "backup {identifier} of server {} was removed meanwhile",
                self.server
            ))
        })
    }

    /// The backups that can be restored, the oldest first.
    pub fn valid(&self) -> impl DoubleEndedIterator<Item = &Backup> {
        self.backups
            .iter()
            .filter(|backup| self.check(backup).is_ok())
    }

    /// The backups of which nobody can tell just now which others, and which WAL, they need; with the reason.
    pub fn unreadable(&self) -> impl Iterator<Item = (Identifier, &Error)> {
        self.backups
            .iter()
            .filter_map(|backup| Some((backup.identifier, backup.info.as_ref().err()?)))
    }

    /// What is known of a backup that can be restored; else why it cannot: it is damaged itself,
    /// or one that it needs is missing or damaged.
    pub fn check<'a>(&'a self, backup: &'a Backup) -> Result<&'a BackupInfo> {
        let info = backup.info.as_ref().map_err(Error::clone)?;
        info.check_verdict()?;
        for ancestor in self.ancestors(info)? {
            ancestor.info.check_verdict().map_err(|error| {
                error.context(format_args!(
                    "backup {} cannot be used, as it needs one that is damaged",
                    info.backup
                ))
            })?;
        }
        Ok(info)
    }

    /// The backups that this one needs, its parent first, down to a full one. An error where one of them
    /// is missing, without a readable `backup.info`, or not the one that its child was made on. What verifications
    /// found does not count here.
    pub fn ancestors(&self, info: &BackupInfo) -> Result<Vec<Link<'_>>> {
        let unusable = |why: String| {
            Error::damage(format!("backup {} cannot be used: {why}", info.backup))
                .hint("use another backup, and make a new full one")
        };
        let mut ancestors: Vec<Link<'_>> = Vec::new();
        let mut child = info;
        while let Some(increment) = &child.incremental {
            if ancestors.len() == self.backups.len() {
                return Err(unusable("it is among its own ancestors".to_owned()));
            }
            let link = self.parent(child, increment).map_err(unusable)?;
            child = link.info;
            ancestors.push(link);
        }
        Ok(ancestors)
    }

    fn parent(
        &self,
        child: &BackupInfo,
        increment: &Increment,
    ) -> std::result::Result<Link<'_>, String> {
        let (parent, child_name) = (increment.parent, child.backup);
        let backup = self
            .get(parent)
            .ok_or_else(|| format!("the parent {parent} of {child_name} is missing"))?;
        let info = backup.info.as_ref().map_err(|error| match error.kind() {
            Kind::Damage => format!("the parent {parent} of {child_name} is damaged: {error}"),
            _ => format!("the parent {parent} of {child_name} cannot be read: {error}"),
        })?;
        if info.system_identifier != child.system_identifier {
            return Err(format!(
                "{child_name} is of the cluster {}, and its parent {parent} of the cluster {}",
                child.system_identifier, info.system_identifier
            ));
        }
        if (info.start_lsn, info.start_timeline) != (increment.from_lsn, increment.from_timeline) {
            return Err(format!(
                "{child_name} holds what changed from {} on, on timeline {}, and its parent {parent} starts at {} on timeline {}",
                increment.from_lsn, increment.from_timeline, info.start_lsn, info.start_timeline
            ));
        }
        Ok(Link {
            folder: &backup.folder,
            info,
        })
    }

    /// The backup a user means. `newest` and `oldest` are valid ones; an
    /// identifier may name an invalid one.
    pub fn select(&self, selector: &Selector) -> Result<&Backup> {
        match selector {
            Selector::Newest => self.newest(),
            Selector::Oldest => self.valid().next().ok_or_else(|| self.nothing_valid()),
            Selector::Prefix(digits) => {
                let fitting: Vec<&Backup> = self
                    .backups
                    .iter()
                    .filter(|backup| backup.identifier.to_string().starts_with(digits))
                    .collect();
                match fitting.as_slice() {
                    [one] => Ok(one),
                    [] => Err(Error::failed(format!(
                        "server {} has no backup {digits}",
                        self.server
                    ))
                    .hint(format!(
                        "pgkeep list-backup {} shows those it has",
                        self.server
                    ))),
                    several => {
                        let names: Vec<String> = several
                            .iter()
                            .map(|backup| backup.identifier.to_string())
                            .collect();
                        Err(Error::failed(format!(
                            "{digits} fits {} backups of server {}: {}",
                            several.len(),
                            self.server,
                            names.join(", ")
                        ))
                        .hint("give more digits"))
                    }
                }
            }
        }
    }

    /// The newest one that can be restored. Who takes it shall know of newer ones that cannot.
    fn newest(&self) -> Result<&Backup> {
        let newest = self.valid().next_back();
        let newest = newest.ok_or_else(|| self.nothing_valid())?;
        let newer = self.backups.iter().rev();
        for backup in newer.take_while(|backup| backup.identifier != newest.identifier) {
            if let Err(error) = self.check(backup) {
                log::warn!(
                    "backup {} is newer than {}, but not valid: {error}",
                    backup.identifier,
                    newest.identifier
                );
            }
        }
        Ok(newest)
    }

    fn nothing_valid(&self) -> Error {
        Error::failed(format!("server {} has no valid backup", self.server))
            .hint(format!("pgkeep backup {} makes one", self.server))
    }
}

/// A backup.info of another backup, copied here by hand, is not believed.
fn named(identifier: Identifier, info: BackupInfo) -> Result<BackupInfo> {
    if info.backup == identifier {
        Ok(info)
    } else {
        Err(Error::damage(format!(
            "backup {identifier} holds the backup.info of backup {}",
            info.backup
        )))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::repository::backup_info::ChangeSource;
    use crate::repository::backup_info::tests::example;

    fn catalogue(names: &[&str], broken: &[&str]) -> (tempfile::TempDir, Catalogue) {
        let base = tempfile::tempdir().unwrap();
        let folder = ServerFolder::new(base.path(), "primary");
        folder.create().unwrap();
        for name in names {
            let backup = folder.backup(name.parse().unwrap());
            backup.place().create_folder().unwrap();
            example(name).write(&backup).unwrap();
        }
        for name in broken {
            folder.backups().join(name).create_folder().unwrap();
        }
        let catalogue = Catalogue::read("primary", &folder).unwrap();
        (base, catalogue)
    }

    #[test]
    fn a_backup_is_found_by_word_and_by_prefix() {
        let (_base, catalogue) = catalogue(
            &["20240928065644", "20240929065644", "20251001000000"],
            &["20260101000000", "20260102000000.building", "notes"],
        );
        assert_eq!(catalogue.backups().len(), 4);
        let selected = |word: &str| {
            catalogue
                .select(&word.parse().unwrap())
                .map(|backup| backup.identifier.to_string())
        };
        assert_eq!(selected("newest").unwrap(), "20251001000000");
        assert_eq!(selected("oldest").unwrap(), "20240928065644");
        assert_eq!(selected("20240929").unwrap(), "20240929065644");
        assert_eq!(selected("2026").unwrap(), "20260101000000");
        assert!(
            selected("2024")
                .unwrap_err()
                .message()
                .contains("fits 2 backups")
        );
        assert!(
            selected("1999")
                .unwrap_err()
                .message()
                .contains("no backup 1999")
        );
    }

    /// A catalogue of backups with the parents given, changed by `change` before they are written.
    fn family(
        names: &[(&str, Option<&str>)],
        change: impl Fn(&mut BackupInfo),
    ) -> (tempfile::TempDir, Catalogue) {
        let base = tempfile::tempdir().unwrap();
        let folder = ServerFolder::new(base.path(), "primary");
        folder.create().unwrap();
        for (name, parent) in names {
            let backup = folder.backup(name.parse().unwrap());
            backup.place().create_folder().unwrap();
            let mut info = example(name);
            info.incremental = parent.map(|parent| Increment {
                parent: parent.parse().unwrap(),
                from_lsn: info.start_lsn,
                from_timeline: info.start_timeline,
                sources: vec![ChangeSource::Wal],
            });
            change(&mut info);
            info.write(&backup).unwrap();
        }
        let catalogue = Catalogue::read("primary", &folder).unwrap();
        (base, catalogue)
    }

    const FULL: &str = "20260101000000";
    const CHILD: &str = "20260102000000";
    const GRANDCHILD: &str = "20260103000000";
    const CHAIN: [(&str, Option<&str>); 3] =
        [(FULL, None), (CHILD, Some(FULL)), (GRANDCHILD, Some(CHILD))];

    fn valid(catalogue: &Catalogue) -> Vec<String> {
        let names = catalogue
            .valid()
            .map(|backup| backup.identifier.to_string());
        names.collect()
    }

    fn why_unusable(catalogue: &Catalogue, name: &str) -> String {
        let backup = catalogue.get(name.parse().unwrap()).unwrap();
        catalogue.check(backup).unwrap_err().message().to_owned()
    }

    #[test]
    fn a_chain_goes_down_to_a_full_backup() {
        let (_base, catalogue) = family(&CHAIN, |_| {});
        assert_eq!(valid(&catalogue), [FULL, CHILD, GRANDCHILD]);
        let newest = catalogue.select(&Selector::Newest).unwrap();
        let ancestors = catalogue.ancestors(newest.info.as_ref().unwrap()).unwrap();
        let names: Vec<String> = ancestors
            .iter()
            .map(|link| link.info.backup.to_string())
            .collect();
        assert_eq!(names, [CHILD, FULL]);
    }

    #[test]
    fn without_its_ancestors_a_backup_is_not_valid() {
        let (_base, catalogue) = family(&CHAIN[1..], |_| {});
        assert!(valid(&catalogue).is_empty());
        assert_eq!(
            why_unusable(&catalogue, GRANDCHILD),
            format!("backup {GRANDCHILD} cannot be used: the parent {FULL} of {CHILD} is missing")
        );
        assert!(catalogue.select(&Selector::Newest).is_err());
        assert!(
            catalogue
                .select(&Selector::Prefix(CHILD.to_owned()))
                .is_ok()
        );
    }

    #[test]
    fn a_damaged_parent_makes_its_children_invalid() {
        let (base, _) = family(&CHAIN, |_| {});
        let folder = ServerFolder::new(base.path(), "primary");
        let info = folder.backup(CHILD.parse().unwrap()).info();
        info.replace(b"x").unwrap();
        let catalogue = Catalogue::read("primary", &folder).unwrap();
        assert_eq!(valid(&catalogue), [FULL]);
        let why = why_unusable(&catalogue, GRANDCHILD);
        assert!(
            why.contains(&format!("the parent {CHILD} of {GRANDCHILD} is damaged")),
            "{why}"
        );
    }

    #[test]
    fn a_backup_that_was_found_damaged_is_not_valid_until_it_is_found_sound() {
        use crate::repository::backup_info::{Verdict, Verification};
        let damaged = Verdict::Damaged {
            failed_files: 1,
            first: "data/base/5/1: is missing".to_owned(),
        };
        for (verdict, expected) in [
            (damaged, &[FULL][..]),
            (Verdict::Sound, &[FULL, CHILD, GRANDCHILD]),
        ] {
            let (_base, catalogue) = family(&CHAIN, |info| {
                info.verification = (info.backup.to_string() == CHILD).then(|| Verification {
                    time: "2026-11-22T13:10:35Z".parse().unwrap(),
                    verdict: verdict.clone(),
                });
            });
            assert_eq!(valid(&catalogue), expected);
        }
    }

    #[test]
    fn a_parent_must_be_the_one_the_child_was_made_on() {
        let (_base, catalogue) = family(&CHAIN, |info| {
            if info.backup.to_string() == FULL {
                info.system_identifier += 1;
            }
        });
        assert_eq!(valid(&catalogue), [FULL]);
        let why = why_unusable(&catalogue, CHILD);
        assert!(
            why.contains(&format!("its parent {FULL} of the cluster")),
            "{why}"
        );
        for (lsn, timeline) in [(1, 0), (0, 1)] {
            let (_base, catalogue) = family(&CHAIN, |info| {
                if info.backup.to_string() == CHILD {
                    info.start_lsn.0 += lsn;
                    info.start_timeline.0 += timeline;
                }
            });
            assert_eq!(valid(&catalogue), [FULL, CHILD]);
            let why = why_unusable(&catalogue, GRANDCHILD);
            assert!(
                why.contains(&format!("its parent {CHILD} starts at")),
                "{why}"
            );
        }
    }

    #[test]
    fn backups_that_are_each_others_parents_are_not_valid() {
        let (_base, catalogue) = family(
            &[(CHILD, Some(GRANDCHILD)), (GRANDCHILD, Some(CHILD))],
            |_| {},
        );
        assert!(valid(&catalogue).is_empty());
        assert!(why_unusable(&catalogue, CHILD).contains("its own ancestors"));
    }

    #[test]
    fn without_a_valid_backup_there_is_no_newest() {
        let (_base, catalogue) = catalogue(&[], &["20260101000000"]);
        assert!(catalogue.select(&Selector::Newest).is_err());
    }
}
