//! The unprivileged account that servers, their tools and pgkeep run under.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

/// An account of this machine.
#[derive(Clone, Copy)]
struct Account {
    uid: u32,
    gid: u32,
}

/// True if this process may mount, change owners and become another user.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The user id that servers and pgkeep run with.
pub fn uid() -> u32 {
    other().map_or_else(
        || rustix::process::geteuid().as_raw(),
        |account| account.uid,
    )
}

/// The group id that servers and pgkeep run with.
pub fn gid() -> u32 {
    other().map_or_else(
        || rustix::process::getegid().as_raw(),
        |account| account.gid,
    )
}

/// The account to change to: none, unless this process is root's.
fn other() -> Option<Account> {
    static ACCOUNT: OnceLock<Option<Account>> = OnceLock::new();
    *ACCOUNT.get_or_init(|| {
        is_root().then(|| {
            named("postgres")
                .or_else(|| named("nobody"))
                .expect("an account postgres or nobody to run the servers")
        })
    })
}

fn named(name: &str) -> Option<Account> {
    let accounts = fs::read_to_string("/etc/passwd").ok()?;
    accounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        match fields[..] {
            [found, _, uid, gid, ..] if found == name => Some(Account {
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
            }),
            _ => None,
        }
    })
}

/// Gives a file or folder to the account.
pub fn give(path: &Path) {
    if let Some(account) = other() {
        chown(path, Some(account.uid), Some(account.gid)).unwrap();
    }
}

/// A command that runs as the account, with nothing of our environment.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .env("HOME", "/nonexistent")
        .current_dir("/");
    if let Some(account) = other() {
        command.uid(account.uid).gid(account.gid);
    }
    command
}

/// Runs a command to its end and gives its output; panics unless it succeeds.
pub fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command to its end, however that ends.
pub fn output(command: &mut Command) -> Output {
    command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}
