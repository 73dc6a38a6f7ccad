//! Chains of backups of a model of relation files, restored by the real code.

#![allow(clippy::unwrap_used)]

mod over;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::archive;
use crate::pg::control::{CONTROL_FILE, tests::control_file};
use crate::pg::incremental;
use crate::pg::label::BACKUP_LABEL_FILE;
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::manifest::{BACKUP_MANIFEST_FILE, Checksum, Manifest, ManifestWriter};
use crate::pg::page::PAGE_SIZE;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::progress::Silent;
use crate::repository::backup_info::{BackupInfo, ChangeSource, Increment, tests::example};
use crate::repository::catalogue::Catalogue;
use crate::repository::chain::Chain;
use crate::repository::checksums::Checksums;
use crate::repository::contents::read_checksums;
use crate::repository::file_list::{Crc32c, FileEntry, FileKind, FileList, Files};
use crate::repository::identifier::Identifier;
use crate::repository::layout::{self, BackupFolder, ServerFolder};
use crate::stored::bundle::BundleBuilder;
use crate::stored::checksum::sha512;
use crate::stored::coding::Coding;
use crate::stored::compression::{Algorithm, Compression, Compressor};
use crate::stored::master_key::Keyring;
use crate::stored::writer::write_whole;
use crate::verify;

/// Blocks of a full segment file of the model.
const SEGMENT_BLOCKS: u32 = 6;

const RELATIONS: usize = 2;

const DIRECTORIES: [&str; 5] = ["base", "base/5", "global", "pg_tblspc", "pg_wal"];

/// The content of a block in the model: zero, or when it was written.
type Content = u32;

fn bytes(blocks: &[Content]) -> Vec<u8> {
    let words = blocks
        .iter()
        .flat_map(|content| std::iter::repeat_n(content.to_le_bytes(), PAGE_SIZE / 4));
    words.flatten().collect()
}

/// What happens to a relation.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Blocks are added, and the WAL has them.
    Extend(u8),
    /// Blocks of zeros are added, which the WAL does not mention.
    ExtendByZeros(u8),
    /// So many blocks go.
    Truncate(u8),
    /// One of its blocks gets new content.
    Write(u8),
    /// The relation is dropped, and another gets its number.
    Recreate,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Change(usize, Change),
    /// A backup; `choices` decides what must not matter.
    Backup {
        parent: Parent,
        compression: Algorithm,
        choices: Choices,
    },
}

#[derive(Debug, Clone)]
pub(crate) enum Parent {
    None,
    Newest,
    Any(u8),
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let change = prop_oneof![
        3 => (1_u8..8).prop_map(Change::Extend),
        3 => (1_u8..8).prop_map(Change::ExtendByZeros),
        3 => (1_u8..10).prop_map(Change::Truncate),
        4 => any::<u8>().prop_map(Change::Write),
        1 => Just(Change::Recreate),
    ];
    let parent = prop_oneof![
        1 => Just(Parent::None),
        6 => Just(Parent::Newest),
        3 => any::<u8>().prop_map(Parent::Any),
    ];
    let compression = prop::sample::select(vec![Algorithm::None, Algorithm::Zstd]);
    let choices = any::<u64>().prop_map(Choices::Random);
    let backup = (parent, compression, choices);
    let step = prop_oneof![
        5 => (0..RELATIONS, change).prop_map(|(relation, change)| Step::Change(relation, change)),
        2 => backup.prop_map(|(parent, compression, choices)| Step::Backup { parent, compression, choices }),
    ];
    prop::collection::vec(step, 10..40)
}

#[derive(Debug, Clone, Default)]
struct Relation {
    blocks: Vec<Content>,
    /// How many segment files there are: a truncated relation keeps those it no longer needs, empty.
    segments: usize,
}

