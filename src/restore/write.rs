//! The workers of a restore: read what is stored, check it, write it.

use std::borrow::Cow;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::parallel::{self, Stop};
use crate::pg::control::{CONTROL_FILE, ControlFile, forbid_start_without_label};
use crate::pg::incremental;
use crate::pg::label::{BACKUP_LABEL_FILE, without_incremental_from};
use crate::pg::limits::Limits;
use crate::pg::manifest::BACKUP_MANIFEST_FILE;
use crate::pg::tablespace_map::TABLESPACE_MAP_FILE;
use crate::progress::Progress;
use crate::repository::chain::{Chain, Member, Sources, Stored};
use crate::repository::file_list::Crc32c;
use crate::repository::portions::Portion;
use crate::restore::directory::DataDirectory;
use crate::restore::rebuild::Rebuilder;
use crate::restore::recovery::{SETTINGS_FILE, is_setting};
use crate::restore::selection::Selection;
use crate::storage::Place;
use crate::stored::bundle::visit_members;

/// Bytes that are read, checked and written at a time; whole blocks. With 1 MiB, which no longer stays in a core's
/// cache, the same restore took half as long again.
const PART_BYTES: usize = 256 << 10;

/// Not written as stored: the manifest is made anew, and the links of tablespaces are there already.
pub(super) const LEFT_OUT: [&str; 2] = [BACKUP_MANIFEST_FILE, TABLESPACE_MAP_FILE];

const VERIFY: &str = "run pgkeep verify on this backup, and restore another one";

/// Size and checksum of the files that are not as any backup stores them, by their places in the newest backup's list.
#[derive(Default)]
pub(crate) struct Changed(Vec<(u32, Crc32c, u64)>);

impl Changed {
    pub(crate) fn insert(&mut self, place: usize, (size, crc32c): (u64, Crc32c)) {
        self.0.push((place as u32, crc32c, size));
    }

    /// Of a file that is there in every backup.
    pub(crate) fn insert_path(&mut self, chain: &Chain, path: &str, changed: (u64, Crc32c)) {
        if let Some(place) = chain.newest.list.files.place(path) {
            self.insert(place, changed);
        }
    }

    fn append(&mut self, mut other: Changed) {
        self.0.append(&mut other.0);
    }

    /// All of them in the order of their places.
    pub(crate) fn sorted(&mut self) -> impl Iterator<Item = (usize, (u64, Crc32c))> {
        self.0.sort_unstable_by_key(|(place, ..)| *place);
        let all = self.0.iter();
        all.map(|(place, crc32c, size)| (*place as usize, (*size, *crc32c)))
    }
}

/// What came of writing all files.
#[derive(Default)]
pub(super) struct Written {
    /// Those that are not as any backup stores them.
    pub(super) changed: Changed,
    /// `postgresql.auto.conf` as it was in the backup, which is not written yet.
    pub(super) settings: Vec<u8>,
    /// What sends the restored server to another data directory.
    pub(super) other_data_directory: Option<String>,
}

const CONFIGURATION_FILE: &str = "postgresql.conf";

