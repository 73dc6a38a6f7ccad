//! Changes of relations and databases of every sort, as chance has it.
//!
//! One seed decides all of it; it is printed, and `PGKEEP_TEST_SEED` gives it back.
//! Since sessions work side by side the WAL still differs from run to run.

use std::time::{SystemTime, UNIX_EPOCH};

use postgres::Client;

use super::cluster::{Cluster, Postmaster};
use super::load::patiently;

/// Numbers as chance has them (SplitMix64).
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// The seed of the environment, or a new one.
    pub fn seeded() -> Random {
        let seed = match std::env::var("PGKEEP_TEST_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .subsec_nanos()
                .into(),
        };
        eprintln!("PGKEEP_TEST_SEED={seed}");
        Random(seed)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize].clone()
    }
}

/// How often something is done, unless PGKEEP_TEST_ROUNDS says otherwise.
pub fn rounds(usual: u32) -> u32 {
    std::env::var("PGKEEP_TEST_ROUNDS").map_or(usual, |rounds| rounds.parse().unwrap())
}

/// Names of the tablespaces that relations and databases move to and from.
const TABLESPACES: [&str; 3] = [
    "pg_default",
    RandomChanges::OWN_TABLESPACES[0],
    RandomChanges::OWN_TABLESPACES[1],
];

/// Several sessions that change things, and a server that crashes now and then.
pub struct RandomChanges {
    random: Random,
    actors: Vec<Actor>,
}

/// One session after another of the same cluster. It leaves alone what is not its own.
struct Actor {
    random: Random,
    major: u32,
    number: usize,
    made: u32,
    tables: Vec<String>,
    databases: Vec<String>,
    tablespaces: Vec<String>,
    prepared: Vec<Prepared>,
}

struct Prepared {
    name: String,
    /// What is a table once it commits.
    made: Vec<String>,
}

impl RandomChanges {
    /// The tablespaces that the sessions have for themselves.
    pub const OWN_TABLESPACES: [&str; 2] = ["near", "far"];

    /// Settings without which some changes are refused.
    pub const SETTINGS: &str = "max_prepared_transactions = 20";

    /// Makes ready what all sessions need, two tablespaces among it.
    pub fn of(cluster: &Cluster, random: Random) -> RandomChanges {
        for name in RandomChanges::OWN_TABLESPACES {
            cluster.tablespace(name);
        }
        RandomChanges::between(cluster, random)
    }

    /// The same with tablespaces in the data directory, which a standby on the same machine has for itself.
    pub fn in_place(cluster: &Cluster, random: Random) -> RandomChanges {
        for name in RandomChanges::OWN_TABLESPACES {
            cluster.sql(&format!("create tablespace {name} location ''"));
        }
        RandomChanges::between(cluster, random)
    }

    fn between(cluster: &Cluster, mut random: Random) -> RandomChanges {
        let actors = (0..3).map(|number| {
            cluster.sql(&format!(
                "create table kept_{number} (i int primary key, j int, body text);
                 insert into kept_{number} select i, i, md5(i::text) from generate_series(1, 30000) i"
            ));
            Actor {
                random: Random(random.below(u64::MAX)),
                major: cluster.major,
                number,
                made: 0,
                tables: Vec::new(),
                databases: Vec::new(),
                tablespaces: Vec::new(),
                prepared: Vec::new(),
            }
        });
        RandomChanges {
            actors: actors.collect(),
            random,
        }
    }

    /// Makes that many changes in each of the sessions.
    pub fn make(&mut self, cluster: &Cluster, changes: u32) {
        std::thread::scope(|scope| {
            for actor in &mut self.actors {
                scope.spawn(move || actor.act(cluster, changes));
            }
        });
    }

    /// Ends the server in one way or another, in the middle of a transaction, and
    /// starts it again.
    pub fn restart(&mut self, cluster: &mut Cluster) {
        let how = self
            .random
            .pick(&[Postmaster::Fast, Postmaster::Immediate, Postmaster::Killed]);
        let mut open = cluster.connect("postgres").unwrap();
        run(&mut open, "begin");
        run(
            &mut open,
            "create table unfinished as select generate_series(1, 3000) i",
        );
        // Takes the WAL of that to disk: else a crash can leave files that it never
        // mentions, and nobody ever reads.
        cluster.sql("create table if not exists finished (i int); insert into finished values (1)");
        cluster.stop(how);
        cluster.start();
    }
}

impl Actor {
    fn act(&mut self, cluster: &Cluster, changes: u32) {
        let mut client = cluster.connect("postgres").unwrap();
        run(&mut client, "set client_min_messages = error");
        for _ in 0..changes {
            if self.random.one_in(3) {
                self.change_in_place(&mut client);
            } else {
                self.change(cluster, &mut client);
            }
        }
    }

