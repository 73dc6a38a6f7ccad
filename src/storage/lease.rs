//! A lock in an object store: an object that says whose it is, and counts for a while after it was written last.
//!
//! Its holder writes it anew long before that while is over. Who finds one that nobody wrote for so long, or one of a process
//! of his own machine that is no more, or one that says it is nobody's, puts his own in its place, so that of a pgkeep that died nothing is left for good. Whoever was cut off from the store for so long, and
//! may have lost his lock, learns it before he publishes anything. All times are the store's own: the clocks of two machines
//! may differ.

use std::fs;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::storage::objects::{ObjectStore, Version};

/// A lock that is held as long as this lives.
pub struct Lease {
    shared: Arc<Shared>,
    renewing: Option<JoinHandle<()>>,
}

struct Shared {
    store: Arc<ObjectStore>,
    key: String,
    holder: Holder,
    state: Mutex<State>,
    /// Wakes the one who writes it anew, when it is let go.
    ended: Condvar,
}

struct State {
    version: Version,
    /// How often it was written anew.
    renewed: u64,
    /// When it was written last, at the latest.
    written: Instant,
    is_lost: bool,
    is_over: bool,
}

/// What the object says.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Holder {
    /// The machine and the process, for whoever has to wait.
    holder: String,
    /// Tells it from all others.
    token: String,
    /// For how long it counts.
    seconds: u64,
    /// How often it was written anew: each time the object has another content, and so another version.
    renewed: u64,
    /// The process, for others of its machine.
    process: Option<Process>,
}

/// A process, so that no other one is ever taken for it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Process {
    /// The kernel, since it was started; and the namespace of the number.
    machine: String,
    number: u32,
    /// When it began, in ticks since the kernel was started.
    began: u64,
}

/// Who wants a lock, and for how long it shall count when he dies.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// So much later anybody may take it.
    pub length: Duration,
}

/// Why a lock was not got.
pub enum Refusal {
    /// Somebody has it, who calls himself so.
    Taken(String),
    /// It cannot be told.
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal::Failed(error)
    }
}

/// How often it is written anew before it ends.
const RENEWALS: u32 = 4;

/// What such an object holds at most.
const MOST_BYTES: u64 = 4096;

impl Lease {
    /// Takes a lock at once, or says who has it.
    pub fn take(store: &Arc<ObjectStore>, key: &str, terms: Terms) -> Result<Lease, Refusal> {
        let holder = Holder {
            holder: own_name(),
            token: token(),
            seconds: terms.length.as_secs(),
            renewed: 0,
            process: Process::own(),
        };
        let content = holder.to_bytes()?;
        let asked = Instant::now();
        // Somebody else who takes it or lets it go at the same time.
        let just_now = || Refusal::Taken("another process".to_owned());
        let taken = match store.get(key, MOST_BYTES)? {
            None => store.create(key, content)?,
            Some((found, version)) => {
                let other = Holder::parse(&found);
                if !has_ended(store, key, &holder, &other)? {
                    return Err(Refusal::Taken(other.holder));
                }
                if !other.is_free() {
                    log::info!("taking over the lock of {}, which has ended", other.holder);
                }
                store.replace(key, content, &version)?
            }
        };
        let version = taken.ok_or_else(just_now)?;
        let shared = Arc::new(Shared {
            // What is renewed while others clean up, and given up by them.
            store: Arc::new(store.for_cleaning_up()),
            key: key.to_owned(),
            holder,
            state: Mutex::new(State {
                version,
                renewed: 0,
                written: asked,
                is_lost: false,
                is_over: false,
            }),
            ended: Condvar::new(),
        });
        let renewing = thread::Builder::new()
            .name("lease".to_owned())
            .spawn({
                let shared = shared.clone();
                move || shared.keep(terms.length)
            })
            .map_err(|error| Error::from_io("start a thread", &error))?;
        Ok(Lease {
            shared,
            renewing: Some(renewing),
        })
    }

    /// Renews the lock; an error where it is, or may be, somebody else's by now.
    pub fn check(&self) -> Result<()> {
        self.shared.renew();
        self.shared.check()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let is_held = self.shared.check().is_ok();
        self.shared.state().is_over = true;
        self.shared.ended.notify_all();
        if let Some(renewing) = self.renewing.take() {
            let _ = renewing.join();
        }
        if is_held {
            self.shared.let_go();
        }
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes it anew again and again, until it is let go or lost.
    fn keep(&self, length: Duration) {
        loop {
            let state = self.state();
            let pause = length / RENEWALS;
            let (state, _) = self
                .ended
                .wait_timeout_while(state, pause, |state| !state.is_over)
                .unwrap_or_else(PoisonError::into_inner);
            if state.is_over {
                return;
            }
            let is_lost = state.is_lost;
            drop(state);
            if is_lost {
                return;
            }
            self.renew();
        }
    }

    /// Writes it anew, if nobody else did.
    fn renew(&self) {
        // One at a time: each needs what the one before has written.
        let mut state = self.state();
        if state.is_lost {
            return;
        }
        let asked = Instant::now();
        state.renewed += 1;
        let holder = Holder {
            renewed: state.renewed,
            ..self.holder.clone()
        };
        let renewed = holder
            .to_bytes()
            .and_then(|content| self.store.replace(&self.key, content, &state.version));
        match renewed {
            Ok(Some(version)) => {
                state.version = version;
                state.written = asked;
            }
            Ok(None) => state.is_lost = true,
            Err(error) => log::warn!("a lock could not be renewed: {error}"),
        }
    }

    /// Writes that it is nobody's. It is not deleted: a request to do so that comes late would delete what is somebody
    /// else's by then. Where it cannot be written, the lock ends by itself.
    fn let_go(&self) {
        let version = self.state().version.clone();
        let _ = Holder::nobody()
            .to_bytes()
            .and_then(|content| self.store.replace(&self.key, content, &version));
    }

    fn check(&self) -> Result<()> {
        let length = Duration::from_secs(self.holder.seconds);
        let state = self.state();
        if !state.is_lost && state.written.elapsed() < length {
            return Ok(());
        }
        Err(Error::locked(format!(
            "the lock {} was lost: it was not renewed for {} s, or was removed, and another pgkeep may be working there by now",
            self.store.url(&self.key),
            length.as_secs()
        ))
        .hint("see that the store can be reached all the time, then run the same command again"))
    }
}

impl Holder {
    fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_yaml::to_string(self)
            .map(String::into_bytes)
            .map_err(|error| Error::failed(format!("cannot make the lock: {error}")))
    }

