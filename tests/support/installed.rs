//! PostgreSQL as it is installed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::account;

/// The folder bin of an installed version.
pub fn binaries(major: u32) -> PathBuf {
    let root = std::env::var_os("PGKEEP_TEST_POSTGRES")
        .map_or_else(|| PathBuf::from("/opt/postgresql-test"), PathBuf::from);
    let binaries = root.join(major.to_string()).join("bin");
    assert!(
        binaries.join("initdb").exists(),
        "PostgreSQL {major} is not in {}: run tests/install-postgres",
        binaries.display()
    );
    binaries
}

/// When a version was built: of another build, nothing is kept.
pub fn since(major: u32) -> i64 {
    let initdb = fs::metadata(binaries(major).join("initdb"));
    initdb.unwrap().mtime()
}

/// What makes a cluster that trusts whoever says to be `postgres`.
pub fn initdb(major: u32, data: &Path) -> Command {
    let mut initdb = account::command(binaries(major).join("initdb"));
    initdb.arg("-D").arg(data);
    initdb.args(["-N", "-U", "postgres", "-A", "trust"]);
    initdb.args(["--no-locale", "-E", "UTF8"]);
    initdb
}
