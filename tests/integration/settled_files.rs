//! Files that are no relations, which replay does not mend: each comes whole and from one moment, however often it
//! is replaced, grown or cut between the listing and its turn.

use std::fs;
use std::path::Path;

use crate::support::account;
use crate::support::cluster::{Options, Postmaster};
use crate::support::pgkeep::{SERVER, wait_until_copying};
use crate::support::{Cluster, Pgkeep, checks};

/// Slow enough that small files have their turn long after they were listed.
const MAX_RATE: &str = "8MB";

/// Puts another file in the place of one, as editors and PostgreSQL itself do.
fn replace(path: &Path, content: &[u8]) {
    let beside = path.with_extension("beside");
    fs::write(&beside, content).unwrap();
    account::give(&beside);
    fs::rename(&beside, path).unwrap();
}

fn origins(cluster: &Cluster) -> Vec<Vec<String>> {
    cluster.sql("select local_id, remote_lsn from pg_replication_origin_status order by 1")
}

fn what_replaces_a_listed_file_comes_whole(major: u32) {
    let mut cluster = Cluster::stopped(major, &Options::default());
    cluster.set("autovacuum = off");
    let data = cluster.data().to_owned();
    let extra = cluster.ground().file("extra.conf", "short\n");
    cluster.start();
    let create = |origin: u32| {
        cluster.sql(&format!(
            "select pg_replication_origin_create('origin {origin}');
             select pg_replication_origin_advance('origin {origin}', '0/{origin}00');
             checkpoint"
        ));
    };
    create(1);
    replace(&data.join("base/grows"), b"");
    replace(&data.join("base/shrinks"), &[7; 100_000]);
    replace(&data.join("large"), &[1; 3 << 20]);
    let pgkeep = Pgkeep::of(&cluster)
        .with("max_rate", MAX_RATE)
        .with_server("extra", extra.to_str().unwrap());

    let mut running = pgkeep.spawn(&["backup", SERVER]);
    wait_until_copying(&mut running, &pgkeep);
    create(2);
    create(3);
    let long = "x".repeat(300);
    cluster.sql(&format!("alter system set log_line_prefix = '{long}'"));
    let hba = fs::read(data.join("pg_hba.conf")).unwrap();
    let hba = [&hba[..], &b"# a line that came later\n".repeat(500)].concat();
    replace(&data.join("pg_hba.conf"), &hba);
    replace(&extra, &b"much longer\n".repeat(20_000));
    replace(&data.join("base/grows"), &[2; 400_000]);
    replace(&data.join("base/shrinks"), b"little");
    let large: Vec<u8> = (0..5_u32 << 20).map(|at| (at / 1000) as u8).collect();
    replace(&data.join("large"), &large);
    assert!(running.is_running(), "the backup ended too early");
    let backup = pgkeep.finished(&running.wait().succeeded());

    pgkeep.ok(&["verify", SERVER, &backup.identifier]);
    checks::sha512sum(&backup.folder);
    let restored = pgkeep.restore(&backup.identifier);
    checks::pg_verifybackup(major, &restored);
    assert!(fs::read(restored.join("pg_hba.conf")).unwrap() == hba);
    assert!(fs::read(restored.join("base/grows")).unwrap() == [2; 400_000]);
    assert_eq!(fs::read(restored.join("base/shrinks")).unwrap(), b"little");
    assert!(fs::read(restored.join("large")).unwrap() == large);
    let kept = checks::files(&pgkeep.backups()).into_iter().find(|file| {
        file.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("extra.conf")
    });
    assert!(kept.is_some(), "extra.conf is not in the backup");
    // With a checkpoint of origins that is cut off no server starts.
    let mut restored = Cluster::restored(major, &restored);
    assert_eq!(origins(&restored), origins(&cluster));
    assert_eq!(restored.value("show log_line_prefix"), long);
    restored.stop(Postmaster::Fast);
}

#[test]
fn what_replaces_a_listed_file_of_14_comes_whole() {
    what_replaces_a_listed_file_comes_whole(14);
}

#[test]
fn what_replaces_a_listed_file_of_18_comes_whole() {
    what_replaces_a_listed_file_comes_whole(18);
}
