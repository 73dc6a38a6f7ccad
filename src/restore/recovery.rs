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

/// Settings that decide over recovery, and what they are where the restore says nothing else. Those the source had, in
/// any of its files, would mislead the restored cluster: a running primary disregards them.
const RECOVERY_SETTINGS: [(&str, &str); 14] = [
    ("archive_cleanup_command", ""),
    ("primary_conninfo", ""),
    ("primary_slot_name", ""),
    ("recovery_end_command", ""),
    ("recovery_min_apply_delay", "0"),
    ("recovery_target", ""),
    ("recovery_target_action", "pause"),
    ("recovery_target_inclusive", "on"),
    ("recovery_target_lsn", ""),
    ("recovery_target_name", ""),
    ("recovery_target_time", ""),
    ("recovery_target_timeline", "latest"),
    ("recovery_target_xid", ""),
    ("restore_command", ""),
];

/// The same of 14 and 15; later versions do not start with a setting that they do not have.
const PROMOTE_TRIGGER_FILE: &str = "promote_trigger_file";

const ARCHIVE_MODE: &str = "archive_mode";

/// Without it recovery panics at a tablespace in the data directory (access/transam/xlogrecovery.c,
/// CheckTablespaceDirectory). On the source it need not have been set but while that was created.
const IN_PLACE: &str = "allow_in_place_tablespaces";

/// With it recovery does not mind that a page is none. It is for a cluster with holes alone, and none that was made of one
/// gets it.
pub(crate) const IGNORE_INVALID_PAGES: &str = "ignore_invalid_pages";

/// Without it a server ends itself where it should pause (access/transam/xlogrecovery.c, recoveryPausesHere), and a replica
/// can never be read.
const HOT_STANDBY: &str = "hot_standby";

/// What a restored cluster keeps of the settings that `ALTER SYSTEM` made on its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceSettings {
    /// All but those of recovery: it goes on archiving to where the source did.
    Kept,
    /// The same, and it archives nothing: a copy that is started beside its source must not put another history into
    /// the source's archive.
    KeptWithoutArchiving,
    /// None: they were made for another machine.
    LeftOut,
}

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
        /// Settings that the WAL asks for, higher than the source's were.
        raised: Vec<(&'static str, u32)>,
    },
    /// Behind a primary for good.
    Replica {
        /// How it finds its primary: without a password.
        primary_conninfo: String,
        /// How it gets at archived WAL, if there is any.
        restore_command: Option<String>,
        /// The timeline that it stays on; nothing where it follows its primary to the newest one.
        timeline: Option<Timeline>,
        /// Settings that the WAL asks for, higher than the source's were.
        raised: Vec<(&'static str, u32)>,
    },
}

/// Creates `postgresql.auto.conf` and the signal file. Each gets its content at once: as soon as it is the server's
/// account's, that may put a link in its place.
pub(super) fn write_settings(
    directory: &DataDirectory,
    info: &BackupInfo,
    recovery: &Recovery,
    source: (SourceSettings, &[u8]),
    ignores_invalid_pages: bool,
) -> Result<()> {
    let mut settings = recovery.settings_file(source, info);
    if ignores_invalid_pages {
        settings.extend_from_slice(format!("{IGNORE_INVALID_PAGES} = 'on'\n").as_bytes());
    }
    let files = [
        (SETTINGS_FILE, settings),
        (recovery.signal_file(), Vec::new()),
    ];
    for (name, content) in files {
        let (mut file, path) = directory.create_file(name)?;
        file.write_all(&content)
            .map_err(|error| Error::io("write", &path, &error))?;
    }
    Ok(())
}