/// Writes all files but `postgresql.auto.conf`. Not as any backup stores them are the rebuilt ones, and two
/// that are changed on the way. From its `global/pg_control` alone, without `backup_label`, the cluster must
/// not start, and with an incremental backup's `backup_label` it does not.
pub(super) fn write_files(
    chain: &Chain,
    selection: &Selection,
    directory: &DataDirectory,
    workers: usize,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Written> {
    let extra = chain.files().filter(|sources| sources.file.is_extra());
    for sources in extra {
        directory.create_extra_folders(sources.file.path)?;
    }
    let mut all = write_stored_files(chain, selection, directory, workers, progress, interrupt)?;
    for (path, content) in [
        (CONTROL_FILE, control_file(chain)?),
        (BACKUP_LABEL_FILE, label_file(chain)?),
    ] {
        let (mut target, written) = directory.create_file(path)?;
        write_all(&mut target, &content, &written)?;
        all.changed.insert_path(chain, path, checksum(&content));
    }
    Ok(all)
}

/// Writes those that workers write, or, in a data directory that is only looked at, compares them.
pub(super) fn write_stored_files(
    chain: &Chain,
    selection: &Selection,
    directory: &DataDirectory,
    workers: usize,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Written> {
    let mut workers: Vec<Worker<'_>> = (0..workers)
        .map(|_| Worker {
            chain,
            directory,
            progress,
            part: vec![0; PART_BYTES],
            rebuilder: Rebuilder::default(),
            written: Written::default(),
        })
        .collect();
    let mut all = Written::default();
    write_holes(chain, selection, directory, interrupt, &mut all.changed)?;
    let portions = chain.portions(|place| selection.is_whole(place));
    parallel::run_dealt(
        &mut workers,
        |number| portions.get(number),
        interrupt,
        |worker, portion, stop| worker.write(portion, stop),
        || Ok(()),
    )?;
    for worker in workers {
        all.changed.append(worker.written.changed);
        all.settings.extend(worker.written.settings);
        let other = worker.written.other_data_directory;
        all.other_data_directory = all.other_data_directory.or(other);
    }
    Ok(all)
}

/// Makes the files that come as holes, of the length that they had.
fn write_holes(
    chain: &Chain,
    selection: &Selection,
    directory: &DataDirectory,
    interrupt: &Interrupt,
    changed: &mut Changed,
) -> Result<()> {
    // Most of those that are long are full segments, of one length.
    let mut last = (0, Crc32c(0));
    for place in selection.holes() {
        interrupt.check()?;
        let sources = chain.sources(place);
        let (file, path) = directory.create_file(sources.file.path)?;
        let size = sources.size();
        file.set_len(size)
            .map_err(|error| Error::io("write", &path, &error))?;
        if last.0 != size {
            last = (size, Crc32c(checksum_of_zeros(size)));
        }
        changed.insert(place, last);
    }
    Ok(())
}

/// The CRC-32C of so many bytes of zeros: twice as many come from two halves.
fn checksum_of_zeros(bytes: u64) -> u32 {
    let half = bytes / 2;
    match bytes {
        0 => 0,
        1 => crc32c::crc32c(&[0]),
        _ => {
            let first = checksum_of_zeros(half);
            let joined = crc32c::crc32c_combine(first, first, half as usize);
            match bytes % 2 {
                0 => joined,
                _ => crc32c::crc32c_append(joined, &[0]),
            }
        }
    }
}

/// `global/pg_control` as it is restored.
pub(crate) fn control_file(chain: &Chain) -> Result<Vec<u8>> {
    changed_content(chain, CONTROL_FILE, |mut content| {
        forbid_start_without_label(&mut content).map_err(|fault| fault.to_string())?;
        Ok(content)
    })
}

/// The line of `postgresql.conf` that sends a server to another data directory than the one that it was started with.
fn other_data_directory(content: &[u8]) -> Option<String> {
    let mut lines = content.split(|byte| *byte == b'\n');
    let line = lines.rfind(|line| is_setting(line, "data_directory"))?;
    Some(String::from_utf8_lossy(line).trim().to_owned())
}

/// What the backed up server was set to.
pub(crate) fn limits(chain: &Chain) -> Result<Limits> {
    let control = ControlFile::parse(&control_file(chain)?);
    let control = control.map_err(|fault| Error::damage(fault.to_string()).hint(VERIFY))?;
    Ok(control.limits)
}

/// `backup_label` as it is restored.
pub(crate) fn label_file(chain: &Chain) -> Result<Vec<u8>> {
    changed_content(chain, BACKUP_LABEL_FILE, |content| {
        let label = String::from_utf8(content).map_err(|error| error.to_string())?;
        Ok(without_incremental_from(&label).into_bytes())
    })
}

/// Whether a file is not written with the others.
pub(crate) fn is_special(sources: &Sources<'_>) -> bool {
    is_special_path(sources.file.path)
}

/// The same by its path.
pub(super) fn is_special_path(path: &str) -> bool {
    [CONTROL_FILE, BACKUP_LABEL_FILE].contains(&path) || LEFT_OUT.contains(&path)
}

struct Worker<'a> {
    chain: &'a Chain,
    directory: &'a DataDirectory,
    progress: &'a dyn Progress,
    part: Vec<u8>,
    rebuilder: Rebuilder,
    written: Written,
}

impl Worker<'_> {
    fn write(&mut self, portion: Portion<'_, (Member, u32)>, stop: &Stop<'_>) -> Result<()> {
        match portion {
            Portion::Alone(place) => {
                let sources = self.chain.sources(place);
                if is_special(&sources) {
                    Ok(())
                } else if sources.is_base() {
                    self.copy(&sources, stop)
                } else {
                    self.rebuild(place, &sources, None, stop)
                }
            }
            Portion::Bundle(bundle, files) => self.write_bundle(bundle, files, stop),
        }
    }

    fn write_bundle(
        &mut self,
        bundle: (Member, u32),
        files: &[u32],
        stop: &Stop<'_>,
    ) -> Result<()> {
        let files = self.wanted(files)?;
        if files.is_empty() {
            return Ok(());
        }
        visit_bundle(self.chain, bundle, &files, |place, sources, content| {
            stop.check()?;
            if !sources.is_base() {
                return self.rebuild(place, sources, Some(content), stop);
            }
            self.progress.advance(sources.base.size);
            if sources.file.path == SETTINGS_FILE {
                self.written.settings = content.to_owned();
                return Ok(());
            }
            if sources.file.path == CONFIGURATION_FILE {
                self.written.other_data_directory = other_data_directory(content);
            }
            let mut target = self.directory.target(sources.file.path)?;
            target.write(content)?;
            target.cut()
        })
    }

    /// Those files of a bundle for which it must be read.
    fn wanted<'f>(&mut self, files: &'f [u32]) -> Result<Cow<'f, [u32]>> {
        if !self.directory.was_there() {
            return Ok(files.into());
        }
        let mut wanted = Vec::new();
        for place in files {
            let sources = self.chain.sources(*place as usize);
            let is_read = [SETTINGS_FILE, CONFIGURATION_FILE].contains(&sources.file.path);
            if is_read || !self.is_there(&sources)? {
                wanted.push(*place);
            }
        }
        Ok(wanted.into())
    }

    /// Whether a file is there already as it is stored.
    fn is_there(&mut self, sources: &Sources<'_>) -> Result<bool> {
        let base = sources.base;
        let expected = (base.size, base.crc32c);
        let path = sources.file.path;
        let is_there = sources.is_base() && self.directory.holds(path, expected, &mut self.part)?;
        if is_there {
            self.progress.advance(base.size);
        }
        Ok(is_there)
    }

    /// Writes a file as it is stored.
    fn copy(&mut self, sources: &Sources<'_>, stop: &Stop<'_>) -> Result<()> {
        let (path, base) = (sources.file.path, sources.base);
        if path == SETTINGS_FILE {
            self.written.settings = changed_content(self.chain, path, Ok)?;
            return Ok(());
        }
        if path == CONFIGURATION_FILE {
            let content = changed_content(self.chain, path, Ok)?;
            self.written.other_data_directory = other_data_directory(&content);
        }
        if self.is_there(sources)? {
            return Ok(());
        }
        let stored = self.chain.stored(base.member, path);
        let mut target = self.directory.target(path)?;
        let progress = self.progress;
        let (mut size, mut crc32c) = (0, 0);
        read(&stored, &mut self.part, stop, |content| {
            size += content.len() as u64;
            crc32c = crc32c::crc32c_append(crc32c, content);
            target.write(content)?;
            progress.advance(content.len() as u64);
            Ok(())
        })?;
        target.cut()?;
        check(
            path,
            (size, Crc32c(crc32c)),
            (base.size, base.crc32c),
            &stored.path,
        )
    }

    /// Puts a file together from its layers and its base, which is `content` where that came from a bundle.
    fn rebuild(
        &mut self,
        place: usize,
        sources: &Sources<'_>,
        content: Option<&[u8]>,
        stop: &Stop<'_>,
    ) -> Result<()> {
        let (path, progress) = (sources.file.path, self.progress);
        let mut target = self.directory.target(path)?;
        let mut rebuild = self.rebuilder.begin(&mut target, sources.size())?;
        for layer in sources.layers {
            let segment_blocks = self.chain.info(layer.member).relation_segment_blocks;
            let incremental = incremental::file_path(path);
            let stored = self.chain.stored(layer.member, &incremental);
            let mut source = rebuild.layer(layer, segment_blocks, &stored.path);
            read(&stored, &mut self.part, stop, |content| {
                progress.advance(source.take(content)?);
                Ok(())
            })?;
            check(
                &incremental,
                source.finish(),
                (layer.size(), layer.crc32c),
                &stored.path,
            )?;
        }
        let base = sources.base;
        let stored = self.chain.stored(base.member, path);
        let mut source = rebuild.base(&base);
        match content {
            Some(content) => progress.advance(source.take(content)?),
            None => {
                read(&stored, &mut self.part, stop, |content| {
                    progress.advance(source.take(content)?);
                    Ok(())
                })?;
                check(
                    path,
                    source.finish(),
                    (base.size, base.crc32c),
                    &stored.path,
                )?;
            }
        }
        let (crc32c, zeros) = rebuild.finish()?;
        progress.advance(zeros);
        self.written.changed.insert(place, (sources.size(), crc32c));
        Ok(())
    }
}

