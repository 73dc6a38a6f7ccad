//! What a base backup shall be like, and the command that asks for it.

use crate::server::session::Checkpoint;
use crate::stored::compression::Algorithm;
use std::fmt::Write as _;

/// How the server compresses what it sends. Levels are checked by the server, which takes one by itself where none
/// is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServerCompression {
    /// Not at all.
    #[default]
    None,
    /// gzip, on one processor.
    Gzip {
        /// 1 to 9.
        level: Option<i32>,
    },
    /// LZ4, on one processor.
    Lz4 {
        /// 1 to 12.
        level: Option<i32>,
    },
    /// Zstandard.
    Zstd {
        /// -131072 to 22.
        level: Option<i32>,
        /// How many threads of the server compress besides the one that reads; a server whose libzstd has no
        /// threads refuses them.
        workers: Option<u32>,
    },
}

impl ServerCompression {
    /// The algorithm that undoes it.
    pub fn algorithm(self) -> Algorithm {
        match self {
            ServerCompression::None => Algorithm::None,
            ServerCompression::Gzip { .. } => Algorithm::Gzip,
            ServerCompression::Lz4 { .. } => Algorithm::Lz4,
            ServerCompression::Zstd { .. } => Algorithm::Zstd,
        }
    }

    /// What the server appends to the names of archives (backup/basebackup_zstd.c and its siblings).
    pub(super) fn suffix(self) -> &'static str {
        match self {
            ServerCompression::None => "",
            ServerCompression::Gzip { .. } => ".gz",
            ServerCompression::Lz4 { .. } => ".lz4",
            ServerCompression::Zstd { .. } => ".zst",
        }
    }

    /// Its name, its level and its workers, as the server takes them (common/compression.c).
    fn parts(self) -> Option<(&'static str, Option<i32>, Option<u32>)> {
        match self {
            ServerCompression::None => None,
            ServerCompression::Gzip { level } => Some(("gzip", level, None)),
            ServerCompression::Lz4 { level } => Some(("lz4", level, None)),
            ServerCompression::Zstd { level, workers } => Some(("zstd", level, workers)),
        }
    }
}

/// What a base backup shall be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupOptions {
    /// The name that `backup_label` has.
    pub label: String,
    /// The most that the server reads, in KiB a second; it takes 32 to 1048576.
    pub max_rate: Option<u32>,
    /// How the server compresses what it sends.
    pub compression: ServerCompression,
    /// Whether a manifest comes behind the archives, with the CRC-32C of each file.
    pub with_manifest: bool,
    /// Whether the checkpoint that it begins with is hurried.
    pub checkpoint: Checkpoint,
    /// Whether its WAL comes behind the files of the data directory, in the same archive.
    pub with_wal: bool,
    /// Whether the server says how large all of it is, for which it looks at every file.
    pub with_size: bool,
}

impl BaseBackupOptions {
    /// A backup that begins at once, as fast as can be, of what the server reads as it is.
    pub fn new(label: impl Into<String>) -> BaseBackupOptions {
        BaseBackupOptions {
            label: label.into(),
            max_rate: None,
            compression: ServerCompression::None,
            with_manifest: false,
            checkpoint: Checkpoint::Fast,
            with_wal: false,
            with_size: false,
        }
    }

    /// The command of PostgreSQL 15 and later (backup/basebackup.c, parse_basebackup_options()). Pages
    /// are checked by who stores them, and nobody waits for WAL to be archived.
    pub(super) fn command(&self) -> String {
        let mut command = format!(
            "BASE_BACKUP (LABEL {}, CHECKPOINT '{}', WAIT false, TABLESPACE_MAP true, \
             MANIFEST '{}', PROGRESS {}, VERIFY_CHECKSUMS false",
            quoted(&self.label),
            match self.checkpoint {
                Checkpoint::Fast => "fast",
                Checkpoint::Spread => "spread",
            },
            if self.with_manifest { "yes" } else { "no" },
            self.with_size,
        );
        if self.with_wal {
            command.push_str(", WAL true");
        }
        if self.with_manifest {
            command.push_str(", MANIFEST_CHECKSUMS 'CRC32C'");
        }
        if let Some(rate) = self.max_rate {
            let _ = write!(command, ", MAX_RATE {rate}");
        }
        if let Some((name, level, workers)) = self.compression.parts() {
            let _ = write!(command, ", COMPRESSION '{name}'");
            let level = level.map(|level| format!("level={level}"));
            let workers = workers.map(|workers| format!("workers={workers}"));
            let detail: Vec<String> = level.into_iter().chain(workers).collect();
            if !detail.is_empty() {
                let _ = write!(command, ", COMPRESSION_DETAIL '{}'", detail.join(","));
            }
        }
        command.push(')');
        command
    }
}

/// A string of the replication grammar, in which only quotes are special (replication/repl_scanner.l).
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_as_the_server_takes_them() {
        let plain = BaseBackupOptions::new("it's a \\ label");
        assert_eq!(
            plain.command(),
            "BASE_BACKUP (LABEL 'it''s a \\ label', CHECKPOINT 'fast', WAIT false, TABLESPACE_MAP true, \
             MANIFEST 'no', PROGRESS false, VERIFY_CHECKSUMS false)"
        );
        let full = BaseBackupOptions {
            max_rate: Some(64),
            with_manifest: true,
            checkpoint: Checkpoint::Spread,
            with_wal: true,
            with_size: true,
            compression: ServerCompression::Zstd {
                level: Some(-3),
                workers: Some(2),
            },
            ..BaseBackupOptions::new("l")
        };
        assert_eq!(
            full.command(),
            "BASE_BACKUP (LABEL 'l', CHECKPOINT 'spread', WAIT false, TABLESPACE_MAP true, \
             MANIFEST 'yes', PROGRESS true, VERIFY_CHECKSUMS false, WAL true, MANIFEST_CHECKSUMS 'CRC32C', \
             MAX_RATE 64, COMPRESSION 'zstd', COMPRESSION_DETAIL 'level=-3,workers=2')"
        );
        let gzip = ServerCompression::Gzip { level: None };
        let gzip = BaseBackupOptions {
            compression: gzip,
            ..plain
        };
        assert!(gzip.command().ends_with(", COMPRESSION 'gzip')"));
    }
}
