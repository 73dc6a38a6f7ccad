//! `wal push` and `wal get` under real servers: nothing that was acknowledged is lost, whatever is
//! killed, and nothing that is damaged is handed out.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::archive::{
    archiving, recover_with, small_segments, switch, wait_until_archived,
};
use crate::support::checks;
use crate::support::cluster::{Options, Postmaster};
use crate::support::pgkeep::SERVER;
use crate::support::small_disk::SmallDisk;
use crate::support::{Cluster, PATIENCE, Pgkeep, account, wait_until};

/// As it comes.
fn plainly(pgkeep: Pgkeep) -> Pgkeep {
    pgkeep
}

/// The archived segments that are whole.
fn segments_of(pgkeep: &Pgkeep) -> Vec<String> {
    let archived = pgkeep.archived().into_iter();
    archived.filter(|name| name.len() == 24).collect()
}

/// Kills a command at a random moment every other time, and tries again.
fn killed_and_tried_again(command: &str) -> String {
    format!(
        "bash -c \"for i in 1 2 3 4 5 6 7 8 9; do {command} & pid=\\$!; \
         if [ \\$((RANDOM %% 2)) = 0 ]; then sleep 0.0\\$((RANDOM %% 6))\\$((RANDOM %% 10)); kill -9 \\$pid; fi; \
         wait \\$pid && exit 0; done; exit 1\" 2>/dev/null"
    )
}

/// Kills a command at a random moment now and then, as a signal to the server.
fn killed_sometimes(command: &str) -> String {
    format!(
        "bash -c \"{command} & pid=\\$!; \
         if [ \\$((RANDOM %% 15)) = 0 ]; then sleep 0.0\\$((RANDOM %% 4))\\$((RANDOM %% 10)); kill -9 \\$pid; fi; \
         wait \\$pid\" 2>/dev/null"
    )
}

#[test]
fn what_was_archived_and_fetched_while_both_were_killed_is_complete() {
    for (major, encryption) in [(14, "none"), (17, "aes-256-gcm")] {
        let prepare = |pgkeep: Pgkeep| match encryption {
            "none" => pgkeep,
            mode => pgkeep.encrypting(mode),
        };
        let (cluster, pgkeep) = archiving(major, &small_segments(), prepare, |pgkeep| {
            killed_and_tried_again(&pgkeep.archive_command())
        });
        let quiet = checks::dump(&cluster, "quiet");
        pgkeep.backup();
        pgbench(&cluster, "3");
        let last = switch(&cluster);
        wait_until_archived(&pgkeep, &last);
        let history = cluster.number("select count(*) from pgbench_history");
        drop(cluster);
        let gaps = pgkeep.ok(&["-F", "json", "wal", "list", SERVER]);
        assert_eq!(gaps.find("Response.Gaps").unwrap(), &serde_json::json!([]));

        let data = pgkeep.restore("newest");
        recover_with(&data, &killed_sometimes(&pgkeep.restore_command()));
        let mut restored = Cluster::adopt(major, &data);
        let stops = start_until_recovered(&mut restored, &pgkeep.restore_command());
        eprintln!("the recovery of {major} was stopped {stops} times");
        assert_eq!(
            restored.number("select count(*) from pgbench_history"),
            history,
            "transactions are lost"
        );
        checks::assert_invariant(&restored);
        assert_eq!(checks::dump(&restored, "quiet"), quiet);
        checks::pg_amcheck(&restored);
    }
}

/// Runs transactions for so many seconds.
fn pgbench(cluster: &Cluster, seconds: &str) {
    account::run(
        cluster
            .tool("pgbench")
            .args(["-n", "-c", "2", "-T", seconds]),
    );
}

