//! The test ground: real PostgreSQL servers, and the pgkeep that was just built.
//!
//! Nothing here listens on a network: every PostgreSQL has its own socket folder, the servers of objects listen on 127.0.0.1.
//! When the tests run as root, servers, their tools and pgkeep run as an
//! unprivileged account, since initdb and postgres refuse root.

pub mod account;
pub mod archive;
pub mod checks;
pub mod cluster;
pub mod faults;
pub mod ground;
pub mod installed;
pub mod link;
pub mod load;
pub mod pgkeep;
pub mod random_changes;
pub mod report;
pub mod small_disk;
pub mod store;
pub mod template;

pub use cluster::{Cluster, Options};
pub use load::Load;
pub use pgkeep::Pgkeep;

use std::time::{Duration, Instant};

/// Every major version that pgkeep supports.
pub const VERSIONS: [u32; 5] = [14, 15, 16, 17, 18];

/// Of some versions those that this run is about: all, unless PGKEEP_TEST_VERSIONS names
/// some, as `17,18`. Of none, the newest is left.
pub fn versions(of: &[u32]) -> Vec<u32> {
    let Ok(wanted) = std::env::var("PGKEEP_TEST_VERSIONS") else {
        return of.to_vec();
    };
    let is_wanted = |major: &u32| wanted.split(',').any(|one| one == major.to_string());
    let left: Vec<u32> = of.iter().copied().filter(is_wanted).collect();
    if left.is_empty() {
        of.last().copied().into_iter().collect()
    } else {
        left
    }
}

/// How long something may take that takes a moment where nothing else is going on.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Polls `condition` until it holds; panics, saying `what`, when it never does.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !condition() {
        assert!(
            Instant::now() < give_up,
            "waited {PATIENCE:?} in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Of a checkpoint with no transaction behind it, WAL has no more than the second: a time in that is too early.
pub fn leave_the_second() {
    std::thread::sleep(Duration::from_secs(1));
}
