//! `backup.info`: what is known about one backup.
//!
//! YAML with the keys that `info` shows. The last line, `Checksum`, is the SHA-512 of
//! all lines before it, so that a damaged file is never believed.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::Source;
use crate::error::{Error, Kind, Result};
use crate::pg::lsn::{Lsn, Timeline};
use crate::repository::identifier::Identifier;
use crate::repository::layout::{BackupFolder, FORMAT, INFO};
use crate::repository::lock::InfoLock;
use crate::storage::objects::Version;
use crate::stored::checksum::{Sha512Digest, sha512};
use crate::stored::cipher::Cipher;
use crate::stored::coding::{Coding, Suffix};
use crate::stored::compression::{Algorithm, Compression};
use crate::stored::encryption::Encryption;
use crate::stored::master_key::{Fingerprint, Keyring};

/// Everything known about a finished backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct BackupInfo {
    /// The format of the backup's folder.
    pub format: u32,
    /// The pgkeep that made it.
    pub client_version: String,
    /// Its own name.
    pub backup: Identifier,
    /// The server's name in the configuration.
    pub server: String,
    /// What the user called it.
    pub label: String,
    /// The folder below that of `backup.info` in which the stored files lie; `None` where they lie beside it. In an
    /// object store they always do so, as nothing can be moved there.
    #[serde(rename = "Folder", default, skip_serializing_if = "Option::is_none")]
    pub files_in: Option<String>,
    /// How often it was replaced. So no two contents are the same, and a request of a process that died, if it comes
    /// late, finds that it is about another one than it knew.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub revision: u64,
    /// Comments by their keys.
    pub comments: BTreeMap<String, String>,
    /// Kept from retention.
    pub keep: bool,
    /// What it is an increment of; `None` for a full backup.
    pub incremental: Option<Increment>,
    /// How its files are compressed.
    pub compression: Algorithm,
    /// The level of compression, where the algorithm has levels.
    pub compression_level: Option<i32>,
    /// How its files are encrypted; `None` where they are not.
    pub encryption: Option<EncryptedWith>,
    /// Bytes of all stored files.
    pub backup_size: u64,
    /// Bytes of the cluster when restored, WAL included.
    pub restore_size: u64,
    /// Files of the cluster, WAL and manifest included.
    pub number_of_files: u64,
    /// Milliseconds it took.
    pub elapsed: u64,
    /// How often files were read, by what changed since the time before, until the server did nothing meanwhile that cannot
    /// be replayed.
    #[serde(default = "one_pass", skip_serializing_if = "is_one_pass")]
    pub passes: u32,
    /// Which way the server's files were read; `None` of a backup from before there was a choice.
    #[serde(
        rename = "FileSource",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub source: Option<Source>,
    /// PostgreSQL's major version.
    pub major_version: u32,
    /// PostgreSQL's minor version.
    pub minor_version: u32,
    /// The cluster's identity.
    pub system_identifier: u64,
    /// PostgreSQL's `CATALOG_VERSION_NO`.
    pub catalog_version: u32,
    /// PostgreSQL's `PG_CONTROL_VERSION`.
    pub control_version: u32,
    /// Bytes of a page.
    pub block_size: u32,
    /// Blocks of a full segment file of a relation.
    pub relation_segment_blocks: u32,
    /// Bytes of a WAL segment.
    pub wal_segment_size: u64,
    /// The server's `wal_level`.
    pub wal_level: String,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
    /// Whether the data directory was open to its group (0750).
    pub group_access: bool,
    /// Whether the server was a standby.
    pub from_standby: bool,
    /// Where replay starts: the redo pointer of the backup's checkpoint.
    #[serde(rename = "StartLSN")]
    pub start_lsn: Lsn,
    /// The backup's checkpoint record.
    #[serde(rename = "CheckpointLSN")]
    pub checkpoint_lsn: Lsn,
    /// Where the cluster is consistent.
    #[serde(rename = "EndLSN")]
    pub end_lsn: Lsn,
    /// The timeline of the start.
    pub start_timeline: Timeline,
    /// The timeline of the end.
    pub end_timeline: Timeline,
    /// The first WAL segment it needs.
    #[serde(rename = "WAL")]
    pub wal: String,
    /// The server's data directory, where it could be learnt.
    pub data_directory: Option<String>,
    /// Tablespaces, the default ones aside.
    pub tablespaces: Vec<Tablespace>,
    /// How many pages had a wrong checksum on the server.
    pub corrupt_pages: u64,
    /// The first of these pages.
    pub corrupt: Vec<CorruptPage>,
    /// SHA-512 of `backup.sha512`.
    pub checksums: String,
    /// When it was last read back and what that showed; `None` if it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
    /// When a cluster rebuilt from it was last started and what that showed; `None` if none ever was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<Drill>,
}

