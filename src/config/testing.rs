//! What the tests of this layer share.

use super::{Configuration, Environment, Scope, Storage};
use crate::error::Result;
use std::path::{Path, PathBuf};

/// An environment of its own, of user ann, with these variables.
pub(super) fn environment(variables: &[(&str, &str)]) -> Environment {
    Environment {
        variables: variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        home: Some(PathBuf::from("/home/ann")),
        user_name: Some("ann".to_owned()),
        is_root: false,
        system_directory: PathBuf::from("/nowhere"),
    }
}

/// The configuration in a file `f` with this text.
pub(super) fn configuration(text: &str, variables: &[(&str, &str)]) -> Result<Configuration> {
    parse(text, variables, Scope::All)
}

/// The same of what says where the files of a server are stored.
pub(super) fn storage(text: &str, variables: &[(&str, &str)], server: &str) -> Result<Storage> {
    parse(text, variables, Scope::StorageOf(server))?.storage(server)
}

fn parse(text: &str, variables: &[(&str, &str)], scope: Scope<'_>) -> Result<Configuration> {
    Configuration::parse(Path::new("f"), text, &environment(variables), scope)
}
