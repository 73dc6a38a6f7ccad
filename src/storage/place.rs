//! A file or a folder of a repository, by its name.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::error::{Error, Kind, Result};
use crate::interrupt::Interrupt;
use crate::storage::objects::{ObjectStore, Version};
use crate::storage::{Sink, Source, durable, local, probe};

/// A file or a folder, which need not be there.
#[derive(Clone)]
pub enum Place {
    /// On this machine.
    Local(PathBuf),
    /// In an object store, by its key there.
    Object(Arc<ObjectStore>, String),
}

/// What is read whole is short: `backup.info`, lists of a page.
const SHORT_BYTES: u64 = 64 << 20;

impl From<PathBuf> for Place {
    fn from(path: PathBuf) -> Place {
        Place::Local(path)
    }
}

impl From<&Path> for Place {
    fn from(path: &Path) -> Place {
        Place::Local(path.to_owned())
    }
}

impl From<&PathBuf> for Place {
    fn from(path: &PathBuf) -> Place {
        Place::Local(path.clone())
    }
}

impl From<&Place> for Place {
    fn from(place: &Place) -> Place {
        place.clone()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Local(path) => path.display().fmt(f),
            Place::Object(store, key) => f.write_str(&store.url(key)),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Place) -> bool {
        match (self, other) {
            (Place::Local(one), Place::Local(other)) => one == other,
            (Place::Object(one, key), Place::Object(other, of_other)) => {
                one.url(key) == other.url(of_other)
            }
            _ => false,
        }
    }
}

impl Eq for Place {}

impl Place {
    /// What lies in this folder under a name, or under a path below it.
    pub fn join(&self, name: &str) -> Place {
        match self {
            Place::Local(path) => Place::Local(path.join(name)),
            Place::Object(store, key) if key.is_empty() => {
                Place::Object(store.clone(), name.to_owned())
            }
            Place::Object(store, key) => Place::Object(store.clone(), format!("{key}/{name}")),
        }
    }

    /// Where it lies on this machine, if it does.
    pub fn local(&self) -> Option<&Path> {
        match self {
            Place::Local(path) => Some(path),
            Place::Object(..) => None,
        }
    }

    /// Its name in its folder.
    pub fn name(&self) -> String {
        match self {
            Place::Local(path) => path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            Place::Object(_, key) => match key.rsplit_once('/') {
                Some((_, name)) => name.to_owned(),
                None => key.clone(),
            },
        }
    }

    /// Whether there is a file. That this cannot be told just now is an error: what is not seen need not be gone.
    pub fn exists(&self) -> Result<bool> {
        match self {
            Place::Local(path) => durable::exists(path),
            Place::Object(store, key) => Ok(store.size(key)?.is_some()),
        }
    }

    /// Bytes of the file, which must be there.
    pub fn size(&self) -> Result<u64> {
        match self {
            Place::Local(path) => local::size(path),
            Place::Object(store, key) => {
                let stat = store.size(key)?;
                stat.map(|stat| stat.size).ok_or_else(|| self.missing())
            }
        }
    }

    /// What a short file holds; nothing where there is none.
    pub fn read(&self) -> Result<Option<Vec<u8>>> {
        match self {
            Place::Local(path) => local::read(path),
            Place::Object(store, key) => Ok(store.get(key, SHORT_BYTES)?.map(|(bytes, _)| bytes)),
        }
    }

    /// The first bytes of a file, as far as it goes.
    pub fn start(&self, bytes: usize) -> Result<Vec<u8>> {
        let mut start = Vec::with_capacity(bytes);
        match self {
            Place::Local(path) => {
                let file = File::open(path).map_err(|error| Error::io("open", path, &error))?;
                file.take(bytes as u64)
                    .read_to_end(&mut start)
                    .map_err(|error| Error::io("read", path, &error))?;
            }
            Place::Object(store, key) => {
                let read = store.read_range(key, 0, bytes as u64);
                // That it has gone since it was found is no answer to who asked for it.
                start = read.map_err(|error| match error.kind() {
                    Kind::Absent => self.missing(),
                    _ => error,
                })?;
            }
        }
        Ok(start)
    }

    /// The same, and which content it is, where the storage can tell.
    pub fn read_version(&self) -> Result<Option<(Vec<u8>, Option<Version>)>> {
        match self {
            Place::Local(_) => Ok(self.read()?.map(|content| (content, None))),
            Place::Object(store, key) => {
                let found = store.get(key, SHORT_BYTES)?;
                Ok(found.map(|(content, version)| (content, Some(version))))
            }
        }
    }

    /// Which content a file has, where the storage can tell; nothing where there is none.
    pub fn version(&self) -> Result<Option<Version>> {
        match self {
            Place::Local(_) => Ok(None),
            Place::Object(store, key) => Ok(store.size(key)?.map(|stat| stat.version)),
        }
    }

    /// Puts a file in the place of one that was read; false where that is another one by now, as far as the storage can
    /// tell.
    pub fn replace_version(&self, content: &[u8], version: Option<&Version>) -> Result<bool> {
        match (self, version) {
            (Place::Object(store, key), Some(version)) => {
                Ok(store.replace(key, content.to_vec(), version)?.is_some())
            }
            _ => self.replace(content).map(|()| true),
        }
    }

