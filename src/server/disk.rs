//! A server's data directory where it is a folder of this machine.
//!
//! Files are read as the server itself reads them, from its disk, which spares it the work of handing them out. Root reads
//! in a folder that belongs to another account: what that account may not be allowed to read, the server is asked for.

mod listing;
mod proof;

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fstatfs, open, openat};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// A data directory that was proven to be the server's.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    folder: OwnedFd,
    /// Whose files are read, where this process could read anybody's.
    only_of: Option<u32>,
}

/// What there is to be read at a path.
pub(super) enum Opened {
    /// A file.
    File(File),
    /// No file.
    Nothing,
    /// What is the server's to read: a link, or what belongs to somebody else, or is closed to this process.
    Others,
}

impl DataDirectory {
    /// Opens a folder, which may be any.
    fn open(path: &Path) -> io::Result<DataDirectory> {
        let folder = open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let metadata = File::from(folder.try_clone()?).metadata()?;
        let is_root = rustix::process::geteuid().is_root();
        Ok(DataDirectory {
            path: path.to_owned(),
            folder,
            only_of: is_root.then(|| metadata.uid()),
        })
    }

    /// Whether its disk may be another machine's, which this one need not see as the server does.
    fn is_shared(&self) -> Result<bool> {
        // Linux's fs magic numbers (linux/magic.h), and those of CIFS and SMB2 (fs/smb).
        const NETWORK: [i64; 7] = [
            0x6969,      // NFS
            0xFF53_4D42, // CIFS
            0xFE53_4D42, // SMB2
            0x00C3_6400, // Ceph
            0x0102_1997, // 9P
            0x6573_5546, // FUSE
            0x5346_414F, // AFS
        ];
        let found =
            fstatfs(&self.folder).map_err(|error| self.failed("look at", "", &error.into()))?;
        Ok(NETWORK.contains(&(found.f_type as i64 & 0xFFFF_FFFF)))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file below it. What lies elsewhere is the server's to read.
    pub(super) fn file(&self, path: &str) -> Result<Opened> {
        if path.starts_with('/') {
            return Ok(Opened::Others);
        }
        // Nobody waits for the writer of a pipe.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match openat(&self.folder, path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            // A socket cannot be opened.
            Err(Errno::NOENT | Errno::NXIO) => return Ok(Opened::Nothing),
            Err(Errno::ACCESS | Errno::PERM | Errno::LOOP | Errno::NOTDIR) => {
                return Ok(Opened::Others);
            }
            Err(error) => return Err(self.failed("read", path, &error.into())),
        };
        let metadata = file
            .metadata()
            .map_err(|error| self.failed("read", path, &error))?;
        Ok(match (metadata.is_file(), self.reads(&metadata)) {
            (true, true) => Opened::File(file),
            (true, false) => Opened::Others,
            // It was put there since the listing: the server would wait for the other end of a pipe for ever.
            (false, _) => Opened::Nothing,
        })
    }

    fn reads(&self, metadata: &Metadata) -> bool {
        self.only_of.is_none_or(|owner| metadata.uid() == owner)
    }

    /// Reads a part of an open file into `part`, up to the file's end. Gives how many bytes that are.
    pub(super) fn read(
        &self,
        file: &File,
        path: &str,
        offset: u64,
        part: &mut [u8],
    ) -> Result<usize> {
        let mut done = 0;
        while done < part.len() {
            match file.read_at(&mut part[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(bytes) => done += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed("read", path, &error)),
            }
        }
        Ok(done)
    }

    /// Appends a part of an open file to `into`, up to the file's end; memory is not filled before.
    pub(super) fn append(
        &self,
        mut file: File,
        path: &str,
        offset: u64,
        length: u64,
        into: &mut Vec<u8>,
    ) -> Result<usize> {
        file.seek(SeekFrom::Start(offset))
            .and_then(|_| file.take(length).read_to_end(into))
            .map_err(|error| self.failed("read", path, &error))
    }

    fn failed(&self, action: &str, path: &str, error: &io::Error) -> Error {
        let failure = Error::io(action, &self.path.join(path), error);
        match error.kind() {
            io::ErrorKind::PermissionDenied => failure
                .hint("run pgkeep as the account that the server runs as, or set source = sql"),
            _ => failure,
        }
    }
}
