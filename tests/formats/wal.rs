//! WAL segments and timelines of real servers.

use std::fs;

use pgkeep::pg::control::{CONTROL_FILE, ControlFile};
use pgkeep::pg::history::{TimelineHistory, file_name, timeline_in_file_name};
use pgkeep::pg::label::{BACKUP_LABEL_FILE, BackupLabel};
use pgkeep::pg::lsn::{Lsn, Timeline};
use pgkeep::pg::manifest::{BACKUP_MANIFEST_FILE, Manifest};
use pgkeep::pg::segment::{SegmentName, SegmentSize};
use pgkeep::pg::version::Major;
use pgkeep::pg::wal::{PageDefect, SegmentCheck, SegmentFault};

use crate::cluster::{Cluster, text};

crate::for_every_major!(checks_segments, follows_a_promotion);

fn checks_segments(major: Major) {
    let mut sizes = vec![("--wal-segsize=1", 1 << 20)];
    // Of segments longer or shorter, no version has a rule of its own.
    if major == Major::V18 {
        sizes.push(("--wal-segsize=16", 16 << 20));
    }
    for (option, bytes) in sizes {
        let cluster = Cluster::with_segments(major, option);
        assert!(cluster.start());
        let statement = "create table t as select i, md5(i::text) from generate_series(1, 30000) i";
        cluster.sql(&[statement, "select pg_switch_wal()"]);
        let position = cluster.sql(&["create table u()", "select pg_current_wal_flush_lsn()"]);
        let end: Lsn = position.parse().unwrap();
        let size = SegmentSize::new(bytes).unwrap();

        let current = cluster.sql(&[&format!("select pg_walfile_name('{end}')")]);
        let name = SegmentName::parse(&current, size).unwrap();
        assert_eq!(name.number, end.previous_segment(size));
        assert_eq!(name.file_name(size), current);

        let checked = check_all(&cluster, size, end);
        assert!(checked.len() > 1, "{checked:?}");
        finds_damage(&cluster, checked[0], size);
    }
}

/// Damages a sound segment in every way that its page headers show.
fn finds_damage(cluster: &Cluster, name: SegmentName, size: SegmentSize) {
    let (major, cluster_id) = (cluster.major, control(cluster).system_identifier);
    let sound = segment(cluster, name, size);
    let fault = |major, cluster_id, name: SegmentName, size, bytes: &[u8]| {
        let mut check = SegmentCheck::new(major, cluster_id, name, size, Lsn(u64::MAX));
        bytes.chunks(100_000).for_each(|piece| check.push(piece));
        check.finish().unwrap_err()
    };
    let defect = |fault| match fault {
        SegmentFault::Page {
            page_offset,
            defect,
            ..
        } => (page_offset, defect),
        fault => panic!("{fault}"),
    };
    let after = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = sound.clone();
        change(&mut bytes);
        fault(major, cluster_id, name, size, &bytes)
    };

    for other in Major::ALL.into_iter().filter(|other| *other != major) {
        let (page, defect) = defect(fault(other, cluster_id, name, size, &sound));
        assert!(
            page == 0 && matches!(defect, PageDefect::Magic { .. }),
            "{defect:?}"
        );
    }
    let wrong = defect(fault(major, cluster_id + 1, name, size, &sound)).1;
    assert!(
        matches!(wrong, PageDefect::SystemIdentifier { .. }),
        "{wrong:?}"
    );
    let next = SegmentName {
        number: name.number.next(),
        ..name
    };
    let wrong = defect(fault(major, cluster_id, next, size, &sound)).1;
    assert!(matches!(wrong, PageDefect::Address { .. }), "{wrong:?}");
    let wrong = defect(after(&|bytes| bytes[4..8].fill(9)));
    assert!(
        matches!(wrong, (0, PageDefect::TimelineAbove { .. })),
        "{wrong:?}"
    );
    let wrong = defect(after(&|bytes| bytes[32] ^= 1));
    assert!(
        matches!(wrong, (0, PageDefect::SegmentSize { .. })),
        "{wrong:?}"
    );
    let wrong = defect(after(&|bytes| bytes.copy_within(8192..16384, 16384)));
    assert!(
        matches!(wrong, (16384, PageDefect::Address { .. })),
        "{wrong:?}"
    );
    let wrong = defect(after(&|bytes| bytes[8192..].fill(0)));
    assert!(
        matches!(wrong, (8192, PageDefect::Magic { found: 0, .. })),
        "{wrong:?}"
    );
    for length in [0, 1, sound.len() - 1, sound.len() + 1] {
        let wrong = after(&|bytes| bytes.resize(length, 0));
        assert!(
            matches!(wrong, SegmentFault::Length { .. }),
            "{length}: {wrong:?}"
        );
    }
}

