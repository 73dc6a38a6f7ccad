//! Some databases of a backup: what is left out takes no space and breaks nothing, wherever recovery goes from there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::support::archive::{archiving, switch, wait_until_archived};
use crate::support::checks;
use crate::support::cluster::Options;
use crate::support::pgkeep::{Run, SERVER};
use crate::support::{Cluster, Pgkeep};

/// Of these one is wanted, and another is copied by its files later.
const DATABASES: &str = "
create database shop; create database stock; create database pattern; create database other;";

/// Rows of each of them, of a table that is somewhere else too, and of one with an index whose changes do not always bring whole
/// pages.
const CONTENT: &str = "
create table orders as select i id, repeat(md5(i::text), 8) body from generate_series(1, 8000) i;
create index on orders (id);
create table far tablespace outside as select i from generate_series(1, 20000) i;
create table hashed as select i, i % 700 j from generate_series(1, 4000) i;
create index on hashed using hash (j);
create unlogged table scratch (i int); create index on scratch (i);";

/// What happens to each of them between two backups and behind.
const CHANGES: &str = "
update orders set body = 'changed' where id % 97 = 0; delete from orders where id > 7000;
insert into hashed select i, i % 50 from generate_series(1, 3000) i; delete from hashed where j < 20;
vacuum orders; vacuum hashed; vacuum far;
alter table far set tablespace pg_default; vacuum full pg_class; truncate hashed; insert into hashed values (1, 1);
insert into orders select i, 'late' from generate_series(9000, 9100) i;";

struct Scene {
    cluster: Cluster,
    pgkeep: Pgkeep,
}

fn each(cluster: &Cluster, databases: &[&str], sql: &str) {
    for statement in sql
        .split(';')
        .filter(|statement| !statement.trim().is_empty())
    {
        for database in databases {
            cluster.sql_in(database, statement);
        }
    }
}

impl Scene {
    fn of(major: u32, checksums: bool) -> Scene {
        let options = Options {
            checksums,
            ..Options::default()
        };
        let encrypting = |pgkeep: Pgkeep| pgkeep.encrypting("aes-256-gcm");
        let (cluster, pgkeep) = archiving(major, &options, encrypting, Pgkeep::archive_command);
        cluster.tablespace("outside");
        each(&cluster, &["postgres"], DATABASES);
        let all = ["shop", "stock", "pattern"];
        each(&cluster, &all, CONTENT);
        pgkeep.backup();
        each(
            &cluster,
            &["shop", "stock"],
            "update far set i = i + 1 where i % 50 = 0",
        );
        pgkeep.backup_on("newest");
        each(&cluster, &["shop", "stock"], CHANGES);
        let strategy = if major == 14 {
            ""
        } else {
            "strategy file_copy"
        };
        each(
            &cluster,
            &["postgres"],
            &format!(
                "create database copied template pattern {strategy}; alter database other rename to another;
                 create database later"
            ),
        );
        each(&cluster, &["copied"], "insert into orders values (-1)");
        wait_until_archived(&pgkeep, &switch(&cluster));
        Scene { cluster, pgkeep }
    }

    fn restore(&self, databases: &[&str]) -> (Run, PathBuf) {
        let number = fs::read_dir(self.pgkeep.ground().path()).unwrap().count();
        let folder = self.pgkeep.ground().folder(&format!("to-{number}"));
        let moved = format!("outside={}", folder.join("outside").display());
        let target = folder.to_str().unwrap();
        let mut line = vec!["restore", SERVER, "newest", "current", target];
        line.extend(["--tablespace", &moved]);
        databases
            .iter()
            .for_each(|name| line.extend(["--database", name]));
        (self.pgkeep.run(&line), folder)
    }

    fn oid(&self, database: &str) -> String {
        let query = format!("select oid from pg_database where datname = '{database}'");
        self.cluster.value(&query)
    }
}

/// Bytes that are allocated below the folders of a database, and those that its files are long.
fn sizes(folder: &Path, database: &str) -> (u64, u64) {
    let mut sizes = (0, 0);
    for entry in WalkDir::new(folder) {
        let entry = entry.unwrap();
        let above = entry.path().parent().and_then(Path::file_name);
        if entry.file_type().is_file() && above.is_some_and(|name| name == database) {
            let found = entry.metadata().unwrap();
            sizes = (sizes.0 + found.blocks() * 512, sizes.1 + found.len());
        }
    }
    sizes
}

