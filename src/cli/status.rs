//! The exit status, and who reads it.

use crate::cli::report::Answer;
use crate::error::Kind;

/// Who reads the exit status of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StatusReader {
    /// A person or a script, by the manual.
    Anybody,
    /// A server that recovers. It takes anything up to 125 for "there is no such file", which ends a
    /// recovery (access/transam/xlogarchive.c, RestoreArchivedFile).
    Recovery,
}

/// What a recovering server stops at.
pub(super) const CANNOT_TELL: u8 = 126;

impl StatusReader {
    /// Who reads it, where the command line was not understood.
    pub(super) fn of_words(words: &[String]) -> StatusReader {
        let wal = words.iter().position(|word| word == "wal");
        match wal {
            Some(wal) if words[wal..].iter().any(|word| word == "get") => StatusReader::Recovery,
            _ => StatusReader::Anybody,
        }
    }

    /// The exit status of a failure.
    pub(super) fn status(self, kind: Kind) -> u8 {
        match (self, kind) {
            (StatusReader::Anybody, kind) => kind.exit_status(),
            (StatusReader::Recovery, Kind::Absent) => kind.exit_status(),
            (StatusReader::Recovery, _) => CANNOT_TELL,
        }
    }

    /// The exit status that goes with an answer.
    pub(super) fn status_of(self, answer: &Answer) -> u8 {
        let error = answer.error.as_ref();
        error.map_or(0, |error| self.status(error.kind()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_that_is_not_held_lets_recovery_go_on() {
        let kinds = [
            Kind::Failed,
            Kind::Usage,
            Kind::Damage,
            Kind::Locked,
            Kind::Server,
        ];
        for kind in kinds {
            assert!(StatusReader::Recovery.status(kind) > 125);
            assert!((1..=5).contains(&StatusReader::Anybody.status(kind)));
        }
        assert_eq!(StatusReader::Recovery.status(Kind::Absent), 1);
    }

    #[test]
    fn recovery_is_told_by_the_words_too() {
        let of = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            StatusReader::of_words(&words)
        };
        assert_eq!(of("-c file wal get primary"), StatusReader::Recovery);
        assert_eq!(of("wal --quiet get"), StatusReader::Recovery);
        assert_eq!(of("conf get wal"), StatusReader::Anybody);
        assert_eq!(of("wal push"), StatusReader::Anybody);
    }
}
