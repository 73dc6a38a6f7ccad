//! A busy database: pgbench's transactions, and all that moves files about.

use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use postgres::error::SqlState;

use super::cluster::{Cluster, pid};

/// Load on a cluster until it is stopped or dropped.
pub struct Load {
    pgbench: Child,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU32>,
    churn: Option<JoinHandle<()>>,
}

/// One round of relations that come, go, shrink and move. `N` is replaced.
const ROUND: &[&str] = &[
    "create table churn_N as select i, repeat(md5(i::text), 20) body from generate_series(1, 1500) i",
    "create index churn_N_i on churn_N (i)",
    "create unlogged table fleeting_N as select i from generate_series(1, 2000) i",
    "create temporary table private_N as select i from generate_series(1, 2000) i",
    "delete from churn_N where i > 200",
    "vacuum churn_N",
    "vacuum full churn_N",
    "cluster churn_N using churn_N_i",
    "insert into kept select N, count(*) from churn_N",
    "truncate churn_N",
    "insert into churn_N select i, 'again' from generate_series(1, 300) i",
    "drop table private_N",
    "drop table fleeting_N",
];

/// Ends the relations of the round before.
const END: &str = "drop table if exists churn_N";

/// Between two rounds. Without it, the WAL of a busy machine's tests grows faster than they read it.
const PAUSE: Duration = Duration::from_millis(250);

impl Load {
    /// Starts pgbench with two clients, and a session that changes relations
    /// and databases all the time.
    pub fn on(cluster: &Cluster) -> Load {
        cluster.sql("create table if not exists kept (round int, rows bigint)");
        let pgbench = cluster
            .tool("pgbench")
            .args(["-n", "-c", "2", "-R", "400", "-T", "600"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU32::new(0));
        let mut client = cluster.connect("postgres").unwrap();
        let major = cluster.major;
        let churn = std::thread::spawn({
            let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
            move || {
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    // A test may kill the server underneath.
                    if churn_once(&mut client, major, round).is_err() {
                        break;
                    }
                    rounds.store(round, Ordering::Relaxed);
                    std::thread::sleep(PAUSE);
                }
            }
        });
        let load = Load {
            pgbench,
            stop,
            rounds,
            churn: Some(churn),
        };
        super::wait_until("the load is on", || {
            load.rounds.load(Ordering::Relaxed) > 0
                && cluster.value("select count(*) > 20 from pgbench_history") == "t"
        });
        load
    }

    /// How often all relations were changed so far.
    pub fn rounds(&self) -> u32 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Ends the load and waits until it has ended.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ =
            rustix::process::kill_process(pid(self.pgbench.id()), rustix::process::Signal::KILL);
        let _ = self.pgbench.wait();
        if let Some(churn) = self.churn.take() {
            let _ = churn.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

fn churn_once(
    client: &mut postgres::Client,
    major: u32,
    round: u32,
) -> Result<(), postgres::Error> {
    for statement in ROUND {
        client.simple_query(&statement.replace('N', &round.to_string()))?;
    }
    // A database every few rounds: each needs a checkpoint.
    if round % 4 == 1 {
        let strategy = match (major, round % 8 == 1) {
            (14, _) => "",
            (_, true) => " strategy file_copy",
            (_, false) => " strategy wal_log",
        };
        patiently(
            client,
            &format!("create database d{round} template app{strategy}"),
        )?;
        patiently(
            client,
            &format!("drop database if exists d{}", round.saturating_sub(4)),
        )?;
    }
    client.simple_query(&END.replace('N', &(round - 1).to_string()))?;
    Ok(())
}

/// Runs a statement that PostgreSQL refuses while other sessions are in the database: autovacuum's, or
/// one that has ended but not gone. It waits for them itself, though not as long as a busy machine may take.
pub fn patiently(client: &mut postgres::Client, statement: &str) -> Result<(), postgres::Error> {
    let give_up = Instant::now() + super::PATIENCE;
    loop {
        match client.simple_query(statement) {
            Err(error)
                if error.code() == Some(&SqlState::OBJECT_IN_USE) && Instant::now() < give_up => {}
            ended => return ended.map(|_| ()),
        }
    }
}
