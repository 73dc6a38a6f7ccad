//! Progress on stderr: a bar on a terminal, plain lines elsewhere. And the log's account of it:
//! at `-v`, a line for each step that is done.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::arguments::ProgressMode;
use crate::cli::logging;
use crate::progress::{Progress, Silent};
use crate::size::readable;

const BAR: &str = "{msg:10} [{wide_bar}] {percent:>3}%  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left";
const SPINNER: &str = "{msg:10} {spinner} {elapsed}";

/// How often plain lines come.
const PACE: Duration = Duration::from_secs(10);

/// The progress that suits the mode and stderr.
fn choose(mode: ProgressMode) -> Box<dyn Progress> {
    let terminal = std::io::stderr().is_terminal();
    match mode {
        ProgressMode::Never => logged(Silent),
        ProgressMode::Auto if !terminal => logged(Silent),
        ProgressMode::Auto | ProgressMode::Always if terminal => logged(Bar::new()),
        ProgressMode::Auto | ProgressMode::Always => logged(Lines::default()),
    }
}

/// Counts the bytes of all steps besides.
pub(super) struct Counted {
    inner: Box<dyn Progress>,
    bytes: AtomicU64,
}

impl Counted {
    /// The progress that suits the mode and stderr, with the count at zero.
    pub(super) fn choose(mode: ProgressMode) -> Counted {
        Counted {
            inner: choose(mode),
            bytes: AtomicU64::new(0),
        }
    }

    /// How many bytes were worked through so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Progress for Counted {
    fn step(&self, name: &str, bytes: Option<u64>) {
        self.inner.step(name, bytes);
    }

    fn advance(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.inner.advance(bytes);
    }
}

struct Bar {
    bar: ProgressBar,
}

impl Bar {
    fn new() -> Bar {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
        bar.enable_steady_tick(Duration::from_millis(250));
        logging::step_aside_for(&bar);
        Bar { bar }
    }
}

impl Progress for Bar {
    fn step(&self, name: &str, bytes: Option<u64>) {
        self.bar.reset();
        match bytes {
            Some(bytes) => self.bar.set_length(bytes),
            None => self.bar.unset_length(),
        }
        self.bar.set_message(name.to_owned());
        let template = if bytes.is_some() { BAR } else { SPINNER };
        // The templates are constants; a wrong one would only cost the looks.
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[derive(Default)]
struct Lines {
    done: AtomicU64,
    step: Mutex<Option<Told>>,
}

struct Told {
    name: String,
    bytes: Option<u64>,
    began: Instant,
    told: Instant,
}

impl Progress for Lines {
    fn step(&self, name: &str, bytes: Option<u64>) {
        let now = Instant::now();
        self.done.store(0, Ordering::Relaxed);
        match bytes {
            Some(bytes) => logging::tell(&format!("pgkeep: {name}: {}\n", readable(bytes))),
            None => logging::tell(&format!("pgkeep: {name}\n")),
        }
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = Some(Told {
            name: name.to_owned(),
            bytes,
            began: now,
            told: now,
        });
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Whoever is telling already tells for all.
        if let Ok(mut step) = self.step.try_lock()
            && let Some(step) = step.as_mut()
            && step.told.elapsed() >= PACE
        {
            step.told = Instant::now();
            step.tell(done);
        }
    }
}

impl Told {
    fn tell(&self, done: u64) {
        let rate = rate(done, self.began.elapsed()).max(1);
        let line = match self.bytes {
            Some(bytes) => format!(
                "pgkeep: {}: {} of {}, {}/s, {} s left\n",
                self.name,
                readable(done),
                readable(bytes),
                readable(rate),
                bytes.saturating_sub(done) / rate
            ),
            None => format!("pgkeep: {}: {}\n", self.name, readable(done)),
        };
        logging::tell(&line);
    }
}

/// Bytes a second.
fn rate(bytes: u64, elapsed: Duration) -> u64 {
    (bytes as f64 / elapsed.as_secs_f64()) as u64
}

/// Writes a line into the log for each step that is done, whatever else is shown.
struct Logged<P: Progress> {
    shown: P,
    bytes: AtomicU64,
    step: Mutex<Option<(String, Instant)>>,
}

fn logged(shown: impl Progress + 'static) -> Box<dyn Progress> {
    Box::new(Logged {
        shown,
        bytes: AtomicU64::new(0),
        step: Mutex::new(None),
    })
}

impl<P: Progress> Logged<P> {
    /// Ends the step at hand, and begins the next one.
    fn change(&self, next: Option<(String, Instant)>) {
        let mut step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = self.bytes.swap(0, Ordering::Relaxed);
        if let Some((name, began)) = std::mem::replace(&mut *step, next) {
            log::info!("{}", account(&name, bytes, began.elapsed()));
        }
    }
}

impl<P: Progress> Progress for Logged<P> {
    fn step(&self, name: &str, bytes: Option<u64>) {
        self.change(Some((name.to_owned(), Instant::now())));
        self.shown.step(name, bytes);
    }

    fn advance(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.shown.advance(bytes);
    }
}

impl<P: Progress> Drop for Logged<P> {
    fn drop(&mut self) {
        self.change(None);
    }
}

/// What a step came to, in a line.
fn account(name: &str, bytes: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    if bytes == 0 {
        return format!("{name}: {seconds:.1} s");
    }
    format!(
        "{name}: {} in {seconds:.1} s, {}/s",
        readable(bytes),
        readable(rate(bytes, elapsed))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_with_its_rate() {
        let second = Duration::from_secs(1);
        assert_eq!(account("finish", 0, second / 4), "finish: 0.2 s");
        assert_eq!(
            account("copy files", 3 << 30, 2 * second),
            "copy files: 3.00GB in 2.0 s, 1.50GB/s"
        );
    }
}