fn what_is_left_out_breaks_nothing(major: u32, checksums: bool) {
    let scene = Scene::of(major, checksums);
    let (run, folder) = scene.restore(&["shop", "copied", "another", "shop"]);
    let report = run.succeeded();
    let data = PathBuf::from(report.at("Response.Directory"));
    let told = |key| format!("{:?}", report.find(key).unwrap());
    let (kept, left_out) = (
        told("Response.Databases"),
        told("Response.DatabasesLeftOut"),
    );
    for name in [
        "shop",
        "copied",
        "pattern",
        "another, other",
        "postgres",
        "template0",
    ] {
        assert!(
            kept.contains(name) && !left_out.contains(name),
            "{kept} {left_out}"
        );
    }
    assert!(
        left_out.contains("stock") && left_out.contains("app"),
        "{left_out}"
    );
    assert!(
        run.stderr.contains("pattern is restored as well"),
        "{run:?}"
    );

    let stock = scene.oid("stock");
    let (allocated, length) = sizes(&folder, &stock);
    assert!(
        allocated <= 8192 && length > 8 << 20,
        "{allocated} {length}"
    );
    let (allocated, length) = sizes(&folder, &scene.oid("shop"));
    assert!(allocated * 2 > length, "{allocated} {length}");
    checks::pg_verifybackup(major, &data);

    let mut restored = Cluster::adopt(major, &data);
    restored.set("archive_mode = off\nautovacuum = off\nlog_min_messages = warning");
    restored.start();
    restored.wait_until_writable();
    // Without checksums a bit of visibility comes without its page, and with them nothing does that happens here but to hash indexes.
    let settings = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
    let ignores = settings.contains("ignore_invalid_pages = 'on'");
    assert_eq!(run.stderr.contains("ignore_invalid_pages"), ignores);
    assert!(ignores || checksums, "{settings}");
    let log = restored.log();
    for line in log.lines().filter(|line| line.contains(" of relation ")) {
        assert!(line.contains(&format!("/{stock}/")), "{line}");
    }

    for database in ["shop", "copied"] {
        let dump = |cluster| checks::dump_with(cluster, &[database]);
        assert!(
            dump(&restored) == dump(&scene.cluster),
            "{database} is not as it was"
        );
    }
    // Nobody gets in, and nobody else is thrown out.
    let error = restored.connect("stock").err().unwrap();
    let error = error.as_db_error().unwrap().message().to_owned();
    assert!(error.contains("is not a valid data directory"), "{error}");
    each(
        &restored,
        &["postgres"],
        "drop database stock; drop database app; checkpoint",
    );
    checks::pg_amcheck(&restored);
    drop(restored);

    // What is copied from holes is told.
    let (run, _) = scene.restore(&["shop"]);
    let left_out = format!(
        "{:?}",
        run.succeeded().find("Response.DatabasesLeftOut").unwrap()
    );
    assert!(
        left_out.contains("copied") && left_out.contains("pattern"),
        "{left_out}"
    );
    assert!(run.stderr.contains("take up their full size"), "{run:?}");
    let data = PathBuf::from(run.report().at("Response.Directory"));
    let mut restored = Cluster::adopt(major, &data);
    restored.set("archive_mode = off\nautovacuum = off");
    restored.start();
    restored.wait_until_writable();
    assert!(restored.connect("copied").is_err());
    each(
        &restored,
        &["postgres"],
        "drop database copied; drop database stock",
    );
    assert!(
        restored.sql_in("shop", "select count(*) from orders")[0][0]
            .parse::<u32>()
            .unwrap()
            > 1000
    );
}

#[test]
fn what_is_left_out_of_14_breaks_nothing() {
    what_is_left_out_breaks_nothing(14, false);
}

#[test]
fn what_is_left_out_of_18_breaks_nothing() {
    what_is_left_out_breaks_nothing(18, true);
}

#[test]
fn a_database_that_is_not_there_is_no_database_to_restore() {
    let cluster = Cluster::new(18);
    let pgkeep = Pgkeep::of(&cluster);
    pgkeep.backup();
    let folder = pgkeep.ground().folder("to");
    let line = [
        "restore",
        SERVER,
        "newest",
        folder.to_str().unwrap(),
        "--database",
        "ap",
    ];
    let run = pgkeep.run(&line);
    assert!(run.failed(2).contains("\"ap\""), "{run:?}");
    assert_eq!(run.report().at("Outcome.Hint"), "did you mean \"app\"?");
    let replica = [
        "restore",
        SERVER,
        "newest",
        "replica",
        folder.to_str().unwrap(),
    ];
    pgkeep
        .run(&[&replica[..], &["--database", "app"]].concat())
        .failed(2);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}
