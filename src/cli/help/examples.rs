//! What a user would type: the examples of `--help` and of the manual pages.

/// One line to type, and what it does.
pub(in crate::cli) struct Example {
    /// What it does, in one sentence without a period.
    pub does: &'static str,
    /// The line.
    pub line: &'static str,
}

const fn example(does: &'static str, line: &'static str) -> Example {
    Example { does, line }
}

/// The examples of each command, named as it is typed.
pub(super) const EXAMPLES: &[(&str, &[Example])] = &[
    (
        "",
        &[
            example(
                "A first backup needs no configuration: libpq's variables name the server",
                "PGHOST=db.example.org PGUSER=backup pgkeep backup mydb",
            ),
            example("Read every byte of it back", "pgkeep verify mydb newest"),
            example(
                "Write a data directory that starts",
                "pgkeep restore mydb newest /var/lib/postgresql",
            ),
        ],
    ),
    (
        "backup",
        &[
            example("Take a full backup", "pgkeep backup primary"),
            example(
                "Take an incremental one on the newest backup",
                "pgkeep backup primary newest",
            ),
            example(
                "The same for cron: a full one where there is no usable parent, silent unless it fails",
                "pgkeep -q backup primary latest --or-full",
            ),
            example(
                "The same of all servers, four at a time",
                "pgkeep -q backup --all latest --or-full --jobs 4",
            ),
            example(
                "Spare the server: a slow checkpoint, one connection that reads",
                "pgkeep -j 1 backup primary --checkpoint spread",
            ),
        ],
    ),
    (
        "list-backup",
        &[
            example(
                "List all backups, newest first",
                "pgkeep list-backup primary --sort desc",
            ),
            example(
                "Draw the chains of all servers, with some columns only",
                "pgkeep -F tree list-backup --columns server,backup,age,size,comment",
            ),
            example(
                "Print the identifiers of the valid ones",
                "pgkeep -F json list-backup primary | jq -r '.Response.Backups[] | select(.Valid == \"yes\") | .Backup'",
            ),
        ],
    ),
    (
        "info",
        &[
            example("Show the newest backup", "pgkeep info primary newest"),
            example("Show one of this day", "pgkeep info primary 20261122"),
        ],
    ),
    (
        "verify",
        &[
            example(
                "Check every byte of the newest backup, and of those it needs",
                "pgkeep verify primary newest",
            ),
            example(
                "Also rebuild the cluster in /scratch, check that, and remove it again",
                "pgkeep verify primary newest /scratch",
            ),
            example(
                "The drill: also start what was rebuilt, and read every table of every database",
                "pgkeep verify primary newest /scratch --start",
            ),
            example(
                "For cron: verify what was not verified for as long as the configuration says",
                "pgkeep -q verify --due",
            ),
        ],
    ),
    (
        "window",
        &[
            example(
                "Show which moments of a server can be restored, and how much would be lost if it were lost now",
                "pgkeep window primary",
            ),
            example(
                "The same of all servers, a line each",
                "pgkeep -F table window",
            ),
        ],
    ),
    (
        "history",
        &[
            example("Show the last runs of all servers", "pgkeep history"),
            example(
                "Show the backups that failed, of the last hundred",
                "pgkeep history primary --of backup --failed --last 100",
            ),
        ],
    ),
    (
        "restore",
        &[
            example(
                "Restore the newest backup into /var/lib/postgresql/primary-IDENTIFIER",
                "pgkeep restore primary newest /var/lib/postgresql",
            ),
            example(
                "Restore to just before a mistake, and open the cluster for writing",
                "pgkeep restore primary newest 'time=2026-11-22 14:59:00+01,inclusive=off,action=promote' /var/lib/postgresql",
            ),
            example(
                "Restore all WAL there is: as little as possible is lost",
                "pgkeep restore primary newest current /var/lib/postgresql",
            ),
            example(
                "Build a standby of the server",
                "pgkeep restore primary newest replica /var/lib/postgresql",
            ),
            example(
                "Make a failed primary, stopped, a standby of its successor: only what differs is written",
                "pgkeep restore primary newest replica /var/lib/postgresql/17/main --delta",
            ),
            example(
                "See first what that would do, and what speaks against it",
                "pgkeep restore primary newest replica /var/lib/postgresql/17/main --delta --dry-run",
            ),
            example(
                "Restore from the second repository",
                "pgkeep restore primary newest current /var/lib/postgresql --from repo2",
            ),
            example(
                "Put a tablespace on another disk",
                "pgkeep restore primary newest /var/lib/postgresql --tablespace fast=/nvme/fast",
            ),
            example(
                "Restore one database of many",
                "pgkeep restore primary newest current /var/lib/postgresql --database shop",
            ),
        ],
    ),
    (
        "extract",
        &[
            example(
                "Get the orders back as they were before a mistake, as SQL",
                "pgkeep extract primary newest xid=4711,inclusive=off shop/public.orders > orders.sql",
            ),
            example(
                "Put only the rows back into the running server",
                "pgkeep extract primary newest 'time=2026-11-22 02:58:00+00' orders --data-only | psql shop",
            ),
            example(
                "Two tables in an archive for pg_restore",
                "pgkeep extract primary newest current 'sales.ord*' customers -d shop --as custom --to sales.dump",
            ),
            example(
                "See which tables there were, and how large",
                "pgkeep extract primary newest current -d shop --list",
            ),
            example(
                "A whole database with the roles it needs",
                "pgkeep extract primary newest -d shop --globals --to shop.sql",
            ),
        ],
    ),
    (
        "copy",
        &[
            example(
                "Copy all valid backups that repo2 lacks, and the WAL since the first of them",
                "pgkeep copy primary all --to repo2",
            ),
            example(
                "Copy the newest one with those that it needs, without archived WAL",
                "pgkeep copy primary newest --to repo2 --no-wal",
            ),
            example(
                "Fetch everything back from repo2, where the main repository was lost",
                "pgkeep copy primary all --from repo2 --to repo1",
            ),
        ],
    ),
    (
        "archive",
        &[
            example(
                "Put the newest backup with all WAL there is into one file",
                "pgkeep archive primary newest current /mnt/usb",
            ),
            example(
                "Undo it, without pgkeep",
                "tar --zstd -xf primary-20261122165059.tar.zstd",
            ),
        ],
    ),
    (
        "annotate",
        &[
            example(
                "Note why a backup was made",
                "pgkeep annotate primary newest add reason 'before the upgrade'",
            ),
            example(
                "Correct the note",
                "pgkeep annotate primary newest update reason 'before the upgrade to 18'",
            ),
            example("Remove it", "pgkeep annotate primary newest remove reason"),
        ],
    ),
    (
        "retain",
        &[example(
            "Keep a backup and all that it needs, whatever the retention says",
            "pgkeep retain --cascade primary 20261122165059",
        )],
    ),
    (
        "expunge",
        &[example(
            "Let the retention decide again",
            "pgkeep expunge --cascade primary 20261122165059",
        )],
    ),
    (
        "delete",
        &[
            example("Delete one backup", "pgkeep delete primary 20261122165059"),
            example(
                "Delete it although it is kept, or the last one",
                "pgkeep delete primary 20261122165059 --force",
            ),
        ],
    ),
    (
        "expire",
        &[
            example(
                "See what the retention would remove",
                "pgkeep expire primary --dry-run",
            ),
            example("Remove it", "pgkeep expire primary"),
        ],
    ),
    (
        "encrypt",
        &[example(
            "Encrypt an archive in place, into primary-20261122165059.tar.zstd.aes",
            "pgkeep encrypt primary-20261122165059.tar.zstd",
        )],
    ),
    (
        "decrypt",
        &[example(
            "Decrypt it again",
            "pgkeep decrypt primary-20261122165059.tar.zstd.aes",
        )],
    ),
    (
        "compress",
        &[example(
            "Compress a file in place, as the configuration says",
            "pgkeep compress base.tar",
        )],
    ),
    (
        "decompress",
        &[example(
            "Decompress it again, by its suffix",
            "pgkeep decompress base.tar.zstd",
        )],
    ),
    (
        "master-key",
        &[example(
            "Create the key file; then copy it to a safe place",
            "pgkeep master-key",
        )],
    ),
    (
        "wal copy",
        &[example(
            "For a timer: copy all WAL that is not here yet",
            "pgkeep -q wal copy primary",
        )],
    ),
    (
        "wal push",
        &[example(
            "In postgresql.conf: hand each finished segment over",
            "archive_command = 'pgkeep wal push primary %p'",
        )],
    ),
    (
        "wal get",
        &[example(
            "In postgresql.conf: fetch what recovery asks for; restore writes this line itself",
            "restore_command = 'pgkeep wal get primary %f %p'",
        )],
    ),
    (
        "wal list",
        &[example(
            "Show what WAL there is, and whether some is missing",
            "pgkeep wal list primary",
        )],
    ),
    (
        "wal show",
        &[
            example(
                "Somebody deleted the orders: see when, and the position to restore to",
                "pgkeep wal show primary --from '2026-11-22 02:30' orders",
            ),
            example(
                "See what was dropped, truncated or deleted in masses within the last hours",
                "pgkeep wal show primary --from 6H --destroyed",
            ),
            example(
                "See all that one transaction did",
                "pgkeep wal show primary --from 4711 --to 4711",
            ),
        ],
    ),
    (
        "status",
        &[
            example("See how all servers are doing", "pgkeep status"),
            example(
                "The same of one, for a program",
                "pgkeep -F json status primary",
            ),
            example(
                "For Prometheus, by a textfile collector",
                "pgkeep -F prometheus status | sponge /var/lib/node_exporter/pgkeep.prom",
            ),
        ],
    ),
    (
        "check",
        &[example(
            "See whether a backup could be made, and what it lacks",
            "pgkeep check primary",
        )],
    ),
    (
        "permissions",
        &[example(
            "Grant what the configured user lacks",
            "pgkeep permissions primary | psql -U postgres",
        )],
    ),
    (
        "conf ls",
        &[example(
            "Show every setting in force, and where it came from",
            "pgkeep conf ls",
        )],
    ),
    (
        "conf get",
        &[
            example("Show one setting", "pgkeep conf get compression"),
            example("Show one of a server", "pgkeep conf get primary.host"),
        ],
    ),
    (
        "completions",
        &[
            example(
                "Complete in this bash, and in every later one",
                "pgkeep completions bash >~/.local/share/bash-completion/completions/pgkeep",
            ),
            example(
                "The same for zsh, where ~/.zfunc is in fpath",
                "pgkeep completions zsh >~/.zfunc/_pgkeep",
            ),
            example(
                "The same for fish",
                "pgkeep completions fish >~/.config/fish/completions/pgkeep.fish",
            ),
        ],
    ),
    (
        "units",
        &[
            example("Read the unit files first", "pgkeep units primary"),
            example(
                "Write them where systemd finds them",
                "pgkeep units primary /etc/systemd/system",
            ),
        ],
    ),
];
