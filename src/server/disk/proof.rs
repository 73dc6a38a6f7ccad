//! Whether a folder of this machine is the data directory of the server that the sessions are with.
//!
//! A container or a snapshot has a folder of the same path, with the same system identifier and the same
//! `postmaster.pid`. So the server is made to leave a [witness](crate::server::witness) there. And what is mounted over a
//! folder of the data directory, for the server or for this process alone, shows in that folder's times.

use std::fs::{self, File};
use std::path::PathBuf;

use postgres::types::{ToSql, Type};
use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use super::DataDirectory;
use crate::error::{Error, Result};
use crate::pg::control::{CONTROL_FILE, CONTROL_FILE_SIZE, ControlFault, ControlFile};
use crate::pg::version::Major;
use crate::server::conflict;
use crate::server::connect::{Connector, server_error};
use crate::server::disk::Opened;
use crate::server::reading::{CONTROL_FILE_PAUSE, FileReader, FileState};
use crate::server::text::ServerText;
use crate::server::witness;

/// Why a server's files cannot be read from its disk.
pub(in crate::server) struct Reason(pub(in crate::server) String);

type Proven<T> = std::result::Result<T, Reason>;

/// Folders of every cluster.
const FOLDERS: [&str; 16] = [
    ".",
    "base",
    "global",
    "pg_commit_ts",
    "pg_logical",
    "pg_logical/mappings",
    "pg_logical/snapshots",
    "pg_multixact",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "pg_replslot",
    "pg_stat",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_xact",
];

/// These, and those of databases and tablespaces. What else there may be need not have a name in UTF-8.
const THEIRS: &str = "\
WITH tablespaces AS (SELECT 'pg_tblspc/' || oid || '/' || $2 AS path FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global'))
SELECT path, s.size, floor(extract(epoch FROM s.modification))::int8, floor(extract(epoch FROM s.change))::int8
  FROM (SELECT unnest($1) AS path
        UNION ALL SELECT 'base/' || oid FROM pg_database
        UNION ALL SELECT path FROM tablespaces
        UNION ALL SELECT path || '/' || d.oid FROM tablespaces, pg_database AS d) AS folders,
       pg_stat_file(path, true) AS s";

/// Whom a role may not ask for the setting, its session's own folder tells.
const WHEREABOUTS: &str = "\
SELECT CASE WHEN pg_has_role(current_user, 'pg_read_all_settings', 'USAGE') THEN current_setting('data_directory') END,
       pg_backend_pid(), (SELECT system_identifier FROM pg_control_system())";

/// What the server says of its own data directory.
struct Whereabouts {
    path: PathBuf,
    system_identifier: u64,
}

impl DataDirectory {
    /// The data directory of a server that runs on this machine, if it can be read here; or why not.
    pub(in crate::server) fn prove(
        major: Major,
        connector: &Connector,
        reader: &mut FileReader,
    ) -> Result<Proven<DataDirectory>> {
        let whereabouts = match ask(reader)? {
            Ok(whereabouts) => whereabouts,
            Err(reason) => return Ok(Err(reason)),
        };
        let shown = whereabouts.path.display().to_string();
        let directory = match DataDirectory::open(&whereabouts.path) {
            Ok(directory) => directory,
            Err(error) => {
                let error = Error::io("open", &whereabouts.path, &error);
                return Ok(Err(Reason(format!("this account {}", error.message()))));
            }
        };
        if !connector.is_by_socket() && directory.is_shared()? {
            return Ok(Err(Reason(format!(
                "{shown} is on a network file system, and the server may be elsewhere"
            ))));
        }
        if let Err(reason) = directory.is_of(whereabouts.system_identifier)? {
            return Ok(Err(reason));
        }
        if let Err(reason) = directory.shows_slot(reader)? {
            return Ok(Err(reason));
        }
        Ok(directory
            .has_the_servers_folders(reader, major)?
            .map(|()| directory))
    }

    /// Whether a cluster of that identity lies there, as far as it can be read.
    fn is_of(&self, system_identifier: u64) -> Result<Proven<()>> {
        const LOOKS: u32 = 20;
        let shown = self.path.display();
        for _ in 0..LOOKS {
            let Opened::File(file) = self.file(CONTROL_FILE)? else {
                return Ok(Err(Reason(format!(
                    "this account cannot read {shown}/{CONTROL_FILE}"
                ))));
            };
            let mut bytes = Vec::new();
            self.append(file, CONTROL_FILE, 0, CONTROL_FILE_SIZE as u64, &mut bytes)?;
            match ControlFile::parse(&bytes) {
                Ok(control) if control.system_identifier == system_identifier => return Ok(Ok(())),
                Ok(_) => {
                    return Ok(Err(Reason(format!(
                        "{shown} on this machine is another cluster"
                    ))));
                }
                // It is just being written.
                Err(ControlFault::Checksum { .. }) => std::thread::sleep(CONTROL_FILE_PAUSE),
                Err(fault) => return Ok(Err(Reason(format!("{shown}/{CONTROL_FILE}: {fault}")))),
            }
        }
        Ok(Err(Reason(format!(
            "{shown}/{CONTROL_FILE} has a wrong checksum"
        ))))
    }