/// Hands over the files that are taken from a bundle, each with its content there, which is checked.
pub(crate) fn visit_bundle<'a>(
    chain: &'a Chain,
    (member, number): (Member, u32),
    files: &[u32],
    mut visit: impl FnMut(usize, &Sources<'a>, &[u8]) -> Result<()>,
) -> Result<()> {
    let listed = &chain.newest.list.files;
    let stored = chain.bundle(member, number);
    let bundle = stored.read_whole()?;
    let mut left = files.len();
    visit_members(&stored.path, &bundle, |path, content| {
        // The others were dropped after they had been read, or a newer backup holds them.
        let found = files.binary_search_by(|place| listed.get(*place as usize).path.cmp(path));
        let Ok(found) = found else {
            return Ok(());
        };
        let place = files[found] as usize;
        let sources = chain.sources(place);
        let base = sources.base;
        let expected = (base.size, base.crc32c);
        check(path, checksum(content), expected, &stored.path)?;
        left -= 1;
        visit(place, &sources, content)
    })?;
    if left == 0 {
        Ok(())
    } else {
        let lacking = format!("{} lacks {left} of its files", stored.path);
        Err(Error::damage(lacking).hint(VERIFY))
    }
}

/// Reads the content of a stored file in parts.
fn read(
    stored: &Stored<'_>,
    part: &mut [u8],
    stop: &Stop<'_>,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut reader = stored.open()?;
    loop {
        stop.check()?;
        let filled = reader.fill(part)?;
        if filled == 0 {
            return Ok(());
        }
        take(&part[..filled])?;
    }
}

