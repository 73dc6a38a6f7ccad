//! Paths below a data directory, from whomever they come.

/// PATH_MAX of Linux: no longer path leads to a file.
const LONGEST: usize = 4096;

/// Whether a relative path has only plain names in it, no root, no `..`, no
/// empty part, and is no longer than that of a file can be.
pub fn stays_inside(path: &str) -> bool {
    path.len() < LONGEST
        && path
            .split('/')
            .all(|name| !matches!(name, "" | "." | "..") && !name.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leads_out() {
        for path in ["PG_VERSION", "base/5/1", "a..b/..c", "c d/é"] {
            assert!(stays_inside(path), "{path}");
        }
        for path in [
            "", "/etc", "..", "../x", "a/../b", "a//b", "a/", "./a", "a\0b",
        ] {
            assert!(!stays_inside(path), "{path}");
        }
        assert!(!stays_inside(&"a/a".repeat(5000)));
    }
}
