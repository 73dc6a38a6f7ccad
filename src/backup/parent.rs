//! The backup that an incremental one builds on.

use crate::error::{Error, Result};
use crate::pg::changed_blocks::ChangedBlocks;
use crate::pg::history::TimelineHistory;
use crate::pg::lsn::Lsn;
use crate::pg::relation::{Fork, RelationFile};
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::wal::WAL_PAGE_SIZE;
use crate::repository::backup_info::BackupInfo;
use crate::repository::catalogue::{Backup, Catalogue};
use crate::repository::contents::{check_presence, visit_list};
use crate::repository::file_list::{Files, Listed};
use crate::repository::identifier::Identifier;
use crate::repository::layout::{self, BackupFolder};
use crate::server::facts::Facts;
use crate::server::reading::{FileReader, Range};
use crate::stored::coding::Coding;
use crate::stored::master_key::Keyring;
use crate::stored::reader::StoredReader;

/// A parent that fits the server.
pub(super) struct Parent {
    /// What is known about it.
    pub(super) info: BackupInfo,
    /// The main forks of its relations, in the order of their paths.
    pub(super) relations: Files,
    /// Blocks that changed before it, and that it lacks.
    pub(super) owed: ChangedBlocks,
    /// Where it lies, and how it is stored, if it is a backup: it has its WAL then.
    whole: Option<(BackupFolder, Coding)>,
}

impl Parent {
    /// Opens a backup as the parent of one of this server. What can't be a parent is refused.
    pub(super) fn open(
        catalogue: &Catalogue,
        backup: &Backup,
        keys: &Keyring,
        facts: &Facts,
    ) -> Result<Parent> {
        let info = catalogue.check(backup)?;
        check_same_cluster(info, facts)?;
        check_presence(&backup.folder, info)?;
        for ancestor in catalogue.ancestors(info)? {
            check_presence(ancestor.folder, ancestor.info)?;
        }
        Parent::read(&backup.folder, keys, facts)
    }

    /// Opens what an earlier pass left.
    pub(super) fn of_layer(
        folder: &BackupFolder,
        owed: &ChangedBlocks,
        keys: &Keyring,
        facts: &Facts,
    ) -> Result<Parent> {
        let parent = Parent::read(folder, keys, facts)?;
        check_same_cluster(&parent.info, facts)?;
        Ok(Parent {
            owed: owed.clone(),
            whole: None,
            ..parent
        })
    }

    fn read(folder: &BackupFolder, keys: &Keyring, facts: &Facts) -> Result<Parent> {
        let info = BackupInfo::read(folder)?;
        let coding = info.coding(keys)?;
        let tablespace_directory = facts.version.major.tablespace_directory();
        let mut relations = Files::default();
        visit_list(folder, &info, &coding, |listed| {
            if let Listed::File(file) = listed
                && RelationFile::parse(file.path, &tablespace_directory)
                    .is_some_and(|relation| relation.fork == Fork::Main)
            {
                relations.push(file);
            }
        })?;
        relations.sort();
        Ok(Parent {
            info,
            relations,
            owed: ChangedBlocks::new(),
            whole: Some((folder.clone(), coding)),
        })
    }

    /// Refuses a parent whose last page of WAL is another one on the server: that was set back, to a snapshot of its disk or
    /// its machine. Where the server has removed that WAL, nothing tells.
    pub(super) fn check_wal(&self, size: SegmentSize, reader: &mut FileReader) -> Result<()> {
        let Some((folder, coding)) = &self.whole else {
            return Ok(());
        };
        let (end, timeline) = (self.info.end_lsn, self.info.end_timeline);
        let number = end.previous_segment(size);
        let name = SegmentName { timeline, number };
        let path = format!("pg_wal/{}", name.file_name(size));
        let length = end.0 - number.start(size).0;
        let offset = (length - 1) / WAL_PAGE_SIZE as u64 * WAL_PAGE_SIZE as u64;
        let mut found = None;
        let range = Range {
            path: &path,
            offset,
            length: length - offset,
        };
        reader.read(&[range], |_, bytes| {
            found = bytes.map(<[u8]>::to_vec);
            Ok(())
        })?;
        let Some(found) = found else {
            return Ok(());
        };
        let stored = folder.stored(&layout::stored_file(&path, coding.suffix()));
        let mut content = StoredReader::open(&stored, coding)?;
        content.skip(offset)?;
        let mut own = vec![0; found.len()];
        content.fill(&mut own)?;
        match own == found {
            true => Ok(()),
            false => Err(unfit(
                self.info.backup,
                format!(
                    "the server's WAL before {end} is not what it was then: the server was set back to an earlier state"
                ),
            )),
        }
    }

    /// Refuses a parent that is not a state the server was in before what it has `reached`, on its way of timelines.
    pub(super) fn check_ancestry(&self, reached: Lsn, history: &TimelineHistory) -> Result<()> {
        let info = &self.info;
        let identifier = info.backup;
        for (timeline, position) in [
            (info.start_timeline, info.start_lsn),
            (info.end_timeline, info.end_lsn),
        ] {
            let left = history.switch_point(timeline);
            if !history.contains(timeline) || left.is_some_and(|left| left < position) {
                return Err(unfit(
                    identifier,
                    format!(
                        "it is of timeline {timeline} at {position}, and the server, on timeline {}, did not come that way",
                        history.timeline()
                    ),
                ));
            }
        }
        if info.end_lsn > reached {
            let why = format!(
                "it ended at {}, and this backup would start at {reached}",
                info.end_lsn
            );
            return Err(unfit(identifier, why).hint(
                "on a standby wait for its next restartpoint, or run CHECKPOINT on the primary; or make a full backup",
            ));
        }
        Ok(())
    }
}

pub(super) fn check_same_cluster(info: &BackupInfo, facts: &Facts) -> Result<()> {
    let control = &facts.control;
    let different = |what: &str, there: &dyn std::fmt::Display, here: &dyn std::fmt::Display| {
        Err(unfit(
            info.backup,
            format!("its {what} is {there}, the server's {here}"),
        ))
    };
    if info.system_identifier != control.system_identifier {
        return different(
            "system identifier",
            &info.system_identifier,
            &control.system_identifier,
        );
    }
    let major = facts.version.major.number();
    if info.major_version != major {
        return different("major version", &info.major_version, &major);
    }
    if info.catalog_version != control.catalog_version {
        return different(
            "catalog version",
            &info.catalog_version,
            &control.catalog_version,
        );
    }
    if info.block_size != control.block_size {
        return different("block size", &info.block_size, &control.block_size);
    }
    if info.relation_segment_blocks != control.relation_segment_blocks {
        return different(
            "number of blocks in a segment",
            &info.relation_segment_blocks,
            &control.relation_segment_blocks,
        );
    }
    if info.wal_segment_size != control.wal_segment_size.bytes() {
        return different(
            "WAL segment size",
            &info.wal_segment_size,
            &control.wal_segment_size.bytes(),
        );
    }
    if info.data_checksums != facts.data_checksums {
        // pg_checksums rewrites every page, and writes no WAL.
        return Err(unfit(
            info.backup,
            "data checksums were switched on or off since".to_owned(),
        ));
    }
    Ok(())
}

fn unfit(parent: Identifier, why: String) -> Error {
    Error::failed(format!(
        "backup {parent} can't be the parent of this one: {why}"
    ))
    .hint("make a full backup, or say --or-full")
}
