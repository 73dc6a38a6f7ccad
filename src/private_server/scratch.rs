//! The folder that a cluster is rebuilt in.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::private_server::Host;
use crate::progress::Progress;
use crate::repository::chain::Chain;
use crate::restore::folder::Folder;
use crate::restore::recovery::{Recovery, SourceSettings};
use crate::restore::selection::Selection;
use crate::restore::{self, Target, tablespaces::TablespaceMapping};

/// The folder that a cluster is rebuilt in; it goes whatever happens.
pub(crate) struct Scratch {
    above: Folder,
    name: PathBuf,
    folder: Folder,
}

/// What is rebuilt.
pub(crate) struct Rebuild<'a> {
    pub(crate) chain: &'a Chain,
    /// Which files come whole.
    pub(crate) selection: &'a Selection,
    /// How far the cluster will recover.
    pub(crate) recovery: Recovery,
    /// Threads that write.
    pub(crate) workers: usize,
}

impl Scratch {
    /// A folder for this cluster below `directory`, of the account that will run it where one will. `purpose` is what its name
    /// ends in.
    pub(crate) fn create(
        chain: &Chain,
        directory: &Path,
        purpose: &str,
        host: Option<&Host>,
    ) -> Result<Scratch> {
        let info = &chain.newest.info;
        // Links of tablespaces must be absolute.
        let directory = std::path::absolute(directory)
            .map_err(|error| Error::io("find the folder", directory, &error))?;
        let name = PathBuf::from(format!("{}-{}.{purpose}", info.server, info.backup));
        let above = Folder::create(&directory)?;
        if above.has(&name)? {
            let there = directory.join(name);
            return Err(
                Error::failed(format!("{} is there already", there.display()))
                    .hint("remove it if no other pgkeep is working there"),
            );
        }
        above.create_folders(&name, 0o700)?;
        let scratch = Scratch {
            folder: above.subfolder(&name)?,
            above,
            name,
        };
        if let Some(host) = host {
            host.give(&scratch.folder)?;
        }
        Ok(scratch)
    }

    /// The folder itself.
    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Rebuilds the cluster; returns its data directory.
    pub(crate) fn rebuild(
        &self,
        rebuild: &Rebuild<'_>,
        progress: &dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<PathBuf> {
        let chain = rebuild.chain;
        let linked = chain.newest.info.tablespaces.iter();
        let mappings: Vec<TablespaceMapping> = linked
            .filter(|tablespace| tablespace.path.is_some())
            .map(|tablespace| {
                let folder = self.folder.path().join(tablespace_folder(tablespace.oid));
                TablespaceMapping::new(tablespace.oid, folder)
            })
            .collect();
        let request = restore::Request {
            chain,
            selection: rebuild.selection,
            // What the server does about that, it is told when it is started.
            ignores_invalid_pages: false,
            target: Target::Held(self.folder.again()?),
            recovery: rebuild.recovery.clone(),
            source_settings: SourceSettings::LeftOut,
            mappings: &mappings,
            // Whoever lets it recover further has seen to it that there are none.
            created: &[],
            reads: &[],
            force: false,
            workers: rebuild.workers,
        };
        restore::run(&request, progress, interrupt)
    }

    /// Removes a file of the rebuilt cluster, by its path in PGDATA; it need not be there.
    pub(crate) fn remove(&self, chain: &Chain, path: &str) -> Result<()> {
        let info = &chain.newest.info;
        let in_tablespace = path.strip_prefix("pg_tblspc/").and_then(|rest| {
            let (oid, inside) = rest.split_once('/')?;
            let mut tablespaces = info.tablespaces.iter();
            let linked =
                tablespaces.find(|one| one.path.is_some() && one.oid.to_string() == oid)?;
            Some(PathBuf::from(tablespace_folder(linked.oid)).join(inside))
        });
        let root = PathBuf::from(format!("{}-{}", info.server, info.backup));
        self.folder
            .remove(&in_tablespace.unwrap_or_else(|| root.join(path)))
    }
}

/// Where a tablespace goes, beside the data directory.
fn tablespace_folder(oid: u32) -> String {
    format!("tablespace-{oid}")
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = self.above.remove(&self.name) {
            log::warn!("{error}");
        }
    }
}
