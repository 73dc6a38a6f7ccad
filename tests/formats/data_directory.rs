//! The files of a data directory: what pg_basebackup keeps of them, and the
//! checksums of their pages.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use pgkeep::pg::exclusion::{Exclusion, UnloggedRelations};
use pgkeep::pg::label::BackupLabel;
use pgkeep::pg::lsn::Lsn;
use pgkeep::pg::manifest::{BACKUP_MANIFEST_FILE, Manifest};
use pgkeep::pg::page::{PageVerdict, verify};
use pgkeep::pg::relation::RelationFile;
use pgkeep::pg::tablespace_map::TablespaceMap;
use pgkeep::pg::version::Major;
use walkdir::WalkDir;

use crate::cluster::{Cluster, text};

crate::for_every_major!(
    keeps_what_pg_basebackup_keeps,
    sums_pages_as_the_server_does,
    reads_label_and_map_of_the_low_level_api,
);

const LAST: Lsn = Lsn(u64::MAX);

fn keeps_what_pg_basebackup_keeps(major: Major) {
    let cluster = Cluster::init(major);
    let space = cluster.directory("space");
    let mapped = cluster.directory("mapped");
    assert!(cluster.start());
    cluster.sql(&[
        &format!("create tablespace space location '{}'", text(&space)),
        "create table logged as select generate_series(1, 10000) i",
        "create unlogged table unlogged as select generate_series(1, 10000) i",
        "create unlogged table elsewhere (i int primary key) tablespace space",
        "create table spaced (i int primary key) tablespace space",
        "create database other",
        "vacuum",
        "checkpoint",
    ]);
    for (directory, name) in [
        ("base/1", "t3_16384_fsm.1"),
        ("base/1", "pg_internal.init.77"),
        ("base/1", "016384"),
        ("base/1", "16384_init.x"),
        ("base/pgsql_tmp_left", "left"),
        ("pg_replslot", "left"),
        ("pg_stat_tmp", "left"),
        ("pg_notify", "left"),
        ("pg_logical", "kept"),
        ("extra", "kept"),
        ("extra", "postmaster.pid"),
        ("", "postgresql.auto.conf.tmp"),
        ("", "tablespace_map"),
        ("", "kept"),
    ] {
        fs::create_dir_all(cluster.data().join(directory)).unwrap();
        fs::write(cluster.data().join(directory).join(name), "content").unwrap();
    }
    fs::create_dir(space.join("PG_9.6_201608131")).unwrap();
    fs::write(space.join("PG_9.6_201608131/kept"), "not").unwrap();

    let mapping = format!("{}={}", text(&space), text(&mapped));
    let backup = cluster.base_backup(&["-T", &mapping, "--no-verify-checksums"]);

    let exclusion = Exclusion::new(major, []);
    let files = files(&cluster.data());
    let relations = files.iter().filter_map(|path| relation(path, major));
    let unlogged = UnloggedRelations::find(relations);
    let ours: BTreeSet<_> = files
        .iter()
        .filter(|path| exclusion.keeps_file(path))
        .filter(|path| relation(path, major).is_none_or(|file| !unlogged.leave_out(&file)))
        .cloned()
        .collect();
    let mut theirs: BTreeSet<_> = manifest(&backup.data())
        .files
        .into_iter()
        .map(|file| file.path)
        .collect();
    assert!(theirs.remove("backup_label"));
    theirs.remove("tablespace_map");
    assert_eq!(ours, theirs);

    let directories = |data: &Path| -> BTreeSet<_> {
        let entries = WalkDir::new(data)
            .follow_links(true)
            .min_depth(1)
            .into_iter();
        let entries = entries
            .map(Result::unwrap)
            .filter(|entry| entry.file_type().is_dir());
        entries
            .map(|entry| text(entry.path().strip_prefix(data).unwrap()).to_owned())
            .filter(|path| !path.starts_with("pg_wal/"))
            .collect()
    };
    let ours: BTreeSet<_> = directories(&cluster.data())
        .into_iter()
        .filter(|path| exclusion.keeps_directory(path))
        .collect();
    assert_eq!(ours, directories(&backup.data()));
}

