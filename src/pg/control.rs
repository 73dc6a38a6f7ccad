//! global/pg_control (catalog/pg_control.h, struct ControlFileData).
//!
//! The file has 8192 bytes, of which the first 300 or so matter. The fields
//! read here lie at the same places in 14 to 18; only the checksum, which
//! covers all bytes before it, moved when 18 added a field:
//!
//! ```text
//!   0  u64  system_identifier
//!   8  u32  pg_control_version         1300 in 14-16, 1700 in 17, 1800 in 18
//!  12  u32  catalog_version_no
//!  16  u32  state
//!  24  i64  time                       of the last update, seconds since 1970
//!  32  u64  checkPoint                 position of the last checkpoint record
//!  40  u64  checkPointCopy.redo        where replay from that checkpoint begins
//!  48  u32  checkPointCopy.ThisTimeLineID
//!  56  u8   checkPointCopy.fullPageWrites
//! 136  u64  minRecoveryPoint
//! 144  u32  minRecoveryPointTLI
//! 152  u64  backupStartPoint
//! 160  u64  backupEndPoint
//! 168  u8   backupEndRequired
//! 172  u32  wal_level
//! 180       limits                     five u32, as [`Limits`] has them
//! 216  u32  blcksz
//! 220  u32  relseg_size                blocks in a segment of a relation
//! 224  u32  xlog_blcksz
//! 228  u32  xlog_seg_size
//! 252  u32  data_checksum_version      zero without data checksums
//! 288  u32  crc                        CRC-32C; at 292 in version 1800
//! ```
//!
//! A server writes the file in place, so a reader can see half an update: a
//! wrong checksum means "read it again" before it means damage.

use std::fmt;

use crate::pg::limits::Limits;
use crate::pg::little_endian::{u32_at, u64_at};
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::segment::SegmentSize;

/// The path of the control file below the data directory.
pub const CONTROL_FILE: &str = "global/pg_control";

/// Bytes in the file (PG_CONTROL_FILE_SIZE).
pub const CONTROL_FILE_SIZE: usize = 8192;

const CHECKPOINT: usize = 32;
const MIN_RECOVERY_POINT: usize = 136;
const MIN_RECOVERY_TIMELINE: usize = 144;

/// What pgkeep needs to know from a control file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// Tells the cluster and its copies from all others.
    pub system_identifier: u64,
    /// The format of the file itself.
    pub control_version: u32,
    /// The format of the system catalogs.
    pub catalog_version: u32,
    /// What the server was doing when it last wrote the file.
    pub state: ClusterState,
    /// The last checkpoint record.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub checkpoint_redo: Lsn,
    /// The timeline of that checkpoint.
    pub checkpoint_timeline: Timeline,
    /// Whether that checkpoint was made with full_page_writes.
    pub full_page_writes: bool,
    /// Where replay must come before the cluster is consistent; zero outside
    /// of archive recovery.
    pub min_recovery_point: Lsn,
    /// The timeline of that position; zero outside of archive recovery.
    pub min_recovery_point_timeline: Timeline,
    /// The redo position of the backup being recovered from; else zero.
    pub backup_start_point: Lsn,
    /// Where a backup taken from a standby ends while it is being recovered
    /// from; else zero.
    pub backup_end_point: Lsn,
    /// Whether recovery must see the record that ends a backup.
    pub backup_end_required: bool,
    /// The setting `wal_level`.
    pub wal_level: WalLevel,
    /// What a server that replays its WAL must have.
    pub limits: Limits,
    /// Bytes in a page of a relation.
    pub block_size: u32,
    /// Pages in a segment of a relation.
    pub relation_segment_blocks: u32,
    /// Bytes in a page of WAL.
    pub wal_block_size: u32,
    /// Bytes in a segment of WAL.
    pub wal_segment_size: SegmentSize,
    /// Zero without data checksums, else 1.
    pub data_checksum_version: u32,
}

