use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::cli::app::{App, Server};
use crate::cli::commands::repository::Reading;
use crate::cli::many::{self, Chosen, Jobs};
use crate::cli::recording::{Recording, Subject};
use crate::cli::report::{Answer, Fields, Value, field};
use crate::error::{Error, Kind, Result};
use crate::private_server::Programs;
use crate::repository::identifier::{Identifier, Selector};
use crate::verify::drill::{self, Amcheck, Held};
use crate::verify::{self, Finding, Rebuild, Remembered, Verified, due};

/// Read a backup back and check every byte of it
///
/// Checks each stored file's SHA-512, decrypts and decompresses it, and checks sizes, checksums, pages and
/// the WAL the backup needs; for an incremental backup all that it needs as well. What was found is noted: a
/// backup found damaged is not valid until a later verification finds it sound. With DIRECTORY the cluster is also rebuilt
/// there, checked, and removed.
#[derive(Debug, Args)]
#[command(
    override_usage = "pgkeep verify [OPTIONS] <SERVER> <BACKUP> [DIRECTORY] [failed|all]
       pgkeep verify [OPTIONS] --due [SERVER]
       pgkeep verify [OPTIONS] --due --all [--jobs N]"
)]
pub(crate) struct Verify {
    /// The server's name; with --due also a pattern such as 'prod-*'
    #[arg(required_unless_present = "due")]
    server: Option<String>,
    /// Identifier or its first digits, newest, latest or oldest
    #[arg(required_unless_present = "due", conflicts_with = "due")]
    backup: Option<Selector>,
    /// DIRECTORY to rebuild the cluster in, and whether to list failed files or all
    #[arg(value_name = "DIRECTORY|failed|all", num_args = 0..=2, conflicts_with = "due")]
    rest: Vec<PathBuf>,
    /// Start the rebuilt cluster too, where nobody else can reach it, and read every database
    #[arg(long, conflicts_with = "due")]
    start: bool,
    /// The folder of the server's programs, where they are not found by themselves
    #[arg(long, value_name = "DIR", requires = "start")]
    bin_dir: Option<PathBuf>,
    /// Verify every backup whose last verification is older than `verification` in the configuration
    #[arg(long)]
    due: bool,
    /// With --due: all servers, each in a process of its own
    #[arg(long, requires = "due", conflicts_with = "server")]
    all: bool,
    #[command(flatten)]
    jobs: Jobs,
    #[command(flatten)]
    repository: Reading,
}

/// Which files are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listing {
    Failed,
    All,
}

impl Verify {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let (directory, listing) = self.split();
        let mut request = Vec::new();
        if self.due {
            request.push(field("Due", true));
        }
        if self.all {
            request.push(field("All", true));
        }
        request.extend(
            self.backup
                .as_ref()
                .map(|backup| field("Backup", backup.to_string())),
        );
        if let Some(directory) = directory {
            request.push(field("Directory", directory.display().to_string()));
        }
        request.push(field(
            "Files",
            if listing == Ok(Listing::All) {
                "all"
            } else {
                "failed"
            },
        ));
        request.extend(self.repository.request());
        request.extend(self.server.as_deref().map(|server| field("Server", server)));
        if self.start {
            request.push(field("Start", true));
        }
        request
    }

    /// `failed` and `all` are no directories; `./all` is one.
    fn split(&self) -> (Option<&Path>, std::result::Result<Listing, String>) {
        let listing = |word: &PathBuf| match word.to_str() {
            Some("failed") => Some(Listing::Failed),
            Some("all") => Some(Listing::All),
            _ => None,
        };
        match self.rest.as_slice() {
            [] => (None, Ok(Listing::Failed)),
            [one] => match listing(one) {
                Some(listing) => (None, Ok(listing)),
                None => (Some(one), Ok(Listing::Failed)),
            },
            [directory, word, ..] => (
                Some(directory),
                listing(word)
                    .ok_or_else(|| format!("{} is neither failed nor all", word.display())),
            ),
        }
    }

    /// Verifies what is asked for.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        match (&self.server, &self.backup) {
            (Some(server), Some(backup)) => {
                let server = self.repository.server(app, server)?;
                let command = if self.start { "drill" } else { "verify" };
                app.recorded(&server.folder, command, |subject| {
                    self.verify(app, &server, backup, subject)
                })
            }
            (server, _) => match many::chosen(app, server.as_deref()) {
                Ok(Chosen::Several(names)) if self.all || server.is_some() => {
                    let names = with_verification(app, names)?;
                    self.jobs.run(app, &names)
                }
                Ok(Chosen::One(name)) => verify_due(app, Some(&name), &self.repository),
                Err(error) if server.is_some() => Err(error),
                _ => verify_due(app, server.as_deref(), &self.repository),
            },
        }
    }

    fn verify(
        &self,
        app: &App,
        server: &Server,
        backup: &Selector,
        subject: &Subject,
    ) -> Result<Answer> {
        let (directory, listing) = self.split();
        let listing = listing.map_err(Error::usage)?;
        if self.start && directory.is_none() {
            return Err(Error::usage(
                "--start needs a DIRECTORY to rebuild the cluster in",
            ));
        }
        let drill = self.start.then(|| drill::Request {
            programs: Programs {
                bin_dir: self.bin_dir.clone(),
                search_path: std::env::var_os("PATH"),
            },
            role: server.configuration.connection.user.clone(),
            workers: server.readers,
        });
        let catalogue = server.catalogue()?;
        let backup = catalogue.select(backup)?;
        subject.set(Some(backup.identifier));
        let request = verify::Request {
            folder: &server.folder,
            catalogue: &catalogue,
            backup,
            keys: &server.keys(),
            rebuild: directory.map(|directory| Rebuild {
                directory,
                drill: drill.as_ref(),
            }),
            all: listing == Listing::All,
            workers: server.readers,
        };
        let verified = verify::run(&request, &*app.progress, &app.interrupt)?;
        Ok(Answer {
            response: describe(server.name(), backup.identifier, &verified, listing),
            error: failure(backup.identifier, &verified),
            plain: None,
        })
    }
}

