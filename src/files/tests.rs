//! The verbs on single files.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;

use super::*;
use crate::error::Kind;
use crate::progress::Silent;
use crate::stored::cipher::Cipher;
use crate::stored::master_key::Fingerprint;

struct Folder {
    temporary: TempDir,
    keys: Keyring,
}

impl Folder {
    fn new() -> Folder {
        let temporary = tempfile::tempdir().unwrap();
        let keys = Keyring::new(Some(temporary.path().join("keys/master.key")));
        crate::master_key::create(&keys, false).unwrap();
        fs::create_dir(temporary.path().join("files")).unwrap();
        Folder { temporary, keys }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temporary.path().join("files").join(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn encryption(&self, cipher: &str) -> Encryption {
        Encryption {
            cipher: Cipher::parse(cipher).unwrap(),
            key: self.keys.current().unwrap(),
        }
    }

    fn encrypt(&self, path: &Path) -> Result<Converted> {
        let encryption = self.encryption("aes-256-cbc");
        encrypt(path, &encryption, &Silent, &Interrupt::default())
    }

    fn decrypt(&self, path: &Path) -> Result<Converted> {
        decrypt(path, &self.keys, &Silent, &Interrupt::default()).map(|(converted, _)| converted)
    }

    /// Names and contents of all files.
    fn state(&self) -> Vec<(String, Vec<u8>)> {
        let mut state: Vec<(String, Vec<u8>)> = fs::read_dir(self.path(""))
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let content = fs::read(entry.path()).unwrap_or_default();
                (entry.file_name().into_string().unwrap(), content)
            })
            .collect();
        state.sort();
        state
    }

    /// Nothing may come of it, and nothing of the folder may change.
    fn refuses<T>(&self, verb: impl FnOnce() -> Result<T>) -> Error {
        let before = self.state();
        let Err(error) = verb() else {
            panic!("it was done");
        };
        assert_eq!(self.state(), before, "{error}");
        error
    }
}

fn content() -> Vec<u8> {
    (0..5_000_000_u32)
        .map(|number| (number / 7) as u8)
        .collect()
}

#[test]
fn a_file_goes_there_and_back_and_keeps_its_mode_and_times() {
    let folder = Folder::new();
    for content in [content(), Vec::new(), b"a".to_vec()] {
        for cipher in ["aes-128-cbc", "aes-192-ctr", "aes-256-gcm"] {
            let path = folder.write("backup.tar", &content);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
            let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(9);
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_modified(long_ago)
                .unwrap();
            let encryption = folder.encryption(cipher);
            let interrupt = Interrupt::default();
            let converted = encrypt(&path, &encryption, &Silent, &interrupt).unwrap();
            assert_eq!(converted.path, folder.path("backup.tar.aes"));
            assert_eq!(converted.original_size, content.len() as u64);
            let metadata = fs::metadata(&converted.path).unwrap();
            assert_eq!(metadata.len(), converted.size);
            assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o640, 9));
            assert_eq!(folder.state().len(), 1);
            let converted = folder.decrypt(&converted.path).unwrap();
            assert_eq!(converted.path, path);
            assert!(folder.state() == [("backup.tar".to_owned(), content.clone())]);
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o640, 9));
        }
    }
}

#[test]
fn every_compression_is_undone() {
    let folder = Folder::new();
    for content in [content(), Vec::new()] {
        for algorithm in Algorithm::ALL {
            if algorithm == Algorithm::None {
                continue;
            }
            let path = folder.write("backup.tar", &content);
            let compression = Compression::of(algorithm);
            let interrupt = Interrupt::default();
            let converted = compress(&path, compression, &Silent, &interrupt).unwrap();
            assert!(
                converted.size < content.len().max(100) as u64,
                "{algorithm}"
            );
            let (converted, found) = decompress(&converted.path, &Silent, &interrupt).unwrap();
            assert_eq!((converted.path, found), (path, algorithm));
            assert!(folder.state() == [("backup.tar".to_owned(), content.clone())]);
        }
    }
}

#[test]
fn a_damaged_or_cut_file_stays_and_nothing_is_made_of_it() {
    let folder = Folder::new();
    for cipher in ["aes-256-cbc", "aes-256-ctr", "aes-256-gcm"] {
        let path = folder.write("f", &content()[..300_000]);
        let encryption = folder.encryption(cipher);
        let converted = encrypt(&path, &encryption, &Silent, &Interrupt::default()).unwrap();
        let sound = fs::read(&converted.path).unwrap();
        for place in [0, 9, 30, 52, 150_000, sound.len() - 1] {
            let mut damaged = sound.clone();
            damaged[place] ^= 1;
            for damaged in [damaged, sound[..place].to_vec()] {
                fs::write(&converted.path, damaged).unwrap();
                folder.refuses(|| folder.decrypt(&converted.path));
            }
        }
        fs::remove_file(&converted.path).unwrap();
    }
    let path = folder.write("f", &content());
    let interrupt = Interrupt::default();
    let converted = compress(&path, Compression::default(), &Silent, &interrupt).unwrap();
    let sound = fs::read(&converted.path).unwrap();
    fs::write(&converted.path, &sound[..sound.len() / 2]).unwrap();
    let error = folder.refuses(|| decompress(&converted.path, &Silent, &interrupt));
    assert_eq!(error.kind(), Kind::Damage);
}

