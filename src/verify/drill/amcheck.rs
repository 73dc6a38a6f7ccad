//! PostgreSQL's own check of tables and B-trees, where it is installed.

use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::private_server::PrivateServer;
use crate::restore::folder::Folder;
use crate::server::connect::server_error;
use crate::verify::drill::{Drill, Held};

/// Whether pg_amcheck looked at the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amcheck {
    /// It came to its end.
    Run,
    /// The server is installed without it.
    NotInstalled,
    /// The drill was over before.
    NotRun,
}

/// How often it is looked whether it has ended.
const PACE: Duration = Duration::from_millis(50);

/// How much of what it says is noted.
const NOTED_LINES: usize = 20;

/// Runs pg_amcheck on all databases and notes what it finds.
pub(super) fn check(
    drill: &Drill<'_>,
    server: &PrivateServer,
    superuser: &str,
    place: &Folder,
    held: &mut Held,
    interrupt: &Interrupt,
) -> Result<()> {
    let program = drill.host.installation.program("pg_amcheck");
    if !program.is_file() || !has_extension(server, superuser, interrupt)? {
        held.amcheck = Amcheck::NotInstalled;
        return Ok(());
    }
    let scratch = |error: std::io::Error| Error::failed(format!("cannot run pg_amcheck: {error}"));
    let mut said = place.create_file(Path::new("amcheck.log"), 0o600, None)?;
    let mut command = Command::new(&program);
    command
        .args(["--all", "--install-missing", "--heapallindexed"])
        .arg(format!("--jobs={}", drill.request.workers))
        .env_clear()
        .env("LC_ALL", "C")
        .env("PGHOST", server.socket())
        .env("PGPORT", server.port().to_string())
        .env("PGUSER", superuser)
        .env("PGDATABASE", "template1")
        .env("PGOPTIONS", server.options())
        // None, whatever the role's is: there is no conversion between any two.
        .env("PGCLIENTENCODING", "SQL_ASCII")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(said.try_clone().map_err(scratch)?)
        .stderr(said.try_clone().map_err(scratch)?);
    if let Some(account) = &drill.host.account {
        account.apply(&mut command);
    }
    let mut running = command
        .spawn()
        .map_err(|error| Error::io("run", &program, &error))?;
    let status = loop {
        if let Some(status) = running.try_wait().map_err(scratch)? {
            break status;
        }
        if let Err(interrupted) = interrupt.check() {
            running
                .kill()
                .and_then(|()| running.wait())
                .map_err(scratch)?;
            return Err(interrupted);
        }
        std::thread::sleep(PACE);
    };
    interrupt.check()?;
    held.amcheck = Amcheck::Run;
    if !status.success() {
        let mut text = String::new();
        said.rewind()
            .and_then(|()| said.read_to_string(&mut text))
            .map_err(scratch)?;
        held.problems.extend(problems(&text));
        if held.problems.is_empty() {
            held.problems.push(format!("pg_amcheck failed: {status}"));
        }
    }
    Ok(())
}

fn has_extension(server: &PrivateServer, superuser: &str, interrupt: &Interrupt) -> Result<bool> {
    let mut client = server.connect("template1", superuser, interrupt)?;
    client
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'amcheck')",
            &[],
        )
        .and_then(|row| row.try_get(0))
        .map_err(|error| server_error("look for the extension amcheck", &error))
}

/// A report of pg_amcheck is a line that names the relation, and lines further in that say what is wrong.
fn problems(text: &str) -> Vec<String> {
    let mut problems: Vec<String> = Vec::new();
    for line in text.lines().take(NOTED_LINES) {
        match problems.last_mut() {
            Some(last) if line.starts_with([' ', '\t']) => {
                last.push(' ');
                last.push_str(line.trim());
            }
            _ => problems.push(format!("pg_amcheck: {}", line.trim())),
        }
    }
    problems
}
