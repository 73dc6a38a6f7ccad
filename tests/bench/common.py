"""What the benchmarks share: clusters that are kept between runs, servers over them, and
a stopwatch. Three clusters of PostgreSQL 17: pgbench's (compresses well), one that
compresses badly, and one of 20 000 tables."""

import argparse
import fcntl
import multiprocessing
import os
import pwd
import resource  # noqa: F401: os.wait4 wants it, and after setuid it may be out of reach
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVERS = os.environ.get("PGKEEP_TEST_POSTGRES", "/opt/postgresql-test")
BIN = Path(SERVERS) / "17" / "bin"
TICK = os.sysconf("SC_CLK_TCK")


def arguments(description, *more):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="how often each contestant runs (3; with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="clusters of a tenth of the size, one round")
    parser.add_argument("--clusters", default="pgbench,random,tables", help="which, with commas")
    parser.add_argument("--only", default="", help="only contestants whose name contains this word")
    parser.add_argument("--cache", default="/var/tmp/pgkeep-bench", help="where the clusters are kept")
    parser.add_argument("--pgkeep", help="the binary to time (default: builds one)")
    for flag, options in more:
        parser.add_argument(flag, **options)
    chosen = parser.parse_args()
    chosen.rounds = chosen.rounds or (1 if chosen.quick else 3)
    return chosen


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(command, **options):
    return subprocess.run(command, check=True, **options)


