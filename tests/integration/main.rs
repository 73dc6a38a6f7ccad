//! Whole backups of real servers, through the command line of the built binary.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    missing_docs,
    reason = "a test that cannot go on should say where, and nothing here is a public interface"
)]

#[path = "../support/mod.rs"]
mod support;

mod annotations;
mod archives;
mod archiving;
mod as_root;
mod block_maps;
mod catalogued;
mod chains;
mod changed_blocks;
mod churn;
mod completions;
mod compression;
mod configuration;
mod copying;
mod corrupt_pages;
mod created_tablespaces;
mod deletion;
mod encodings;
mod encryption;
mod expiry;
mod extracts;
mod files;
mod ground;
mod hazards;
mod history;
mod in_s3;
mod incremental;
mod interruption;
mod kinds_of_cluster;
mod large_relation;
mod logging;
mod many_servers;
mod naming;
mod objects;
mod odd_wal;
mod passes;
mod permissions;
mod positions;
mod refusals;
mod replayed;
mod replicated;
mod reports;
mod restored_files;
mod restored_over;
mod restored_settings;
mod settled_files;
mod shortened_relations;
mod shown_wal;
mod single_databases;
mod slots;
mod sources;
mod standby;
mod status;
mod strangers;
mod tablespaces;
mod torn_pages;
mod two_places;
mod under_load;
mod units;
mod unlogged;
mod unreadable;
mod verification;
mod verify;
mod window;
