//! Physical backups of PostgreSQL through ordinary SQL connections.

pub mod config;
pub mod error;
pub mod server;
