//! A server that nobody else can reach, stopped whatever happens.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use postgres::error::SqlState;
use postgres::{Client, Config, NoTls};
use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::control::{CONTROL_FILE, CONTROL_FILE_SIZE, ControlFile};
use crate::pg::version::Major;
use crate::private_server::Host;
use crate::restore::folder::{Account, Folder};
use crate::restore::recovery::IGNORE_INVALID_PAGES;
use crate::server::connect::server_error;

/// The port is part of the socket's name only.
const PORT: u16 = 5432;

/// How often a server that recovers is asked whether it has.
const PACE: Duration = Duration::from_millis(50);

/// How long a server may take to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes of the log's end that an error quotes from.
const LOG_BYTES: u64 = 4096;

/// Settings of sessions, which go before those a database or a role has: nothing of them may keep a session from
/// reading, or run with it.
const OPTIONS: &str = "-c local_preload_libraries= -c search_path=pg_catalog -c role=none \
    -c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0 \
    -c idle_in_transaction_session_timeout=0";

/// What only a superuser may set.
const SUPERUSER_OPTIONS: &str = " -c session_preload_libraries=";

/// What is set for the server.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// What the files of its configuration and its log begin with.
    pub(crate) name: &'static str,
    pub(crate) major: Major,
    pub(crate) max_prepared_transactions: u32,
    /// Whether tablespaces lie in the data directory itself.
    pub(crate) has_tablespaces_in_place: bool,
    /// Sessions that read at the same time.
    pub(crate) workers: usize,
    /// Whether some of its files are holes, whose pages recovery need not find.
    pub(crate) has_holes: bool,
    /// Whether it is to get archived WAL: then it has our own environment, but for what is libpq's.
    pub(crate) restores_wal: bool,
}

impl Settings {
    /// Those that suit a rebuilt cluster.
    pub(crate) fn of(
        name: &'static str,
        major: Major,
        data: &Path,
        workers: usize,
    ) -> Result<Settings> {
        Ok(Settings {
            name,
            major,
            max_prepared_transactions: max_prepared_transactions(data)?,
            has_tablespaces_in_place: has_tablespaces_in_place(data)?,
            workers,
            has_holes: false,
            restores_wal: false,
        })
    }
}

/// Other tablespaces are links.
fn has_tablespaces_in_place(data: &Path) -> Result<bool> {
    let folder = data.join("pg_tblspc");
    let failed = |error| Error::io("read the folder", &folder, &error);
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Recovery of prepared transactions needs as much room as the source had.
fn max_prepared_transactions(data: &Path) -> Result<u32> {
    let path = data.join(CONTROL_FILE);
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(CONTROL_FILE_SIZE as u64).read_to_end(&mut bytes))
        .map_err(|error| Error::io("read", &path, &error))?;
    ControlFile::parse(&bytes)
        .map(|control| control.limits.max_prepared_transactions)
        .map_err(|fault| Error::damage(format!("{}: {fault}", path.display())))
}

/// A cluster's databases that sessions can be had in, and roles that may have them.
pub(crate) struct Entrance<'a> {
    /// The databases, the best one first.
    pub(crate) databases: &'a [&'a str],
    /// The roles, the best one first.
    pub(crate) roles: &'a [String],
}

/// A running server.
pub(crate) struct PrivateServer {
    process: Child,
    socket: SocketFolder,
    log: File,
}

