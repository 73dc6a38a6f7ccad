//! The paths of very many files, one behind the other in one piece of memory.

use std::sync::Arc;

/// Paths, which are only added to. A clone shares the memory, until another path is added to one of the two.
#[derive(Debug, Clone, Default)]
pub struct Paths {
    text: Arc<String>,
}

/// Which of some paths: in 8 bytes, where it begins and how long it is.
#[derive(Debug, Clone, Copy)]
pub struct PathPlace(u64);

/// These bits of a place are the length. What comes from outside is much shorter,
/// [`stays_inside`](crate::pg::relative_path::stays_inside).
const LENGTH_BITS: u32 = 24;

impl PathPlace {
    /// Where it is once its paths were added behind `others`.
    pub fn behind(self, others: &Paths) -> PathPlace {
        PathPlace(self.0 + ((others.text.len() as u64) << LENGTH_BITS))
    }
}

impl Paths {
    /// Adds one. Of a path that was taken from these, or from a clone, only the place is given.
    pub fn push(&mut self, path: &str) -> PathPlace {
        debug_assert!(path.len() < 1 << LENGTH_BITS);
        let start = self.start_of(path).unwrap_or_else(|| {
            let start = self.text.len();
            Arc::make_mut(&mut self.text).push_str(path);
            start
        });
        PathPlace((start as u64) << LENGTH_BITS | path.len() as u64)
    }

    /// Where a piece of this very text begins.
    fn start_of(&self, path: &str) -> Option<usize> {
        let start = path
            .as_ptr()
            .addr()
            .checked_sub(self.text.as_ptr().addr())?;
        (start + path.len() <= self.text.len()).then_some(start)
    }

    /// Whether these share their memory with others: then each has the same place in both.
    pub fn are_shared_with(&self, others: &Paths) -> bool {
        Arc::ptr_eq(&self.text, &others.text)
    }

    /// Adds all of another's; each then is [behind](PathPlace::behind) these.
    pub fn append(&mut self, others: &Paths) {
        Arc::make_mut(&mut self.text).push_str(&others.text);
    }

    /// One of these.
    pub fn get(&self, place: PathPlace) -> &str {
        let start = (place.0 >> LENGTH_BITS) as usize;
        let length = place.0 & ((1 << LENGTH_BITS) - 1);
        &self.text[start..][..length as usize]
    }

    /// How long all of them are together.
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    /// Forgets those that were added since they were so long together.
    pub fn truncate(&mut self, bytes: usize) {
        if bytes < self.text.len() {
            Arc::make_mut(&mut self.text).truncate(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_is_found_at_its_place_behind_others_too() {
        let (mut paths, mut others) = (Paths::default(), Paths::default());
        let first = paths.push("base/5/é");
        let empty = paths.push("");
        let other = others.push("global/1262");
        let behind = other.behind(&paths);
        paths.append(&others);
        assert_eq!(paths.get(first), "base/5/é");
        assert_eq!(paths.get(empty), "");
        assert_eq!(paths.get(behind), others.get(other));
    }

    #[test]
    fn clones_share_what_both_have() {
        let mut paths = Paths::default();
        let (one, two) = (paths.push("base/5/1"), paths.push("base/5/2"));
        let mut clone = paths.clone();
        let again = clone.push(paths.get(two));
        assert!(clone.are_shared_with(&paths));
        assert_eq!(clone.get(again), "base/5/2");
        let new = clone.push("base/5/3");
        assert!(!clone.are_shared_with(&paths));
        assert_eq!(
            [one, two, new].map(|place| clone.get(place)),
            ["base/5/1", "base/5/2", "base/5/3"]
        );
        assert_eq!(paths.bytes(), 16);
    }
}
