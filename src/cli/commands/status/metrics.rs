//! The status as metrics of Prometheus, in its text format.

use std::fmt::Write;

use jiff::Timestamp;

use crate::lifecycle::status::{Status, Wal};
use crate::lifecycle::window::Window;

/// A metric: its name, what it means, and its value where a server has one.
type Metric = (&'static str, &'static str, fn(&Status) -> Option<u64>);

const METRICS: [Metric; 15] = [
    ("pgkeep_up", "Whether the server can be asked", |status| {
        Some(u64::from(status.server.is_ok()))
    }),
    ("pgkeep_backups", "Backups", |status| Some(status.backups)),
    (
        "pgkeep_backups_valid",
        "Backups that can be restored",
        |status| Some(status.valid),
    ),
    (
        "pgkeep_newest_backup_timestamp_seconds",
        "When the newest valid backup was made",
        |status| status.newest.and_then(|newest| seconds(newest.time()?)),
    ),
    (
        "pgkeep_verified_timestamp_seconds",
        "When a valid backup was verified last",
        |status| status.verified.and_then(seconds),
    ),
    (
        "pgkeep_backups_due",
        "Valid backups that were not verified for too long",
        |status| Some(status.due),
    ),
    ("pgkeep_wal_gaps", "Gaps in the archived WAL", |status| {
        Some(wal(status)?.gaps.len() as u64)
    }),
    (
        "pgkeep_roll_forward_start_lsn",
        "The first position that can be restored to by archived WAL, in bytes",
        |status| Some(wal(status)?.roll_forward?.from.0),
    ),
    (
        "pgkeep_roll_forward_end_lsn",
        "The end of the WAL that can be restored to, in bytes",
        |status| Some(wal(status)?.roll_forward?.to.lsn.0),
    ),
    (
        "pgkeep_window_start_timestamp_seconds",
        "From when on any moment can be restored, up to the end of the window",
        |status| seconds(window(status)?.from_time?),
    ),
    (
        "pgkeep_window_end_timestamp_seconds",
        "The last moment that can be restored, that of the last transaction that is archived",
        |status| seconds(window(status)?.to_time?),
    ),
    (
        "pgkeep_window_holes",
        "Stretches of time that cannot be restored, though there is something before",
        |status| Some(status.restorable.as_ref().ok()?.holes.len() as u64),
    ),
    (
        "pgkeep_held_bytes",
        "Bytes on disk of all that is held",
        |status| Some(status.held),
    ),
    (
        "pgkeep_free_bytes",
        "Bytes free where that lies",
        |status| status.free,
    ),
    (
        "pgkeep_attention",
        "How many things a person must look after",
        |status| Some(status.attention.len() as u64),
    ),
];

fn wal(status: &Status) -> Option<&Wal> {
    status.wal.as_ref().ok()?.as_ref()
}

fn window(status: &Status) -> Option<&Window> {
    status.restorable.as_ref().ok()?.newest()
}

/// All metrics of all servers. Their names need no escaping.
pub(super) fn render(servers: &[(String, Status)], now: Timestamp) -> String {
    let mut text = String::new();
    // Writing into a string cannot fail.
    for (name, meaning, value) in METRICS {
        let _ = writeln!(text, "# HELP {name} {meaning}.\n# TYPE {name} gauge");
        for (server, status) in servers {
            if let Some(value) = value(status) {
                let _ = writeln!(text, "{name}{{server=\"{server}\"}} {value}");
            }
        }
    }
    let name = "pgkeep_status_timestamp_seconds";
    let _ = writeln!(
        text,
        "# HELP {name} When this was looked at.\n# TYPE {name} gauge\n{name} {}",
        now.as_second()
    );
    text
}

fn seconds(time: Timestamp) -> Option<u64> {
    u64::try_from(time.as_second()).ok()
}