fn write_all(target: &mut File, content: &[u8], path: &Path) -> Result<()> {
    target
        .write_all(content)
        .map_err(|error| Error::io("write", path, &error))
}

/// What came out must be what went in: size and checksum.
pub(crate) fn check(
    path: &str,
    found: (u64, Crc32c),
    expected: (u64, Crc32c),
    stored: &Place,
) -> Result<()> {
    let damaged =
        |why: String| Error::damage(format!("{stored} is damaged: {path} {why}")).hint(VERIFY);
    if found.0 != expected.0 {
        return Err(damaged(format!(
            "has {} bytes in it, not {}",
            found.0, expected.0
        )));
    }
    if found.1 != expected.1 {
        return Err(damaged("does not fit its checksum".to_owned()));
    }
    Ok(())
}

/// A small file of the newest backup, changed by `change`.
fn changed_content(
    chain: &Chain,
    path: &str,
    change: impl FnOnce(Vec<u8>) -> std::result::Result<Vec<u8>, String>,
) -> Result<Vec<u8>> {
    let stored = chain.stored(Member::NEWEST, path);
    let backup = chain.newest.info.backup;
    let file = chain.newest.list.find(path);
    let file = file.ok_or_else(|| Error::damage(format!("backup {backup} lists no {path}")))?;
    let content = stored.read_whole()?;
    let expected = (file.size, file.crc32c);
    check(path, checksum(&content), expected, &stored.path)?;
    change(content).map_err(|why| Error::damage(format!("{}: {why}", stored.path)).hint(VERIFY))
}

/// Size and checksum of content.
pub(crate) fn checksum(content: &[u8]) -> (u64, Crc32c) {
    (content.len() as u64, Crc32c(crc32c::crc32c(content)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_zeros_is_that_of_as_many() {
        for bytes in [0, 1, 2, 3, 8192, 24_576, 1_000_001] {
            let zeros = vec![0; bytes];
            assert_eq!(checksum_of_zeros(bytes as u64), crc32c::crc32c(&zeros));
        }
    }
}
