//! Relations that turned out to be unlogged only after their files had been listed.
//!
//! The last file that an unlogged relation gets is the one that tells that it is unlogged: an index is built before it has
//! an init fork, which may take hours, and so is any relation copied that is moved to another tablespace. Listed before, its
//! other forks are copied as any relation's; but the server makes them itself where recovery ends, from the init
//! fork that replay has made by then, and does not start where they are there already ([`Creations::init_forks`]).
//!
//! WAL has a record of each init fork. Nothing in it ever refers to another fork of an unlogged relation, so
//! that replay does not miss what is taken out. Init forks that come after the backup's end are looked for by the restore that
//! replays that far ([`replayed`](crate::restore::replayed)).
//!
//! [`Creations::init_forks`]: crate::pg::wal::Creations::init_forks

use std::collections::BTreeSet;

use crate::backup::Request;
use crate::backup::copy::Copied;
use crate::backup::plan::Plan;
use crate::error::Result;
use crate::pg::changed_blocks::RelationFork;
use crate::pg::exclusion::is_other_fork;
use crate::repository::layout::BackupFolder;
use crate::server::facts::Facts;

/// Takes all but the init forks of these relations out of what was copied.
pub(super) fn drop_other_forks(
    init_forks: &BTreeSet<RelationFork>,
    copied: &mut Copied,
    plan: &Plan,
    facts: &Facts,
    request: &Request<'_>,
    folder: &BackupFolder,
) -> Result<()> {
    if init_forks.is_empty() {
        return Ok(());
    }
    let tablespace_directory = facts.version.major.tablespace_directory();
    let is_unlogged = |path: &str| is_other_fork(path, init_forks, &tablespace_directory);
    copied
        .suspects
        .retain(|suspect| !is_unlogged(plan.files.get(suspect.file).path));
    let suffix = request.coding.suffix();
    let unlogged = copied
        .stored
        .take_out(|entry| is_unlogged(entry.path), suffix, folder)?;
    for path in unlogged {
        log::info!("{path}: left out, its relation is unlogged");
    }
    Ok(())
}
