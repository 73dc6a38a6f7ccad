//! What the role must be allowed to do, and the SQL that allows it.

use postgres::Client;

use crate::error::{Error, Result};
use crate::pg::version::Major;
use crate::server::connect::server_error;

/// One thing a backup needs of its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirement {
    /// The attribute REPLICATION, for the slot that keeps the WAL.
    Replication,
    /// Membership of a role of PostgreSQL's own.
    Member(&'static str),
    /// The right to call a function, which PostgreSQL keeps to superusers at first.
    Execute(&'static str),
}

/// What a backup cannot do without on a server of this version.
pub fn required(major: Major) -> Vec<Requirement> {
    let mut required = vec![
        Requirement::Replication,
        Requirement::Member("pg_read_server_files"),
        Requirement::Execute("pg_ls_dir(text)"),
        Requirement::Execute("pg_ls_dir(text, boolean, boolean)"),
        Requirement::Execute("pg_stat_file(text, boolean)"),
        Requirement::Execute("pg_read_binary_file(text, bigint, bigint, boolean)"),
    ];
    required.extend(session_functions(major).map(Requirement::Execute));
    required
}

/// What makes a backup better but is not needed: configuration files outside the data
/// directory are found with it.
pub const WELCOME: Requirement = Requirement::Member("pg_read_all_settings");

fn session_functions(major: Major) -> [&'static str; 2] {
    if major >= Major::V15 {
        ["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"]
    } else {
        [
            "pg_start_backup(text, boolean, boolean)",
            "pg_stop_backup(boolean, boolean)",
        ]
    }
}

impl Requirement {
    /// In words: "to be a member of …".
    pub fn describe(self) -> String {
        match self {
            Requirement::Replication => "the attribute REPLICATION".to_owned(),
            Requirement::Member(role) => format!("membership of the role {role}"),
            Requirement::Execute(function) => format!("EXECUTE on the function {function}"),
        }
    }

    /// The SQL that gives it to a role.
    pub fn grant(self, role: &str) -> String {
        let role = quoted(role);
        match self {
            Requirement::Replication => format!("ALTER ROLE {role} REPLICATION;"),
            Requirement::Member(group) => format!("GRANT {group} TO {role};"),
            Requirement::Execute(function) => {
                format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {role};")
            }
        }
    }

    /// Whether the connected role has it, as an expression of SQL.
    fn is_met(self) -> String {
        match self {
            Requirement::Replication => {
                "(SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user)"
                    .to_owned()
            }
            Requirement::Member(group) => {
                format!("pg_has_role(current_user, {}, 'USAGE')", literal(group))
            }
            Requirement::Execute(function) => {
                format!("has_function_privilege({}, 'EXECUTE')", literal(function))
            }
        }
    }
}

/// Everything required, and whether the connected role has it.
pub fn met(client: &mut Client, major: Major) -> Result<Vec<(Requirement, bool)>> {
    let required = required(major);
    let expressions: Vec<String> = required.iter().map(|one| one.is_met()).collect();
    let answers: Vec<bool> = client
        .query_typed_one(&format!("SELECT ARRAY[{}]", expressions.join(", ")), &[])
        .and_then(|row| row.try_get(0))
        .map_err(|error| server_error("ask for the role's permissions", &error))?;
    Ok(required.into_iter().zip(answers).collect())
}

/// What a role lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    role: String,
    missing: Vec<Requirement>,
}

impl Lack {
    /// What the connected role lacks; nothing where it may do all that a backup can want.
    pub fn of(client: &mut Client, major: Major) -> Result<Option<Lack>> {
        let met = met(client, major)?.into_iter();
        let missing: Vec<Requirement> = met
            .filter_map(|(requirement, is_met)| (!is_met).then_some(requirement))
            .collect();
        if missing.is_empty() {
            return Ok(None);
        }
        let role = current_role(client)?;
        Ok(Some(Lack { role, missing }))
    }

    /// Whether it leaves the attribute REPLICATION, by which alone the server makes base backups of its own.
    pub fn leaves_replication(&self) -> bool {
        !self.missing.contains(&Requirement::Replication)
    }

    /// In words: "the role … lacks …".
    pub fn describe(&self) -> String {
        let lacks: Vec<String> = self.missing.iter().map(|one| one.describe()).collect();
        format!("the role {} lacks {}", self.role, lacks.join(", "))
    }

    /// What to do about it.
    fn remedy(&self, server: &str) -> String {
        let grants: Vec<String> = self
            .missing
            .iter()
            .map(|one| one.grant(&self.role))
            .collect();
        format!(
            "as a superuser run: {}\n(pgkeep permissions {server} prints all of it)",
            grants.join(" ")
        )
    }

