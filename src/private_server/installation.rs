//! The programs of one version of PostgreSQL, where distributions put them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::pg::version::Major;

/// A server's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Installation {
    bin: PathBuf,
    pub(crate) major: Major,
    /// Such as `17.11`.
    pub(crate) version: String,
}

impl Installation {
    /// Looks into `bin_dir` alone where that is given, else wherever a server may be.
    pub(crate) fn find(
        major: Major,
        bin_dir: Option<&Path>,
        search_path: Option<&OsStr>,
    ) -> Result<Installation> {
        let number = major.number();
        if let Some(bin) = bin_dir {
            return match version_in(bin) {
                Some(version) if is_of(&version, number) => Ok(Installation {
                    bin: bin.to_owned(),
                    major,
                    version,
                }),
                Some(version) => Err(Error::usage(format!(
                    "the backup is of PostgreSQL {number}, and the server in {} is PostgreSQL {version}",
                    bin.display()
                ))),
                None => Err(Error::usage(format!(
                    "there is no program postgres in {} that runs",
                    bin.display()
                ))),
            };
        }
        places(number, search_path)
            .into_iter()
            .find_map(|bin| {
                let version = version_in(&bin).filter(|version| is_of(version, number))?;
                Some(Installation {
                    bin,
                    major,
                    version,
                })
            })
            .ok_or_else(|| {
                Error::failed(format!(
                    "no server of PostgreSQL {number} was found on this machine"
                ))
                .hint("install one, or name the folder of its programs with --bin-dir")
            })
    }

    /// The folder of its programs.
    pub(super) fn bin(&self) -> &Path {
        &self.bin
    }

    /// The path of one of its programs.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// Folders that may hold the server's programs: those of one version first.
fn places(number: u32, search_path: Option<&OsStr>) -> Vec<PathBuf> {
    let usual = [
        format!("/usr/lib/postgresql/{number}/bin"),
        format!("/usr/pgsql-{number}/bin"),
        format!("/usr/lib/postgresql{number}/bin"),
        format!("/usr/lib64/postgresql-{number}/bin"),
        format!("/usr/libexec/postgresql{number}"),
        format!("/usr/local/pgsql-{number}/bin"),
        format!("/usr/local/pgsql{number}/bin"),
        "/usr/local/pgsql/bin".to_owned(),
    ];
    let mut optional: Vec<PathBuf> = fs::read_dir("/opt")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    optional.sort();
    let optional = optional
        .into_iter()
        .flat_map(|folder| [folder.join(format!("{number}/bin")), folder.join("bin")]);
    let on_path = search_path.into_iter().flat_map(std::env::split_paths);
    let all = usual
        .into_iter()
        .map(PathBuf::from)
        .chain(optional)
        .chain(on_path);
    all.filter(|folder| folder.join("postgres").is_file())
        .collect()
}

/// The version of the server in a folder, if there is one that runs.
fn version_in(bin: &Path) -> Option<String> {
    let output = Command::new(bin.join("postgres"))
        .arg("--version")
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    version(&String::from_utf8_lossy(&output.stdout)).map(str::to_owned)
}

/// The version in the line that `postgres --version` prints: `postgres (PostgreSQL) 17.11 (Debian 17.11-1)`.
fn version(line: &str) -> Option<&str> {
    line.split_once("(PostgreSQL) ")?
        .1
        .split_whitespace()
        .next()
}

fn is_of(version: &str, number: u32) -> bool {
    version
        .strip_prefix(&number.to_string())
        .is_some_and(|rest| rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_version_is_read_as_distributions_print_it() {
        for (line, expected) in [
            ("postgres (PostgreSQL) 17.11\n", Some("17.11")),
            (
                "postgres (PostgreSQL) 15.19 (Debian 15.19-1)",
                Some("15.19"),
            ),
            ("postgres (PostgreSQL) 19beta1\n", Some("19beta1")),
            ("mysqld 8", None),
        ] {
            assert_eq!(version(line), expected);
        }
        assert!(is_of("17.11", 17));
        for (version, number) in [("17.11", 1), ("17.11", 16), ("17beta1", 17)] {
            assert!(!is_of(version, number), "{version}");
        }
    }

    #[test]
    fn a_folder_that_was_named_must_have_a_server() {
        let folder = tempfile::tempdir().unwrap();
        let error = Installation::find(Major::V17, Some(folder.path()), None).unwrap_err();
        assert!(error.message().contains("no program postgres"), "{error}");
    }
}
