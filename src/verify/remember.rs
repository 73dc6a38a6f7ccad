//! What was seen of a backup, noted in its `backup.info`.

use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::repository::backup_info::{BackupInfo, Drill, DrillOutcome, Verdict, Verification};
use crate::repository::layout::{BackupFolder, INFO, ServerFolder};
use crate::repository::lock::InfoLock;
use crate::verify::drill::Held;
use crate::verify::{Finding, Findings, Request};

/// Whether what was seen is noted.
#[derive(Debug)]
pub enum Remembered {
    /// It is.
    Yes,
    /// It could not be, for this reason; nothing is known of it later.
    No(Error),
}

/// Notes what was found of each backup. An error where one that looked bad was replaced or removed while it was read:
/// then nothing was found out.
pub(super) fn remember(
    request: &Request<'_>,
    findings: &Findings,
    held: Option<&Held>,
    interrupt: &Interrupt,
) -> Result<Remembered> {
    let Ok(newest) = &request.backup.info else {
        // Where backup.info cannot be read, there is nothing to note anything in, and no need to.
        return Ok(Remembered::No(Error::damage(format!("{INFO} is damaged"))));
    };
    let ancestors = request.catalogue.ancestors(newest).unwrap_or_default();
    let mut remembered = Remembered::Yes;
    for verified in [newest]
        .into_iter()
        .chain(ancestors.iter().map(|link| link.info))
    {
        // That a parent is missing or another one is seen anew each time the catalogue is read.
        let of_it = findings
            .bad()
            .filter(|finding| finding.backup == verified.backup && finding.file != INFO);
        let verdict = verdict(of_it);
        let is_damaged = verdict != Verdict::Sound;
        let drill = held
            .filter(|_| verified.backup == newest.backup)
            .map(Held::outcome);
        if let (Verdict::Sound, Some(unchecked)) = (&verdict, &findings.unchecked) {
            // That the files lie there as they were written does not make them sound.
            remembered = Remembered::No(unchecked.clone());
            continue;
        }
        match note(request.folder, verified, verdict, drill, interrupt) {
            Ok(()) => {}
            Err(Refusal::Replaced(error)) if is_damaged => return Err(error),
            Err(Refusal::Replaced(error) | Refusal::Other(error)) => {
                interrupt.check()?;
                remembered = Remembered::No(error);
            }
        }
    }
    Ok(remembered)
}

/// What the bad findings of one backup come to.
fn verdict<'a>(mut bad: impl Iterator<Item = &'a Finding>) -> Verdict {
    match bad.next() {
        None => Verdict::Sound,
        Some(first) => Verdict::Damaged {
            first: format!(
                "{}: {}",
                first.file,
                first.problem.as_deref().unwrap_or_default()
            ),
            failed_files: 1 + bad.count() as u64,
        },
    }
}

/// Why nothing was noted.
enum Refusal {
    /// The backup is not the one that was read any more.
    Replaced(Error),
    Other(Error),
}

fn note(
    folder: &ServerFolder,
    verified: &BackupInfo,
    verdict: Verdict,
    drill: Option<DrillOutcome>,
    interrupt: &Interrupt,
) -> std::result::Result<(), Refusal> {
    let time = this_second();
    let backup = folder.backup(verified.backup);
    let lock = InfoLock::take(folder, interrupt).map_err(Refusal::Other)?;
    if !is_still(&backup, verified).map_err(Refusal::Other)? {
        return Err(Refusal::Replaced(
            Error::failed(format!(
                "backup {} was replaced while it was verified",
                verified.backup
            ))
            .hint("verify it again"),
        ));
    }
    let noted = BackupInfo::change(&backup, &lock, |info| {
        info.verification = Some(Verification { time, verdict });
        if let Some(outcome) = drill {
            info.drill = Some(Drill { time, outcome });
        }
        Ok(())
    });
    noted.map_err(Refusal::Other)
}

/// Whether a backup's folder still holds what was verified.
fn is_still(backup: &BackupFolder, verified: &BackupInfo) -> Result<bool> {
    let now = BackupInfo::read_if_there(backup)?;
    Ok(now.is_some_and(|info| info.checksums == verified.checksums))
}

fn this_second() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::repository::backup_info::tests::example;
    use crate::repository::catalogue::Catalogue;
    use crate::stored::master_key::Keyring;

    const NAME: &str = "20240928065644";

    fn repository() -> (tempfile::TempDir, ServerFolder, Catalogue) {
        let base = tempfile::tempdir().unwrap();
        let folder = ServerFolder::new(base.path(), "primary");
        folder.create().unwrap();
        let info = example(NAME);
        let backup = folder.backup(info.backup);
        backup.place().create_folder().unwrap();
        info.write(&backup).unwrap();
        let catalogue = Catalogue::read("primary", &folder).unwrap();
        (base, folder, catalogue)
    }

    fn info(folder: &ServerFolder) -> BackupInfo {
        BackupInfo::read(&folder.backup(NAME.parse().unwrap())).unwrap()
    }

    /// Remembers findings of these bad files.
    fn found(folder: &ServerFolder, catalogue: &Catalogue, bad: &[&str]) -> Result<Remembered> {
        let backup = &catalogue.backups()[0];
        let mut findings = Findings::new(backup.identifier, false);
        findings.add_sound(INFO);
        for file in bad {
            findings.add_bad(file, "is missing");
        }
        let request = Request {
            folder,
            catalogue,
            backup,
            keys: &Keyring::new(None),
            rebuild: None,
            all: false,
            workers: 1,
        };
        remember(&request, &findings, None, &Interrupt::default())
    }

    #[test]
    fn a_verdict_is_noted_beside_what_others_noted_meanwhile() {
        let (_base, folder, catalogue) = repository();
        let backup = folder.backup(NAME.parse().unwrap());
        let mut kept = info(&folder);
        kept.keep = true;
        kept.write(&backup).unwrap();
        let remembered = found(&folder, &catalogue, &["data/1", "data/2"]).unwrap();
        assert!(matches!(remembered, Remembered::Yes));
        let damaged = Verdict::Damaged {
            failed_files: 2,
            first: "data/1: is missing".to_owned(),
        };
        assert_eq!(info(&folder).verification.unwrap().verdict, damaged);
        assert!(info(&folder).keep);
        found(&folder, &catalogue, &[]).unwrap();
        assert_eq!(info(&folder).verification.unwrap().verdict, Verdict::Sound);
    }

    #[test]
    fn nothing_is_noted_of_what_is_no_longer_there() {
        let (_base, folder, catalogue) = repository();
        let backup = folder.backup(NAME.parse().unwrap());
        let mut other = info(&folder);
        other.checksums = "another".to_owned();
        other.write(&backup).unwrap();
        let refused = found(&folder, &catalogue, &["data/1"]).unwrap_err();
        assert!(refused.message().contains("was replaced"), "{refused}");
        assert!(matches!(
            found(&folder, &catalogue, &[]),
            Ok(Remembered::No(_))
        ));
        assert_eq!(info(&folder), other);
        backup.place().remove_folder().unwrap();
        assert!(found(&folder, &catalogue, &["data/1"]).is_err());
    }
}
