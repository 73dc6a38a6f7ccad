//! A folder of its own for each cluster and each repository.
//!
//! The folders lie below one short path, because the path of a Unix socket may
//! be 107 bytes long at most. Each is named after the process that made it, so
//! that the next run finds what a killed one left, servers included.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};

use super::account;

/// A folder that is removed in the end.
pub struct Ground {
    path: PathBuf,
}

impl Ground {
    /// Makes an empty folder that the unprivileged account owns.
    pub fn new() -> Ground {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = root().join(format!("{}-{number}", std::process::id()));
        make(&path);
        Ground { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a folder in it, for the account alone.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        make(&path);
        path
    }

    /// Writes a file in it that the account owns.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, content).unwrap();
        account::give(&path);
        path
    }

    /// The same, for the account alone.
    pub fn secret(&self, name: &str, content: &str) -> PathBuf {
        let path = self.file(name, content);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if std::env::var_os("PGKEEP_TEST_KEEP").is_some() {
            eprintln!("kept {}", self.path.display());
        } else {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The folder that holds all others, cleared once of what dead runs left there.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let root = std::env::var_os("PGKEEP_TEST_DIR").map_or_else(
            || PathBuf::from(format!("/tmp/pgkeep-test-{}", account::uid())),
            PathBuf::from,
        );
        if !root.exists() {
            // Another process may do the same, and must not find it half made.
            let name = format!("{}.{}", root.display(), std::process::id());
            let beside = PathBuf::from(name);
            make(&beside);
            fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)).unwrap();
            if let Err(error) = fs::rename(&beside, &root) {
                let _ = fs::remove_dir(&beside);
                assert!(root.exists(), "cannot create {}: {error}", root.display());
            }
        }
        assert_eq!(
            fs::symlink_metadata(&root).unwrap().uid(),
            account::uid(),
            "{} belongs to somebody else",
            root.display()
        );
        clear_leftovers(&root);
        root
    })
}

/// A folder below the root for the account, which is kept for all tests: `make` fills it where nobody has yet, and is
/// given a path in it that does not exist. Gives that path.
pub fn made_once(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let folder = root().join(name);
    let lock = File::create(folder.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    let made = folder.join("data");
    let finished = folder.join("finished");
    if !finished.exists() {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        account::give(&folder);
        make(&made);
        fs::write(finished, "").unwrap();
    }
    made
}

/// Copies a folder with all that is in it, to a path that does not exist.
pub fn copy(from: &Path, to: &Path) {
    let mut copy = account::command("cp");
    account::run(copy.args(["-a", "--reflink=auto"]).arg(from).arg(to));
}

fn make(path: &Path) {
    fs::create_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    account::give(path);
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
}

/// Removes the folders of test processes that are gone.
fn clear_leftovers(root: &Path) {
    for entry in fs::read_dir(root).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let owner = name.split('-').next().unwrap_or_default();
        let is_process = !owner.is_empty() && owner.bytes().all(|byte| byte.is_ascii_digit());
        // This process has made nothing yet: what has its number is from another before.
        let is_ours = owner == std::process::id().to_string();
        if is_process && (is_ours || !Path::new("/proc").join(owner).exists()) {
            stop_servers_below(&entry.path());
            unmount_below(&entry.path());
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Kills the servers whose data directory lies below a folder: a postmaster's
/// working directory is its data directory, so a reused pid is not mistaken.
fn stop_servers_below(folder: &Path) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let works_in = fs::read_link(entry.path().join("cwd"));
        if let (Some(pid), Ok(works_in)) = (pid.and_then(Pid::from_raw), works_in)
            && works_in.starts_with(folder)
        {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for point in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(point).starts_with(folder) {
            let _ = Command::new("umount").arg(point).status();
        }
    }
}