fn follows_a_promotion(major: Major) {
    let primary = Cluster::init(major);
    primary.configure("wal_keep_size = '1GB'\n");
    assert!(primary.start());
    let standby = primary.base_backup(&["-R"]);
    assert!(standby.start());
    primary.sql(&["create table t as select generate_series(1, 50000)"]);
    let of_standby = standby.base_backup(&[]);
    let label = label(&of_standby);
    assert!(label.from_standby);
    assert_eq!(manifest(&of_standby).wal_ranges[0].start, label.start_lsn);
    // Stopped in order, the primary has sent all of its WAL.
    primary.stop("fast");
    let end_of_first = control(&primary).checkpoint;
    standby.sql(&["select pg_promote()", "checkpoint"]);
    standby.sql(&[
        "create table u as select generate_series(1, 50000)",
        "checkpoint",
    ]);

    let name = standby.sql(&["select max(name) from pg_ls_waldir() where name like '%.history'"]);
    let timeline = timeline_in_file_name(&name).unwrap();
    assert_eq!((timeline, file_name(timeline)), (Timeline(2), name.clone()));
    let content = fs::read_to_string(standby.data().join("pg_wal").join(name)).unwrap();
    let history = TimelineHistory::parse(timeline, &content).unwrap();
    let switch = history.switch_point(Timeline(1)).unwrap();
    assert!(switch > end_of_first, "{switch} {end_of_first}");
    assert_eq!(history.timeline_of(end_of_first), Timeline(1));
    assert_eq!(history.timeline_of(switch), Timeline(2));

    // What is at the switch point on the new timeline is the record that begins it.
    let redo = control(&standby).checkpoint_redo;
    assert_eq!(history.timeline_of(redo), Timeline(2));
    let first = waldump(
        &standby,
        Timeline(2),
        &["-n", "1", "-s", &switch.to_string()],
    );
    assert!(first.contains("END_OF_RECOVERY"), "{first}");

    // The first segment of timeline 2 begins with pages of timeline 1.
    let size = SegmentSize::new(1 << 20).unwrap();
    let end = standby
        .sql(&["select pg_current_wal_flush_lsn()"])
        .parse()
        .unwrap();
    let checked = check_all(&standby, size, end);
    let timelines = checked.iter().map(|name| name.timeline.0);
    assert_eq!(
        (timelines.clone().min(), timelines.max()),
        (Some(1), Some(2))
    );
    let first = SegmentName {
        timeline: Timeline(2),
        number: switch.segment(size),
    };
    assert_eq!(segment(&standby, first, size)[4], 1);

    let backup = standby.base_backup(&[]);
    let ranges = manifest(&backup).wal_ranges;
    let (start, stop) = (ranges[0].start, ranges[0].end);
    assert_eq!(history.ranges(start, stop, timeline).unwrap(), ranges);
    let earlier = manifest(&of_standby).wal_ranges[0];
    let both = history.ranges(earlier.start, stop, timeline).unwrap();
    assert_eq!(both.len(), 2);
    // pg_waldump finds all of the WAL in such ranges.
    for range in both {
        let (start, end) = (range.start.to_string(), range.end.to_string());
        waldump(&standby, range.timeline, &["-q", "-s", &start, "-e", &end]);
    }
}

fn waldump(cluster: &Cluster, timeline: Timeline, options: &[&str]) -> String {
    let (directory, timeline) = (cluster.data().join("pg_wal"), timeline.to_string());
    let mut arguments = vec!["-p", text(&directory), "-t", &timeline];
    arguments.extend(options);
    cluster.run("pg_waldump", &arguments)
}

/// Checks every segment in pg_wal below `end`; returns their names in order.
fn check_all(cluster: &Cluster, size: SegmentSize, end: Lsn) -> Vec<SegmentName> {
    let system_identifier = control(cluster).system_identifier;
    let files = fs::read_dir(cluster.data().join("pg_wal")).unwrap();
    let names = files
        .filter_map(|file| SegmentName::parse(file.unwrap().file_name().to_str().unwrap(), size));
    let mut names: Vec<_> = names.filter(|name| name.number.start(size) < end).collect();
    names.sort();
    // A timeline that was left ends in the middle of its last segment.
    let newest = names[names.len() - 1].timeline;
    names.retain(|name| {
        let shared = SegmentName {
            timeline: newest,
            ..*name
        };
        name.timeline == newest
            || !cluster
                .data()
                .join("pg_wal")
                .join(shared.file_name(size))
                .exists()
    });
    for name in &names {
        let mut check = SegmentCheck::new(cluster.major, system_identifier, *name, size, end);
        check.push(&segment(cluster, *name, size));
        check.finish().unwrap();
    }
    names
}

fn segment(cluster: &Cluster, name: SegmentName, size: SegmentSize) -> Vec<u8> {
    fs::read(cluster.data().join("pg_wal").join(name.file_name(size))).unwrap()
}

fn control(cluster: &Cluster) -> ControlFile {
    ControlFile::parse(&fs::read(cluster.data().join(CONTROL_FILE)).unwrap()).unwrap()
}

fn label(cluster: &Cluster) -> BackupLabel {
    let content = fs::read_to_string(cluster.data().join(BACKUP_LABEL_FILE)).unwrap();
    BackupLabel::parse(&content).unwrap()
}

fn manifest(cluster: &Cluster) -> Manifest {
    Manifest::parse(fs::File::open(cluster.data().join(BACKUP_MANIFEST_FILE)).unwrap()).unwrap()
}
