//! The WAL archive: segments, history files and what else a server archives, each stored by itself.
//!
//! `wal push` runs while `wal copy` does, and neither waits for the other. So nothing here takes a
//! lock: a name is given once, by a rename that replaces nothing, to a file that is whole and
//! synced. A name that is taken is fine if its content is the same, and an error if not. Only the
//! unfinished segments, `.partial`, are replaced by their later selves.

mod cluster;
mod inventory;

use crate::error::{Error, Result};
use crate::pg::history::TimelineHistory;
use crate::pg::lsn::Timeline;
use crate::pg::wal_file::{WalFileKind, WalFileName};
use crate::repository::catalogue::Catalogue;
use crate::repository::incoming::{self, Finished, Incoming};
use crate::repository::layout::ServerFolder;
use crate::storage::Place;
use crate::stored::coding::{Coding, Suffix};
use crate::stored::master_key::Keyring;
use crate::stored::reader::StoredReader;

pub use cluster::ClusterIdentity;
pub use inventory::{Contiguous, Gap, Inventory};

/// The archive of one cluster's WAL.
#[derive(Debug, Clone)]
pub struct WalArchive {
    folder: Place,
    cluster: ClusterIdentity,
    keys: Keyring,
}

/// A file of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredWal {
    /// What PostgreSQL calls it.
    pub name: WalFileName,
    /// Where it lies.
    pub path: Place,
}

/// What came of storing a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is in the archive now.
    New,
    /// It was there before.
    Already,
}

/// Bytes compared at a time.
const COMPARED_BYTES: usize = 256 << 10;

impl WalArchive {
    /// Opens the archive of a server; nothing where no WAL was ever stored. The keys are those that
    /// its files may be encrypted with.
    pub fn open(server: &ServerFolder, keys: Keyring) -> Result<Option<WalArchive>> {
        server.check_format()?;
        let folder = server.wal();
        let cluster = ClusterIdentity::read(&folder.join(cluster::FILE))?;
        Ok(cluster.map(|cluster| WalArchive {
            folder,
            cluster,
            keys,
        }))
    }

    /// Opens the archive for storing the WAL of a cluster, and creates it where it is not there.
    /// Another cluster than the archive's, or than the newest backup's, is refused.
    pub fn claim(
        server: &ServerFolder,
        name: &str,
        cluster: ClusterIdentity,
        keys: Keyring,
    ) -> Result<WalArchive> {
        server.create()?;
        let folder = server.wal();
        let info = folder.join(cluster::FILE);
        let holds = match ClusterIdentity::read(&info)? {
            Some(holds) => holds,
            None => {
                refuse_strangers_to_backups(server, name, cluster)?;
                folder.create_folder()?;
                server.root().sync_folder()?;
                let mut file = Incoming::create(&folder, &Coding::PLAIN)?;
                file.append(cluster.format()?.as_bytes())?;
                // Somebody else may come first.
                file.finish()?.publish(cluster::FILE)?;
                ClusterIdentity::read(&info)?.unwrap_or(cluster)
            }
        };
        if holds != cluster {
            return Err(Error::failed(format!(
                "the archive {folder} holds the WAL of {holds}, and this is WAL of {cluster}"
            ))
            .hint("give the other cluster a name of its own in the configuration, or move the old archive away"));
        }
        incoming::remove_leftovers(&folder)?;
        Ok(WalArchive {
            folder,
            cluster,
            keys,
        })
    }

    /// The keys that its files may be encrypted with.
    pub fn keys(&self) -> &Keyring {
        &self.keys
    }

    /// The cluster whose WAL it holds.
    pub fn cluster(&self) -> ClusterIdentity {
        self.cluster
    }

    /// Begins a file, which [`WalArchive::store`] gives its name.
    pub fn begin(&self, coding: &Coding) -> Result<Incoming> {
        Incoming::create(&self.folder, coding)
    }