/// The last time that a backup was read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Verification {
    /// When that ended.
    pub time: Timestamp,
    /// What it showed.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// What reading a backup back showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "Verdict",
    rename_all = "kebab-case",
    rename_all_fields = "PascalCase"
)]
pub enum Verdict {
    /// Every byte is as it was stored.
    Sound,
    /// Something is not; the backup is not valid until a later verification finds it sound.
    Damaged {
        /// How many of its files.
        failed_files: u64,
        /// The first of them, and what is wrong with it.
        first: String,
    },
}

/// The last time that a cluster rebuilt from a backup was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Drill {
    /// When that ended.
    pub time: Timestamp,
    /// What it showed.
    #[serde(flatten)]
    pub outcome: DrillOutcome,
}

/// What starting a rebuilt cluster showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "Outcome",
    rename_all = "kebab-case",
    rename_all_fields = "PascalCase"
)]
pub enum DrillOutcome {
    /// It started, and all of it could be read.
    Passed,
    /// It did not. The backup may be sound all the same: where the cluster was started, its extensions
    /// or its locale may be missing.
    Failed {
        /// What went wrong.
        reason: String,
    },
}

/// What the files of a backup are encrypted with. Nothing in it is secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct EncryptedWith {
    /// The cipher.
    pub cipher: Cipher,
    /// The fingerprint of the master key.
    pub key: Fingerprint,
}

impl From<&Encryption> for EncryptedWith {
    fn from(encryption: &Encryption) -> EncryptedWith {
        EncryptedWith {
            cipher: encryption.cipher,
            key: encryption.key.fingerprint(),
        }
    }
}

/// What makes a backup incremental.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Increment {
    /// The backup it needs.
    pub parent: Identifier,
    /// Where that one's replay starts: changes are those from here on.
    #[serde(rename = "FromLSN")]
    pub from_lsn: Lsn,
    /// The timeline of that position.
    pub from_timeline: Timeline,
    /// How the changed blocks were found, one source where the one before it had no more.
    pub sources: Vec<ChangeSource>,
}

/// Where it is known from which blocks changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeSource {
    /// The server's WAL summaries.
    Summaries,
    /// The repository's block maps.
    BlockMaps,
    /// WAL that was read for this backup.
    Wal,
}

impl fmt::Display for ChangeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ChangeSource::Summaries => "WAL summaries of the server",
            ChangeSource::BlockMaps => "block maps",
            ChangeSource::Wal => "WAL",
        })
    }
}

/// A tablespace of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Tablespace {
    /// Its OID, the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Its name in SQL.
    pub name: String,
    /// The folder it links to; `None` where it is a folder inside `pg_tblspc` itself.
    pub path: Option<String>,
}

/// A page that was damaged on the server already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CorruptPage {
    /// The file in PGDATA.
    pub file: String,
    /// The page's number in that file.
    pub block: u32,
    /// What is wrong with it.
    pub fault: String,
}

impl fmt::Display for CorruptPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} block {}: {}", self.file, self.block, self.fault)
    }
}

