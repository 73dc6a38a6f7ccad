use std::collections::{BTreeMap, BTreeSet};

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use crate::cli::app::App;
use crate::cli::commands::columns::Columns;
use crate::cli::commands::describe;
use crate::cli::commands::repository::Reading;
use crate::cli::report::{Answer, Fields, Value, field};
use crate::cli::table::{Column, Look, Row, Screen, Table, age, span};
use crate::error::{Error, Result};
use crate::repository::backup_info::{BackupInfo, Verdict};
use crate::repository::catalogue::{Backup, Catalogue};
use crate::repository::identifier::Identifier;
use crate::size::readable;

/// List all backups of a server, or of all
///
/// Lists every finished backup, those that cannot be used marked with Valid: no. With --format table there is a line for
/// each, and with --format tree what is an increment of a backup stands below that.
#[derive(Debug, Args)]
pub(crate) struct ListBackup {
    /// The server's name, or a pattern such as 'prod-*'; without it, all that are configured
    server: Option<String>,
    /// Oldest or newest first
    #[arg(long, value_enum, default_value_t = Sort::Asc)]
    sort: Sort,
    #[command(flatten)]
    columns: Columns,
    #[command(flatten)]
    repository: Reading,
}

/// The order of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// Oldest first.
    Asc,
    /// Newest first.
    Desc,
}

/// What a table says of a backup.
const COLUMNS: &[Column] = &[
    Column::text("server", 0),
    Column::text("backup", 0),
    Column::number("age", 1),
    Column::text("kind", 2),
    Column::number("size", 1),
    Column::number("ratio", 5),
    Column::number("took", 4),
    Column::text("wal", 6),
    Column::number("verified", 1),
    Column::text("keep", 3),
    Column::text("valid", 0),
    Column::text("comment", 0),
];

impl ListBackup {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let mut request = self.repository.request();
        let server = self.server.iter();
        request.extend(server.map(|server| field("Server", server.as_str())));
        request
    }

    /// Lists the backups.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let names = app.configuration.chosen(self.server.as_deref())?;
        let is_one = self
            .server
            .as_ref()
            .is_some_and(|name| names == [name.as_str()]);
        let screen = Screen::of_stdout();
        let mut table = Table::new(if is_one { &COLUMNS[1..] } else { COLUMNS });
        let mut servers: Vec<Fields> = Vec::new();
        let mut failure: Option<Error> = None;
        for name in names {
            let read = self.repository.server(app, &name);
            match read.and_then(|server| server.catalogue()) {
                Ok(catalogue) => {
                    for (branch, backup) in self.drawn(app, &catalogue, screen) {
                        let mut row = row(&catalogue, backup, &branch, Timestamp::now());
                        if !is_one {
                            row.cells.insert(0, name.clone());
                        }
                        table.add(row);
                    }
                    servers.push(self.describe(&name, &catalogue));
                }
                Err(error) if is_one => return Err(error),
                // One server's folder that cannot be read says nothing of the others.
                Err(error) => {
                    app.interrupt.check()?;
                    servers.push(vec![
                        field("Server", name.as_str()),
                        field("Error", error.message()),
                    ]);
                    failure.get_or_insert(error.context(format_args!("server {name}")));
                }
            }
        }
        let plain = match app.format.is_table() {
            true => Some(table.render(self.columns.chosen(), screen)?),
            false => None,
        };
        Ok(Answer {
            response: match is_one {
                true => servers.pop().unwrap_or_default(),
                false => {
                    let servers = servers.into_iter().map(Value::Map);
                    vec![field("Servers", servers.collect::<Vec<Value>>())]
                }
            },
            plain,
            error: failure,
        })
    }

    fn describe(&self, server: &str, catalogue: &Catalogue) -> Fields {
        let mut backups: Vec<Value> = catalogue
            .backups()
            .iter()
            .map(|backup| describe::listed(catalogue, backup).into())
            .collect();
        if self.sort == Sort::Desc {
            backups.reverse();
        }
        let newest = catalogue
            .backups()
            .iter()
            .rev()
            .find_map(|backup| catalogue.check(backup).ok());
        let mut response = vec![field("Backups", backups)];
        if let Some(info) = newest {
            response.push(field("MajorVersion", info.major_version));
            response.push(field("MinorVersion", info.minor_version));
        }
        response.push(field("Server", server));
        response.push(field("ServerVersion", env!("CARGO_PKG_VERSION")));
        response
    }

    /// The backups in the order of the lines, each with what is drawn before it.
    fn drawn<'a>(
        &self,
        app: &App,
        catalogue: &'a Catalogue,
        screen: Screen,
    ) -> Vec<(String, &'a Backup)> {
        let mut sorted: Vec<&Backup> = catalogue.backups().iter().collect();
        if self.sort == Sort::Desc {
            sorted.reverse();
        }
        match app.format.is_tree() {
            true => Tree::new(&sorted, screen).draw(),
            false => sorted
                .into_iter()
                .map(|backup| (String::new(), backup))
                .collect(),
        }
    }
}

