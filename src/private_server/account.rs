//! Whom the server runs as.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::error::{Error, Result};
use crate::restore::folder::Account;

/// The account that packages of PostgreSQL create.
const USUAL_ACCOUNT: &str = "postgres";

impl Account {
    /// `None` to stay who we are. PostgreSQL refuses root: then it is the owner of `directory`, or the
    /// account `postgres` where that is root too.
    pub(crate) fn to_run_under(directory: &Path) -> Result<Option<Account>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let owner = directory
            .ancestors()
            .find_map(|folder| fs::metadata(folder).ok());
        if let Some(owner) = owner.filter(|owner| owner.uid() != 0) {
            return Ok(Some(Account::owning(&owner)));
        }
        let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
        match named(&accounts, USUAL_ACCOUNT) {
            Some(account) => Ok(Some(account)),
            None => Err(Error::failed(
                "PostgreSQL does not run as root, and there is no account postgres",
            )
            .hint(format!(
                "give {} to the account that shall run the server",
                directory.display()
            ))),
        }
    }

    /// Lets a command run as the account.
    pub(crate) fn apply(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }
}

/// An account in the text of `/etc/passwd`.
fn named(accounts: &str, name: &str) -> Option<Account> {
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let mut numbers = fields.skip(1);
        Some(Account {
            uid: numbers.next()?.parse().ok()?,
            gid: numbers.next()?.parse().ok()?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let accounts = "root:x:0:0::/root:/bin/sh\npostgres2:x:5:6::/:\npostgres:x:7:8::/:\nodd\n";
        let expected = Account { uid: 7, gid: 8 };
        assert_eq!(named(accounts, "postgres"), Some(expected));
        assert_eq!(named(accounts, "odd"), None);
        assert_eq!(named(accounts, "nobody"), None);
    }
}