    /// Changes the one table that always stays in the same files.
    fn change_in_place(&mut self, client: &mut Client) {
        let number = self.number;
        let first = self.random.below(30_000);
        let last = first + self.random.below(500);
        let which = format!("where i between {first} and {last}");
        let statement = match self.random.below(8) {
            0..4 => format!("update kept_{number} set j = j + 1 {which}"),
            4 => format!("delete from kept_{number} {which}"),
            5 => format!(
                "insert into kept_{number} select i, i, 'x' from generate_series({first}, {last}) i
                 on conflict do nothing"
            ),
            6 => format!("select count(*) from kept_{number} {which}"),
            _ => format!("vacuum kept_{number}"),
        };
        run(client, &statement);
    }

    fn new_name(&mut self) -> String {
        self.made += 1;
        format!("r{}_{}", self.number, self.made)
    }

    fn change(&mut self, cluster: &Cluster, client: &mut Client) {
        if self.tables.is_empty() {
            self.create(client);
        }
        let table = self.random.pick(&self.tables);
        let some = self.random.below(3000);
        let part = 2 + self.random.below(9);
        let statement = match self.random.below(100) {
            0..12 if self.tables.len() < 8 => return self.create(client),
            0..24 => self.insert(&table),
            // Extends by many pages at once, not all of which WAL mentions.
            24..30 => format!("copy {table} (i) from program 'seq 1 {}'", some * 3),
            30..42 => format!("update {table} set i = i + 1 where i % {part} = 0"),
            42..46 => format!("delete from {table} where i % {part} = 0"),
            46..52 => format!("delete from {table} where i > {some}"),
            52..64 => {
                let how = self
                    .random
                    .pick(&["", "", "(freeze)", "(full)", "(analyze)"]);
                format!("vacuum {how} {table}")
            }
            64..67 => format!("truncate {table}"),
            67..73 => {
                let methods = [
                    "(i)",
                    "using hash (i)",
                    "using brin (i)",
                    "using gin (tags)",
                ];
                let methods = [
                    &methods[..],
                    &["using gist (place)", "using spgist (place)"],
                ];
                format!(
                    "create index on {table} {}",
                    self.random.pick(&methods.concat())
                )
            }
            73..75 => format!("reindex table {table}"),
            75..77 => {
                let name = self.new_name();
                run(client, &format!("create index {name} on {table} (i)"));
                format!("cluster {table} using {name}")
            }
            77..80 => {
                let tablespace = self.random.pick(&TABLESPACES);
                format!("alter table {table} set tablespace {tablespace}")
            }
            80..83 => {
                let how = self.random.pick(&["logged", "unlogged"]);
                format!("alter table {table} set {how}")
            }
            83 => format!("alter table {table} alter i type bigint"),
            84..86 => {
                self.tables.retain(|known| *known != table);
                format!("drop table {table}")
            }
            86..93 => return self.transaction(client),
            93..95 => return self.end_prepared(client),
            95..97 => return self.change_databases(cluster),
            97 => return self.change_tablespaces(client),
            98 => return self.change_files(client),
            _ => self
                .random
                .pick(&["checkpoint", "select pg_switch_wal()"])
                .to_owned(),
        };
        run(client, &statement);
    }

    fn create(&mut self, client: &mut Client) {
        let name = self.new_name();
        let kind = if self.random.one_in(3) {
            "unlogged"
        } else {
            ""
        };
        let tablespace = self.random.pick(&TABLESPACES);
        run(
            client,
            &format!(
                "create {kind} table {name} (i bigint, body text, place point, tags int[])
                 tablespace {tablespace}"
            ),
        );
        run(
            client,
            &format!("alter table {name} alter body set storage plain"),
        );
        run(client, &self.insert(&name));
        self.tables.push(name);
    }

    fn insert(&mut self, table: &str) -> String {
        let rows = 1 + self.random.below(2000);
        let width = self.random.pick(&[0, 20, 500, 3000]).min(1_000_000 / rows);
        format!(
            "insert into {table} select i, repeat('x', {width}), point(i, i), array[i % 50, i % 7]
             from generate_series(1, {rows}) i"
        )
    }

