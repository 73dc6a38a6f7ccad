//! Incremental files: the blocks of a relation's segment that changed since an
//! earlier backup (backup/basebackup_incremental.c, backup/basebackup.c, sendFile;
//! bin/pg_combinebackup/reconstruct.c).

/// What the name of an incremental file begins with.
const PREFIX: &str = "INCREMENTAL.";

/// The path of the incremental file of a relation's segment: `base/5/16384.1` has
/// `base/5/INCREMENTAL.16384.1`.
pub fn file_path(path: &str) -> String {
    match path.rsplit_once('/') {
        Some((directory, name)) => format!("{directory}/{PREFIX}{name}"),
        None => format!("{PREFIX}{path}"),
    }
}
