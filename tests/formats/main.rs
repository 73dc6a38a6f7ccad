//! PostgreSQL's formats against PostgreSQL itself: real servers of every major
//! release and their tools. PGKEEP_TEST_POSTGRES names the directory that
//! holds 14/bin to 18/bin.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "most of it serves the tests of whole backups"
)]
mod support {
    pub mod account;
    pub mod ground;
    pub mod initialized;
    pub mod installed;
}

mod cluster;
mod control;
mod data_directory;
mod manifest;
mod wal;
mod wal_records;
mod wal_summaries;

/// Makes a test for each major release of a function of one.
macro_rules! for_every_major {
    ($($function:ident),* $(,)?) => {$(
        mod $function {
            use pgkeep::pg::version::Major;

            #[test]
            fn v14() {
                super::$function(Major::V14);
            }

            #[test]
            fn v15() {
                super::$function(Major::V15);
            }

            #[test]
            fn v16() {
                super::$function(Major::V16);
            }

            #[test]
            fn v17() {
                super::$function(Major::V17);
            }

            #[test]
            fn v18() {
                super::$function(Major::V18);
            }
        }
    )*};
}
use for_every_major;