impl Recovery {
    /// The same for a cluster that has all WAL on the way in its `pg_wal`.
    #[must_use]
    pub fn with_all_wal_at_hand(self) -> Recovery {
        match self {
            Recovery::Archive {
                timeline,
                target,
                raised,
                ..
            } => Recovery::Archive {
                restore_command: NO_WAL.to_owned(),
                timeline,
                target,
                raised,
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

    /// `postgresql.auto.conf`: what is kept of the content that it had in the backup, in whatever encoding, and
    /// these settings instead of those that decided over recovery there.
    pub fn settings_file(
        &self,
        (kept, before): (SourceSettings, &[u8]),
        info: &BackupInfo,
    ) -> Vec<u8> {
        let stops_archiving = kept == SourceSettings::KeptWithoutArchiving;
        let mut content = Vec::new();
        if kept != SourceSettings::LeftOut {
            let is_replaced = |line: &[u8]| {
                is_recovery_setting(line) || stops_archiving && is_setting(line, ARCHIVE_MODE)
            };
            let lines = before.split(|byte| *byte == b'\n');
            for line in lines.filter(|line| !line.is_empty() && !is_replaced(line)) {
                content.extend_from_slice(line);
                content.push(b'\n');
            }
        }
        let settings = self.settings(info);
        // A target that is set to nothing clashes with one that was set before it, or makes the server forget it
        // (access/transam/xlogrecovery.c, assign_recovery_target_xid and its like). So they come first.
        let neutral = RECOVERY_SETTINGS
            .into_iter()
            .filter(|(name, _)| settings.iter().all(|(set, _)| set != name))
            .map(|(name, value)| (name, value.to_owned()));
        let trigger = (info.major_version < 16).then(|| (PROMOTE_TRIGGER_FILE, String::new()));
        let archiving = stops_archiving.then(|| (ARCHIVE_MODE, "off".to_owned()));
        let is_in_place = info.tablespaces.iter().any(|one| one.path.is_none());
        let in_place = is_in_place.then(|| (IN_PLACE, "on".to_owned()));
        let mut text = format!("{COMMENT}\n");
        let raised = self.raised().iter();
        let raised = raised.map(|(name, value)| (*name, value.to_string()));
        for (name, value) in neutral
            .chain(trigger)
            .chain(in_place)
            .chain(raised)
            .chain(archiving)
            .chain(settings.iter().cloned())
        {
            text.push_str(&format!("{name} = '{}'\n", escaped(&value)));
        }
        content.extend_from_slice(text.as_bytes());
        content
    }

    /// The lines that a restore adds to `postgresql.auto.conf`.
    pub fn added_settings(&self, kept: SourceSettings, info: &BackupInfo) -> Vec<String> {
        let content = self.settings_file((kept, b""), info);
        let content = String::from_utf8_lossy(&content);
        let lines = content.lines().filter(|line| *line != COMMENT);
        lines.map(str::to_owned).collect()
    }

    /// Whether the server gets archived WAL.
    pub fn restores_wal(&self) -> bool {
        match self {
            Recovery::OwnWal => false,
            Recovery::Archive { .. } => true,
            Recovery::Replica {
                restore_command, ..
            } => restore_command.is_some(),
        }
    }

    /// Settings that the WAL asks for, higher than the source's were.
    pub(crate) fn raised(&self) -> &[(&'static str, u32)] {
        match self {
            Recovery::OwnWal => &[],
            Recovery::Archive { raised, .. } | Recovery::Replica { raised, .. } => raised,
        }
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
                ..
            } => {
                let mut settings = vec![
                    ("restore_command", restore_command.clone()),
                    ("recovery_target_timeline", target_timeline(info, *timeline)),
                ];
                if let Some((target, action)) = target {
                    settings.push(target.setting());
                    settings.push((HOT_STANDBY, "on".to_owned()));
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
                timeline,
                ..
            } => {
                let timeline = timeline.map_or("latest".to_owned(), |timeline| {
                    target_timeline(info, timeline)
                });
                let mut settings = vec![
                    (HOT_STANDBY, "on".to_owned()),
                    ("primary_conninfo", primary_conninfo.clone()),
                    ("recovery_target_timeline", timeline),
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

fn is_recovery_setting(line: &[u8]) -> bool {
    line == COMMENT.as_bytes()
        || RECOVERY_SETTINGS
            .iter()
            .any(|(setting, _)| is_setting(line, setting))
        || is_setting(line, PROMOTE_TRIGGER_FILE)
        || is_setting(line, IGNORE_INVALID_PAGES)
}

/// Whether a line sets this. Names are ASCII; a value may be in any encoding.
pub(super) fn is_setting(line: &[u8], setting: &str) -> bool {
    let line = line.trim_ascii_start();
    let end = line
        .iter()
        .position(|byte| matches!(byte, b'=' | b' ' | b'\t'))
        .unwrap_or(line.len());
    line[..end].eq_ignore_ascii_case(setting.as_bytes())
}

/// A value between single quotes, on one line (utils/misc/guc-file.l, DeescapeQuotedString).
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('\'', "''")
        .replace('\n', "\\n")
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
            " Recovery_End_Command = 'x'",
            "recovery_min_apply_delay = 5",
            "ignore_invalid_pages = 'on'",
            COMMENT,
        ] {
            assert!(is_recovery_setting(line.as_bytes()), "{line}");
        }
        for line in [
            "# restore_command",
            "shared_buffers = '1GB'",
            "restore_command_x = 1",
            "archive_mode = on",
            "",
        ] {
            assert!(!is_recovery_setting(line.as_bytes()), "{line}");
        }
    }

    #[test]
    fn a_target_is_put_into_settings_behind_those_that_are_none() {
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
            raised: vec![("max_connections", 200)],
        };
        let before = b"a = 'b'\nrecovery_target_xid = '7'\n# Added by pgkeep restore:\n";
        let source = (SourceSettings::Kept, &before[..]);
        let content = recovery.settings_file(source, &example("20240928065644"));
        assert_eq!(
            String::from_utf8(content).unwrap(),
            r"a = 'b'
# Added by pgkeep restore:
archive_cleanup_command = ''
primary_conninfo = ''
primary_slot_name = ''
recovery_end_command = ''
recovery_min_apply_delay = '0'
recovery_target = ''
recovery_target_name = ''
recovery_target_time = ''
recovery_target_xid = ''
max_connections = '200'
restore_command = '''/it''\\''''s/pgkeep'' wal get a %f %p'
recovery_target_timeline = '3'
recovery_target_lsn = '1/2A'
hot_standby = 'on'
recovery_target_inclusive = 'off'
recovery_target_action = 'promote'
"
        );
    }

    #[test]
    fn a_value_stays_on_its_line() {
        assert_eq!(escaped("it's\na \\"), r"it''s\na \\");
    }

    #[test]
    fn what_is_kept_of_the_source_is_kept_byte_for_byte() {
        let info = example("20240928065644");
        let before = b"log_line_prefix = 'caf\xe9 '\narchive_mode = 'on'\n";
        let file = |kept| Recovery::OwnWal.settings_file((kept, &before[..]), &info);
        assert!(file(SourceSettings::Kept).starts_with(before));
        let off = file(SourceSettings::KeptWithoutArchiving);
        assert!(off.starts_with(b"log_line_prefix = 'caf\xe9 '\n# Added"));
        let off = String::from_utf8_lossy(&off).into_owned();
        assert!(off.contains("archive_mode = 'off'\n"), "{off}");
        assert!(file(SourceSettings::LeftOut).starts_with(COMMENT.as_bytes()));
    }

    #[test]
    fn a_timeline_without_a_history_is_not_named() {
        let mut info = example("20240928065644");
        let of = |info: &BackupInfo| {
            let content = Recovery::OwnWal.settings_file((SourceSettings::LeftOut, b""), info);
            String::from_utf8(content).unwrap()
        };
        assert!(of(&info).contains("recovery_target_timeline = 'current'\n"));
        info.end_timeline = Timeline(2);
        assert!(of(&info).contains("recovery_target_timeline = '2'\n"));
    }
}
