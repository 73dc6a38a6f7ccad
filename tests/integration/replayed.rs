//! Amid changes of every sort, a chain holds page for page what PostgreSQL's replay makes of its full backup.
//!
//! Both are rolled forward to the same restore point, just behind the chain's last member. A page that this member
//! lacks, or has from another time, then keeps another LSN than the page that all of the WAL was replayed on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgkeep::pg::lsn::Lsn;
use pgkeep::pg::relation::{Fork, RelationFile};
use pgkeep::pg::version::Major;
use walkdir::WalkDir;

use crate::support::archive::{archiving, switch, wait_until_archived};
use crate::support::checks;
use crate::support::cluster::{Options, Postmaster};
use crate::support::pgkeep::{Backup, SERVER};
use crate::support::random_changes::{Random, RandomChanges, rounds};
use crate::support::{Cluster, Pgkeep, wait_until};

/// Slow enough that relations change while they are being copied.
const MAX_RATE: &str = "40MB";

/// Between some changes and the next, lest there be more WAL than anybody wants to replay.
const PAUSE: Duration = Duration::from_millis(300);

/// What shows of which time a page is.
#[derive(Clone, Copy, Default)]
struct Page {
    /// The end of the record that changed it last (storage/bufpage.h, pd_lsn).
    lsn: Lsn,
    /// A checksum of the rest.
    rest: u32,
}

impl Page {
    fn of(bytes: &[u8]) -> Page {
        // Two numbers of 32 bits, the higher one first, and the page's own checksum.
        let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        Page {
            lsn: Lsn(u64::from(half(0)) << 32 | u64::from(half(4))),
            rest: crc32c::crc32c(&bytes[10..]),
        }
    }

    /// What is built outside of shared buffers goes to disk before there is a record of it (access/gist/gistbuild.c,
    /// GistBuildLSN); with what is built from nothing that is zero.
    fn is_without_record(self) -> bool {
        self.lsn <= Lsn(1)
    }

    fn is_same(self, other: Page) -> bool {
        match (self.is_without_record(), other.is_without_record()) {
            // Until WAL mentions it there is nothing in it.
            (true, true) => true,
            (false, false) => self.lsn == other.lsn,
            _ => self.rest == other.rest,
        }
    }
}

/// The pages of each file that WAL tells all of: not those of unlogged relations, but for their init forks, and not
/// the maps of free space and visibility.
fn pages(major: u32, data: &Path) -> BTreeMap<RelationFile<'static>, Vec<Page>> {
    let major = Major::from_number(major).unwrap();
    let mut files = BTreeMap::new();
    for entry in WalkDir::new(data).follow_links(true) {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(data).unwrap().to_str().unwrap();
        // It lives as long as the test.
        let path = path.to_owned().leak();
        let file = RelationFile::parse(path, &major.tablespace_directory());
        if let Some(file) = file.filter(|file| matches!(file.fork, Fork::Main | Fork::Init)) {
            let bytes = fs::read(entry.path()).unwrap();
            files.insert(file, bytes.chunks(8192).map(Page::of).collect());
        }
    }
    let unlogged: BTreeSet<_> = files
        .keys()
        .filter(|file| file.fork == Fork::Init)
        .map(|file| (file.directory, file.relfilenumber))
        .collect();
    files.retain(|file, _| {
        file.fork == Fork::Init || !unlogged.contains(&(file.directory, file.relfilenumber))
    });
    files
}

/// All pages that differ.
fn differences(major: u32, replayed: &Path, restored: &Path) -> Vec<String> {
    let (replayed, restored) = (pages(major, replayed), pages(major, restored));
    let files: BTreeSet<_> = replayed.keys().chain(restored.keys()).collect();
    let mut differences = Vec::new();
    for file in files {
        let of = |pages: &BTreeMap<RelationFile<'_>, Vec<Page>>| {
            pages.get(file).cloned().unwrap_or_default()
        };
        let (there, here) = (of(&replayed), of(&restored));
        for block in 0..there.len().max(here.len()) {
            let at = |pages: &[Page]| pages.get(block).copied().unwrap_or_default();
            let (there, here) = (at(&there), at(&here));
            if !there.is_same(here) {
                differences.push(format!(
                    "block {block} of {file}: {} replayed, {} restored",
                    there.lsn, here.lsn
                ));
            }
        }
    }
    differences
}

