//! The test ground itself: what every other test relies on.

use crate::support::checks;
use crate::support::cluster::Postmaster;
use crate::support::{Cluster, Load, VERSIONS, versions};

#[test]
fn every_version_starts_takes_load_survives_a_kill_and_is_found_whole() {
    for major in versions(&VERSIONS) {
        let mut cluster = Cluster::new(major);
        let quiet = checks::dump(&cluster, "quiet");
        let load = Load::on(&cluster);
        let rounds = load.rounds();
        crate::support::wait_until("another round is done", || load.rounds() > rounds);
        cluster.stop(Postmaster::Killed);
        load.stop();
        cluster.start();
        checks::assert_invariant(&cluster);
        checks::pg_amcheck(&cluster);
        assert_eq!(checks::dump(&cluster, "quiet"), quiet);
    }
}

#[test]
fn a_standby_follows_and_is_promoted() {
    let primary = Cluster::new(17);
    let standby = primary.standby();
    primary.sql("create table news as select 42 as answer");
    standby.catch_up_with(&primary);
    assert_eq!(standby.value("select answer from news"), "42");
    standby.sql("select pg_promote()");
    standby.wait_until_writable();
}

#[test]
fn the_binary_is_one_static_file() {
    let ldd = std::process::Command::new("ldd")
        .arg(crate::support::pgkeep::binary())
        .output()
        .unwrap();
    let said = [ldd.stdout, ldd.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        said.contains("statically linked") || said.contains("not a dynamic executable"),
        "{said}"
    );
}
