//! Tables got back as of a moment: what pg_dump writes of them is what it writes of the whole cluster at that moment, and
//! nothing that was left out is ever taken for an empty table.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::support::account::run;
use crate::support::archive::{archiving, switch, wait_until_archived};
use crate::support::checks;
use crate::support::cluster::{Options, Postmaster};
use crate::support::pgkeep::{Run, SERVER};
use crate::support::random_changes::{Random, RandomChanges, rounds};
use crate::support::{Cluster, Pgkeep, wait_until};

const CONTENT: &str = r#"
create schema sales; create extension citext;
create table sales.customers (id int generated always as identity primary key, name citext not null);
insert into sales.customers (name) select 'N' || i from generate_series(1, 300) i;
create table sales.orders (id serial primary key, customer int references sales.customers, body text);
alter table sales.orders alter body set storage external;
insert into sales.orders (customer, body)
    select 1 + i % 300, case when i % 20 = 0 then repeat(md5(i::text), 150) else md5(i::text) end from generate_series(1, 4000) i;
create index on sales.orders (customer);
create table "Odd.Events" (at int, what text) partition by range (at);
create table "events 1" partition of "Odd.Events" for values from (0) to (1000);
create table events_2 partition of "Odd.Events" for values from (1000) to (3000) partition by hash (what);
create table events_2_0 partition of events_2 for values with (modulus 2, remainder 0) tablespace outside;
create table events_2_1 partition of events_2 for values with (modulus 2, remainder 1);
insert into "Odd.Events" select i, 'w' || i from generate_series(0, 2999) i;
create table before (id int, t text); insert into before select i, md5(i::text) from generate_series(1, 2000) i;
create table rewritten (id int); insert into rewritten select i from generate_series(1, 2000) i;
create table doomed as select i id, md5(i::text) t from generate_series(1, 3000) i;
create table big as select i, repeat(md5(i::text), 6) t from generate_series(1, 30000) i; create index on big using hash (i);
create unlogged table volatile as select 1 i;
create table other as select i id from generate_series(1, 500) i;
create table settings as select i id, 's' || i s from generate_series(1, 600) i;
alter extension citext add table settings;
update pg_extension set extconfig = array['settings'::regclass::oid], extcondition = array['WHERE id IN (SELECT id FROM public.other)']
    where extname = 'citext';
select lo_from_bytea(0, decode(repeat('ab', 5000), 'hex'));"#;

/// What happens between two backups, and behind them; of `big` also what brings no whole pages.
const BETWEEN: &str = "
update sales.orders set body = 'paid' where id % 7 = 0; update big set t = 'x' where i % 500 = 0; delete from before where id < 100;";
const BEHIND: &str = r#"
vacuum big; vacuum sales.orders; vacuum settings;
alter table before rename to after; insert into after values (-1, 'late');
alter table rewritten alter id type bigint; vacuum full sales.customers;
create table late (id int primary key, t text); insert into late select i, repeat(md5(i::text), 100) from generate_series(1, 400) i;
create table events_3 partition of "Odd.Events" for values from (3000) to (4000); insert into "Odd.Events" values (3001, 'late');
insert into sales.orders (customer, body) values (3, 'the last'); drop table doomed; delete from big where i > 15000; vacuum big;"#;

const ALL: [&str; 6] = [
    "shop/sales.*",
    "\"Odd.Events\"",
    "after",
    "rewritten",
    "late",
    "volatile",
];

struct Scene {
    cluster: Cluster,
    pgkeep: Pgkeep,
    work: PathBuf,
}

fn each(cluster: &Cluster, database: &str, sql: &str) {
    // Each in a transaction of its own.
    for statement in sql
        .split(';')
        .filter(|statement| !statement.trim().is_empty())
    {
        cluster.sql_in(database, statement);
    }
}

