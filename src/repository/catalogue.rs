//! The backups of one server.

use std::fs;
use std::io;

use crate::error::{Error, Result};
use crate::repository::backup_info::BackupInfo;
use crate::repository::identifier::{Identifier, Selector};
use crate::repository::layout::{BackupFolder, ServerFolder};

/// A finished backup as it lies in the repository.
#[derive(Debug)]
pub struct Backup {
    /// Its name.
    pub identifier: Identifier,
    /// Where it lies.
    pub folder: BackupFolder,
    /// What is known about it; an error where that cannot be read, which makes the backup invalid.
    pub info: Result<BackupInfo>,
}

/// Every finished backup of a server, the oldest first.
#[derive(Debug)]
pub struct Catalogue {
    server: String,
    backups: Vec<Backup>,
}

impl Catalogue {
    /// Reads the catalogue. A server without any backup has an empty one.
    pub fn read(server: &str, folder: &ServerFolder) -> Result<Catalogue> {
        folder.check_format()?;
        let mut backups: Vec<Backup> = identifiers(folder)?
            .into_iter()
            .map(|identifier| {
                let folder = folder.backup(identifier);
                let info = BackupInfo::read(&folder).and_then(|info| named(identifier, info));
                Backup {
                    identifier,
                    folder,
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

    /// The backup a user means. `newest` and `oldest` are valid ones; an
    /// identifier may name an invalid one.
    pub fn select(&self, selector: &Selector) -> Result<&Backup> {
        let mut valid = self.backups.iter().filter(|backup| backup.info.is_ok());
        match selector {
            Selector::Newest => valid.next_back().ok_or_else(|| self.nothing_valid()),
            Selector::Oldest => valid.next().ok_or_else(|| self.nothing_valid()),
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

    fn nothing_valid(&self) -> Error {
        Error::failed(format!("server {} has no valid backup", self.server))
            .hint(format!("pgkeep backup {} makes one", self.server))
    }
}

fn identifiers(folder: &ServerFolder) -> Result<Vec<Identifier>> {
    let backups = folder.backups();
    let entries = match fs::read_dir(&backups) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| Error::io("read the folder", &backups, &error))?,
    };
    let mut identifiers = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("read the folder", &backups, &error))?;
        let name = entry.file_name();
        identifiers.extend(
            name.to_str()
                .and_then(|name| name.parse::<Identifier>().ok()),
        );
    }
    Ok(identifiers)
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
    use crate::repository::backup_info::tests::example;

    fn catalogue(names: &[&str], broken: &[&str]) -> (tempfile::TempDir, Catalogue) {
        let base = tempfile::tempdir().unwrap();
        let folder = ServerFolder::new(base.path(), "primary");
        folder.create().unwrap();
        for name in names {
            let backup = folder.backup(name.parse().unwrap());
            fs::create_dir(backup.path()).unwrap();
            example(name).write(&backup).unwrap();
        }
        for name in broken {
            fs::create_dir(folder.backups().join(name)).unwrap();
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

    #[test]
    fn without_a_valid_backup_there_is_no_newest() {
        let (_base, catalogue) = catalogue(&[], &["20260101000000"]);
        assert!(catalogue.select(&Selector::Newest).is_err());
    }
}
