//! Objects in a store such as S3, Azure's or Google's, for callers that wait.
//!
//! A key is a path with `/` between its parts, below the folder that the URL of the store names; any characters may be in
//! it. What may come right a moment later is tried again, for up to [`PATIENCE`]: no connection, none any longer,
//! an answer that asks to come back. Everything ends early when it is time to stop; [`ObjectStore::for_cleaning_up`]
//! gives a store for what is to be done even then.
//!
//! Threads may share one store. The requests of each go on by themselves; two further threads move what is
//! sent and received.

mod advice;
mod attempts;
mod azure;
mod backend;
mod credentials;
mod dialing;
mod failure;
mod google;
mod name;
mod outgoing;
mod past;
mod profile;
mod reader;
mod refusal;
mod requests;
mod settings;
mod tls;
mod writer;

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use object_store::list::PaginatedListOptions;
use object_store::path::Path;
use object_store::{GetOptions, ObjectMeta, PutMode, PutOptions, UpdateVersion};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;

use attempts::Patience;
use backend::Backend;
use failure::{Action, Failure, absent, or_absent};
use outgoing::Outgoing;
use past::Past;
use refusal::Refusal;
use requests::Traffic;

pub use credentials::Sources;
pub use reader::ObjectReader;
pub use requests::Counts;
pub use settings::{Endpoint, Location, Proxy, Scheme, ServerEncryption, Settings};
pub use writer::ObjectWriter;

pub use attempts::PATIENCE;

/// Threads that move what is sent and received.
const THREADS: usize = 2;

/// What may be deleted by one request.
const DELETED_AT_ONCE: usize = 1000;

/// Names the content of an object: another content of the same key has another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    tag: String,
    /// What Google's store tells it by where it is to be replaced.
    generation: Option<String>,
}

/// What is known of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Its bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub last_modified: Timestamp,
    /// Which content it is.
    pub version: Version,
}

/// An object in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// Its bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub last_modified: Timestamp,
}

/// What lies directly below a key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Children {
    /// Keys that others lie below, without `/` at their end.
    pub folders: Vec<String>,
    /// Objects.
    pub objects: Vec<Listed>,
}

/// A store, or the folder of one.
#[derive(Clone)]
pub struct ObjectStore {
    shared: Arc<Shared>,
    patience: Patience,
    /// The moment that it is looked at as it was; nothing for now.
    past: Option<Arc<Past>>,
}

/// What all that is done in a store has in common.
struct Shared {
    settings: Settings,
    backend: Arc<dyn Backend>,
    traffic: Arc<Traffic>,
    outgoing: Outgoing,
    /// Whether it is time to stop.
    stop: watch::Receiver<bool>,
    handle: Handle,
    /// What the handle is of; taken when it ends.
    runtime: Option<Runtime>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A name that is being looked up would be waited for.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for ObjectStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectStore({})", self.shared.settings.location)
    }
}