impl Scene {
    fn of(major: u32, checksums: bool) -> Scene {
        let options = Options {
            checksums,
            ..Options::default()
        };
        let encrypting = |pgkeep: Pgkeep| pgkeep.encrypting("aes-256-gcm");
        let (mut cluster, pgkeep) = archiving(major, &options, encrypting, Pgkeep::archive_command);
        cluster.stop(Postmaster::Fast);
        cluster.set("max_prepared_transactions = 5");
        cluster.start();
        cluster.tablespace("outside");
        each(
            &cluster,
            "postgres",
            "create role clerk; create database shop; create database moving",
        );
        each(&cluster, "shop", CONTENT);
        let moving = "create table as_backed_up as select i, 'row' from generate_series(1, 1000) i";
        each(&cluster, "moving", moving);
        pgkeep.backup();
        each(&cluster, "shop", BETWEEN);
        pgkeep.backup_on("newest");
        each(&cluster, "shop", BEHIND);
        each(
            &cluster,
            "moving",
            "alter table as_backed_up rename to moved",
        );
        each(
            &cluster,
            "postgres",
            "alter database moving set tablespace outside",
        );
        // Whose lock nobody releases any more, and whose rows are nobody's yet.
        let prepared =
            "begin; lock table late; insert into late values (-2); prepare transaction 'half'";
        cluster.sql_in("shop", prepared);
        cluster.sql("select pg_create_restore_point('there')");
        cluster.sql_in("shop", "rollback prepared 'half'");
        each(
            &cluster,
            "shop",
            "truncate sales.orders; drop table after; insert into late values (-1)",
        );
        wait_until_archived(&pgkeep, &switch(&cluster));
        let work = pgkeep.ground().folder("work");
        Scene {
            cluster,
            pgkeep,
            work,
        }
    }

    fn extract(&self, position: &str, more: &[&str]) -> Run {
        self.pgkeep.run(&self.line(position, more))
    }

    fn line<'a>(&'a self, position: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let binaries = crate::support::installed::binaries(self.cluster.major);
        let binaries: &'static str = binaries.to_str().unwrap().to_owned().leak();
        let mut line = vec!["extract", SERVER, "newest", position];
        line.extend([
            "--bin-dir",
            binaries,
            "--work-dir",
            self.work.to_str().unwrap(),
        ]);
        line.extend(more);
        line
    }

    /// Of an extraction that must go well, what it has written.
    fn extracted(&self, position: &str, more: &[&str]) -> String {
        let run = self.extract(position, more);
        assert_eq!(run.status.code(), Some(0), "{run:?}");
        self.nothing_is_left();
        checks::without_keys(&run.stdout)
    }

    fn nothing_is_left(&self) {
        assert_eq!(fs::read_dir(&self.work).unwrap().count(), 0);
    }

    /// The whole cluster at the restore point.
    fn whole(&self) -> Cluster {
        let folder = self.pgkeep.ground().folder("whole");
        let moved = format!("outside={}", folder.join("outside").display());
        let line = ["restore", SERVER, "newest", "name=there,action=promote"];
        let target = [folder.to_str().unwrap(), "--tablespace", &moved];
        let report = self.pgkeep.ok(&[&line[..], &target].concat());
        let data = PathBuf::from(report.at("Response.Directory"));
        let mut whole = Cluster::adopt(self.cluster.major, &data);
        whole.set("autovacuum = off");
        whole.start();
        whole.wait_until_writable();
        whole.sql_in("shop", "rollback prepared 'half'");
        whole
    }
}

/// The tables that a test asks for, as pg_dump is told of them.
fn dumped(cluster: &Cluster, tables: &[&str]) -> String {
    let mut arguments = vec!["-d", "shop"];
    tables
        .iter()
        .for_each(|table| arguments.extend(["-t", table]));
    checks::dump_with(cluster, &arguments)
}

const DUMPED: [&str; 9] = [
    "sales.*",
    "\"Odd.Events\"",
    "\"events 1\"",
    "events_2*",
    "events_3",
    "after",
    "rewritten",
    "late",
    "volatile",
];

#[track_caller]
fn assert_same(extracted: &str, expected: &str) {
    let differs = extracted
        .lines()
        .zip(expected.lines())
        .find(|(one, other)| one != other);
    assert!(
        extracted == expected,
        "{differs:?} of {} and {} bytes",
        extracted.len(),
        expected.len()
    );
}