impl PrivateServer {
    /// Starts the server on a data directory. Its configuration and log lie in `place`.
    pub(crate) fn start(
        host: &Host,
        data: &Path,
        place: &Folder,
        settings: &Settings,
    ) -> Result<PrivateServer> {
        let account = host.account;
        let name = settings.name;
        let socket = SocketFolder::create(account)?;
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let mut file = place.create_file(Path::new(name), 0o600, account)?;
            let path = place.path().join(name);
            file.write_all(text.as_bytes())
                .map_err(|error| Error::io("write", &path, &error))?;
            Ok(path)
        };
        let access = write(&format!("{name}_hba.conf"), "local all all trust\n")?;
        let names = write(&format!("{name}_ident.conf"), "")?;
        let text = settings.text(&socket, &access, &names);
        let configuration = write(&format!("{name}.conf"), &text)?;
        let log_name = format!("{name}.log");
        let output = place.create_file(Path::new(&log_name), 0o600, None)?;
        let clone = || output.try_clone();
        let (errors, log) = clone()
            .and_then(|errors| Ok((errors, clone()?)))
            .map_err(|error| Error::io("open", &place.path().join(&log_name), &error))?;
        let program = host.installation.program("postgres");
        let mut command = Command::new(&program);
        command
            .arg("-D")
            .arg(data)
            .arg(format!("--config_file={}", configuration.display()))
            // Whatever the restore has put into postgresql.auto.conf: nobody may connect before the cluster is as it shall be,
            // and settings need not be the source's.
            .args(["-c", "hot_standby=off"])
            .env_clear()
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .current_dir(place.path())
            // Ctrl-C is meant for us; the server ends when we say so.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        if settings.restores_wal {
            let ours = std::env::vars_os().filter(|(name, _)| !is_of_postgresql(name));
            command.envs(ours).env("LC_ALL", "C").env("TZ", "UTC");
        }
        if let Some(account) = account {
            account.apply(&mut command);
        }
        let process = command
            .spawn()
            .map_err(|error| Error::io("run", &program, &error))?;
        Ok(PrivateServer {
            process,
            socket,
            log,
        })
    }

    /// Waits until recovery has brought the cluster to where it shall be and ended; returns the name of a superuser. An error
    /// where the server ends instead.
    pub(crate) fn wait_until_recovered(
        &mut self,
        entrance: &Entrance<'_>,
        interrupt: &Interrupt,
    ) -> Result<String> {
        loop {
            interrupt.check()?;
            let ended = self
                .process
                .try_wait()
                .map_err(|error| Error::failed(format!("cannot wait for the server: {error}")))?;
            if let Some(status) = ended {
                return Err(Error::failed(format!(
                    "the server did not start, {status}: {}",
                    self.last_words()
                )));
            }
            match self.superuser(entrance, interrupt) {
                Ok(superuser) => return Ok(superuser),
                Err(error) if is_not_yet(&error) => std::thread::sleep(PACE),
                Err(error) => return Err(server_error("connect to the started cluster", &error)),
            }
        }
    }

    /// What the role that initdb made is called, any session can ask.
    fn superuser(
        &self,
        entrance: &Entrance<'_>,
        interrupt: &Interrupt,
    ) -> std::result::Result<String, postgres::Error> {
        let ask_with = |database: &str, role: &str, more: &str| {
            let mut client = self.session(database, role, more, interrupt)?;
            client
                .query_one(
                    "SELECT rolname FROM pg_roles WHERE rolsuper AND rolcanlogin ORDER BY oid LIMIT 1",
                    &[],
                )?
                .try_get(0)
        };
        let ask = |database: &str, role: &str| match ask_with(database, role, SUPERUSER_OPTIONS) {
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                ask_with(database, role, "")
            }
            asked => asked,
        };
        let mut first = None;
        let databases = entrance.databases.iter();
        for (database, role) in
            databases.flat_map(|one| entrance.roles.iter().map(move |role| (one, role)))
        {
            match ask(database, role) {
                Ok(superuser) => return Ok(superuser),
                Err(error) if is_not_yet(&error) => return Err(error),
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        match first {
            Some(error) => Err(error),
            None => ask("template1", "postgres"),
        }
    }

    /// A session as a superuser.
    pub(crate) fn connect(
        &self,
        database: &str,
        superuser: &str,
        interrupt: &Interrupt,
    ) -> Result<Client> {
        interrupt.check()?;
        self.session(database, superuser, SUPERUSER_OPTIONS, interrupt)
            .map_err(|error| server_error(&format!("connect to database {database}"), &error))
    }

    fn session(
        &self,
        database: &str,
        role: &str,
        more: &str,
        interrupt: &Interrupt,
    ) -> std::result::Result<Client, postgres::Error> {
        let client = Config::new()
            .host_path(self.socket())
            .port(PORT)
            .user(role)
            .dbname(database)
            .application_name("pgkeep")
            .options(&format!("{OPTIONS}{more}"))
            .connect(NoTls)?;
        let token = client.cancel_token();
        interrupt.on_raise(move || {
            // A server that cannot be asked to cancel is gone, and so is the query.
            let _ = token.cancel_query(NoTls);
        });
        Ok(client)
    }

    /// The folder of its socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket.path
    }

    /// The port in the socket's name.
    pub(crate) fn port(&self) -> u16 {
        PORT
    }

    /// The options of a superuser's sessions, as libpq takes them.
    pub(crate) fn options(&self) -> String {
        format!("{OPTIONS}{SUPERUSER_OPTIONS}")
    }

    /// What the server complained of last.
    pub(crate) fn last_words(&self) -> String {
        let end = end_of(&self.log).unwrap_or_default();
        let complaints: Vec<&str> = end
            .lines()
            .filter(|line| {
                ["FATAL:", "PANIC:", "ERROR:"]
                    .iter()
                    .any(|level| line.contains(level))
            })
            .collect();
        match complaints.last().copied().or(end.lines().last()) {
            Some(line) => line.trim().to_owned(),
            None => "it said nothing".to_owned(),
        }
    }

    /// The relations of which recovery did not find pages, as paths below the data directory (access/transam/xlogutils.c,
    /// report_invalid_page).
    pub(crate) fn relations_with_invalid_pages(&self) -> Result<BTreeSet<String>> {
        let failed =
            |error: io::Error| Error::failed(format!("cannot read the server's log: {error}"));
        let mut found = BTreeSet::new();
        let log = FromStart {
            log: &self.log,
            position: 0,
        };
        for line in BufReader::new(log).split(b'\n') {
            let line = line.map_err(failed)?;
            let line = String::from_utf8_lossy(&line);
            if let Some((_, page)) = line.split_once("WARNING:  page ")
                && let Some((_, relation)) = page.split_once(" of relation ")
                && let Some(path) = relation.split_whitespace().next()
            {
                found.insert(path.to_owned());
            }
        }
        Ok(found)
    }

    /// Shuts it down, so that all it has in memory is in its files.
    pub(crate) fn shut_down(mut self, interrupt: &Interrupt) -> Result<()> {
        let failed = |error: io::Error| Error::failed(format!("cannot stop the server: {error}"));
        let pid = i32::try_from(self.process.id())
            .ok()
            .and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::INT).map_err(|error| failed(error.into()))?;
        }
        loop {
            match self.process.try_wait().map_err(failed)? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    return Err(Error::failed(format!(
                        "the server did not shut down, {status}: {}",
                        self.last_words()
                    )));
                }
                None => {
                    interrupt.check()?;
                    std::thread::sleep(PACE);
                }
            }
        }
    }

    /// Ends it at once: nobody needs the cluster any more. What has ended must not be signalled, as its number may be
    /// another's by now.
    fn stop(&mut self) -> io::Result<()> {
        if self.process.try_wait()?.is_some() {
            return Ok(());
        }
        if let Some(pid) = i32::try_from(self.process.id())
            .ok()
            .and_then(Pid::from_raw)
        {
            kill_process(pid, Signal::QUIT)?;
        }
        let give_up = Instant::now() + PATIENCE;
        while self.process.try_wait()?.is_none() {
            if Instant::now() > give_up {
                self.process.kill()?;
                self.process.wait()?;
                break;
            }
            std::thread::sleep(PACE);
        }
        Ok(())
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            log::warn!(
                "cannot stop the server, process {}: {error}",
                self.process.id()
            );
        }
    }
}

