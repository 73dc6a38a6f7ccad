//! What was seen of a backup, noted in its `backup.info`.

use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::repository::backup_info::{BackupInfo, Drill, DrillOutcome, Verdict, Verification};
use crate::repository::layout::ServerFolder;
use crate::repository::lock::InfoLock;
use crate::verify::Finding;

/// What the findings of one backup come to.
pub fn verdict<'a>(findings: impl IntoIterator<Item = &'a Finding>) -> Verdict {
    let mut failed = findings
        .into_iter()
        .filter_map(|finding| Some((&finding.file, finding.problem.as_ref()?)));
    match failed.next() {
        None => Verdict::Sound,
        Some((file, problem)) => Verdict::Damaged {
            failed_files: 1 + failed.count() as u64,
            first: format!("{file}: {problem}"),
        },
    }
}

/// Notes what a verification of `verified` showed, or a drill. An error where that backup has been replaced or
/// removed meanwhile: then nothing is known of what is there now.
pub fn remember(
    folder: &ServerFolder,
    verified: &BackupInfo,
    verdict: Verdict,
    drill: Option<DrillOutcome>,
    interrupt: &Interrupt,
) -> Result<()> {
    let time = this_second();
    let lock = InfoLock::take(folder, interrupt)?;
    BackupInfo::change(&folder.backup(verified.backup), &lock, |info| {
        if info.checksums != verified.checksums {
            return Err(Error::failed(format!(
                "backup {} was replaced while it was verified",
                verified.backup
            ))
            .hint("verify it again"));
        }
        info.verification = Some(Verification { time, verdict });
        if let Some(outcome) = drill {
            info.drill = Some(Drill { time, outcome });
        }
        Ok(())
    })
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

    const NAME: &str = "20240928065644";

    fn repository() -> (tempfile::TempDir, ServerFolder, BackupInfo) {
        let base = tempfile::tempdir().unwrap();
        let folder = ServerFolder::new(base.path(), "primary");
        folder.create().unwrap();
        let info = example(NAME);
        let backup = folder.backup(info.backup);
        std::fs::create_dir(backup.path()).unwrap();
        info.write(&backup).unwrap();
        (base, folder, info)
    }

    #[test]
    fn the_first_failed_file_stands_for_all() {
        let findings = [
            Finding::sound("backup.info"),
            Finding::bad("data/1", "is missing"),
            Finding::bad("data/2", "has 1 bytes in it, not 2"),
        ];
        let damaged = Verdict::Damaged {
            failed_files: 2,
            first: "data/1: is missing".to_owned(),
        };
        assert_eq!(verdict(&findings), damaged);
        assert_eq!(verdict(&findings[..1]), Verdict::Sound);
    }

    #[test]
    fn a_verdict_is_noted_beside_what_others_noted_meanwhile() {
        let (_base, folder, verified) = repository();
        let backup = folder.backup(verified.backup);
        let mut kept = verified.clone();
        kept.keep = true;
        kept.write(&backup).unwrap();
        let interrupt = Interrupt::default();
        let passed = Some(DrillOutcome::Passed);
        remember(&folder, &verified, Verdict::Sound, passed, &interrupt).unwrap();
        let info = BackupInfo::read(&backup).unwrap();
        assert!(info.keep);
        assert_eq!(info.verification.unwrap().verdict, Verdict::Sound);
        // A verification without a drill leaves the last drill known.
        remember(&folder, &verified, Verdict::Sound, None, &interrupt).unwrap();
        assert!(BackupInfo::read(&backup).unwrap().drill.is_some());
    }

    #[test]
    fn a_verdict_over_what_is_no_longer_there_is_not_noted() {
        let (_base, folder, verified) = repository();
        let backup = folder.backup(verified.backup);
        let mut other = verified.clone();
        other.checksums = "another".to_owned();
        other.write(&backup).unwrap();
        let interrupt = Interrupt::default();
        let refused = remember(&folder, &verified, Verdict::Sound, None, &interrupt);
        assert!(refused.unwrap_err().message().contains("was replaced"));
        assert_eq!(BackupInfo::read(&backup).unwrap(), other);
        std::fs::remove_dir_all(backup.path()).unwrap();
        assert!(remember(&folder, &verified, Verdict::Sound, None, &interrupt).is_err());
    }
}
