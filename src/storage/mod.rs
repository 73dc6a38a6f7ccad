//! Where a repository lies.

pub mod objects;
