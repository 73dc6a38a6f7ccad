//! Whether an object store does all that a repository needs of it.

use jiff::{SignedDuration, Timestamp};

use crate::error::{Error, Result};
use crate::storage::objects::ObjectStore;

/// What is written to see it come back.
const CONTENT: &[u8] = b"pgkeep check";

/// So much the clocks of the machine and the store may differ. S3 refuses requests from 15 minutes on.
const MOST_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// Writes, reads, lists and deletes an object below a folder, in all the ways that a repository does.
pub(super) fn run(store: &ObjectStore, folder: &str) -> Result<()> {
    let moment = Timestamp::now().as_nanosecond();
    let key = format!("{folder}/check.{}-{moment}", std::process::id());
    let tried = attempt(store, folder, &key);
    let removed = store.delete(std::slice::from_ref(&key));
    tried?;
    removed?;
    match store.size(&key)? {
        None => Ok(()),
        Some(_) => Err(unfit(
            store,
            &key,
            "keeps what was deleted",
            "use another store",
        )),
    }
}

fn attempt(store: &ObjectStore, folder: &str, key: &str) -> Result<()> {
    let unfit = |what: &str| unfit(store, key, what, "use a store that does as S3 does");
    if store.create(key, CONTENT)?.is_none() {
        return Err(unfit("takes a name that nobody has for a taken one"));
    }
    check_conditions(store, key)?;
    let Some((content, version)) = store.get(key, CONTENT.len() as u64)? else {
        return Err(unfit("does not have what was written just now"));
    };
    if content != CONTENT {
        return Err(unfit("gives back something else than was written"));
    }
    if store.read_range(key, 7, 5)? != CONTENT[7..] {
        return Err(unfit("does not give back the part that was asked for"));
    }
    if store.replace(key, CONTENT, &version)?.is_none() {
        return Err(unfit("does not replace what nobody changed"));
    }
    let listed = store.list(folder)?;
    if !listed.iter().any(|found| found.key == key) {
        return Err(unfit("does not list what was written just now"));
    }
    if let Some(stat) = store.size(key)? {
        let skew = Timestamp::now().duration_since(stat.last_modified).abs();
        if skew > MOST_SKEW {
            return Err(Error::server(format!(
                "the clock of {} and that of this machine differ by {} s",
                store.url(""),
                skew.as_secs()
            ))
            .hint("set the clock of this machine, by NTP for example"));
        }
    }
    Ok(())
}

/// An error where an object that is there is written over though it was asked not to be: then nothing keeps two
/// pgkeep from spoiling each other's work.
pub(super) fn check_conditions(store: &ObjectStore, key: &str) -> Result<()> {
    let Some((mut content, _)) = store.get(key, 64 << 10)? else {
        return Ok(());
    };
    // Not the same, lest it be taken for what a request wrote whose answer was lost; but it means the same.
    content.push(b'\n');
    match store.create(key, content)? {
        None => Ok(()),
        Some(_) => Err(unfit(
            store,
            key,
            "writes over what is there though it is asked not to (If-None-Match)",
            "use a store that honours conditional writes, as S3 does: without them, two pgkeep could write over each other's backups",
        )),
    }
}

fn unfit(store: &ObjectStore, key: &str, what: &str, cure: &str) -> Error {
    Error::server(format!("the object store of {} {what}", store.url(key))).hint(cure)
}
