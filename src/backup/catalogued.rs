//! What the server's catalog has all the while must be in the backup.
//!
//! A tablespace whose disk is not mounted, or whose link leads nowhere, looks as if it had been dropped: its
//! files are not listed, or vanish while they are copied, and the server itself need not notice before somebody asks for them.

use std::collections::HashSet;
use std::time::Instant;

use postgres::Client;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::server::facts::{self, Database, TablespaceLocation};

/// Tablespaces and databases at one moment.
pub(super) struct Catalogued {
    tablespaces: Vec<TablespaceLocation>,
    databases: Vec<Database>,
}

impl Catalogued {
    pub(super) fn read(client: &mut Client) -> Result<Catalogued> {
        Ok(Catalogued {
            tablespaces: facts::tablespaces(client)?,
            databases: facts::databases(client)?,
        })
    }

    pub(super) fn tablespaces(&self) -> &[TablespaceLocation] {
        &self.tablespaces
    }

    /// The OIDs of the databases.
    pub(super) fn database_oids(&self) -> HashSet<u32> {
        self.databases.iter().map(|database| database.oid).collect()
    }

    /// The name of the database with an OID.
    pub(super) fn database_name(&self, oid: u32) -> Option<&str> {
        let mut databases = self.databases.iter();
        let found = databases.find(|database| database.oid == oid)?;
        Some(&found.name)
    }

    /// What was there before and is there still must be among the files of the backup. Gives what is there now. `exists` tells whether
    /// a path leads to anything.
    pub(super) fn expect_in<'a>(
        &self,
        files: impl Iterator<Item = &'a str>,
        tablespace_directory: &str,
        client: &mut Client,
        mut exists: impl FnMut(&str) -> Result<bool>,
        interrupt: &Interrupt,
    ) -> Result<Catalogued> {
        let versions: HashSet<&str> = files.filter(|path| path.ends_with("/PG_VERSION")).collect();
        let give_up = Instant::now() + facts::DROPPED_WITHIN;
        loop {
            let later = Catalogued::read(client)?;
            match self.missing(&later, &versions, tablespace_directory, &mut exists)? {
                None => return Ok(later),
                Some(missing) if Instant::now() > give_up => return Err(missing),
                Some(_) => interrupt.check()?,
            }
            std::thread::sleep(facts::PAUSE);
        }
    }

    fn missing(
        &self,
        later: &Catalogued,
        versions: &HashSet<&str>,
        tablespace_directory: &str,
        exists: &mut impl FnMut(&str) -> Result<bool>,
    ) -> Result<Option<Error>> {
        for tablespace in &self.tablespaces {
            let path = format!("pg_tblspc/{}/{tablespace_directory}", tablespace.oid);
            if later.tablespaces.contains(tablespace) && !exists(&path)? {
                let missing = Error::server(format!(
                    "the folder of tablespace {} is missing on the server: {}/{tablespace_directory}",
                    tablespace.name, tablespace.location
                ))
                .hint(format!(
                    "mount its disk, or mend the link pg_tblspc/{} in the data directory; a backup would lack all that is in it",
                    tablespace.oid
                ));
                return Ok(Some(missing));
            }
        }
        for database in &self.databases {
            let folder = database.folder(tablespace_directory);
            if later.databases.contains(database)
                && !versions.contains(format!("{folder}/PG_VERSION").as_str())
            {
                let version = format!("{folder}/PG_VERSION");
                let missing = match exists(&version)? {
                    false => Error::server(format!(
                        "the server's folder of database {} has no PG_VERSION: {folder}",
                        database.name
                    ))
                    .hint(
                        "nobody can connect to it either: drop the database, or bring its folder back",
                    ),
                    true => Error::server(format!(
                        "database {} was moved away and back while its files were read: {folder}",
                        database.name
                    ))
                    .momentary(),
                };
                return Ok(Some(missing));
            }
        }
        Ok(None)
    }
}
