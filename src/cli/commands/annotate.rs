use clap::{Args, ValueEnum};

use crate::cli::app::App;
use crate::cli::commands::describe;
use crate::cli::commands::repository::Repository;
use crate::cli::report::{Answer, Fields, field};
use crate::error::{Error, Result};
use crate::lifecycle::annotate::{self, Change};
use crate::repository::identifier::Selector;

/// Add, update or remove a comment on a backup
///
/// Comments are shown by info and list-backup, as KEY|COMMENT with commas between; a backslash
/// stands before a backslash, bar or comma that belongs to the text. info also shows them as Annotations,
/// each by its key.
#[derive(Debug, Args)]
pub(crate) struct Annotate {
    /// The server's name
    server: String,
    /// Identifier or its first digits, newest, latest or oldest
    backup: Selector,
    /// What to do
    #[arg(value_enum)]
    action: Action,
    /// The comment's key: any text
    key: String,
    /// The comment: any text; none for remove
    comment: Option<String>,
    #[command(flatten)]
    repository: Repository,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Add a comment under a new key
    Add,
    /// Replace the comment of a key
    Update,
    /// Remove a key and its comment
    Remove,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Action::Add => "add",
            Action::Update => "update",
            Action::Remove => "remove",
        }
    }
}

impl Annotate {
    /// What was asked.
    pub(crate) fn request(&self) -> Fields {
        let mut request = vec![
            field("Action", self.action.name()),
            field("Backup", self.backup.to_string()),
        ];
        request.extend(self.comment.as_deref().map(|text| field("Comment", text)));
        request.extend(self.repository.request());
        request.push(field("Key", self.key.as_str()));
        request.push(field("Server", self.server.as_str()));
        request
    }

    /// Changes the comment.
    pub(crate) fn run(&self, app: &App) -> Result<Answer> {
        let change = self.change()?;
        let server = self.repository.server(app, &self.server)?;
        let identifier = server.catalogue()?.select(&self.backup)?.identifier;
        annotate::annotate(&server.folder, identifier, change, &app.interrupt)?;
        let catalogue = server.catalogue()?;
        let backup = catalogue.find(identifier)?;
        Ok(Answer::success(describe::details(&catalogue, backup)?))
    }

    fn change(&self) -> Result<Change> {
        if self.key.is_empty() {
            return Err(Error::usage("the key of a comment must not be empty"));
        }
        let key = self.key.clone();
        match (self.action, self.comment.clone()) {
            (Action::Add, Some(comment)) => Ok(Change::Add { key, comment }),
            (Action::Update, Some(comment)) => Ok(Change::Update { key, comment }),
            (Action::Remove, None) => Ok(Change::Remove { key }),
            (Action::Remove, Some(_)) => Err(Error::usage("remove takes a key and no comment")),
            (Action::Add | Action::Update, None) => Err(Error::usage(format!(
                "{} takes a key and a comment",
                self.action.name()
            ))),
        }
    }
}
