//! Every row of every database, read once.

use std::io::Read;
use std::sync::{Mutex, PoisonError};

use postgres::Client;
use postgres_protocol::escape::escape_identifier;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::parallel::{self, Stop};
use crate::private_server::PrivateServer;
use crate::progress::Progress;
use crate::server::connect::server_error;
use crate::verify::drill::Held;

/// Of databases whose DROP DATABASE was cut short nothing is left to read (datconnlimit = -2,
/// DATCONNLIMIT_INVALID_DB in catalog/pg_database.h).
const DATABASES: &str = "SELECT datname FROM pg_database WHERE datconnlimit <> -2 ORDER BY oid";

/// Gives databases whose names are not ASCII such as can be connected to: nobody knows the encoding of their own, and what is
/// not valid in that of this database cannot even be sent. The cluster is about to be thrown away.
const RENAME: &str = r#"
    DO $$
    DECLARE
      one record;
      is_ascii boolean;
    BEGIN
      FOR one IN SELECT oid, datname FROM pg_database WHERE datconnlimit <> -2 LOOP
        BEGIN
          is_ascii := one.datname::text COLLATE "C" ~ '^[ -~]*$';
        EXCEPTION WHEN OTHERS THEN
          is_ascii := false;
        END;
        IF NOT is_ascii THEN
          EXECUTE format('ALTER DATABASE %I RENAME TO %I', one.datname, 'with OID ' || one.oid);
        END IF;
      END LOOP;
    END $$"#;

/// What has rows of its own, the largest first. Temporary relations are gone with their sessions.
const RELATIONS: &str = "
    SELECT format('%I.%I', n.nspname, c.relname), pg_relation_size(c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm', 'S') AND c.relpersistence <> 't' AND c.relispopulated
    ORDER BY 2 DESC";

/// Bytes of rows that are taken at a time.
const PART_BYTES: usize = 64 << 10;

/// How many problems are noted; where there are more, the first will do.
const NOTED: usize = 20;

struct Relation {
    /// Quoted as SQL wants it.
    name: String,
    bytes: u64,
}

/// Reads all; what cannot be read is noted. An error where nothing more can be said, such as an interrupt.
pub(super) fn read_all(
    server: &PrivateServer,
    superuser: &str,
    workers: usize,
    held: &mut Held,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<()> {
    let databases = match open_databases(server, superuser, interrupt) {
        Ok(databases) => databases,
        Err(error) => {
            interrupt.check()?;
            held.problems.push(error.message().to_owned());
            return Ok(());
        }
    };
    for database in &databases {
        let read = read_database(server, database, superuser, workers, progress, interrupt);
        interrupt.check()?;
        held.databases += 1;
        match read {
            Ok((relations, problems)) => {
                held.relations += relations;
                held.problems.extend(problems);
            }
            Err(error) => held
                .problems
                .push(format!("database {database}: {}", error.message())),
        }
        if held.problems.len() >= NOTED {
            break;
        }
    }
    Ok(())
}

/// All databases, those opened to connections too that are closed to them, such as template0.
fn open_databases(
    server: &PrivateServer,
    superuser: &str,
    interrupt: &Interrupt,
) -> Result<Vec<String>> {
    let failed = |error: &postgres::Error| server_error("list the databases", error);
    let mut client = server.connect("template1", superuser, interrupt)?;
    client
        .batch_execute(RENAME)
        .map_err(|error| failed(&error))?;
    let rows = client
        .query(DATABASES, &[])
        .map_err(|error| failed(&error))?;
    let databases = rows
        .iter()
        .map(|row| row.try_get(0))
        .collect::<std::result::Result<Vec<String>, _>>()
        .map_err(|error| failed(&error))?;
    for database in &databases {
        let open = format!(
            "ALTER DATABASE {} ALLOW_CONNECTIONS true",
            escape_identifier(database)
        );
        client
            .batch_execute(&open)
            .map_err(|error| failed(&error))?;
    }
    Ok(databases)
}

/// Returns how many relations were read, and what was wrong.
fn read_database(
    server: &PrivateServer,
    database: &str,
    superuser: &str,
    workers: usize,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<(u64, Vec<String>)> {
    let mut sessions = (0..workers)
        .map(|_| server.connect(database, superuser, interrupt))
        .collect::<Result<Vec<Client>>>()?;
    let relations =
        relations(&mut sessions[0]).map_err(|error| server_error("list the tables", &error))?;
    let bytes = relations.iter().map(|relation| relation.bytes).sum();
    progress.step(&format!("read {database}"), Some(bytes));
    let problems = Mutex::new(Vec::new());
    parallel::run(
        &mut sessions,
        &relations,
        interrupt,
        |client, relation, stop| {
            if let Err(problem) = read_relation(client, relation, stop) {
                stop.check()?;
                let mut problems = problems.lock().unwrap_or_else(PoisonError::into_inner);
                problems.push(format!("database {database}: {}", problem.message()));
                if client.is_closed() || problems.len() >= NOTED {
                    return Err(Error::failed("enough was seen"));
                }
            }
            progress.advance(relation.bytes);
            Ok(())
        },
        || Ok(()),
    )
    .or_else(|error| {
        interrupt.check()?;
        let noted = problems.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.is_empty() { Err(error) } else { Ok(()) }
    })?;
    let problems = problems
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    Ok((relations.len() as u64, problems))
}

fn relations(client: &mut Client) -> std::result::Result<Vec<Relation>, postgres::Error> {
    let rows = client.query(RELATIONS, &[])?;
    rows.iter()
        .map(|row| {
            let bytes: Option<i64> = row.try_get(1)?;
            Ok(Relation {
                name: row.try_get(0)?,
                bytes: bytes
                    .and_then(|bytes| u64::try_from(bytes).ok())
                    .unwrap_or(0),
            })
        })
        .collect()
}

/// COPY puts every value into words, so that what is stored out of line is read too.
fn read_relation(client: &mut Client, relation: &Relation, stop: &Stop<'_>) -> Result<()> {
    let name = &relation.name;
    let copy = format!("COPY (SELECT * FROM ONLY {name}) TO STDOUT");
    let failed = |error: &postgres::Error| server_error(&format!("read {name}"), error);
    let mut rows = client.copy_out(&copy).map_err(|error| failed(&error))?;
    let mut part = vec![0; PART_BYTES];
    loop {
        stop.check()?;
        match rows.read(&mut part) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => {
                let server = error
                    .get_ref()
                    .and_then(|source| source.downcast_ref::<postgres::Error>());
                return Err(match server {
                    Some(server) => failed(server),
                    None => Error::failed(format!("cannot read {name}: {error}")),
                });
            }
        }
    }
}
