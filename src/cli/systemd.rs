//! Unit files that make systemd run pgkeep for a server: systemd.service(5),
//! systemd.timer(5), systemd.exec(5).

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What begins every file, so that one of ours is told from another.
pub(super) const MARK: &str = "# Made by pgkeep units";

/// What the units of a server depend on.
pub(super) struct Setting {
    /// The server's name, which is a word in the name of a unit as well.
    pub server: String,
    /// This program; absolute.
    pub program: PathBuf,
    /// The configuration file; absolute.
    pub configuration: PathBuf,
    /// Who runs it.
    pub user: String,
    /// The folder of the repository.
    pub base_dir: Option<PathBuf>,
    /// Further folders that are written to.
    pub written: Vec<PathBuf>,
    /// Whether anything it needs lies in `/tmp`, such as the server's socket.
    pub needs_tmp: bool,
    /// Whether a verification ever becomes due.
    pub verifies: bool,
}

/// A unit file.
pub(super) struct Unit {
    /// Its name.
    pub name: String,
    /// What it says.
    pub text: String,
}

/// Something to do again and again.
struct Job {
    name: &'static str,
    description: &'static str,
    page: &'static str,
    /// The words before the server's name, and those behind it.
    command: &'static str,
    after_server: &'static str,
    /// systemd.time(7).
    when: &'static str,
    /// By how much it may be late, so that several servers do not begin at once.
    spread: &'static str,
    /// Jobs that it waits for, where they are at work or about to be.
    after: &'static [&'static str],
}

const JOBS: [Job; 5] = [
    Job {
        name: "full",
        description: "Full backup",
        page: "pgkeep-backup(1)",
        command: "backup",
        after_server: "",
        when: "Sun 01:00",
        spread: "15min",
        after: &[],
    },
    Job {
        name: "incremental",
        description: "Incremental backup",
        page: "pgkeep-backup(1)",
        command: "backup",
        after_server: " newest --or-full",
        when: "Mon..Sat 01:00",
        spread: "15min",
        after: &["full"],
    },
    Job {
        name: "wal",
        description: "Archive the WAL",
        page: "pgkeep-wal(1)",
        command: "wal copy",
        after_server: "",
        when: "*:0/5",
        spread: "10s",
        after: &[],
    },
    Job {
        name: "verify",
        description: "Verify the backups",
        page: "pgkeep-verify(1)",
        command: "verify --due",
        after_server: "",
        when: "05:00",
        spread: "15min",
        after: &["full", "incremental"],
    },
    Job {
        name: "expire",
        description: "Remove what is kept no longer",
        page: "pgkeep-expire(1)",
        command: "expire",
        after_server: "",
        when: "07:00",
        spread: "15min",
        after: &["full", "incremental", "verify"],
    },
];

/// The units of a server: a service and a timer for each job.
pub(super) fn units(setting: &Setting) -> Vec<Unit> {
    let jobs = JOBS
        .iter()
        .filter(|job| setting.verifies || job.name != "verify");
    let units = jobs.flat_map(|job| {
        let name = unit_name(setting, job.name);
        [
            Unit {
                name: format!("{name}.service"),
                text: service(setting, job),
            },
            Unit {
                name: format!("{name}.timer"),
                text: timer(setting, job),
            },
        ]
    });
    units.collect()
}

fn unit_name(setting: &Setting, job: &str) -> String {
    format!("pgkeep-{}-{job}", setting.server)
}