/// A killed command stops a recovery, which begins anew at the next start. Gives how often that was. After
/// some times the command is one that is left alone, since there may be more to fetch than ever comes through.
fn start_until_recovered(cluster: &mut Cluster, left_alone: &str) -> u32 {
    let give_up = Instant::now() + PATIENCE;
    let mut stops = 0;
    loop {
        assert!(Instant::now() < give_up, "{}", cluster.log());
        if stops == 10 {
            recover_with(cluster.data(), left_alone);
        }
        if cluster.try_start().is_err() {
            stops += 1;
            continue;
        }
        while !cluster.has_ended() {
            let recovered = cluster.connect("postgres").and_then(|mut client| {
                let row = client.query_one("select not pg_is_in_recovery()", &[])?;
                row.try_get(0)
            });
            if recovered.unwrap_or(false) {
                return stops;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        stops += 1;
    }
}

/// A segment that the server has closed, as a file in its data directory.
fn closed_segment(cluster: &Cluster) -> String {
    format!("pg_wal/{}", switch(cluster))
}

/// Two segments that are full to the end, so that a record crosses from one into the other.
fn full_segments(cluster: &Cluster) -> [String; 2] {
    switch(cluster);
    let first = cluster.value("select pg_walfile_name(pg_current_wal_insert_lsn() + 1)");
    cluster.sql(
        "create table wide as select repeat(md5(i::text), 100) from generate_series(1, 30000) i",
    );
    let next = format!(
        "select min(name) from pg_ls_waldir() where name > '{first}' and name < pg_walfile_name(pg_current_wal_flush_lsn())"
    );
    let second = cluster.value(&next);
    [first, second]
}

fn push(pgkeep: &Pgkeep, folder: &Path, path: &str) -> std::process::Output {
    pgkeep.output_in(folder, &["wal", "push", SERVER, path])
}

/// The push fails and says so, and nothing comes of it.
fn assert_refused(output: &std::process::Output, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    let status = output.status.code().unwrap();
    assert!((1..=125).contains(&status), "{status}: {said}");
    assert!(said.contains(words), "not {words:?} but {said}");
}

#[test]
fn pushing_again_is_fine_and_other_content_is_refused() {
    let cluster = Cluster::with(16, &small_segments());
    let pgkeep = Pgkeep::of(&cluster);
    let data = cluster.data();
    let path = closed_segment(&cluster);
    for _ in 0..3 {
        let output = push(&pgkeep, data, &path);
        assert!(output.status.success(), "{output:?}");
        assert!(
            output.stdout.is_empty() && output.stderr.is_empty(),
            "{output:?}"
        );
    }
    // However it is stored now.
    let pgkeep = pgkeep.with("compression", "lz4");
    assert!(push(&pgkeep, data, &path).status.success());
    let state = checks::state(&pgkeep.wal());

    let folder = pgkeep.ground().folder("pg_wal");
    let name = path.strip_prefix("pg_wal/").unwrap();
    let forged = folder.join(name);
    fs::copy(data.join(&path), &forged).unwrap();
    let file = fs::File::options().write(true).open(&forged).unwrap();
    file.write_all_at(b"x", 700_000).unwrap();
    account::give(&forged);
    assert_refused(
        &push(&pgkeep, data, forged.to_str().unwrap()),
        "other content",
    );
    assert_eq!(checks::state(&pgkeep.wal()), state, "something was changed");

    let report = pgkeep.ok(&[
        "-F",
        "json",
        "wal",
        "push",
        SERVER,
        data.join(&path).to_str().unwrap(),
    ]);
    assert_eq!(report.at("Response.Already"), "true");
}

#[test]
fn a_timeline_that_another_server_has_taken_is_refused_and_explained() {
    let (primary, pgkeep) = archiving(17, &small_segments(), plainly, Pgkeep::archive_command);
    let [first, second] = [primary.standby(), primary.standby()];
    for (standby, number) in [(&first, 1), (&second, 2)] {
        // What the two histories say of the primary's end differs.
        primary.sql(&format!("create table t{number} (i int)"));
        standby.catch_up_with(&primary);
        standby.sql("select pg_promote()");
        standby.wait_until_writable();
        if number == 1 {
            wait_until_archived(&pgkeep, "00000002.history");
        }
    }
    let output = push(&pgkeep, second.data(), "pg_wal/00000002.history");
    assert_refused(
        &output,
        "a standby that was promoted, has taken this timeline's number",
    );
    assert_refused(&output, "a name of its own in the configuration");
    // The archive has the first one's still.
    assert!(
        push(&pgkeep, first.data(), "pg_wal/00000002.history")
            .status
            .success()
    );
}

#[test]
fn what_is_no_sound_wal_of_this_cluster_is_refused() {
    let cluster = Cluster::with(17, &small_segments());
    let pgkeep = Pgkeep::of(&cluster);
    let [before, name] = full_segments(&cluster);
    let sound = fs::read(cluster.data().join("pg_wal").join(&name)).unwrap();
    let name = name.as_str();
    let folder = pgkeep.ground().folder("pg_wal");
    let push_changed = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut content = sound.clone();
        change(&mut content);
        fs::write(folder.join(name), content).unwrap();
        account::give(&folder.join(name));
        push(&pgkeep, &folder, name)
    };
    assert_refused(&push_changed("something", &|_| ()), "not named");
    assert_refused(
        &push_changed(name, &|content| content.truncate(1 << 19)),
        "bytes",
    );
    assert_refused(
        &push_changed(name, &|content| content.clear()),
        "no WAL segment",
    );
    assert_refused(
        &push_changed(name, &|content| content[..40].fill(0)),
        "no WAL segment",
    );
    // The record that crosses into it is checked with the segment before.
    assert!(
        push(&pgkeep, cluster.data(), &format!("pg_wal/{before}"))
            .status
            .success()
    );
    for place in [1, 9, 27, 48, 100, 9000, 500_000, sound.len() - 500] {
        // No checksum covers the zeros between two records.
        let place = (place..).find(|at| sound[*at] != 0).unwrap();
        let output = push_changed(name, &|content| content[place] ^= 1);
        assert_refused(&output, &before[..0]);
    }
    let half = sound.len() / 2;
    assert_refused(
        &push_changed(name, &|content| content[half..].fill(0)),
        "not archived",
    );
    let later = format!("{}FF", &name[..22]);
    assert_refused(&push_changed(&later, &|_| ()), "another segment");
    assert_refused(
        &push_changed("00000002.history", &|_| ()),
        "00000002.history",
    );
    assert_refused(
        &push_changed(&format!("{name}.00000028.backup"), &|_| ()),
        "backup history",
    );
    assert_eq!(pgkeep.archived().into_iter().collect::<Vec<_>>(), [before]);
    assert_eq!(pgkeep.incoming(), 0);

    assert!(push_changed(name, &|_| ()).status.success());
    let other = Cluster::with(16, &small_segments());
    let output = push(&pgkeep, other.data(), &closed_segment(&other));
    assert_refused(&output, "holds the WAL of cluster");
    // Neither is a history file of another cluster taken: the control file beside it tells.
    let history = other.data().join("pg_wal/00000002.history");
    fs::write(&history, "1\t0/3000000\tno recovery target specified\n").unwrap();
    account::give(&history);
    let output = push(&pgkeep, other.data(), "pg_wal/00000002.history");
    assert_refused(&output, "holds the WAL of cluster");
}

#[test]
fn the_wal_of_another_cluster_than_the_backups_is_refused() {
    let cluster = Cluster::with(17, &small_segments());
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let other = Cluster::with(15, &small_segments());
    let output = push(&pgkeep, other.data(), &closed_segment(&other));
    assert_refused(&output, "backup");
    assert!(pgkeep.archived().is_empty());
}

/// Asks for a file as a recovering server does.
fn get(pgkeep: &Pgkeep, arguments: &[&str]) -> (i32, String) {
    let folder = pgkeep.ground().path();
    let all = [&["wal", "get"], arguments].concat();
    let output = pgkeep.output_in(folder, &all);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    (output.status.code().unwrap(), said)
}

#[test]
fn a_mistake_elsewhere_in_the_configuration_stops_neither_archiving_nor_recovery() {
    let cluster = Cluster::with(17, &small_segments());
    let pgkeep = Pgkeep::of(&cluster);
    let right = fs::read_to_string(pgkeep.configuration()).unwrap();
    let main = "[pgkeep]\nlog_level = loud\nretention = never\n";
    let wrong = right.replacen("[pgkeep]\n", main, 1) + "[other]\nhoost = nowhere\n";
    pgkeep.configure(&wrong);
    pgkeep.run(&["list-backup", SERVER]).failed(2);
    let path = closed_segment(&cluster);
    let output = push(&pgkeep, cluster.data(), &path);
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("log_level"), "{said}");
    let name = path.strip_prefix("pg_wal/").unwrap();
    assert_eq!(get(&pgkeep, &[SERVER, name, "x"]).0, 0);
    // Of its own server's files all must be right.
    pgkeep.configure(&right.replacen("[pgkeep]\n", "[pgkeep]\nencrypton = aes\n", 1));
    assert_eq!(get(&pgkeep, &[SERVER, name, "y"]).0, 126);
}