impl ObjectStore {
    /// Makes ready what requests need, and makes none. Once the interrupt is raised, nothing is waited for.
    pub fn open(settings: &Settings, interrupt: &Interrupt) -> Result<ObjectStore> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("objects")
            .enable_all()
            .build()
            .map_err(|error| Error::failed(format!("cannot start threads: {error}")))?;
        let settings = settings.clone().completed()?;
        let traffic = Arc::new(Traffic::default());
        let backend = backend::open(&settings, &traffic)?;
        let (raise, stop) = watch::channel(interrupt.is_raised());
        interrupt.on_raise(move || {
            raise.send_replace(true);
        });
        if interrupt.is_raised() {
            // Raised before it was asked to tell.
            return Err(crate::interrupt::interrupted());
        }
        Ok(ObjectStore {
            shared: Arc::new(Shared {
                settings,
                backend,
                traffic,
                outgoing: Outgoing::default(),
                stop,
                handle: runtime.handle().clone(),
                runtime: Some(runtime),
            }),
            patience: Patience::USUAL,
            past: None,
        })
    }

    /// The same store for what is to be done even when it is time to stop, such as giving up a lock: it does not look at
    /// that, and gives up after ten seconds.
    #[must_use]
    pub fn for_cleaning_up(&self) -> ObjectStore {
        ObjectStore {
            patience: Patience::CLEANING_UP,
            ..self.clone()
        }
    }

    /// The same store for what somebody has sent on its way, and does not wait for.
    fn for_sending(&self) -> ObjectStore {
        ObjectStore {
            patience: Patience::SENDING,
            ..self.clone()
        }
    }

    /// The same store, where what fails is tried again for so long.
    #[must_use]
    pub fn with_patience(&self, patience: Duration) -> ObjectStore {
        ObjectStore {
            patience: self.patience.lasting(patience),
            ..self.clone()
        }
    }

    /// Where the store is, or a key in it: for messages.
    pub fn url(&self, key: &str) -> String {
        match key {
            "" => self.shared.settings.location.to_string(),
            key => format!("{}/{key}", self.shared.settings.location),
        }
    }

    /// How many requests were made so far.
    pub fn requests(&self) -> Counts {
        self.shared.traffic.counts()
    }

    /// Writes an object, in place of what has that key.
    pub fn put(&self, key: &str, content: impl Into<Bytes>) -> Result<()> {
        self.put_if(key, &content.into(), PutMode::Overwrite)
            .map(drop)
    }

    /// Writes an object that is not there yet; `None` where the key is taken. Who writes what nobody else would write
    /// learns the truth even where the answer to a request is lost.
    pub fn create(&self, key: &str, content: impl Into<Bytes>) -> Result<Option<Version>> {
        self.put_if(key, &content.into(), PutMode::Create)
    }

    /// Writes an object in place of a certain content; `None` where that is no longer what the key has.
    pub fn replace(
        &self,
        key: &str,
        content: impl Into<Bytes>,
        unchanged: &Version,
    ) -> Result<Option<Version>> {
        let mode = PutMode::Update(UpdateVersion {
            e_tag: Some(unchanged.tag.clone()),
            version: unchanged.generation.clone(),
        });
        self.put_if(key, &content.into(), mode)
    }

    fn put_if(&self, key: &str, content: &Bytes, mode: PutMode) -> Result<Option<Version>> {
        self.expect_present(Action::Write, key)?;
        let path = self.path(key)?;
        self.wait_for(key);
        let put = self.wait(Action::Write, key, self.put_as(key, &path, content, mode))?;
        Ok(match put {
            Put::Done(version) => Some(version),
            Put::Taken => None,
        })
    }

    /// A whole object, of up to `limit` bytes; `None` where there is none.
    pub fn get(&self, key: &str, limit: u64) -> Result<Option<(Vec<u8>, Version)>> {
        let path = self.path(key)?;
        self.wait_for(key);
        let got = self.wait(Action::Read, key, async {
            or_absent(self.get_whole(key, &path, limit).await)
        })?;
        match got {
            None => Ok(None),
            Some(Got::Whole(content, version)) => Ok(Some((content, version))),
            Some(Got::TooLarge(size)) => Err(Error::damage(format!(
                "{} cannot be what it is taken for: it has {size} bytes, and may have {limit}",
                self.url(key)
            ))),
        }
    }

    /// What is known of an object; `None` where there is none.
    pub fn size(&self, key: &str) -> Result<Option<Stat>> {
        let path = self.path(key)?;
        self.wait_for(key);
        self.wait(Action::LookAt, key, async {
            or_absent(self.head(key, &path).await)
        })
    }

    /// Reads an object from its beginning, as fast as it comes; `None` where there is none.
    pub fn open_read(&self, key: &str) -> Result<Option<ObjectReader>> {
        let path = self.path(key)?;
        self.wait_for(key);
        self.wait(Action::Read, key, async {
            or_absent(ObjectReader::open(self, key, path, None).await)
        })
    }

    /// So many bytes of an object from an offset on, fewer where it ends before.
    pub fn read_range(&self, key: &str, offset: u64, length: u64) -> Result<Vec<u8>> {
        let path = self.path(key)?;
        self.wait_for(key);
        let range = offset..offset.saturating_add(length);
        let mut content = Vec::new();
        if range.is_empty() {
            return Ok(content);
        }
        let opened = self.wait(Action::Read, key, async {
            match ObjectReader::open(self, key, path, Some(range)).await {
                Err(Failure::Refused(refusal)) if refusal.is_of_range() => Ok(None),
                opened => or_absent(opened).map(Some),
            }
        })?;
        let Some(found) = opened else {
            // It ends before.
            return Ok(content);
        };
        let mut reader = found.ok_or_else(|| absent(Action::Read, &self.url(key)))?;
        match reader.read_to_end(&mut content) {
            Ok(_) => Ok(content),
            Err(error) => Err(Error::from_io(&format!("read {}", self.url(key)), &error)),
        }
    }

    /// Writes an object of any size as it is made. Nothing is there before [`ObjectWriter::finish`].
    pub fn write(&self, key: &str) -> Result<ObjectWriter> {
        self.expect_present(Action::Write, key)?;
        Ok(ObjectWriter::new(self, key, self.path(key)?))
    }

    /// All objects below a key, in no certain order; of the whole store where it is empty.
    pub fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let mut objects = Vec::new();
        self.pages(prefix, self.folder(prefix)?, false, |page| {
            objects.extend(page.objects);
        })?;
        Ok(objects)
    }

    /// All objects whose keys begin so, in the middle of a name too.
    pub fn beginning(&self, beginning: &str) -> Result<Vec<Listed>> {
        let mut objects = Vec::new();
        // At the end of a name they may be escaped, where more follows they are not.
        let bare = beginning.trim_end_matches(['.', ' ']);
        let mut names = match bare.strip_suffix('/') {
            Some(folder) => self.folder(folder)?,
            None if bare.is_empty() => self.folder("")?,
            None => self.path(bare)?.to_string(),
        };
        if self.shared.settings.location.scheme == Scheme::Azure && !names.ends_with('/') {
            // The library passes over what has that very name.
            names.pop();
        }
        self.pages(beginning, names, false, |page| {
            let found = page.objects.into_iter();
            objects.extend(found.filter(|object| object.key.starts_with(beginning)));
        })?;
        Ok(objects)
    }

    /// What lies directly below a key; of the whole store where it is empty.
    pub fn children(&self, prefix: &str) -> Result<Children> {
        let mut children = Children::default();
        self.pages(prefix, self.folder(prefix)?, true, |page| {
            children.folders.extend(page.folders);
            children.objects.extend(page.objects);
        })?;
        Ok(children)
    }

    /// Deletes objects. What is not there is fine; of what the store has to keep, an error tells once all others are gone.
    pub fn delete(&self, keys: &[String]) -> Result<()> {
        keys.iter().for_each(|key| self.wait_for(key));
        let mut kept = Ok(());
        for keys in keys.chunks(DELETED_AT_ONCE) {
            let paths: Vec<Path> = keys
                .iter()
                .map(|key| self.path(key))
                .collect::<Result<_>>()?;
            let first = keys.first().map(String::as_str).unwrap_or_default();
            self.expect_present(Action::Delete, first)?;
            let deleted = self.wait(Action::Delete, first, async {
                self.attempt(Action::Delete, first, || {
                    self.shared.backend.delete(paths.clone())
                })
                .await
            });
            match deleted {
                Err(error) if error.is_of_retention() => kept = Err(error),
                deleted => deleted?,
            }
        }
        kept
    }

    /// Gives an object a further key, in place of what has that. The store copies; what is too large for that comes here
    /// and goes back.
    pub fn copy(&self, from: &str, to: &str) -> Result<()> {
        self.expect_present(Action::Write, to)?;
        let (source, target) = (self.path(from)?, self.path(to)?);
        self.wait_for(from);
        self.wait_for(to);
        let copied = self.wait(Action::Copy, from, async {
            let copied = self
                .attempt(Action::Copy, from, || {
                    self.shared.backend.copy(&source, &target)
                })
                .await;
            match copied {
                Ok(_) => Ok(Copied::Done),
                Err(Failure::Refused(refusal)) if refusal.is_of_absence() => Ok(Copied::Absent),
                Err(Failure::Refused(refusal)) if refusal.is_of_copied_size() => {
                    Ok(Copied::TooLarge)
                }
                Err(failure) => Err(failure),
            }
        })?;
        match copied {
            Copied::Done => Ok(()),
            Copied::Absent => Err(absent(Action::Copy, &self.url(from))),
            Copied::TooLarge => {
                let Some(mut reader) = self.open_read(from)? else {
                    return Err(absent(Action::Copy, &self.url(from)));
                };
                let mut writer = self.write(to)?;
                std::io::copy(&mut reader, &mut writer)
                    .map_err(|error| Error::from_io(&format!("copy {}", self.url(from)), &error))?;
                writer.finish()?;
                self.settle()
            }
        }
    }

    /// Ends the uploads of large objects below a key that nobody will finish, and tells how many there were: what killed
    /// processes have left is not listed and has to be paid for. No upload may be going on there.
    pub fn abort_uploads(&self, prefix: &str) -> Result<usize> {
        self.expect_present(Action::Abort, prefix)?;
        let folder = self.folder(prefix)?;
        let uploads = self.wait(Action::ListUploads, prefix, async {
            let backend = &self.shared.backend;
            self.attempt(Action::ListUploads, prefix, || backend.uploads(&folder))
                .await
        })?;
        let count = uploads.len();
        for upload in uploads {
            self.wait(Action::Abort, prefix, async {
                let aborted = self
                    .attempt(Action::Abort, prefix, || {
                        let multipart = self.shared.backend.multipart();
                        multipart.abort_multipart(&upload.path, &upload.id)
                    })
                    .await;
                // Somebody else ended it.
                or_absent(aborted).map(drop)
            })?;
        }
        Ok(count)
    }
}

