//! The manifest of a restored cluster.

use std::io::{self, BufWriter, Write};

use crate::error::{Error, Result};
use crate::pg::manifest::{BACKUP_MANIFEST_FILE, ManifestWriter};
use crate::pg::version::Major;
use crate::repository::chain::Chain;
use crate::restore::directory::DataDirectory;
use crate::restore::selection::Selection;
use crate::restore::write::{Changed, LEFT_OUT};

/// Writes a manifest of what was written, for pg_verifybackup.
pub(super) fn write(
    chain: &Chain,
    selection: &Selection,
    directory: &DataDirectory,
    changed: &mut Changed,
) -> Result<()> {
    let (file, path) = directory.create_file(BACKUP_MANIFEST_FILE)?;
    let failed = |error: io::Error| Error::io("write", &path, &error);
    let mut target = BufWriter::new(file);
    manifest(chain, selection, changed, &mut target, failed)?;
    target.flush().map_err(failed)
}

/// The manifest of what a chain is restored to.
pub(crate) fn manifest(
    chain: &Chain,
    selection: &Selection,
    changed: &mut Changed,
    target: impl Write,
    failed: impl Fn(io::Error) -> Error,
) -> Result<()> {
    let info = &chain.newest.info;
    let major = Major::from_number(info.major_version)
        .ok_or_else(|| Error::damage("backup.info has an unknown major version"))?;
    let ranges = chain.newest.wal_ranges()?;
    let mut manifest =
        ManifestWriter::new(target, major.manifest_version(), info.system_identifier)
            .map_err(&failed)?;
    let mut changed = changed.sorted().peekable();
    for (place, sources) in chain.files().enumerate() {
        let (file, base) = (sources.file, sources.base);
        let changed = changed.next_if(|(changed, _)| *changed == place);
        if file.is_extra()
            || file.path.starts_with("pg_wal/")
            || LEFT_OUT.contains(&file.path)
            || selection.is_absent(place)
        {
            continue;
        }
        let (size, crc32c) = changed.map_or((base.size, base.crc32c), |(_, changed)| changed);
        manifest
            .file(file.path, size, file.modified, crc32c.0)
            .map_err(&failed)?;
    }
    manifest.finish(&ranges).map(drop).map_err(failed)
}