#[test]
fn only_what_is_certainly_not_held_has_exit_status_1() {
    let cluster = Cluster::with(17, &small_segments());
    let pgkeep = Pgkeep::of(&cluster);
    let absent = "0000000100000000000000FF";
    let (status, said) = get(&pgkeep, &[SERVER, absent, "x"]);
    assert_eq!(status, 126, "no archive at all: {said}");
    assert!(said.contains("no WAL archive"), "{said}");

    let path = closed_segment(&cluster);
    assert!(push(&pgkeep, cluster.data(), &path).status.success());
    let name = path.strip_prefix("pg_wal/").unwrap();
    for held in [absent, "00000002.history", &format!("{name}.partial")] {
        assert_eq!(
            get(&pgkeep, &[SERVER, held, "x"]),
            (1, String::new()),
            "{held}"
        );
    }
    assert_eq!(
        get(&pgkeep, &[SERVER, name, "RECOVERYXLOG"]),
        (0, String::new())
    );
    let target = pgkeep.ground().path().join("RECOVERYXLOG");
    assert!(fs::read(&target).unwrap() == fs::read(cluster.data().join(&path)).unwrap());

    for wrong in [
        &[SERVER][..],
        &[SERVER, name],
        &[SERVER, name, "x", "y"],
        &[SERVER, name, "x", "--unknown"],
        &[SERVER, "RECOVERYXLOG", "x"],
        &["another", name, "x"],
        &[SERVER, name, "no/such/folder"],
        &[SERVER, name, "--config", "no/such/file", "x"],
    ] {
        let (status, said) = get(&pgkeep, wrong);
        assert_eq!(status, 126, "{wrong:?}: {said}");
    }
    // Later segments are here: that is a gap, and said.
    let first = format!("{}00", &name[..22]);
    let (status, said) = get(&pgkeep, &[SERVER, &first, "x"]);
    assert!(status == 1 && said.contains("missing"), "{status} {said}");

    // A disk that is not mounted is no empty archive.
    fs::rename(pgkeep.base(), pgkeep.ground().path().join("elsewhere")).unwrap();
    pgkeep.ground().folder("keep");
    assert_eq!(get(&pgkeep, &[SERVER, absent, "x"]).0, 126);
    assert!(!pgkeep.ground().path().join("x").exists());
}