    /// An error that would not be one if the role lacked nothing.
    pub fn blamed_for(&self, error: Error, server: &str) -> Error {
        let remedy = self.remedy(server);
        let hint = match error.advice() {
            Some(advice) => format!("{advice}; or {remedy}"),
            None => remedy,
        };
        error.hint(hint)
    }

    /// An error that names it with the SQL that grants it.
    pub fn error(&self, server: &str) -> Error {
        Error::server(self.describe()).hint(self.remedy(server))
    }
}

/// An error that names what the role lacks with the SQL that grants it; fine where nothing lacks.
pub fn check(client: &mut Client, major: Major, server: &str) -> Result<()> {
    Lack::of(client, major)?.map_or(Ok(()), |lack| Err(lack.error(server)))
}

/// The role the connection runs as.
pub fn current_role(client: &mut Client) -> Result<String> {
    client
        .query_typed_one("SELECT current_user::text", &[])
        .and_then(|row| row.try_get(0))
        .map_err(|error| server_error("ask for the role's name", &error))
}

/// The SQL that makes `role` able to back up; for every version where the server's is not known.
pub fn script(role: &str, major: Option<Major>) -> String {
    let mut lines = vec![
        format!(
            "-- What pgkeep needs of the role {}; run it as a superuser.",
            quoted(role).replace('\n', " ")
        ),
        "DO $pgkeep$".to_owned(),
        "BEGIN".to_owned(),
        format!(
            "  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {}) THEN",
            literal(role)
        ),
        format!("    CREATE ROLE {} LOGIN REPLICATION;", quoted(role)),
        "  END IF;".to_owned(),
        "END".to_owned(),
        "$pgkeep$;".to_owned(),
    ];
    let grants = |requirements: Vec<Requirement>| {
        requirements
            .into_iter()
            .map(|one| one.grant(role))
            .collect::<Vec<_>>()
    };
    if major.is_none_or(|major| major >= Major::V15) {
        lines.push(
            "-- LOGIN and REPLICATION are enough for full backups of primaries (PostgreSQL 15 and later). All else takes the rest:"
                .to_owned(),
        );
    }
    match major {
        Some(major) => lines.extend(grants(required(major))),
        None => {
            let newer = grants(required(Major::V15));
            let older = grants(required(Major::V14));
            lines.extend(newer.iter().filter(|line| older.contains(line)).cloned());
            lines.extend(
                [
                    "DO $pgkeep$",
                    "BEGIN",
                    "  IF current_setting('server_version_num')::int >= 150000 THEN",
                ]
                .map(str::to_owned),
            );
            lines.extend(
                newer
                    .iter()
                    .filter(|line| !older.contains(line))
                    .map(|line| format!("    {line}")),
            );
            lines.push("  ELSE".to_owned());
            lines.extend(
                older
                    .iter()
                    .filter(|line| !newer.contains(line))
                    .map(|line| format!("    {line}")),
            );
            lines.extend(["  END IF;", "END", "$pgkeep$;"].map(str::to_owned));
        }
    }
    lines.push("-- So that configuration files outside the data directory are found:".to_owned());
    lines.push(WELCOME.grant(role));
    if major.is_none_or(|major| major >= Major::V17) {
        lines.extend([
            "-- Where databases and tablespaces are created, moved or dropped without a pause, a backup comes to its end by holding".to_owned(),
            "-- that up for a moment; the role may do so with this (PostgreSQL 17 and later):".to_owned(),
            format!(
                "-- GRANT MAINTAIN ON pg_catalog.pg_database, pg_catalog.pg_tablespace TO {};",
                quoted(role).replace('\n', " ")
            ),
        ]);
    }
    lines.join("\n")
}

/// An SQL identifier, always in quotes.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    postgres_protocol::escape::escape_literal(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_wherever_they_stand() {
        let script = script("o'\"x", Some(Major::V14));
        assert!(script.contains("CREATE ROLE \"o'\"\"x\" LOGIN REPLICATION"));
        assert!(script.contains("rolname = 'o''\"x'"));
        assert!(script.contains("pg_start_backup(text, boolean, boolean)"));
        assert!(!script.contains("pg_backup_start") && !script.contains("MAINTAIN"));
    }

    #[test]
    fn without_a_version_the_script_asks_the_server() {
        let script = script("backup", None);
        assert!(script.contains("pg_start_backup") && script.contains("pg_backup_start"));
        assert_eq!(script.matches("pg_stat_file").count(), 1);
    }
}
