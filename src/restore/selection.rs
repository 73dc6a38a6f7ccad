//! Which files of a backup are restored whole.
//!
//! All of them, as a rule. Of a cluster of which only a part is wanted, the files of all other relations come as holes: sparse
//! files of their full length, which take no space. Recovery needs them, as it must find the pages that it changes, and the whole
//! segments in front of them. Most of these pages it makes anew: the first change of each page behind the start of a backup
//! brings the whole page with it (access/transam/xloginsert.c). Where a change brings none, recovery finds a page that is none,
//! and passes the change over; [`Databases`](crate::restore::databases::Databases) tells where that is so.
//!
//! A page of zeros is an empty one to PostgreSQL, so whoever makes holes must see to it that nobody ever reads them. A
//! server that let somebody connect to a database without catalogs would go down with all its sessions
//! (utils/cache/relcache.c, load_critical_index). So such a database lacks its `PG_VERSION`, which recovery does not miss, and
//! without which each connection to it is refused (utils/init/miscinit.c, ValidatePgVersion). It can be dropped.

use std::collections::BTreeSet;

use roaring::RoaringBitmap;

use crate::error::Result;
use crate::pg::changed_blocks::RelationFork;
use crate::pg::relation::RelationFile;
use crate::repository::chain::Chain;
use crate::restore::plan::major;

/// What forbids to connect to a database that lacks it.
const VERSION_FILE: &str = "PG_VERSION";

/// How the files of a backup are restored.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Selection {
    /// Those that come as holes, by their places in the list of the newest backup.
    holes: RoaringBitmap,
    /// Those that do not come at all.
    absent: RoaringBitmap,
}

impl Selection {
    /// Of the relations that are files of a database, only these come whole; nobody is to connect to the databases that
    /// are not `open`.
    pub fn new(
        chain: &Chain,
        is_whole: impl Fn(&RelationFork) -> bool,
        is_open: impl Fn(u32) -> bool,
    ) -> Result<Selection> {
        let tablespace_directory = major(&chain.newest.info)?.tablespace_directory();
        let fork = |path: &str| {
            let file = RelationFile::parse(path, &tablespace_directory)?;
            RelationFork::of(&file).filter(|fork| fork.database != 0)
        };
        let mut selection = Selection::default();
        for (place, file) in (0..).zip(chain.newest.list.files.iter()) {
            if let Some(fork) = fork(file.path) {
                if !is_whole(&fork) {
                    selection.holes.insert(place);
                }
            } else if let Some(folder) = file.path.strip_suffix(VERSION_FILE)
                // As a relation's file in the same folder.
                && let Some(beside) = fork(&format!("{folder}1"))
                && !is_open(beside.database)
            {
                selection.absent.insert(place);
            }
        }
        Ok(selection)
    }

    /// Whether a file is restored as it was.
    pub fn is_whole(&self, place: usize) -> bool {
        let place = place as u32;
        !self.holes.contains(place) && !self.absent.contains(place)
    }

    /// Whether a file does not come at all.
    pub(super) fn is_absent(&self, place: usize) -> bool {
        self.absent.contains(place as u32)
    }

    /// The files that come as holes.
    pub fn holes(&self) -> impl Iterator<Item = usize> {
        self.holes.iter().map(|place| place as usize)
    }

    /// The databases that some of these are of.
    pub(super) fn databases(&self, chain: &Chain) -> Result<BTreeSet<u32>> {
        let tablespace_directory = major(&chain.newest.info)?.tablespace_directory();
        let files = &chain.newest.list.files;
        let database = |place| {
            let file = RelationFile::parse(files.get(place).path, &tablespace_directory)?;
            Some(RelationFork::of(&file)?.database)
        };
        Ok(self.holes().filter_map(database).collect())
    }

    /// Bytes of the files that are restored whole.
    pub fn bytes(&self, chain: &Chain) -> u64 {
        let files = chain.newest.list.files.iter().enumerate();
        files
            .filter(|(place, _)| self.is_whole(*place))
            .map(|(_, file)| file.restored_size())
            .sum()
    }
}
