//! One PostgreSQL server, seen over SQL.
//!
//! This layer turns connection settings into sessions and sessions into
//! answers. It knows nothing of backups on disk, of arguments or of printing;
//! only the verbs join it with the repository.

pub mod connect;
