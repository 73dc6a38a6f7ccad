//! Physical backups of PostgreSQL through ordinary SQL connections.

pub mod error;
pub mod pg;
