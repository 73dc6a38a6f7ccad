//! backup_label, which tells recovery where the backup it starts from began
//! (access/transam/xlogbackup.c, build_backup_content;
//! access/transam/xlogrecovery.c, read_backup_label).
//!
//! ```text
//! START WAL LOCATION: 0/7000028 (file 000000010000000000000007)
//! CHECKPOINT LOCATION: 0/7000080
//! BACKUP METHOD: streamed
//! BACKUP FROM: primary
//! START TIME: 2026-11-22 13:10:36 UTC
//! LABEL: nightly
//! START TIMELINE: 1
//! INCREMENTAL FROM LSN: 0/5000028
//! INCREMENTAL FROM TLI: 1
//! ```
//!
//! The last two lines are in incremental backups only, and the server refuses
//! to start from a label that has them. Otherwise a label must reach the
//! restored cluster byte for byte, so there is nothing here that writes one.

use crate::error::{Error, Result};
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::segment::is_segment_file_name;

/// The name of the file, at the top of the data directory.
pub const BACKUP_LABEL_FILE: &str = "backup_label";

const INCREMENTAL_FROM_LSN: &str = "INCREMENTAL FROM LSN: ";
const INCREMENTAL_FROM_TIMELINE: &str = "INCREMENTAL FROM TLI: ";

/// What a backup_label says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay begins: the redo position of the backup's checkpoint.
    pub start_lsn: Lsn,
    /// The WAL segment that holds that position.
    pub start_segment_file: String,
    /// The backup's checkpoint record.
    pub checkpoint_lsn: Lsn,
    /// Whether the backup was taken from a standby.
    pub from_standby: bool,
    /// The label that pg_backup_start was given.
    pub label: String,
    /// The timeline of the checkpoint.
    pub start_timeline: Timeline,
    /// Where the backup begins that an incremental one builds on.
    pub incremental_from: Option<IncrementalFrom>,
}

/// Where the backup begins that an incremental one builds on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IncrementalFrom {
    /// Its start position.
    pub lsn: Lsn,
    /// Its start timeline.
    pub timeline: Timeline,
}

impl BackupLabel {
    /// Reads the content of a backup_label.
    pub fn parse(text: &str) -> Result<BackupLabel> {
        let start = value(text, "START WAL LOCATION: ")?;
        let (start_lsn, start_segment_file) = start
            .strip_suffix(')')
            .and_then(|start| start.split_once(" (file "))
            .filter(|(_, file)| is_segment_file_name(file))
            .ok_or_else(|| invalid("START WAL LOCATION", start))?;
        let from = value(text, "BACKUP FROM: ")?;
        let start_timeline = timeline(text, "START TIMELINE: ")?;
        if start_segment_file[..8] != format!("{:08X}", start_timeline.0) {
            return Err(invalid("START TIMELINE", &start_timeline.to_string()));
        }
        Ok(BackupLabel {
            start_lsn: start_lsn
                .parse()
                .map_err(|_| invalid("START WAL LOCATION", start))?,
            start_segment_file: start_segment_file.to_owned(),
            checkpoint_lsn: lsn(text, "CHECKPOINT LOCATION: ")?,
            from_standby: match from {
                "primary" => false,
                "standby" => true,
                _ => return Err(invalid("BACKUP FROM", from)),
            },
            label: value(text, "LABEL: ")?.to_owned(),
            start_timeline,
            incremental_from: incremental_from(text)?,
        })
    }
}

/// A label with the two lines that make it an incremental backup's, as
/// pg_combinebackup wants them.
pub fn with_incremental_from(label: &str, from: IncrementalFrom) -> String {
    format!(
        "{}{INCREMENTAL_FROM_LSN}{}\n{INCREMENTAL_FROM_TIMELINE}{}\n",
        without_incremental_from(label),
        from.lsn,
        from.timeline
    )
}

/// A label without those two lines, as recovery wants it; not a byte of the
/// rest changes.
pub fn without_incremental_from(label: &str) -> String {
    let is_incremental = |line: &str| {
        line.starts_with(INCREMENTAL_FROM_LSN) || line.starts_with(INCREMENTAL_FROM_TIMELINE)
    };
    label
        .split_inclusive('\n')
        .filter(|line| !is_incremental(line))
        .collect()
}

fn incremental_from(text: &str) -> Result<Option<IncrementalFrom>> {
    let has = |key| optional_value(text, key).is_some();
    if !has(INCREMENTAL_FROM_LSN) && !has(INCREMENTAL_FROM_TIMELINE) {
        return Ok(None);
    }
    Ok(Some(IncrementalFrom {
        lsn: lsn(text, INCREMENTAL_FROM_LSN)?,
        timeline: timeline(text, INCREMENTAL_FROM_TIMELINE)?,
    }))
}

fn lsn(text: &str, key: &str) -> Result<Lsn> {
    let value = value(text, key)?;
    value.parse().map_err(|_| invalid(key, value))
}

