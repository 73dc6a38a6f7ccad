//! The paths of very many files, one behind the other in one piece of memory.

/// Paths, which are only added to.
#[derive(Debug, Clone, Default)]
pub struct Paths {
    text: String,
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
    /// Makes room for so many bytes more.
    pub fn reserve(&mut self, bytes: usize) {
        self.text.reserve(bytes);
    }

    /// Adds one.
    pub fn push(&mut self, path: &str) -> PathPlace {
        debug_assert!(path.len() < 1 << LENGTH_BITS);
        let start = self.text.len() as u64;
        self.text.push_str(path);
        PathPlace(start << LENGTH_BITS | path.len() as u64)
    }

    /// Adds all of another's; each then is [behind](PathPlace::behind) these.
    pub fn append(&mut self, others: &Paths) {
        self.text.push_str(&others.text);
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
        self.text.truncate(bytes);
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
}