/// What the server was doing when it last wrote the file (enum DBState).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// Starting, before anything is known.
    Startup,
    /// Shut down in order.
    ShutDown,
    /// Shut down in order while it was a standby.
    ShutDownInRecovery,
    /// About to shut down.
    ShuttingDown,
    /// Replaying WAL after a crash.
    CrashRecovery,
    /// Replaying archived or streamed WAL; a standby.
    ArchiveRecovery,
    /// Running, or crashed.
    Production,
}

/// The setting `wal_level` (access/xlog.h, enum WalLevel).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalLevel {
    /// Enough WAL for crash recovery, too little for backups.
    Minimal,
    /// Enough for backups and standbys.
    Replica,
    /// Enough for logical decoding as well.
    Logical,
}

/// Why bytes are no control file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlFault {
    /// There are not 8192 bytes but this many.
    Length(usize),
    /// The file is of no release from 14 to 18, or of a big-endian machine.
    UnknownVersion(u32),
    /// The checksum is wrong: half an update was read, or the file is damaged.
    Checksum {
        /// The CRC-32C of the bytes.
        expected: u32,
        /// The one that the file carries.
        found: u32,
    },
    /// The checksum is right, but a field holds what PostgreSQL never writes.
    Field {
        /// PostgreSQL's name of the field.
        name: &'static str,
        /// What it holds.
        found: u32,
    },
}

impl ControlFile {
    /// Reads the content of a control file, its checksum first.
    pub fn parse(bytes: &[u8]) -> Result<ControlFile, ControlFault> {
        let checksum_offset = checksum_offset(bytes)?;
        let expected = crc32c::crc32c(&bytes[..checksum_offset]);
        let found = u32_at(bytes, checksum_offset);
        if expected != found {
            return Err(ControlFault::Checksum { expected, found });
        }
        let lsn = |offset| Lsn(u64_at(bytes, offset));
        let timeline = |offset| Timeline(u32_at(bytes, offset));
        Ok(ControlFile {
            system_identifier: u64_at(bytes, 0),
            control_version: u32_at(bytes, 8),
            catalog_version: u32_at(bytes, 12),
            state: field(bytes, 16, "state", cluster_state)?,
            checkpoint: lsn(CHECKPOINT),
            checkpoint_redo: lsn(40),
            checkpoint_timeline: timeline(48),
            full_page_writes: bytes[56] != 0,
            min_recovery_point: lsn(MIN_RECOVERY_POINT),
            min_recovery_point_timeline: timeline(MIN_RECOVERY_TIMELINE),
            backup_start_point: lsn(152),
            backup_end_point: lsn(160),
            backup_end_required: bytes[168] != 0,
            wal_level: field(bytes, 172, "wal_level", wal_level)?,
            limits: bytes[180..]
                .first_chunk()
                .map(Limits::parse)
                .unwrap_or_default(),
            block_size: u32_at(bytes, 216),
            relation_segment_blocks: u32_at(bytes, 220),
            wal_block_size: u32_at(bytes, 224),
            wal_segment_size: field(bytes, 228, "xlog_seg_size", |size| {
                SegmentSize::new(u64::from(size))
            })?,
            data_checksum_version: u32_at(bytes, 252),
        })
    }
}

/// Makes the position of the last checkpoint one that no WAL holds, 0/DEAD, so
/// that a restored cluster whose backup_label was removed refuses to start,
/// where it would else recover from the wrong checkpoint and lose data in
/// silence. With a backup_label, which names the checkpoint itself, nothing
/// changes.
pub fn forbid_start_without_label(bytes: &mut [u8]) -> Result<(), ControlFault> {
    ControlFile::parse(bytes)?;
    bytes[CHECKPOINT..CHECKPOINT + 8].copy_from_slice(&0xDEAD_u64.to_le_bytes());
    seal(bytes)
}

/// Makes recovery from a standby's backup go on to `lsn` on `timeline` at least.
pub fn set_min_recovery_point(
    bytes: &mut [u8],
    lsn: Lsn,
    timeline: Timeline,
) -> Result<(), ControlFault> {
    ControlFile::parse(bytes)?;
    bytes[MIN_RECOVERY_POINT..MIN_RECOVERY_POINT + 8].copy_from_slice(&lsn.0.to_le_bytes());
    bytes[MIN_RECOVERY_TIMELINE..MIN_RECOVERY_TIMELINE + 4]
        .copy_from_slice(&timeline.0.to_le_bytes());
    seal(bytes)
}

