//! What kind of server it is.

use std::time::{Duration, Instant};

use postgres::Client;
use postgres::error::SqlState;

use crate::error::{Error, Result};
use crate::pg::control::ControlFile;
use crate::pg::segment::SegmentSize;
use crate::pg::version::{Major, Version};
use crate::server::conflict;
use crate::server::connect::server_error;
use crate::server::reading::FileReader;
use crate::server::text::ServerText;

/// What a backup must know of a server before it starts.
#[derive(Debug, Clone)]
pub struct Facts {
    /// PostgreSQL's version.
    pub version: Version,
    /// What its control file says of the cluster.
    pub control: Identity,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// `wal_level`.
    pub wal_level: String,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
    /// Whether the data directory is open to its group.
    pub group_access: bool,
    /// Where it is on the server.
    pub data_directory: Option<String>,
    /// Where the server writes its log: relative to PGDATA, or absolute.
    pub log_directory: String,
    /// Configuration files outside the data directory.
    pub configuration_files: Vec<String>,
    /// The tablespaces, the default ones aside.
    pub tablespaces: Vec<TablespaceLocation>,
}

/// What the control file says of a cluster that stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Tells the cluster and its copies from all others.
    pub system_identifier: u64,
    /// The format of the control file.
    pub control_version: u32,
    /// The format of the system catalogs.
    pub catalog_version: u32,
    /// Bytes in a page of a relation.
    pub block_size: u32,
    /// Pages in a segment of a relation.
    pub relation_segment_blocks: u32,
    /// Bytes in a segment of WAL.
    pub wal_segment_size: SegmentSize,
}

impl From<&ControlFile> for Identity {
    fn from(control: &ControlFile) -> Identity {
        Identity {
            system_identifier: control.system_identifier,
            control_version: control.control_version,
            catalog_version: control.catalog_version,
            block_size: control.block_size,
            relation_segment_blocks: control.relation_segment_blocks,
            wal_segment_size: control.wal_segment_size,
        }
    }
}

/// Anybody may ask for these, of 15 to 18 (catalog/pg_proc.dat; nothing of it is revoked in
/// catalog/system_functions.sql).
const IDENTITY: &str = "\
SELECT system_identifier, pg_control_version, catalog_version_no,
       database_block_size, blocks_per_segment, bytes_per_wal_segment
  FROM pg_control_system(), pg_control_init()";

impl Identity {
    /// By SQL, for a role that may read no files.
    fn ask(client: &mut Client) -> Result<Identity> {
        let failed = |error| server_error("ask what the control file says", &error);
        let row = conflict::repeated(|| client.query_typed_one(IDENTITY, &[])).map_err(failed)?;
        // SQL has no unsigned integers.
        let number = |column: usize| row.try_get(column).map(i32::cast_unsigned);
        let segment_size = number(5).map_err(failed)?;
        Ok(Identity {
            system_identifier: row.try_get(0).map(i64::cast_unsigned).map_err(failed)?,
            control_version: number(1).map_err(failed)?,
            catalog_version: number(2).map_err(failed)?,
            block_size: number(3).map_err(failed)?,
            relation_segment_blocks: number(4).map_err(failed)?,
            wal_segment_size: SegmentSize::new(u64::from(segment_size)).ok_or_else(|| {
                Error::server(format!(
                    "the server has WAL segments of {segment_size} bytes, which PostgreSQL never has"
                ))
            })?,
        })
    }
}

/// A tablespace on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceLocation {
    /// Its OID, the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Its name in SQL.
    pub name: String,
    /// Where it is; relative to PGDATA for a tablespace in place.
    pub location: String,
}

impl TablespaceLocation {
    /// Whether it is a folder in `pg_tblspc` itself, not a link.
    pub fn is_in_place(&self) -> bool {
        !self.location.starts_with('/')
    }
}

const VERSION: &str = "SELECT current_setting('server_version_num')::int4";