impl Settings {
    /// A configuration of the server's own. That of the cluster would ask for another machine's memory, for
    /// libraries and files that only are there, and let it archive and replicate.
    fn text(&self, socket: &SocketFolder, access: &Path, names: &Path) -> String {
        let connections = (self.workers + 20).to_string();
        let prepared = self.max_prepared_transactions.to_string();
        let mut settings = vec![
            ("listen_addresses", String::new()),
            ("unix_socket_directories", socket.path.display().to_string()),
            ("unix_socket_permissions", "0700".to_owned()),
            ("port", PORT.to_string()),
            ("hba_file", access.display().to_string()),
            ("ident_file", names.display().to_string()),
            ("max_connections", connections),
            ("max_prepared_transactions", prepared),
            ("archive_mode", "off".to_owned()),
            ("max_wal_senders", "0".to_owned()),
            // Subscriptions would take from the publisher what the source has yet to get.
            ("max_logical_replication_workers", "0".to_owned()),
            ("autovacuum", "off".to_owned()),
            // Against wraparound it would run nevertheless.
            ("autovacuum_freeze_max_age", "2000000000".to_owned()),
            (
                "autovacuum_multixact_freeze_max_age",
                "2000000000".to_owned(),
            ),
            // The cluster is thrown away.
            ("fsync", "off".to_owned()),
            ("full_page_writes", "off".to_owned()),
            ("restart_after_crash", "off".to_owned()),
            ("lc_messages", "C".to_owned()),
            ("log_timezone", "UTC".to_owned()),
        ];
        // One may be created on the way.
        let creates = self.restores_wal && self.major >= Major::V15;
        if self.has_tablespaces_in_place || creates {
            // Without it replay takes their folders for damage (access/transam/xlogrecovery.c, CheckTablespaceDirectory).
            settings.push(("allow_in_place_tablespaces", "on".to_owned()));
        }
        if self.has_holes {
            settings.push((IGNORE_INVALID_PAGES, "on".to_owned()));
        }
        if self.major >= Major::V17 {
            // Those at login would run with every session.
            settings.push(("event_triggers", "off".to_owned()));
        }
        settings
            .into_iter()
            .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")))
            .collect()
    }
}

