//! Tasks dealt out to a few threads, the first failure stopping them all; or two things at once.

use std::io::{self, Write};
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;
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

/// How many things are waited for at the same time.
const WAITS: usize = 16;

/// Asks for each of some things whose answers have to be waited for rather than computed. The answers are in the order of
/// the things.
pub fn at_once<T: Sync, U: Send>(things: &[T], answer: impl Fn(&T) -> U + Sync) -> Vec<U> {
    map_shares(things, things.len().div_ceil(WAITS).max(1), answer)
}

/// The same, so many of them at the same time.
pub fn at_once_by<T: Sync, U: Send>(
    waits: NonZero<usize>,
    things: &[T],
    answer: impl Fn(&T) -> U + Sync,
) -> Vec<U> {
    map_shares(things, things.len().div_ceil(waits.get()).max(1), answer)
}

/// Fewer of them a thread are not worth it.
const LEAST_SHARE: usize = 512;

/// Does the same with each of many things, by as many threads as there are cores. The answers are in the order of the things.
pub fn map<T: Sync, U: Send>(things: &[T], answer: impl Fn(&T) -> U + Sync) -> Vec<U> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    map_shares(
        things,
        things.len().div_ceil(threads).max(LEAST_SHARE),
        answer,
    )
}

/// The same by as many threads as there are shares.
fn map_shares<T: Sync, U: Send>(
    things: &[T],
    share: usize,
    answer: impl Fn(&T) -> U + Sync,
) -> Vec<U> {
    let (own, others) = things.split_at(share.min(things.len()));
    let answers = |things: &[T]| things.iter().map(&answer).collect::<Vec<U>>();
    std::thread::scope(|scope| {
        let answers = &answers;
        let others = others.chunks(share);
        let others: Vec<_> = others
            .map(|share| scope.spawn(move || answers(share)))
            .collect();
        let mut all = answers(own);
        for other in others {
            all.extend(joined(other));
        }
        all
    })
}

/// Bytes that are handed on together.
const PIPED_BYTES: usize = 64 * 1024;

/// How many such parts may wait.
const PIPED_PARTS: usize = 4;

/// The end of a pipe to whoever writes in a thread beside.
struct Pipe {
    part: Vec<u8>,
    parts: SyncSender<Vec<u8>>,
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(bytes);
        if self.part.len() >= PIPED_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let next = Vec::with_capacity(PIPED_BYTES);
        let part = std::mem::replace(&mut self.part, next);
        self.parts
            .send(part)
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Makes something in this thread while a thread beside it writes what is made already.
pub fn piped(
    mut output: impl Write + Send,
    make: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let (parts, waiting) = mpsc::sync_channel::<Vec<u8>>(PIPED_PARTS);
    let make = move || {
        let mut pipe = Pipe {
            part: Vec::with_capacity(PIPED_BYTES),
            parts,
        };
        make(&mut pipe)?;
        pipe.flush()
    };
    let write = move || waiting.iter().try_for_each(|part| output.write_all(&part));
    // Where the writer fails, that is why its pipe is broken.
    let (made, written) = both(make, write);
    written.and(made)
}

/// Does one thing in this thread and another in a thread beside it; ends with both.
pub fn both<A, B: Send>(here: impl FnOnce() -> A, beside: impl FnOnce() -> B + Send) -> (A, B) {
    std::thread::scope(|scope| {
        let beside = scope.spawn(beside);
        let here = here();
        (here, joined(beside))
    })
}

/// What a thread ended with; its panic is one here.
pub fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    match thread.join() {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    }
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
    fn the_answers_of_all_threads_are_in_order() {
        let things: Vec<usize> = (0..10 * LEAST_SHARE + 7).collect();
        let expected: Vec<usize> = things.iter().map(|thing| thing * 2).collect();
        assert_eq!(map(&things, |thing| thing * 2), expected);
        assert!(map(&[0; 0], |thing| *thing).is_empty());
    }

    #[test]
    fn what_is_piped_arrives_whole_or_fails_for_its_reason() {
        let line = vec![7; PIPED_BYTES / 3];
        let make = |pipe: &mut dyn Write| (0..100).try_for_each(|_| pipe.write_all(&line));
        let mut whole = Vec::new();
        piped(&mut whole, make).unwrap();
        assert_eq!(whole, vec![7; 100 * line.len()]);
        let mut small = [0; PIPED_BYTES];
        let error = piped(&mut small[..], make).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn an_interrupt_is_no_success() {
        let interrupt = Interrupt::default();
        interrupt.raise();
        assert!(run(&mut [()], &[()], &interrupt, |(), (), _| Ok(()), || Ok(())).is_err());
    }
}
