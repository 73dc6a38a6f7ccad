//! Progress on stderr: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::arguments::ProgressMode;
use crate::progress::{Progress, Silent};
use crate::size::readable;

const BAR: &str = "{msg:10} [{wide_bar}] {percent:>3}%  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left";
const SPINNER: &str = "{msg:10} {spinner} {elapsed}";

/// How often plain lines come.
const PACE: Duration = Duration::from_secs(10);

/// The progress that suits the mode and stderr.
pub(super) fn choose(mode: ProgressMode) -> Box<dyn Progress> {
    let terminal = std::io::stderr().is_terminal();
    match mode {
        ProgressMode::Never => Box::new(Silent),
        ProgressMode::Auto if !terminal => Box::new(Silent),
        ProgressMode::Auto | ProgressMode::Always if terminal => Box::new(Bar::new()),
        ProgressMode::Auto | ProgressMode::Always => Box::new(Lines::default()),
    }
}

struct Bar {
    bar: ProgressBar,
}

impl Bar {
    fn new() -> Bar {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
        bar.enable_steady_tick(Duration::from_millis(250));
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
    step: Mutex<Option<Step>>,
}

struct Step {
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
            Some(bytes) => eprintln!("pgkeep: {name}: {}", readable(bytes)),
            None => eprintln!("pgkeep: {name}"),
        }
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = Some(Step {
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

impl Step {
    fn tell(&self, done: u64) {
        let rate = (done as f64 / self.began.elapsed().as_secs_f64()) as u64;
        let rate = rate.max(1);
        match self.bytes {
            Some(bytes) => eprintln!(
                "pgkeep: {}: {} of {}, {}/s, {} s left",
                self.name,
                readable(done),
                readable(bytes),
                readable(rate),
                bytes.saturating_sub(done) / rate
            ),
            None => eprintln!("pgkeep: {}: {}", self.name, readable(done)),
        }
    }
}