/// The server's version, or why it will not do.
pub fn version(client: &mut Client) -> Result<Version> {
    let number: i32 = conflict::repeated(|| client.query_typed_one(VERSION, &[]))
        .and_then(|row| row.try_get(0))
        .map_err(|error| server_error("ask for the server's version", &error))?;
    u32::try_from(number)
        .ok()
        .and_then(Version::from_server_version_num)
        .ok_or_else(|| {
            Error::server(format!(
                "the server is PostgreSQL {}, and pgkeep backs up PostgreSQL {} to {}",
                number / 10_000,
                Major::V14.number(),
                Major::V18.number()
            ))
        })
}

const SETTINGS: &str = "\
SELECT pg_is_in_recovery(),
       current_setting('wal_level'),
       current_setting('data_checksums') = 'on',
       current_setting('data_directory_mode') IN ('0750', '750'),
       CASE WHEN reads_settings THEN current_setting('data_directory') END,
       CASE WHEN reads_settings THEN current_setting('log_directory') END,
       CASE WHEN reads_settings
            THEN ARRAY[current_setting('config_file'), current_setting('hba_file'), current_setting('ident_file')]
            ELSE ARRAY[]::text[] END
  FROM (SELECT pg_has_role(current_user, 'pg_read_all_settings', 'USAGE') AS reads_settings) AS role";

/// PostgreSQL's own default, for a role that may not ask.
const DEFAULT_LOG_DIRECTORY: &str = "log";

impl Facts {
    /// Asks the server.
    pub fn read(client: &mut Client, reader: &mut FileReader) -> Result<Facts> {
        let (_, control) = reader.read_control_file()?;
        Facts::of(client, Identity::from(&control), || {
            data_directory_by_pid_file(reader)
        })
    }

    /// Asks the server as a role that may read no files.
    pub fn without_files(client: &mut Client) -> Result<Facts> {
        let control = Identity::ask(client)?;
        Facts::of(client, control, || Ok(None))
    }

    /// Asks for the rest. Whoever may not ask where the data directory is may know it otherwise.
    fn of(
        client: &mut Client,
        control: Identity,
        data_directory: impl FnOnce() -> Result<Option<String>>,
    ) -> Result<Facts> {
        let version = version(client)?;
        let row = conflict::repeated(|| client.query_typed_one(SETTINGS, &[]))
            .map_err(|error| server_error("ask for the server's settings", &error))?;
        let read = |error| server_error("ask for the server's settings", &error);
        let data_directory = match row.try_get::<_, Option<ServerText>>(4).map_err(read)? {
            Some(directory) => Some(named_in_utf8("its data directory", directory)?),
            None => data_directory()?,
        };
        let files: Vec<ServerText> = row.try_get(6).map_err(read)?;
        let files = files
            .into_iter()
            .map(|file| named_in_utf8("a configuration file", file))
            .collect::<Result<Vec<String>>>()?;
        Ok(Facts {
            version,
            control,
            in_recovery: row.try_get(0).map_err(read)?,
            wal_level: row.try_get(1).map_err(read)?,
            data_checksums: row.try_get(2).map_err(read)?,
            group_access: row.try_get(3).map_err(read)?,
            log_directory: row
                .try_get::<_, Option<ServerText>>(5)
                .map_err(read)?
                .map_or_else(|| DEFAULT_LOG_DIRECTORY.to_owned(), |path| path.to_string()),
            configuration_files: outside(files, data_directory.as_deref()),
            data_directory,
            tablespaces: tablespaces(client)?,
        })
    }
}

/// A path that a backup must know, and can note in UTF-8 alone.
fn named_in_utf8(what: &str, path: ServerText) -> Result<String> {
    path.utf8().map_err(|path| {
        Error::server(format!(
            "the server has {what} under a name that is not UTF-8: {path}"
        ))
        .hint("rename it on the server; pgkeep notes the names of files in UTF-8")
    })
}

/// `postmaster.pid` has the data directory in its second line
/// (utils/pidfile.h), for a role that may not read the setting.
fn data_directory_by_pid_file(reader: &mut FileReader) -> Result<Option<String>> {
    let content = reader.read_small_file("postmaster.pid", 8192)?;
    Ok(content.and_then(|content| {
        let text = String::from_utf8(content).ok()?;
        text.lines().nth(1).map(str::to_owned)
    }))
}

