//! One file a command: its arguments, what was asked, what came of it.

pub(super) mod annotate;
pub(super) mod archive;
mod archiving;
pub(super) mod backup;
pub(super) mod check;
pub(super) mod completions;
pub(super) mod conf;
pub(super) mod copy;
pub(super) mod delete;
pub(super) mod describe;
pub(super) mod expire;
pub(super) mod extract;
pub(super) mod files;
pub(super) mod history;
pub(super) mod info;
pub(super) mod list_backup;
pub(super) mod master_key;
pub(super) mod permissions;
mod preview;
mod repository;
pub(super) mod restore;
pub(super) mod retain;
pub(super) mod status;
pub(super) mod units;
pub(super) mod verify;
pub(super) mod wal;
mod wanted;
