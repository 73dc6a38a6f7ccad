//! Trying again what may come right a moment later.

use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use super::ObjectStore;
use super::failure::{Action, Failure};

/// How long a request that fails is tried again.
pub const PATIENCE: Duration = Duration::from_secs(3 * 60);

/// The same as long as the store has never answered: its address may be wrong.
const PATIENCE_UNREACHED: Duration = Duration::from_secs(10);

/// The same when it is time to stop.
const PATIENCE_CLEANING_UP: Duration = Duration::from_secs(10);

/// How long to wait before the second try; each further wait is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How long requests are tried again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    lasts: Duration,
    when_to_stop: WhenToStop,
}

/// What becomes of a request when it is time to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WhenToStop {
    /// It is cut off.
    CutOff,
    /// It has a moment to come to its end: of what is cut off nobody knows whether it was done.
    Finish,
    /// It goes on.
    GoOn,
}

/// That moment.
const MOMENT: Duration = Duration::from_secs(3);

impl Patience {
    /// What most requests are done with.
    pub(super) const USUAL: Patience = Patience {
        lasts: PATIENCE,
        when_to_stop: WhenToStop::CutOff,
    };

    /// What goes on its way while nobody waits for it.
    pub(super) const SENDING: Patience = Patience {
        lasts: PATIENCE,
        when_to_stop: WhenToStop::Finish,
    };

    /// When it is time to stop.
    pub(super) const CLEANING_UP: Patience = Patience {
        lasts: PATIENCE_CLEANING_UP,
        when_to_stop: WhenToStop::GoOn,
    };

    /// The same for so long.
    pub(super) fn lasting(self, lasts: Duration) -> Patience {
        Patience { lasts, ..self }
    }
}

/// The tries of one request.
pub(super) struct Tries<'a> {
    store: &'a ObjectStore,
    action: Action,
    key: &'a str,
    /// When it failed first, of the failures that count.
    since: Option<Instant>,
    failures: u32,
}

impl<'a> Tries<'a> {
    /// None so far.
    pub(super) fn new(store: &'a ObjectStore, action: Action, key: &'a str) -> Tries<'a> {
        Tries {
            store,
            action,
            key,
            since: None,
            failures: 0,
        }
    }

    /// Waits until it is time for the next try; the failure where there is to be none.
    pub(super) async fn again(&mut self, failure: Failure) -> Result<(), Failure> {
        if !failure.is_momentary() {
            return Err(failure);
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        let lasts = match self.store.shared.traffic.is_reached() {
            true => self.store.patience.lasts,
            false => self.store.patience.lasts.min(PATIENCE_UNREACHED),
        };
        let wait = jittered(
            FIRST_WAIT
                .saturating_mul(1 << self.failures.min(16))
                .min(LONGEST_WAIT),
        );
        if since.elapsed() + wait > lasts {
            return Err(failure);
        }
        self.failures += 1;
        log::info!(
            "trying again {} in {} ms: {failure}",
            self.store.doing(self.action, self.key),
            wait.as_millis()
        );
        if self.store.patience.when_to_stop == WhenToStop::GoOn {
            tokio::time::sleep(wait).await;
            return Ok(());
        }
        let mut stop = self.store.shared.stop.clone();
        tokio::select! {
            biased;
            Ok(_) = stop.wait_for(|raised| *raised) => Err(Failure::Interrupted),
            () = tokio::time::sleep(wait) => Ok(()),
        }
    }
}

/// What a request came to.
pub(super) struct Attempted<T> {
    pub(super) result: Result<T, Failure>,
    /// Whether a try before the last one may have done it, although nothing was heard of that.
    pub(super) is_unsure: bool,
}

impl ObjectStore {
    /// Makes a request until it is answered, as far as the patience goes.
    pub(super) async fn attempt<T, F>(
        &self,
        action: Action,
        key: &str,
        make: impl Fn() -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        self.attempted(action, key, make).await.result
    }

    /// The same, with what is known of the tries that failed.
    pub(super) async fn attempted<T, F>(
        &self,
        action: Action,
        key: &str,
        make: impl Fn() -> F,
    ) -> Attempted<T>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let mut tries = Tries::new(self, action, key);
        let mut is_unsure = false;
        loop {
            let failure = match self.unless_stopped(make()).await {
                Ok(Ok(value)) => {
                    return Attempted {
                        result: Ok(value),
                        is_unsure,
                    };
                }
                Ok(Err(error)) => Failure::of(&error),
                Err(failure) => failure,
            };
            let may_be_done = failure.may_be_done();
            if let Err(failure) = tries.again(failure).await {
                return Attempted {
                    result: Err(failure),
                    is_unsure,
                };
            }
            is_unsure |= may_be_done;
        }
    }

    /// Waits for something, unless it is time to stop before.
    pub(super) async fn unless_stopped<T>(
        &self,
        doing: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        let moment = match self.patience.when_to_stop {
            WhenToStop::CutOff => Duration::ZERO,
            WhenToStop::Finish => MOMENT,
            WhenToStop::GoOn => return Ok(doing.await),
        };
        let mut stop = self.shared.stop.clone();
        let stopped = async {
            // It fails where nobody can raise it any longer.
            let is_raised = stop.wait_for(|raised| *raised).await.is_ok();
            match is_raised {
                true => tokio::time::sleep(moment).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stopped => Err(Failure::Interrupted),
            done = doing => Ok(done),
        }
    }
}

/// Three quarters of a duration to the whole of it, by chance: so that threads which failed together do not come back
/// together.
fn jittered(duration: Duration) -> Duration {
    let chance = RandomState::new().build_hasher().finish() % 256;
    duration * (768 + chance as u32) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_differ() {
        let second = Duration::from_secs(1);
        let waits: Vec<_> = (0..64).map(|_| jittered(second)).collect();
        assert!(
            waits
                .iter()
                .all(|wait| (second * 3 / 4..=second).contains(wait))
        );
        assert!(waits.iter().any(|wait| *wait != waits[0]));
    }
}
