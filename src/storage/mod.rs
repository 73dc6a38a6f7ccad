//! Where a repository lies: in a folder of this machine, or in an object store.
//!
//! What lies above knows a [`Place`] alone: a file or a folder by its name, whichever of the two it is in. An object
//! store has no folders, and nothing in it needs to be synced; it has no rename either, so what must appear in one step
//! is one object: that is there, whole and durable, once it was written to its end.

pub mod durable;
pub mod lease;
pub mod objects;

mod local;
mod place;
mod probe;
mod stream;

pub use place::Place;
pub use stream::{Memory, Sink, Source};
