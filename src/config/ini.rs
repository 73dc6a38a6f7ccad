//! The syntax of the configuration file: sections of `key = value` lines.
//!
//! As in pgmoneta: `#` or `;` in the first column that is not blank opens a
//! comment, `#` after a blank ends a value, and a value in single or double
//! quotes may hold anything but that quote. Every section and value knows its
//! line, for messages.

use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::path::Path;

/// One `[name]` and the lines below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) name: String,
    /// Counted from 1.
    pub(super) line: usize,
    pub(super) settings: Vec<Setting>,
}

/// One `key = value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) key: String,
    pub(super) value: String,
    /// Counted from 1.
    pub(super) line: usize,
}

/// Reads a whole file; `path` only serves messages.
pub(super) fn parse(path: &Path, text: &str) -> Result<Vec<Section>> {
    let mut sections: Vec<Section> = Vec::new();
    let mut names = BTreeSet::new();
    let mut keys = BTreeSet::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let wrong = |what: &str| Error::usage(format!("{}:{number}: {what}", path.display()));
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            let name = section_name(rest)
                .ok_or_else(|| wrong("this is no section").hint("write a section as [name]"))?;
            if !names.insert(name.to_owned()) {
                return Err(wrong(&format!("section [{name}] is here a second time"))
                    .hint("put all settings of a section below one [name]"));
            }
            keys.clear();
            sections.push(Section {
                name: name.to_owned(),
                line: number,
                settings: Vec::new(),
            });
            continue;
        }
        let (key, value) = line.split_once('=').ok_or_else(|| {
            wrong("this is neither a section nor a setting")
                .hint("write a setting as key = value, a section as [name]")
        })?;
        let key = key.trim().trim_matches(['"', '\'']);
        let value = unquote(value.trim_start())
            .ok_or_else(|| wrong(&format!("the value of {key} has an unmatched quote")))?;
        let section = sections.last_mut().ok_or_else(|| {
            wrong(&format!("{key} stands before any section"))
                .hint("begin the file with the section [pgkeep]")
        })?;
        if !keys.insert(key.to_owned()) {
            return Err(
                wrong(&format!("{key} is set a second time in [{}]", section.name))
                    .hint("remove one of the two lines"),
            );
        }
        section.settings.push(Setting {
            key: key.to_owned(),
            value: value.to_owned(),
            line: number,
        });
    }
    Ok(sections)
}

/// The name in `name] # comment`.
fn section_name(rest: &str) -> Option<&str> {
    let (name, after) = rest.split_once(']')?;
    let after = after.trim_start();
    let name = name.trim();
    (!name.is_empty() && (after.is_empty() || after.starts_with(['#', ';']))).then_some(name)
}

/// A value without its quotes and without a comment behind it.
fn unquote(value: &str) -> Option<&str> {
    for quote in ['"', '\''] {
        if let Some(rest) = value.strip_prefix(quote) {
            let (inside, after) = rest.split_once(quote)?;
            let after = after.trim_start();
            return (after.is_empty() || after.starts_with('#')).then_some(inside);
        }
    }
    let comment = value
        .char_indices()
        .zip(value.chars().skip(1))
        .find(|((_, before), character)| *character == '#' && before.is_whitespace())
        .map(|((at, _), _)| at);
    let end = match comment {
        _ if value.starts_with('#') => 0,
        Some(at) => at,
        None => value.len(),
    };
    value.get(..end).map(str::trim_end)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Vec<Section>> {
        parse(Path::new("f"), text)
    }

    fn value_of(line: &str) -> String {
        let sections = read(&format!("[a]\n{line}\n")).unwrap();
        sections[0].settings[0].value.clone()
    }

    #[test]
    fn sections_and_settings_know_their_lines() {
        let text =
            "\u{feff}# a\r\n[pgkeep]\r\nbase_dir = /b\r\n\r\n; c\n [ primary ] # d\n\thost=h\n";
        let sections = read(text).unwrap();
        assert_eq!(sections.len(), 2);
        assert_eq!((sections[0].name.as_str(), sections[0].line), ("pgkeep", 2));
        assert_eq!(
            (sections[1].name.as_str(), sections[1].line),
            ("primary", 6)
        );
        let host = &sections[1].settings[0];
        assert_eq!(
            (host.key.as_str(), host.value.as_str(), host.line),
            ("host", "h", 7)
        );
    }

    #[test]
    fn values_lose_quotes_and_comments() {
        let cases = [
            ("k = a b ", "a b"),
            ("k=", ""),
            ("k = # nothing", ""),
            ("k = a # b", "a"),
            ("k = a#b", "a#b"),
            ("k = a ; b", "a ; b"),
            ("k = \"a # b\" # c", "a # b"),
            ("k = 'it\"s'", "it\"s"),
            ("k = a = b", "a = b"),
            ("'k' = a", "a"),
            ("k = é #ü", "é"),
        ];
        for (line, expected) in cases {
            assert_eq!(value_of(line), expected, "{line}");
        }
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let cases = [
            ("a = b", "f:1: a stands before any section"),
            ("[a", "f:1: this is no section"),
            ("[a] b", "f:1: this is no section"),
            ("[]", "f:1: this is no section"),
            ("[a]\nb", "f:2: this is neither a section nor a setting"),
            ("[a]\nb='c", "f:2: the value of b has an unmatched quote"),
            ("[a]\nb='c' d", "f:2: the value of b has an unmatched quote"),
            ("[a]\n\n[a]", "f:3: section [a] is here a second time"),
            ("[a]\nb=1\nb=1", "f:3: b is set a second time in [a]"),
        ];
        for (text, message) in cases {
            assert_eq!(read(text).unwrap_err().message(), message, "{text}");
        }
        assert!(read("[a]\nx=1\n[b]\nx=1").is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(\\PC|[\\[\\]=#;'\"\\\\ \t\r\n])*") {
            let _ = read(&text);
        }

        #[test]
        fn quoted_values_come_back_whole(value in "[^\"\r\n]*") {
            prop_assert_eq!(value_of(&format!("k = \"{value}\"")), value);
        }
    }
}
