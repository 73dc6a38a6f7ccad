//! The manifest of a restored cluster.

use std::io::{BufWriter, Write};

use crate::error::{Error, Result};
use crate::pg::history::{TimelineHistory, WalRange, file_name};
use crate::pg::manifest::{BACKUP_MANIFEST_FILE, ManifestWriter};
use crate::pg::version::Major;
use crate::repository::backup_info::BackupInfo;
use crate::repository::chain::Chain;
use crate::restore::directory::DataDirectory;
use crate::restore::write::{Changed, LEFT_OUT};

/// A manifest of what was written, for pg_verifybackup.
pub(super) fn write(chain: &Chain, directory: &DataDirectory, changed: &Changed<'_>) -> Result<()> {
    let info = &chain.newest.info;
    let path = directory.path(BACKUP_MANIFEST_FILE);
    let failed = |error: std::io::Error| Error::io("write", &path, &error);
    let major = Major::from_number(info.major_version)
        .ok_or_else(|| Error::damage("backup.info has an unknown major version"))?;
    let target = BufWriter::new(directory.create_file(&path)?);
    let mut manifest =
        ManifestWriter::new(target, major.manifest_version(), info.system_identifier)
            .map_err(failed)?;
    let written = chain.files().filter(|sources| {
        let file = sources.file;
        !file.is_extra()
            && !file.path.starts_with("pg_wal/")
            && !LEFT_OUT.contains(&file.path.as_str())
    });
    for sources in written {
        let (file, base) = (sources.file, sources.base);
        let (size, crc32c) = match changed.get(file.path.as_str()) {
            Some(changed) => *changed,
            None => (base.size, base.crc32c),
        };
        manifest
            .file(&file.path, size, file.modified, crc32c.0)
            .map_err(failed)?;
    }
    let mut target = manifest
        .finish(&wal_ranges(info, directory)?)
        .map_err(failed)?;
    target.flush().map_err(failed)
}

fn wal_ranges(info: &BackupInfo, directory: &DataDirectory) -> Result<Vec<WalRange>> {
    let path = directory.path(&format!("pg_wal/{}", file_name(info.end_timeline)));
    let history = match std::fs::read_to_string(&path) {
        Ok(text) => TimelineHistory::parse(info.end_timeline, &text)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            TimelineHistory::without_ancestors(info.end_timeline)
        }
        Err(error) => return Err(Error::io("read", &path, &error)),
    };
    history.ranges(info.start_lsn, info.end_lsn, info.end_timeline)
}