fn outside(files: Vec<String>, data_directory: Option<&str>) -> Vec<String> {
    let Some(data_directory) = data_directory else {
        return Vec::new();
    };
    let inside = format!("{}/", data_directory.trim_end_matches('/'));
    files
        .into_iter()
        .filter(|file| file.starts_with('/') && !file.starts_with(&inside))
        .collect()
}

/// How long what is being dropped may stay in the catalog: its folder, and the link to that, go before the transaction is
/// committed (commands/tablespace.c, DropTableSpace; commands/dbcommands.c, dropdb).
pub const DROPPED_WITHIN: Duration = Duration::from_secs(10);

/// Between two looks at it.
pub const PAUSE: Duration = Duration::from_millis(200);

const TABLESPACES: &str = "\
SELECT oid, spcname::text, pg_tablespace_location(oid) FROM pg_tablespace
 WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid";

/// The tablespaces as they are now, the default ones aside.
pub fn tablespaces(client: &mut Client) -> Result<Vec<TablespaceLocation>> {
    let give_up = Instant::now() + DROPPED_WITHIN;
    let rows = loop {
        match conflict::repeated(|| client.query_typed(TABLESPACES, &[])) {
            Err(error)
                if error.code() == Some(&SqlState::UNDEFINED_FILE) && Instant::now() < give_up =>
            {
                std::thread::sleep(PAUSE);
            }
            rows => break rows.map_err(|error| server_error("list the tablespaces", &error))?,
        }
    };
    let read = |error| server_error("list the tablespaces", &error);
    rows.iter()
        .map(|row| {
            let name = row.try_get::<_, ServerText>(1).map_err(read)?.to_string();
            let location: ServerText = row.try_get(2).map_err(read)?;
            Ok(TablespaceLocation {
                oid: row.try_get(0).map_err(read)?,
                location: named_in_utf8(&format!("the folder of tablespace {name}"), location)?,
                name,
            })
        })
        .collect()
}

/// A database, and where its own folder is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Its OID, the name of its folder in every tablespace.
    pub oid: u32,
    tablespace: u32,
    /// Its name.
    pub name: String,
}

/// pg_default, which is the folder `base` (catalog/pg_tablespace.dat).
const DEFAULT_TABLESPACE: u32 = 1663;

impl Database {
    /// Its folder, relative to PGDATA.
    pub fn folder(&self, tablespace_directory: &str) -> String {
        let Database {
            oid, tablespace, ..
        } = self;
        match *tablespace {
            DEFAULT_TABLESPACE => format!("base/{oid}"),
            _ => format!("pg_tblspc/{tablespace}/{tablespace_directory}/{oid}"),
        }
    }
}

/// One that could not be dropped whole is invalid, and may lack files (catalog/pg_database.h,
/// DATCONNLIMIT_INVALID_DB).
const DATABASES: &str = "\
SELECT oid, dattablespace, datname::text FROM pg_database WHERE datconnlimit <> -2 ORDER BY oid";

/// The databases as they are now.
pub fn databases(client: &mut Client) -> Result<Vec<Database>> {
    let rows = conflict::repeated(|| client.query_typed(DATABASES, &[]))
        .map_err(|error| server_error("list the databases", &error))?;
    rows.iter()
        .map(|row| {
            Ok(Database {
                oid: row.try_get(0)?,
                tablespace: row.try_get(1)?,
                name: row.try_get::<_, ServerText>(2)?.to_string(),
            })
        })
        .collect::<std::result::Result<_, postgres::Error>>()
        .map_err(|error| server_error("list the databases", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_files_in_the_data_directory_are_not_taken_twice() {
        let files = || {
            vec![
                "/etc/pg/postgresql.conf".to_owned(),
                "/data/pg_hba.conf".to_owned(),
                "/data2/x".to_owned(),
            ]
        };
        assert_eq!(
            outside(files(), Some("/data/")),
            ["/etc/pg/postgresql.conf", "/data2/x"]
        );
        assert!(outside(files(), None).is_empty());
    }
}