impl Relation {
    fn length(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Its segment files: number and blocks.
    fn files(&self) -> impl Iterator<Item = (u32, &[Content])> {
        let size = SEGMENT_BLOCKS as usize;
        (0..self.segments).map(move |segment| {
            let begin = (segment * size).min(self.blocks.len());
            let end = (begin + size).min(self.blocks.len());
            (segment as u32, &self.blocks[begin..end])
        })
    }
}

fn path(relation: usize, segment: u32) -> String {
    match segment {
        0 => format!("base/5/{}", 16384 + relation),
        _ => format!("base/5/{}.{segment}", 16384 + relation),
    }
}

/// What the WAL tells of one relation.
#[derive(Debug, Clone, Copy)]
enum Logged {
    Block(u32),
    /// It was cut to this length, or made anew.
    Limit(u32),
}

/// All that changed of a relation in a stretch of WAL.
#[derive(Debug, Default)]
struct Changed {
    limit: Option<u32>,
    blocks: BTreeSet<u32>,
}

/// A backup that was taken, and the files that there were.
pub(crate) struct Taken {
    pub(crate) identifier: Identifier,
    start_lsn: Lsn,
    /// How much of the log came before it.
    log: usize,
    files: BTreeMap<String, Vec<Content>>,
}

pub(crate) struct Model {
    relations: Vec<Relation>,
    log: Vec<(usize, Logged)>,
    clock: Content,
    pub(crate) taken: Vec<Taken>,
    pub(crate) server: ServerFolder,
}

impl Model {
    fn new(base: &Path) -> Model {
        let server = ServerFolder::new(base, "primary");
        server.create().unwrap();
        let relation = Relation {
            blocks: Vec::new(),
            segments: 1,
        };
        Model {
            relations: vec![relation; RELATIONS],
            log: Vec::new(),
            clock: 0,
            taken: Vec::new(),
            server,
        }
    }

    fn change(&mut self, relation: usize, change: &Change) {
        let file = &mut self.relations[relation];
        let mut log = |logged| self.log.push((relation, logged));
        match change {
            Change::Extend(count) => {
                for _ in 0..*count {
                    self.clock += 1;
                    log(Logged::Block(file.length()));
                    file.blocks.push(self.clock);
                }
            }
            Change::ExtendByZeros(count) => {
                file.blocks
                    .resize(file.blocks.len() + usize::from(*count), 0);
            }
            Change::Truncate(count) => {
                let length = file.blocks.len().saturating_sub(usize::from(*count));
                file.blocks.truncate(length);
                log(Logged::Limit(length as u32));
            }
            Change::Write(number) if !file.blocks.is_empty() => {
                self.clock += 1;
                let block = usize::from(*number) % file.blocks.len();
                file.blocks[block] = self.clock;
                log(Logged::Block(block as u32));
            }
            Change::Write(_) => {}
            Change::Recreate => {
                *file = Relation::default();
                log(Logged::Limit(0));
            }
        }
        let needed = file.blocks.len().div_ceil(SEGMENT_BLOCKS as usize);
        file.segments = file.segments.max(needed).max(1);
    }

    /// What the WAL from a place in the log on says of a relation.
    fn changed(&self, relation: usize, since: usize) -> Changed {
        let mut changed = Changed::default();
        for (_, logged) in self.log[since..].iter().filter(|(of, _)| *of == relation) {
            match *logged {
                Logged::Block(block) => {
                    changed.blocks.insert(block);
                }
                Logged::Limit(limit) => {
                    changed.limit = Some(changed.limit.unwrap_or(limit).min(limit));
                    changed.blocks.retain(|block| *block < limit);
                }
            }
        }
        changed
    }

    /// Which blocks of a segment file a backup on `parent` stores; `None` for all of it. Blocks beyond
    /// the parent's length that the WAL does not mention are zeros, and need not be among them.
    fn wanted(
        &self,
        relation: usize,
        segment: u32,
        length: u32,
        parent: &Taken,
        with_zeros: bool,
    ) -> Option<Vec<u32>> {
        let parents_length = parent.files.get(&path(relation, segment))?.len() as u32;
        let changed = self.changed(relation, parent.log);
        let first = segment * SEGMENT_BLOCKS;
        let limit = changed.limit.unwrap_or(u32::MAX);
        if limit <= first || length == 0 {
            return None;
        }
        let blocks = (0..length).filter(|block| {
            let is_grown = *block >= parents_length;
            changed.blocks.contains(&(first + block))
                || first + block >= limit && !is_grown
                || is_grown && with_zeros
        });
        Some(blocks.collect())
    }

