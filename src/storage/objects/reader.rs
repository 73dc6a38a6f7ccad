//! Reading an object from its beginning to its end.
//!
//! It is read in ranges, each by a request of its own: the next one comes while the last one is being consumed. The
//! first ranges are small, so that who looks at the beginning alone does not read far; a reader holds two ranges at a
//! time, 16 MiB at most. A range whose connection is lost goes on where it was, as long as the object is the same.

use std::io::{self, Read};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange};
use tokio::task::JoinHandle;

use crate::error::Result;

use super::attempts::Tries;
use super::failure::{Action, Failure, or_absent};
use super::{ObjectStore, Version, version};

/// Bytes of the first range.
const FIRST_BYTES: u64 = 1 << 20;

/// Bytes of a range at most; each is twice as large as the one before.
const MOST_BYTES: u64 = 8 << 20;

/// Part of an object.
pub(super) struct Range {
    pub(super) content: Bytes,
    /// The bytes of the whole object.
    pub(super) size: u64,
    /// Which content it is part of.
    pub(super) version: Version,
}

/// An object being read.
pub struct ObjectReader {
    store: ObjectStore,
    key: String,
    path: Path,
    size: u64,
    version: Version,
    /// What has come and is not consumed.
    part: Bytes,
    /// What is coming.
    next: Option<JoinHandle<Result<Range, Failure>>>,
    /// Where what is not asked for begins.
    position: u64,
    /// The bytes of the range that is asked for next.
    length: u64,
}

impl ObjectReader {
    /// Opens an object; `None` where there is none.
    pub(super) fn open(store: &ObjectStore, key: &str) -> Result<Option<ObjectReader>> {
        let path = store.path(key)?;
        let first = store.wait(Action::Read, key, async {
            match store.range(key, &path, 0..FIRST_BYTES, None).await {
                // An empty object has no first byte.
                Err(Failure::Refused(refusal)) if refusal.is_of_range() => {
                    let stat = or_absent(store.head(key, &path).await)?;
                    Ok(stat.map(|stat| Range {
                        content: Bytes::new(),
                        size: stat.size,
                        version: stat.version,
                    }))
                }
                first => or_absent(first),
            }
        })?;
        Ok(first.map(|first| ObjectReader {
            store: store.clone(),
            key: key.to_owned(),
            path,
            size: first.size,
            version: first.version,
            position: first.content.len() as u64,
            part: first.content,
            next: None,
            length: 2 * FIRST_BYTES,
        }))
    }

    /// The bytes of the whole object.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Which content it is.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Asks for the next range, where there is one and none is asked for.
    fn ask(&mut self) {
        if self.next.is_some() || self.position >= self.size {
            return;
        }
        let end = self.size.min(self.position + self.length);
        let range = self.position..end;
        self.position = end;
        self.length = MOST_BYTES.min(2 * self.length);
        let (store, key, path) = (self.store.clone(), self.key.clone(), self.path.clone());
        let version = self.version.clone();
        let reading = async move { store.range(&key, &path, range, Some(&version)).await };
        self.next = Some(self.store.shared.handle.spawn(reading));
    }

    /// Waits for the range that was asked for.
    fn take_next(&mut self) -> Result<()> {
        let Some(next) = self.next.take() else {
            return Ok(());
        };
        let range = self.store.wait(Action::Read, &self.key, async {
            next.await
                .unwrap_or_else(|error| Err(Failure::Odd(error.to_string())))
        })?;
        self.part = range.content;
        Ok(())
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.ask();
        if self.part.is_empty() {
            self.take_next().map_err(io::Error::other)?;
            self.ask();
        }
        let read = buffer.len().min(self.part.len());
        self.part.copy_to_slice(&mut buffer[..read]);
        Ok(read)
    }
}

impl Drop for ObjectReader {
    fn drop(&mut self) {
        if let Some(next) = &self.next {
            next.abort();
        }
    }
}

impl ObjectStore {
    /// Reads a range, which ends where the object does; of a certain content where one is named. A lost connection goes
    /// on where it was.
    pub(super) async fn range(
        &self,
        key: &str,
        path: &Path,
        range: std::ops::Range<u64>,
        of: Option<&Version>,
    ) -> Result<Range, Failure> {
        let mut tries = Tries::new(self, Action::Read, key);
        let mut content = BytesMut::new();
        // The size and the version of the object, once they are known.
        let mut found: Option<(u64, Version)> = None;
        loop {
            let start = range.start + content.len() as u64;
            let expected = of.or(found.as_ref().map(|(_, version)| version));
            let options = GetOptions {
                range: Some(GetRange::Bounded(start..range.end)),
                if_match: expected.map(|version| version.tag.clone()),
                ..GetOptions::default()
            };
            let reading = async {
                let answer = self.shared.backend.objects().get_opts(path, options).await;
                let answer = answer.map_err(|error| Failure::of(&error))?;
                let meta = &answer.meta;
                let (size, version) = match &found {
                    Some(found) => found.clone(),
                    None => (meta.size, version(meta.e_tag.clone())?),
                };
                found = Some((size, version.clone()));
                let end = range.end.min(size);
                content.reserve(end.saturating_sub(start) as usize);
                let mut parts = answer.into_stream();
                while let Some(part) = parts.next().await {
                    let part = part.map_err(|error| Failure::of(&error))?;
                    content.extend_from_slice(&part);
                }
                match range.start + content.len() as u64 == end {
                    true => Ok((size, version)),
                    false => Err(Failure::Lost {
                        reason: "it sent less than it had announced".to_owned(),
                        is_unsent: false,
                    }),
                }
            };
            let failure = match self.unless_stopped(reading).await {
                Ok(Ok((size, version))) => {
                    return Ok(Range {
                        content: content.freeze(),
                        size,
                        version,
                    });
                }
                Ok(Err(failure)) | Err(failure) => failure,
            };
            if range.start + content.len() as u64 > start {
                tries.progressed();
            }
            tries.again(failure).await?;
        }
    }
}