#[test]
fn tables_of_14_are_as_in_the_whole_cluster() {
    let scene = Scene::of(14, false);
    let whole = scene.whole();
    let extracted = scene.extracted("name=there", &ALL);
    assert_same(&extracted, &dumped(&whole, &DUMPED));
}

#[test]
fn tables_of_18_are_as_in_the_whole_cluster() {
    let scene = Scene::of(18, true);
    let whole = scene.whole();
    let ground = scene.pgkeep.ground();

    // What was renamed is found in a second round.
    let file = ground.path().join("all.sql");
    let run = scene.extract(
        "name=there",
        &[&ALL[..], &["--to", file.to_str().unwrap()]].concat(),
    );
    let report = run.succeeded();
    assert_eq!(report.at("Response.Rounds"), "2");
    assert!(run.stderr.contains("volatile is unlogged"), "{run:?}");
    assert!(run.stderr.contains("\"half\" was prepared"), "{run:?}");
    let text = checks::without_keys(&fs::read_to_string(&file).unwrap());
    assert_same(&text, &dumped(&whole, &DUMPED));
    scene
        .extract("name=there", &["late", "--to", file.to_str().unwrap()])
        .failed(1);

    // What wal show calls destroyed is there just before.
    let shown = scene
        .pgkeep
        .ok(&["-F", "json", "wal", "show", SERVER, "--destroyed", "doomed"]);
    let position = shown.at("Response.Destroyed.0.Position");
    let doomed = scene.extracted(&position, &[&shown.at("Response.Destroyed.0.Name")]);
    let rows = doomed.lines().filter(|line| line.contains('\t')).count();
    assert_eq!(rows, 3000);

    // Where recovery copies a database, a hole would become a file that looks whole.
    let moved = scene.extracted("name=there", &["moving/moved"]);
    assert_eq!(moved.matches("\trow").count(), 1000);

    // All of a database, large objects included, and what all databases share.
    let all = scene.extracted("name=there", &["-d", "shop", "--globals"]);
    let globals = run_of(&whole, "pg_dumpall", &["--globals-only"]);
    let expected = [globals, checks::dump_with(&whole, &["shop"])].concat();
    let lines = |text: &str| {
        text.lines()
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let (all, expected) = (lines(&all).join("\n"), lines(&expected).join("\n"));
    // Tablespaces are elsewhere than where the test has put them.
    let without = |text: &str| {
        text.lines()
            .filter(|line| !line.contains("LOCATION"))
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert_same(&without(&all), &without(&expected));

    nothing_is_read_that_is_a_hole(&scene, &whole);
    tables_are_listed(&scene, &whole);
    an_interrupt_leaves_nothing(&scene);
}

fn run_of(cluster: &Cluster, tool: &str, arguments: &[&str]) -> String {
    checks::without_keys(&run(cluster.tool(tool).args(arguments))) + "\n"
}

fn nothing_is_read_that_is_a_hole(scene: &Scene, whole: &Cluster) {
    let run = scene.extract("name=there", &["shop/settings"]);
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    assert!(run.stderr.contains("could not open file"), "{run:?}");
    assert!(run.stderr.contains("it reads another table"), "{run:?}");
    scene.nothing_is_left();

    let folder = scene.pgkeep.ground().path().join("dump");
    let more = [
        "shop/settings",
        "other",
        "--as",
        "directory",
        "--to",
        folder.to_str().unwrap(),
    ];
    scene.extract("name=there", &more).succeeded();
    let restored = run_of(whole, "pg_restore", &["-f", "-", folder.to_str().unwrap()]);
    let rows = |text: &str| text.lines().filter(|line| line.contains("\ts")).count();
    assert_eq!(rows(&restored), rows(&dumped(whole, &["settings"])));
    assert_eq!(rows(&restored), 500);
}

fn tables_are_listed(scene: &Scene, whole: &Cluster) {
    let line = scene.line("name=there", &["-d", "shop", "--list"]);
    let report = scene.pgkeep.ok(&[&["-F", "json"], &line[..]].concat());
    let tables = report.find("Response.Tables").unwrap().as_array().unwrap();
    let size = |name: &str| {
        let table = tables.iter().find(|table| table["Name"] == name);
        table.unwrap()["Size"].as_i64().unwrap()
    };
    for name in ["big", "late", "events_2_0"] {
        let expected = &whole.sql_in("shop", &format!("select pg_table_size('{name}')"))[0][0];
        assert_eq!(size(name).to_string(), *expected, "{name}");
    }
    assert!(!tables.iter().any(|table| table["Name"] == "doomed"));

    let taken = scene.pgkeep.ground().path().to_str().unwrap();
    let line = scene.line("name=there", &["shop/big", "--dry-run", "--to", taken]);
    let told = scene.pgkeep.run(&[&["-F", "json"], &line[..]].concat());
    assert_eq!(told.status.code(), Some(1), "{told:?}");
    let report = told.report();
    assert!(
        report
            .at("Response.Problems.0")
            .contains("is there already")
    );
    assert_eq!(report.at("Response.Database"), "shop");
    for counted in ["Restored", "Holes", "ArchivedWal.Segments"] {
        let counted = report.find(&format!("Response.{counted}"));
        assert!(
            counted.is_some_and(|counted| counted.as_i64() > Some(0)),
            "{told:?}"
        );
    }

    let run = scene.extract("name=there", &["shop/sales.order"]);
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    assert!(run.stderr.contains("did you mean sales.orders?"), "{run:?}");
    assert_eq!(
        scene.extract("name=there", &["shap/late"]).status.code(),
        Some(2)
    );
    assert_eq!(scene.extract("replica", &["late"]).status.code(), Some(2));
    scene.nothing_is_left();
}

fn an_interrupt_leaves_nothing(scene: &Scene) {
    let mut running = scene
        .pgkeep
        .spawn(&scene.line("name=there", &["shop/late"]));
    let process = running.id();
    let socket = PathBuf::from(format!("/tmp/pgkeep-{process}-0"));
    wait_until("the server is started", || {
        assert!(running.is_running(), "it has ended before");
        socket.join(".s.PGSQL.5432").exists()
    });
    running.signal(Signal::INT);
    let run = running.wait();
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    assert!(!Path::new(&socket).exists());
    scene.nothing_is_left();
}

/// Recovery goes over holes of everything that changes, in whatever way, and what is kept is as it was.
fn random_changes_do_no_harm(major: u32, checksums: bool) {
    let options = Options {
        checksums,
        ..Options::default()
    };
    let (mut cluster, pgkeep) = archiving(major, &options, |it| it, Pgkeep::archive_command);
    cluster.stop(Postmaster::Fast);
    cluster.set(RandomChanges::SETTINGS);
    cluster.start();
    let mut changes = RandomChanges::of(&cluster, Random::seeded());
    changes.make(&cluster, 10);
    pgkeep.backup();
    for round in 0..rounds(4) {
        changes.make(&cluster, 10);
        if round % 2 == 1 {
            changes.restart(&mut cluster);
        }
    }
    let point = "select pg_create_restore_point('end')";
    let expected = [
        checks::dump(&cluster, "kept_1"),
        checks::dump(&cluster, "quiet"),
    ];
    cluster.sql(point);
    wait_until_archived(&pgkeep, &switch(&cluster));
    let work = pgkeep.ground().folder("work");
    let binaries = crate::support::installed::binaries(major);
    let line = ["extract", SERVER, "newest", "name=end", "-d", "postgres"];
    let where_to = [
        "--bin-dir",
        binaries.to_str().unwrap(),
        "--work-dir",
        work.to_str().unwrap(),
    ];
    for (table, expected) in ["kept_1", "quiet"].iter().zip(&expected) {
        let run = pgkeep.run(&[&line[..], &where_to, &[table]].concat());
        assert_eq!(run.status.code(), Some(0), "{run:?}");
        assert_same(&checks::without_keys(&run.stdout), expected);
    }
}

#[test]
fn random_changes_of_15_do_no_harm_without_checksums() {
    random_changes_do_no_harm(15, false);
}

#[test]
fn random_changes_of_18_do_no_harm_to_extracts() {
    random_changes_do_no_harm(18, true);
}
