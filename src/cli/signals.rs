//! What ends a command early: Ctrl-C and SIGTERM, in good order or, a second one, at once.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;

/// How often the interrupt is raised for one signal, and how long apart.
const TIMES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// Raises the interrupt when a signal comes.
pub(super) fn watch(interrupt: Arc<Interrupt>) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|error| Error::failed(format!("cannot wait for signals: {error}")))?;
    std::thread::spawn(move || {
        let mut pending = signals.forever();
        if let Some(signal) = pending.next() {
            if signal != SIGINT {
                interrupt.leave();
            }
            let patient = Arc::clone(&interrupt);
            std::thread::spawn(move || insist(&patient));
        }
        if pending.next().is_some() {
            std::process::exit(1);
        }
    });
    Ok(())
}

/// A query that is only about to begin is not cancelled yet: the checkpoint that a backup starts with would
/// be waited for after all.
fn insist(interrupt: &Interrupt) {
    for _ in 0..TIMES {
        interrupt.raise();
        std::thread::sleep(PAUSE);
    }
}

/// Lets a panic, wherever it happens, end the process with this exit status.
pub(super) fn exit_on_panic(status: u8) {
    std::panic::set_hook(Box::new(move |panic| {
        // Where even this cannot be printed, nothing can.
        let _ = writeln!(std::io::stderr(), "pgkeep: {panic}");
        std::process::exit(status.into());
    }));
}
