//! Pages that a reader sees half written, as every file system but a few may show them: what is stored is the page as it
//! was read right.

use crate::support::cluster::Postmaster;
use crate::support::pgkeep::SERVER;
use crate::support::{Cluster, Pgkeep, checks};

/// Puts a function in the place of the server's own which tears a page of each file that is named in the table `torn`, once
/// a session: its first half is as it is, with the LSN, and of its second half nothing is there yet.
fn tear(cluster: &Cluster) {
    cluster.sql(
        "create table torn (path text primary key, block bigint);
         alter function pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) rename to read_right;
         create function pg_catalog.pg_read_binary_file(path text, start bigint, length bigint, missing_ok boolean)
             returns bytea language plpgsql as $$
         declare
             content bytea := pg_catalog.read_right(path, start, length, missing_ok);
             page bigint := (select t.block from public.torn t where t.path = $1) * 8192 - start;
             sign text := 'torn.b' || pg_catalog.md5(path);
         begin
             if page >= 0 and page + 8192 <= pg_catalog.length(content)
                and coalesce(current_setting(sign, true), '') = '' then
                 perform set_config(sign, 'done', false);
                 return overlay(content placing decode(repeat('00', 4096), 'hex') from (page + 4097)::int);
             end if;
             return content;
         end $$",
    );
}

/// What PostgreSQL's own tools say of a restored cluster, and the rows.
fn assert_sound(major: u32, pgkeep: &Pgkeep, backup: &str, rows: &str) {
    pgkeep.ok(&["verify", SERVER, backup]);
    let data = pgkeep.restore(backup);
    checks::pg_verifybackup(major, &data);
    let mut restored = Cluster::restored(major, &data);
    checks::pg_amcheck(&restored);
    assert_eq!(restored.value("select sum(j) from large"), rows);
    restored.stop(Postmaster::Fast);
    crate::support::account::run(
        restored
            .tool("pg_checksums")
            .arg("--check")
            .arg("-D")
            .arg(&data),
    );
}

fn pages_torn_under_the_reader_are_stored_whole(major: u32) {
    let cluster = Cluster::new(major);
    // Large enough for slices, and its changed blocks for several too.
    cluster.sql(
        "create table large as select i, 0 as j, repeat(md5(i::text), 30) body from generate_series(1, 7000) i;
         create table small as select i from generate_series(1, 500) i;
         alter table large set (autovacuum_enabled = off); alter table small set (autovacuum_enabled = off)",
    );
    tear(&cluster);
    let sum = "select sum(j) from large";
    let tear_blocks = |large: u32, small: u32| {
        for (table, block) in [("large", large), ("small", small)] {
            let path = cluster.file_of(table);
            cluster.sql(&format!(
                "insert into torn values ('{path}', {block})
                 on conflict (path) do update set block = excluded.block"
            ));
        }
    };
    let pgkeep = Pgkeep::of(&cluster).with("source", "sql");
    tear_blocks(300, 1);
    let full = pgkeep.backup();
    let at_full = cluster.value(sum);

    // All pages of one table changed, and some of the other.
    cluster.sql("update large set j = 1 where i % 3 = 0; update small set i = i + 1 where i < 20");
    tear_blocks(600, 0);
    let all = pgkeep.backup_on("newest");
    let at_all = cluster.value(sum);
    cluster.sql("update large set j = 2 where i = 3000");
    let block = "select (ctid::text::point)[0]::int from large where i = 3000";
    tear_blocks(cluster.number(block) as u32, 0);
    let few = pgkeep.backup_on("newest");
    let at_few = cluster.value(sum);

    for (backup, rows) in [(&full, &at_full), (&all, &at_all), (&few, &at_few)] {
        let info = pgkeep.ok(&["info", SERVER, &backup.identifier]);
        assert_eq!(info.number("Response.CorruptPages"), 0);
        assert_sound(major, &pgkeep, &backup.identifier, rows);
    }
    pgkeep.ok(&["delete", SERVER, &all.identifier]);
    assert_sound(major, &pgkeep, &few.identifier, &at_few);
    pgkeep.ok(&["delete", SERVER, &full.identifier]);
    assert_sound(major, &pgkeep, &few.identifier, &at_few);
}

#[test]
fn pages_torn_under_the_reader_are_stored_whole_on_15() {
    pages_torn_under_the_reader_are_stored_whole(15);
}

#[test]
fn pages_torn_under_the_reader_are_stored_whole_on_18() {
    pages_torn_under_the_reader_are_stored_whole(18);
}
