//! What PostgreSQL's own tools, and standard ones, say of a backup or a cluster.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::account::{self, run};
use super::cluster::{Cluster, Postmaster};
use super::ground::Ground;
use super::installed;

/// What a cluster held before a backup, to hold a restored one against.
pub struct Before {
    quiet: String,
    history: i64,
}

impl Before {
    /// Looks at the source, before the backup begins.
    pub fn of(cluster: &Cluster) -> Before {
        Before {
            quiet: dump(cluster, "quiet"),
            history: cluster.number("select count(*) from pgbench_history"),
        }
    }
}

/// Starts a restored data directory and checks everything that can be checked of
/// it from outside. `at_most` is what pgbench_history held when the backup had
/// ended. Gives the running cluster.
pub fn is_whole(major: u32, data: &Path, before: &Before, at_most: i64) -> Cluster {
    pg_verifybackup(major, data);
    assert_no_temporary_relations(data);
    let mut cluster = Cluster::restored(major, data);
    assert_invariant(&cluster);
    let history = cluster.number("select count(*) from pgbench_history");
    assert!(
        (before.history..=at_most).contains(&history),
        "{history} transactions, not between {} and {at_most}",
        before.history
    );
    assert_eq!(dump(&cluster, "quiet"), before.quiet);
    assert_eq!(
        cluster.number("select count(*) from scratch"),
        0,
        "an unlogged table kept rows"
    );
    cluster.sql("insert into scratch values (1, 'x'); insert into quiet (id) values (-1)");
    pg_amcheck(&cluster);
    let checksums = cluster.value("show data_checksums") == "on";
    cluster.stop(Postmaster::Fast);
    if checksums {
        run(cluster
            .tool("pg_checksums")
            .arg("--check")
            .arg("-D")
            .arg(data));
    }
    cluster.start();
    cluster
}

/// pgbench's sums agree, whatever moment the cluster is of.
pub fn assert_invariant(cluster: &Cluster) {
    let sums = cluster.sql(
        "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers),
                (select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history)",
    );
    assert!(
        sums[0].iter().all(|sum| *sum == sums[0][0]),
        "the balances differ: {sums:?}"
    );
}

/// One table as pg_dump writes it.
pub fn dump(cluster: &Cluster, table: &str) -> String {
    dump_with(cluster, &["-t", table])
}

/// What pg_dump writes with these arguments.
pub fn dump_with(cluster: &Cluster, arguments: &[&str]) -> String {
    without_keys(&run(cluster.tool("pg_dump").args(arguments)))
}

/// A dump without the random keys that newer minor versions guard it with.
pub fn without_keys(dump: &str) -> String {
    let lines = dump
        .lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Every heap and B-tree of every database is sound.
pub fn pg_amcheck(cluster: &Cluster) {
    run(cluster
        .tool("pg_amcheck")
        .args(["--all", "--install-missing", "--heapallindexed"]));
}

/// PostgreSQL's own check of a backup, its WAL included.
pub fn pg_verifybackup(major: u32, folder: &Path) {
    run(account::command(installed::binaries(major).join("pg_verifybackup")).arg(folder));
}

/// `sha512sum --check backup.sha512` in the backup's folder, which must name
/// every file that is there.
pub fn sha512sum(folder: &Path) {
    let mut command = account::command("sha512sum");
    command.args(["--check", "--strict", "--quiet", "backup.sha512"]);
    run(command.current_dir(folder));
    let listed = fs::read_to_string(folder.join("backup.sha512")).unwrap();
    for file in files(folder) {
        let name = file.strip_prefix(folder).unwrap().to_str().unwrap();
        let is_listed = listed.lines().any(|line| {
            let path = line.get(130..).unwrap_or_default();
            path.strip_prefix("./").unwrap_or(path) == name
        });
        assert!(
            is_listed || name == "backup.sha512" || name == "backup.info",
            "{name} is not in backup.sha512"
        );
    }
}

/// No file of a temporary relation is in a data directory.
fn assert_no_temporary_relations(data: &Path) {
    for file in files(data) {
        let name = file.file_name().and_then(OsStr::to_str).unwrap();
        let is_temporary = name.strip_prefix('t').is_some_and(|rest| {
            rest.contains('_')
                && rest
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || byte == b'_')
        });
        assert!(
            !is_temporary && !name.starts_with("pgsql_tmp"),
            "{}",
            file.display()
        );
    }
}