    fn back_up(&mut self, parent: Option<usize>, compression: Algorithm, mut choices: Choices) {
        let number = self.taken.len() as u64 + 1;
        let identifier: Identifier = format!("202601010000{number:02}").parse().unwrap();
        let mut info = example(&identifier.to_string());
        info.compression = compression;
        info.compression_level = None;
        info.relation_segment_blocks = SEGMENT_BLOCKS;
        info.data_checksums = false;
        info.tablespaces = Vec::new();
        // Those of its control file.
        info.system_identifier = 42;
        info.catalog_version = 202_209_061;
        info.start_lsn = Lsn(number * 0x0100_0000 + 0x28);
        info.end_lsn = Lsn(info.start_lsn.0 + 0x100);
        info.start_timeline = Timeline(2);
        info.end_timeline = Timeline(2);
        info.incremental = parent.map(|parent| Increment {
            parent: self.taken[parent].identifier,
            from_lsn: self.taken[parent].start_lsn,
            from_timeline: Timeline(2),
            sources: vec![ChangeSource::Wal],
        });
        let folder = self.server.backup(identifier);
        let mut store = TestStore::new(&folder, compression);
        let label = if parent.is_some() {
            "LABEL: x\nINCREMENTAL FROM LSN: 0/1\nINCREMENTAL FROM TLI: 2\n"
        } else {
            "LABEL: x\n"
        };
        let size = SegmentSize::new(info.wal_segment_size).unwrap();
        // Of another timeline, a segment is not looked into.
        let segment = SegmentName {
            timeline: Timeline(1),
            number: info.start_lsn.segment(size),
        };
        let segment = format!("pg_wal/{}", segment.file_name(size));
        let manifest = ManifestWriter::new(Vec::new(), 2, info.system_identifier).unwrap();
        for (path, content) in [
            ("PG_VERSION", b"17\n".to_vec()),
            (BACKUP_MANIFEST_FILE, manifest.finish(&[]).unwrap()),
            (BACKUP_LABEL_FILE, label.as_bytes().to_vec()),
            (CONTROL_FILE, control_file(1700)),
            (&segment, b"WAL".to_vec()),
        ] {
            store.add(path, FileKind::Whole, &content, false);
        }
        let mut files = BTreeMap::new();
        for (relation, of) in self.relations.iter().enumerate() {
            for (segment, blocks) in of.files() {
                let length = blocks.len() as u32;
                let path = path(relation, segment);
                let wanted = parent.filter(|_| !choices.one_in(6)).and_then(|parent| {
                    let with_zeros = choices.one_in(4);
                    let parent = &self.taken[parent];
                    self.wanted(relation, segment, length, parent, with_zeros)
                });
                match wanted {
                    None => {
                        let bundled = choices.one_in(2);
                        store.add(&path, FileKind::Whole, &bytes(blocks), bundled);
                    }
                    Some(wanted) => {
                        let mut content = incremental::header(&wanted, length);
                        for block in &wanted {
                            content.extend(bytes(&blocks[*block as usize..][..1]));
                        }
                        let kind = FileKind::Incremental {
                            blocks: wanted.len() as u32,
                            length,
                        };
                        let bundled = wanted.is_empty() && choices.one_in(2);
                        store.add(&path, kind, &content, bundled);
                    }
                }
                files.insert(path, blocks.to_vec());
            }
        }
        self.taken.push(Taken {
            identifier,
            start_lsn: info.start_lsn,
            log: self.log.len(),
            files,
        });
        store.finish(info);
    }

