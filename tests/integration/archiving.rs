//! `wal push` and `wal get` under a real server: nothing that was acknowledged is lost, whatever is killed.

use crate::support::archive::{
    archiving, recover_with, small_segments, switch, wait_until_archived,
};
use crate::support::checks::{self, Before};
use crate::support::{Load, Pgkeep, wait_until};

/// The archived segments, history files and so on that are whole, by sizes of the cluster's own.
fn segments_of(pgkeep: &Pgkeep) -> Vec<String> {
    let archived = pgkeep.archived().into_iter();
    archived.filter(|name| name.len() == 24).collect()
}

/// Kills a command at a random moment, one time in `odds`. Its end is that of a failure, so that the
/// archiver tries again at once.
fn killing(odds: u32, command: &str) -> String {
    format!(
        "bash -c \"{command} & pid=\\$!; \
         if [ \\$((RANDOM %% {odds})) = 0 ]; then sleep 0.0\\$((RANDOM %% 6))\\$((RANDOM %% 10)); kill -9 \\$pid; fi; \
         wait \\$pid || exit 1\" 2>/dev/null"
    )
}

#[test]
fn what_was_archived_while_pushes_were_killed_recovers_completely() {
    for (major, encryption) in [(14, "none"), (17, "aes-256-gcm")] {
        let prepare = |pgkeep: Pgkeep| match encryption {
            "none" => pgkeep,
            mode => pgkeep.encrypting(mode),
        };
        let (cluster, pgkeep) = archiving(major, &small_segments(), prepare, |pgkeep| {
            killing(3, &pgkeep.archive_command())
        });
        let before = Before::of(&cluster);
        pgkeep.backup();
        let load = Load::on(&cluster);
        wait_until("forty segments are archived", || {
            segments_of(&pgkeep).len() > 40
        });
        load.stop();
        let last = switch(&cluster);
        wait_until_archived(&pgkeep, &last);
        let history = cluster.number("select count(*) from pgbench_history");
        drop(cluster);

        let data = pgkeep.restore("newest");
        recover_with(&data, &pgkeep.restore_command());
        let restored = checks::is_whole(major, &data, &before, history);
        assert_eq!(
            restored.number("select count(*) from pgbench_history"),
            history
        );
    }
}