/// A full backup and what was built on it.
struct Chain {
    major: u32,
    pgkeep: Pgkeep,
    full: Backup,
    /// The tablespaces outside of the data directory.
    tablespaces: Vec<PathBuf>,
}

impl Chain {
    /// Restores a backup, lets PostgreSQL replay WAL up to a restore point, and writes all that came of it to disk.
    fn rolled_forward(&self, backup: &Backup, point: &str) -> PathBuf {
        let ground = self.pgkeep.ground();
        let folder = ground.folder(&format!("{}-{point}", backup.identifier));
        let position = format!("name={point}");
        let mut arguments = vec!["restore", SERVER, &backup.identifier, &position];
        arguments.push(folder.to_str().unwrap());
        let moved = self.tablespaces.iter().map(|tablespace| {
            let name = tablespace.file_name().unwrap();
            format!("{}={}", tablespace.display(), folder.join(name).display())
        });
        let moved: Vec<String> = moved.collect();
        arguments.extend(moved.iter().flat_map(|moved| ["--tablespace", moved]));
        let report = self.pgkeep.ok(&arguments);
        let data = PathBuf::from(report.at("Response.Directory"));
        let mut cluster = Cluster::adopt(self.major, &data);
        // Its only restartpoint is that of its end.
        cluster.set("archive_mode = off\ncheckpoint_timeout = 1d\nmax_wal_size = 10GB");
        cluster.start();
        wait_until_paused(&cluster);
        cluster.stop(Postmaster::Fast);
        data
    }

    fn is_as_replayed(&self, member: &Backup, point: &str) {
        let replayed = self.rolled_forward(&self.full, point);
        let restored = self.rolled_forward(member, point);
        let differences = differences(self.major, &replayed, &restored);
        assert!(
            differences.is_empty(),
            "PostgreSQL {}: {} pages of {} differ {point}:\n{}",
            self.major,
            differences.len(),
            member.identifier,
            differences.join("\n")
        );
        let mut cluster = Cluster::adopt(self.major, &restored);
        cluster.start();
        // What is resumed before it pauses goes on to pause.
        wait_until_paused(&cluster);
        cluster.sql("select pg_wal_replay_resume()");
        cluster.wait_until_writable();
        checks::assert_invariant(&cluster);
        checks::pg_amcheck(&cluster);
        assert_settings_are_whole(&cluster);
        assert_unlogged_relations_are_empty(&cluster);
        assert_visibility_maps_are_right(&cluster);
        drop(cluster);
        for data in [replayed, restored] {
            fs::remove_dir_all(data.parent().unwrap()).unwrap();
        }
    }
}

fn wait_until_paused(cluster: &Cluster) {
    wait_until("the restore point is reached", || {
        cluster.value("select pg_get_wal_replay_pause_state()") == "paused"
    });
}

fn assert_visibility_maps_are_right(cluster: &Cluster) {
    // To these nothing that came later is visible, whatever database it is in.
    for transaction in cluster.sql("select gid from pg_prepared_xacts") {
        cluster.sql(&format!("rollback prepared '{}'", transaction[0]));
    }
    for database in cluster.sql("select datname from pg_database where datallowconn") {
        let name = &database[0];
        cluster.sql_in(name, "create extension if not exists pg_visibility");
        let wrong = cluster.sql_in(
            name,
            "select oid::regclass from pg_class
             where relkind in ('r', 't', 'm')
                   and (exists (select from pg_check_visible(oid)) or exists (select from pg_check_frozen(oid)))",
        );
        assert!(wrong.is_empty(), "{name}: {wrong:?}");
    }
}

/// `ALTER SYSTEM` writes settings whole, whenever they are read.
fn assert_settings_are_whole(cluster: &Cluster) {
    let wrong = cluster
        .sql("select sourcefile, sourceline, error from pg_file_settings where error is not null");
    assert!(wrong.is_empty(), "{wrong:?}");
    let sign = cluster.value("show log_line_prefix");
    // A standby has settings of its own.
    if sign.starts_with(|letter: char| letter.is_ascii_digit()) {
        let (first, last) = (sign.split(' ').next(), sign.trim_end().rsplit(' ').next());
        assert_eq!(first, last, "{sign}");
    }
}

