//! The manifest of a restored cluster.

use std::io::{self, BufWriter, Write};

use crate::error::{Error, Result};
use crate::pg::history::{TimelineHistory, file_name};
use crate::pg::manifest::{BACKUP_MANIFEST_FILE, ManifestWriter};
use crate::pg::version::Major;
use crate::repository::chain::{Chain, Member};
use crate::restore::directory::DataDirectory;
use crate::restore::write::{Changed, LEFT_OUT};

/// Writes a manifest of what was written, for pg_verifybackup.
pub(super) fn write(chain: &Chain, directory: &DataDirectory, changed: &Changed<'_>) -> Result<()> {
    let (file, path) = directory.create_file(BACKUP_MANIFEST_FILE)?;
    let failed = |error: io::Error| Error::io("write", &path, &error);
    let mut target = BufWriter::new(file);
    manifest(chain, changed, &mut target, failed)?;
    target.flush().map_err(failed)
}

/// The manifest of what a chain is restored to.
pub(crate) fn manifest(
    chain: &Chain,
    changed: &Changed<'_>,
    target: impl Write,
    failed: impl Fn(io::Error) -> Error,
) -> Result<()> {
    let info = &chain.newest.info;
    let major = Major::from_number(info.major_version)
        .ok_or_else(|| Error::damage("backup.info has an unknown major version"))?;
    let history = history(chain)?;
    let ranges = history.ranges(info.start_lsn, info.end_lsn, info.end_timeline)?;
    let mut manifest =
        ManifestWriter::new(target, major.manifest_version(), info.system_identifier)
            .map_err(&failed)?;
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
            .map_err(&failed)?;
    }
    manifest.finish(&ranges).map(drop).map_err(failed)
}

/// How the timeline came to be that the backup ended on.
fn history(chain: &Chain) -> Result<TimelineHistory> {
    let timeline = chain.newest.info.end_timeline;
    let path = format!("pg_wal/{}", file_name(timeline));
    if chain.newest.list.find(&path).is_none() {
        return Ok(TimelineHistory::without_ancestors(timeline));
    }
    let text = chain.stored(Member::NEWEST, &path).read_whole()?;
    TimelineHistory::parse(timeline, &String::from_utf8_lossy(&text))
}