    /// Tables made and dropped in a transaction, and in one inside of it, that end in
    /// any way.
    fn transaction(&mut self, client: &mut Client) {
        let (outer, inner, name) = (self.new_name(), self.new_name(), self.new_name());
        let is_prepared = self.prepared.len() < 4 && self.random.one_in(3);
        let mut after_commit = vec![outer.clone()];
        let mut dropped = None;
        run(client, "begin");
        let columns = "i::bigint, repeat('x', 100) body, point(i, i) place, array[1] tags";
        run(
            client,
            &format!("create table {outer} as select {columns} from generate_series(1, 500) i"),
        );
        run(client, "savepoint s");
        run(
            client,
            &format!("create table {inner} as select {columns} from generate_series(1, 500) i"),
        );
        run(client, &format!("truncate {outer}"));
        // What a prepared transaction has locked would be in the way.
        if !is_prepared && !self.tables.is_empty() && self.random.one_in(2) {
            let table = self.random.pick(&self.tables);
            match self.random.below(3) {
                0 => run(client, &format!("truncate {table}")),
                1 => run(client, &self.insert(&table)),
                _ => {
                    run(client, &format!("drop table {table}"));
                    dropped = Some(table);
                }
            }
        }
        if self.random.one_in(2) {
            run(client, "rollback to s");
            dropped = None;
        } else {
            run(client, "release s");
            after_commit.push(inner);
        }
        run(client, &self.insert(&outer));
        if is_prepared {
            run(client, &format!("prepare transaction '{name}'"));
            self.prepared.push(Prepared {
                name,
                made: after_commit,
            });
        } else if self.random.one_in(2) {
            run(client, "rollback");
        } else {
            run(client, "commit");
            self.tables.retain(|known| Some(known) != dropped.as_ref());
            self.tables.extend(after_commit);
        }
    }

    fn end_prepared(&mut self, client: &mut Client) {
        let Some(prepared) = self.prepared.pop() else {
            return;
        };
        let name = prepared.name;
        if self.random.one_in(2) {
            run(client, &format!("rollback prepared '{name}'"));
        } else {
            run(client, &format!("commit prepared '{name}'"));
            self.tables.extend(prepared.made);
        }
    }

    /// Tablespaces in the data directory come and go, and a table in them.
    fn change_tablespaces(&mut self, client: &mut Client) {
        match self.tablespaces.pop() {
            Some(name) => {
                run(client, &format!("drop table in_{name}"));
                run(client, &format!("drop tablespace {name}"));
            }
            None => {
                let name = self.new_name();
                run(client, &format!("create tablespace {name} location ''"));
                run(
                    client,
                    &format!(
                        "create table in_{name} tablespace {name} as select generate_series(1, 3000) i"
                    ),
                );
                self.tablespaces.push(name);
            }
        }
    }

    /// Files that are no relations change their length: the settings, and at the next checkpoint the
    /// progress of replication.
    fn change_files(&mut self, client: &mut Client) {
        let number = self.random.below(1000);
        let width = self.random.below(4000) as usize;
        let sign = format!("{number} {} {number} ", "-".repeat(width));
        run(
            client,
            &format!("alter system set log_line_prefix = '{sign}'"),
        );
        let origin = format!("origin_{}_{}", self.number, self.random.below(3));
        let known = format!("from pg_replication_origin where roname = '{origin}'");
        let statement = match self.random.below(3) {
            0 => format!("select pg_replication_origin_drop(roname) {known}"),
            _ => format!(
                "select pg_replication_origin_create('{origin}') where not exists (select {known});
                 select pg_replication_origin_advance(roname, '0/{:X}') {known}",
                1 + self.random.below(1 << 30)
            ),
        };
        run(client, &statement);
        run(client, "checkpoint");
    }

    /// Databases come, are worked in, move and go.
    fn change_databases(&mut self, cluster: &Cluster) {
        let mut client = cluster.connect("postgres").unwrap();
        let tablespace = self.random.pick(&TABLESPACES);
        if self.databases.is_empty() || self.random.one_in(3) {
            let name = self.new_name();
            let strategy = match self.major {
                14 => "",
                _ => self
                    .random
                    .pick(&["strategy wal_log", "strategy file_copy"]),
            };
            run(
                &mut client,
                &format!("create database {name} template app {strategy} tablespace {tablespace}"),
            );
            self.databases.push(name);
        }
        let name = self.random.pick(&self.databases);
        match self.random.below(4) {
            0 => {
                run(&mut client, &format!("drop database {name} with (force)"));
                self.databases.retain(|known| *known != name);
            }
            1 => run(
                &mut client,
                &format!("alter database {name} set tablespace {tablespace}"),
            ),
            _ => {
                let mut inside = cluster.connect(&name).unwrap();
                for statement in [
                    "insert into t select i, 'x' from generate_series(1, 2000) i",
                    "vacuum full pg_class",
                    "delete from t where i % 3 = 0",
                    "vacuum t",
                    "create table if not exists of_its_own as select i from t",
                ] {
                    run(&mut inside, statement);
                }
            }
        }
    }
}

fn run(client: &mut Client, statement: &str) {
    patiently(client, statement).unwrap_or_else(|error| panic!("{statement}: {error:?}"));
}
