//! Physical backups of PostgreSQL through ordinary SQL connections.

pub mod error;
pub mod interrupt;
pub mod progress;
pub mod repository;
pub mod server;
pub mod stored;
