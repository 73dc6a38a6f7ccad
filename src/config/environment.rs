//! What the process was started with, captured once.
//!
//! Everything below the command line takes an [`Environment`] and never reads
//! the process's own, so that tests can give each case another one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Environment variables, the user and the folders that follow from them.
#[derive(Clone)]
pub struct Environment {
    /// Environment variables by name.
    pub variables: BTreeMap<String, String>,
    /// The user's home: `$HOME`, else the password database's.
    pub home: Option<PathBuf>,
    /// The name that belongs to the effective user ID.
    pub user_name: Option<String>,
    /// The effective user ID is 0.
    pub is_root: bool,
    /// The folder of system-wide configuration, `/etc`.
    pub system_directory: PathBuf,
}

impl Environment {
    /// Captures the process's environment.
    pub fn capture() -> Environment {
        let variables: BTreeMap<String, String> = std::env::vars_os()
            .map(|(name, value)| {
                (
                    name.to_string_lossy().into_owned(),
                    value.to_string_lossy().into_owned(),
                )
            })
            .collect();
        let user_id = rustix::process::geteuid();
        let account = Account::find(Path::new("/etc/passwd"), user_id.as_raw());
        let set = |name: &str| variables.get(name).filter(|value| !value.is_empty());
        let home = set("HOME").map(PathBuf::from);
        // Accounts that a directory service provides are in no passwd file.
        let user_name = set("LOGNAME").or_else(|| set("USER")).cloned();
        let (account_name, account_home) = match account {
            Some(Account { name, home }) => (Some(name), Some(home)),
            None => (None, None),
        };
        Environment {
            home: home.or(account_home),
            user_name: account_name.or(user_name),
            is_root: user_id.is_root(),
            system_directory: PathBuf::from("/etc"),
            variables,
        }
    }

    /// The name that belongs to a user ID; none where the password database has no such user.
    pub fn user_name_of(user_id: u32) -> Option<String> {
        Account::find(Path::new("/etc/passwd"), user_id).map(|account| account.name)
    }

    /// A variable's value; an empty one counts as not set, as in libpq.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// A folder of the XDG Base Directory Specification, which asks to ignore relative ones.
    fn base_directory(&self, variable: &str, below_home: &str) -> Option<PathBuf> {
        self.variable(variable)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(|| self.home.as_ref().map(|home| home.join(below_home)))
    }

    /// Where the user keeps configuration: `$XDG_CONFIG_HOME` or `~/.config`.
    pub fn configuration_directory(&self) -> Option<PathBuf> {
        self.base_directory("XDG_CONFIG_HOME", ".config")
    }

    /// Where backups go if nothing says otherwise: `pgkeep` in `$XDG_DATA_HOME`
    /// or `~/.local/share`; `/var/lib/pgkeep` for root.
    pub fn default_base_dir(&self) -> Option<PathBuf> {
        if self.is_root {
            return Some(PathBuf::from("/var/lib/pgkeep"));
        }
        self.base_directory("XDG_DATA_HOME", ".local/share")
            .map(|directory| directory.join("pgkeep"))
    }

    /// A path of the configuration with a leading `~/` or `$HOME/` replaced.
    pub fn expand(&self, path: &str) -> PathBuf {
        let below_home = path
            .strip_prefix("~/")
            .or_else(|| path.strip_prefix("$HOME/"));
        match (below_home, &self.home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(path),
        }
    }
}

/// One line of the password database, passwd(5).
struct Account {
    name: String,
    home: PathBuf,
}

impl Account {
    fn find(passwd: &Path, user_id: u32) -> Option<Account> {
        let text = fs::read_to_string(passwd).ok()?;
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let id = fields.nth(1)?;
            let home = fields.nth(2)?;
            (id.parse() == Ok(user_id)).then(|| Account {
                name: name.to_owned(),
                home: PathBuf::from(home),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::config::testing::environment;

    #[test]
    fn an_account_is_found_by_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let passwd = folder.path().join("passwd");
        fs::write(
            &passwd,
            "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:100:Ann,,:/home/ann:/bin/sh\n",
        )
        .unwrap();
        let account = Account::find(&passwd, 1000).unwrap();
        assert_eq!(account.name, "ann");
        assert_eq!(account.home, Path::new("/home/ann"));
        assert!(Account::find(&passwd, 100).is_none());
    }

    #[test]
    fn empty_variables_count_as_unset() {
        let environment = environment(&[("PGHOST", ""), ("PGPORT", "1")]);
        assert_eq!(environment.variable("PGHOST"), None);
        assert_eq!(environment.variable("PGPORT"), Some("1"));
    }

    #[test]
    fn folders_follow_xdg_and_home() {
        let mut given = environment(&[("XDG_CONFIG_HOME", "/c"), ("XDG_DATA_HOME", "relative")]);
        assert_eq!(given.configuration_directory(), Some("/c".into()));
        assert_eq!(
            given.default_base_dir(),
            Some("/home/ann/.local/share/pgkeep".into())
        );
        given.is_root = true;
        assert_eq!(given.default_base_dir(), Some("/var/lib/pgkeep".into()));
    }

    #[test]
    fn the_home_folder_is_expanded_only_in_front() {
        let environment = environment(&[]);
        assert_eq!(environment.expand("~/a"), Path::new("/home/ann/a"));
        assert_eq!(environment.expand("$HOME/a"), Path::new("/home/ann/a"));
        assert_eq!(environment.expand("/x/~/a"), Path::new("/x/~/a"));
    }
}