#[test]
fn the_key_that_is_missing_is_named() {
    let folder = Folder::new();
    let path = folder.write("f", b"secret");
    let fingerprint = folder.keys.current().unwrap().fingerprint();
    let converted = folder.encrypt(&path).unwrap();
    crate::master_key::create(&folder.keys, true).unwrap();
    let beside = folder.keys.path_of(fingerprint).unwrap();
    let away = folder.temporary.path().join("away");
    fs::rename(&beside, &away).unwrap();
    let error = folder.refuses(|| folder.decrypt(&converted.path));
    assert!(
        error.message().contains(&fingerprint.to_string()),
        "{error}"
    );
    fs::rename(&away, &beside).unwrap();
    folder.decrypt(&converted.path).unwrap();
    assert_eq!(fs::read(path).unwrap(), b"secret");
}

#[test]
fn another_key_under_the_right_name_is_not_taken() {
    let folder = Folder::new();
    let path = folder.write("f", b"secret");
    let mut file = fs::read(folder.encrypt(&path).unwrap().path).unwrap();
    let another: Fingerprint = "0123456789abcdef".parse().unwrap();
    file[12..20].copy_from_slice(&another.to_bytes());
    let path = folder.write("g.aes", &file);
    let beside = folder.keys.path_of(another).unwrap();
    fs::copy(folder.keys.path().unwrap(), beside).unwrap();
    let error = folder.refuses(|| folder.decrypt(&path));
    assert!(error.message().contains("0123456789abcdef"), "{error}");
}

#[test]
fn nothing_that_is_there_is_replaced() {
    let folder = Folder::new();
    let path = folder.write("f", b"new");
    folder.write("f.aes", b"old");
    let error = folder.refuses(|| folder.encrypt(&path));
    assert!(error.message().contains("is there already"), "{error}");
    fs::remove_file(folder.path("f.aes")).unwrap();
    symlink("/nowhere", folder.path("f.aes")).unwrap();
    folder.refuses(|| folder.encrypt(&path));
}

#[test]
fn what_is_no_plain_file_is_refused() {
    let folder = Folder::new();
    let file = folder.write("file", b"x");
    symlink(&file, folder.path("link")).unwrap();
    fs::create_dir(folder.path("folder")).unwrap();
    let fifo = folder.path("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
    for (name, kind) in [
        ("link", "a symbolic link"),
        ("folder", "a folder"),
        ("fifo", "a FIFO"),
    ] {
        let Err(error) = folder.encrypt(&folder.path(name)) else {
            panic!("{name} was encrypted");
        };
        assert!(error.message().contains(kind), "{error}");
        assert_eq!(error.kind(), Kind::Usage);
    }
    assert!(folder.encrypt(Path::new("/dev/null")).is_err());
    assert!(folder.encrypt(&folder.path("nothing")).is_err());
    fs::remove_file(fifo).unwrap();
    fs::hard_link(&file, folder.path("other")).unwrap();
    let error = folder.refuses(|| folder.encrypt(&file));
    assert!(error.message().contains("hard link"), "{error}");
}

#[test]
fn names_must_fit_the_verb() {
    let folder = Folder::new();
    let interrupt = Interrupt::default();
    for name in ["f", "f.zstd", "f.aes", ".aes", ".zstd"] {
        folder.write(name, b"x");
    }
    folder.refuses(|| folder.encrypt(&folder.path("f.aes")));
    folder.refuses(|| folder.decrypt(&folder.path("f")));
    folder.refuses(|| folder.decrypt(&folder.path(".aes")));
    for name in ["f.zstd", "f.aes"] {
        let path = folder.path(name);
        folder.refuses(|| compress(&path, Compression::default(), &Silent, &interrupt));
    }
    for name in ["f", "f.aes", ".zstd"] {
        folder.refuses(|| decompress(&folder.path(name), &Silent, &interrupt));
    }
    let path = folder.path("f");
    folder.refuses(|| compress(&path, Compression::NONE, &Silent, &interrupt));
}

#[test]
fn an_interrupt_leaves_the_folder_as_it_was() {
    let folder = Folder::new();
    let path = folder.write("f", &content());
    let interrupt = Interrupt::default();
    interrupt.raise();
    let encryption = folder.encryption("aes-256-ctr");
    folder.refuses(|| encrypt(&path, &encryption, &Silent, &interrupt));
}

/// Somebody appends to the file once it is being read.
struct Appending(PathBuf, AtomicBool);

impl Progress for Appending {
    fn step(&self, _name: &str, _bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {
        if !self.1.swap(true, Ordering::Relaxed) {
            let mut file = File::options().append(true).open(&self.0).unwrap();
            file.write_all(b"more").unwrap();
        }
    }
}

#[test]
fn a_file_that_grows_meanwhile_is_kept() {
    let folder = Folder::new();
    let path = folder.write("f", b"begin");
    let encryption = folder.encryption("aes-256-gcm");
    let appending = Appending(path.clone(), AtomicBool::new(false));
    let error = encrypt(&path, &encryption, &appending, &Interrupt::default()).unwrap_err();
    assert!(error.message().contains("was changed"), "{error}");
    assert_eq!(folder.state(), [("f".to_owned(), b"beginmore".to_vec())]);
}

#[test]
fn what_a_killed_process_left_is_taken_over() {
    let folder = Folder::new();
    let path = folder.write("f", b"content");
    folder.write("f.aes.incoming", &[7; 1000]);
    let converted = folder.encrypt(&path).unwrap();
    folder.decrypt(&converted.path).unwrap();
    assert_eq!(folder.state(), [("f".to_owned(), b"content".to_vec())]);
}

#[test]
fn two_at_the_same_time_do_not_mix() {
    let folder = Folder::new();
    let path = folder.write("f", b"content");
    let left = folder.write("f.aes.incoming", b"");
    let other = File::options().write(true).open(&left).unwrap();
    other.lock().unwrap();
    let error = folder.refuses(|| folder.encrypt(&path));
    assert_eq!(error.kind(), Kind::Locked);
}
