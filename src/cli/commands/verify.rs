use std::path::PathBuf;

use clap::Args;

use crate::cli::app::App;
use crate::cli::report::{Answer, Fields, Value, field};
use crate::error::{Error, Result};
use crate::repository::identifier::Selector;
use crate::verify::{self, Finding};

/// Read a backup back and check every byte of it
///
/// Checks each stored file's SHA-512, decrypts and decompresses it, and checks sizes, checksums, pages and
/// the WAL the backup needs. Writes nothing. With DIRECTORY the cluster is also rebuilt
/// there, checked, and removed.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The server's name
    server: String,
    /// Identifier or its first digits, newest, latest or oldest
    backup: Selector,
    /// DIRECTORY to rebuild the cluster in, and whether to list failed files or all
    #[arg(value_name = "DIRECTORY|failed|all", num_args = 0..=2)]
    rest: Vec<PathBuf>,
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
        let mut request = vec![field("Backup", self.backup.to_string())];
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
        request.push(field("Server", self.server.as_str()));
        request
    }

    /// `failed` and `all` are no directories; `./all` is one.
    fn split(&self) -> (Option<PathBuf>, std::result::Result<Listing, String>) {
        let listing = |word: &PathBuf| match word.to_str() {
            Some("failed") => Some(Listing::Failed),
            Some("all") => Some(Listing::All),
            _ => None,
        };
        match self.rest.as_slice() {
            [] => (None, Ok(Listing::Failed)),
            [one] => match listing(one) {
                Some(listing) => (None, Ok(listing)),
                None => (Some(one.clone()), Ok(Listing::Failed)),
            },
            [directory, word, ..] => (
                Some(directory.clone()),
                listing(word)
                    .ok_or_else(|| format!("{} is neither failed nor all", word.display())),
            ),
        }
    }

    /// Verifies it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let (directory, listing) = self.split();
        let listing = listing.map_err(Error::usage)?;
        let server = app.server(&self.server)?;
        let catalogue = server.catalogue()?;
        let backup = catalogue.select(&self.backup)?;
        let request = verify::Request {
            catalogue: &catalogue,
            backup,
            keys: &server.keys(),
            directory: directory.as_deref(),
            all: listing == Listing::All,
            workers: server.workers,
        };
        let findings = verify::run(&request, &*app.progress, &app.interrupt)?;
        let failed: Vec<&Finding> = findings.bad().collect();
        let mut files = vec![field("Failed", lines(failed.iter().copied()))];
        if listing == Listing::All {
            files.push(field("All", lines(findings.files.iter())));
        }
        let response = vec![
            field("Backup", backup.identifier),
            field("Server", server.name()),
            field("Valid", if failed.is_empty() { "yes" } else { "no" }),
            field("ContentsChecked", findings.unchecked.is_none()),
            field("NumberOfFiles", findings.checked),
            field("NumberOfFailed", failed.len() as u64),
            field("Files", files),
        ];
        let error = failed.first().map(|first| {
            let of_ancestor = if first.backup == backup.identifier {
                String::new()
            } else {
                format!(" of backup {}, which it needs", first.backup)
            };
            Error::damage(format!(
                "backup {} is damaged: {} of {} files failed, the first is {}{of_ancestor}: {}",
                backup.identifier,
                failed.len(),
                findings.checked,
                first.file,
                first.problem.as_deref().unwrap_or_default()
            ))
            .hint("do not rely on this backup: make a new one, and check the disk it lies on")
        });
        // The files lie there as they were written, and that is all that can be said.
        let unchecked = findings.unchecked;
        let error = error.or(unchecked.map(|error| error.context("contents were not checked")));
        Ok(Answer {
            response,
            error,
            plain: None,
        })
    }
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
