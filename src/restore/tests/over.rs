//! Data directories in whatever state, over which a backup is restored.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::pg::control::tests::control_file_of;
use crate::restore::existing::SET_ASIDE_CONTROL_FILE;

/// What decides over the states, splitmix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, many: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB) % many as u64) as usize
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> Option<T> {
        (!of.is_empty()).then(|| of[self.below(of.len())].clone())
    }
}

/// A data directory that is to be changed, and what is beside it, which is not.
struct Playground {
    root: PathBuf,
    beside: PathBuf,
}

impl Playground {
    fn new(root: PathBuf, beside: PathBuf) -> Playground {
        fs::create_dir_all(beside.join("base")).unwrap();
        fs::write(beside.join("base/5"), "somebody else's").unwrap();
        fs::write(beside.join("linked"), "somebody else's").unwrap();
        Playground { root, beside }
    }

    fn paths(&self, is_wanted: impl Fn(&walkdir::DirEntry) -> bool) -> Vec<PathBuf> {
        let all = walkdir::WalkDir::new(&self.root)
            .min_depth(1)
            .sort_by_file_name();
        let all = all.into_iter().flatten();
        all.filter(is_wanted)
            .map(walkdir::DirEntry::into_path)
            .filter(|path| !self.root.join(CONTROL_FILE).starts_with(path))
            .collect()
    }

    /// Changes something, whatever.
    fn change(&self, dice: &mut Dice) {
        let files = self.paths(|entry| entry.file_type().is_file());
        let mut folders = self.paths(|entry| entry.file_type().is_dir());
        folders.push(self.root.clone());
        let (Some(file), Some(folder)) = (dice.one(&files), dice.one(&folders)) else {
            return;
        };
        let length = fs::metadata(&file).unwrap().len();
        let open = || File::options().read(true).write(true).open(&file).unwrap();
        let stray = folder.join(format!("stray{}", dice.below(3)));
        match dice.below(15) {
            // A byte, but none of a page's LSN.
            0 | 1 if length > 8 => {
                let page = dice.below(length as usize / PAGE_SIZE + 1) * PAGE_SIZE;
                let at = (page + 8 + dice.below(PAGE_SIZE - 8)).min(length as usize - 1) as u64;
                let mut byte = [0];
                open().read_exact_at(&mut byte, at).unwrap();
                open().write_all_at(&[byte[0] ^ 1], at).unwrap();
            }
            2 => open()
                .set_len(dice.below(length as usize + 1) as u64)
                .unwrap(),
            3 => open().write_all_at(&[7; 9000], length).unwrap(),
            4 => open().set_len(length + dice.below(20_000) as u64).unwrap(),
            5 => {
                let zeros = vec![0; length as usize / 2];
                open().write_all_at(&zeros, length / 3).unwrap();
            }
            6 => fs::remove_file(&file).unwrap(),
            7 => drop(fs::write(&stray, "stray")),
            8 => {
                let _ = fs::create_dir_all(stray.join("below"));
                let _ = fs::write(stray.join("below/file"), "stray");
            }
            9 => drop(symlink(&self.beside, &stray)),
            10 => {
                fs::remove_file(&file).unwrap();
                fs::create_dir(&file).unwrap();
                fs::write(file.join("file"), "stray").unwrap();
            }
            // One that is pg_wal's may be meant, and is refused where it leads to no folder.
            11 if !file.ends_with("pg_wal") => {
                fs::remove_file(&file).unwrap();
                symlink(self.beside.join("linked"), &file).unwrap();
            }
            12 if folder != self.root => {
                fs::remove_dir_all(&folder).unwrap();
                match dice.below(3) {
                    // As a link, that is the operator's, and stays.
                    0 if !folder.ends_with("pg_wal") => symlink(&self.beside, &folder).unwrap(),
                    1 => fs::write(&folder, "stray").unwrap(),
                    _ => {}
                }
            }
            13 => {
                let other = self.beside.join(format!("name{}", dice.below(1000)));
                let _ = fs::hard_link(&file, other);
            }
            _ => {
                let path = if dice.below(2) == 0 { file } else { folder };
                let mode = if path.is_dir() { 0o755 } else { 0o400 };
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            }
        }
    }
}

