//! What lies in a repository: one folder a server, with its backups.
//!
//! ```text
//! base_dir/repository.version              the format of everything below it
//! base_dir/SERVER/lock                     held by the one writer, with its pid
//! base_dir/SERVER/info.lock                held for moments, while a backup.info is replaced
//! base_dir/SERVER/backup/IDENTIFIER/       a finished backup
//!     backup.info                          what `info` shows; written last
//!     backup.sha512                        every stored file, for sha512sum --check
//!     backup.files[SUFFIX]                 every file of the cluster and where it is stored
//!     data/…                               PGDATA's tree, each file with its suffix
//!     bundles/NNNNNN.tar[SUFFIX]           the small files of data/
//!     extra/…                              further files of the server
//! base_dir/SERVER/backup/IDENTIFIER.building/
//!                                          a backup that is not finished: no command takes it for
//!                                          one, the next backup takes it over or removes it; a
//!                                          folder for each of its passes is in there
//! base_dir/SERVER/wal.lock                 held by the one who copies WAL, with its pid
//! base_dir/SERVER/wal/archive.info         which cluster's WAL it is
//! base_dir/SERVER/wal/NAME[SUFFIX]         a segment, a history file, …
//! base_dir/SERVER/wal/incoming/            what is being written
//! base_dir/SERVER/summary/                 block maps of the WAL, named like WAL summaries
//! base_dir/SERVER/history/                 the runs so far, folded into one file from time to time
//! base_dir/SERVER/history.lock             held for moments, by who folds them
//! ```
//!
//! A backup becomes one by a rename, the last step; so a crash at any point
//! leaves every finished backup whole.
//!
//! In an object store these are keys, and little differs, as nothing there can be renamed:
//!
//! ```text
//! SERVER/backup/IDENTIFIER/backup.info     written last: it makes the backup, and says by `Folder` where all else lies
//! SERVER/backup/IDENTIFIER/NAME.STAMP/     all else, from the beginning on
//! SERVER/backup/IDENTIFIER.building.STAMP  there as long as the backup is being made, replaced or deleted
//! SERVER/lock, info.lock, wal.lock         there as long as they are held, with their holder; who does not renew his loses it
//! ```

pub mod backup_info;
pub mod block_maps;
pub mod blocks;
pub mod bundling;
pub mod catalogue;
pub mod chain;
pub mod checksums;
pub mod content_writer;
pub mod contents;
pub mod file_list;
pub mod history;
pub mod identifier;
pub mod incoming;
pub mod layout;
pub mod lock;
pub mod merge;
pub mod portions;
pub mod roll_forward;
pub mod staging;
pub mod store;
pub mod wal_archive;
pub mod wal_path;