/// What came of a request to copy.
enum Copied {
    Done,
    Absent,
    TooLarge,
}

/// What came of a request to write.
enum Put {
    Done(Version),
    /// Something else has the key.
    Taken,
}

/// What came of a request to read.
enum Got {
    Whole(Vec<u8>, Version),
    TooLarge(u64),
}

/// A page of names.
struct Page {
    folders: Vec<String>,
    objects: Vec<Listed>,
}

impl Page {
    fn of_all(objects: Vec<Listed>) -> Page {
        Page {
            folders: Vec::new(),
            objects,
        }
    }

    /// Of all that is below a key, what lies directly there.
    fn of_folder(folder: &str, all: Vec<Listed>) -> Page {
        let inside = match folder {
            "" => 0,
            folder => folder.len() + 1,
        };
        let mut folders = BTreeSet::new();
        let mut objects = Vec::new();
        for object in all {
            let below = object.key.get(inside..).unwrap_or_default();
            match below.find('/') {
                Some(end) => drop(folders.insert(object.key[..inside + end].to_owned())),
                None => objects.push(object),
            }
        }
        Page {
            folders: folders.into_iter().collect(),
            objects,
        }
    }
}

impl ObjectStore {
    /// Waits for what is done to a key, and says in words for the operator why it failed.
    fn wait<T>(
        &self,
        action: Action,
        key: &str,
        doing: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T> {
        self.shared
            .handle
            .block_on(doing)
            .map_err(|failure| self.error(action, key, &failure))
    }

    fn error(&self, action: Action, key: &str, failure: &Failure) -> Error {
        failure.error(action, &self.url(key), &self.shared.settings)
    }

    /// The name of a key in the store.
    fn path(&self, key: &str) -> Result<Path> {
        let folder = &self.shared.settings.location.folder;
        let name = name::encode(key, self.shared.settings.location.scheme);
        let name = match folder.as_str() {
            "" => name,
            folder => format!("{folder}/{name}"),
        };
        let is_key = !key.is_empty() && !key.starts_with('/') && !key.ends_with('/');
        match Path::parse(name) {
            Ok(path) if is_key => Ok(path),
            _ => Err(Error::failed(format!(
                "{key:?} cannot be the name of an object"
            ))),
        }
    }

    /// What the names of all objects below a key begin with.
    fn folder(&self, key: &str) -> Result<String> {
        let folder = &self.shared.settings.location.folder;
        match (key, folder.as_str()) {
            ("", "") => Ok(String::new()),
            ("", folder) => Ok(format!("{folder}/")),
            (key, _) => Ok(format!("{}/", self.path(key)?)),
        }
    }

    /// The key of a name in the store; none where it is no key's.
    fn key(&self, path: &Path) -> Option<String> {
        let folder = &self.shared.settings.location.folder;
        let below = match folder.as_str() {
            "" => path.as_ref(),
            folder => path.as_ref().strip_prefix(folder)?.strip_prefix('/')?,
        };
        name::decode(below).map(|key| key.into_owned())
    }

    /// What the store is asked for while it does something to a key.
    fn doing(&self, action: Action, key: &str) -> String {
        format!("to {} {}", action.verb(), self.url(key))
    }

    async fn put_as(
        &self,
        key: &str,
        path: &Path,
        content: &Bytes,
        mode: PutMode,
    ) -> Result<Put, Failure> {
        let backend = &self.shared.backend;
        let attempted = self
            .attempted(Action::Write, key, || {
                let options = PutOptions {
                    mode: mode.clone(),
                    attributes: backend.attributes(),
                    ..PutOptions::default()
                };
                let objects = backend.objects();
                objects.put_opts(path, content.clone().into(), options)
            })
            .await;
        match attempted.result {
            Ok(done) => self.version(done.e_tag, done.version).map(Put::Done),
            Err(Failure::Refused(refusal))
                if refusal.is_of_condition() || is_gone(&mode, &refusal) =>
            {
                // A request whose answer was lost may have been done, and so be what is met now.
                match attempted.is_unsure {
                    true => Ok(self
                        .has(key, path, content)
                        .await?
                        .map_or(Put::Taken, Put::Done)),
                    false => Ok(Put::Taken),
                }
            }
            Err(failure) => Err(failure),
        }
    }

    /// The version of an object, if it has this content.
    async fn has(
        &self,
        key: &str,
        path: &Path,
        content: &Bytes,
    ) -> Result<Option<Version>, Failure> {
        let got = or_absent(self.get_whole(key, path, content.len() as u64).await)?;
        Ok(match got {
            Some(Got::Whole(there, version)) if there == *content => Some(version),
            _ => None,
        })
    }

    async fn get_whole(&self, key: &str, path: &Path, limit: u64) -> Result<Got, Failure> {
        let objects = self.shared.backend.objects();
        let options = self.as_it_was(path, GetOptions::default()).await?;
        let (content, size, version) = self
            .attempt(Action::Read, key, || async {
                let found = objects.get_opts(path, options.clone()).await?;
                let (size, tag) = (found.meta.size, found.meta.e_tag.clone());
                let version = (tag, found.meta.version.clone());
                let content = match size > limit {
                    true => Bytes::new(),
                    false => found.bytes().await?,
                };
                Ok((content, size, version))
            })
            .await?;
        match size > limit {
            true => Ok(Got::TooLarge(size)),
            false => {
                let (tag, generation) = version;
                Ok(Got::Whole(content.into(), self.version(tag, generation)?))
            }
        }
    }

    async fn head(&self, key: &str, path: &Path) -> Result<Stat, Failure> {
        let objects = self.shared.backend.objects();
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        let options = self.as_it_was(path, options).await?;
        let found = self
            .attempt(Action::LookAt, key, || {
                objects.get_opts(path, options.clone())
            })
            .await?;
        Ok(Stat {
            size: found.meta.size,
            last_modified: last_modified(&found.meta),
            version: self.version(found.meta.e_tag, found.meta.version)?,
        })
    }

    /// The version that an answer tells of.
    fn version(&self, tag: Option<String>, generation: Option<String>) -> Result<Version, Failure> {
        // That of others is one of many that they keep.
        let is_google = self.shared.settings.location.scheme == Scheme::Google;
        match (tag, generation.filter(|_| is_google)) {
            (None, _) => Err(Failure::Odd(
                "the store does not say which content it is: it must have ETags".to_owned(),
            )),
            (Some(_), None) if is_google => Err(Failure::Odd(
                "the store does not say which content it is: it must have generations".to_owned(),
            )),
            (Some(tag), generation) => Ok(Version { tag, generation }),
        }
    }

    /// Has each page of the names consumed that begin so; those of one level where `is_flat`. `about` is what is told
    /// where that fails.
    fn pages(
        &self,
        about: &str,
        beginning: String,
        is_flat: bool,
        mut consume: impl FnMut(Page),
    ) -> Result<()> {
        self.wait_for_all();
        if let Some(past) = &self.past {
            let listing = self.past_objects(past, &beginning);
            let objects = self.wait(Action::ListVersions, about, listing)?;
            consume(match is_flat {
                true => Page::of_folder(about, objects),
                false => Page::of_all(objects),
            });
            return Ok(());
        }
        let lists = self.shared.backend.lists();
        let mut token = None;
        loop {
            let options = PaginatedListOptions {
                delimiter: is_flat.then_some("/".into()),
                page_token: token.take(),
                ..PaginatedListOptions::default()
            };
            let page = self.wait(Action::List, about, async {
                let begin = Some(beginning.as_str()).filter(|names| !names.is_empty());
                self.attempt(Action::List, about, || {
                    lists.list_paginated(begin, options.clone())
                })
                .await
            })?;
            consume(Page {
                folders: page
                    .result
                    .common_prefixes
                    .iter()
                    .filter_map(|path| self.key(path))
                    .collect(),
                objects: page
                    .result
                    .objects
                    .into_iter()
                    // What a console made to have a folder has the name of that, and is none of ours.
                    .filter(|meta| meta.location.as_ref().len() >= beginning.len())
                    .filter_map(|meta| {
                        Some(Listed {
                            key: self.key(&meta.location)?,
                            size: meta.size,
                            last_modified: last_modified(&meta),
                        })
                    })
                    .collect(),
            });
            token = page.page_token;
            if token.is_none() {
                return Ok(());
            }
        }
    }
}

/// Whether what was to be replaced is not there.
fn is_gone(mode: &PutMode, refusal: &Refusal) -> bool {
    matches!(mode, PutMode::Update(_)) && refusal.is_of_absence()
}

fn last_modified(meta: &ObjectMeta) -> Timestamp {
    let nanoseconds = meta.last_modified.timestamp_subsec_nanos();
    Timestamp::new(meta.last_modified.timestamp(), nanoseconds.cast_signed()).unwrap_or_default()
}

impl Version {
    /// Whether it can be of an object that was written in so many parts.
    fn has_parts(&self, count: usize) -> bool {
        // Where parts are encrypted, their number is not told.
        match self.tag.trim_matches('"').rsplit_once('-') {
            Some((_, parts)) => parts.parse().is_ok_and(|parts: usize| parts == count),
            None => true,
        }
    }
}
