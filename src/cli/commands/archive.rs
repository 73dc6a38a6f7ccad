use clap::Args;

use crate::archive::{self, NeededWal};
use crate::cli::app::{App, Server};
use crate::cli::commands::archiving::{Archiving, describe_archiving};
use crate::cli::commands::describe;
use crate::cli::commands::wanted::{POSITION, Wanted, describe_created, describe_route};
use crate::cli::recording::Subject;
use crate::cli::report::{Answer, Fields, Value, field};
use crate::error::Result;

/// Write one compressed tar of what restore would write
///
/// The tar is DIRECTORY/SERVER-IDENTIFIER.tar with the suffix of the compression that is configured, such as .zstd,
/// and .aes where encryption is; pgkeep decrypt undoes that. Unpacked anywhere by tar as the server's user,
/// the cluster starts: the archived WAL that leads to POSITION is in it, and tablespaces lie beside
/// the data directory, where relative links lead to them.
#[derive(Debug, Args)]
#[command(after_help = POSITION)]
pub(crate) struct Archive {
    #[command(flatten)]
    wanted: Wanted,
    #[command(flatten)]
    archiving: Archiving,
}

impl Archive {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        self.wanted.request()
    }

    /// Writes the archive.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let server = self.wanted.server(app)?;
        let folder = server.folder.clone();
        app.recorded(&folder, "archive", |subject| {
            self.write(app, server, subject)
        })
    }

    fn write(&self, app: &App, server: Server, subject: &Subject) -> Result<Answer> {
        let found = self.wanted.find(app, server, &[])?;
        subject.set(Some(found.way.chain.newest.info.backup));
        let coding = found.server.coding()?;
        let held = found.way.held.as_ref();
        let request = archive::Request {
            chain: &found.way.chain,
            source_settings: self.archiving.source_settings(&found.way.recovery),
            recovery: found.way.recovery.with_all_wal_at_hand(),
            wal: held.and_then(|held| NeededWal::of(&found.way.route, held)),
            directory: found.directory,
            coding: &coding,
            workers: found.server.readers,
        };
        let archived = archive::run(&request, &*app.progress, &app.interrupt)?;
        let mut response = describe::summary(&found.way.chain.newest.info);
        response.push(field("File", archived.path.display().to_string()));
        response.push(field("Size", Value::Size(archived.size)));
        response.push(describe_archiving(request.source_settings));
        response.extend(describe_route(&found.way.route));
        response.extend(describe_created(&found.way.created));
        for created in &found.way.created {
            log::warn!(
                "recovery of the unpacked cluster creates tablespace {} in {}: unpack it only where that is an empty folder of \
                 the server's user, and never beside the server that has its tablespace there",
                created.oid,
                created.folder.display()
            );
        }
        Ok(Answer::success(response))
    }
}
