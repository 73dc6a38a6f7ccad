//! What recovery looks for in WAL: the ends of transactions, restore points, and its target.

pub mod events;
pub mod target;