    /// Of a lock that is free.
    fn nobody() -> Holder {
        Holder {
            holder: "nobody".to_owned(),
            token: String::new(),
            seconds: 0,
            renewed: 0,
            process: None,
        }
    }

    fn is_free(&self) -> bool {
        self.seconds == 0
    }

    /// What nobody can read ends as others do. In a folder the file of a lock holds a number at most, and is locked by other
    /// means: copied from there, it is nobody's.
    fn parse(content: &[u8]) -> Holder {
        let text = String::from_utf8_lossy(content);
        if text.trim().bytes().all(|byte| byte.is_ascii_digit()) {
            return Holder::nobody();
        }
        serde_yaml::from_str(&text).unwrap_or_else(|_| Holder {
            holder: "another process".to_owned(),
            token: String::new(),
            seconds: 60,
            renewed: 0,
            process: None,
        })
    }
}

impl Process {
    /// This one; nothing where the system does not tell.
    fn own() -> Option<Process> {
        let kernel = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
        let number = std::process::id();
        Some(Process {
            machine: format!("{} {}", kernel.trim(), namespace.display()),
            number,
            began: began(number)?,
        })
    }

    /// Whether it ran on this machine, and does no more.
    fn is_gone(&self) -> bool {
        let own = Process::own();
        own.is_some_and(|own| own.machine == self.machine) && began(self.number) != Some(self.began)
    }
}

/// When a process of this machine began; nothing where there is none, or nothing but its exit status (proc_pid_stat(5),
/// fields 3 and 22).
fn began(number: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    // The second field is the name, in parentheses, which may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    match state {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

/// Whether the holder of a lock is gone, or did not write it for as long as it counts, by the clock of the store.
fn has_ended(store: &ObjectStore, key: &str, own: &Holder, other: &Holder) -> Result<bool> {
    if other.is_free() || other.process.as_ref().is_some_and(Process::is_gone) {
        return Ok(true);
    }
    let Some(found) = store.size(key)? else {
        return Ok(false);
    };
    let probe = format!("{key}.{}", own.token);
    store.put(&probe, Vec::new())?;
    let now = store.size(&probe);
    store.delete(std::slice::from_ref(&probe))?;
    let Some(now) = now? else {
        return Ok(false);
    };
    let length = SignedDuration::from_secs(other.seconds.min(3600) as i64);
    Ok(now.last_modified.duration_since(found.last_modified) > length)
}

/// How whoever waits knows this process.
fn own_name() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("process {} of {}", std::process::id(), host.trim())
}

/// What no other process has.
fn token() -> String {
    let moment = jiff::Timestamp::now().as_nanosecond();
    format!("{}-{moment}", std::process::id())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_is_gone_once_it_has_ended() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let own = Process::own().unwrap();
        let process = Process {
            number: child.id(),
            began: began(child.id()).unwrap(),
            ..own.clone()
        };
        assert!(!own.is_gone());
        assert!(!process.is_gone());
        child.kill().unwrap();
        // Until it is waited for, its exit status is still there.
        while !process.is_gone() {
            thread::sleep(Duration::from_millis(5));
        }
        child.wait().unwrap();
        assert!(process.is_gone());
        let elsewhere = Process {
            machine: "another".to_owned(),
            ..process
        };
        assert!(!elsewhere.is_gone());
        let later = Process {
            began: own.began + 1,
            ..own
        };
        assert!(later.is_gone());
    }

    #[test]
    fn what_nobody_can_read_still_ends() {
        assert_eq!(Holder::parse(b"\xff").seconds, 60);
        assert!(Holder::parse(b"").is_free() && Holder::parse(b"4711\n").is_free());
        let holder = Holder {
            holder: own_name(),
            token: token(),
            seconds: 15,
            renewed: 0,
            process: Process::own(),
        };
        let read = Holder::parse(&holder.to_bytes().unwrap());
        assert_eq!((read.token, read.seconds), (holder.token, 15));
        assert!(read.process == holder.process);
    }
}
