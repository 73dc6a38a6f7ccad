//! The names of the files of simple least-recently-used buffers (access/transam/slru.c): which transactions
//! committed, what multixacts are made of, when transactions committed.

/// Where they lie, of those that a backup holds.
const DIRECTORIES: [&str; 4] = [
    "pg_xact",
    "pg_commit_ts",
    "pg_multixact/members",
    "pg_multixact/offsets",
];

/// Whether a path below the data directory is a segment: four to six hexadecimal digits, or fifteen
/// (SlruFileName and SlruCorrectSegmentFilenameLength).
pub fn is_segment(path: &str) -> bool {
    let Some((directory, name)) = path.rsplit_once('/') else {
        return false;
    };
    DIRECTORIES.contains(&directory)
        && matches!(name.len(), 4..=6 | 15)
        && name
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_segments_in_their_own_directories_are_such() {
        for path in [
            "pg_xact/0000",
            "pg_commit_ts/00AF",
            "pg_multixact/members/14078",
            "pg_multixact/offsets/00000000000001F",
        ] {
            assert!(is_segment(path), "{path}");
        }
        for path in [
            "0000",
            "base/5/1234",
            "pg_logical/0000",
            "pg_multixact/0000",
            "pg_twophase/0000000000000A12",
            "pg_xact/00af",
            "pg_xact/000",
            "pg_xact/0000.old",
        ] {
            assert!(!is_segment(path), "{path}");
        }
    }
}
