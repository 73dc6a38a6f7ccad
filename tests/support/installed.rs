//! PostgreSQL as it is installed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

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
