//! Keys of pgmoneta's configuration that mean nothing here.
//!
//! They are those of pgmoneta's manual, chapter "Configuration". They are
//! accepted, so that a `pgmoneta.conf` can be used as it is.

use std::path::PathBuf;

/// A key that was accepted and has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// The key.
    pub key: String,
    /// The file it is in.
    pub path: PathBuf,
    /// Its line, counted from 1.
    pub line: usize,
    /// Whether anything is lost by ignoring it.
    pub reason: Reason,
}

/// Why a key has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Only a daemon needs it.
    Daemon,
    /// It asks for something that pgkeep does not do.
    NotDone,
}

/// Keys of the main section that only a daemon needs.
const MAIN: &[&str] = &[
    "admin_configuration_path",
    "admins_configuration_path",
    "azure_base_dir",
    "azure_container",
    "azure_shared_key",
    "azure_storage_account",
    "backlog",
    "blocking_timeout",
    "buffer_size",
    "direct_io",
    "gcs_base_dir",
    "gcs_bucket",
    "gcs_credentials_file",
    "gcs_port",
    "gcs_use_tls",
    "host",
    "hugepage",
    "keep_alive",
    "libev",
    "link",
    "log_line_prefix",
    "log_mode",
    "log_rotation_age",
    "log_rotation_size",
    "main_configuration_path",
    "management",
    "manifest",
    "metrics",
    "metrics_ca_file",
    "metrics_cache_max_age",
    "metrics_cache_max_size",
    "metrics_cert_file",
    "metrics_key_file",
    "metrics_query_timeout",
    "nagios",
    "nodelay",
    "non_blocking",
    "pgsql_dir",
    "pidfile",
    "progress",
    "s3_access_key_id",
    "s3_aws_region",
    "s3_base_dir",
    "s3_bucket",
    "s3_port",
    "s3_secret_access_key",
    "s3_use_tls",
    "ssh_base_dir",
    "ssh_ciphers",
    "ssh_hostname",
    "ssh_private_key_file",
    "ssh_public_key_file",
    "ssh_username",
    "tls",
    "tls_ca_file",
    "tls_cert_file",
    "tls_key_file",
    "unix_socket_dir",
    "update_process_title",
    "users_configuration_path",
    "workspace",
];

/// Keys of a server's section that only a daemon needs.
const SERVER: &[&str] = &[
    "backup_slot",
    "online",
    "progress",
    "s3_access_key_id",
    "s3_base_dir",
    "s3_bucket",
    "s3_port",
    "s3_secret_access_key",
    "s3_use_tls",
    "synchronous",
];

/// Keys of a server's section that ask for a service which pgkeep does not give.
const NOT_DONE: &[&str] = &[
    "follow",
    "hot_standby",
    "hot_standby_overrides",
    "hot_standby_tablespaces",
    "wal_shipping",
];

/// Why a key of the main section has no effect, if it is pgmoneta's.
pub(super) fn in_main_section(key: &str) -> Option<Reason> {
    MAIN.contains(&key).then_some(Reason::Daemon)
}

/// Why a key of a server's section has no effect, if it is pgmoneta's.
pub(super) fn in_server_section(key: &str) -> Option<Reason> {
    if NOT_DONE.contains(&key) {
        return Some(Reason::NotDone);
    }
    SERVER.contains(&key).then_some(Reason::Daemon)
}