/// Corrects the checksum.
fn seal(bytes: &mut [u8]) -> Result<(), ControlFault> {
    let checksum_offset = checksum_offset(bytes)?;
    let checksum = crc32c::crc32c(&bytes[..checksum_offset]);
    bytes[checksum_offset..checksum_offset + 4].copy_from_slice(&checksum.to_le_bytes());
    Ok(())
}

/// Where the checksum lies, once it is known which release's file this is.
fn checksum_offset(bytes: &[u8]) -> Result<usize, ControlFault> {
    if bytes.len() != CONTROL_FILE_SIZE {
        return Err(ControlFault::Length(bytes.len()));
    }
    match u32_at(bytes, 8) {
        1300 | 1700 => Ok(288),
        1800 => Ok(292),
        version => Err(ControlFault::UnknownVersion(version)),
    }
}

fn field<T>(
    bytes: &[u8],
    offset: usize,
    name: &'static str,
    meaning: impl Fn(u32) -> Option<T>,
) -> Result<T, ControlFault> {
    let found = u32_at(bytes, offset);
    meaning(found).ok_or(ControlFault::Field { name, found })
}

fn cluster_state(number: u32) -> Option<ClusterState> {
    Some(match number {
        0 => ClusterState::Startup,
        1 => ClusterState::ShutDown,
        2 => ClusterState::ShutDownInRecovery,
        3 => ClusterState::ShuttingDown,
        4 => ClusterState::CrashRecovery,
        5 => ClusterState::ArchiveRecovery,
        6 => ClusterState::Production,
        _ => return None,
    })
}

fn wal_level(number: u32) -> Option<WalLevel> {
    Some(match number {
        0 => WalLevel::Minimal,
        1 => WalLevel::Replica,
        2 => WalLevel::Logical,
        _ => return None,
    })
}

impl fmt::Display for ClusterState {
    /// In pg_controldata's words (bin/pg_controldata, dbState).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClusterState::Startup => "starting up",
            ClusterState::ShutDown => "shut down",
            ClusterState::ShutDownInRecovery => "shut down in recovery",
            ClusterState::ShuttingDown => "shutting down",
            ClusterState::CrashRecovery => "in crash recovery",
            ClusterState::ArchiveRecovery => "in archive recovery",
            ClusterState::Production => "in production",
        })
    }
}

impl fmt::Display for WalLevel {
    /// As the setting is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WalLevel::Minimal => "minimal",
            WalLevel::Replica => "replica",
            WalLevel::Logical => "logical",
        })
    }
}

impl fmt::Display for ControlFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlFault::Length(found) => write!(
                f,
                "pg_control has {found} bytes instead of {CONTROL_FILE_SIZE}"
            ),
            ControlFault::UnknownVersion(found) => write!(
                f,
                "pg_control has the version {found}, which is none of PostgreSQL 14 to 18"
            ),
            ControlFault::Checksum { expected, found } => write!(
                f,
                "pg_control has the checksum {found:08x} instead of {expected:08x}"
            ),
            ControlFault::Field { name, found } => {
                write!(f, "pg_control holds {found} as {name}, which means nothing")
            }
        }
    }
}