/// The server's lock lets one writer in, so those that need it wait for each other: a job of type
/// oneshot is done only when its process has ended.
fn service(setting: &Setting, job: &Job) -> String {
    let mut after = "network-online.target".to_owned();
    for other in job.after {
        // Writing to a string cannot fail.
        let _ = write!(after, " {}.service", unit_name(setting, other));
    }
    let words = |folders: &[&PathBuf]| {
        let words: Vec<String> = folders.iter().map(|folder| word(folder)).collect();
        words.join(" ")
    };
    let base_dir: Vec<&PathBuf> = setting.base_dir.iter().collect();
    let written: Vec<&PathBuf> = setting.base_dir.iter().chain(&setting.written).collect();
    // An empty one is none.
    let (base_dir, written) = (words(&base_dir), words(&written));
    let private_tmp = if setting.needs_tmp { "no" } else { "yes" };
    format!(
        "{MARK} {server}
[Unit]
Description={description} of the PostgreSQL server {server}
Documentation=man:{page}
Wants=network-online.target
After={after}
RequiresMountsFor={base_dir}

[Service]
Type=oneshot
User={user}
ExecStart={program} -v -c {configuration} {command} {server}{after_server}
# Status 4: another pgkeep is at work. Anything else waits for the timer, or for a person.
Restart=on-failure
RestartSec=5min
RestartPreventExitStatus=1 2 3 5 101 SIGKILL
# The journal has a line for each step; the report is not needed there.
StandardOutput=null
UMask=0077
Nice=10
IOSchedulingPriority=7

ReadWritePaths={written}
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp={private_tmp}
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
CapabilityBoundingSet=
LockPersonality=yes
MemoryDenyWriteExecute=yes
NoNewPrivileges=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
",
        server = setting.server,
        description = job.description,
        page = job.page,
        user = setting.user,
        program = word(&setting.program).replace('$', "$$"),
        configuration = word(&setting.configuration).replace('$', "$$"),
        command = job.command,
        after_server = job.after_server,
    )
}

fn timer(setting: &Setting, job: &Job) -> String {
    format!(
        "{MARK} {server}
[Unit]
Description=Time for: {description} of the PostgreSQL server {server}

[Timer]
OnCalendar={when}
RandomizedDelaySec={spread}
# What was missed while the machine was off is made up for.
Persistent=true

[Install]
WantedBy=timers.target
",
        server = setting.server,
        description = job.description,
        when = job.when,
        spread = job.spread,
    )
}

/// A path as one word of a unit file.
fn word(path: &Path) -> String {
    let path = path.to_string_lossy().replace('%', "%%");
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@,%".contains(c);
    if path.chars().all(is_plain) {
        return path;
    }
    format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting() -> Setting {
        Setting {
            server: "primary".to_owned(),
            program: "/usr/local/bin/pgkeep".into(),
            configuration: "/etc/pg keep/50%.conf".into(),
            user: "backup".to_owned(),
            base_dir: Some("/srv/backup".into()),
            written: vec!["/var/log/pgkeep".into()],
            needs_tmp: false,
            verifies: true,
        }
    }

    #[test]
    fn every_job_has_a_service_and_a_timer() {
        let units = units(&setting());
        let names: Vec<&str> = units.iter().map(|unit| unit.name.as_str()).collect();
        assert_eq!(names.len(), 2 * JOBS.len());
        assert!(names.contains(&"pgkeep-primary-incremental.service"));
        assert!(names.contains(&"pgkeep-primary-incremental.timer"));
        for unit in &units {
            assert!(unit.text.starts_with(MARK), "{}", unit.text);
        }
        for job in JOBS.iter().flat_map(|job| job.after) {
            assert!(JOBS.iter().any(|known| known.name == *job), "{job}");
        }
    }

    /// Without `verification` the run for timers has nothing to go by, and fails.
    #[test]
    fn what_is_never_due_is_not_verified() {
        let mut setting = setting();
        setting.verifies = false;
        let units = units(&setting);
        assert_eq!(units.len(), 2 * (JOBS.len() - 1));
        assert!(!units.iter().any(|unit| unit.name.contains("-verify.")));
    }

    #[test]
    fn paths_stay_one_word_and_what_they_are() {
        let service = service(&setting(), &JOBS[1]);
        let line = "ExecStart=/usr/local/bin/pgkeep -v -c \"/etc/pg keep/50%%.conf\" backup primary newest --or-full\n";
        assert!(service.contains(line), "{service}");
        let paths = "ReadWritePaths=/srv/backup /var/log/pgkeep\n";
        assert!(service.contains(paths), "{service}");
        assert_eq!(word(Path::new("/a\"b\\c")), "\"/a\\\"b\\\\c\"");
    }

    #[test]
    fn a_socket_in_tmp_must_be_seen() {
        let mut setting = setting();
        assert!(service(&setting, &JOBS[0]).contains("PrivateTmp=yes"));
        setting.needs_tmp = true;
        assert!(service(&setting, &JOBS[0]).contains("PrivateTmp=no"));
    }
}