    /// Opens a stored file for reading.
    pub fn read(&self, stored: &StoredWal) -> Result<StoredReader> {
        StoredReader::open(&stored.path, &Coding::of_file(&stored.path, &self.keys)?)
    }

    /// Gives a file its name, unless the archive has a file of that name: that must have the same
    /// content. Once this returns, it is on disk. The unfinished self of a whole segment goes.
    pub fn store(&self, name: &WalFileName, mut file: Finished) -> Result<Stored> {
        loop {
            if let Some(stored) = self.find(name)? {
                self.expect_same(&stored, &mut file.open()?)?;
                return Ok(Stored::Already);
            }
            // Where somebody else was faster, the loop comes to his file.
            if file.publish(name.as_str())? {
                self.settle(name, &self.folder.join(&file.stored_name(name.as_str())))?;
                return Ok(Stored::New);
            }
        }
    }

    /// Puts an unfinished segment in the place of the one there is.
    pub fn replace_partial(&self, name: &WalFileName, file: Finished) -> Result<()> {
        let before = self.find(name)?;
        self.put_in_place(before, file, name.as_str())
    }

    fn put_in_place(&self, before: Option<StoredWal>, file: Finished, name: &str) -> Result<()> {
        let path = file.replace(name)?;
        match before {
            Some(stored) if stored.path != path => stored.path.remove(),
            _ => Ok(()),
        }
    }