/// All that a folder holds: modes, and contents or where links lead.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut tree = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry.unwrap();
        let metadata = entry.path().symlink_metadata().unwrap();
        let content = match metadata.file_type() {
            kind if kind.is_file() => fs::read(entry.path()).unwrap(),
            kind if kind.is_symlink() => {
                let target = fs::read_link(entry.path()).unwrap();
                target.into_os_string().into_encoded_bytes()
            }
            _ => Vec::new(),
        };
        let path = entry.path().strip_prefix(root).unwrap().to_owned();
        tree.insert(path, (metadata.mode(), content));
    }
    tree
}

fn assert_same(found: &Path, expected: &Path) {
    let (found, expected) = (tree(found), tree(expected));
    for path in found.keys().chain(expected.keys()) {
        let (found, expected) = (found.get(path), expected.get(path));
        assert!(
            found == expected,
            "{} is {:?}, not {:?}",
            path.display(),
            found.map(|(mode, content)| (format!("{mode:o}"), content.len())),
            expected.map(|(mode, content)| (format!("{mode:o}"), content.len()))
        );
    }
}

/// Raises an interrupt when so many bytes are done.
struct StopsAt<'a> {
    left: AtomicU64,
    interrupt: &'a Interrupt,
}

impl Progress for StopsAt<'_> {
    fn step(&self, _name: &str, _bytes: Option<u64>) {}

    fn advance(&self, bytes: u64) {
        let left = |left: u64| Some(left.saturating_sub(bytes));
        let before = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, left);
        if before.unwrap() <= bytes {
            self.interrupt.raise();
        }
    }
}

fn restore_over(
    catalogue: &Catalogue,
    taken: &Taken,
    root: &Path,
    stops_at: u64,
) -> Result<Differences> {
    let backup = catalogue.get(taken.identifier).unwrap();
    let interrupt = Interrupt::default();
    let progress = StopsAt {
        left: AtomicU64::new(stops_at),
        interrupt: &interrupt,
    };
    let request = Request {
        chain: &Chain::read(catalogue, backup, &keys())?,
        selection: &Selection::default(),
        ignores_invalid_pages: false,
        target: Target::Named(root.to_owned()),
        recovery: Recovery::OwnWal,
        source_settings: SourceSettings::Kept,
        mappings: &[],
        created: &[],
        reads: &[],
        force: false,
        workers: 2,
    };
    let replaced = run_over(&request, &progress, &interrupt)?;
    assert_eq!(replaced.root, root.canonicalize().unwrap());
    Ok(replaced.differences)
}

/// Restores one backup over another one's data directory, in many states, and cut short before it comes to its end.
fn play_over(steps: &[Step], seed: u64) {
    let ground = ground();
    let model = take(ground.path(), steps);
    let Some(newest) = model.taken.last() else {
        return;
    };
    let mut dice = Dice(seed);
    let catalogue = Catalogue::read("primary", &model.server).unwrap();
    let fresh = restore(&catalogue, newest, &ground.path().join("fresh")).unwrap();
    let other = &model.taken[dice.below(model.taken.len())];
    let root = restore(&catalogue, other, &ground.path().join("other")).unwrap();
    let playground = Playground::new(root.clone(), ground.path().join("beside"));
    for _ in 0..dice.below(8) {
        playground.change(&mut dice);
    }
    let beside = tree(&playground.beside);
    for _ in 0..dice.below(3) {
        let stops_at = dice.below(100_000) as u64 + 1;
        if let Err(error) = restore_over(&catalogue, newest, &root, stops_at) {
            assert!(!root.join(CONTROL_FILE).exists(), "{error}");
            assert!(root.join(SET_ASIDE_CONTROL_FILE).exists());
        }
    }
    restore_over(&catalogue, newest, &root, u64::MAX).unwrap();
    assert_same(&root, &fresh);
    assert!(
        tree(&playground.beside) == beside,
        "what is beside it was changed"
    );
    let again = restore_over(&catalogue, newest, &root, u64::MAX).unwrap();
    assert_eq!(
        (again.changed_files, again.new_files, again.removed),
        (0, 0, 0)
    );
    assert_same(&root, &fresh);
}

/// How many states a run looks at: `tests/soak` wants more of them.
fn cases() -> ProptestConfig {
    let rounds = std::env::var("PGKEEP_TEST_ROUNDS").ok();
    let rounds = rounds.and_then(|rounds| rounds.parse::<u32>().ok());
    ProptestConfig::with_cases(rounds.map_or(60, |rounds| rounds * 50))
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_restore_over_random_states_is_as_a_fresh_one(steps in steps(), seed in any::<u64>()) {
        play_over(&steps, seed);
    }
}

