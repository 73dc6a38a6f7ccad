//! The run for cron: every backup that was not verified for too long.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::repository::backup_info::BackupInfo;
use crate::repository::catalogue::Catalogue;
use crate::repository::identifier::Identifier;
use crate::repository::layout::ServerFolder;
use crate::stored::master_key::Keyring;
use crate::verify::{self, Verified};

/// Whose backups are verified, and how old their last verification may be.
pub struct Request<'a> {
    /// The server's name.
    pub server: &'a str,
    /// Its part of the repository.
    pub folder: &'a ServerFolder,
    /// The master keys its backups may be encrypted with.
    pub keys: &'a Keyring,
    /// How old the last verification of a backup may become.
    pub interval: Duration,
    /// Threads that read.
    pub workers: usize,
}

/// Verifies each valid backup that is due, the newest first: with it those that it needs are verified, and no longer
/// due. What comes of one backup, damage or failure, does not keep the others from their turn. `each` is called for each of
/// them, and has it verified.
pub fn run(
    request: &Request<'_>,
    each: impl Fn(Identifier, &mut dyn FnMut() -> Result<Verified>) -> Result<Verified>,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Vec<(Identifier, Result<Verified>)>> {
    let mut done = BTreeSet::new();
    let mut verified = Vec::new();
    loop {
        interrupt.check()?;
        let catalogue = Catalogue::read(request.server, request.folder)?;
        let is_next = |info: &BackupInfo| {
            !done.contains(&info.backup) && is_due(info, request.interval, Timestamp::now())
        };
        let next = catalogue
            .valid()
            .rev()
            .find(|backup| backup.info.as_ref().is_ok_and(is_next));
        let Some(backup) = next else {
            return Ok(verified);
        };
        done.insert(backup.identifier);
        let one = verify::Request {
            folder: request.folder,
            catalogue: &catalogue,
            backup,
            keys: request.keys,
            rebuild: None,
            all: false,
            workers: request.workers,
        };
        let result = each(backup.identifier, &mut || {
            verify::run(&one, progress, interrupt)
        });
        interrupt.check()?;
        verified.push((backup.identifier, result));
    }
}

/// Whether a backup's last verification is too long ago, or its creation where it was never verified. A time to come is of a clock
/// that was wrong, and says nothing.
pub fn is_due(info: &BackupInfo, interval: Duration, now: Timestamp) -> bool {
    let last = match &info.verification {
        Some(verification) => Some(verification.time),
        None => info.backup.time(),
    };
    let interval = SignedDuration::try_from(interval).unwrap_or(SignedDuration::MAX);
    last.is_none_or(|last| {
        let age = now.duration_since(last);
        age.is_negative() || age >= interval
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::repository::backup_info::tests::example;
    use crate::repository::backup_info::{Verdict, Verification};

    #[test]
    fn age_counts_from_the_last_verification_or_from_the_backup() {
        let mut info = example("20240928065644");
        let hour = Duration::from_secs(3600);
        let due_at = |info: &BackupInfo, now: &str| is_due(info, hour, now.parse().unwrap());
        assert!(!due_at(&info, "2024-09-28T07:56:43Z"));
        assert!(due_at(&info, "2024-09-28T07:56:44Z"));
        info.verification = Some(Verification {
            time: "2024-09-28T07:00:00Z".parse().unwrap(),
            verdict: Verdict::Sound,
        });
        assert!(!due_at(&info, "2024-09-28T07:59:59Z"));
        assert!(due_at(&info, "2024-09-28T08:00:00Z"));
        assert!(due_at(&info, "2024-09-28T06:59:59Z"), "a wrong clock");
        let forever = Duration::from_secs(u64::MAX);
        assert!(!is_due(
            &info,
            forever,
            "2030-01-01T00:00:00Z".parse().unwrap()
        ));
    }
}