    fn verify(
        &self,
        catalogue: &Catalogue,
        taken: &Taken,
        rebuild: Option<verify::Rebuild<'_>>,
    ) -> verify::Findings {
        let request = verify::Request {
            folder: &self.server,
            catalogue,
            backup: catalogue.get(taken.identifier).unwrap(),
            keys: &keys(),
            rebuild,
            all: false,
            workers: 1,
        };
        let verified = verify::run(&request, &Silent, &Interrupt::default()).unwrap();
        verified.findings
    }

    /// Restores a backup, and compares it with what there was.
    pub(crate) fn check(&self, taken: &Taken, catalogue: &Catalogue, directory: &Path) {
        let rebuild = verify::Rebuild {
            directory,
            drill: None,
        };
        let findings = self.verify(catalogue, taken, Some(rebuild));
        assert_eq!(findings.files, [], "{}", taken.identifier);
        let root = restore(catalogue, taken, directory).unwrap();
        let mut restored = BTreeSet::new();
        for entry in fs::read_dir(root.join("base/5")).unwrap() {
            restored.insert(format!("base/5/{}", entry.unwrap().file_name().display()));
        }
        assert!(restored.iter().eq(taken.files.keys()), "{restored:?}");
        for (path, blocks) in &taken.files {
            let content = fs::read(root.join(path)).unwrap();
            assert!(
                content == bytes(blocks),
                "{path} of {} has {:?}, not {blocks:?}",
                taken.identifier,
                content
                    .chunks(PAGE_SIZE)
                    .map(|block| block[0])
                    .collect::<Vec<_>>(),
            );
        }
        let label = fs::read(root.join(BACKUP_LABEL_FILE)).unwrap();
        assert_eq!(label, b"LABEL: x\n");
        let manifest = File::open(root.join(BACKUP_MANIFEST_FILE)).unwrap();
        for file in Manifest::parse(manifest).unwrap().files {
            let content = fs::read(root.join(&file.path)).unwrap();
            assert_eq!(
                file.checksum,
                Checksum::Crc32c(crc32c::crc32c(&content)),
                "{}",
                file.path
            );
        }
        assert_archived(&archive(catalogue, taken, directory).unwrap(), &root);
    }
}

/// An archive holds what a restore wrote.
fn assert_archived(archive: &Path, root: &Path) {
    let is_file = |entry: &walkdir::DirEntry| entry.file_type().is_file();
    let restored = walkdir::WalkDir::new(root).into_iter().flatten();
    let mut left = restored.filter(is_file).count();
    let mut tar = tar::Archive::new(File::open(archive).unwrap());
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            let path = root.with_file_name("").join(entry.path().unwrap());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            assert!(content == fs::read(&path).unwrap(), "{}", path.display());
            left -= 1;
        }
    }
    assert_eq!(left, 0, "files are missing in {}", archive.display());
    fs::remove_file(archive).unwrap();
}

fn archive(catalogue: &Catalogue, taken: &Taken, directory: &Path) -> Result<PathBuf> {
    let backup = catalogue.get(taken.identifier).unwrap();
    let request = archive::Request {
        chain: &Chain::read(catalogue, backup, &keys())?,
        recovery: Recovery::OwnWal,
        source_settings: SourceSettings::Kept,
        wal: None,
        directory: directory.to_owned(),
        coding: &Coding::PLAIN,
        workers: 2,
    };
    Ok(archive::run(&request, &Silent, &Interrupt::default())?.path)
}

fn restore(catalogue: &Catalogue, taken: &Taken, directory: &Path) -> Result<PathBuf> {
    let backup = catalogue.get(taken.identifier).unwrap();
    let request = Request {
        chain: &Chain::read(catalogue, backup, &keys())?,
        selection: &Selection::default(),
        ignores_invalid_pages: false,
        target: Target::Named(directory.to_owned()),
        recovery: Recovery::OwnWal,
        source_settings: SourceSettings::Kept,
        mappings: &[],
        created: &[],
        reads: &[],
        force: false,
        workers: 2,
    };
    run(&request, &Silent, &Interrupt::default())
}

