//! What tells a restored cluster how to recover: signal file and settings.

use std::io::Write;

use crate::error::{Error, Result};
use crate::pg::lsn::Timeline;
use crate::pg::recovery::target::{RecoveryTarget, TargetAction};
use crate::repository::backup_info::BackupInfo;
use crate::restore::directory::DataDirectory;

/// Where a restored cluster is told how to recover.
pub(crate) const SETTINGS_FILE: &str = "postgresql.auto.conf";
const COMMENT: &str = "# Added by pgkeep restore:";

/// The server wants a command; this one finds no WAL.
const NO_WAL: &str = "false";

/// Settings that decide over recovery. Those the source had would mislead the restored cluster.
const RECOVERY_SETTINGS: [&str; 13] = [
    "archive_cleanup_command",
    "primary_conninfo",
    "primary_slot_name",
    "recovery_end_command",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
];

/// How a restored cluster recovers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// Through the WAL in the backup, to where the cluster is consistent.
    OwnWal,
    /// On through archived WAL.
    Archive {
        /// How the server gets at it.
        restore_command: String,
        /// The timeline whose WAL it follows.
        timeline: Timeline,
        /// Where it stops, and what it does there; nothing for the end of all WAL.
        target: Option<(RecoveryTarget, TargetAction)>,
    },
    /// Behind a primary for good.
    Replica {
        /// How it finds its primary: without a password.
        primary_conninfo: String,
        /// How it gets at archived WAL, if there is any.
        restore_command: Option<String>,
    },
}

/// Appends the settings to `postgresql.auto.conf`, and creates the signal file.
pub(super) fn write_settings(
    directory: &DataDirectory,
    info: &BackupInfo,
    recovery: &Recovery,
) -> Result<()> {
    let path = directory.path(SETTINGS_FILE);
    let failed = |error: &std::io::Error| Error::io("write", &path, error);
    let before = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            directory.create_file(&path)?;
            String::new()
        }
        Err(error) => return Err(failed(&error)),
    };
    std::fs::write(&path, recovery.settings_file(&before, info)).map_err(|error| failed(&error))?;
    let signal = directory.path(recovery.signal_file());
    directory
        .create_file(&signal)?
        .flush()
        .map_err(|error| Error::io("write", &signal, &error))
}

impl Recovery {
    /// The same for a cluster that has all WAL on the way in its `pg_wal`.
    #[must_use]
    pub fn with_all_wal_at_hand(self) -> Recovery {
        match self {
            Recovery::Archive {
                timeline, target, ..
            } => Recovery::Archive {
                restore_command: NO_WAL.to_owned(),
                timeline,
                target,
            },
            other => other,
        }
    }

    /// The empty file that makes the server recover so.
    ///
    /// With `recovery.signal` a primary ends up on a timeline of its own: on the source's timeline it
    /// would archive other WAL under the same names.
    pub fn signal_file(&self) -> &'static str {
        match self {
            Recovery::OwnWal | Recovery::Archive { .. } => "recovery.signal",
            Recovery::Replica { .. } => "standby.signal",
        }
    }

    /// `postgresql.auto.conf` as it was in the backup, with these settings instead of those that
    /// decided over recovery there.
    pub fn settings_file(&self, before: &str, info: &BackupInfo) -> String {
        let mut text: String = before
            .lines()
            .filter(|line| !is_recovery_setting(line))
            .map(|line| format!("{line}\n"))
            .collect();
        text.push_str(COMMENT);
        text.push('\n');
        for (name, value) in self.settings(info) {
            text.push_str(&format!("{name} = '{}'\n", escaped(&value)));
        }
        text
    }

    fn settings(&self, info: &BackupInfo) -> Vec<(&'static str, String)> {
        match self {
            // There is no recovery target: the WAL in the backup ends where it is consistent, and
            // with `recovery_target = 'immediate'` the server wants one more record after
            // that, which a standby's backup does not have.
            Recovery::OwnWal => vec![
                ("restore_command", NO_WAL.to_owned()),
                (
                    "recovery_target_timeline",
                    target_timeline(info, info.end_timeline),
                ),
            ],
            Recovery::Archive {
                restore_command,
                timeline,
                target,
            } => {
                let mut settings = vec![
                    ("restore_command", restore_command.clone()),
                    ("recovery_target_timeline", target_timeline(info, *timeline)),
                ];
                if let Some((target, action)) = target {
                    settings.push(target.setting());
                    settings.extend(target.is_inclusive().map(|inclusive| {
                        let value = if inclusive { "on" } else { "off" };
                        ("recovery_target_inclusive", value.to_owned())
                    }));
                    settings.push(("recovery_target_action", action.name().to_owned()));
                }
                settings
            }
            Recovery::Replica {
                primary_conninfo,
                restore_command,
            } => {
                let mut settings = vec![
                    ("primary_conninfo", primary_conninfo.clone()),
                    ("recovery_target_timeline", "latest".to_owned()),
                ];
                settings.extend(
                    restore_command
                        .clone()
                        .map(|command| ("restore_command", command)),
                );
                settings
            }
        }
    }
}