#[test]
fn a_damaged_segment_is_never_handed_out() {
    for compression in ["none", "zstd"] {
        let cluster = Cluster::with(17, &small_segments());
        let pgkeep = Pgkeep::of(&cluster).with("compression", compression);
        let [_, name] = &full_segments(&cluster);
        pgkeep.ok(&["wal", "copy", SERVER]);
        let file = fs::read_dir(pgkeep.wal())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| {
                let file = path.file_name().unwrap().to_str().unwrap();
                file.starts_with(name.as_str()) && !file.contains("partial")
            })
            .unwrap();
        let target = pgkeep.ground().path().join("RECOVERYXLOG");
        assert_eq!(get(&pgkeep, &[SERVER, name, "RECOVERYXLOG"]).0, 0);
        let sound = fs::read(&target).unwrap();
        assert!(sound == fs::read(cluster.data().join("pg_wal").join(name)).unwrap());

        let stored = fs::read(&file).unwrap();
        // The page header, the end of a record that began before, and everywhere.
        let mut places = vec![3, 24, 45, 60, 120];
        places.extend((0..40).map(|part| part * stored.len() / 40 + part));
        for place in places {
            let mut damaged = stored.clone();
            damaged[place] ^= 0x10;
            fs::write(&file, &damaged).unwrap();
            fs::remove_file(&target).unwrap_or_default();
            let (status, said) = get(&pgkeep, &[SERVER, name, "RECOVERYXLOG"]);
            // What is decompressed to the same is the same; and nothing says what records are padded with.
            let is_same = status == 0 && fs::read(&target).unwrap() == sound;
            let is_padding = compression == "none" && stored[place] == 0;
            assert!(
                (status == 126 && !target.exists()) || is_same || is_padding,
                "{compression}, byte {place}: {status} {said}"
            );
            let left = target.with_extension("pgkeep");
            assert!(!left.exists());
        }
        for length in [0, 1, stored.len() / 2, stored.len() - 1] {
            fs::write(&file, &stored[..length]).unwrap();
            assert_eq!(get(&pgkeep, &[SERVER, name, "x"]).0, 126, "{length}");
        }
    }
}

