//! A backup between the day it is made and the day it goes: what is noted about it, whether it
//! is kept.
//!
//! Everything here that writes holds the server's lock.

pub mod annotate;
pub mod retain;

use crate::error::Result;
use crate::repository::catalogue::Catalogue;
use crate::repository::identifier::{Identifier, Selector};
use crate::repository::layout::ServerFolder;
use crate::repository::lock::ServerLock;

/// The backup that is meant, found before the lock is taken: a mistyped name is told even
/// while another pgkeep works, and without any backup there may be no folder to lock.
fn select_and_lock(
    server: &str,
    folder: &ServerFolder,
    selector: &Selector,
) -> Result<(Identifier, ServerLock)> {
    let identifier = Catalogue::read(server, folder)?
        .select(selector)?
        .identifier;
    Ok((identifier, ServerLock::take(folder)?))
}
