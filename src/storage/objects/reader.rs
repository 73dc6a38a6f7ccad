//! Reading an object, or a range of it, as it comes.
//!
//! One request brings all of it: what is read next arrives while the last part is being consumed, and waits in the
//! connection. One that is lost is made again from there on, as long as the object is the same.

use std::io::{self, Read};
use std::ops::Range;

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::path::Path;
use object_store::{GetOptions, GetRange};

use super::attempts::Tries;
use super::failure::{Action, Failure};
use super::{ObjectStore, Version};

/// An object being read.
pub struct ObjectReader {
    store: ObjectStore,
    key: String,
    path: Path,
    size: u64,
    version: Version,
    /// What has come and is not consumed.
    part: Bytes,
    /// What is coming; nothing once the connection is lost.
    coming: Option<BoxStream<'static, object_store::Result<Bytes>>>,
    /// Where what is coming begins, and where it ends.
    left: Range<u64>,
}

impl ObjectReader {
    /// Asks for an object, or for a range of it, which ends where the object does.
    pub(super) async fn open(
        store: &ObjectStore,
        key: &str,
        path: Path,
        range: Option<Range<u64>>,
    ) -> Result<ObjectReader, Failure> {
        let options = GetOptions {
            range: range.map(GetRange::Bounded),
            ..GetOptions::default()
        };
        let options = store.as_it_was(&path, options).await?;
        let objects = store.shared.backend.objects();
        let answer = store
            .attempt(Action::Read, key, || {
                objects.get_opts(&path, options.clone())
            })
            .await?;
        Ok(ObjectReader {
            store: store.clone(),
            key: key.to_owned(),
            path,
            size: answer.meta.size,
            version: store.version(answer.meta.e_tag.clone(), answer.meta.version.clone())?,
            part: Bytes::new(),
            left: answer.range.clone(),
            coming: Some(answer.into_stream()),
        })
    }

    /// The bytes of the whole object.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Which content it is.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Waits for the next part. A lost connection is made again.
    async fn next_part(&mut self) -> Result<Bytes, Failure> {
        let (store, key) = (self.store.clone(), self.key.clone());
        let mut tries = Tries::new(&store, Action::Read, &key);
        loop {
            let failure = match store.unless_stopped(self.receive()).await {
                Ok(Ok(part)) => return Ok(part),
                Ok(Err(failure)) | Err(failure) => failure,
            };
            self.coming = None;
            tries.again(failure).await?;
        }
    }

    async fn receive(&mut self) -> Result<Bytes, Failure> {
        let mut coming = match self.coming.take() {
            Some(coming) => coming,
            None => self.ask().await?,
        };
        let Some(part) = coming.next().await else {
            return Err(Failure::Lost {
                reason: "it sent less than it had announced".to_owned(),
                is_unsent: false,
            });
        };
        let part = part.map_err(|error| Failure::of(&error))?;
        self.left.start += part.len() as u64;
        self.coming = Some(coming);
        Ok(part)
    }

    /// Asks for what is left.
    async fn ask(&self) -> Result<BoxStream<'static, object_store::Result<Bytes>>, Failure> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(self.left.clone())),
            if_match: Some(self.version.tag.clone()),
            ..GetOptions::default()
        };
        let options = self.store.as_it_was(&self.path, options).await?;
        let objects = self.store.shared.backend.objects();
        match objects.get_opts(&self.path, options).await {
            Ok(answer) => Ok(answer.into_stream()),
            Err(error) => Err(Failure::of(&error)),
        }
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() && !self.left.is_empty() {
            let (store, key) = (self.store.clone(), self.key.clone());
            self.part = store
                .wait(Action::Read, &key, self.next_part())
                .map_err(io::Error::other)?;
        }
        let read = buffer.len().min(self.part.len());
        self.part.copy_to_slice(&mut buffer[..read]);
        Ok(read)
    }
}
