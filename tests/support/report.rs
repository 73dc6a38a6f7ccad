//! The report of a command, read back with a YAML or JSON parser.

use serde_json::Value;

/// A report as a tree of values.
#[derive(Clone)]
pub struct Report(pub Value);

impl Report {
    /// Reads a report in either format; panics if no parser takes it.
    pub fn parse(text: &str) -> Report {
        if text.trim_start().starts_with('{') {
            return Report(
                serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}:\n{text}")),
            );
        }
        let value: Value =
            serde_yaml::from_str(text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
        assert!(value.is_object(), "no report:\n{text}");
        Report(value)
    }

    /// What stands at a dotted path, or nothing.
    pub fn find(&self, path: &str) -> Option<&Value> {
        let mut value = &self.0;
        for key in path.split('.') {
            value = match value {
                Value::Array(items) => items.get(key.parse::<usize>().ok()?)?,
                _ => value.get(key)?,
            };
        }
        Some(value)
    }

    /// What stands at a dotted path, as text; panics if nothing does.
    pub fn at(&self, path: &str) -> String {
        match self.find(path) {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => panic!("no {path} in {}", self.0),
        }
    }

    /// A number at a dotted path.
    pub fn number(&self, path: &str) -> u64 {
        self.at(path)
            .parse()
            .unwrap_or_else(|_| panic!("{path} is no number: {}", self.at(path)))
    }

    /// The identifiers of a `list-backup` report, in its order.
    pub fn backups(&self) -> Vec<String> {
        let backups = self.find("Response.Backups").and_then(Value::as_array);
        backups
            .unwrap_or_else(|| panic!("no list of backups in {}", self.0))
            .iter()
            .map(|backup| Report(backup.clone()).at("Backup"))
            .collect()
    }
}
