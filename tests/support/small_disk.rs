//! A disk that fills up.

use std::path::PathBuf;
use std::process::Command;

use super::account;
use super::checks;
use super::ground::Ground;

/// A file system of a few megabytes.
pub struct SmallDisk {
    pub folder: PathBuf,
    // Removed last, when nothing is mounted there any more.
    _ground: Ground,
}

impl SmallDisk {
    /// Mounts one, which only root may.
    pub fn new(size: &str) -> SmallDisk {
        let ground = Ground::new();
        let folder = ground.folder("small");
        let options = format!("size={size},mode=700,uid={}", account::uid());
        checks::shell(&format!(
            "mount -t tmpfs -o {options} none {}",
            checks::quoted(&folder)
        ));
        SmallDisk {
            folder,
            _ground: ground,
        }
    }

    /// Makes it larger.
    pub fn grow(&self, size: &str) {
        let folder = checks::quoted(&self.folder);
        checks::shell(&format!("mount -o remount,size={size} {folder}"));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}
