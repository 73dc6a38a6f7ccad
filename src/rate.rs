//! `max_rate`: how many bytes a second all workers together may read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes over time. Without a limit it costs nothing.
pub struct RateLimit {
    limit: Option<u64>,
    began: Instant,
    used: AtomicU64,
}

/// How long a wait lasts at most before it is looked whether to stop.
const NAP: Duration = Duration::from_millis(100);

impl RateLimit {
    /// A limit in bytes a second; `None` for no limit.
    pub fn new(limit: Option<u64>) -> RateLimit {
        RateLimit {
            limit,
            began: Instant::now(),
            used: AtomicU64::new(0),
        }
    }

    /// Counts bytes, then waits as long as they are more than the time allows, or until `stop`.
    pub fn take(&self, bytes: u64, stop: impl Fn() -> bool) {
        let Some(limit) = self.limit else { return };
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let due = Duration::from_secs_f64(used as f64 / limit as f64);
        while let Some(left) = due.checked_sub(self.began.elapsed())
            && !left.is_zero()
            && !stop()
        {
            std::thread::sleep(left.min(NAP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_beyond_the_rate_wait() {
        let rate = RateLimit::new(Some(1_000_000));
        rate.take(30_000, || false);
        assert!(rate.began.elapsed() >= Duration::from_millis(30));
        rate.take(u64::MAX / 4, || true);
    }
}