pub(crate) fn keys() -> Keyring {
    Keyring::new(None)
}

/// Decisions that must not matter.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Choices {
    /// As they fall (splitmix64).
    Random(u64),
    /// Always no.
    No,
}

impl Choices {
    fn one_in(&mut self, many: u64) -> bool {
        let Choices::Random(state) = self else {
            return false;
        };
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (*state ^ *state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB) % many == 0
    }
}

/// Writes a backup's folder.
struct TestStore {
    folder: BackupFolder,
    coding: Coding,
    compressor: Compressor,
    checksums: Checksums,
    files: Files,
    bundle: BundleBuilder,
}

impl TestStore {
    fn new(folder: &BackupFolder, algorithm: Algorithm) -> TestStore {
        let compression = Compression::new(algorithm, None).unwrap();
        TestStore {
            folder: folder.clone(),
            coding: Coding {
                compression,
                encryption: None,
            },
            compressor: Compressor::new(compression).unwrap(),
            checksums: Checksums::default(),
            files: Files::default(),
            bundle: BundleBuilder::new(Vec::new()),
        }
    }

    fn add(&mut self, path: &str, kind: FileKind, content: &[u8], bundled: bool) {
        let bundled = bundled && !self.coding.suffix().is_plain();
        let entry = FileEntry {
            path,
            size: content.len() as u64,
            modified: 1_732_000_000,
            crc32c: Crc32c(crc32c::crc32c(content)),
            bundle: bundled.then_some(0),
            kind,
        };
        if bundled {
            self.bundle
                .add(&entry.stored_path(), entry.modified, content)
                .unwrap();
        } else {
            self.store(
                &layout::stored_file(&entry.stored_path(), self.coding.suffix()),
                content,
            );
        }
        self.files.push(entry);
    }

    fn store(&mut self, stored: &str, content: &[u8]) {
        let path = self.folder.stored(stored);
        path.create_parent().unwrap();
        let mut frame = Vec::new();
        self.compressor.compress(content, &mut frame).unwrap();
        let written = write_whole(&path, &self.coding, &frame).unwrap();
        self.checksums.insert(stored, written.sha512);
    }

    fn finish(mut self, mut info: BackupInfo) {
        let bundle = std::mem::replace(&mut self.bundle, BundleBuilder::new(Vec::new()));
        if self.files.iter().any(|file| file.bundle.is_some()) {
            self.store(
                &layout::bundle(0, self.coding.suffix()),
                &bundle.finish().unwrap(),
            );
        }
        let mut list = FileList {
            directories: DIRECTORIES.map(str::to_owned).to_vec(),
            files: std::mem::take(&mut self.files),
        };
        list.files.sort();
        let mut text = Vec::new();
        list.write(&mut text).unwrap();
        self.store(&layout::file_list(self.coding.suffix()), &text);
        self.checksums.sort();
        let mut checksums = Vec::new();
        self.checksums.write(&mut checksums).unwrap();
        self.folder.checksums().replace(&checksums).unwrap();
        info.checksums = sha512(&checksums).to_string();
        info.write(&self.folder).unwrap();
    }
}

/// In memory where that is possible: every restore is synced.
pub(crate) fn ground() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// Takes all backups, and restores each of them in `ground`.
fn play(ground: &Path, steps: &[Step]) -> Model {
    let model = take(ground, steps);
    let catalogue = Catalogue::read("primary", &model.server).unwrap();
    for taken in &model.taken {
        model.check(taken, &catalogue, &ground.join("restored"));
    }
    model
}

/// Takes all backups.
pub(crate) fn take(ground: &Path, steps: &[Step]) -> Model {
    let mut model = Model::new(ground);
    for step in steps {
        match step {
            Step::Change(relation, change) => model.change(*relation, change),
            Step::Backup {
                parent,
                compression,
                choices,
            } => {
                let taken = model.taken.len();
                let parent = match parent {
                    _ if taken == 0 => None,
                    Parent::None => None,
                    Parent::Newest => Some(taken - 1),
                    Parent::Any(number) => Some(usize::from(*number) % taken),
                };
                model.back_up(parent, *compression, *choices);
            }
        }
    }
    model
}