/// Whether a variable may tell a server or its sessions anything.
fn is_of_postgresql(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b"PG") && !name.starts_with(b"PGKEEP_")
}

/// The server is starting, or recovering.
fn is_not_yet(error: &postgres::Error) -> bool {
    match error.as_db_error() {
        Some(server) => *server.code() == SqlState::CANNOT_CONNECT_NOW,
        // The socket is not there yet, or just went.
        None => true,
    }
}

/// Reads a log that the server may still be writing, whose place in the file is its own.
struct FromStart<'a> {
    log: &'a File,
    position: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.log.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

fn end_of(mut log: &File) -> io::Result<String> {
    let length = log.metadata()?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES)))?;
    let mut end = Vec::new();
    log.read_to_end(&mut end)?;
    Ok(String::from_utf8_lossy(&end).into_owned())
}

/// The folder of the socket, whose path must be short: 107 bytes with the socket's name.
struct SocketFolder {
    path: PathBuf,
}

impl SocketFolder {
    fn create(account: Option<Account>) -> Result<SocketFolder> {
        let process = std::process::id();
        let mut number = 0;
        let path = loop {
            let path = PathBuf::from(format!("/tmp/pgkeep-{process}-{number}"));
            // A folder that is there already is somebody else's, who could reach the server.
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => break path,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(Error::io("create the folder", &path, &error)),
            }
        };
        let folder = SocketFolder { path };
        // Nobody but root can have put another one in its place: /tmp is sticky.
        account.map_or(Ok(()), |account| Folder::open(&folder.path)?.own(account))?;
        Ok(folder)
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_socket_folder_goes_with_its_owner() {
        let folder = SocketFolder::create(None).unwrap();
        let other = SocketFolder::create(None).unwrap();
        let path = folder.path.clone();
        assert!(path.exists() && path != other.path);
        drop(folder);
        assert!(!path.exists());
    }
}
