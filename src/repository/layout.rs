//! Where everything lies below `base_dir`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::repository::durable;
use crate::repository::identifier::Identifier;
use crate::stored::coding::Suffix;

/// The format of the repository that this pgkeep reads and writes.
pub const FORMAT: u32 = 1;

const VERSION_FILE: &str = "repository.version";

/// One server's part of the repository.
#[derive(Debug, Clone)]
pub struct ServerFolder {
    base: PathBuf,
    root: PathBuf,
}

impl ServerFolder {
    /// The folder of `server`, whose name must be one a folder can have.
    pub fn new(base_dir: &Path, server: &str) -> ServerFolder {
        ServerFolder {
            base: base_dir.to_owned(),
            root: base_dir.join(server),
        }
    }

    /// Refuses a repository of a newer format. Nothing there yet is fine.
    pub fn check_format(&self) -> Result<()> {
        let path = self.base.join(VERSION_FILE);
        let content = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("read", &path, &error)),
            Ok(content) => content,
        };
        match content.trim().parse::<u32>() {
            Ok(FORMAT) => Ok(()),
            Ok(other) => Err(Error::failed(format!(
                "the repository {} has format {other}, and this pgkeep knows format {FORMAT}",
                self.base.display()
            ))
            .hint("use the pgkeep that wrote it, or a newer one")),
            Err(_) => Err(Error::failed(format!(
                "{} does not hold a format number, but {:?}",
                path.display(),
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
        let backups = self.backups();
        if !durable::exists(&backups)? {
            // From the outside in: whoever finds the innermost may rely on the others' names being on disk.
            durable::create_synced_folder(&self.base)?;
            for folder in [&self.root, &backups] {
                durable::create_folder(folder)?;
                durable::sync_parent(folder)?;
            }
        }
        let version = self.base.join(VERSION_FILE);
        if !durable::exists(&version)? {
            durable::create_file(&version, format!("{FORMAT}\n").as_bytes())?;
            durable::sync_folder(&self.base)?;
        }
        Ok(())
    }

    /// The server's own folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file whose lock makes its holder the one writer.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The file whose lock makes its holder the one who changes what is noted of finished backups.
    pub fn info_lock(&self) -> PathBuf {
        self.root.join("info.lock")
    }

    /// The file whose lock makes its holder the one who copies WAL.
    pub fn copy_lock(&self) -> PathBuf {
        self.root.join("wal.lock")
    }

    /// The folder that holds the backups.
    pub fn backups(&self) -> PathBuf {
        self.root.join("backup")
    }

    /// The folder that holds the archived WAL.
    pub fn wal(&self) -> PathBuf {
        self.root.join("wal")
    }

    /// The folder that holds the block maps of the WAL.
    pub fn summaries(&self) -> PathBuf {
        self.root.join("summary")
    }

    /// A finished backup.
    pub fn backup(&self, identifier: Identifier) -> BackupFolder {
        BackupFolder::new(self.backups().join(identifier.to_string()))
    }
}

/// A backup's folder, finished or being built.
#[derive(Debug, Clone)]
pub struct BackupFolder {
    path: PathBuf,
}

/// The name of the stored PGDATA tree in a backup's folder.
pub const DATA: &str = "data";
/// The name of the further files' tree in a backup's folder.
pub const EXTRA: &str = "extra";
/// The name of the bundles' folder in a backup's folder.
pub const BUNDLES: &str = "bundles";

impl BackupFolder {
    /// The backup in this folder.
    pub fn new(path: PathBuf) -> BackupFolder {
        BackupFolder { path }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `backup.info`.
    pub fn info(&self) -> PathBuf {
        self.path.join(INFO)
    }

    /// `backup.sha512`.
    pub fn checksums(&self) -> PathBuf {
        self.path.join(CHECKSUMS)
    }

    /// A stored file by its path in this folder.
    pub fn stored(&self, relative: &str) -> PathBuf {
        self.path.join(relative)
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
