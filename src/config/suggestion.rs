//! "Did you mean …?"

/// The candidate that is fewest typing errors away, if they are few.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(errors, candidate)| *errors <= 2 && *errors < candidate.chars().count())
        .min_by_key(|(errors, _)| *errors)
        .map(|(_, candidate)| candidate)
}

/// The Levenshtein distance, computed row by row.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (deleted, character) in from.chars().enumerate() {
        let mut diagonal = deleted;
        let mut left = deleted + 1;
        let mut next = vec![left];
        for (above, other) in row.iter().skip(1).zip(&to) {
            left = (diagonal + usize::from(character != *other))
                .min(above + 1)
                .min(left + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_near_word_is_suggested() {
        let words = ["primary", "replica"];
        assert_eq!(nearest("primray", words), Some("primary"));
        assert_eq!(nearest("replicas", words), Some("replica"));
        assert_eq!(nearest("warehouse", words), None);
        assert_eq!(nearest("", ["a", "b"]), None);
    }

    #[test]
    fn distance_counts_errors() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