/// Backups below those that they are increments of.
struct Tree<'a> {
    roots: Vec<&'a Backup>,
    children: BTreeMap<Identifier, Vec<&'a Backup>>,
    screen: Screen,
    drawn: Vec<(String, &'a Backup)>,
    seen: BTreeSet<Identifier>,
}

impl<'a> Tree<'a> {
    fn new(sorted: &[&'a Backup], screen: Screen) -> Tree<'a> {
        let known: BTreeSet<Identifier> = sorted.iter().map(|backup| backup.identifier).collect();
        let mut tree = Tree {
            roots: Vec::new(),
            children: BTreeMap::new(),
            screen,
            drawn: Vec::new(),
            seen: BTreeSet::new(),
        };
        for backup in sorted {
            match parent(backup).filter(|parent| known.contains(parent)) {
                Some(parent) => tree.children.entry(parent).or_default().push(backup),
                None => tree.roots.push(backup),
            }
        }
        // Those that came on a backup are in the order they came in, whatever the order of the whole.
        for children in tree.children.values_mut() {
            children.sort_by_key(|backup| backup.identifier);
        }
        // Damaged ones may go round in a circle.
        tree.roots.extend(sorted);
        tree
    }

    fn draw(mut self) -> Vec<(String, &'a Backup)> {
        for root in std::mem::take(&mut self.roots) {
            self.add(String::new(), root);
            self.below(root, "");
        }
        self.drawn
    }

    fn add(&mut self, branch: String, backup: &'a Backup) {
        if self.seen.insert(backup.identifier) {
            self.drawn.push((branch, backup));
        }
    }

    /// The children of a backup that were not drawn yet.
    fn children(&self, backup: &Backup) -> Vec<&'a Backup> {
        let children = self.children.get(&backup.identifier).into_iter().flatten();
        let fresh = |child: &&&Backup| !self.seen.contains(&child.identifier);
        children.filter(fresh).copied().collect()
    }

    /// What came on a backup. A chain goes straight down, so that a long one stays narrow; only where several came on the
    /// same one is there another branch.
    fn below(&mut self, backup: &'a Backup, trunk: &str) {
        let children = self.children(backup);
        if let [child] = children.as_slice() {
            let mut chain = vec![*child];
            self.seen.insert(child.identifier);
            let mut last: &'a Backup = child;
            while let [next] = self.children(last).as_slice() {
                self.seen.insert(next.identifier);
                chain.push(next);
                last = next;
            }
            for (number, backup) in chain.iter().enumerate() {
                let branch = self.screen.branch(number + 1 == chain.len());
                self.drawn.push((format!("{trunk}{branch}"), backup));
            }
            self.below(last, &format!("{trunk}{}", self.screen.trunk(true)));
            return;
        }
        for (number, child) in children.iter().enumerate() {
            let is_last = number + 1 == children.len();
            self.add(format!("{trunk}{}", self.screen.branch(is_last)), child);
            self.below(child, &format!("{trunk}{}", self.screen.trunk(is_last)));
        }
    }
}

fn parent(backup: &Backup) -> Option<Identifier> {
    let info = backup.info.as_ref().ok()?;
    Some(info.incremental.as_ref()?.parent)
}

/// One line, without the server.
fn row(catalogue: &Catalogue, backup: &Backup, branch: &str, now: Timestamp) -> Row {
    let since = |time: Option<Timestamp>| {
        let seconds = time.map(|time| now.duration_since(time).as_secs().max(0));
        seconds.map_or(String::new(), |seconds| age(seconds.unsigned_abs()))
    };
    let why = catalogue.check(backup).err();
    let mut cells = vec![
        format!("{branch}{}", backup.identifier),
        since(backup.identifier.time()),
    ];
    match &backup.info {
        Ok(info) => cells.extend([
            kind(catalogue, info),
            readable(info.backup_size),
            ratio(info),
            span(info.elapsed),
            info.wal.clone(),
            match &info.verification {
                None => "never".to_owned(),
                Some(verification) => match verification.verdict {
                    Verdict::Sound => since(Some(verification.time)),
                    Verdict::Damaged { .. } => "damaged".to_owned(),
                },
            },
            if info.keep { "keep" } else { "" }.to_owned(),
            if why.is_none() { "yes" } else { "no" }.to_owned(),
            describe::comments(info),
        ]),
        Err(_) => {
            cells.extend(["?"; 7].map(str::to_owned));
            cells.extend(["no", ""].map(str::to_owned));
        }
    }
    Row {
        cells,
        look: if why.is_some() {
            Look::Bad
        } else {
            Look::Plain
        },
        below: why.iter().map(|why| why.message().to_owned()).collect(),
    }
}

/// Full, or the how manieth increment on a full one.
fn kind(catalogue: &Catalogue, info: &BackupInfo) -> String {
    match (&info.incremental, catalogue.ancestors(info)) {
        (None, _) => "full".to_owned(),
        (Some(_), Ok(ancestors)) => format!("incr {}", ancestors.len()),
        (Some(_), Err(_)) => "incr ?".to_owned(),
    }
}

fn ratio(info: &BackupInfo) -> String {
    match info.backup_size {
        0 => String::new(),
        stored => format!("{:.1}", info.restore_size as f64 / stored as f64),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::repository::backup_info::tests::example;
    use crate::repository::backup_info::{ChangeSource, Increment};
    use crate::repository::layout::ServerFolder;

    fn tree(backups: &[(&str, Option<&str>)]) -> Vec<String> {
        let base = tempfile::tempdir().unwrap();
        let folder = ServerFolder::new(base.path(), "primary");
        folder.create().unwrap();
        for (name, parent) in backups {
            let identifier = format!("2026010{name}000000");
            let mut info = example(&identifier);
            info.incremental = parent.map(|parent| Increment {
                parent: format!("2026010{parent}000000").parse().unwrap(),
                from_lsn: info.start_lsn,
                from_timeline: info.start_timeline,
                sources: vec![ChangeSource::Wal],
            });
            let backup = folder.backup(identifier.parse().unwrap());
            backup.place().create_folder().unwrap();
            info.write(&backup).unwrap();
        }
        let catalogue = Catalogue::read("primary", &folder).unwrap();
        let screen = Screen {
            width: None,
            colours: false,
            lines: false,
        };
        let sorted: Vec<&Backup> = catalogue.backups().iter().collect();
        let drawn = Tree::new(&sorted, screen).draw().into_iter();
        let line = |(branch, backup): (String, &Backup)| {
            let kind = kind(&catalogue, backup.info.as_ref().unwrap());
            format!("{branch}{} {kind}", &backup.identifier.to_string()[7..8])
        };
        drawn.map(line).collect()
    }

    #[test]
    fn chains_go_straight_down_and_branches_aside() {
        let drawn = tree(&[
            ("1", None),
            ("2", Some("1")),
            ("3", Some("2")),
            ("4", Some("3")),
            ("5", Some("3")),
            ("6", Some("5")),
            ("7", None),
            ("8", Some("7")),
        ]);
        assert_eq!(
            drawn,
            [
                "1 full",
                "|- 2 incr 1",
                "`- 3 incr 2",
                "   |- 4 incr 3",
                "   `- 5 incr 3",
                "      `- 6 incr 4",
                "7 full",
                "`- 8 incr 1",
            ]
        );
    }

    #[test]
    fn every_backup_has_one_line_whatever_its_parent_is() {
        assert_eq!(tree(&[("2", Some("1"))]), ["2 incr ?"]);
        let round = tree(&[("1", Some("2")), ("2", Some("1")), ("3", Some("3"))]);
        assert_eq!(round.len(), 3, "{round:?}");
    }
}
