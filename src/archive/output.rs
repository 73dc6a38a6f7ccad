//! The archive's file: slices that many threads compress, written in their order.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::files::incoming::Incoming;
use crate::stored::coding::Coding;
use crate::stored::compression::Compressor;
use crate::stored::encryption::Encryptor;

/// Bytes that become one compressed frame.
const SLICE_BYTES: usize = 4 << 20;

/// A part of the archive before it is compressed.
struct Slice {
    number: u64,
    content: Vec<u8>,
}

/// Takes the slices, compressed, each in its turn.
struct Output<'a> {
    coding: &'a Coding,
    state: Mutex<State>,
    turn: Condvar,
    failed: AtomicBool,
}

struct State {
    next: u64,
    file: Incoming,
    encryptor: Option<Encryptor>,
    /// What is encrypted and not yet written.
    encrypted: Vec<u8>,
    failure: Option<Error>,
}

/// Writes what `fill` puts into a slicer, compressed by so many threads. The file is returned to be published.
pub(super) fn write(
    file: Incoming,
    coding: &Coding,
    workers: usize,
    fill: impl FnOnce(&mut Slicer<'_>) -> Result<()>,
) -> Result<Incoming> {
    let output = Output::begin(file, coding)?;
    let (slices, received) = mpsc::sync_channel(workers);
    let (emptied, spare) = mpsc::channel();
    let received = Mutex::new(received);
    let filled = std::thread::scope(|scope| {
        for _ in 0..workers {
            let (output, received, emptied) = (&output, &received, emptied.clone());
            scope.spawn(move || output.compress(received, &emptied));
        }
        let mut slicer = Slicer::new(&output, slices, spare);
        fill(&mut slicer)?;
        slicer.hand_over().map_err(told)
    });
    // Where the output failed, that is why filling did.
    let file = output.finish()?;
    filled?;
    Ok(file)
}

/// An error of writing in the words it had when it happened.
pub(super) fn told(error: io::Error) -> Error {
    Error::from_io("write the tar", &error)
}

impl<'a> Output<'a> {
    fn begin(file: Incoming, coding: &'a Coding) -> Result<Output<'a>> {
        let mut encrypted = Vec::new();
        let encryptor = match &coding.encryption {
            Some(encryption) => Some(Encryptor::begin(encryption, &mut encrypted)?),
            None => None,
        };
        Ok(Output {
            coding,
            state: Mutex::new(State {
                next: 0,
                file,
                encryptor,
                encrypted,
                failure: None,
            }),
            turn: Condvar::new(),
            failed: AtomicBool::new(false),
        })
    }

    /// Compresses slices until there are no more; what one thread does of many. The emptied slices go to `spare`.
    fn compress(&self, slices: &Mutex<Receiver<Slice>>, spare: &Sender<Vec<u8>>) {
        let mut frame = Vec::new();
        let mut compressor = match Compressor::new(self.coding.compression) {
            Ok(compressor) => Some(compressor),
            Err(error) => {
                self.fail(error);
                None
            }
        };
        // After a failure they are still taken, so that nobody waits for it.
        while let Some(slice) = receive(slices) {
            if let Some(compressor) = &mut compressor
                && !self.failed.load(Ordering::Relaxed)
            {
                let written = compressor
                    .compress(&slice.content, &mut frame)
                    .and_then(|()| self.write(slice.number, &frame));
                if let Err(error) = written {
                    self.fail(error);
                }
            }
            // Whether anybody wants it or not.
            let _ = spare.send(slice.content);
        }
    }

    fn write(&self, number: u64, frame: &[u8]) -> Result<()> {
        let mut state = self.lock();
        while state.next != number {
            if state.failure.is_some() {
                return Ok(());
            }
            state = self
                .turn
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.write(frame)?;
        state.next += 1;
        self.turn.notify_all();
        Ok(())
    }

    fn fail(&self, error: Error) {
        self.lock().failure.get_or_insert(error);
        self.failed.store(true, Ordering::Relaxed);
        self.turn.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the file, once all slices are written.
    fn finish(self) -> Result<Incoming> {
        let mut state = self
            .state
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = state.failure {
            return Err(failure);
        }
        if let Some(encryptor) = state.encryptor.take() {
            encryptor.finish(&mut state.encrypted)?;
            state.file.append(&state.encrypted)?;
        }
        Ok(state.file)
    }
}

impl State {
    fn write(&mut self, frame: &[u8]) -> Result<()> {
        match &mut self.encryptor {
            None => self.file.append(frame),
            Some(encryptor) => {
                encryptor.push(frame, &mut self.encrypted)?;
                self.file.append(&self.encrypted)?;
                self.encrypted.clear();
                Ok(())
            }
        }
    }
}

fn receive(slices: &Mutex<Receiver<Slice>>) -> Option<Slice> {
    let slices = slices.lock().unwrap_or_else(PoisonError::into_inner);
    slices.recv().ok()
}

/// Cuts what is written into slices.
pub(super) struct Slicer<'a> {
    output: &'a Output<'a>,
    slices: SyncSender<Slice>,
    spare: Receiver<Vec<u8>>,
    next: u64,
    content: Vec<u8>,
}

impl<'a> Slicer<'a> {
    fn new(
        output: &'a Output<'a>,
        slices: SyncSender<Slice>,
        spare: Receiver<Vec<u8>>,
    ) -> Slicer<'a> {
        Slicer {
            output,
            slices,
            spare,
            next: 0,
            content: Vec::with_capacity(SLICE_BYTES),
        }
    }

    fn hand_over(&mut self) -> io::Result<()> {
        let empty = match self.spare.try_recv() {
            Ok(mut spare) => {
                spare.clear();
                spare
            }
            Err(_) => Vec::with_capacity(SLICE_BYTES),
        };
        let slice = Slice {
            number: self.next,
            content: std::mem::replace(&mut self.content, empty),
        };
        self.next += 1;
        let handed_over = self.slices.send(slice).is_ok();
        if handed_over && !self.output.failed.load(Ordering::Relaxed) {
            Ok(())
        } else {
            // Why is told by the output.
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
}

impl Write for Slicer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(SLICE_BYTES - self.content.len());
        self.content.extend_from_slice(&bytes[..taken]);
        if self.content.len() == SLICE_BYTES {
            self.hand_over()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
