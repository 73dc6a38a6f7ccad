//! Which relations and transactions are to be shown.

use std::fmt;
use std::str::FromStr;

use crate::catalogs::{Name, RelationFiles, matches};

/// A relation or a transaction, as it is said on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A transaction, or a relation's file.
    Number(u32),
    /// A relation's files in a database.
    Files {
        /// The database's OID.
        database: u32,
        /// Their number.
        relfilenumber: u32,
    },
    /// Relations by their names; `*` and `?` stand for any letters and for any one.
    Name {
        /// Of one database, or of all.
        database: Option<String>,
        /// Of one schema, or of all.
        schema: Option<String>,
        /// The relations' own.
        relation: String,
    },
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Wanted, String> {
        if let Ok(number) = text.parse() {
            return Ok(Wanted::Number(number));
        }
        if let Some((database, relfilenumber)) = text.split_once('/')
            && let (Ok(database), Ok(relfilenumber)) = (database.parse(), relfilenumber.parse())
        {
            return Ok(Wanted::Files {
                database,
                relfilenumber,
            });
        }
        let (database, name) = match text.split_once('/') {
            Some((database, name)) => (Some(database.to_owned()), name),
            None => (None, text),
        };
        let (schema, relation) = match name.split_once('.') {
            Some((schema, relation)) => (Some(schema.to_owned()), relation),
            None => (None, name),
        };
        if relation.is_empty() {
            return Err("expected a table, such as orders, public.orders or shop/public.ord*; database/relfilenode; or a transaction's number".to_owned());
        }
        Ok(Wanted::Name {
            database,
            schema,
            relation: relation.to_owned(),
        })
    }
}

impl Wanted {
    /// Whether it may be this transaction.
    pub(super) fn is_transaction(&self, xid: u32) -> bool {
        *self == Wanted::Number(xid)
    }

    /// Whether these files, or the relation they are of, are meant. What is internal has to be meant expressly.
    pub(super) fn is_relation(
        &self,
        files: RelationFiles,
        name: Option<&Name>,
        is_internal: bool,
    ) -> bool {
        match self {
            Wanted::Number(number) => files.relfilenumber == *number,
            Wanted::Files {
                database,
                relfilenumber,
            } => (files.database, files.relfilenumber) == (*database, *relfilenumber),
            Wanted::Name { schema, .. } => {
                (!is_internal || schema.is_some()) && name.is_some_and(|name| self.fits(name))
            }
        }
    }

    /// Whether it is the name of a relation, or a pattern that this name fits.
    pub(super) fn fits(&self, name: &Name) -> bool {
        let Wanted::Name {
            database,
            schema,
            relation,
        } = self
        else {
            return false;
        };
        let fits = |pattern: &Option<String>, name: &str| {
            pattern
                .as_ref()
                .is_none_or(|pattern| matches(pattern, name))
        };
        fits(database, &name.database)
            && fits(schema, &name.schema)
            && matches(relation, &name.relation)
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wanted::Number(number) => write!(f, "{number}"),
            Wanted::Files {
                database,
                relfilenumber,
            } => write!(f, "{database}/{relfilenumber}"),
            Wanted::Name {
                database,
                schema,
                relation,
            } => {
                if let Some(database) = database {
                    write!(f, "{database}/")?;
                }
                if let Some(schema) = schema {
                    write!(f, "{schema}.")?;
                }
                f.write_str(relation)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn wanted(text: &str) -> Wanted {
        text.parse().unwrap()
    }

    #[test]
    fn tables_are_named_with_or_without_schema_and_database() {
        let name = |database: &str, schema: &str, relation: &str| Name {
            database: database.to_owned(),
            schema: schema.to_owned(),
            relation: relation.to_owned(),
        };
        let orders = name("shop", "public", "orders");
        for (text, fits) in [
            ("orders", true),
            ("ord*", true),
            ("*", true),
            ("o?ders", true),
            ("*.orders", true),
            ("public.orders", true),
            ("shop/public.*", true),
            ("shop/orders", true),
            ("order", false),
            ("other.orders", false),
            ("other/orders", false),
            ("Orders", false),
        ] {
            assert_eq!(wanted(text).fits(&orders), fits, "{text}");
            assert_eq!(wanted(text).to_string(), text);
        }
        let files = RelationFiles {
            database: 5,
            relfilenumber: 16_384,
        };
        for (text, is_internal, fits) in [
            ("16384", true, true),
            ("5/16384", true, true),
            ("6/16384", false, false),
            ("5", false, false),
            ("orders", false, true),
            ("orders", true, false),
            ("public.orders", true, true),
        ] {
            let found = wanted(text).is_relation(files, Some(&orders), is_internal);
            assert_eq!(found, fits, "{text}");
        }
        assert!(wanted("700").is_transaction(700) && !wanted("o").is_transaction(700));
        assert!("".parse::<Wanted>().is_err() && "public.".parse::<Wanted>().is_err());
    }

    proptest! {
        #[test]
        fn a_star_stands_for_any_part(front in "[ab]{0,4}", middle in "[ab]{0,4}", behind in "[ab]{0,4}") {
            let name = format!("{front}{middle}{behind}");
            let (one, two) = (format!("{front}*{behind}"), format!("*{middle}*"));
            prop_assert!(matches(&one, &name));
            prop_assert!(matches(&two, &name));
        }
    }
}
