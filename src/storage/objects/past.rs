//! A bucket that keeps versions, as it was at a moment.
//!
//! Of each name, what was written or removed last up to then counts. Which that is comes from lists of versions, each asked
//! for once: whoever lists a folder has what is in it read without being asked for again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::StatusCode;
use jiff::Timestamp;
use object_store::GetOptions;
use object_store::path::Path;

use super::backend::{Listing, Marker};
use super::failure::{Action, Failure};
use super::refusal::Refusal;
use super::{Listed, ObjectStore, Scheme};
use crate::error::{Error, Result};

/// What a moment left of each name; nothing of what was removed by then.
type Names = BTreeMap<String, Option<Was>>;

/// The moment, and what is known of it.
pub(super) struct Past {
    moment: Timestamp,
    /// By what the names begin with.
    listed: Mutex<BTreeMap<String, Arc<Names>>>,
    /// Whether the operator knows that the bucket keeps no versions.
    has_warned: AtomicBool,
}

/// What a name had.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Was {
    version: String,
    size: u64,
    last_modified: Timestamp,
}

impl Past {
    /// A list that has all names which begin so: theirs, or that of a folder they are in.
    fn known(&self, beginning: &str) -> Option<Arc<Names>> {
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let folders = beginning
            .match_indices('/')
            .map(|(at, _)| &beginning[..=at]);
        let mut wider = [beginning, ""].into_iter().chain(folders);
        wider.find_map(|wider| listed.get(wider)).map(Arc::clone)
    }

    fn learn(&self, beginning: &str, names: Names) -> Arc<Names> {
        let names = Arc::new(names);
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        listed.insert(beginning.to_owned(), Arc::clone(&names));
        names
    }
}

/// Collects what was there at a moment from all that ever was.
#[derive(Default)]
struct Collected {
    /// With when it was, and whether it is the last of that name to this day, which decides within a second.
    newest: BTreeMap<String, ((Timestamp, bool), Option<Was>)>,
    /// Whether there is anything of a bucket that keeps versions, and of one that does not.
    has_versions: bool,
    has_others: bool,
}

/// The version of what was written while the bucket kept none.
const NO_VERSION: &str = "null";

impl Collected {
    fn add(&mut self, listing: Listing, moment: Timestamp) {
        for version in listing.versions {
            match version.id == NO_VERSION {
                true => self.has_others = true,
                false => self.has_versions = true,
            }
            if version.last_modified > moment {
                continue;
            }
            let order = (version.last_modified, version.is_latest);
            let is_newer = match self.newest.get(&version.name) {
                // Of what was written and removed within one second, it is taken that it was there.
                Some((known, was)) => {
                    *known < order || *known == order && was.is_none() && !version.is_removal
                }
                None => true,
            };
            if is_newer {
                let was = Was {
                    version: version.id,
                    size: version.size,
                    last_modified: version.last_modified,
                };
                let was = Some(was).filter(|_| !version.is_removal);
                self.newest.insert(version.name, (order, was));
            }
        }
    }

    fn names(self) -> Names {
        let newest = self.newest.into_iter();
        newest.map(|(name, (_, was))| (name, was)).collect()
    }
}

impl ObjectStore {
    /// The same store, as it was at a moment: nothing can be written there. Only what the bucket keeps versions of is seen.
    pub fn as_of(&self, moment: Timestamp) -> Result<ObjectStore> {
        if self.shared.settings.location.scheme != Scheme::S3 {
            return Err(Error::usage(format!(
                "{} cannot be read as it was at {moment}: that can be had of S3 alone",
                self.url("")
            )));
        }
        Ok(ObjectStore {
            past: Some(Arc::new(Past {
                moment,
                listed: Mutex::default(),
                has_warned: AtomicBool::new(false),
            })),
            ..self.clone()
        })
    }

    /// Whether it is looked at as it was.
    pub fn is_past(&self) -> bool {
        self.past.is_some()
    }

    /// An error where the store is looked at as it was: that cannot be changed.
    pub(super) fn expect_present(&self, action: Action, key: &str) -> Result<()> {
        match &self.past {
            None => Ok(()),
            Some(past) => Err(Error::usage(format!(
                "cannot {} {}: it is read as it was at {}",
                action.verb(),
                self.url(key),
                past.moment
            ))),
        }
    }

    /// What to ask for an object with, so that it is read as it was at the moment that is looked at.
    pub(super) async fn as_it_was(
        &self,
        path: &Path,
        options: GetOptions,
    ) -> Result<GetOptions, Failure> {
        let Some(past) = &self.past else {
            return Ok(options);
        };
        let names = self.past_names(past, path.as_ref()).await?;
        let was = names.get(path.as_ref()).cloned().flatten();
        let was = was.ok_or_else(gone)?;
        Ok(options.with_version(Some(was.version)))
    }

    /// What there was at a moment, of names that begin so.
    pub(super) async fn past_objects(
        &self,
        past: &Past,
        beginning: &str,
    ) -> Result<Vec<Listed>, Failure> {
        let names = self.past_names(past, beginning).await?;
        let from = names.range(beginning.to_owned()..);
        let found = from.take_while(|(name, _)| name.starts_with(beginning));
        let listed = found.filter_map(|(name, was)| {
            let was = was.as_ref()?;
            Some(Listed {
                key: self.key(&Path::parse(name).ok()?)?,
                size: was.size,
                last_modified: was.last_modified,
            })
        });
        Ok(listed.collect())
    }

    async fn past_names(&self, past: &Past, beginning: &str) -> Result<Arc<Names>, Failure> {
        if let Some(known) = past.known(beginning) {
            return Ok(known);
        }
        let mut collected = Collected::default();
        let mut behind: Option<Marker> = None;
        loop {
            let mut listing = self
                .attempt(Action::ListVersions, beginning, || {
                    self.shared.backend.versions(beginning, behind.as_ref())
                })
                .await?;
            behind = listing.next.take();
            collected.add(listing, past.moment);
            if behind.is_none() {
                let keeps_none = collected.has_others && !collected.has_versions;
                if keeps_none && !past.has_warned.swap(true, Ordering::Relaxed) {
                    log::warn!(
                        "{} keeps no versions: what was replaced or removed since {} is not seen",
                        self.url(""),
                        past.moment
                    );
                }
                return Ok(past.learn(beginning, collected.names()));
            }
        }
    }
}

/// What the store would have answered then.
fn gone() -> Failure {
    Failure::Refused(Refusal::of(
        StatusCode::NOT_FOUND,
        &http::HeaderMap::new(),
        b"",
    ))
}