/// The servers for which it is configured when a verification is due.
fn with_verification(app: &App, mut names: Vec<String>) -> Result<Vec<String>> {
    let mut wrong = None;
    names.retain(|name| match app.configuration.server(name) {
        Ok(server) => server.verification.is_some(),
        Err(error) => {
            wrong.get_or_insert(error);
            false
        }
    });
    match wrong {
        Some(error) => Err(error),
        None if names.is_empty() => Err(not_configured(None)),
        None => Ok(names),
    }
}

fn not_configured(server: Option<&str>) -> Error {
    Error::usage(match server {
        Some(name) => format!("verification is not configured for server {name}"),
        None => "verification is not configured for any server".to_owned(),
    })
    .hint("say how old a verification may become, such as verification = 1W in [pgkeep]")
}

/// The run for cron: all servers or one.
fn verify_due(app: &App, server: Option<&str>, repository: &Reading) -> Result<Answer> {
    let names: Vec<String> = match server {
        Some(name) => vec![name.to_owned()],
        None => app
            .configuration
            .servers()
            .map(ToString::to_string)
            .collect(),
    };
    let mut servers: Vec<(Server, Duration)> = Vec::new();
    for name in names {
        let server = repository.server(app, &name)?;
        match server.configuration.verification {
            Some(interval) => servers.push((server, interval)),
            None => log::info!("verification is not configured for server {name}"),
        }
    }
    if servers.is_empty() {
        return Err(not_configured(server));
    }
    let mut backups: Vec<Value> = Vec::new();
    let mut errors: Vec<Error> = Vec::new();
    for (server, interval) in &servers {
        let request = due::Request {
            server: server.name(),
            folder: &server.folder,
            keys: &server.keys(),
            interval: *interval,
            workers: server.readers,
        };
        let each = |backup: Identifier, verify: &mut dyn FnMut() -> Result<Verified>| {
            let recording = Recording::begin(app, "verify");
            let verified = verify();
            let failure = match &verified {
                Ok(verified) => failure(backup, verified),
                Err(error) => Some(error.clone()),
            };
            recording.end(&server.folder, Some(backup), failure.as_ref());
            verified
        };
        let verified = match due::run(&request, each, &*app.progress, &app.interrupt) {
            Ok(verified) => verified,
            Err(error) => {
                app.interrupt.check()?;
                errors.push(error.context(format_args!("server {}", server.name())));
                continue;
            }
        };
        for (backup, result) in verified {
            let (fields, error) = match result {
                Ok(verified) => (
                    describe(server.name(), backup, &verified, Listing::Failed),
                    failure(backup, &verified),
                ),
                Err(error) => (failed(server.name(), backup, &error), Some(error)),
            };
            backups.push(fields.into());
            errors.extend(error);
        }
    }
    let response = vec![
        field("NumberOfBackups", backups.len() as u64),
        field("NumberOfFailed", errors.len() as u64),
        field("Backups", backups),
    ];
    Ok(Answer {
        response,
        error: worst(errors),
        plain: None,
    })
}

