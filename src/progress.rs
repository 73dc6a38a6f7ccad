//! What a verb tells about its progress while it runs.

/// Hears how far a verb is. Called from many threads.
pub trait Progress: Sync {
    /// A new step begins; `bytes` is what it will move, where that is known.
    fn step(&self, name: &str, bytes: Option<u64>);
    /// So many bytes of the step are done.
    fn advance(&self, bytes: u64);
}

/// Hears nothing.
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _name: &str, _bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
}
