//! pg_dump, on a server that nobody else can reach.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::files::incoming::Incoming;
use crate::interrupt::Interrupt;
use crate::private_server::{Host, PrivateServer};
use crate::restore::folder::Folder;

/// How often it is looked whether it has ended.
const PACE: Duration = Duration::from_millis(20);

/// How much of what it says is told.
const TOLD_BYTES: u64 = 4096;

/// What a dump is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DumpFormat {
    /// SQL, for psql.
    #[default]
    Plain,
    /// One file for pg_restore.
    Custom,
    /// A folder for pg_restore, which several sessions write at the same time.
    Directory,
}

impl DumpFormat {
    fn name(self) -> &'static str {
        match self {
            DumpFormat::Plain => "plain",
            DumpFormat::Custom => "custom",
            DumpFormat::Directory => "directory",
        }
    }
}

/// How much of the tables is dumped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DumpPart {
    /// All.
    #[default]
    All,
    /// Their definitions alone.
    Schema,
    /// Their rows alone.
    Data,
}

/// Where a dump goes.
pub(super) enum Output {
    Stdout,
    /// A file, which gets its name once it is whole.
    File(Incoming),
    /// A folder, which pg_dump makes.
    Folder(PathBuf),
}

impl Output {
    /// Makes sure beforehand that nothing is lost there.
    pub(super) fn open(to: Option<&Path>, format: DumpFormat) -> Result<Output> {
        let Some(to) = to else {
            return Ok(Output::Stdout);
        };
        if format != DumpFormat::Directory {
            return Incoming::create(to).map(Output::File);
        }
        expect_absent(to)?;
        Ok(Output::Folder(to.to_owned()))
    }

    /// What a program writes to, where it is no folder.
    fn stdio(&self) -> Result<Stdio> {
        match self {
            Output::Stdout => Ok(Stdio::inherit()),
            Output::File(incoming) => incoming.handle().map(Stdio::from),
            Output::Folder(_) => Ok(Stdio::null()),
        }
    }

    /// Gives it its name.
    pub(super) fn publish(self) -> Result<()> {
        match self {
            Output::File(incoming) => incoming.publish().map(drop),
            Output::Stdout | Output::Folder(_) => Ok(()),
        }
    }
}

/// An error where there is something already.
pub(super) fn expect_absent(to: &Path) -> Result<()> {
    match fs::symlink_metadata(to) {
        Ok(_) => Err(Error::failed(format!("{} is there already", to.display()))
            .hint("move or remove it first, if it is not needed")),
        Err(_) => Ok(()),
    }
}

/// A server with what is wanted, and where the dump of it goes.
pub(super) struct Dump<'a> {
    pub(super) host: &'a Host,
    pub(super) server: &'a PrivateServer,
    pub(super) superuser: &'a str,
    pub(super) database: &'a str,
    /// A folder for what the programs say.
    pub(super) place: &'a Folder,
    pub(super) workers: usize,
    pub(super) output: &'a Output,
    pub(super) interrupt: &'a Interrupt,
}

impl Dump<'_> {
    /// Roles, their memberships and settings, and tablespaces, in SQL.
    pub(super) fn globals(&self) -> Result<()> {
        let arguments = ["--globals-only", "--database"].map(OsString::from);
        let database = OsString::from(self.database);
        self.run(
            "pg_dumpall",
            arguments.into_iter().chain([database]).collect(),
        )
    }

    /// These tables, quoted; all of the database where there are none.
    pub(super) fn tables(
        &self,
        tables: &[String],
        format: DumpFormat,
        part: DumpPart,
    ) -> Result<()> {
        let mut arguments = vec![OsString::from(format!("--format={}", format.name()))];
        let part = match part {
            DumpPart::All => None,
            DumpPart::Schema => Some("--schema-only"),
            DumpPart::Data => Some("--data-only"),
        };
        arguments.extend(part.map(OsString::from));
        if let Output::Folder(folder) = self.output {
            arguments.push(format!("--jobs={}", self.workers).into());
            arguments.push("--file".into());
            arguments.push(folder.into());
        }
        // Names are known in UTF-8, and pg_dump takes them to be in the encoding of its session.
        if !tables.iter().all(|table| table.is_ascii()) {
            arguments.push("--encoding=UTF8".into());
        }
        arguments.extend(tables.iter().map(|table| format!("--table={table}").into()));
        let dumped = self.run("pg_dump", arguments);
        if let (Err(_), Output::Folder(folder)) = (&dumped, self.output) {
            // It was not there before. What cannot be removed is no dump either, without its table of contents.
            let _ = fs::remove_dir_all(folder);
        }
        dumped
    }

    fn run(&self, name: &str, arguments: Vec<OsString>) -> Result<()> {
        let program = self.host.installation.program(name);
        let cannot = |error: std::io::Error| Error::io("run", &program, &error);
        let mut said = self
            .place
            .create_file(Path::new(&format!("{name}.log")), 0o600, None)?;
        let mut command = Command::new(&program);
        command
            .args(arguments)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PGHOST", self.server.socket())
            .env("PGPORT", self.server.port().to_string())
            .env("PGUSER", self.superuser)
            .env("PGDATABASE", self.database)
            .env("PGOPTIONS", self.server.options())
            .stdin(Stdio::null())
            .stdout(self.output.stdio()?)
            .stderr(said.try_clone().map_err(cannot)?);
        let mut running = command.spawn().map_err(cannot)?;
        let status = loop {
            if let Some(status) = running.try_wait().map_err(cannot)? {
                break status;
            }
            if let Err(interrupted) = self.interrupt.check() {
                running
                    .kill()
                    .and_then(|()| running.wait())
                    .map_err(cannot)?;
                return Err(interrupted);
            }
            std::thread::sleep(PACE);
        };
        self.interrupt.check()?;
        let said = end_of(&mut said).map_err(cannot)?;
        let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
        if status.success() {
            lines().for_each(|line| log::warn!("{line}"));
            return Ok(());
        }
        let why = Vec::from_iter(lines()).join("; ");
        let error = Error::failed(format!("{name} failed, {status}: {why}"));
        Err(hint(&why).map_or(error.clone(), |hint| error.hint(hint)))
    }
}

/// What somebody can do about what pg_dump says.
fn hint(why: &str) -> Option<&'static str> {
    if why.contains("could not open file \"base/")
        || why.contains("could not open file \"pg_tblspc/")
    {
        return Some(
            "it reads another table than those that were named: name that one too, or -d DATABASE alone for all of them",
        );
    }
    if why.contains("could not access file \"$libdir") || why.contains("could not load library") {
        return Some(
            "install the extensions of the source for this server too, or name another one's folder of programs with --bin-dir",
        );
    }
    if why.contains("No space left on device") {
        return Some("free some space there, or work in another folder with --work-dir");
    }
    None
}

fn end_of(said: &mut File) -> std::io::Result<String> {
    let length = said.metadata()?.len();
    said.seek(std::io::SeekFrom::Start(length.saturating_sub(TOLD_BYTES)))?;
    let mut end = Vec::new();
    said.read_to_end(&mut end)?;
    Ok(String::from_utf8_lossy(&end).into_owned())
}
