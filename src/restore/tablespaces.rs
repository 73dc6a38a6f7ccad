//! Where the tablespaces of a restored cluster go.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::pg::wal::CreatedTablespace;
use crate::repository::backup_info::{BackupInfo, Tablespace};

/// `--tablespace OLD=NEW`: OLD is the tablespace's folder, its OID or its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceMapping {
    old: String,
    new: PathBuf,
}

impl FromStr for TablespaceMapping {
    type Err = String;

    /// A `=` inside a path is written `\=`, as pg_basebackup has it.
    fn from_str(text: &str) -> std::result::Result<TablespaceMapping, String> {
        let mut halves = vec![String::new()];
        let mut letters = text.chars().peekable();
        while let Some(letter) = letters.next() {
            match (letter, letters.peek()) {
                ('\\', Some('=')) => {
                    letters.next();
                    if let Some(half) = halves.last_mut() {
                        half.push('=');
                    }
                }
                ('=', _) => halves.push(String::new()),
                (letter, _) => {
                    if let Some(half) = halves.last_mut() {
                        half.push(letter);
                    }
                }
            }
        }
        match <[String; 2]>::try_from(halves) {
            Ok([old, new]) if !old.is_empty() && new.starts_with('/') => Ok(TablespaceMapping {
                old: if old.len() > 1 {
                    old.trim_end_matches('/').to_owned()
                } else {
                    old
                },
                new: new.into(),
            }),
            _ => Err(
                "expected OLD=NEW, NEW being an absolute path (write \\= for = in a path)"
                    .to_owned(),
            ),
        }
    }
}

impl TablespaceMapping {
    /// The tablespace of this OID goes to this folder.
    pub fn new(oid: u32, folder: PathBuf) -> TablespaceMapping {
        TablespaceMapping {
            old: oid.to_string(),
            new: folder,
        }
    }

    pub(super) fn fits(&self, tablespace: &Tablespace) -> bool {
        self.old == tablespace.oid.to_string()
            || self.old == tablespace.name
            || tablespace
                .path
                .as_deref()
                .map(|path| path.trim_end_matches('/'))
                == Some(self.old.as_str())
    }

    /// The WAL does not tell its name.
    fn fits_created(&self, created: &CreatedTablespace) -> bool {
        self.old == created.oid.to_string() || Path::new(&self.old) == created.folder
    }
}

/// A tablespace with the folder its link will point to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Its OID, the name of the link.
    pub oid: u32,
    /// The folder.
    pub folder: PathBuf,
    /// Whether it is where it was on the server.
    pub is_original: bool,
}

/// Places every tablespace that has a folder of its own. Those that recovery will create have theirs, which nobody can
/// choose.
pub fn place(
    info: &BackupInfo,
    mappings: &[TablespaceMapping],
    created: &[CreatedTablespace],
) -> Result<Vec<Placed>> {
    for mapping in mappings {
        if !info
            .tablespaces
            .iter()
            .any(|tablespace| mapping.fits(tablespace))
        {
            if let Some(created) = created.iter().find(|created| mapping.fits_created(created)) {
                return Err(Error::usage(format!(
                    "tablespace {} was created after backup {}, and recovery creates it again in {}, nowhere else",
                    created.oid,
                    info.backup,
                    created.folder.display()
                ))
                .hint(elsewhere(created)));
            }
            let known: Vec<String> = info
                .tablespaces
                .iter()
                .map(|one| {
                    format!(
                        "{} ({})",
                        one.oid,
                        one.path.as_deref().unwrap_or("in place")
                    )
                })
                .collect();
            return Err(Error::usage(format!(
                "backup {} has no tablespace {}",
                info.backup, mapping.old
            ))
            .hint(if known.is_empty() {
                "it has none at all".to_owned()
            } else {
                format!("it has {}", known.join(", "))
            }));
        }
    }
    let mut placed: Vec<Placed> = Vec::new();
    for tablespace in &info.tablespaces {
        let mapped = mappings.iter().find(|mapping| mapping.fits(tablespace));
        let folder = match (mapped, &tablespace.path) {
            (Some(_), None) => {
                return Err(Error::usage(format!(
                    "tablespace {} lies inside the data directory and cannot be moved out of it",
                    tablespace.oid
                )));
            }
            (Some(mapping), Some(_)) => mapping.new.clone(),
            (None, Some(path)) => PathBuf::from(path),
            (None, None) => continue,
        };
        if placed.iter().any(|other| overlap(&other.folder, &folder)) {
            return Err(Error::usage(format!(
                "two tablespaces would share the folder {}",
                folder.display()
            ))
            .hint("give each a folder of its own with --tablespace OLD=NEW"));
        }
        placed.push(Placed {
            oid: tablespace.oid,
            folder,
            is_original: mapped.is_none(),
        });
    }
    for created in created {
        // One that was in the same folder on the server was dropped before.
        let shared = placed.iter().find(|placed| {
            let is_same = placed.is_original && placed.folder == created.folder;
            overlap(&placed.folder, &created.folder) && !is_same
        });
        if let Some(placed) = shared {
            return Err(Error::usage(format!(
                "{} would hold tablespace {}, and recovery creates tablespace {} in {}",
                placed.folder.display(),
                placed.oid,
                created.oid,
                created.folder.display()
            ))
            .hint("give the first another folder with --tablespace OLD=NEW"));
        }
    }
    Ok(placed)
}