/// Damage outweighs whatever else kept a backup from being verified.
fn worst(errors: Vec<Error>) -> Option<Error> {
    let count = errors.len();
    let worst = errors
        .into_iter()
        .min_by_key(|error| error.kind() != Kind::Damage)?;
    Some(if count > 1 {
        worst.context(format_args!("{count} verifications failed, one of them"))
    } else {
        worst
    })
}

fn failed(server: &str, backup: Identifier, error: &Error) -> Fields {
    vec![
        field("Backup", backup),
        field("Server", server),
        field("Error", error.message()),
    ]
}

fn describe(server: &str, backup: Identifier, verified: &Verified, listing: Listing) -> Fields {
    let findings = &verified.findings;
    let failed: Vec<&Finding> = findings.bad().collect();
    let mut files = vec![field("Failed", lines(failed.iter().copied()))];
    if listing == Listing::All {
        files.push(field("All", lines(findings.files.iter())));
    }
    let remembered = match &verified.remembered {
        Remembered::Yes => true,
        Remembered::No(why) => {
            log::warn!("what was found of backup {backup} is not remembered: {why}");
            false
        }
    };
    let mut fields = vec![
        field("Backup", backup),
        field("Server", server),
        field("Valid", if failed.is_empty() { "yes" } else { "no" }),
        field("ContentsChecked", findings.unchecked.is_none()),
        field("NumberOfFiles", findings.checked),
        field("NumberOfFailed", failed.len() as u64),
        field("Files", files),
        field("Remembered", remembered),
    ];
    if let Some(held) = &verified.drill {
        fields.push(field("Drill", describe_drill(held)));
    }
    fields
}

fn describe_drill(held: &Held) -> Fields {
    let problems: Vec<Value> = held
        .problems
        .iter()
        .map(|problem| Value::from(problem.as_str()))
        .collect();
    vec![
        field(
            "Outcome",
            if problems.is_empty() {
                "passed"
            } else {
                "failed"
            },
        ),
        field("PostgreSQL", held.server_version.as_str()),
        field("NumberOfDatabases", held.databases),
        field("NumberOfRelations", held.relations),
        field(
            "Amcheck",
            match held.amcheck {
                Amcheck::Run => "run",
                Amcheck::NotInstalled => "not installed",
                Amcheck::NotRun => "not run",
            },
        ),
        field("Problems", problems),
    ]
}

fn failure(backup: Identifier, verified: &Verified) -> Option<Error> {
    let findings = &verified.findings;
    let problem = |finding: &Finding| finding.problem.clone().unwrap_or_default();
    if let Some(first) = findings.bad().next() {
        let of_ancestor = if first.backup == backup {
            String::new()
        } else {
            format!(" of backup {}, which it needs", first.backup)
        };
        return Some(
            Error::damage(format!(
                "backup {backup} is damaged: {} of {} files failed, the first is {}{of_ancestor}: {}",
                findings.bad().count(),
                findings.checked,
                first.file,
                problem(first)
            ))
            .hint("do not rely on this backup: make a new one, and check the disk it lies on"),
        );
    }
    if let Some(unchecked) = &findings.unchecked {
        // The files lie there as they were written, and that is all that can be said.
        return Some(unchecked.clone().context("contents were not checked"));
    }
    let first = verified.drill.as_ref()?.problems.first()?;
    Some(
        Error::damage(format!(
            "backup {backup} is sound, but the cluster rebuilt from it failed: {first}"
        ))
        .hint("libraries, extensions and locales of the source must be on this machine too; or the source itself was damaged"),
    )
}

fn lines<'a>(findings: impl Iterator<Item = &'a Finding>) -> Vec<Value> {
    findings
        .map(|finding| {
            let problem = finding.problem.as_deref().unwrap_or("ok");
            Value::Map(vec![
                field("Backup", finding.backup),
                field("FileName", finding.file.as_str()),
                field("Result", problem),
            ])
        })
        .collect()
}
