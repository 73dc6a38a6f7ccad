//! Clusters of other kinds: no checksums, other WAL segments, other modes.

use crate::support::checks::{self, Before};
use crate::support::cluster::Options;
use crate::support::pgkeep::SERVER;
use crate::support::{Cluster, Load, Pgkeep};

fn a_backup_under_load_restores(major: u32, options: &Options) {
    let cluster = Cluster::with(major, options);
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::of(&cluster).with("max_rate", "32MB");
    let load = Load::on(&cluster);
    pgkeep.backup();
    let history = cluster.number("select count(*) from pgbench_history");
    load.stop();
    pgkeep.ok(&["verify", SERVER, "newest"]);
    let data = pgkeep.restore("newest");
    checks::is_whole(major, &data, &before, history);
}

fn a_cluster_without_checksums_restores(major: u32) {
    a_backup_under_load_restores(
        major,
        &Options {
            checksums: false,
            ..Options::default()
        },
    );
}

#[test]
fn a_cluster_of_14_without_checksums_restores() {
    a_cluster_without_checksums_restores(14);
}

#[test]
fn a_cluster_of_18_without_checksums_restores() {
    a_cluster_without_checksums_restores(18);
}

#[test]
fn a_cluster_of_14_with_wal_segments_of_16_mb_restores() {
    a_backup_under_load_restores(14, &Options::of_default_segments());
}

#[test]
fn a_cluster_of_18_with_wal_segments_of_16_mb_restores() {
    a_backup_under_load_restores(18, &Options::of_default_segments());
}

#[test]
fn a_cluster_with_wal_segments_of_64_mb_restores() {
    a_backup_under_load_restores(
        16,
        &Options {
            wal_segment_mb: 64,
            ..Options::default()
        },
    );
}

#[test]
fn a_restored_cluster_has_the_modes_of_its_source() {
    for (group_access, folders, files) in [(false, 0o700, 0o600), (true, 0o750, 0o640)] {
        let cluster = Cluster::with(
            17,
            &Options {
                group_access,
                ..Options::default()
            },
        );
        let pgkeep = Pgkeep::of(&cluster);
        let backup = pgkeep.backup();
        checks::assert_modes(&backup.folder, 0o700, 0o600);
        let data = pgkeep.restore(&backup.identifier);
        checks::assert_modes(&data, folders, files);
        Cluster::restored(17, &data);
    }
}

#[test]
fn a_cluster_that_archives_its_wal_is_not_waited_for() {
    // wait=true would wait for ever: this archive command never succeeds.
    let mut cluster = Cluster::stopped(15, &Options::default());
    cluster.set("archive_mode = on\narchive_command = 'false'");
    cluster.start();
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let data = pgkeep.restore("newest");
    checks::is_whole(15, &data, &before, 0);
}

#[test]
fn timeouts_set_for_the_whole_server_do_not_end_a_backup() {
    let mut cluster = Cluster::stopped(17, &Options::default());
    cluster.set("statement_timeout = '1s'\nidle_session_timeout = '1s'\nidle_in_transaction_session_timeout = '1s'");
    // This one cannot be lifted before a session begins.
    cluster.set("transaction_timeout = '5s'\nlock_timeout = '1s'");
    cluster.start();
    let pgkeep = Pgkeep::of(&cluster).with("max_rate", "8MB");
    pgkeep.backup();
}

#[test]
fn a_transaction_timeout_too_short_to_be_lifted_does_not_keep_pgkeep_out() {
    for major in crate::support::versions(&[17, 18]) {
        let cluster = Cluster::new(major);
        cluster.sql(
            "create role keeper superuser login;
             alter role keeper set transaction_timeout = 5;
             create function public.wait() returns event_trigger language plpgsql as
                 $$ begin if session_user = 'keeper' then perform pg_sleep(0.1); end if; end $$;
             create event trigger waits on login execute function public.wait()",
        );
        let pgkeep = Pgkeep::of(&cluster)
            .with_server("user", "keeper")
            .with("max_rate", "32MB");
        pgkeep.backup();
    }
}
