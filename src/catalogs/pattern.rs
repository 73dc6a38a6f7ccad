//! Patterns of names, with `*` for any letters and `?` for any one.

/// Whether a name fits a pattern: goes on from the last `*` with one letter more where it does not.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut next) = (0, 0);
    let mut star = None;
    while at < name.len() {
        match pattern.get(next) {
            Some('*') => {
                star = Some((next, at));
                next += 1;
            }
            Some(letter) if *letter == '?' || *letter == name[at] => {
                at += 1;
                next += 1;
            }
            _ => match star {
                None => return false,
                Some((place, from)) => {
                    star = Some((place, from + 1));
                    at = from + 1;
                    next = place + 1;
                }
            },
        }
    }
    pattern[next..].iter().all(|letter| *letter == '*')
}
