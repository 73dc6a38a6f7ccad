//! A backup in the words of the report.

use crate::cli::report::{Fields, Value, field};
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::timestamp;
use crate::repository::backup_info::{BackupInfo, DrillOutcome, Increment, Verdict};
use crate::repository::catalogue::{Backup, Catalogue};
use crate::repository::identifier::Identifier;
use crate::repository::roll_forward::RollForward;

/// What `backup` and `list-backup` say of a backup that can be restored.
pub(crate) fn summary(info: &BackupInfo) -> Fields {
    summary_of(info, true)
}

/// What `list-backup` says of a backup.
pub(crate) fn listed(catalogue: &Catalogue, backup: &Backup) -> Fields {
    match (&backup.info, catalogue.check(backup)) {
        (_, Ok(info)) => summary(info),
        (Ok(info), Err(why)) => unusable(info, &why),
        (Err(_), Err(why)) => vec![
            field("Backup", backup.identifier),
            field("Valid", "no"),
            field("Error", why.message()),
        ],
    }
}

/// What `list-backup` says of a backup that cannot be restored, though all is known about it.
fn unusable(info: &BackupInfo, why: &Error) -> Fields {
    let mut fields = summary_of(info, false);
    fields.push(field("Error", why.message()));
    fields
}

fn summary_of(info: &BackupInfo, is_valid: bool) -> Fields {
    let mut fields = vec![
        field("Backup", info.backup),
        field("BackupSize", Value::Size(info.backup_size)),
        field("Comments", comments(info)),
        field("Compression", info.compression.to_string()),
        field("Encryption", encryption(info)),
        field("Incremental", info.incremental.is_some()),
        field("Keep", info.keep),
        field("MajorVersion", info.major_version),
        field("MinorVersion", info.minor_version),
    ];
    fields.extend(parent(info));
    fields.extend([
        field("RestoreSize", Value::Size(info.restore_size)),
        field("Server", info.server.as_str()),
        field("ServerVersion", info.client_version.as_str()),
        field("Valid", yes_or_no(is_valid)),
        field("WAL", info.wal.as_str()),
        field("CorruptPages", info.corrupt_pages),
    ]);
    fields
}

/// What `info` says of a backup: everything, and why it cannot be restored if that is so.
pub(crate) fn details(catalogue: &Catalogue, backup: &Backup) -> Result<Fields> {
    let info = backup.info.as_ref().map_err(Error::clone)?;
    let unusable = catalogue.check(backup).err();
    let mut fields = vec![
        field("Backup", info.backup),
        field("BackupSize", Value::Size(info.backup_size)),
    ];
    fields.extend(lsn("Checkpoint", info.checkpoint_lsn));
    fields.extend([
        field("Comments", comments(info)),
        field("Compression", info.compression.to_string()),
        field("Elapsed", info.elapsed.div_ceil(1000)),
        field("Encryption", encryption(info)),
    ]);
    fields.extend(lsn("End", info.end_lsn));
    fields.extend([
        field("EndTimeline", info.end_timeline.0),
        field("Incremental", info.incremental.is_some()),
        field("Keep", info.keep),
        field("MajorVersion", info.major_version),
        field("MinorVersion", info.minor_version),
        field("NumberOfTablespaces", info.tablespaces.len() as u64),
    ]);
    fields.extend(parent(info));
    fields.extend([
        field("RestoreSize", Value::Size(info.restore_size)),
        field("Server", info.server.as_str()),
        field("ServerVersion", info.client_version.as_str()),
    ]);
    fields.extend(lsn("Start", info.start_lsn));
    fields.extend([
        field("StartTimeline", info.start_timeline.0),
        field("Tablespaces", tablespaces(info)),
        field("Valid", yes_or_no(unusable.is_none())),
        field("WAL", info.wal.as_str()),
        field("CheckpointLSN", info.checkpoint_lsn),
        field("StartLSN", info.start_lsn),
        field("EndLSN", info.end_lsn),
        field("Label", info.label.as_str()),
        field("FromStandby", info.from_standby),
        field("SystemIdentifier", info.system_identifier.to_string()),
        field("DataChecksums", info.data_checksums),
        field("WalLevel", info.wal_level.as_str()),
        field("WalSegmentSize", Value::Size(info.wal_segment_size)),
        field("NumberOfFiles", info.number_of_files),
        field("Passes", info.passes),
        field("CorruptPages", info.corrupt_pages),
        field("Annotations", annotations(info)),
    ]);
    if let Some(source) = info.source {
        fields.push(field("FileSource", source.to_string()));
    }
    if let Some(encrypted) = info.encryption {
        fields.push(field("MasterKey", encrypted.key.to_string()));
    }
    if let Some(increment) = &info.incremental {
        fields.push(field("FromLSN", increment.from_lsn));
        fields.push(field("FromTimeline", increment.from_timeline.0));
        fields.push(field("Source", sources(increment)));
    }
    if let Some(level) = info.compression_level {
        fields.push(field("CompressionLevel", u64::from(level.unsigned_abs())));
    }
    if !info.corrupt.is_empty() {
        let pages: Vec<Value> = info
            .corrupt
            .iter()
            .map(|page| page.to_string().into())
            .collect();
        fields.push(field("Corrupt", pages));
    }
    if let Some(verification) = &info.verification {
        let mut about = vec![field("Time", Identifier::at(verification.time))];
        match &verification.verdict {
            Verdict::Sound => about.push(field("Verdict", "sound")),
            Verdict::Damaged {
                failed_files,
                first,
            } => about.extend([
                field("Verdict", "damaged"),
                field("NumberOfFailed", *failed_files),
                field("First", first.as_str()),
            ]),
        }
        fields.push(field("Verification", about));
    }
    if let Some(drill) = &info.drill {
        let mut about = vec![field("Time", Identifier::at(drill.time))];
        match &drill.outcome {
            DrillOutcome::Passed => about.push(field("Outcome", "passed")),
            DrillOutcome::Failed { reason } => {
                about.extend([field("Outcome", "failed"), field("Reason", reason.as_str())])
            }
        }
        fields.push(field("Drill", about));
    }
    fields.extend(unusable.map(|why| field("Error", why.message())));
    Ok(fields)
}

