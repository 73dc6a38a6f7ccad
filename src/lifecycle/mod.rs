//! A backup between the day it is made and the day it goes: what is noted about it, whether it
//! is kept, and what is left when it goes.
//!
//! Everything here that writes holds the server's lock.

pub mod annotate;
pub mod delete;
pub mod expire;
pub mod retain;
pub mod retention;
pub mod status;
pub mod window;