/// What to do where recovery must not create a tablespace in its folder.
pub(crate) fn elsewhere(created: &CreatedTablespace) -> String {
    format!(
        "restore on a machine where that folder is free; or to a position before: lsn={},inclusive=off is just before it was \
         created; or restore a backup that was made after that, where --tablespace OLD=NEW can move it",
        created.at
    )
}

/// Whether one of them lies in the other.
pub(super) fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pg::lsn::Lsn;
    use crate::repository::backup_info::tests::example;

    #[test]
    fn a_tablespace_is_named_by_path_oid_or_name() {
        let info = example("20240928065644");
        for old in ["/mnt/fast", "/mnt/fast/", "16390", "fast"] {
            let mapping: TablespaceMapping = format!("{old}=/new").parse().unwrap();
            let placed = place(&info, &[mapping], &[]).unwrap();
            assert_eq!(placed[0].folder, Path::new("/new"));
        }
        assert_eq!(
            place(&info, &[], &[]).unwrap()[0].folder,
            Path::new("/mnt/fast")
        );
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let info = example("20240928065644");
        for wrong in ["", "x", "=y", "/a=b", "/a=/b=/c"] {
            assert!(wrong.parse::<TablespaceMapping>().is_err(), "{wrong}");
        }
        let escaped: TablespaceMapping = r"/a\=b=/c".parse().unwrap();
        assert_eq!(escaped.old, "/a=b");
        assert!(
            place(&info, &[escaped], &[])
                .unwrap_err()
                .message()
                .contains("no tablespace /a=b")
        );
    }

    #[test]
    fn what_recovery_creates_stays_where_it_was_created() {
        let info = example("20240928065644");
        let created = |folder: &str| {
            [CreatedTablespace {
                at: Lsn(0x1A0),
                oid: 16_500,
                folder: folder.into(),
            }]
        };
        for old in ["16500", "/mnt/new", "/mnt/new/"] {
            let mapping: TablespaceMapping = format!("{old}=/new").parse().unwrap();
            let error = place(&info, &[mapping], &created("/mnt/new")).unwrap_err();
            assert!(error.message().contains("nowhere else"), "{error}");
        }
        assert_eq!(place(&info, &[], &created("/mnt/new")).unwrap().len(), 1);
        // The backup's own was dropped when another was created in its folder.
        assert_eq!(place(&info, &[], &created("/mnt/fast")).unwrap().len(), 1);
        let moved: TablespaceMapping = "16390=/mnt/new".parse().unwrap();
        let error = place(&info, &[moved], &created("/mnt/new/x")).unwrap_err();
        assert!(error.message().contains("recovery creates"), "{error}");
    }
}