    /// Takes in a file of another archive of the same cluster as it is stored there, unless there is one of its name, which must
    /// have the same content; an unfinished segment replaces the one there is. Once this returns, it is on disk.
    pub fn take_in(
        &self,
        other: &WalArchive,
        theirs: &StoredWal,
        pass: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Stored> {
        let file_name = theirs.path.name();
        let held = self.find(&theirs.name)?;
        if let Some(held) = &held
            && is_same_as_stored(&held.path, &theirs.path)?
        {
            held.path.sync()?;
            self.sync()?;
            return Ok(Stored::Already);
        }
        let is_unfinished = theirs.name.kind() == WalFileKind::Partial;
        if held.is_none() || is_unfinished {
            let mut file = Incoming::copy_of(&self.folder, &theirs.path, pass)?;
            if is_unfinished {
                self.put_in_place(held, file, &file_name)?;
                return Ok(Stored::New);
            }
            if file.publish(&file_name)? {
                self.settle(&theirs.name, &self.folder.join(&file_name))?;
                return Ok(Stored::New);
            }
        }
        // It was there, or somebody else was faster.
        if let Some(held) = self.find(&theirs.name)? {
            self.expect_same(&held, &mut other.read(theirs)?)?;
        }
        Ok(Stored::Already)
    }

    /// An error where the content differs from what is stored. Once this returns, what is stored
    /// is on disk for certain: whoever stored it may have been killed before he made sure.
    pub fn expect_same(&self, stored: &StoredWal, content: &mut StoredReader) -> Result<()> {
        if !is_same(&mut self.read(stored)?, content)? {
            return Err(differs(&stored.name));
        }
        stored.path.sync()?;
        self.sync()
    }

    /// Makes all names in the archive durable, those that another process gave included.
    pub fn sync(&self) -> Result<()> {
        self.folder.sync_folder()
    }

    /// A file by its name. An error where there are two of other content, of which somebody was killed who would have taken
    /// his own back.
    pub fn find(&self, name: &WalFileName) -> Result<Option<StoredWal>> {
        let mut variants = self.variants(&[name])?.into_iter();
        let Some(first) = variants.next() else {
            return Ok(None);
        };
        for other in variants {
            if !is_same(&mut self.read(&first)?, &mut self.read(&other)?)? {
                return Err(Error::damage(format!(
                    "{} and {} have the same name in PostgreSQL, and other content",
                    first.path, other.path
                ))
                .hint("remove the one that is not of the server whose archive this is: pgkeep wal show tells what happened in each"));
            }
        }
        Ok(Some(first))
    }

    /// The files that have one of these names in PostgreSQL, each stored in its own way. All of them begin as the first one.
    fn variants(&self, names: &[&WalFileName]) -> Result<Vec<StoredWal>> {
        let all = names
            .iter()
            .flat_map(|name| Suffix::all().map(move |suffix| format!("{name}{suffix}")));
        let beginning = names.first().map_or("", |name| name.as_str());
        let found = self.folder.present(beginning, all)?.into_iter();
        Ok(found.filter_map(|name| self.stored(name)).collect())
    }

    /// What is stored under a name, if that is one of WAL.
    fn stored(&self, file_name: String) -> Option<StoredWal> {
        Some(StoredWal {
            name: WalFileName::parse(Suffix::split(&file_name).0)?,
            path: self.folder.join(&file_name),
        })
    }

    /// Looks at what else there is of a file that was stored just now. Two processes that compress or encrypt in different
    /// ways do not meet at one path: so each looks for the other's file when its own is there, and takes its own back where
    /// that is of other content, lest both stay and nobody know which counts. And the unfinished self of a whole segment
    /// goes.
    fn settle(&self, name: &WalFileName, ours: &Place) -> Result<()> {
        let size = self.cluster.segment_size;
        let segment = name.segment_name(size);
        let unfinished = segment
            .filter(|_| name.kind() == WalFileKind::Segment)
            .map(|segment| WalFileName::partial(segment, size));
        let names: Vec<&WalFileName> = [name].into_iter().chain(&unfinished).collect();
        let (named, unfinished): (Vec<StoredWal>, Vec<StoredWal>) = self
            .variants(&names)?
            .into_iter()
            .partition(|stored| stored.name == *name);
        let (own, others): (Vec<StoredWal>, Vec<StoredWal>) =
            named.into_iter().partition(|stored| stored.path == *ours);
        for (own, other) in own
            .iter()
            .flat_map(|own| others.iter().map(move |other| (own, other)))
        {
            if !is_same(&mut self.read(own)?, &mut self.read(other)?)? {
                own.path.remove()?;
                return Err(differs(name));
            }
        }
        unfinished
            .iter()
            .try_for_each(|stored| stored.path.remove())
    }

    /// How a timeline came to be, as far as the archive knows: the first one, and one whose
    /// history file is not here, have no ancestors.
    pub fn history(&self, timeline: Timeline) -> Result<TimelineHistory> {
        match self.find(&WalFileName::history(timeline))? {
            None => Ok(TimelineHistory::without_ancestors(timeline)),
            Some(stored) => self.read_history(&stored, timeline),
        }
    }

    fn read_history(&self, stored: &StoredWal, timeline: Timeline) -> Result<TimelineHistory> {
        let mut content = Vec::new();
        self.read(stored)?.read_to_end(&mut content)?;
        let history = TimelineHistory::parse(timeline, &String::from_utf8_lossy(&content))
            .map_err(|error| error.context(&stored.path))?;
        // The server that began the timeline wrote at least one line (access/transam/timeline.c, writeTimeLineHistory).
        if history.parent().is_none() {
            let what = format!(
                "{} does not say where that timeline comes from",
                stored.path
            );
            return Err(Error::damage(what).hint(
                "replace it with the server's own, from its pg_wal: remove it and run pgkeep wal push or wal copy",
            ));
        }
        Ok(history)
    }

    /// Every file of the archive, in no order.
    pub fn files(&self) -> Result<Vec<StoredWal>> {
        let names = self.folder.names()?.into_iter();
        Ok(names.filter_map(|name| self.stored(name)).collect())
    }

    /// What the archive holds now.
    pub fn inventory(&self) -> Result<Inventory> {
        let mut inventory = Inventory::new(self.cluster.segment_size);
        for stored in self.files()? {
            match (
                stored.name.timeline_of_history(),
                stored.name.segment_name(self.cluster.segment_size),
            ) {
                (Some(timeline), _) => {
                    let history = self.read_history(&stored, timeline)?;
                    inventory.add_history(history);
                }
                (None, Some(segment)) => inventory.add(stored.name.kind(), segment),
                (None, None) => {}
            }
        }
        Ok(inventory)
    }
}

/// A repository whose backups are of one cluster is no place for another one's WAL.
fn refuse_strangers_to_backups(
    server: &ServerFolder,
    name: &str,
    cluster: ClusterIdentity,
) -> Result<()> {
    let catalogue = Catalogue::read(name, server)?;
    let newest = catalogue.newest_info();
    match newest.and_then(|info| Some((info.backup, ClusterIdentity::of_backup(info)?))) {
        Some((backup, of_backup)) if of_backup != cluster => Err(Error::failed(format!(
            "backup {backup} of server {name} is of {of_backup}, and this is WAL of {cluster}"
        ))
        .hint(format!(
            "give the other cluster a name of its own in the configuration, or make a backup of it first: pgkeep backup {name}"
        ))),
        _ => Ok(()),
    }
}

fn differs(name: &WalFileName) -> Error {
    let failure = |what_happened: &str| {
        Error::failed(format!(
            "{name} is in the archive already, with other content{what_happened}"
        ))
    };
    match name.kind() {
        WalFileKind::History => failure(
            ": another server of this origin, a restored copy or a standby that was promoted, has taken this timeline's number \
             and archives here",
        )
        .hint(
            "give the server that is not to go on with this archive a name of its own in the configuration, and make a full backup \
             of it; a server whose restore_command is `pgkeep wal get` takes a number that is free when it is promoted",
        ),
        _ => failure("").hint(
            "two servers archive into the same place: give one of them a name of its own in the configuration",
        ),
    }
}

/// Whether two files hold the same bytes as they are stored, which no key is needed for.
fn is_same_as_stored(one: &Place, other: &Place) -> Result<bool> {
    let plain = |place: &Place| StoredReader::open(place, &Coding::PLAIN);
    Ok(one.size()? == other.size()? && is_same(&mut plain(one)?, &mut plain(other)?)?)
}

fn is_same(one: &mut StoredReader, other: &mut StoredReader) -> Result<bool> {
    let (mut ours, mut theirs) = (vec![0; COMPARED_BYTES], vec![0; COMPARED_BYTES]);
    loop {
        let (read, expected) = (one.fill(&mut ours)?, other.fill(&mut theirs)?);
        if ours[..read] != theirs[..expected] {
            return Ok(false);
        }
        if read == 0 {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pg::segment::SegmentSize;
    use crate::pg::version::Major;
    use crate::repository::backup_info::tests::example;
    use crate::stored::compression::Algorithm;
    use crate::stored::compression::Compression;

    fn cluster() -> ClusterIdentity {
        ClusterIdentity {
            system_identifier: 7,
            major: Major::V17,
            segment_size: SegmentSize::new(1 << 20).unwrap(),
        }
    }

    struct Place {
        _base: tempfile::TempDir,
        server: ServerFolder,
    }

    fn place() -> Place {
        let base = tempfile::tempdir().unwrap();
        Place {
            server: ServerFolder::new(base.path(), "primary"),
            _base: base,
        }
    }

    impl Place {
        fn claim(&self, cluster: ClusterIdentity) -> Result<WalArchive> {
            WalArchive::claim(&self.server, "primary", cluster, Keyring::new(None))
        }
    }

    fn finished(archive: &WalArchive, content: &[u8], algorithm: Algorithm) -> Finished {
        let coding = Coding {
            compression: Compression::of(algorithm),
            encryption: None,
        };
        let mut file = archive.begin(&coding).unwrap();
        file.append(content).unwrap();
        file.finish().unwrap()
    }

    fn store(archive: &WalArchive, name: &str, content: &[u8], how: Algorithm) -> Result<Stored> {
        let name = WalFileName::parse(name).unwrap();
        archive.store(&name, finished(archive, content, how))
    }

    const SEGMENT: &str = "000000010000000000000005";
    const PARTIAL: &str = "000000010000000000000005.partial";

    #[test]
    fn a_name_has_one_content_however_it_is_stored() {
        let place = place();
        assert!(
            WalArchive::open(&place.server, Keyring::new(None))
                .unwrap()
                .is_none()
        );
        let archive = place.claim(cluster()).unwrap();
        let content = vec![7; 1 << 20];
        for (algorithm, expected) in [
            (Algorithm::Zstd, Stored::New),
            (Algorithm::Zstd, Stored::Already),
            (Algorithm::None, Stored::Already),
        ] {
            let stored = store(&archive, SEGMENT, &content, algorithm).unwrap();
            assert_eq!(stored, expected);
        }
        for (other, algorithm) in [
            (vec![8; 1 << 20], Algorithm::Zstd),
            (vec![7; (1 << 20) - 1], Algorithm::Lz4),
            (vec![7; (1 << 20) + 1], Algorithm::None),
            (Vec::new(), Algorithm::Gzip),
        ] {
            let error = store(&archive, SEGMENT, &other, algorithm).unwrap_err();
            assert!(error.message().contains("other content"), "{error}");
        }
        let stored = archive
            .find(&WalFileName::parse(SEGMENT).unwrap())
            .unwrap()
            .unwrap();
        assert!(stored.path.name().ends_with(".zstd"));
        let mut read = Vec::new();
        archive
            .read(&stored)
            .unwrap()
            .read_to_end(&mut read)
            .unwrap();
        assert!(read == content);
        assert_eq!(
            std::fs::read_dir(place.server.wal().join("incoming").local().unwrap())
                .unwrap()
                .count(),
            0
        );
    }

    #[test]
    fn another_archives_files_are_taken_in_as_they_are_stored() {
        let (here, there) = (place(), place());
        let source = here.claim(cluster()).unwrap();
        let target = there.claim(cluster()).unwrap();
        let partial = WalFileName::parse(PARTIAL).unwrap();
        let take_in = |name: &str| {
            let name = WalFileName::parse(name).unwrap();
            let theirs = source.find(&name).unwrap().unwrap();
            let taken = target.take_in(&source, &theirs, &mut |_| Ok(()))?;
            let own = target.find(&name).unwrap().unwrap();
            Ok::<_, Error>((taken, own.path, theirs.path))
        };
        for content in [b"a", b"b"] {
            let file = finished(&source, content, Algorithm::Zstd);
            source.replace_partial(&partial, file).unwrap();
            for expected in [Stored::New, Stored::Already] {
                let (taken, own, theirs) = take_in(PARTIAL).unwrap();
                assert_eq!(taken, expected);
                assert_eq!(own.read().unwrap(), theirs.read().unwrap());
            }
        }
        store(&source, SEGMENT, b"whole", Algorithm::Gzip).unwrap();
        let (taken, own, theirs) = take_in(SEGMENT).unwrap();
        assert_eq!((taken, own.name()), (Stored::New, theirs.name()));
        assert!(target.find(&partial).unwrap().is_none());

        // What the target has is the same in whatever way it is stored, or it is an error.
        const NEXT: &str = "000000010000000000000006";
        store(&source, NEXT, b"same", Algorithm::Gzip).unwrap();
        store(&target, NEXT, b"same", Algorithm::Zstd).unwrap();
        assert_eq!(take_in(NEXT).unwrap().0, Stored::Already);
        const HISTORY: &str = "00000002.history";
        store(&source, HISTORY, b"1\t0/5000000\there\n", Algorithm::None).unwrap();
        store(&target, HISTORY, b"1\t0/5000000\tthere\n", Algorithm::None).unwrap();
        let error = take_in(HISTORY).unwrap_err();
        assert!(error.message().contains("other content"), "{error}");
    }

    #[test]
    fn a_whole_segment_supersedes_its_unfinished_self() {
        let place = place();
        let archive = place.claim(cluster()).unwrap();
        let partial = WalFileName::parse(PARTIAL).unwrap();
        for (content, algorithm) in [(b"a", Algorithm::Zstd), (b"b", Algorithm::None)] {
            let file = finished(&archive, content, algorithm);
            archive.replace_partial(&partial, file).unwrap();
            assert_eq!(archive.variants(&[&partial]).unwrap().len(), 1);
        }
        store(&archive, SEGMENT, b"whole", Algorithm::Zstd).unwrap();
        assert_eq!(archive.find(&partial).unwrap(), None);
    }

    #[test]
    fn an_archive_takes_one_clusters_wal() {
        let place = place();
        let mut other = cluster();
        other.system_identifier += 1;
        let mut resized = cluster();
        resized.segment_size = SegmentSize::new(2 << 20).unwrap();
        place.claim(cluster()).unwrap();
        for wrong in [other, resized] {
            let error = place.claim(wrong).unwrap_err();
            assert!(
                error.message().contains("holds the WAL of cluster 7"),
                "{error}"
            );
        }
        let archive = WalArchive::open(&place.server, Keyring::new(None))
            .unwrap()
            .unwrap();
        assert_eq!(archive.cluster(), cluster());
    }

    #[test]
    fn wal_of_another_cluster_than_the_backups_is_refused() {
        let place = place();
        place.server.create().unwrap();
        let info = example("20240928065644");
        let folder = place.server.backup(info.backup);
        folder.place().create_folder().unwrap();
        info.write(&folder).unwrap();
        let error = place.claim(cluster()).unwrap_err();
        assert!(error.message().contains("backup 20240928065644"), "{error}");
        place
            .claim(ClusterIdentity::of_backup(&info).unwrap())
            .unwrap();
    }

    #[test]
    fn an_inventory_knows_every_file_by_its_name() {
        let place = place();
        let archive = place.claim(cluster()).unwrap();
        let history = b"1\t0/580000\tno recovery target specified\n";
        for (name, content, algorithm) in [
            (SEGMENT, &b"x"[..], Algorithm::Lz4),
            ("000000010000000000000006.partial", b"x", Algorithm::None),
            (
                "000000010000000000000005.00000028.backup",
                b"x",
                Algorithm::Zstd,
            ),
            ("00000002.history", history, Algorithm::Bzip2),
        ] {
            store(&archive, name, content, algorithm).unwrap();
        }
        let stranger = place.server.wal().join("000000010000000000000007.zst");
        stranger.replace(b"x").unwrap();
        let inventory = archive.inventory().unwrap();
        assert_eq!(inventory.timelines(), [Timeline(1), Timeline(2)]);
        let names = |segments: Vec<crate::pg::segment::SegmentName>| {
            segments
                .into_iter()
                .map(|segment| segment.number.0)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(inventory.segments_of(Timeline(1)).collect()), [5]);
        assert_eq!(names(inventory.partials_of(Timeline(1)).collect()), [6]);
        assert_eq!(
            inventory.history(Timeline(2)).switch_point(Timeline(1)),
            "0/580000".parse().ok()
        );
        assert_eq!(
            inventory.history(Timeline(2)),
            archive.history(Timeline(2)).unwrap()
        );
    }

    #[test]
    fn of_many_that_store_the_same_segment_one_is_new_and_none_fails() {
        let place = place();
        let archive = place.claim(cluster()).unwrap();
        let new = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|number| {
                    let archive = &archive;
                    let algorithm = Algorithm::ALL[number % 2];
                    scope.spawn(move || store(archive, SEGMENT, &[1; 100_000], algorithm).unwrap())
                })
                .collect();
            let stored = threads.into_iter().map(|thread| thread.join().unwrap());
            stored.filter(|stored| *stored == Stored::New).count()
        });
        assert!((1..=2).contains(&new), "{new}");
    }
}
