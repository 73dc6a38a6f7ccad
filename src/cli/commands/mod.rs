//! One file a command: its arguments, what was asked, what came of it.

pub mod backup;
pub mod check;
pub mod conf;
pub mod describe;
pub mod info;
pub mod list_backup;
pub mod permissions;
pub mod restore;
pub mod verify;
