use clap::Args;

use crate::cli::app::{App, Server};
use crate::cli::commands::archiving::{Archiving, describe_archiving};
use crate::cli::commands::describe;
use crate::cli::commands::preview::{answer, describe_preview};
use crate::cli::commands::wanted::{Found, POSITION, Wanted, describe_created, describe_route};
use crate::cli::recording::Subject;
use crate::cli::report::{Answer, Fields, Value, field};
use crate::error::Result;
use crate::restore::databases::Chosen;
use crate::restore::recovery::IGNORE_INVALID_PAGES;
use crate::restore::selection::Selection;
use crate::restore::{self, Differences, Target, preview, tablespaces::TablespaceMapping};

/// Write a data directory that starts
///
/// The cluster is written to DIRECTORY/SERVER-IDENTIFIER. Started by its own version's postgres it
/// recovers to a consistent state with the WAL in the backup, or goes on from there to POSITION with the
/// archived WAL. Whether all of that is there is checked before anything is written.
#[derive(Debug, Args)]
#[command(after_help = POSITION)]
pub(crate) struct Restore {
    #[command(flatten)]
    wanted: Wanted,
    /// Put a tablespace, named by path, OID or name, into another folder
    #[arg(long, value_name = "OLD=NEW")]
    tablespace: Vec<TablespaceMapping>,
    /// Restore this database, and none but those that are named and PostgreSQL's own
    #[arg(long, value_name = "NAME", conflicts_with = "delta")]
    database: Vec<String>,
    #[command(flatten)]
    archiving: Archiving,
    /// Replace what is in the target
    #[arg(long)]
    force: bool,
    /// Write only what differs over a data directory of the server, DIRECTORY itself or the one in it
    #[arg(long, conflicts_with = "force")]
    delta: bool,
    /// Tell what would be done and all that speaks against it, and write nothing
    #[arg(long)]
    dry_run: bool,
}

impl Restore {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let mut request = self.wanted.request();
        if !self.database.is_empty() {
            request.insert(1, field("Databases", names(&self.database)));
        }
        if self.delta {
            request.push(field("Delta", true));
        }
        if self.dry_run {
            request.push(field("DryRun", true));
        }
        request
    }

    /// Restores it.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let server = self.wanted.server(app)?;
        if self.dry_run {
            return self.write(app, server, &Subject::default());
        }
        let folder = server.folder.clone();
        app.recorded(&folder, "restore", |subject| {
            self.write(app, server, subject)
        })
    }

    fn write(&self, app: &App, server: Server, subject: &Subject) -> Result<Answer> {
        let found = self.wanted.find(app, server, &self.database)?;
        let way = &found.way;
        subject.set(Some(way.chain.newest.info.backup));
        let all = Selection::default();
        let chosen = found.chosen.as_ref();
        let request = restore::Request {
            chain: &way.chain,
            selection: chosen.map_or(&all, |chosen| &chosen.selection),
            ignores_invalid_pages: chosen.is_some_and(|chosen| chosen.ignores_invalid_pages),
            target: Target::Named(found.directory.clone()),
            source_settings: self.archiving.source_settings(&way.recovery),
            recovery: way.recovery.clone(),
            mappings: &self.tablespace,
            created: &way.created,
            reads: &way.reads,
            force: self.force,
            workers: found.server.readers,
        };
        if self.dry_run {
            return self.tell(app, &found, &request);
        }
        let (root, differences) = if self.delta {
            let replaced = restore::run_over(&request, &*app.progress, &app.interrupt)?;
            (replaced.root, Some(replaced.differences))
        } else {
            let root = restore::run(&request, &*app.progress, &app.interrupt)?;
            (root, None)
        };
        let mut response = describe::summary(&way.chain.newest.info);
        response.push(field("Directory", root.display().to_string()));
        response.extend(differences.map(describe_differences));
        response.extend(describe_recovery(&found, &request));
        if let Some(chosen) = chosen {
            warn_of_left_out(chosen);
        }
        Ok(Answer::success(response))
    }

    /// Tells what it would do.
    fn tell(&self, app: &App, found: &Found, request: &restore::Request<'_>) -> Result<Answer> {
        let preview = match self.delta {
            true => preview::preview_over(request, &*app.progress, &app.interrupt)?,
            false => preview::preview(request)?,
        };
        let mut response = describe_preview(found, request.source_settings, &preview)?;
        response.extend(preview.differences.map(describe_differences));
        response.extend(describe_recovery(found, request));
        Ok(answer(response, preview.problems))
    }
}

/// How the restored cluster recovers and goes on.
fn describe_recovery(found: &Found, request: &restore::Request<'_>) -> Fields {
    let mut fields = vec![describe_archiving(request.source_settings)];
    fields.extend(describe_route(&found.way.route));
    fields.extend(describe_created(&found.way.created));
    if let Some(chosen) = &found.chosen {
        fields.push(field("Databases", names(&chosen.kept)));
        fields.push(field("DatabasesLeftOut", names(&chosen.left_out)));
    }
    fields
}

fn names(names: &[String]) -> Vec<Value> {
    names.iter().map(|name| name.as_str().into()).collect()
}

/// What is left of them must go before anything stumbles over it.
fn warn_of_left_out(chosen: &Chosen) {
    if chosen.left_out.is_empty() {
        return;
    }
    let names = chosen.left_out.join(", ");
    log::warn!(
        "these databases are left out, and are there as names only, which nobody can connect to: {names}. Drop them once the \
         restored server has recovered (DROP DATABASE), as their age holds back VACUUM, and autovacuum complains of them"
    );
    if chosen.ignores_invalid_pages {
        log::warn!(
            "recovery is set to pass over pages that it misses ({IGNORE_INVALID_PAGES}), as the WAL changes pages of the databases that \
             are left out. In the server's log, \"page ... of relation base/OID/...\" must name none but those. Once recovered: \
             ALTER SYSTEM RESET {IGNORE_INVALID_PAGES}, and restart it"
        );
    }
}

/// What a restore over a data directory found there, and did.
fn describe_differences(differences: Differences) -> (String, Value) {
    let Differences {
        same_files,
        changed_files,
        new_files,
        removed,
        read,
        fetched,
        written,
    } = differences;
    let fields = vec![
        field("SameFiles", same_files),
        field("ChangedFiles", changed_files),
        field("NewFiles", new_files),
        field("Removed", removed),
        field("Read", Value::Size(read)),
        field("Fetched", Value::Size(fetched)),
        field("Written", Value::Size(written)),
    ];
    field("Differences", Value::Map(fields))
}