#[test]
fn an_archive_whose_disk_is_full_loses_nothing() {
    if !account::is_root() {
        return;
    }
    let small = SmallDisk::new("6m");
    let prepare = |pgkeep: Pgkeep| pgkeep.with_base(&small.folder).with("compression", "none");
    let (cluster, pgkeep) = archiving(15, &small_segments(), prepare, Pgkeep::archive_command);
    cluster.sql("create table more as select i, repeat('x', 500) from generate_series(1, 20000) i");
    let last = switch(&cluster);
    wait_until("a push has failed", || {
        cluster.number("select failed_count from pg_stat_archiver") > 0
    });
    assert!(
        cluster.log().contains("free some space"),
        "{}",
        cluster.log()
    );
    let held = segments_of(&pgkeep);
    assert!(!held.contains(&last));
    // The archiver may be trying again at this moment.
    cluster.sql("alter system set archive_command = 'false'");
    cluster.sql("select pg_reload_conf()");
    wait_until("nothing half written is left", || pgkeep.incoming() == 0);
    cluster.sql("alter system reset archive_command");
    cluster.sql("select pg_reload_conf()");
    small.grow("200m");
    // The archiver waits for a minute after three failures, unless there is something new.
    wait_until("all is archived", || {
        switch(&cluster);
        segments_of(&pgkeep).contains(&last)
    });
    assert_eq!(
        pgkeep
            .ok(&["-F", "json", "wal", "list", SERVER])
            .find("Response.Gaps")
            .unwrap(),
        &serde_json::json!([])
    );
}

