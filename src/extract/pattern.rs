//! How tables are named on the command line: as `wal show` tells them, or as pg_dump takes them.

use std::fmt;
use std::str::FromStr;

use crate::catalogs::{Name, matches};

/// Tables by their names: `orders`, `sales.orders`, `shop/sales.ord*`. `*` stands for any letters and `?` for any one; between
/// double quotes nothing stands for anything else, and a quote is written twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePattern {
    /// As it was typed.
    text: String,
    /// Of this database.
    pub(super) database: Option<String>,
    /// Of these schemas, or of all but PostgreSQL's own.
    schema: Option<Word>,
    table: Word,
}

/// One name of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Word {
    text: String,
    is_quoted: bool,
}

impl Word {
    /// As it is, and without quotes also in small letters, as SQL has it.
    fn fits(&self, name: &str) -> bool {
        match self.is_quoted {
            true => self.text == name,
            false => matches(&self.text, name) || matches(&self.text.to_lowercase(), name),
        }
    }
}

impl FromStr for TablePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<TablePattern, String> {
        let mut words = vec![Word::default()];
        let mut database = None;
        let mut letters = text.chars().peekable();
        let mut is_inside = false;
        let wrong = || {
            format!(
                "{text:?} is no table: expected orders, sales.orders or shop/sales.orders, with * and ?, or names in double quotes"
            )
        };
        while let Some(letter) = letters.next() {
            let is_first = words.len() == 1;
            let Some(word) = words.last_mut() else {
                break;
            };
            match letter {
                '"' if is_inside && letters.peek() == Some(&'"') => {
                    letters.next();
                    word.text.push('"');
                }
                '"' => {
                    is_inside = !is_inside;
                    word.is_quoted = true;
                }
                '.' if !is_inside => words.push(Word::default()),
                '/' if !is_inside && database.is_none() && is_first => {
                    database = Some(std::mem::take(word).text);
                }
                _ => word.text.push(letter),
            }
        }
        let table = words.pop().unwrap_or_default();
        let schema = words.pop();
        let named = [Some(&table), schema.as_ref()];
        let is_empty = named.into_iter().flatten().any(|word| word.text.is_empty())
            || database.as_ref().is_some_and(String::is_empty);
        if is_inside || is_empty || !words.is_empty() {
            return Err(wrong());
        }
        Ok(TablePattern {
            text: text.to_owned(),
            database,
            schema,
            table,
        })
    }
}

impl TablePattern {
    /// Whether it is the name of a relation of the database that it is looked for in.
    pub(super) fn fits(&self, name: &Name) -> bool {
        let is_of_schema = match &self.schema {
            Some(schema) => schema.fits(&name.schema),
            None => !name.schema.starts_with("pg_") && name.schema != "information_schema",
        };
        is_of_schema && self.table.fits(&name.relation)
    }

    /// The name of the table itself, for a suggestion.
    pub(super) fn table(&self) -> &str {
        &self.table.text
    }
}

impl fmt::Display for TablePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn fits(pattern: &str, schema: &str, relation: &str) -> bool {
        let pattern: TablePattern = pattern.parse().unwrap();
        pattern.fits(&Name {
            database: "shop".to_owned(),
            schema: schema.to_owned(),
            relation: relation.to_owned(),
        })
    }

    #[test]
    fn tables_are_named_as_wal_show_and_as_pg_dump_do() {
        for (pattern, schema, relation, expected) in [
            ("orders", "public", "orders", true),
            ("shop/public.orders", "public", "orders", true),
            ("Orders", "public", "orders", true),
            ("Orders", "public", "Orders", true),
            ("\"Orders\"", "public", "orders", false),
            ("\"a.\"\"b*\"", "public", "a.\"b*", true),
            ("\"a*\"", "public", "ab", false),
            ("s?les.ord*", "sales", "orders", true),
            ("sales.orders", "public", "orders", false),
            ("pg_class", "pg_catalog", "pg_class", false),
            ("pg_catalog.pg_class", "pg_catalog", "pg_class", true),
        ] {
            assert_eq!(fits(pattern, schema, relation), expected, "{pattern}");
        }
        let pattern: TablePattern = "\"my shop\"/a.b".parse().unwrap();
        assert_eq!(pattern.database.as_deref(), Some("my shop"));
        for wrong in ["", "a.", ".b", "a.b.c", "/a", "\"a", "x/"] {
            assert!(wrong.parse::<TablePattern>().is_err(), "{wrong}");
        }
    }
}
