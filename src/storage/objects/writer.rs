//! Writing an object of any size as it is made.
//!
//! What fits into one part is written by one request when it is finished. What is larger goes in parts, some of them at
//! a time, while the next one is filled. A store takes up to 10 000 parts of up to 5 GiB, so that they grow with what
//! is written already. A writer holds up to [`PARTS_AT_ONCE`] parts on their way, or [`BYTES_AT_ONCE`], and the one
//! that is filled: 32 MiB for an object of up to 10 GiB, and a seven-hundredth of a larger one.

use std::io::{self, Write};

use bytes::Bytes;
use object_store::MultipartId;
use object_store::PutMultipartOptions;
use object_store::multipart::PartId;
use object_store::path::Path;
use tokio::task::JoinSet;

use crate::error::Result;
use jiff::Timestamp;

use super::ObjectStore;
use super::backend::Finished;
use super::failure::{Action, Failure, or_absent};

/// Bytes of the first parts.
const PART_BYTES: u64 = 8 << 20;

/// A part is no smaller than this share of what went before, so that fewer than 10 000 parts make the 5 TiB that an
/// object may have.
const SHARE: u64 = 1400;

/// Parts that are on their way at a time, as long as they are small.
const PARTS_AT_ONCE: usize = 3;

/// Bytes that are on their way at a time, where there is more than one part.
const BYTES_AT_ONCE: u64 = PARTS_AT_ONCE as u64 * PART_BYTES;

/// The bytes of the part that comes after so many bytes.
fn part_bytes(written: u64) -> u64 {
    PART_BYTES.max((written / SHARE).next_multiple_of(1 << 20))
}

/// An object being written. Nothing is there before it is finished; dropped unfinished, it leaves nothing.
pub struct ObjectWriter {
    store: ObjectStore,
    key: String,
    path: Path,
    /// What is not on its way yet.
    part: Vec<u8>,
    /// Bytes of the parts before.
    sent: u64,
    upload: Option<Upload>,
}

/// The parts of a large object.
struct Upload {
    id: MultipartId,
    /// What no other upload has.
    mark: String,
    /// Those that are there, as far as they are.
    parts: Vec<Option<PartId>>,
    /// Those on their way.
    sending: JoinSet<Result<Sent, Failure>>,
    bytes_on_their_way: u64,
}

/// A part that is there.
struct Sent {
    number: usize,
    bytes: u64,
    id: PartId,
}

impl ObjectWriter {
    pub(super) fn new(store: &ObjectStore, key: &str, path: Path) -> ObjectWriter {
        ObjectWriter {
            store: store.clone(),
            key: key.to_owned(),
            path,
            part: Vec::new(),
            sent: 0,
            upload: None,
        }
    }

    /// Makes all that was written one object, in place of what has that key. What was small enough for one request may be on its
    /// way still: [`ObjectStore::settle`] waits until it is there.
    pub fn finish(mut self) -> Result<()> {
        let last = Bytes::from(std::mem::take(&mut self.part));
        if self.upload.is_none() {
            return self.store.put_later(&self.key, last);
        }
        if !last.is_empty() {
            self.send(last)?;
        }
        let (store, key) = (self.store.clone(), self.key.clone());
        store.wait(Action::Write, &key, self.complete())?;
        // There is nothing left to abort.
        self.upload = None;
        Ok(())
    }

    /// Sends a part on its way.
    fn send(&mut self, part: Bytes) -> Result<()> {
        let (store, key) = (self.store.clone(), self.key.clone());
        self.sent += part.len() as u64;
        store.wait(Action::Write, &key, async {
            let upload = match &mut self.upload {
                Some(upload) => upload,
                none => none.insert(begin(&store, &key, &self.path).await?),
            };
            upload.make_room(part.len() as u64).await?;
            let number = upload.parts.len();
            upload.parts.push(None);
            upload.bytes_on_their_way += part.len() as u64;
            let sending = send(
                store.clone(),
                key.clone(),
                self.path.clone(),
                upload.id.clone(),
                number,
                part,
            );
            upload.sending.spawn_on(sending, &store.shared.handle);
            Ok(())
        })
    }