fn sums_pages_as_the_server_does(major: Major) {
    let cluster = Cluster::init(major);
    assert!(cluster.start());
    cluster.sql(&[
        "create table t as select i, md5(i::text) from generate_series(1, 20000) i",
        "create index on t (i)",
        "vacuum t",
        "checkpoint",
    ]);
    let path = cluster.sql(&["select pg_relation_filepath('t')"]);
    cluster.stop("fast");
    let (mut good, mut kinds) = (0, BTreeSet::new());
    for path in files(&cluster.data()) {
        let Some(file) = relation(&path, major) else {
            continue;
        };
        kinds.insert(file.fork);
        for (index, verdict) in verdicts(&cluster.data().join(&path), LAST)
            .into_iter()
            .enumerate()
        {
            match verdict {
                PageVerdict::Good => good += 1,
                PageVerdict::AllZero => {}
                verdict => panic!("page {index} of {path}: {verdict:?}"),
            }
        }
    }
    assert!(good > 1000, "{good}");
    assert_eq!(kinds.len(), 3);

    let table = cluster.data().join(&path);
    let mut bytes = fs::read(&table).unwrap();
    bytes[5 * 8192 + 8191] ^= 1;
    bytes[6 * 8192..7 * 8192].fill(0);
    bytes.copy_within(8 * 8192..9 * 8192, 7 * 8192);
    fs::write(&table, &bytes).unwrap();
    let verdicts = verdicts(&table, LAST);
    for (index, verdict) in verdicts.iter().enumerate() {
        let is_expected = match index {
            5 | 7 => matches!(verdict, PageVerdict::Bad { .. }),
            6 => *verdict == PageVerdict::AllZero,
            _ => *verdict == PageVerdict::Good,
        };
        assert!(is_expected, "{index}: {verdict:?}");
    }
    let pg_checksums = cluster.try_run("pg_checksums", &["--check", "-D", text(&cluster.data())]);
    let output = String::from_utf8(pg_checksums.stdout).unwrap();
    let bad = output
        .lines()
        .find_map(|line| line.strip_prefix("Bad checksums:"));
    assert_eq!(bad.map(str::trim), Some("2"), "{output}");
}

fn reads_label_and_map_of_the_low_level_api(major: Major) {
    let cluster = Cluster::init(major);
    let space = cluster.directory("a \\ space");
    assert!(cluster.start());
    let location = text(&space);
    cluster.sql(&[&format!("create tablespace space location '{location}'")]);
    let oid = cluster.sql(&["select oid from pg_tablespace where spcname = 'space'"]);
    let (start, stop) = if major == Major::V14 {
        (
            "pg_start_backup('a: \\ b', true, false)",
            "pg_stop_backup(false, false)",
        )
    } else {
        ("pg_backup_start('a: \\ b', true)", "pg_backup_stop(false)")
    };
    let result = |column: &str| {
        let start = format!("select {start}");
        cluster.sql(&[&start, &format!("select {column} from {stop}")])
    };

    let map = result("spcmapfile").trim_end().to_owned() + "\n";
    let parsed = TablespaceMap::parse(&map).unwrap();
    assert_eq!(parsed.format(), map);
    assert_eq!(parsed.tablespaces.len(), 1);
    assert_eq!(parsed.tablespaces[0].oid.to_string(), oid);
    assert_eq!(parsed.tablespaces[0].path, location);

    let label = BackupLabel::parse(&result("labelfile")).unwrap();
    let expected = cluster.sql(&[
        "select redo_lsn || ' ' || checkpoint_lsn || ' ' || redo_wal_file || ' ' || timeline_id \
         from pg_control_checkpoint()",
    ]);
    let found = format!(
        "{} {} {} {}",
        label.start_lsn, label.checkpoint_lsn, label.start_segment_file, label.start_timeline
    );
    assert_eq!(found, expected);
    assert_eq!(label.label, "a: \\ b");
    assert!(!label.from_standby);
}

fn verdicts(path: &Path, start: Lsn) -> Vec<PageVerdict> {
    let bytes = fs::read(path).unwrap();
    let (pages, rest) = bytes.as_chunks();
    assert!(rest.is_empty(), "{}", path.display());
    let blocks = pages.iter().zip(0..);
    blocks
        .map(|(page, block)| verify(page, block, start, None))
        .collect()
}

fn relation(path: &str, major: Major) -> Option<RelationFile<'_>> {
    RelationFile::parse(path, &major.tablespace_directory())
}

fn manifest(data: &Path) -> Manifest {
    Manifest::parse(fs::File::open(data.join(BACKUP_MANIFEST_FILE)).unwrap()).unwrap()
}

/// The paths of all files below a data directory.
fn files(data: &Path) -> Vec<String> {
    let entries = WalkDir::new(data)
        .follow_links(true)
        .into_iter()
        .map(Result::unwrap);
    entries
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| text(entry.path().strip_prefix(data).unwrap()).to_owned())
        .collect()
}