/// A chain of four, each with blocks that the next does not have.
fn chain_of_four(compression: Algorithm) -> Vec<Step> {
    let changes = [
        Change::Extend(6),
        Change::Write(0),
        Change::Truncate(4),
        Change::ExtendByZeros(2),
    ];
    let steps = changes.into_iter().flat_map(|change| {
        let backup = Step::Backup {
            parent: Parent::Newest,
            compression,
            choices: Choices::No,
        };
        [Step::Change(0, change), backup]
    });
    steps.collect()
}

/// What must be read to restore the relations: the backups and their stored files.
fn needed(catalogue: &Catalogue, taken: &Taken) -> BTreeSet<(Identifier, String)> {
    let backup = catalogue.get(taken.identifier).unwrap();
    let chain = Chain::read(catalogue, backup, &keys()).unwrap();
    let mut needed = BTreeSet::new();
    for sources in chain
        .files()
        .filter(|sources| sources.file.path.starts_with("base/"))
    {
        let path = sources.file.path;
        let layers = sources.layers.iter();
        let layers = layers.map(|layer| (layer.member, incremental::file_path(path)));
        for (member, path) in layers.chain([(sources.base.member, path.to_owned())]) {
            let info = chain.info(member);
            needed.insert((info.backup, layout::stored_file(&path, info.suffix())));
        }
    }
    // The whole file and the block that was written later; and the other relation, which is empty.
    assert_eq!(needed.len(), 3, "{needed:?}");
    needed
}

/// Every stored file of a chain, damaged alone: verify names it and its backup, and a restore that
/// needs it fails.
#[test]
fn damage_anywhere_in_a_chain_is_found() {
    for compression in [Algorithm::None, Algorithm::Zstd] {
        let ground = ground();
        let model = play(ground.path(), &chain_of_four(compression));
        let newest = model.taken.last().unwrap();
        let catalogue = Catalogue::read("primary", &model.server).unwrap();
        let needed = needed(&catalogue, newest);
        for taken in &model.taken {
            let folder = model.server.backup(taken.identifier);
            let info = BackupInfo::read(&folder).unwrap();
            let checksums = read_checksums(&folder, &info).unwrap();
            for (stored, _) in checksums.iter() {
                let path = folder.stored(stored);
                let sound = path.read().unwrap().unwrap();
                let Some(last) = sound.len().checked_sub(1) else {
                    continue;
                };
                let mut damaged = sound.clone();
                damaged[last] ^= 1;
                path.replace(&damaged).unwrap();
                let findings = model.verify(&catalogue, newest, None);
                let found = findings.bad().any(|finding| {
                    (finding.backup, finding.file.as_str()) == (taken.identifier, stored)
                });
                assert!(
                    found,
                    "{stored} of {}: {:?}",
                    taken.identifier, findings.files
                );
                if needed.contains(&(taken.identifier, stored.to_owned())) {
                    let directory = ground.path().join("damaged");
                    let restored = restore(&catalogue, newest, &directory);
                    assert!(restored.is_err(), "{stored} of {}", taken.identifier);
                    let archived = archive(&catalogue, newest, &directory);
                    assert!(archived.is_err(), "{stored} of {}", taken.identifier);
                }
                path.replace(&sound).unwrap();
            }
        }
    }
}

/// A relation is cut, and grows again by pages that the WAL does not mention: what the full backup has
/// of the old ones is gone, though no later backup says anything of these blocks.
#[test]
fn what_was_cut_off_does_not_come_back() {
    play(ground().path(), &chain_of_four(Algorithm::None));
}

proptest! {
    #![proptest_config(crate::chance::cases(20))]

    #[test]
    fn every_member_of_any_chain_is_restored_as_it_was(steps in steps()) {
        play(ground().path(), &steps);
    }
}
