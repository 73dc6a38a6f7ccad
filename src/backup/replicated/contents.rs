//! What is in the archives of a base backup.
//!
//! Tablespaces come first. The archive of the data directory begins with `backup_label` and `tablespace_map`, and
//! ends with `global/pg_control` and the WAL (backup/basebackup.c, perform_base_backup).

use std::collections::HashSet;
use std::io::Read;

use crate::backup::copy::{Job, Sent, Sorted, Sorting, arrived_damaged};
use crate::backup::end::End;
use crate::backup::replicated::skipped;
use crate::backup::wal::arriving::{ArrivedWal, ArrivingWal};
use crate::error::{Error, Result};
use crate::pg::control::{CONTROL_FILE, CONTROL_FILE_SIZE, ControlFault, ControlFile};
use crate::pg::exclusion::{Exclusion, wal_directories};
use crate::pg::label::{BACKUP_LABEL_FILE, BackupLabel};
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::relative_path::stays_inside;
use crate::pg::tablespace_map::TABLESPACE_MAP_FILE;
use crate::server::facts::Facts;
use crate::server::replication::{BaseBackup, Ending, Tablespace};
use crate::server::session::Stopped;

/// Labels and maps are a few lines; a map has one for each tablespace.
const TEXT_LIMIT: u64 = 64 << 20;

/// Sorts what comes.
pub(super) struct Contents<'a> {
    job: &'a Job<'a>,
    facts: &'a Facts,
    rules: &'a Exclusion,
    /// The databases that the catalog has, by their OIDs.
    databases: HashSet<u32>,
    tablespaces: Vec<Tablespace>,
    /// Where the backup begins, as the server said before it sent anything.
    start: (Lsn, Timeline),
    ending: Ending,
    directories: Vec<String>,
    /// The folder that was made last for files that are stored by themselves.
    last_folder: String,
    label: Option<String>,
    tablespace_map: String,
    control: Option<Vec<u8>>,
    wal: ArrivingWal<'a>,
    skipped: Option<String>,
    end: Option<(Lsn, Timeline)>,
}

/// All that came, but for what the workers stored.
pub(super) struct Arrived {
    /// Directories of PGDATA, parents first.
    pub(super) directories: Vec<String>,
    pub(super) control: Vec<u8>,
    /// A part of the cluster that the server left out.
    pub(super) skipped: Option<String>,
    pub(super) stopped: Stopped,
    pub(super) end: End,
    pub(super) wal: ArrivedWal,
}

impl<'a> Contents<'a> {
    /// Of a backup that begins.
    pub(super) fn new(
        job: &'a Job<'a>,
        facts: &'a Facts,
        rules: &'a Exclusion,
        databases: HashSet<u32>,
        backup: &BaseBackup,
    ) -> Result<Contents<'a>> {
        let (start, timeline) = backup.start();
        let wal_directories = wal_directories(facts.version.major).iter();
        let mut contents = Contents {
            job,
            facts,
            rules,
            databases,
            tablespaces: backup.tablespaces().to_vec(),
            start: (start, timeline),
            ending: backup.ending(),
            directories: Vec::new(),
            last_folder: String::new(),
            label: None,
            tablespace_map: String::new(),
            control: None,
            wal: ArrivingWal::new(job.request, facts, job.folder, &job.rate, start, timeline)?,
            skipped: None,
            end: None,
        };
        for directory in wal_directories {
            contents.directory(directory)?;
        }
        for tablespace in backup.tablespaces() {
            contents.directory(&format!("pg_tblspc/{}", tablespace.oid))?;
        }
        Ok(contents)
    }

    /// Whether a path is in a tablespace that lies in the data directory, which the server copies twice where it was made by another
    /// name of that.
    fn is_of_tablespace(&self, path: &str) -> bool {
        let mut folders = path.match_indices(self.rules.tablespace_directory());
        let Some((version_directory, _)) = folders.next() else {
            return false;
        };
        let location = path[..version_directory].trim_end_matches('/');
        let mut tablespaces = self.tablespaces.iter();
        !path.starts_with("pg_tblspc/")
            && !location.is_empty()
            && tablespaces.any(|tablespace| tablespace.location.ends_with(location))
    }

    fn directory(&mut self, path: &str) -> Result<()> {
        self.directories.push(path.to_owned());
        match self.job.is_plain() {
            true => self.job.create_folder(path),
            false => Ok(()),
        }
    }

    /// The place of a file that is stored.
    fn file(&mut self, path: &str, entry: Sent<'_>) -> Result<usize> {
        let place = self.place(path, entry);
        let (folder, _) = path.rsplit_once('/').unwrap_or_default();
        let is_bundled = self.job.is_bundled(self.job.plan.files.get(place));
        if !is_bundled && folder != self.last_folder {
            self.job.create_folder(folder)?;
            folder.clone_into(&mut self.last_folder);
        }
        Ok(place)
    }

    fn place(&self, path: &str, entry: Sent<'_>) -> usize {
        self.job.plan.files.arrive(path, entry.size, entry.modified)
    }

    /// All of it, once the stream is at its end.
    pub(super) fn finish(mut self) -> Result<Arrived> {
        let missing = |what: &str| {
            Error::server(format!("the server's base backup has no {what}"))
                .hint("start the backup again; if it happens again, look into the server's log")
        };
        let (lsn, timeline) = self.end.ok_or_else(|| missing("end"))?;
        let end = End { lsn, timeline };
        let label_file = self.label.ok_or_else(|| missing(BACKUP_LABEL_FILE))?;
        let label = BackupLabel::parse(&label_file)
            .map_err(|error| error.context("the server's base backup"))?;
        if (label.start_lsn, label.start_timeline) != self.start || label.from_standby {
            return Err(Error::server(format!(
                "the label of the server's base backup is of one from {}, and it began at {}",
                label.start_lsn, self.start.0
            )));
        }
        let control = self.control.ok_or_else(|| missing(CONTROL_FILE))?;
        check_control(&control, self.facts)?;
        self.directories.sort_unstable();
        self.directories.dedup();
        Ok(Arrived {
            directories: self.directories,
            control,
            skipped: self.skipped,
            stopped: Stopped {
                lsn,
                applied: None,
                label,
                label_file,
                tablespace_map: self.tablespace_map,
            },
            end,
            wal: self.wal.finish(end)?,
        })
    }
}

