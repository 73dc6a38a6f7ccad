//! Creating the master key.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::storage::durable;
use crate::stored::master_key::{Fingerprint, Keyring, MasterKey};

/// A key that was just made.
pub struct Created {
    /// Its file.
    pub path: PathBuf,
    /// Names it.
    pub fingerprint: Fingerprint,
    /// Where the key lies that was in that file before.
    pub kept: Option<PathBuf>,
}

/// Makes the key that new files are encrypted with. One that is there is replaced only by `force`, and
/// then kept beside it, because what it encrypted can be read with no other.
pub fn create(keys: &Keyring, force: bool) -> Result<Created> {
    let path = keys.path()?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    durable::create_folder(folder)?;
    // Of two that replace the key at the same time, one would lose the other's.
    let _lock = lock(folder)?;
    let key = MasterKey::generate()?;
    let kept = if path.symlink_metadata().is_err() {
        None
    } else if force {
        Some(keep(keys, path)?)
    } else {
        return Err(Error::failed(format!(
            "there is a master key already: {}",
            path.display()
        ))
        .hint("use that one; pgkeep master-key --force makes another one and keeps this one beside it"));
    };
    match kept {
        Some(_) => durable::replace(path, key.text().as_bytes())?,
        None if durable::create(path, key.text().as_bytes())? => {}
        None => {
            let taken = format!("{} was created by another process", path.display());
            return Err(Error::failed(taken).hint("use that key"));
        }
    }
    Ok(Created {
        path: path.to_owned(),
        fingerprint: key.fingerprint(),
        kept,
    })
}

/// Puts a copy of the current key beside it, under its fingerprint.
fn keep(keys: &Keyring, path: &Path) -> Result<PathBuf> {
    let current = MasterKey::read(path)?;
    let beside = keys.path_of(current.fingerprint())?;
    let is_new = durable::create(&beside, current.text().as_bytes())?;
    if !is_new && MasterKey::read(&beside)?.fingerprint() != current.fingerprint() {
        return Err(Error::failed(format!(
            "{} is there already, and is another key than its name says",
            beside.display()
        ))
        .hint("move it away, then run the same command again"));
    }
    Ok(beside)
}

fn lock(folder: &Path) -> Result<File> {
    let opened = File::open(folder).map_err(|error| Error::io("open", folder, &error))?;
    opened
        .lock()
        .map_err(|error| Error::io("lock", folder, &error))?;
    Ok(opened)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_key_is_private_and_never_replaced_unasked() {
        let base = tempfile::tempdir().unwrap();
        let keys = Keyring::new(Some(base.path().join("pgkeep/master.key")));
        assert!(
            keys.current()
                .unwrap_err()
                .message()
                .contains("no master key")
        );
        let created = create(&keys, false).unwrap();
        assert_eq!(mode(&created.path), 0o600);
        assert_eq!(mode(created.path.parent().unwrap()), 0o700);
        let text = fs::read_to_string(&created.path).unwrap();
        assert_eq!(text.trim_end().len(), 64, "{text}");
        assert!(create(&keys, false).is_err());
        assert_eq!(fs::read_to_string(&created.path).unwrap(), text);
        assert_eq!(keys.current().unwrap().fingerprint(), created.fingerprint);
        assert_eq!(fs::read_dir(base.path().join("pgkeep")).unwrap().count(), 1);
    }

    #[test]
    fn every_key_that_was_replaced_is_found_again() {
        let base = tempfile::tempdir().unwrap();
        let keys = Keyring::new(Some(base.path().join("master.key")));
        let first = create(&keys, true).unwrap();
        assert_eq!(first.kept, None);
        let second = create(&keys, true).unwrap();
        let third = create(&keys, true).unwrap();
        for created in [&first, &second, &third] {
            let found = keys.find(created.fingerprint).unwrap();
            assert_eq!(found.fingerprint(), created.fingerprint);
        }
        assert_eq!(keys.current().unwrap().fingerprint(), third.fingerprint);
        assert_eq!(third.kept, Some(keys.path_of(second.fingerprint).unwrap()));
        assert_eq!(mode(&third.kept.unwrap()), 0o600);
        // Whoever loses the current key still has the earlier ones.
        fs::remove_file(&third.path).unwrap();
        assert!(keys.find(first.fingerprint).is_ok());
        let error = keys.find(third.fingerprint).unwrap_err();
        let named = third.fingerprint.to_string();
        assert!(error.message().contains(&named), "{error}");
    }

    #[test]
    fn what_is_no_key_is_not_thrown_away() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("master.key");
        fs::write(&path, "precious").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let keys = Keyring::new(Some(path.clone()));
        assert!(create(&keys, true).is_err());
        assert!(keys.current().is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let keys = Keyring::new(Some(base.path().join("master.key")));
        let created = create(&keys, false).unwrap();
        for refused in [0o640, 0o604, 0o620, 0o601, 0o666] {
            fs::set_permissions(&created.path, fs::Permissions::from_mode(refused)).unwrap();
            let error = keys.current().unwrap_err();
            assert!(error.message().contains("open to others"), "{error}");
            assert!(keys.find(created.fingerprint).is_err());
        }
        for accepted in [0o600, 0o400] {
            fs::set_permissions(&created.path, fs::Permissions::from_mode(accepted)).unwrap();
            assert!(keys.current().is_ok());
        }
    }

    #[test]
    fn no_message_shows_a_key() {
        let base = tempfile::tempdir().unwrap();
        let keys = Keyring::new(Some(base.path().join("master.key")));
        create(&keys, false).unwrap();
        let key = keys.current().unwrap();
        let shown = format!("{key:?} {keys:?}");
        assert!(shown.contains(&key.fingerprint().to_string()), "{shown}");
        assert!(!shown.contains(key.text().trim_end()), "{shown}");
    }
}