    /// How long ago a file was written, by the clock of the store; nothing where there is none.
    pub fn age(&self) -> Result<Option<SignedDuration>> {
        let written = match self {
            Place::Local(path) => local::modified(path)?,
            Place::Object(store, key) => store.size(key)?.map(|stat| stat.last_modified),
        };
        Ok(written.map(|written| Timestamp::now().duration_since(written)))
    }

    /// Opens a stored file for reading. That it is not there is damage.
    pub fn open(&self) -> Result<Source> {
        match self {
            Place::Local(path) => Source::of_file(path),
            Place::Object(store, key) => match store.open_read(key)? {
                Some(reader) => Ok(Source::of_object(reader)),
                None => Err(self.missing()),
            },
        }
    }

    /// Begins a file that is not there yet, in a folder that is; mode 0600.
    pub fn create_new(&self) -> Result<Sink> {
        match self {
            Place::Local(path) => Sink::to_file(path),
            Place::Object(store, key) => Ok(Sink::to_object(store.write(key)?)),
        }
    }

    /// Puts a file there, in the place of what there is, so that a crash leaves one or the other. Once this returns, it
    /// is durable.
    pub fn replace(&self, content: &[u8]) -> Result<()> {
        match self {
            Place::Local(path) => durable::replace(path, content),
            Place::Object(store, key) => store.put(key, content.to_vec()),
        }
    }

    /// The same, but only where there is nothing of that name; false where there is, which stays as it is.
    pub fn create(&self, content: &[u8]) -> Result<bool> {
        match self {
            Place::Local(path) => durable::create_file(path, content),
            Place::Object(store, key) => Ok(store.create(key, content.to_vec())?.is_some()),
        }
    }

    /// Copies a file that lies in the same storage to here, where nothing may be. Where that can be, no byte is read.
    pub fn copy_of(&self, other: &Place) -> Result<()> {
        match (self, other) {
            (Place::Local(target), Place::Local(source)) => local::link(source, target),
            (Place::Object(store, target), Place::Object(_, source)) => store.copy(source, target),
            _ => Err(Error::failed(format!(
                "{other} cannot be linked to {self}: they lie in different storages"
            ))),
        }
    }

    /// Removes a file; that there is none is fine.
    pub fn remove(&self) -> Result<()> {
        match self {
            Place::Local(path) => local::remove(path),
            Place::Object(store, key) => store.delete(std::slice::from_ref(key)),
        }
    }

    /// Removes several files of one storage, as far as they are there; in no certain order.
    pub fn remove_all(places: &[Place]) -> Result<()> {
        let mut objects = None;
        for place in places {
            match place {
                Place::Local(path) => local::remove(path)?,
                Place::Object(store, key) => {
                    let (_, keys) = objects.get_or_insert_with(|| (store, Vec::new()));
                    keys.push(key.clone());
                }
            }
        }
        objects.map_or(Ok(()), |(store, keys)| store.delete(&keys))
    }

    /// Removes a folder with all it holds; that it is not there is fine.
    pub fn remove_folder(&self) -> Result<()> {
        match self {
            Place::Local(path) => durable::remove_folder(path),
            Place::Object(store, key) => {
                let found = store.list(key)?;
                let keys: Vec<String> = found.into_iter().map(|found| found.key).collect();
                store.delete(&keys)
            }
        }
    }

    /// Ends what killed processes began to write into a folder, and nobody will finish: an object store keeps such parts, and
    /// lists them nowhere else. Nobody may be writing there.
    pub fn end_uploads(&self) -> Result<()> {
        match self {
            Place::Local(_) => Ok(()),
            Place::Object(store, key) => store.abort_uploads(key).map(drop),
        }
    }

    /// The same place, for what is to be done even when it is time to stop.
    pub fn for_cleaning_up(&self) -> Place {
        match self {
            Place::Local(_) => self.clone(),
            Place::Object(store, key) => {
                Place::Object(Arc::new(store.for_cleaning_up()), key.clone())
            }
        }
    }

    /// The same place as it was at a moment, which can be had of a bucket that keeps versions; nothing can be written there.
    pub fn as_of(&self, moment: Timestamp) -> Result<Place> {
        match self {
            Place::Local(path) => Err(Error::usage(format!(
                "nobody knows what was in {} at {moment}",
                path.display()
            ))
            .hint("only an object store with versions keeps what was")),
            Place::Object(store, key) => {
                Ok(Place::Object(Arc::new(store.as_of(moment)?), key.clone()))
            }
        }
    }

    /// Whether it is looked at as it was.
    pub fn is_past(&self) -> bool {
        match self {
            Place::Local(_) => false,
            Place::Object(store, _) => store.is_past(),
        }
    }

