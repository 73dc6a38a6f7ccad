//! `restore_command`: how a recovering server calls pgkeep for archived WAL.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::config::RepositoryName;
use crate::error::{Error, Result};

/// The `pgkeep wal get` that reads the archive a restore was made from. The server may run it as
/// another user, in another folder and with another environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalGet {
    /// This program; absolute.
    pub program: PathBuf,
    /// The configuration file; absolute.
    pub configuration: PathBuf,
    /// What the configuration leaves to the environment.
    pub environment: Vec<(&'static str, PathBuf)>,
    /// The repository that it was made from.
    pub repository: RepositoryName,
    /// When that was as it is to be read; nothing for now.
    pub as_of: Option<Timestamp>,
    /// The server's name in the configuration.
    pub server: String,
}

impl WalGet {
    /// The setting of a server that recovers as far as there is WAL.
    pub fn to_the_end(&self) -> Result<String> {
        self.restore_command("--partial ")
    }

    /// The setting of a standby. Of a segment that is unfinished here, its primary has more.
    pub fn whole_segments(&self) -> Result<String> {
        self.restore_command("")
    }

    fn restore_command(&self, option: &str) -> Result<String> {
        let mut command = String::new();
        for (variable, value) in &self.environment {
            command.push_str(&format!("{variable}={} ", word(value)?));
        }
        let mut from = match self.repository.is_main() {
            true => String::new(),
            false => format!("--from {} ", self.repository),
        };
        if let Some(moment) = self.as_of {
            from.push_str(&format!("--as-of {moment} "));
        }
        command.push_str(&format!(
            "{} -c {} wal get {from}{option}{} \"%f\" \"%p\"",
            word(&self.program)?,
            word(&self.configuration)?,
            self.server
        ));
        Ok(command)
    }
}

/// A path as one word of a shell's command line in which the server replaces `%` (common/percentrepl.c).
fn word(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) if !text.contains(char::is_control) => Ok(format!(
            "'{}'",
            text.replace('\'', r"'\''").replace('%', "%%")
        )),
        _ => Err(
            Error::usage(format!("{path:?} cannot be a part of restore_command"))
                .hint("give it a name of printable characters in UTF-8"),
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_shell_gets_paths_as_they_are() {
        let get = WalGet {
            program: "/usr/bin/pgkeep".into(),
            configuration: "/it's 100%/pgkeep.conf".into(),
            environment: vec![("XDG_DATA_HOME", "/home/ann".into())],
            repository: RepositoryName::MAIN,
            as_of: None,
            server: "primary".to_owned(),
        };
        assert_eq!(
            get.to_the_end().unwrap(),
            r#"XDG_DATA_HOME='/home/ann' '/usr/bin/pgkeep' -c '/it'\''s 100%%/pgkeep.conf' wal get --partial primary "%f" "%p""#
        );
        let second = WalGet {
            repository: "repo2".parse().unwrap(),
            as_of: Some("2026-11-22 13:10:36.25+01".parse().unwrap()),
            environment: Vec::new(),
            ..get.clone()
        };
        assert_eq!(
            second.whole_segments().unwrap(),
            r#"'/usr/bin/pgkeep' -c '/it'\''s 100%%/pgkeep.conf' wal get --from repo2 --as-of 2026-11-22T12:10:36.25Z primary "%f" "%p""#
        );
        let broken = WalGet {
            program: "/new\nline".into(),
            ..get
        };
        assert!(broken.whole_segments().is_err());
    }
}