fn one_pass() -> u32 {
    1
}

fn is_one_pass(passes: &u32) -> bool {
    *passes == 1
}

const CHECKSUM_KEY: &str = "Checksum: ";

impl BackupInfo {
    /// An error for a backup that its last verification found damaged.
    pub fn check_verdict(&self) -> Result<()> {
        match &self.verification {
            Some(Verification {
                time,
                verdict:
                    Verdict::Damaged {
                        failed_files,
                        first,
                    },
            }) => Err(Error::damage(format!(
                "backup {} was found damaged at {time}, {failed_files} file(s), the first {first}",
                self.backup
            ))
            .hint("use another backup; if the damage was mended, verify this one again")),
            _ => Ok(()),
        }
    }

    /// The digest `backup.sha512` must have.
    pub fn checksums_digest(&self) -> Option<Sha512Digest> {
        self.checksums.parse().ok()
    }

    /// What the names of its stored files end in.
    pub fn suffix(&self) -> Suffix {
        Suffix {
            algorithm: self.compression,
            is_encrypted: self.encryption.is_some(),
        }
    }

    /// How to read its stored files. An error names the master key that is missing.
    pub fn coding(&self, keys: &Keyring) -> Result<Coding> {
        let encryption = match self.encryption {
            None => None,
            Some(EncryptedWith { cipher, key }) => Some(Encryption {
                cipher,
                key: keys.find(key).map_err(|error| {
                    error.context(format!("backup {} is encrypted", self.backup))
                })?,
            }),
        };
        Ok(Coding {
            compression: Compression::of(self.compression),
            encryption,
        })
    }

    /// Changes what is noted of a finished backup; nothing changes where `change` fails.
    pub fn change(
        folder: &BackupFolder,
        lock: &InfoLock,
        change: impl FnOnce(&mut BackupInfo) -> Result<()>,
    ) -> Result<()> {
        let (mut info, version) = BackupInfo::read_version(folder)?;
        change(&mut info)?;
        lock.check()?;
        info.replace(folder, version.as_ref())
    }

    /// Writes it into the folder of a backup that is being made, durably.
    pub fn write(&self, folder: &BackupFolder) -> Result<()> {
        folder.info().replace(&self.to_bytes()?)
    }

    /// Writes it in the place of one that was read. An error where that is another one by now.
    pub fn replace(mut self, folder: &BackupFolder, version: Option<&Version>) -> Result<()> {
        self.revision += 1;
        match folder.info().replace_version(&self.to_bytes()?, version)? {
            true => Ok(()),
            false => Err(Error::locked(format!(
                "{} was changed by somebody else at the same time",
                folder.info()
            ))
            .hint("run the same command again")),
        }
    }

    /// The content of the file.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut text = serde_yaml::to_string(self)
            .map_err(|error| Error::failed(format!("cannot make {INFO}: {error}")))?;
        let digest = sha512(text.as_bytes());
        text.push_str(&format!("{CHECKSUM_KEY}{digest}\n"));
        Ok(text.into_bytes())
    }

    /// The same, of stored files that lie in a folder below.
    pub fn in_folder(self, name: String) -> BackupInfo {
        BackupInfo {
            files_in: Some(name),
            ..self
        }
    }

    /// Reads it from the backup's folder.
    pub fn read(folder: &BackupFolder) -> Result<BackupInfo> {
        BackupInfo::read_version(folder).map(|(info, _)| info)
    }

    /// The same, and which content of the file it is, as far as the storage tells.
    pub fn read_version(folder: &BackupFolder) -> Result<(BackupInfo, Option<Version>)> {
        let found = BackupInfo::find(folder)?;
        found.ok_or_else(|| missing(folder))
    }

    /// The same, where there is one.
    pub fn read_if_there(folder: &BackupFolder) -> Result<Option<BackupInfo>> {
        match BackupInfo::find(folder) {
            Err(error) if error.kind() == Kind::Absent => Ok(None),
            found => Ok(found?.map(|(info, _)| info)),
        }
    }

    fn find(folder: &BackupFolder) -> Result<Option<(BackupInfo, Option<Version>)>> {
        let place = folder.info();
        let found = place.read_version().map_err(|error| match error.kind() {
            Kind::Damage => unusable(error),
            _ => error,
        })?;
        let Some((text, version)) = found else {
            return Ok(None);
        };
        if is_tombstone(&text) {
            return Err(Error::absent(format!(
                "{place} says that there is no backup"
            )));
        }
        let info = parse(&text)
            .map_err(|why| unusable(Error::damage(format!("{place} is damaged: {why}"))))?;
        Ok(Some((info, version)))
    }
}