/// To which moment the archived WAL leads from a backup.
pub(crate) fn roll_forward(forward: &RollForward) -> Fields {
    let mut fields = vec![
        field("RollForwardLSN", forward.lsn),
        field("RollForwardTimeline", forward.timeline.0),
    ];
    let time = forward.time.map(timestamp::text);
    fields.extend(time.map(|time| field("RollForwardTime", time)));
    fields
}

/// The backup that an incremental one needs.
fn parent(info: &BackupInfo) -> Option<(String, Value)> {
    let increment = info.incremental.as_ref()?;
    Some(field("Parent", increment.parent))
}

fn yes_or_no(answer: bool) -> &'static str {
    if answer { "yes" } else { "no" }
}

/// The error that corrupt pages of the server are.
pub(crate) fn corruption(info: &BackupInfo) -> Error {
    let named: Vec<String> = info
        .corrupt
        .iter()
        .take(5)
        .map(ToString::to_string)
        .collect();
    let more = info.corrupt_pages.saturating_sub(named.len() as u64);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    Error::damage(format!(
        "backup {} is complete, but {} page(s) were damaged on the server already: {}{more}",
        info.backup,
        info.corrupt_pages,
        named.join("; ")
    ))
    .hint("keep the last backup without corrupt pages; find the relations with pg_filenode_relation and check the disks")
}

/// How the changed blocks were found.
fn sources(increment: &Increment) -> String {
    let sources: Vec<String> = increment.sources.iter().map(ToString::to_string).collect();
    sources.join(", ")
}

/// An LSN in two halves, as pgmoneta shows it.
fn lsn(name: &str, lsn: Lsn) -> [(String, Value); 2] {
    [
        (format!("{name}HiLSN"), Value::LsnHalf(lsn.high())),
        (format!("{name}LoLSN"), Value::LsnHalf(lsn.low())),
    ]
}

fn encryption(info: &BackupInfo) -> String {
    info.encryption
        .map_or("none".to_owned(), |encrypted| encrypted.cipher.to_string())
}

/// Comments as pgmoneta shows them, `key|comment,key|comment`; a backslash goes before each
/// backslash, bar and comma of the texts themselves, so that they can be told apart.
pub(crate) fn comments(info: &BackupInfo) -> String {
    let comments: Vec<String> = info
        .comments
        .iter()
        .map(|(key, comment)| format!("{}|{}", escaped(key), escaped(comment)))
        .collect();
    comments.join(",")
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('|', "\\|")
        .replace(',', "\\,")
}

fn annotations(info: &BackupInfo) -> Fields {
    info.comments
        .iter()
        .map(|(key, comment)| field(key, comment.as_str()))
        .collect()
}

fn tablespaces(info: &BackupInfo) -> Fields {
    info.tablespaces
        .iter()
        .map(|tablespace| {
            let fields = vec![
                field("Oid", tablespace.oid),
                field("Path", tablespace.path.as_deref().unwrap_or("in place")),
            ];
            (tablespace.name.clone(), Value::Map(fields))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::repository::backup_info::tests::example;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn simple_comments_read_as_in_pgmoneta() {
        let mut info = example("20240928065644");
        info.comments = BTreeMap::from([
            ("mykey".to_owned(), "mycomment".to_owned()),
            ("Type".to_owned(), "Main fall backup".to_owned()),
        ]);
        assert_eq!(comments(&info), "Type|Main fall backup,mykey|mycomment");
    }

    /// Undoes [`comments`].
    fn read_comments(text: &str) -> BTreeMap<String, String> {
        let mut parts = vec![String::new()];
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            match letter {
                '|' | ',' => parts.push(String::new()),
                '\\' => parts.last_mut().unwrap().push(letters.next().unwrap()),
                other => parts.last_mut().unwrap().push(other),
            }
        }
        let pairs = parts.chunks_exact(2);
        pairs
            .map(|pair| (pair[0].clone(), pair[1].clone()))
            .collect()
    }

    proptest! {
        #[test]
        fn any_comments_can_be_told_apart(
            given in prop::collection::btree_map("[a|,\\\\\n]{1,4}", "[b|,\\\\\n\"']{0,4}", 0..4),
        ) {
            let mut info = example("20240928065644");
            info.comments = given.clone();
            prop_assert_eq!(read_comments(&comments(&info)), given);
        }
    }
}
