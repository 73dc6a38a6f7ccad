//! What a restore would do, for the report of `--dry-run`.

use crate::cli::commands::describe;
use crate::cli::commands::wanted::{Found, Way};
use crate::cli::report::{Answer, Fields, Value, field};
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::recovery::target::TargetTimeline;
use crate::pg::timestamp;
use crate::pg::version::Major;
use crate::private_server;
use crate::repository::history::{self, Run};
use crate::repository::identifier::Identifier;
use crate::repository::layout::ServerFolder;
use crate::restore::plan::Route;
use crate::restore::preview::Preview;
use crate::restore::recovery::SourceSettings;

/// The backups, where all goes, and what speaks against it.
pub(super) fn describe_preview(
    found: &Found,
    settings: SourceSettings,
    preview: &Preview,
) -> Result<Fields> {
    let (way, folder) = (&found.way, &found.server.folder);
    let info = &way.chain.newest.info;
    let mut fields = describe::summary(info);
    fields.push(describe_chain(way));
    fields.push(field("Directory", preview.root.display().to_string()));
    let tablespaces = preview.tablespaces.iter().map(|placed| {
        Value::Map(vec![
            field("Oid", placed.oid),
            field("Path", placed.folder.display().to_string()),
        ])
    });
    fields.push(field("Places", tablespaces.collect::<Vec<Value>>()));
    fields.push(field("NumberOfFiles", info.number_of_files));
    fields.extend(describe_wal(way, folder)?);
    let lines = way.recovery.added_settings(settings, info);
    let lines = lines.into_iter().map(Value::from);
    fields.push(field("Settings", lines.collect::<Vec<Value>>()));
    fields.push(field("SignalFile", way.recovery.signal_file()));
    fields.push(field("ServerPrograms", server_programs(info.major_version)));
    fields.extend(describe_time(folder, info.backup, info.restore_size));
    Ok(fields)
}

/// The backups that are read.
pub(super) fn describe_chain(way: &Way) -> (String, Value) {
    let chain = way.chain.infos().map(|info| info.backup.into());
    field("Chain", chain.collect::<Vec<Value>>())
}

/// How long so many bytes should take, by the newest run that restored or read this backup; or else another one.
pub(super) fn describe_time(folder: &ServerFolder, backup: Identifier, bytes: u64) -> Fields {
    // That nothing can be read of what was hinders nothing.
    let Ok((runs, _)) = history::read(folder) else {
        return Vec::new();
    };
    let is_alike = |run: &&Run| {
        let is_alike = ["restore", "drill", "verify"].contains(&run.command.as_str());
        is_alike && run.status == 0 && run.rate().is_some_and(|rate| rate > 0)
    };
    let of_backup = runs.iter().rev().filter(is_alike);
    let Some(run) = of_backup
        .clone()
        .find(|run| run.backup == Some(backup))
        .or_else(|| of_backup.clone().next())
    else {
        return Vec::new();
    };
    let seconds = bytes.div_ceil(run.rate().unwrap_or(1));
    let about = run.backup.map(|backup| format!(" of backup {backup}"));
    let measured = format!(
        "{}{} at {}",
        run.command,
        about.unwrap_or_default(),
        timestamp::text(run.start)
    );
    vec![
        field("ExpectedSeconds", seconds),
        field("ExpectedFrom", measured),
    ]
}

/// The archived WAL that recovery would get.
pub(super) fn describe_wal(way: &Way, folder: &ServerFolder) -> Result<Fields> {
    let Some(held) = &way.held else {
        return Ok(Vec::new());
    };
    let contents = &way.chain.newest;
    let info = &contents.info;
    let (timeline, landing) = match &way.route {
        Route::OwnWal => return Ok(Vec::new()),
        Route::Archive {
            timeline,
            destination,
        } => {
            let landing = destination.as_ref().and_then(|there| there.landing.lsn);
            (TargetTimeline::Number(*timeline), landing)
        }
        Route::Replica {
            timeline: Some(timeline),
            ..
        } => (TargetTimeline::Number(*timeline), None),
        Route::Replica { .. } => (TargetTimeline::Latest, None),
    };
    // What it does not find in the archive, a replica gets from its primary.
    let Ok(history) = held.history(info, timeline) else {
        return Ok(Vec::new());
    };
    let path = held.way(&contents.folder, info, history)?.path;
    let end = landing.unwrap_or(Lsn(u64::MAX));
    let size = held.segment_size();
    let archived = path.archived().filter(|(_, start)| *start < end);
    let names: Vec<String> = archived.map(|(name, _)| name.file_name(size)).collect();
    let mut wal = vec![
        field("Segments", names.len() as u64),
        field("Bytes", Value::Size(names.len() as u64 * size.bytes())),
        field("From", folder.wal().to_string()),
    ];
    wal.extend(names.first().map(|name| field("First", name.as_str())));
    wal.extend(names.last().map(|name| field("Last", name.as_str())));
    wal.push(field("EndLSN", landing.unwrap_or(path.end())));
    Ok(vec![field("ArchivedWal", Value::Map(wal))])
}

/// Whether the cluster can be started on this machine: a note, as it may be meant for another one.
fn server_programs(major_version: u32) -> String {
    let search_path = std::env::var_os("PATH");
    let found = Major::from_number(major_version)
        .and_then(|major| private_server::server_programs(major, search_path.as_deref()));
    match found {
        Some((bin, version)) => format!("{version} in {}", bin.display()),
        None => format!("no server of PostgreSQL {major_version} was found on this machine"),
    }
}

/// The answer that a restore would end with.
pub(super) fn answer(mut fields: Fields, problems: Vec<Error>) -> Answer {
    let each = problems.iter().map(|error| match error.advice() {
        Some(advice) => Value::from(format!("{} ({advice})", error.message())),
        None => error.message().into(),
    });
    fields.push(field("Problems", each.collect::<Vec<Value>>()));
    Answer {
        response: fields,
        error: problems.into_iter().next(),
        ..Answer::default()
    }
}