impl std::error::Error for ControlFault {}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    /// A control file of this version whose fields hold small numbers.
    pub(crate) fn control_file(version: u32) -> Vec<u8> {
        control_file_of(42, version)
    }

    /// The same of another system.
    pub(crate) fn control_file_of(system: u32, version: u32) -> Vec<u8> {
        let mut bytes = vec![0; CONTROL_FILE_SIZE];
        for (offset, value) in [
            (0, system),
            (8, version),
            (12, 202_209_061),
            (16, 6),
            (32, 0x0700_0080),
            (40, 0x0700_0028),
            (48, 3),
            (56, 1),
            (172, 2),
            (192, 7),
            (216, 8192),
            (220, 131_072),
            (224, 8192),
            (228, 16 << 20),
            (252, 1),
        ] {
            bytes[offset..offset + 4].copy_from_slice(&u32::to_le_bytes(value));
        }
        seal(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn reads_every_version() {
        for version in [1300, 1700, 1800] {
            let control = ControlFile::parse(&control_file(version)).unwrap();
            assert_eq!(control.control_version, version);
            assert_eq!(control.system_identifier, 42);
            assert_eq!(control.state, ClusterState::Production);
            assert_eq!(control.checkpoint, Lsn(0x0700_0080));
            assert_eq!(control.checkpoint_redo, Lsn(0x0700_0028));
            assert_eq!(control.checkpoint_timeline, Timeline(3));
            assert!(control.full_page_writes);
            assert_eq!(control.wal_level, WalLevel::Logical);
            assert_eq!(control.limits.max_prepared_transactions, 7);
            assert_eq!(control.wal_segment_size.bytes(), 16 << 20);
            assert_eq!(control.data_checksum_version, 1);
        }
    }

    #[test]
    fn tells_the_faults_apart() {
        let sound = control_file(1300);
        assert_eq!(
            ControlFile::parse(&sound[..512]),
            Err(ControlFault::Length(512))
        );
        let mut torn = sound.clone();
        torn[40] ^= 1;
        assert!(matches!(
            ControlFile::parse(&torn),
            Err(ControlFault::Checksum { .. })
        ));
        let mut foreign = sound.clone();
        foreign[8..12].copy_from_slice(&1201_u32.to_le_bytes());
        assert_eq!(
            ControlFile::parse(&foreign),
            Err(ControlFault::UnknownVersion(1201))
        );
        let mut odd = sound;
        odd[228..232].copy_from_slice(&5_u32.to_le_bytes());
        seal(&mut odd).unwrap();
        assert_eq!(
            ControlFile::parse(&odd),
            Err(ControlFault::Field {
                name: "xlog_seg_size",
                found: 5
            })
        );
    }

    #[test]
    fn forbidding_a_start_changes_the_checkpoint_alone() {
        for version in [1300, 1700, 1800] {
            let mut bytes = control_file(version);
            let before = ControlFile::parse(&bytes).unwrap();
            forbid_start_without_label(&mut bytes).unwrap();
            let after = ControlFile::parse(&bytes).unwrap();
            assert_eq!(after.checkpoint.to_string(), "0/DEAD");
            let restored = ControlFile {
                checkpoint: before.checkpoint,
                ..after
            };
            assert_eq!(restored, before);
        }
    }

    #[test]
    fn moving_the_minimum_recovery_point_changes_that_alone() {
        for version in [1300, 1700, 1800] {
            let mut bytes = control_file(version);
            let before = ControlFile::parse(&bytes).unwrap();
            set_min_recovery_point(&mut bytes, Lsn(0x0700_1000), Timeline(4)).unwrap();
            let expected = ControlFile {
                min_recovery_point: Lsn(0x0700_1000),
                min_recovery_point_timeline: Timeline(4),
                ..before
            };
            assert_eq!(ControlFile::parse(&bytes), Ok(expected));
        }
    }

    #[test]
    fn does_not_mend_a_torn_file() {
        let mut torn = control_file(1700);
        torn[100] ^= 1;
        let before = torn.clone();
        assert!(forbid_start_without_label(&mut torn).is_err());
        assert!(set_min_recovery_point(&mut torn, Lsn(1), Timeline(1)).is_err());
        assert_eq!(torn, before);
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_found(version in prop::sample::select(vec![1300, 1700, 1800]), bit in 0_usize..288 * 8) {
            let mut bytes = control_file(version);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(ControlFile::parse(&bytes).is_err());
        }

        #[test]
        fn never_panics(mut bytes in prop::collection::vec(any::<u8>(), 300), length in 0_usize..9000) {
            bytes.resize(length, 0);
            let _ = ControlFile::parse(&bytes);
            if length == CONTROL_FILE_SIZE {
                bytes[8..12].copy_from_slice(&1700_u32.to_le_bytes());
                seal(&mut bytes).unwrap();
                let _ = ControlFile::parse(&bytes);
            }
        }
    }
}