#[test]
fn many_that_store_the_same_segments_at_once_agree() {
    let cluster = Cluster::with(17, &small_segments());
    let pgkeep = Pgkeep::of(&cluster);
    let paths: Vec<PathBuf> = (0..4)
        .map(|_| cluster.data().join(closed_segment(&cluster)))
        .collect();
    let mut running = Vec::new();
    for path in &paths {
        for _ in 0..3 {
            running.push(pgkeep.spawn(&["wal", "push", SERVER, path.to_str().unwrap()]));
        }
    }
    running.push(pgkeep.spawn(&["wal", "copy", SERVER]));
    for running in running {
        let run = running.wait();
        assert_eq!(run.status.code(), Some(0), "{run:?}");
    }
    assert_eq!(pgkeep.incoming(), 0);
    for path in &paths {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(get(&pgkeep, &[SERVER, name, "x"]).0, 0);
        assert!(fs::read(pgkeep.ground().path().join("x")).unwrap() == fs::read(path).unwrap());
    }
}

#[test]
fn a_timeline_that_was_left_is_archived_with_all_that_belongs_to_it() {
    let (mut primary, pgkeep) = archiving(17, &small_segments(), plainly, Pgkeep::archive_command);
    let backup = pgkeep.backup();
    let standby = primary.standby();
    primary.sql("create table first as select generate_series(1, 5000) i");
    standby.catch_up_with(&primary);
    primary.stop(Postmaster::Fast);
    standby.sql("select pg_promote()");
    standby.wait_until_writable();
    standby.sql("create table second as select generate_series(1, 5000) i");
    let last = switch(&standby);
    assert_eq!(&last[..8], "00000002");
    wait_until_archived(&pgkeep, &last);
    let archived = pgkeep.archived();
    assert!(archived.contains("00000002.history"));
    let partial = archived.iter().find(|name| name.ends_with(".partial"));
    let partial = partial.expect("the segment that was left").clone();

    let report = pgkeep.ok(&["-F", "json", "wal", "list", SERVER]);
    assert_eq!(
        report.find("Response.Gaps").unwrap(),
        &serde_json::json!([])
    );
    assert_eq!(report.at("Response.Timelines.1.Timeline"), "2");
    assert_eq!(report.at("Response.Timelines.1.Parent"), "1");
    for timeline in ["0", "1"] {
        let backups = format!("Response.Timelines.{timeline}.Parts.0.Backups.0");
        assert_eq!(report.at(&backups), backup.identifier);
    }

    // A standby that archives by itself gives it the whole one's name, with anything behind the switch.
    let folder = pgkeep.ground().folder("pg_wal");
    let whole = partial.strip_suffix(".partial").unwrap();
    assert_eq!(
        get(&pgkeep, &[SERVER, &partial, &format!("pg_wal/{whole}")]).0,
        0
    );
    let stored = pgkeep.wal().join(format!("{partial}.zstd"));
    fs::remove_file(&stored).unwrap();
    let output = push(&pgkeep, &folder, whole);
    assert!(output.status.success(), "{output:?}");
    assert!(stored.exists() && !pgkeep.archived().contains(whole));

    let data = pgkeep.restore("newest");
    recover_with(&data, &pgkeep.restore_command());
    let restored = Cluster::restored(17, &data);
    assert_eq!(restored.number("select count(*) from first"), 5000);
    assert_eq!(restored.number("select count(*) from second"), 5000);
    assert_eq!(
        restored.value("select timeline_id from pg_control_checkpoint()"),
        "3"
    );
}

#[test]
fn segments_of_every_size_and_version_come_back_as_they_were() {
    for (major, megabytes) in [(14, 1), (15, 16), (18, 4)] {
        let options = Options {
            wal_segment_mb: megabytes,
            ..Options::default()
        };
        let cluster = Cluster::with(major, &options);
        let pgkeep = Pgkeep::of(&cluster).with("compression", "lz4");
        let path = closed_segment(&cluster);
        assert!(push(&pgkeep, cluster.data(), &path).status.success());
        let name = path.strip_prefix("pg_wal/").unwrap();
        assert_eq!(get(&pgkeep, &[SERVER, name, "x"]), (0, String::new()));
        let content = fs::read(pgkeep.ground().path().join("x")).unwrap();
        assert!(
            content == fs::read(cluster.data().join(path)).unwrap(),
            "{major}"
        );
    }
}
