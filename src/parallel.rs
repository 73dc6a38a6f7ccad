//! Tasks dealt out to a few threads, the first failure stopping them all; or two things at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;

/// How often the caller's thread looks after its own affairs while the others work. Who reads from the server's disk learns
/// by that alone that the server is gone, whose WAL may not wait for long.
const TICK: Duration = Duration::from_millis(200);

/// Tells a task that its result no longer matters.
pub struct Stop<'a> {
    interrupt: &'a Interrupt,
    failed: AtomicBool,
}

impl Stop<'_> {
    /// Whether to stop: another task failed, or the user wants it.
    pub fn is_set(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.interrupt.is_raised()
    }

    /// An error where it is time to stop.
    pub fn check(&self) -> Result<()> {
        if self.is_set() {
            Err(Error::failed("interrupted"))
        } else {
            Ok(())
        }
    }
}

/// Works on the tasks in their order, one thread a worker. Meanwhile `tick` runs in this thread
/// five times a second; an error of its fails the whole. The first error is returned once all threads have ended.
pub fn run<W: Send, T: Sync>(
    workers: &mut [W],
    tasks: &[T],
    interrupt: &Interrupt,
    work: impl Fn(&mut W, &T, &Stop<'_>) -> Result<()> + Sync,
    tick: impl FnMut() -> Result<()>,
) -> Result<()> {
    let deal = |number: usize| tasks.get(number);
    run_dealt(workers, deal, interrupt, work, tick)
}

/// The same with tasks that are made only when it is their turn: `deal` gives each by its number, and nothing
/// behind the last one.
pub fn run_dealt<W: Send, T>(
    workers: &mut [W],
    deal: impl Fn(usize) -> Option<T> + Sync,
    interrupt: &Interrupt,
    work: impl Fn(&mut W, T, &Stop<'_>) -> Result<()> + Sync,
    mut tick: impl FnMut() -> Result<()>,
) -> Result<()> {
    let stop = Stop {
        interrupt,
        failed: AtomicBool::new(false),
    };
    let failure = Mutex::new(None);
    let fail = |error| {
        failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        stop.failed.store(true, Ordering::SeqCst);
    };
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (alive, ended) = mpsc::channel::<()>();
        for worker in workers {
            let alive = alive.clone();
            let (stop, next, deal, work, fail) = (&stop, &next, &deal, &work, &fail);
            scope.spawn(move || {
                let _alive = alive;
                while !stop.is_set()
                    && let Some(task) = deal(next.fetch_add(1, Ordering::Relaxed))
                {
                    if let Err(error) = work(worker, task, stop) {
                        fail(error);
                    }
                }
            });
        }
        drop(alive);
        while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(TICK) {
            if !stop.is_set()
                && let Err(error) = tick()
            {
                fail(error);
            }
        }
    });
    interrupt.check()?;
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Does one thing in this thread and another in a thread beside it; ends with both.
pub fn both<A, B: Send>(here: impl FnOnce() -> A, beside: impl FnOnce() -> B + Send) -> (A, B) {
    std::thread::scope(|scope| {
        let beside = scope.spawn(beside);
        let here = here();
        match beside.join() {
            Ok(beside) => (here, beside),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_task_is_done_once() {
        let mut sums = [0_u64; 3];
        let tasks: Vec<u64> = (1..=1000).collect();
        let add = |sum: &mut u64, task: &u64, _: &Stop<'_>| {
            *sum += task;
            Ok(())
        };
        run(&mut sums, &tasks, &Interrupt::default(), add, || Ok(())).unwrap();
        assert_eq!(sums.iter().sum::<u64>(), 500_500);
    }

    #[test]
    fn the_first_failure_stops_the_others_and_is_told() {
        let mut done = [0; 2];
        let work = |done: &mut i32, task: &i32, stop: &Stop<'_>| {
            if *task == 0 {
                return Err(Error::failed("first"));
            }
            while !stop.is_set() {
                std::thread::yield_now();
            }
            *done += 1;
            Err(Error::failed("later"))
        };
        let error = run(
            &mut done,
            &[0, 1, 2, 3, 4],
            &Interrupt::default(),
            work,
            || Ok(()),
        )
        .unwrap_err();
        assert_eq!(error.message(), "first");
        assert!(done.iter().sum::<i32>() <= 1);
    }

    #[test]
    fn an_interrupt_is_no_success() {
        let interrupt = Interrupt::default();
        interrupt.raise();
        assert!(run(&mut [()], &[()], &interrupt, |(), (), _| Ok(()), || Ok(())).is_err());
    }
}