/// Undoes what is stored in a backup with nothing but standard tools; gives a
/// plain data directory.
pub fn undo_with_standard_tools(backup: &Path, ground: &Ground) -> PathBuf {
    let plain = ground.folder("undone");
    for entry in tree(&backup.join("data")) {
        let target = plain.join(entry.strip_prefix(backup.join("data")).unwrap());
        if entry.is_dir() {
            fs::create_dir_all(&target).unwrap();
        } else {
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            let (program, target) = decompressor(&target);
            shell(&format!(
                "{program} < {} > {}",
                quoted(&entry),
                quoted(&target)
            ));
        }
    }
    for bundle in fs::read_dir(backup.join("bundles"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let (program, name) = decompressor(&bundle.path());
        assert_eq!(
            name.extension().and_then(OsStr::to_str),
            Some("tar"),
            "{}",
            name.display()
        );
        shell(&format!(
            "{program} < {} | tar -x --no-same-owner -C {}",
            quoted(&bundle.path()),
            quoted(&plain)
        ));
    }
    shell(&format!("chown -R --reference={} {0}", quoted(&plain)));
    plain
}

/// The program that undoes a suffix, and the name without it.
fn decompressor(path: &Path) -> (&'static str, PathBuf) {
    let program = match path.extension().and_then(OsStr::to_str) {
        Some("zstd") => "zstd -dcq",
        Some("gz") => "gzip -dc",
        Some("lz4") => "lz4 -dcq",
        Some("bz2") => "bzip2 -dc",
        _ => return ("cat", path.to_owned()),
    };
    (program, path.with_extension(""))
}

/// Runs a line of shell as ourselves.
pub fn shell(line: &str) {
    let status = std::process::Command::new("bash")
        .args(["-o", "pipefail", "-c", line])
        .status()
        .unwrap();
    assert!(status.success(), "{line}: {status}");
}

/// A path as one word of a shell line.
pub fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_str().unwrap())
}

/// All files below a folder, symbolic links to folders not followed.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    tree(folder)
        .into_iter()
        .filter(|path| path.is_file())
        .collect()
}

/// Everything below a folder, sorted.
pub fn tree(folder: &Path) -> Vec<PathBuf> {
    let entries = walkdir::WalkDir::new(folder)
        .min_depth(1)
        .sort_by_file_name();
    entries
        .into_iter()
        .map(|entry| entry.unwrap().into_path())
        .collect()
}

/// Path, size and content's change time of all below a folder: equal when
/// nothing was touched.
pub fn state(folder: &Path) -> Vec<(PathBuf, u64, i64, i64)> {
    tree(folder)
        .into_iter()
        .map(|path| {
            let metadata = fs::symlink_metadata(&path).unwrap();
            (
                path,
                metadata.size(),
                metadata.mtime(),
                metadata.mtime_nsec(),
            )
        })
        .collect()
}

/// Every folder has mode `folders` and every file mode `files` below and at a path.
pub fn assert_modes(path: &Path, folders: u32, files: u32) {
    for entry in std::iter::once(path.to_owned()).chain(tree(path)) {
        let metadata = fs::symlink_metadata(&entry).unwrap();
        if metadata.is_symlink() {
            continue;
        }
        let expected = if metadata.is_dir() { folders } else { files };
        let mode = metadata.permissions().mode() & 0o7777;
        assert_eq!(
            mode,
            expected,
            "{}: {mode:o}, not {expected:o}",
            entry.display()
        );
    }
}
