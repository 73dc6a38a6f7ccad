//! How far a restored cluster replays, and what it becomes.

use std::str::FromStr;

/// POSITION of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// What the cluster becomes.
    pub role: Role,
    /// Where replay ends.
    pub end: End,
    /// What it does there.
    pub action: Action,
}

/// What a restored cluster becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// A primary, on a timeline of its own.
    #[default]
    Primary,
    /// A standby of the server it was copied from.
    Replica,
}

/// Where replay ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum End {
    /// Where the backup is consistent.
    #[default]
    Consistency,
    /// Where the WAL ends that is held.
    Current,
}

/// What the cluster does where replay ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Action {
    /// Becomes writable.
    #[default]
    Promote,
    /// Waits, readable, for pg_wal_replay_resume().
    Pause,
    /// Stops.
    Shutdown,
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Position, String> {
        let mut position = Position::default();
        for word in text.split(',').map(str::trim) {
            match word {
                "primary" => position.role = Role::Primary,
                "replica" => position.role = Role::Replica,
                "current" => position.end = End::Current,
                "immediate" => position.end = End::Consistency,
                "action=promote" => position.action = Action::Promote,
                "action=pause" => position.action = Action::Pause,
                "action=shutdown" => position.action = Action::Shutdown,
                _ => return Err(unknown(word)),
            }
        }
        if position.role == Role::Replica && position.action != Action::Promote {
            return Err("a replica follows its primary and has no action=".to_owned());
        }
        Ok(position)
    }
}

fn unknown(word: &str) -> String {
    let key = word.split('=').next().unwrap_or_default();
    if matches!(
        key,
        "name" | "xid" | "lsn" | "time" | "timeline" | "inclusive"
    ) {
        format!("{key}= needs WAL from after the backup, and this pgkeep keeps no WAL archive")
    } else {
        format!(
            "{word:?} is none of current, immediate, primary, replica, action=pause|promote|shutdown"
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_position_is_a_list_of_words() {
        assert_eq!("primary".parse::<Position>().unwrap(), Position::default());
        let paused: Position = "immediate,action=pause".parse().unwrap();
        assert_eq!(paused.action, Action::Pause);
        assert_eq!("replica".parse::<Position>().unwrap().role, Role::Replica);
        assert!(
            "time=2024-01-01"
                .parse::<Position>()
                .unwrap_err()
                .contains("no WAL archive")
        );
        assert!("sideways".parse::<Position>().is_err());
        assert!("replica,action=pause".parse::<Position>().is_err());
    }
}