/// What a `backup.info` begins with that is none, to say that there is no backup, or none yet. What follows is another text each
/// time, so that nothing which was to replace one of them replaces another one.
pub(super) const TOMBSTONE: &str = "# no backup: ";

/// Whether it says that there is no backup.
pub(super) fn is_tombstone(content: &[u8]) -> bool {
    content.starts_with(TOMBSTONE.as_bytes())
}

fn missing(folder: &BackupFolder) -> Error {
    let place = folder.info();
    unusable(Error::damage(format!(
        "cannot read {place}: it is not there"
    )))
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn unusable(error: Error) -> Error {
    error.hint("this backup cannot be used; choose another one")
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct FormatOnly {
    format: u32,
}

fn parse(text: &[u8]) -> std::result::Result<BackupInfo, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not text")?;
    let last_line = text
        .trim_end_matches('\n')
        .rfind('\n')
        .map(|newline| newline + 1)
        .ok_or("it is cut off")?;
    let (content, checksum) = text.split_at(last_line);
    let checksum = checksum
        .strip_prefix(CHECKSUM_KEY)
        .ok_or("its last line is no checksum")?;
    if checksum.trim_end() != sha512(content.as_bytes()).to_string() {
        return Err("its checksum does not fit its content".to_owned());
    }
    let FormatOnly { format } = serde_yaml::from_str(content).map_err(|error| error.to_string())?;
    if format != FORMAT {
        return Err(format!(
            "it has format {format}, and this pgkeep knows format {FORMAT}"
        ));
    }
    let info: BackupInfo = serde_yaml::from_str(content).map_err(|error| error.to_string())?;
    match &info.files_in {
        Some(folder) if !is_name(folder) => Err(format!("{folder:?} is no folder's name")),
        _ => Ok(info),
    }
}

/// Whether it is the name of a folder that pgkeep makes.
fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.';
    name.bytes().all(is_plain) && name.starts_with(|first: char| first.is_ascii_alphanumeric())
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// Some backup, for tests.
    pub(crate) fn example(identifier: &str) -> BackupInfo {
        BackupInfo {
            format: FORMAT,
            client_version: "0.1.0".to_owned(),
            backup: identifier.parse().unwrap(),
            server: "primary".to_owned(),
            label: "pgkeep".to_owned(),
            comments: BTreeMap::from([("why".to_owned(), "before: the upgrade".to_owned())]),
            keep: false,
            incremental: None,
            compression: Algorithm::Zstd,
            compression_level: Some(3),
            encryption: None,
            backup_size: 8_531_968,
            restore_size: 48_799_744,
            files_in: None,
            revision: 0,
            number_of_files: 971,
            elapsed: 4000,
            passes: 1,
            source: Some(Source::Sql),
            major_version: 17,
            minor_version: 11,
            system_identifier: 7_710_982_562_572_587_380,
            catalog_version: 202_406_281,
            control_version: 1700,
            block_size: 8192,
            relation_segment_blocks: 131_072,
            wal_segment_size: 16 << 20,
            wal_level: "replica".to_owned(),
            data_checksums: true,
            group_access: false,
            from_standby: false,
            start_lsn: Lsn(0x4F00_0060),
            checkpoint_lsn: Lsn(0x4F00_00B8),
            end_lsn: Lsn(0x4F00_0158),
            start_timeline: Timeline(1),
            end_timeline: Timeline(1),
            wal: "00000001000000000000004F".to_owned(),
            data_directory: None,
            tablespaces: vec![Tablespace {
                oid: 16390,
                name: "fast".to_owned(),
                path: Some("/mnt/fast".to_owned()),
            }],
            corrupt_pages: 0,
            corrupt: Vec::new(),
            checksums: sha512(b"").to_string(),
            verification: None,
            drill: None,
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let base = tempfile::tempdir().unwrap();
        let folder = BackupFolder::new(base.path().into());
        let info = example("20240928065644");
        info.write(&folder).unwrap();
        assert_eq!(BackupInfo::read(&folder).unwrap(), info);
    }

    #[test]
    fn verifications_are_read_back_and_older_files_have_none() {
        let base = tempfile::tempdir().unwrap();
        let folder = BackupFolder::new(base.path().into());
        let mut info = example("20240928065644");
        info.write(&folder).unwrap();
        let text = String::from_utf8(folder.info().read().unwrap().unwrap()).unwrap();
        assert!(!text.contains("Verification") && !text.contains("Drill"));
        let time: Timestamp = "2026-11-22T13:10:35Z".parse().unwrap();
        let damaged = Verdict::Damaged {
            failed_files: 2,
            first: "data/base/1: is missing".to_owned(),
        };
        let failed = DrillOutcome::Failed {
            reason: "no: \"locale\"".to_owned(),
        };
        for (verdict, outcome) in [
            (Verdict::Sound, DrillOutcome::Passed),
            (damaged.clone(), failed),
        ] {
            info.verification = Some(Verification { time, verdict });
            info.drill = Some(Drill { time, outcome });
            info.write(&folder).unwrap();
            let read = BackupInfo::read(&folder).unwrap();
            assert_eq!(read, info);
            assert_eq!(
                read.check_verdict().is_ok(),
                read.verification.as_ref().unwrap().verdict == Verdict::Sound
            );
        }
        let text = String::from_utf8(folder.info().read().unwrap().unwrap()).unwrap();
        assert!(
            text.contains("  Time: 2026-11-22T13:10:35Z\n  Verdict: damaged\n  FailedFiles: 2\n"),
            "{text}"
        );
    }

    proptest! {
        #[test]
        fn any_text_of_a_user_is_read_back(
            comments in prop::collection::btree_map("(?s).{0,12}", "(?s).{0,40}", 0..4),
            label in "(?s).{0,20}",
        ) {
            let base = tempfile::tempdir().unwrap();
            let folder = BackupFolder::new(base.path().into());
            let mut info = example("20240928065644");
            info.comments = comments;
            info.label = label;
            info.write(&folder).unwrap();
            prop_assert_eq!(BackupInfo::read(&folder).unwrap(), info);
        }
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let base = tempfile::tempdir().unwrap();
        let folder = BackupFolder::new(base.path().into());
        example("20240928065644").write(&folder).unwrap();
        let text = folder.info().read().unwrap().unwrap();
        for position in 0..text.len() - 1 {
            let mut damaged = text.clone();
            damaged[position] ^= 1;
            assert!(parse(&damaged).is_err(), "byte {position}");
            assert!(parse(&text[..position]).is_err(), "cut at {position}");
        }
    }

    #[test]
    fn a_newer_format_is_named() {
        let base = tempfile::tempdir().unwrap();
        let folder = BackupFolder::new(base.path().into());
        let mut info = example("20240928065644");
        info.format = FORMAT + 1;
        info.write(&folder).unwrap();
        let error = BackupInfo::read(&folder).unwrap_err();
        assert!(error.message().contains("format 2"), "{error}");
    }
}
