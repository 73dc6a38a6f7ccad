//! Objects that are still on their way while those who wrote them go on to the next ones: so the time that a request takes
//! to get there and back is lost once for many, and not for each.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use object_store::PutMode;

use crate::error::{Error, Result};

use super::ObjectStore;
use super::failure::Action;

/// Objects that are on their way at a time …
const OBJECTS_AT_ONCE: usize = 32;
/// … and their bytes, where there is more than one.
const BYTES_AT_ONCE: u64 = 32 << 20;

/// What is on its way.
#[derive(Default)]
pub(super) struct Outgoing {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    keys: HashSet<String>,
    bytes: u64,
    /// The first failure. All that comes later is in vain.
    failure: Option<Error>,
}

impl ObjectStore {
    /// Has an object written, in place of what has that key, and does not wait for it unless too much is on its way. What fails
    /// is told to the next who has something written so, and to who waits for all of it.
    pub(super) fn put_later(&self, key: &str, content: Bytes) -> Result<()> {
        let path = self.path(key)?;
        let bytes = content.len() as u64;
        self.shared.outgoing.begin(key, bytes)?;
        let (store, key) = (self.for_sending(), key.to_owned());
        self.shared.handle.spawn(async move {
            let put = store
                .put_as(&key, &path, &content, PutMode::Overwrite)
                .await;
            let failure = put
                .err()
                .map(|failure| store.error(Action::Write, &key, &failure));
            store.shared.outgoing.end(&key, bytes, failure);
        });
        Ok(())
    }

    /// Waits until all that was written is there; the failure of what is not.
    pub fn settle(&self) -> Result<()> {
        match self.shared.outgoing.wait_for_all().failure.clone() {
            None => Ok(()),
            Some(failure) => Err(failure),
        }
    }

    /// Waits until what was written under a key is there, or has failed.
    pub(super) fn wait_for(&self, key: &str) {
        self.shared.outgoing.wait_for(key);
    }

    /// The same for all keys.
    pub(super) fn wait_for_all(&self) {
        drop(self.shared.outgoing.wait_for_all());
    }
}

impl Outgoing {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, is_early: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        self.changed
            .wait_while(self.state(), |state| is_early(state))
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for(&self, key: &str) {
        drop(self.wait_while(|state| state.keys.contains(key)));
    }

    fn wait_for_all(&self) -> MutexGuard<'_, State> {
        self.wait_while(|state| !state.keys.is_empty())
    }

    /// Waits until there is room for one more. Two of the same key could come there in any order.
    fn begin(&self, key: &str, bytes: u64) -> Result<()> {
        let mut state = self.wait_while(|state| {
            let is_full =
                state.keys.len() >= OBJECTS_AT_ONCE || state.bytes + bytes > BYTES_AT_ONCE;
            state.keys.contains(key) || is_full && !state.keys.is_empty()
        });
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        state.keys.insert(key.to_owned());
        state.bytes += bytes;
        Ok(())
    }

    fn end(&self, key: &str, bytes: u64, failure: Option<Error>) {
        let mut state = self.state();
        state.keys.remove(key);
        state.bytes -= bytes;
        state.failure = state.failure.take().or(failure);
        drop(state);
        self.changed.notify_all();
    }
}