#[test]
fn only_the_page_that_differs_is_written() {
    let ground = ground();
    let model = take(ground.path(), &chain_of_four(Algorithm::Zstd));
    let newest = model.taken.last().unwrap();
    let catalogue = Catalogue::read("primary", &model.server).unwrap();
    let root = restore(&catalogue, newest, &ground.path().join("restored")).unwrap();
    let made: u64 = [
        CONTROL_FILE,
        BACKUP_LABEL_FILE,
        BACKUP_MANIFEST_FILE,
        "postgresql.auto.conf",
    ]
    .iter()
    .map(|path| root.join(path).metadata().unwrap().len())
    .sum();
    let file = root.join("base/5/16384");
    let sound = fs::read(&file).unwrap();
    let inode = file.metadata().unwrap().ino();
    let mut changed = sound.clone();
    changed[2 * PAGE_SIZE - 1] ^= 1;
    fs::write(&file, &changed).unwrap();
    let differences = restore_over(&catalogue, newest, &root, u64::MAX).unwrap();
    assert_eq!(fs::read(&file).unwrap(), sound);
    assert_eq!(file.metadata().unwrap().ino(), inode);
    assert_eq!((differences.changed_files, differences.new_files), (1, 0));
    assert_eq!(differences.written, PAGE_SIZE as u64 + made);

    // One that has another name is another's too.
    let other = ground.path().join("other");
    fs::write(&file, &changed).unwrap();
    fs::hard_link(&file, &other).unwrap();
    restore_over(&catalogue, newest, &root, u64::MAX).unwrap();
    assert_eq!(fs::read(&file).unwrap(), sound);
    assert_eq!(fs::read(&other).unwrap(), changed);
}

#[test]
fn what_is_not_of_the_system_is_left_alone() {
    let ground = ground();
    let model = take(ground.path(), &chain_of_four(Algorithm::None));
    let newest = model.taken.last().unwrap();
    let catalogue = Catalogue::read("primary", &model.server).unwrap();
    let root = restore(&catalogue, newest, &ground.path().join("restored")).unwrap();
    let control = fs::read(root.join(CONTROL_FILE)).unwrap();
    let refused = |why: &str| {
        let before = tree(&root);
        let error = restore_over(&catalogue, newest, &root, u64::MAX).unwrap_err();
        assert!(error.message().contains(why), "{error}");
        assert!(tree(&root) == before, "{why}: something was changed");
    };
    fs::write(root.join(CONTROL_FILE), control_file_of(43, 1700)).unwrap();
    refused("is of system 43");
    fs::write(root.join(CONTROL_FILE), &control[..8000]).unwrap();
    refused("cannot tell which system");
    fs::write(root.join(CONTROL_FILE), &control).unwrap();
    fs::write(root.join(CONTROL_FILE), control_file(1300)).unwrap();
    refused("is of PostgreSQL 15");
    fs::write(root.join(CONTROL_FILE), &control).unwrap();
    // This process is one that is alive.
    fs::write(
        root.join("postmaster.pid"),
        format!("{}\n", std::process::id()),
    )
    .unwrap();
    refused("a server is running");
    fs::remove_file(root.join("postmaster.pid")).unwrap();
    let locked = File::open(&root).unwrap();
    locked.lock().unwrap();
    refused("another restore is at work");
    drop(locked);
    fs::create_dir(root.join("wal")).unwrap();
    fs::remove_dir_all(root.join("pg_wal")).unwrap();
    symlink("wal", root.join("pg_wal")).unwrap();
    refused("not outside of the data directory");
    fs::remove_file(root.join("pg_wal")).unwrap();
    symlink("/nowhere/at/all", root.join("pg_wal")).unwrap();
    refused("is no folder");
    fs::remove_file(root.join("pg_wal")).unwrap();
    fs::create_dir(root.join("pg_wal")).unwrap();
    let other = restore(&catalogue, newest, &ground.path().join("other")).unwrap();
    let link = root.join("pg_tblspc/16999");
    let _ = fs::create_dir(root.join("pg_tblspc"));
    symlink(other.join("base"), &link).unwrap();
    refused("is in another data directory");
    fs::remove_file(&link).unwrap();
    fs::remove_file(root.join(CONTROL_FILE)).unwrap();
    refused("is a data directory");
}
