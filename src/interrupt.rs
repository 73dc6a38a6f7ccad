//! Stopping a verb from outside: Ctrl-C and SIGTERM.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// The error of whatever was stopped.
pub(crate) fn interrupted() -> Error {
    Error::failed("interrupted")
}

/// How long a wait goes on at most once it is time to stop.
const NAP: Duration = Duration::from_millis(100);

type Waker = Box<dyn Fn() + Send>;

/// Whether the verb shall stop. Whoever raises it also wakes those who wait for a server.
#[derive(Default)]
pub struct Interrupt {
    raised: AtomicBool,
    leaves: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl Interrupt {
    /// Asks everything to stop, and ends each wait that registered.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::SeqCst);
        for wake in self
            .wakers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            wake();
        }
    }

    /// Says that it is the machine that stops, not somebody who thought better of it: what is done so far is left to the next run.
    pub fn leave(&self) {
        self.leaves.store(true, Ordering::SeqCst);
    }

    /// Whether what is done so far is to be left.
    pub fn leaves(&self) -> bool {
        self.leaves.load(Ordering::SeqCst)
    }

    /// Registers what ends a wait, such as cancelling a query.
    pub fn on_raise(&self, wake: impl Fn() + Send + 'static) {
        self.wakers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(wake));
    }

    /// Whether to stop.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// An error where it is time to stop.
    pub fn check(&self) -> Result<()> {
        if self.is_raised() {
            Err(interrupted())
        } else {
            Ok(())
        }
    }

    /// Waits so long; an error where it is time to stop.
    pub fn wait(&self, duration: Duration) -> Result<()> {
        let end = Instant::now() + duration;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(NAP));
        }
    }
}