fn timeline(text: &str, key: &str) -> Result<Timeline> {
    let value = value(text, key)?;
    match value.parse() {
        Ok(0) | Err(_) => Err(invalid(key, value)),
        Ok(timeline) => Ok(Timeline(timeline)),
    }
}

fn value<'a>(text: &'a str, key: &str) -> Result<&'a str> {
    optional_value(text, key).ok_or_else(|| {
        Error::damage(format!(
            "backup_label has no line \"{}\"",
            key.trim_end_matches([':', ' '])
        ))
    })
}

fn optional_value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split('\n').find_map(|line| line.strip_prefix(key))
}

fn invalid(key: &str, value: &str) -> Error {
    Error::damage(format!(
        "backup_label has an invalid \"{}\": \"{value}\"",
        key.trim_end_matches([':', ' '])
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const LABEL: &str = "START WAL LOCATION: 0/7000028 (file 000000010000000000000007)\n\
                         CHECKPOINT LOCATION: 0/7000080\n\
                         BACKUP METHOD: streamed\n\
                         BACKUP FROM: primary\n\
                         START TIME: 2026-11-22 13:10:36 UTC\n\
                         LABEL: nightly: LABEL: 1 (file x)\n\
                         START TIMELINE: 1\n";

    #[test]
    fn reads_a_label() {
        let label = BackupLabel::parse(LABEL).unwrap();
        assert_eq!(label.start_lsn, Lsn(0x0700_0028));
        assert_eq!(label.start_segment_file, "000000010000000000000007");
        assert_eq!(label.checkpoint_lsn, Lsn(0x0700_0080));
        assert!(!label.from_standby);
        assert_eq!(label.label, "nightly: LABEL: 1 (file x)");
        assert_eq!(label.start_timeline, Timeline(1));
        assert_eq!(label.incremental_from, None);
        let standby = LABEL.replace("FROM: primary", "FROM: standby");
        assert!(BackupLabel::parse(&standby).unwrap().from_standby);
    }

    #[test]
    fn refuses_what_is_missing_or_wrong() {
        for line in LABEL.lines() {
            let is_needed = !line.starts_with("BACKUP METHOD") && !line.starts_with("START TIME:");
            let shorter = LABEL.replace(&format!("{line}\n"), "");
            assert_eq!(BackupLabel::parse(&shorter).is_err(), is_needed, "{line}");
        }
        for (right, wrong) in [
            ("0/7000028", "7000028"),
            ("(file 0", "(file "),
            ("07)", "07"),
            ("0/7000080", "0/"),
            ("primary", "secondary"),
            ("TIMELINE: 1", "TIMELINE: 2"),
            ("TIMELINE: 1", "TIMELINE: one"),
        ] {
            let label = LABEL.replace(right, wrong);
            assert!(BackupLabel::parse(&label).is_err(), "{label}");
        }
        for line in ["INCREMENTAL FROM LSN: 0/1", "INCREMENTAL FROM TLI: 1"] {
            assert!(BackupLabel::parse(&format!("{LABEL}{line}\n")).is_err());
        }
    }

    proptest! {
        #[test]
        fn there_and_back(
            start: u64,
            checkpoint: u64,
            timeline in 1_u32..,
            from_standby: bool,
            label in "[^\n]*",
            incremental in prop::option::of((any::<u64>(), 1_u32..)),
        ) {
            let segment = format!("{timeline:08X}0000000000000007");
            let from = if from_standby { "standby" } else { "primary" };
            let full = format!(
                "START WAL LOCATION: {} (file {segment})\nCHECKPOINT LOCATION: {}\n\
                 BACKUP METHOD: streamed\nBACKUP FROM: {from}\nSTART TIME: now\n\
                 LABEL: {label}\nSTART TIMELINE: {timeline}\n",
                Lsn(start),
                Lsn(checkpoint),
            );
            let incremental_from = incremental.map(|(lsn, timeline)| IncrementalFrom {
                lsn: Lsn(lsn),
                timeline: Timeline(timeline),
            });
            let text = match incremental_from {
                Some(from) => with_incremental_from(&full, from),
                None => full.clone(),
            };
            let parsed = BackupLabel::parse(&text).unwrap();
            prop_assert_eq!(parsed, BackupLabel {
                start_lsn: Lsn(start),
                start_segment_file: segment,
                checkpoint_lsn: Lsn(checkpoint),
                from_standby,
                label,
                start_timeline: Timeline(timeline),
                incremental_from,
            });
            prop_assert_eq!(without_incremental_from(&text), full);
        }

        #[test]
        fn never_panics(text: String, at in 0_usize..200) {
            let _ = BackupLabel::parse(&text);
            let mut damaged = LABEL.to_owned();
            damaged.insert_str(at.min(damaged.len()), &text);
            let _ = BackupLabel::parse(&damaged);
        }
    }
}