/// Recovery makes each unlogged relation anew, empty, its indexes too, and it can be filled again.
fn assert_unlogged_relations_are_empty(cluster: &Cluster) {
    for database in cluster.sql("select datname from pg_database where datallowconn") {
        let unlogged =
            "select oid::regclass from pg_class where relpersistence = 'u' and relkind = 'r'";
        for relation in cluster.sql_in(&database[0], unlogged) {
            let name = &relation[0];
            let rows = cluster.sql_in(
                &database[0],
                &format!(
                    "insert into {name} (i) values (1); reindex table {name};
                     select count(*) from {name}"
                ),
            );
            assert_eq!(rows, [["1"]], "{name} in {}", database[0]);
        }
    }
}

/// A backup, while relations and databases change.
fn amid(
    changes: &mut RandomChanges,
    cluster: &Cluster,
    pgkeep: &Pgkeep,
    arguments: &[&str],
) -> Backup {
    std::thread::scope(|scope| {
        let backup = scope.spawn(|| pgkeep.finished(&pgkeep.ok(arguments)));
        while !backup.is_finished() {
            changes.make(cluster, 2);
            std::thread::sleep(PAUSE);
        }
        backup.join().unwrap()
    })
}

/// What is backed up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The server whose databases change, and which crashes now and then.
    Primary,
    /// One that follows it.
    Standby,
}

fn every_member_is_as_replayed(major: u32, source: Source, settings: &str) {
    let plainly = |pgkeep: Pgkeep| pgkeep.with("max_rate", MAX_RATE);
    let (mut cluster, pgkeep) =
        archiving(major, &Options::default(), plainly, Pgkeep::archive_command);
    cluster.stop(Postmaster::Fast);
    cluster.set(RandomChanges::SETTINGS);
    cluster.set(settings);
    if source == Source::Standby {
        // However far a standby is behind on a busy machine.
        cluster.set("wal_keep_size = 4GB");
    }
    cluster.start();
    let standby = (source == Source::Standby).then(|| cluster.standby());
    let random = Random::seeded();
    let mut changes = match source {
        Source::Primary => RandomChanges::of(&cluster, random),
        Source::Standby => RandomChanges::in_place(&cluster, random),
    };
    let pgkeep = match &standby {
        None => pgkeep,
        Some(standby) => pgkeep.with_server("host", standby.socket().to_str().unwrap()),
    };
    changes.make(&cluster, 10);
    let full = amid(&mut changes, &cluster, &pgkeep, &["backup", SERVER]);
    let mut members = Vec::new();
    for number in 1..=rounds(2) {
        changes.make(&cluster, 6);
        changes.restart(&mut cluster);
        changes.make(&cluster, 6);
        if let Some(standby) = &standby {
            // A restartpoint, without which the backup before could not be the parent.
            cluster.sql("checkpoint");
            standby.catch_up_with(&cluster);
        }
        let member = amid(
            &mut changes,
            &cluster,
            &pgkeep,
            &["backup", SERVER, "newest"],
        );
        let point = format!("behind {number}");
        // A restartpoint that writes all to disk needs a checkpoint.
        cluster.sql("checkpoint");
        cluster.sql(&format!("select pg_create_restore_point('{point}')"));
        members.push((member, point));
    }
    let last = switch(&cluster);
    wait_until_archived(&pgkeep, &last);
    let chain = Chain {
        major,
        pgkeep,
        full,
        tablespaces: match source {
            Source::Primary => RandomChanges::OWN_TABLESPACES
                .map(|name| cluster.ground().path().join(name))
                .into(),
            Source::Standby => Vec::new(),
        },
    };
    drop(standby);
    drop(cluster);
    for (member, point) in &members {
        chain.is_as_replayed(member, point);
    }
}

#[test]
fn every_member_of_a_chain_of_14_is_as_replayed() {
    every_member_is_as_replayed(14, Source::Primary, "");
}

#[test]
fn every_member_of_a_chain_of_17_is_as_replayed() {
    every_member_is_as_replayed(17, Source::Primary, "summarize_wal = on");
}

#[test]
fn every_member_of_a_chain_of_18_is_as_replayed() {
    every_member_is_as_replayed(18, Source::Primary, "");
}

#[test]
fn every_member_of_a_chain_of_a_standby_of_16_is_as_replayed() {
    every_member_is_as_replayed(16, Source::Standby, "");
}

#[test]
fn every_member_of_a_chain_of_a_standby_of_18_is_as_replayed() {
    every_member_is_as_replayed(18, Source::Standby, "summarize_wal = on");
}
