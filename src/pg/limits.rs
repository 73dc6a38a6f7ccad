//! Settings of which a server that replays WAL must have no less than the one that wrote it.
//!
//! With less, recovery does not begin, or pauses in the midst of the WAL until somebody shuts the server down
//! (access/transam/xlogrecovery.c, RecoveryRequiresIntParameter).

use crate::pg::little_endian::u32_at;

/// Their values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
}

impl Limits {
    /// How they lie in the control file, in WAL records and in block maps: five u32 in this order
    /// (catalog/pg_control.h, ControlFileData; access/xlog_internal.h, xl_parameter_change).
    pub const BYTES: usize = 20;

    /// Reads them.
    pub fn parse(bytes: &[u8; Limits::BYTES]) -> Limits {
        Limits {
            max_connections: u32_at(bytes, 0),
            max_worker_processes: u32_at(bytes, 4),
            max_wal_senders: u32_at(bytes, 8),
            max_prepared_transactions: u32_at(bytes, 12),
            max_locks_per_transaction: u32_at(bytes, 16),
        }
    }

    /// Their names as settings, and their values.
    pub fn settings(&self) -> [(&'static str, u32); 5] {
        [
            ("max_connections", self.max_connections),
            ("max_worker_processes", self.max_worker_processes),
            ("max_wal_senders", self.max_wal_senders),
            ("max_prepared_transactions", self.max_prepared_transactions),
            ("max_locks_per_transaction", self.max_locks_per_transaction),
        ]
    }

    /// The higher one of each.
    #[must_use]
    pub fn or_higher(self, other: Limits) -> Limits {
        Limits {
            max_connections: self.max_connections.max(other.max_connections),
            max_worker_processes: self.max_worker_processes.max(other.max_worker_processes),
            max_wal_senders: self.max_wal_senders.max(other.max_wal_senders),
            max_prepared_transactions: self
                .max_prepared_transactions
                .max(other.max_prepared_transactions),
            max_locks_per_transaction: self
                .max_locks_per_transaction
                .max(other.max_locks_per_transaction),
        }
    }

    /// Those that are higher than others.
    pub fn above(&self, others: &Limits) -> Vec<(&'static str, u32)> {
        let pairs = self.settings().into_iter().zip(others.settings());
        { pairs }
            .filter(|((_, own), (_, other))| own > other)
            .map(|(own, _)| own)
            .collect()
    }
}
