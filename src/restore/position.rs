//! What a restored cluster becomes, and how far it replays.

use std::str::FromStr;

/// POSITION of the command line.
///
/// Replay always goes through all WAL that the backup holds, which ends where
/// the cluster is consistent. So `current` and `immediate` are the same place, and the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Position {
    /// A primary, on a timeline of its own.
    #[default]
    Primary,
    /// A standby of the server it was copied from.
    Replica,
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Position, String> {
        let mut position = None;
        for word in text.split(',').map(str::trim) {
            let role = match word {
                "primary" => Position::Primary,
                "replica" => Position::Replica,
                "current" | "immediate" => continue,
                _ => return Err(unknown(word)),
            };
            if position.replace(role).is_some_and(|before| before != role) {
                return Err("a cluster is either a primary or a replica".to_owned());
            }
        }
        Ok(position.unwrap_or_default())
    }
}

fn unknown(word: &str) -> String {
    let key = word.split('=').next().unwrap_or_default();
    if [
        "name",
        "xid",
        "lsn",
        "time",
        "timeline",
        "inclusive",
        "action",
    ]
    .contains(&key)
    {
        format!("{key}= needs WAL from after the backup, and this pgkeep keeps no WAL archive")
    } else {
        format!("{word:?} is none of current, immediate, primary, replica")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_position_is_a_list_of_words() {
        let position = |text: &str| text.parse::<Position>();
        assert_eq!(position("primary"), Ok(Position::Primary));
        assert_eq!(position("current"), Ok(Position::Primary));
        assert_eq!(position("immediate, replica"), Ok(Position::Replica));
        assert!(
            position("time=2024-01-01")
                .unwrap_err()
                .contains("no WAL archive")
        );
        for wrong in ["", "sideways", "primary,replica"] {
            assert!(position(wrong).is_err(), "{wrong}");
        }
    }
}