/// `current` is the timeline that the backup began on. It need not have a history file, as any
/// other one must that is named by its number.
fn target_timeline(info: &BackupInfo, timeline: Timeline) -> String {
    if timeline == info.start_timeline {
        "current".to_owned()
    } else {
        timeline.to_string()
    }
}

fn is_recovery_setting(line: &str) -> bool {
    let name = line.split(['=', ' ', '\t']).next().unwrap_or_default();
    line == COMMENT
        || RECOVERY_SETTINGS
            .iter()
            .any(|setting| name.eq_ignore_ascii_case(setting))
}

/// A value between single quotes (utils/misc/guc-file.l, DeescapeQuotedString).
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "''")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pg::lsn::Lsn;
    use crate::pg::recovery::target::Point;
    use crate::repository::backup_info::tests::example;

    #[test]
    fn settings_of_an_earlier_recovery_go() {
        for line in [
            "restore_command = 'cp x y'",
            "recovery_target_time='2024'",
            "primary_conninfo = 'host=x'",
            "Recovery_End_Command = 'x'",
            COMMENT,
        ] {
            assert!(is_recovery_setting(line), "{line}");
        }
        for line in [
            "# restore_command",
            "shared_buffers = '1GB'",
            "recovery_min_apply_delay = 5",
            "",
        ] {
            assert!(!is_recovery_setting(line), "{line}");
        }
    }

    #[test]
    fn a_target_is_put_into_settings() {
        let recovery = Recovery::Archive {
            restore_command: r"'/it'\''s/pgkeep' wal get a %f %p".to_owned(),
            timeline: Timeline(3),
            target: Some((
                RecoveryTarget::Point {
                    point: Point::Lsn(Lsn(0x1_0000_002A)),
                    inclusive: false,
                },
                TargetAction::Promote,
            )),
        };
        let before = "a = 'b'\nrecovery_target_xid = '7'\n# Added by pgkeep restore:\n";
        assert_eq!(
            recovery.settings_file(before, &example("20240928065644")),
            r"a = 'b'
# Added by pgkeep restore:
restore_command = '''/it''\\''''s/pgkeep'' wal get a %f %p'
recovery_target_timeline = '3'
recovery_target_lsn = '1/2A'
recovery_target_inclusive = 'off'
recovery_target_action = 'promote'
"
        );
    }

    #[test]
    fn a_timeline_without_a_history_is_not_named() {
        let mut info = example("20240928065644");
        let of = |info: &BackupInfo| Recovery::OwnWal.settings_file("", info);
        assert!(of(&info).contains("recovery_target_timeline = 'current'\n"));
        info.end_timeline = Timeline(2);
        assert!(of(&info).contains("recovery_target_timeline = '2'\n"));
    }
}