    /// Waits for all parts, and has the store put them together.
    async fn complete(&mut self) -> Result<(), Failure> {
        let Some(upload) = &mut self.upload else {
            return Ok(());
        };
        while upload.wait_for_one().await? {}
        let parts: Vec<PartId> = upload.parts.iter().flatten().cloned().collect();
        let backend = &self.store.shared.backend;
        let completed = self
            .store
            .attempted(Action::Write, &self.key, || {
                let multipart = backend.multipart();
                multipart.complete_multipart(&self.path, &upload.id, parts.clone())
            })
            .await;
        match completed.result {
            // An upload that is not there any longer may be finished, by a request whose answer was lost.
            Err(Failure::Refused(refusal))
                if completed.is_unsure && refusal.is_of_finished_upload() =>
            {
                let found = or_absent(self.store.head(&self.key, &self.path).await)?;
                let is_ours = match found {
                    Some(found) if found.size == self.sent => {
                        let finished = Finished {
                            parts: &parts,
                            mark: &upload.mark,
                        };
                        self.store
                            .attempt(Action::LookAt, &self.key, || {
                                backend.came_of(&self.path, &found.version, &finished)
                            })
                            .await?
                    }
                    _ => false,
                };
                match is_ours {
                    true => Ok(()),
                    false => Err(Failure::Refused(refusal)),
                }
            }
            completed => completed.map(drop),
        }
    }
}

impl Write for ObjectWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let whole = part_bytes(self.sent);
        let room = whole.saturating_sub(self.part.len() as u64);
        let taken = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        self.part.extend_from_slice(&bytes[..taken]);
        if self.part.len() as u64 >= whole {
            let part = std::mem::take(&mut self.part);
            self.send(part.into()).map_err(io::Error::other)?;
            self.part.reserve_exact(part_bytes(self.sent) as usize);
        }
        Ok(taken)
    }

    /// What is written goes when a part is full.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ObjectWriter {
    fn drop(&mut self) {
        let Some(mut upload) = self.upload.take() else {
            return;
        };
        let store = self.store.for_cleaning_up();
        let aborted = store.wait(Action::Abort, &self.key, async {
            // A part that arrives later than this would be kept for good.
            upload.sending.shutdown().await;
            let aborted = store
                .attempt(Action::Abort, &self.key, || {
                    let multipart = store.shared.backend.multipart();
                    multipart.abort_multipart(&self.path, &upload.id)
                })
                .await;
            or_absent(aborted)
        });
        if let Err(error) = aborted {
            log::warn!("{error}");
        }
    }
}

impl Upload {
    /// Waits until a part may go.
    async fn make_room(&mut self, bytes: u64) -> Result<(), Failure> {
        let is_full = |upload: &Upload| {
            !upload.sending.is_empty()
                && (upload.sending.len() >= PARTS_AT_ONCE
                    || upload.bytes_on_their_way + bytes > BYTES_AT_ONCE)
        };
        while is_full(self) {
            self.wait_for_one().await?;
        }
        Ok(())
    }

    /// Waits until a part is there; false where none is on its way.
    async fn wait_for_one(&mut self) -> Result<bool, Failure> {
        let Some(ended) = self.sending.join_next().await else {
            return Ok(false);
        };
        let sent = ended.map_err(|error| Failure::Odd(error.to_string()))??;
        self.bytes_on_their_way -= sent.bytes;
        if let Some(part) = self.parts.get_mut(sent.number) {
            *part = Some(sent.id);
        }
        Ok(true)
    }
}

async fn begin(store: &ObjectStore, key: &str, path: &Path) -> Result<Upload, Failure> {
    let now = Timestamp::now().as_nanosecond();
    let mark = format!("{}-{now}", std::process::id());
    let id = store
        .attempt(Action::Write, key, || {
            let backend = &store.shared.backend;
            let options = PutMultipartOptions {
                attributes: backend.upload_attributes(&mark),
                ..PutMultipartOptions::default()
            };
            backend.multipart().create_multipart_opts(path, options)
        })
        .await?;
    Ok(Upload {
        id,
        mark,
        parts: Vec::new(),
        sending: JoinSet::new(),
        bytes_on_their_way: 0,
    })
}

async fn send(
    store: ObjectStore,
    key: String,
    path: Path,
    upload: MultipartId,
    number: usize,
    part: Bytes,
) -> Result<Sent, Failure> {
    let bytes = part.len() as u64;
    let id = store
        .attempt(Action::Write, &key, || {
            let multipart = store.shared.backend.multipart();
            multipart.put_part(&path, &upload, number, part.clone().into())
        })
        .await?;
    Ok(Sent { number, bytes, id })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_parts_as_a_store_takes_hold_the_largest_object() {
        let (mut written, mut parts) = (0, 0);
        while written < 5 << 40 {
            let part = part_bytes(written);
            assert!(part <= 5 << 30);
            written += part;
            parts += 1;
        }
        assert!(parts <= 10_000, "{parts}");
        assert_eq!(part_bytes(10 << 30), PART_BYTES);
    }
}
