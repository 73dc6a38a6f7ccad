//! What is stored can be undone without pgkeep, whatever compressed it.

use crate::support::checks::{self, Before};
use crate::support::pgkeep::SERVER;
use crate::support::{Cluster, Pgkeep};

fn standard_tools_undo(compression: &str, level: Option<&str>) {
    let cluster = Cluster::new(16);
    let before = Before::of(&cluster);
    let mut pgkeep = Pgkeep::of(&cluster).with("compression", compression);
    if let Some(level) = level {
        pgkeep = pgkeep.with("compression_level", level);
    }
    let backup = pgkeep.backup();
    let info = pgkeep.ok(&["--format", "json", "info", SERVER, "newest"]);
    assert_eq!(info.at("Response.Compression"), compression);
    let smaller = info.number("Response.BackupSize") < info.number("Response.RestoreSize") / 2;
    assert_eq!(smaller, compression != "none", "{}", info.0);
    checks::sha512sum(&backup.folder);
    pgkeep.ok(&["verify", SERVER, "newest"]);

    let plain = checks::undo_with_standard_tools(&backup.folder, pgkeep.ground());
    checks::pg_verifybackup(16, &plain);
    let data = pgkeep.restore("newest");
    checks::is_whole(16, &data, &before, 0);
}

#[test]
fn zstd_undoes_a_backup_in_zstd() {
    standard_tools_undo("zstd", Some("9"));
}

#[test]
fn gzip_undoes_a_backup_in_gzip() {
    standard_tools_undo("gzip", Some("1"));
}

#[test]
fn lz4_undoes_a_backup_in_lz4() {
    standard_tools_undo("lz4", None);
}

#[test]
fn bzip2_undoes_a_backup_in_bzip2() {
    standard_tools_undo("bzip2", Some("1"));
}

#[test]
fn nothing_undoes_a_backup_that_is_not_compressed() {
    standard_tools_undo("none", None);
}

#[test]
fn an_uncompressed_backup_is_a_plain_data_directory() {
    for major in crate::support::versions(&crate::support::VERSIONS) {
        let cluster = Cluster::new(major);
        let pgkeep = Pgkeep::of(&cluster).with("compression", "none");
        let backup = pgkeep.backup();
        checks::pg_verifybackup(major, &backup.folder.join("data"));
        assert!(!backup.folder.join("bundles").exists());
    }
}

#[test]
fn a_cluster_of_many_small_files_is_stored_in_few() {
    let cluster = Cluster::new(17);
    cluster.sql(
        "do $$ begin for i in 1..400 loop
             execute format('create table small_%s (id int primary key, body text)', i);
             execute format('insert into small_%s values (%s, %L)', i, i, repeat('x', 10));
         end loop; end $$",
    );
    let before = Before::of(&cluster);
    let pgkeep = Pgkeep::of(&cluster);
    let backup = pgkeep.backup();
    let stored = checks::files(&backup.folder).len();
    assert!(
        stored < 500,
        "{stored} files for a cluster of more than 2000"
    );
    let plain = checks::undo_with_standard_tools(&backup.folder, pgkeep.ground());
    checks::pg_verifybackup(17, &plain);
    let data = pgkeep.restore("newest");
    let restored = checks::is_whole(17, &data, &before, 0);
    assert_eq!(restored.value("select body from small_400"), "xxxxxxxxxx");
}

#[test]
fn any_number_of_workers_gives_a_whole_backup() {
    let cluster = Cluster::new(18);
    let before = Before::of(&cluster);
    for workers in ["1", "5"] {
        let pgkeep = Pgkeep::of(&cluster);
        pgkeep.ok(&["-j", workers, "backup", SERVER]);
        pgkeep.ok(&["-j", workers, "verify", SERVER, "newest"]);
        let data = pgkeep.restore_with("newest", &["--workers", workers]);
        checks::is_whole(18, &data, &before, 0);
    }
}

#[test]
fn max_rate_slows_a_backup_down() {
    let cluster = Cluster::new(17);
    let bytes = cluster.number("select sum(pg_database_size(oid))::bigint from pg_database");
    let pgkeep = Pgkeep::of(&cluster).with("max_rate", "16MB");
    let begin = std::time::Instant::now();
    pgkeep.backup();
    let took = begin.elapsed().as_secs_f64();
    let least = bytes as f64 / (16.0 * 1024.0 * 1024.0);
    // How much longer it takes is up to whatever else the machine has to do.
    assert!(took > least * 0.7, "{bytes} bytes in {took} s");
}
