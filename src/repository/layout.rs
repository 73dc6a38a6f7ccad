//! Where everything lies below `base_dir`.

use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::repository::identifier::Identifier;
use crate::storage::{Place, durable};
use crate::stored::coding::Suffix;

/// The format of the repository that this pgkeep reads and writes.
pub const FORMAT: u32 = 1;

const VERSION_FILE: &str = "repository.version";

/// One server's part of the repository.
#[derive(Debug, Clone)]
pub struct ServerFolder {
    base: Place,
    root: Place,
}

impl ServerFolder {
    /// The folder of `server`, whose name must be one a folder can have.
    pub fn new(base: impl Into<Place>, server: &str) -> ServerFolder {
        let base = base.into();
        ServerFolder {
            root: base.join(server),
            base,
        }
    }

    /// Refuses a repository of a newer format. Nothing there yet is fine.
    pub fn check_format(&self) -> Result<()> {
        self.is_begun().map(drop)
    }

    /// Whether there is a repository: its base might not be mounted. One of a newer format is refused.
    pub fn is_begun(&self) -> Result<bool> {
        let path = self.base.join(VERSION_FILE);
        let Some(content) = path.read()? else {
            return Ok(false);
        };
        let content = String::from_utf8_lossy(&content);
        match content.trim().parse::<u32>() {
            Ok(FORMAT) => Ok(true),
            Ok(other) => Err(Error::failed(format!(
                "the repository {} has format {other}, and this pgkeep knows format {FORMAT}",
                self.base
            ))
            .hint("use the pgkeep that wrote it, or a newer one")),
            Err(_) => Err(Error::failed(format!(
                "{path} does not hold a format number, but {:?}",
                content.trim()
            ))
            .hint(format!(
                "if this is a repository of pgkeep, put the line {FORMAT} into that file"
            ))),
        }
    }

    /// Creates the folders and marks the repository with its format. Once this returns, all of it is on disk.
    pub fn create(&self) -> Result<()> {
        self.check_format()?;
        if let (Place::Local(base), Place::Local(backups)) = (&self.base, &self.backups())
            && !durable::exists(backups)?
        {
            // From the outside in: whoever finds the innermost may rely on the others' names being on disk.
            durable::create_synced_folder(base)?;
            durable::create_synced_folder(backups)?;
        }
        let version = self.base.join(VERSION_FILE);
        // In a store, to try is to learn whether it leaves what is there as it is.
        let is_there = version.local().is_some() && version.exists()?;
        if !is_there && version.create(format!("{FORMAT}\n").as_bytes())? {
            self.base.sync_folder()?;
            version.check_conditions()?;
        }
        Ok(())
    }

    /// The same, for what is to be done even when it is time to stop.
    pub fn for_cleaning_up(&self) -> ServerFolder {
        ServerFolder {
            base: self.base.for_cleaning_up(),
            root: self.root.for_cleaning_up(),
        }
    }

    /// The server's own folder.
    pub fn root(&self) -> &Place {
        &self.root
    }

    /// The same as it was at a moment, where the storage keeps that.
    pub fn as_of(&self, moment: Timestamp) -> Result<ServerFolder> {
        let base = self.base.as_of(moment)?;
        let root = base.join(&self.root.name());
        Ok(ServerFolder { base, root })
    }

    /// The file whose lock makes its holder the one writer.
    pub fn lock(&self) -> Place {
        self.root.join("lock")
    }

    /// The file whose lock makes its holder the one who changes what is noted of finished backups.
    pub fn info_lock(&self) -> Place {
        self.root.join("info.lock")
    }

    /// The file whose lock makes its holder the one who copies WAL.
    pub fn copy_lock(&self) -> Place {
        self.root.join("wal.lock")
    }

    /// The file whose lock makes its holder the one who folds the history.
    pub fn history_lock(&self) -> Place {
        self.root.join("history.lock")
    }

    /// The folder that says what was done so far.
    pub fn history(&self) -> Place {
        self.root.join("history")
    }

    /// The folder that holds the backups.
    pub fn backups(&self) -> Place {
        self.root.join("backup")
    }

    /// The folder that holds the archived WAL.
    pub fn wal(&self) -> Place {
        self.root.join("wal")
    }

    /// The folder that holds the block maps of the WAL.
    pub fn summaries(&self) -> Place {
        self.root.join("summary")
    }

    /// A finished backup.
    pub fn backup(&self, identifier: Identifier) -> BackupFolder {
        BackupFolder::new(self.backups().join(&identifier.to_string()))
    }
}

/// A backup's folder, finished or being built.
#[derive(Debug, Clone)]
pub struct BackupFolder {
    /// Where `backup.info` lies.
    home: Place,
    /// Where all else lies: there too, or in a folder below it.
    place: Place,
}

/// The name of the stored PGDATA tree in a backup's folder.
pub const DATA: &str = "data";
/// The name of the further files' tree in a backup's folder.
pub const EXTRA: &str = "extra";
/// The name of the bundles' folder in a backup's folder.
pub const BUNDLES: &str = "bundles";

impl BackupFolder {
    /// The backup in this folder.
    pub fn new(place: Place) -> BackupFolder {
        BackupFolder {
            home: place.clone(),
            place,
        }
    }

    /// The same backup, whose stored files lie in a folder below that of its `backup.info`.
    pub fn with_files_in(&self, folder: &str) -> BackupFolder {
        BackupFolder {
            home: self.home.clone(),
            place: self.home.join(folder),
        }
    }

    /// The folder of its stored files.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// `backup.info`.
    pub fn info(&self) -> Place {
        self.home.join(INFO)
    }

    /// `backup.sha512`.
    pub fn checksums(&self) -> Place {
        self.place.join(CHECKSUMS)
    }

    /// A stored file by its path in this folder.
    pub fn stored(&self, relative: &str) -> Place {
        self.place.join(relative)
    }
}

/// The name of the folder that says what a part of an unfinished backup has stored so far.
pub const JOURNAL: &str = "journal";
/// `backup.info` by its name.
pub const INFO: &str = "backup.info";
/// The new `backup.info` until it replaces the old one.
pub const INFO_BESIDE: &str = "backup.info.tmp";
/// `backup.sha512` by its name.
pub const CHECKSUMS: &str = "backup.sha512";

/// The list of files, as a path in the backup's folder.
pub fn file_list(suffix: Suffix) -> String {
    format!("backup.files{suffix}")
}

/// A file that is stored by itself, as a path in the backup's folder. `path`
/// is relative to PGDATA, or absolute for a further file of the server.
pub fn stored_file(path: &str, suffix: Suffix) -> String {
    match path.strip_prefix('/') {
        Some(further) => format!("{EXTRA}/{further}{suffix}"),
        None => format!("{DATA}/{path}{suffix}"),
    }
}

/// A bundle, as a path in the backup's folder.
pub fn bundle(number: u32, suffix: Suffix) -> String {
    format!("{BUNDLES}/{number:06}.tar{suffix}")
}