    /// The names in a folder, of files and folders, in no order; none where it is not there.
    pub fn names(&self) -> Result<Vec<String>> {
        match self {
            Place::Local(path) => local::names(path),
            Place::Object(store, key) => {
                let children = store.children(key)?;
                let objects = children.objects.into_iter().map(|found| found.key);
                let keys = children.folders.into_iter().chain(objects);
                let last = |key: String| key.rsplit('/').next().map(str::to_owned);
                Ok(keys.filter_map(last).collect())
            }
        }
    }

    /// The names in a folder that begin so, in no order; none where it is not there.
    pub fn names_with(&self, beginning: &str) -> Result<Vec<String>> {
        let names = match self {
            Place::Local(path) => local::names(path)?,
            Place::Object(store, key) => {
                let inside = inside(key);
                let found = store.beginning(&format!("{inside}{beginning}"))?;
                let below = |key: &str| {
                    let name = key.strip_prefix(&inside)?.split('/').next()?;
                    Some(name.to_owned())
                };
                found.iter().filter_map(|found| below(&found.key)).collect()
            }
        };
        let names = names.into_iter();
        Ok(names.filter(|name| name.starts_with(beginning)).collect())
    }

    /// Which of these names there are in a folder. All of them begin alike.
    pub fn present(
        &self,
        beginning: &str,
        mut names: impl Iterator<Item = String>,
    ) -> Result<Vec<String>> {
        let mut present = Vec::new();
        match self {
            Place::Local(path) => {
                for name in names {
                    if durable::exists(&path.join(&name))? {
                        present.push(name);
                    }
                }
            }
            Place::Object(store, key) => {
                let inside = inside(key);
                let found = store.beginning(&format!("{inside}{beginning}"))?;
                let is_found = |name: &String| {
                    let key = format!("{inside}{name}");
                    found.iter().any(|found| found.key == key)
                };
                present.extend(names.by_ref().filter(is_found));
            }
        }
        Ok(present)
    }

    /// The paths of all files below a folder, in no order; none where it is not there.
    pub fn files(&self) -> Result<Vec<String>> {
        match self {
            Place::Local(path) => local::files(path),
            Place::Object(store, key) => {
                let inside = inside(key);
                let found = store.list(key)?.into_iter();
                let below = |key: &str| key.strip_prefix(&inside).map(str::to_owned);
                Ok(found.filter_map(|found| below(&found.key)).collect())
            }
        }
    }

    /// An error where nothing can be written into a folder that is, or shall be, there; or where the store that it is in
    /// does not do all that is needed.
    pub fn check_writable(&self) -> Result<()> {
        match self {
            Place::Local(path) => local::check_writable(path),
            Place::Object(store, key) => probe::run(store, key),
        }
    }

    /// An error where a file that is there would be written over by [`Place::create`].
    pub fn check_conditions(&self) -> Result<()> {
        match self {
            Place::Local(_) => Ok(()),
            Place::Object(store, key) => probe::check_conditions(store, key),
        }
    }

    /// Bytes that a folder with all it holds takes up, a file with several names counted once.
    pub fn held(&self, interrupt: &Interrupt) -> Result<u64> {
        match self {
            Place::Local(path) => local::held(path, interrupt),
            Place::Object(store, key) => {
                let found = store.list(key)?;
                Ok(found.iter().map(|found| found.size).sum())
            }
        }
    }

    /// Bytes that are free where a folder is, or shall be; nothing where there is no end of it.
    pub fn room(&self) -> Result<Option<u64>> {
        self.local().map(local::room).transpose()
    }

    /// Makes the folder and those it lies in, mode 0700. A store has none, and needs none.
    pub fn create_folder(&self) -> Result<()> {
        self.local().map_or(Ok(()), durable::create_folder)
    }

    /// The same for the folder that it lies in.
    pub fn create_parent(&self) -> Result<()> {
        let parent = self.local().and_then(Path::parent);
        parent.map_or(Ok(()), durable::create_folder)
    }

    /// Whether root works in a folder of somebody else, who could not read what root writes there.
    pub fn is_guest(&self) -> Result<bool> {
        self.local().map_or(Ok(false), local::is_guest)
    }

    /// Makes the folder, which must not be there yet.
    pub fn create_new_folder(&self) -> Result<()> {
        self.local().map_or(Ok(()), durable::create_new_folder)
    }

    /// Makes all durable that was written so far: all that is on the file system of a folder, or on its way to a store.
    pub fn settle(&self) -> Result<()> {
        match self {
            Place::Local(path) => durable::sync_file_system(path),
            Place::Object(store, _) => store.settle(),
        }
    }

    /// Makes the names in a folder durable.
    pub fn sync_folder(&self) -> Result<()> {
        self.local().map_or(Ok(()), durable::sync_folder)
    }

    /// Makes a file durable that somebody else may have written, and may not have synced.
    pub fn sync(&self) -> Result<()> {
        self.local().map_or(Ok(()), local::sync)
    }

    fn missing(&self) -> Error {
        Error::damage(format!("cannot open {self}: it is not there"))
    }
}

/// What the keys of all that is in a folder begin with.
fn inside(key: &str) -> String {
    match key {
        "" => String::new(),
        key => format!("{key}/"),
    }
}