    /// Whether a slot that the server makes now appears there.
    fn shows_slot(&self, reader: &mut FileReader) -> Result<Proven<()>> {
        let seen = witness::ask(reader.client(), |name| {
            let folder = format!("pg_replslot/{name}");
            Ok(statat(&self.folder, folder, AtFlags::SYMLINK_NOFOLLOW).is_ok())
        })?;
        Ok(match seen {
            Some(true) => Ok(()),
            Some(false) => Err(Reason(format!(
                "{} on this machine is not the folder that the server works in",
                self.path.display()
            ))),
            None => Err(Reason(
                "the server has no replication slot left to prove its data directory with"
                    .to_owned(),
            )),
        })
    }

    /// Whether all folders are the same for this process as for the server, which may see other disks: behind links to the WAL
    /// and to tablespaces, and where anything is mounted over a folder.
    fn has_the_servers_folders(&self, reader: &mut FileReader, major: Major) -> Result<Proven<()>> {
        let failed = |error| server_error("compare the server's folders", &error);
        let directory = major.tablespace_directory();
        let parameters: [(&(dyn ToSql + Sync), Type); 2] = [
            (&FOLDERS.as_slice(), Type::TEXT_ARRAY),
            (&directory, Type::TEXT),
        ];
        let rows = conflict::repeated(|| reader.client().query_typed(THEIRS, &parameters));
        for row in rows.map_err(failed)? {
            let path: String = row.try_get(0).map_err(failed)?;
            let theirs = FileState::of_row(&row, 1).map_err(failed)?;
            match self.state(&path) {
                Ok(ours) if ours == theirs => {}
                Err(Errno::ACCESS | Errno::PERM) => {
                    return Ok(Err(Reason(format!(
                        "this account cannot read {}",
                        self.path.join(path).display()
                    ))));
                }
                // What is made or removed in there meanwhile changes it.
                _ if self.is_the_same(&path, reader)? => {}
                _ => {
                    return Ok(Err(Reason(format!(
                        "{} is another folder here than for the server",
                        self.path.join(path).display()
                    ))));
                }
            }
        }
        Ok(Ok(()))
    }

    /// How a folder is that can be listed; nothing where there is none.
    fn state(&self, path: &str) -> Result<Option<FileState>, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match openat(&self.folder, path, flags, Mode::empty()) {
            Ok(folder) => {
                let metadata = File::from(folder).metadata();
                let metadata =
                    metadata.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
                Ok(Some(FileState::of(&metadata)))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a path leads this process where it leads the server, as far as sizes and times tell.
    pub(super) fn is_the_same(&self, path: &str, reader: &mut FileReader) -> Result<bool> {
        // What is made or removed there meanwhile changes them.
        const LOOKS: u32 = 10;
        for _ in 0..LOOKS {
            let here = || {
                let metadata = fs::metadata(self.path.join(path)).ok()?;
                Some(FileState::of(&metadata))
            };
            let before = here();
            let theirs = reader.state(path)?;
            if before == theirs {
                return Ok(true);
            }
            if before == here() {
                return Ok(false);
            }
        }
        Ok(false)
    }
}

fn ask(reader: &mut FileReader) -> Result<Proven<Whereabouts>> {
    let failed = |error| server_error("ask for the server's data directory", &error);
    let row =
        conflict::repeated(|| reader.client().query_typed_one(WHEREABOUTS, &[])).map_err(failed)?;
    let setting: Option<ServerText> = row.try_get(0).map_err(failed)?;
    let process: i32 = row.try_get(1).map_err(failed)?;
    let system_identifier: i64 = row.try_get(2).map_err(failed)?;
    let path = match setting {
        Some(setting) => setting.utf8().ok().map(PathBuf::from),
        None => fs::read_link(format!("/proc/{process}/cwd")).ok(),
    };
    Ok(match path {
        Some(path) => Ok(Whereabouts {
            path,
            system_identifier: system_identifier as u64,
        }),
        None => Err(Reason(
            "the role may not ask where the data directory is (GRANT pg_read_all_settings)"
                .to_owned(),
        )),
    })
}
