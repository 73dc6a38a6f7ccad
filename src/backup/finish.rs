//! The end of a backup: label, control file, manifest, checksums, `backup.info`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Instant;

use crate::backup::Request;
use crate::backup::end::End;
use crate::config::Source;
use crate::error::Result;
use crate::pg::control::CONTROL_FILE;
use crate::pg::history::WalRange;
use crate::pg::label::{BACKUP_LABEL_FILE, IncrementalFrom, with_incremental_from};
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::tablespace_map::TABLESPACE_MAP_FILE;
use crate::repository::backup_info::{
    BackupInfo, CorruptPage, EncryptedWith, Increment, Tablespace,
};
use crate::repository::identifier::Identifier;
use crate::repository::layout::{BackupFolder, FORMAT};
use crate::repository::store::{Sealed, Store, Stored};
use crate::server::facts::{Facts, TablespaceLocation};
use crate::server::session::Stopped;
use crate::stored::coding::Coding;

/// How many corrupt pages `backup.info` names; all are counted.
const NAMED_CORRUPT_PAGES: usize = 100;

/// All that is known of a backup whose files are copied.
pub(super) struct Finish<'a> {
    pub(super) description: Description<'a>,
    /// Directories of PGDATA, parents first.
    pub(super) directories: Vec<String>,
    pub(super) stopped: &'a Stopped,
    /// Its WAL by timeline, the newest first.
    pub(super) ranges: &'a [WalRange],
    pub(super) end: End,
}

/// What `backup.info` tells beside its files and its WAL.
pub(super) struct Description<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) facts: &'a Facts,
    pub(super) tablespaces: &'a [TablespaceLocation],
    /// The pages that no replay mends.
    pub(super) corrupt: Vec<CorruptPage>,
    pub(super) increment: Option<Increment>,
    /// Which way files were read; nothing asks that of what is no backup yet.
    pub(super) source: Option<Source>,
    pub(super) identifier: Identifier,
    pub(super) began: Instant,
}

/// The WAL that a backup is of.
pub(super) struct Extent {
    pub(super) start_lsn: Lsn,
    pub(super) checkpoint_lsn: Lsn,
    pub(super) start_timeline: Timeline,
    pub(super) end: End,
    /// The name of its first segment.
    pub(super) first_segment: String,
    pub(super) from_standby: bool,
}

impl Extent {
    /// That of a pass that is no backup, as far as the newest page that it read.
    pub(super) fn of_layer(
        start_lsn: Lsn,
        timeline: Timeline,
        newest: Lsn,
        from_standby: bool,
    ) -> Extent {
        Extent {
            start_lsn,
            checkpoint_lsn: start_lsn,
            start_timeline: timeline,
            end: End {
                lsn: newest,
                timeline,
            },
            first_segment: String::new(),
            from_standby,
        }
    }
}

impl Finish<'_> {
    /// Writes what is left to write, `backup.info` last.
    pub(super) fn write(
        mut self,
        copied: Stored,
        control: &[u8],
        folder: &BackupFolder,
    ) -> Result<BackupInfo> {
        let Description { request, facts, .. } = self.description;
        let mut store = Store::new(folder, request.coding)?;
        let now = jiff::Timestamp::now().as_second();
        store.file(CONTROL_FILE, now, control)?;
        store.file(BACKUP_LABEL_FILE, now, self.label().as_bytes())?;
        if !self.stopped.tablespace_map.is_empty() {
            store.file(
                TABLESPACE_MAP_FILE,
                now,
                self.stopped.tablespace_map.as_bytes(),
            )?;
        }
        store.stored.append(copied);
        store.manifest(
            now,
            facts.version.major,
            facts.control.system_identifier,
            self.ranges,
        )?;
        let sealed = store.seal(std::mem::take(&mut self.directories))?;
        let label = &self.stopped.label;
        let extent = Extent {
            start_lsn: label.start_lsn,
            checkpoint_lsn: label.checkpoint_lsn,
            start_timeline: label.start_timeline,
            end: self.end,
            first_segment: label.start_segment_file.clone(),
            from_standby: label.from_standby,
        };
        let info = self.description.info(extent, &sealed);
        info.write(folder)?;
        Ok(info)
    }

    /// `backup_label` as the server gave it; an incremental backup's also says what it builds on.
    fn label(&self) -> Cow<'_, str> {
        match &self.description.increment {
            None => Cow::Borrowed(&self.stopped.label_file),
            Some(increment) => Cow::Owned(with_incremental_from(
                &self.stopped.label_file,
                IncrementalFrom {
                    lsn: increment.from_lsn,
                    timeline: increment.from_timeline,
                },
            )),
        }
    }
}

impl Description<'_> {
    /// `backup.info` of a backup with these files.
    pub(super) fn info(&self, extent: Extent, sealed: &Sealed) -> BackupInfo {
        let named = self.corrupt.len().min(NAMED_CORRUPT_PAGES);
        let Coding {
            compression,
            encryption,
        } = self.request.coding;
        let control = &self.facts.control;
        BackupInfo {
            format: FORMAT,
            client_version: env!("CARGO_PKG_VERSION").to_owned(),
            backup: self.identifier,
            files_in: None,
            revision: 0,
            server: self.request.server.to_owned(),
            label: self.request.label.to_owned(),
            comments: BTreeMap::new(),
            keep: false,
            incremental: self.increment.clone(),
            compression: compression.algorithm,
            compression_level: compression.level(),
            encryption: encryption.as_ref().map(EncryptedWith::from),
            backup_size: sealed.bytes,
            restore_size: sealed
                .list
                .files
                .iter()
                .map(|file| file.restored_size())
                .sum(),
            number_of_files: sealed.list.files.len() as u64,
            elapsed: milliseconds(self.began),
            passes: 1,
            source: self.source,
            major_version: self.facts.version.major.number(),
            minor_version: self.facts.version.minor,
            system_identifier: control.system_identifier,
            catalog_version: control.catalog_version,
            control_version: control.control_version,
            block_size: control.block_size,
            relation_segment_blocks: control.relation_segment_blocks,
            wal_segment_size: control.wal_segment_size.bytes(),
            wal_level: self.facts.wal_level.clone(),
            data_checksums: self.facts.data_checksums,
            group_access: self.facts.group_access,
            from_standby: extent.from_standby,
            start_lsn: extent.start_lsn,
            checkpoint_lsn: extent.checkpoint_lsn,
            end_lsn: extent.end.lsn,
            start_timeline: extent.start_timeline,
            end_timeline: extent.end.timeline,
            wal: extent.first_segment,
            data_directory: self.facts.data_directory.clone(),
            tablespaces: self.tablespaces.iter().map(tablespace).collect(),
            corrupt_pages: self.corrupt.len() as u64,
            corrupt: self.corrupt[..named].to_vec(),
            checksums: sealed.checksums.to_string(),
            verification: None,
            drill: None,
        }
    }
}

/// How long it took until now.
pub(super) fn milliseconds(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn tablespace(location: &TablespaceLocation) -> Tablespace {
    Tablespace {
        oid: location.oid,
        name: location.name.clone(),
        path: (!location.is_in_place()).then(|| location.location.clone()),
    }
}
