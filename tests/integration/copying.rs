//! `wal copy`: everything a server has and the archive has not, and loud where WAL is gone.

use crate::support::archive::{small_segments, switch};
use crate::support::checks::{self};
use crate::support::pgkeep::SERVER;
use crate::support::report::Report;
use crate::support::{Cluster, Pgkeep, VERSIONS};

/// The segments that a server names as whole, from the first it has on.
fn whole_segments(cluster: &Cluster) -> Vec<String> {
    let rows = cluster.sql(
        "select name from pg_ls_waldir() where name ~ '^[0-9A-F]{24}$' and name < pg_walfile_name(pg_current_wal_flush_lsn()) order by 1",
    );
    rows.into_iter().map(|row| row[0].clone()).collect()
}

fn copy(pgkeep: &Pgkeep) -> Report {
    pgkeep.ok(&["-F", "json", "wal", "copy", SERVER])
}

#[test]
fn one_run_copies_what_there_is_and_the_next_one_nothing() {
    for major in VERSIONS {
        let cluster = Cluster::with(major, &small_segments());
        let pgkeep = Pgkeep::of(&cluster);
        for _ in 0..5 {
            switch(&cluster);
        }
        cluster.sql("create table more as select generate_series(1, 1000) i");
        let whole = whole_segments(&cluster);
        let report = copy(&pgkeep);
        assert_eq!(
            report.number("Response.Segments"),
            whole.len() as u64,
            "{major}"
        );
        assert_eq!(
            report.find("Response.Gaps").unwrap(),
            &serde_json::json!([])
        );
        let current = cluster.value("select pg_walfile_name(pg_current_wal_flush_lsn())");
        assert_eq!(report.at("Response.Partial.WAL"), current);
        let mut expected = whole.clone();
        expected.push(format!("{current}.partial"));
        assert_eq!(pgkeep.archived().into_iter().collect::<Vec<_>>(), expected);

        // The server itself adds to the unfinished segment now and then.
        let state = || {
            let mut state = checks::state(&pgkeep.wal());
            state.retain(|(path, ..)| {
                path.is_file() && !path.to_string_lossy().contains(".partial")
            });
            state
        };
        let before = state();
        let report = copy(&pgkeep);
        assert_eq!(report.number("Response.Segments"), 0);
        assert_eq!(state(), before, "nothing is new, and something was written");

        switch(&cluster);
        assert_eq!(copy(&pgkeep).number("Response.Segments"), 1);
        let archived = pgkeep.archived();
        assert!(archived.contains(&current) && !archived.contains(&format!("{current}.partial")));
        assert_eq!(pgkeep.incoming(), 0);
    }
}
