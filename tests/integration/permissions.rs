//! A role that is no superuser, with exactly what pgkeep says it needs.

use crate::support::checks::{self, Before};
use crate::support::cluster::Options;
use crate::support::pgkeep::SERVER;
use crate::support::{Cluster, Pgkeep, VERSIONS, versions};

#[test]
fn the_printed_grants_are_all_a_role_needs_on_every_version() {
    for major in versions(&VERSIONS) {
        let cluster = Cluster::new(major);
        let before = Before::of(&cluster);
        cluster.sql("create role keeper login");
        let pgkeep = Pgkeep::of(&cluster).with_server("user", "keeper");

        let error = pgkeep.run(&["backup", SERVER]).failed(5);
        assert!(
            error.contains("keeper") || error.contains("grant") || error.contains("GRANT"),
            "{error}"
        );
        pgkeep.run(&["check", SERVER]).failed(5);
        assert!(!pgkeep.backups().exists() || checks::tree(&pgkeep.backups()).is_empty());

        let grants = printed_grants(&pgkeep);
        cluster.sql(&grants);
        pgkeep.ok(&["check", SERVER]);
        pgkeep.backup();
        cluster.assert_nothing_is_left();
        let data = pgkeep.restore("newest");
        checks::is_whole(major, &data, &before, 0);

        // That nobody is in the way of a backup is granted only if it is wanted.
        let optional = grants.lines().find(|line| line.contains("MAINTAIN"));
        assert_eq!(optional.is_some(), major >= 17);
        if let Some(grant) = optional {
            cluster.sql(grant.strip_prefix("-- ").unwrap());
            cluster.sql(
                "set session authorization keeper; begin;
                 lock table pg_catalog.pg_database, pg_catalog.pg_tablespace in share mode",
            );
        }
    }
}

#[test]
fn each_grant_that_is_missing_is_named() {
    let cluster = Cluster::new(17);
    cluster.sql("create role keeper login");
    // A stream can do without most of it.
    let pgkeep = Pgkeep::of(&cluster).with("source", "sql");
    let pgkeep = pgkeep.with_server("user", "keeper");
    let grants = printed_grants(&pgkeep);
    let statements: Vec<&str> = grants
        .lines()
        .filter(|line| line.starts_with("GRANT") || line.starts_with("ALTER ROLE"))
        .collect();
    assert!(statements.len() > 4, "{grants}");
    for left_out in &statements {
        cluster.sql("drop owned by keeper; drop role keeper; create role keeper login");
        for statement in statements.iter().filter(|one| *one != left_out) {
            cluster.sql(statement);
        }
        let run = pgkeep.run(&["backup", SERVER]);
        if left_out.contains("pg_read_all_settings") {
            // Welcome, not needed: it tells where the server's log is.
            run.succeeded();
            continue;
        }
        assert_eq!(run.status.code(), Some(5), "without {left_out}: {run:?}");
        let said = format!("{}{}", run.stdout, run.stderr);
        let subject = subject_of(left_out);
        assert!(
            said.contains(subject),
            "{subject} of {left_out:?} is not named: {said}"
        );
    }
}

/// The word that a refusal must mention: the function, the role or the attribute.
fn subject_of(statement: &str) -> &str {
    let words: Vec<&str> = statement.split([' ', '(', ';']).collect();
    words
        .iter()
        .find(|word| word.contains("pg_") || word.eq_ignore_ascii_case("replication"))
        .copied()
        .unwrap_or_else(|| panic!("{statement}"))
}

/// The SQL that `pgkeep permissions` prints, for psql to read.
fn printed_grants(pgkeep: &Pgkeep) -> String {
    let run = pgkeep.run(&["permissions", SERVER]);
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    let report = pgkeep.ok(&["--format", "json", "permissions", SERVER]);
    assert_eq!(report.at("Response.SQL").trim(), run.stdout.trim());
    run.stdout
}

#[test]
fn check_says_what_a_server_lacks() {
    let mut cluster = Cluster::stopped(16, &Options::default());
    cluster.set("wal_level = minimal\nmax_wal_senders = 0");
    cluster.start();
    let pgkeep = Pgkeep::of(&cluster).with("source", "auto");
    let run = pgkeep.run(&["check", SERVER]);
    run.failed(5);
    assert!(run.stdout.contains("wal_level"), "{run:?}");
    let error = pgkeep.run(&["backup", SERVER]).failed(5);
    assert!(error.contains("wal_level"), "{error}");
}

#[test]
fn a_server_that_is_not_there_is_said_to_be_not_there() {
    let mut cluster = Cluster::new(17);
    cluster.stop(crate::support::cluster::Postmaster::Fast);
    let pgkeep = Pgkeep::of(&cluster);
    for command in ["backup", "check"] {
        let error = pgkeep.run(&[command, SERVER]).failed(5);
        assert!(
            error.contains(cluster.socket().to_str().unwrap()),
            "{command}: {error}"
        );
    }
}
