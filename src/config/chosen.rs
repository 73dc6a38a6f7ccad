//! Which of the configured servers a word on the command line means.

use glob::Pattern;

use crate::config::{Configuration, ServerName};
use crate::error::{Error, Result};

/// Whether a word is a pattern: no server's name has such a character.
fn is_pattern(word: &str) -> bool {
    word.contains(['*', '?', '['])
}

impl Configuration {
    /// The servers that a pattern such as `prod-*` fits, or the one of that name, or all where nothing is said; in the order of
    /// the file.
    pub fn chosen(&self, word: Option<&str>) -> Result<Vec<String>> {
        let Some(word) = word else {
            let all: Vec<String> = self.servers().map(ToString::to_string).collect();
            return match all.is_empty() {
                true => Err(Error::usage("no server is configured").hint("name the server")),
                false => Ok(all),
            };
        };
        if !is_pattern(word) {
            return Ok(vec![word.to_owned()]);
        }
        let pattern = Pattern::new(word)
            .map_err(|error| Error::usage(format!("\"{word}\" is no pattern: {error}")))?;
        let servers = self.servers().map(ServerName::as_str);
        let fitting: Vec<String> = servers
            .filter(|name| pattern.matches(name))
            .map(str::to_owned)
            .collect();
        if fitting.is_empty() {
            let names: Vec<&str> = self.servers().map(ServerName::as_str).collect();
            return Err(
                Error::usage(format!("no server has a name that {word} fits")).hint(
                    match names.is_empty() {
                        true => "no server is configured".to_owned(),
                        false => format!("the servers there are {}", names.join(", ")),
                    },
                ),
            );
        }
        Ok(fitting)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::config::{Configuration, testing};

    #[test]
    fn a_pattern_means_the_servers_that_it_fits() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pgkeep.conf");
        let text = "[prod-1]\nhost = /a\n[test]\nhost = /b\n[prod-22]\nhost = /c\n";
        std::fs::write(&file, text).unwrap();
        let read = || Configuration::load(Some(&file), &testing::environment(&[])).unwrap();
        let chosen = |word: &str| read().chosen(Some(word)).unwrap();
        assert_eq!(read().chosen(None).unwrap(), ["prod-1", "test", "prod-22"]);
        assert_eq!(chosen("prod-*"), ["prod-1", "prod-22"]);
        assert_eq!(chosen("prod-?"), ["prod-1"]);
        assert_eq!(chosen("[a-z]est"), ["test"]);
        // Whether there is such a server is asked later, where names are suggested.
        assert_eq!(chosen("prof"), ["prof"]);
        let error = read().chosen(Some("x*")).unwrap_err();
        assert!(error.advice().unwrap().contains("prod-22"));
        assert!(read().chosen(Some("[")).is_err());
    }
}
