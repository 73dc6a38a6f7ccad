//! What the tests of this layer share.

use super::{Configuration, Environment};
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
    Configuration::parse(Path::new("f"), text, &environment(variables))
}
