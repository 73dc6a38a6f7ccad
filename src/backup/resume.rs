//! Taking over what is left of a full backup that died: killed, or with the machine.
//!
//! Its passes lie in the folder it was built in, sealed or with their journals. What of them is as it was stored becomes layers, and
//! the first pass of the new backup reads what is missing, and what changed since.

use std::collections::HashSet;
use std::io::Read;

use crate::backup::journal::Journaled;
use crate::backup::layers::{Layers, Whose};
use crate::backup::parent::check_same_cluster;
use crate::backup::pass::Left;
use crate::backup::wal::following::Meanwhile;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::parallel;
use crate::progress::Progress;
use crate::repository::backup_info::{BackupInfo, EncryptedWith};
use crate::repository::checksums::Checksums;
use crate::repository::contents::read_checksums;
use crate::repository::layout::{self, BackupFolder, JOURNAL};
use crate::repository::staging::Staging;
use crate::repository::store::Stored;
use crate::server::facts::Facts;
use crate::storage::Place;
use crate::stored::checksum::{Sha512Digest, Sha512Hasher};

/// What it takes to look at what is left.
pub(super) struct Takeover<'a> {
    pub(super) whose: Whose<'a>,
    pub(super) facts: &'a Facts,
    pub(super) progress: &'a dyn Progress,
    pub(super) interrupt: &'a Interrupt,
}

impl Takeover<'_> {
    /// Makes layers of the passes from the first one on, as long as each stands on the one before; the rest goes.
    pub(super) fn run(&self, staging: &Staging) -> Result<Layers> {
        let mut layers = Layers::default();
        let parts = staging.parts()?;
        for (place, (_, part)) in parts.iter().enumerate() {
            self.interrupt.check()?;
            match self.take(part, &mut layers) {
                Ok(true) => {}
                ended => {
                    // Whoever stops here has found nothing wrong.
                    self.interrupt.check()?;
                    for (_, rest) in &parts[place..] {
                        rest.place().remove_folder()?;
                    }
                    // What the passes below hold is of use all the same.
                    if let Err(error) = ended {
                        log::warn!("a part of the unfinished backup is of no use: {error}");
                    }
                    break;
                }
            }
        }
        Ok(layers)
    }

    /// Makes a layer of a pass; false where nothing can be made of it.
    fn take(&self, folder: &BackupFolder, layers: &mut Layers) -> Result<bool> {
        let request = self.whose.request;
        let fits = |info: &BackupInfo| {
            check_same_cluster(info, self.facts)?;
            let coding = request.coding;
            let encryption = coding.encryption.as_ref().map(EncryptedWith::from);
            if (info.compression, info.encryption) != (coding.compression.algorithm, encryption) {
                return Err(Error::failed(
                    "it is compressed or encrypted in another way",
                ));
            }
            if info.incremental.is_some() == layers.is_empty() {
                return Err(Error::failed("the pass that it builds on is missing"));
            }
            Ok(())
        };
        if folder.info().exists()? {
            let info = BackupInfo::read(folder)?;
            fits(&info)?;
            let checksums = read_checksums(folder, &info)?;
            if !self.wrong(folder, &checksums)?.is_empty() {
                return Ok(false);
            }
            layers.take(folder.clone(), request.coding)?;
            return Ok(true);
        }
        let Some(journaled) = Journaled::read(folder, request.coding)? else {
            return Ok(false);
        };
        fits(&journaled.info)?;
        let Journaled {
            info,
            changed,
            mut stored,
            doubtful,
            newest,
        } = journaled;
        let wrong = self.wrong(folder, &stored.checksums)?;
        self.keep_right(&mut stored, &wrong, folder)?;
        remove_others(folder, &stored.checksums)?;
        let left = Left {
            stored,
            is_complete: false,
            meanwhile: Meanwhile::unknown(info.start_lsn),
            timeline: info.start_timeline,
            newest,
            doubtful,
            increment: info.incremental,
            changed,
        };
        if !left.is_of_use() {
            return Ok(false);
        }
        let base = layers.top(request, self.facts)?;
        layers.push(self.whose, self.facts, folder.clone(), left, base)?;
        Ok(true)
    }

    /// The stored files that are not what they were, by their places.
    fn wrong(&self, folder: &BackupFolder, checksums: &Checksums) -> Result<HashSet<usize>> {
        self.progress.step("check what is there", None);
        let mut workers = vec![HashSet::new(); self.whose.request.workers];
        parallel::run_dealt(
            &mut workers,
            |place| (place < checksums.len()).then_some(place),
            self.interrupt,
            |wrong, place, stop| {
                stop.check()?;
                let (path, digest) = checksums.at(place);
                if self.digest(&folder.stored(path)) != Some(digest) {
                    wrong.insert(place);
                }
                Ok(())
            },
            || Ok(()),
        )?;
        Ok(workers.into_iter().flatten().collect())
    }

    /// The digest of a file; nothing where it cannot be read.
    fn digest(&self, stored: &Place) -> Option<Sha512Digest> {
        const PART_BYTES: usize = 1 << 20;
        let mut file = stored.open().ok()?;
        let mut hasher = Sha512Hasher::default();
        let mut part = vec![0; PART_BYTES];
        loop {
            match file.read(&mut part).ok()? {
                0 => return Some(hasher.finish()),
                read => {
                    hasher.update(&part[..read]);
                    self.progress.advance(read as u64);
                }
            }
        }
    }

    /// Keeps of a pass what is stored as it was.
    fn keep_right(
        &self,
        stored: &mut Stored,
        wrong: &HashSet<usize>,
        folder: &BackupFolder,
    ) -> Result<()> {
        let mut right = Checksums::default();
        for place in (0..stored.checksums.len()).filter(|place| !wrong.contains(place)) {
            let (path, digest) = stored.checksums.at(place);
            stored.bytes += folder.stored(path).size()?;
            right.insert(path, digest);
        }
        right.sort();
        stored.checksums = right;
        let suffix = self.whose.request.coding.suffix();
        let checksums = &stored.checksums;
        stored.files.retain(|file| {
            let path = match file.bundle {
                Some(number) => layout::bundle(number, suffix),
                None => layout::stored_file(&file.stored_path(), suffix),
            };
            checksums.find(&path).is_some()
        });
        Ok(())
    }
}

/// Removes what a pass had not written down: files by halves, and lists that it was about to seal itself with.
fn remove_others(folder: &BackupFolder, stored: &Checksums) -> Result<()> {
    let is_journal = |path: &str| path.split('/').next() == Some(JOURNAL);
    let files = folder.place().files()?;
    let mut others = files
        .iter()
        .filter(|path| !is_journal(path) && stored.find(path).is_none());
    others.try_for_each(|path| folder.stored(path).remove())
}
