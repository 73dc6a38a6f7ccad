//! What tells a restored cluster how to recover: signal file and settings.

use std::io::Write;

use crate::error::{Error, Result};
use crate::repository::backup_info::BackupInfo;
use crate::restore::directory::DataDirectory;
use crate::restore::position::Position;

const SETTINGS_FILE: &str = "postgresql.auto.conf";
const COMMENT: &str = "# Added by pgkeep restore:";

/// Settings that decide over recovery. Those the source had would mislead the restored cluster.
const RECOVERY_SETTINGS: [&str; 10] = [
    "restore_command",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "primary_slot_name",
];

/// Appends the settings to `postgresql.auto.conf`, and creates the signal file.
///
/// A primary recovers by `recovery.signal`, which puts it on a timeline of its own: on the source's
/// timeline it would archive other WAL under the same names. It has no recovery target: the WAL it has
/// ends where it is consistent, and with `recovery_target = 'immediate'` the server wants one
/// more record after that, which a standby's backup does not have.
pub(super) fn write_settings(
    directory: &DataDirectory,
    info: &BackupInfo,
    position: Position,
    primary_conninfo: &str,
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
    let mut text: String = before
        .lines()
        .filter(|line| !is_recovery_setting(line))
        .map(|line| format!("{line}\n"))
        .collect();
    text.push_str(COMMENT);
    text.push('\n');
    for (name, value) in settings(info, position, primary_conninfo) {
        text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
    }
    std::fs::write(&path, text).map_err(|error| failed(&error))?;
    let signal = directory.path(match position {
        Position::Primary => "recovery.signal",
        Position::Replica => "standby.signal",
    });
    directory
        .create_file(&signal)?
        .flush()
        .map_err(|error| Error::io("write", &signal, &error))
}

fn is_recovery_setting(line: &str) -> bool {
    let name = line.split(['=', ' ', '\t']).next().unwrap_or_default();
    line == COMMENT
        || name == "primary_conninfo"
        || RECOVERY_SETTINGS
            .iter()
            .any(|setting| name.eq_ignore_ascii_case(setting))
}

fn settings(
    info: &BackupInfo,
    position: Position,
    primary_conninfo: &str,
) -> Vec<(&'static str, String)> {
    match position {
        Position::Primary => {
            // Recovery is on the timeline the backup began on, unless a standby followed its
            // primary to another one while it was being backed up.
            let timeline = if info.end_timeline == info.start_timeline {
                "current".to_owned()
            } else {
                info.end_timeline.to_string()
            };
            vec![
                // The WAL that the backup holds is in pg_wal; there is no other to be had.
                ("restore_command", "false".to_owned()),
                ("recovery_target_timeline", timeline),
            ]
        }
        Position::Replica => vec![
            ("primary_conninfo", primary_conninfo.to_owned()),
            ("recovery_target_timeline", "latest".to_owned()),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_an_earlier_recovery_go() {
        for line in [
            "restore_command = 'cp x y'",
            "recovery_target_time='2024'",
            "primary_conninfo = 'host=x'",
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
}