def prepare(chosen, stay_root=False):
    """What root must do, before this process becomes somebody else for good. What needs
    root all along stays root, and has `chosen.account` do the work."""
    run([ROOT / "tests" / "install-postgres", SERVERS, "17"], stdout=subprocess.DEVNULL)
    cache = Path(chosen.cache)
    cache.mkdir(parents=True, exist_ok=True)
    # Two runs at once would measure each other.
    chosen.lock = open(cache / "lock", "w")
    try:
        fcntl.flock(chosen.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another run is at work in {cache}")
    binary = cache / "pgkeep"
    built = chosen.pgkeep
    if not built:
        say("building pgkeep")
        made = run(
            ["cargo", "build", "--release", "--message-format=json"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        found = [line for line in made.stdout.splitlines() if '"executable":"' in line]
        built = found[-1].split('"executable":"')[1].split('"')[0]
    binary.unlink(missing_ok=True)
    shutil.copy(built, binary)
    binary.chmod(0o755)
    if os.geteuid() == 0:
        chosen.account = next(a for a in map(account_named, ("postgres", "nobody")) if a)
        for path in (cache, binary):
            os.chown(path, chosen.account.pw_uid, chosen.account.pw_gid)
        if not stay_root:
            become(chosen.account)
    os.environ.update(HOME=str(cache), LC_ALL="C", PATH=f"{BIN}:/usr/local/bin:/usr/bin:/bin")
    os.chdir(cache)
    return cache


def account_named(name):
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def become(account):
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def done_by(account, work, *its):
    """Does the work in a child that has become the account; this process stays who it is."""

    def child():
        become(account)
        work(*its)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    try:
        process.join()
    finally:
        process.terminate()
        process.join()
    if process.exitcode:
        sys.exit(f"{work.__name__} failed")


class Server:
    """A running server over a data directory, its socket beside that. `within` is what
    to start it by, where it is to run elsewhere or as somebody else."""

    def __init__(self, place, settings=(), within=()):
        self.place, self.data = place, place / "data"
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={place}"]
        for setting in (*settings, "autovacuum=off", "max_wal_size=1GB", "shared_buffers=256MB"):
            options += ["-c", setting]
        log = open(place / "log", "w")
        self.process = subprocess.Popen([*within, BIN / "postgres", "-D", self.data, *options], stdout=log, stderr=log)
        os.environ.update(PGHOST=str(place), PGUSER="postgres", PGDATABASE="postgres")
        while subprocess.run([BIN / "pg_isready", "-q"]).returncode:
            if self.process.poll() is not None:
                sys.exit((place / "log").read_text())
            time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(2)
        self.process.wait()

    def sql(self, text):
        run([BIN / "psql", "-qXAt", "-v", "ON_ERROR_STOP=1"], input=text, text=True, stdout=subprocess.DEVNULL)

    def cpu(self):
        """CPU seconds of the postmaster, its children, and those it has buried."""
        total = 0
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                mine = int(entry.name) == self.process.pid
                if mine or int(fields[1]) == self.process.pid:
                    total += sum(map(int, fields[11:15] if mine else fields[11:13]))
        return total / TICK


MIXED = """
create table mixed (id bigint, text_digest text, one bytea, two bytea, three bytea, number float8);
begin; truncate mixed;
insert into mixed select i, left(md5(i::text), 16), decode(md5((-i)::text), 'hex'), decode(md5((i * 7)::text), 'hex'),
  decode(md5((i * 11)::text), 'hex'), random()
from generate_series(1, {rows}) i;
commit; vacuum freeze mixed;
"""

# CREATE TABLE AS makes no free space map: heap, index, TOAST table and its index
# are four files.
TABLES = """
do $$ begin for i in {first}..{last} loop
  execute format('create table t%s as select j as id, repeat(md5(j::text), 3) as body from generate_series(1, 230) j', i);
  execute format('alter table t%s add primary key (id)', i);
end loop; end $$;
"""


# About every hundredth page gets one new row version; in the many tables, one of 25 tables.
CHANGES = {
    "pgbench": "update pgbench_accounts set abalance = abalance + 1 where aid % 12200 = {number}",
    "random": "update mixed set number = number + 1 where id % 16000 = {number}",
    "tables": """do $$ declare name text; begin
        for name in select relname from pg_class where relkind = 'r' and relname like 't%' and oid::bigint % 25 = {number} loop
          execute format('update %I set body = body where id = 1', name);
        end loop; end $$""",
}


def fill(kind, server, size):
    if kind == "pgbench":
        run([BIN / "pgbench", "-i", "-q", "-s", str(round(100 * size))], stderr=subprocess.DEVNULL)
    elif kind == "random":
        server.sql(MIXED.format(rows=int(11_000_000 * size)))
    else:
        count, step = int(20_000 * size), 500
        batches = [TABLES.format(first=first, last=first + step - 1) for first in range(1, count, step)]
        sessions = [
            subprocess.Popen([BIN / "psql", "-qX", "-v", "ON_ERROR_STOP=1"], stdin=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        for number, session in enumerate(sessions):
            session.stdin.write("".join(batches[number::2]))
            session.stdin.close()
        if any(session.wait() for session in sessions):
            sys.exit("the tables could not be made")


def cluster(cache, kind, quick):
    """The cluster's place, made on the first run."""
    place = cache / (f"{kind}-quick" if quick else kind)
    if (place / "finished").exists():
        return place
    say(f"making the cluster {place.name}")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    initdb = [BIN / "initdb", "-k", "-N", "-U", "postgres", "-A", "trust", "--no-locale", "-E", "UTF8"]
    run([*initdb, "-D", place / "data"], stdout=subprocess.DEVNULL)
    # Nothing of this needs WAL or syncing.
    fast = ("wal_level=minimal", "max_wal_senders=0", "fsync=off", "max_locks_per_transaction=2048")
    with Server(place, fast) as server:
        fill(kind, server, 0.1 if quick else 1)
    (place / "finished").touch()
    return place


def measure(command, server=None):
    """Wall, the client's CPU and peak memory, the server's CPU."""
    os.sync()
    busy = server.cpu() if server else 0
    begin = time.monotonic()
    child = subprocess.Popen(command, shell=isinstance(command, str), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    watch = threading.Thread(target=watch_memory, args=(child.pid, peak := [0]))
    watch.start()
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.monotonic() - begin
    watch.join()
    if status:
        sys.exit(f"{command}: {said.decode()}")
    if server:
        time.sleep(0.2)  # until the postmaster has buried its children
        busy = server.cpu() - busy
    return {"wall": wall, "client": usage.ru_utime + usage.ru_stime, "server": busy, "peak": peak[0]}


def watch_memory(pid, peak):
    """Keeps the peak of a process in MB. What wait4 tells counts this program's
    own memory too, which the child had before exec."""
    while True:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return
        found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
        if not found:
            return
        peak[0] = found[0] / 1024
        time.sleep(0.005)


def size_of(folder):
    return sum((Path(path) / name).lstat().st_size for path, _, names in os.walk(folder) for name in names) / 1e6


def changing_copy(cache, kept):
    """A copy of a cluster that may change, as no other may."""
    place = cache / "changing"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    run(["cp", "-r", "--reflink=auto", kept / "data", place / "data"])
    os.chmod(place / "data", 0o700)
    return place


def describe(place):
    size = size_of(place / "data" / "base")
    files = sum(len(names) for _, _, names in os.walk(place / "data"))
    return f"{place.name}: {size / 1000:.2f} GB in {files} files"


# The heading of each column, where its values are, and their digits.
COLUMNS = (
    ("wall s", "wall", 2), ("client CPU s", "client", 2), ("server CPU s", "server", 2),
    ("peak MB", "peak", 0), ("written MB", "written", 0),
)


def table(title, results, columns=COLUMNS):
    print(f"\n### {title}\n")
    print(f"| | {' | '.join(heading for heading, _, _ in columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for name, rounds in results.items():
        cells = []
        for _, key, digits in columns:
            values = [one[key] for one in rounds]
            cells.append("-" if values[0] is None else f"{statistics.median(values):.{digits}f}")
        print(f"| {name} | {' | '.join(cells)} |")
    sys.stdout.flush()