impl Sorting for Contents<'_> {
    fn sort(&mut self, entry: Sent<'_>, content: &mut dyn Read) -> Result<Sorted> {
        let Some(path) = entry.path else {
            let name = entry.name.escape_ascii();
            log::warn!("left out of the backup: {name}: its name is not UTF-8");
            return Ok(Sorted::PassedOver);
        };
        if !stays_inside(path) {
            return Err(Error::server(format!(
                "the server sends a file under an impossible name: {path}"
            )));
        }
        if self.is_of_tablespace(path) {
            return Ok(Sorted::PassedOver);
        }
        if entry.is_directory {
            if self.rules.keeps_directory(path) {
                self.directory(path)?;
            }
            return Ok(Sorted::PassedOver);
        }
        if !entry.is_file {
            return Ok(Sorted::PassedOver);
        }
        if let Some(name) = path.strip_prefix("pg_wal/") {
            let is_over = || self.ending.is_ended();
            self.wal.take(name, content, &is_over)?;
            return Ok(Sorted::PassedOver);
        }
        match path {
            BACKUP_LABEL_FILE => self.label = Some(text(path, content)?),
            TABLESPACE_MAP_FILE => self.tablespace_map = text(path, content)?,
            CONTROL_FILE => self.control = Some(whole(content, CONTROL_FILE_SIZE as u64)?),
            _ if self.rules.keeps_file(path) => return Ok(Sorted::Stored(self.file(path, entry)?)),
            _ => return Ok(Sorted::PassedOver),
        }
        Ok(Sorted::Taken(self.place(path, entry)))
    }

    fn end(&mut self, stream: BaseBackup) -> Result<()> {
        let Contents {
            rules,
            databases,
            tablespaces,
            ..
        } = self;
        let warnings = stream.warnings()?;
        for file in skipped::configuration(warnings) {
            log::warn!(
                "{file} is not in this backup: it is a symbolic link, which the server leaves out; put one where the cluster is restored to before you start it"
            );
        }
        self.skipped = skipped::needed(warnings, tablespaces, databases, rules);
        self.end = Some(stream.finish()?);
        Ok(())
    }
}

fn whole(content: &mut dyn Read, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut content = content.take(limit);
    content.read_to_end(&mut bytes).map_err(arrived_damaged)?;
    Ok(bytes)
}

fn text(path: &str, content: &mut dyn Read) -> Result<String> {
    String::from_utf8(whole(content, TEXT_LIMIT)?).map_err(|_| {
        Error::server(format!("the server's {path} is not UTF-8"))
            .hint("rename the folder of the tablespace that is named in it; pgkeep notes the names of files in UTF-8")
    })
}

/// The server writes it in place, and sends it as it happens to read it.
fn check_control(bytes: &[u8], facts: &Facts) -> Result<()> {
    match ControlFile::parse(bytes) {
        Ok(control) if control.system_identifier == facts.control.system_identifier => Ok(()),
        Ok(_) => Err(Error::server(
            "the base backup is of another cluster than the sessions are with",
        )
        .hint("connect to the server itself, not through a load balancer")),
        Err(fault @ ControlFault::Checksum { .. }) => Err(Error::server(format!(
            "{CONTROL_FILE} was being written when the server sent it: {fault}"
        ))
        .momentary()),
        Err(fault) => Err(Error::damage(format!("{CONTROL_FILE} of the server: {fault}"))
            .hint("the cluster itself is damaged; pg_controldata shows what the server can read of it")),
    }
}
