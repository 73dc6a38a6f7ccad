//! Physical backups of PostgreSQL through ordinary SQL connections.

pub mod archive;
pub mod backup;
mod catalogs;
#[cfg(test)]
mod chance;
pub mod check;
pub mod cli;
pub mod config;
pub mod error;
pub mod extract;
pub mod files;
pub mod interrupt;
pub mod lifecycle;
pub mod master_key;
pub mod parallel;
pub mod pg;
pub mod private_server;
pub mod progress;
pub mod rate;
pub mod repository;
pub mod restore;
pub mod server;
pub mod size;
pub mod storage;
pub mod stored;
pub mod transfer;
pub mod verify;
pub mod wal;
