//! The rows of catalogs that tell the names of relations, schemas and databases (catalog/pg_class.h, pg_namespace.h,
//! pg_database.h), as far as they are of fixed length.
//!
//! ```text
//!            0  u32  oid
//!            4  64 bytes of a name, which ends before its first zero
//! pg_class  68  u32  relnamespace
//!           88  u32  relfilenode      zero where there is no file, or where pg_filenode.map tells it
//!           92  u32  reltablespace    zero for the database's own
//!          108  u32  reltoastrelid    since 18, which has relallfrozen in front, 112
//!          114  u8   relpersistence   since 18, 118
//!          115  u8   relkind          since 18, 119
//! pg_database
//!           80  i32  datconnlimit     in 14, which has two more names in front, 208; -2: to be dropped
//! ```

use crate::pg::little_endian::u32_at;
use crate::pg::version::Major;
use crate::pg::wal::NewRow;

/// The OID of pg_class, which lists the relations of a database.
pub const PG_CLASS: u32 = 1259;
/// The OID of pg_namespace, which lists the schemas of a database.
pub const PG_NAMESPACE: u32 = 2615;
/// The OID of pg_database.
pub const PG_DATABASE: u32 = 1262;
/// The OID of the schema pg_catalog.
pub const PG_CATALOG_SCHEMA: u32 = 11;
/// The OID of the schema pg_toast.
pub const PG_TOAST_SCHEMA: u32 = 99;
/// The first OID that is not given by initdb, nor the number of any file it makes (access/transam.h, FirstNormalObjectId).
pub const FIRST_NORMAL: u32 = 16_384;

/// Bytes of a row that are looked at.
const FIXED: usize = 120;
const NAME: usize = 4;
const NAME_BYTES: usize = 64;

/// The beginning of a catalog's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatalogRow {
    fixed: [u8; FIXED],
    /// Bytes in the whole row.
    length: usize,
}

impl CatalogRow {
    /// Takes it from a whole row's content; nothing where that is too short to have a name.
    pub fn of(content: &[u8]) -> Option<CatalogRow> {
        content.get(..NAME + NAME_BYTES)?;
        let mut fixed = [0; FIXED];
        let known = content.len().min(FIXED);
        fixed[..known].copy_from_slice(&content[..known]);
        Some(CatalogRow {
            fixed,
            length: content.len(),
        })
    }

    /// The row that replaces another one, or is the first.
    pub fn of_new(before: Option<&CatalogRow>, new: &NewRow<'_>) -> Option<CatalogRow> {
        let NewRow {
            prefix,
            middle,
            suffix,
        } = *new;
        if prefix == 0 && suffix == 0 {
            return CatalogRow::of(middle);
        }
        let before = before?;
        let length = prefix.checked_add(middle.len())?.checked_add(suffix)?;
        let kept = before.length.checked_sub(suffix)?;
        let behind = prefix + middle.len();
        let mut row = CatalogRow {
            fixed: [0; FIXED],
            length,
        };
        for (place, byte) in row.fixed.iter_mut().enumerate().take(length) {
            *byte = if place < prefix {
                before.fixed[place]
            } else if place < behind {
                *middle.get(place - prefix)?
            } else {
                *before.fixed.get(kept + (place - behind))?
            };
        }
        Some(row)
    }

    /// The OID of what it is about.
    pub fn oid(&self) -> u32 {
        u32_at(&self.fixed, 0)
    }

    /// Its name.
    pub fn name(&self) -> String {
        let name = &self.fixed[NAME..NAME + NAME_BYTES];
        let end = name.iter().position(|byte| *byte == 0);
        String::from_utf8_lossy(&name[..end.unwrap_or(NAME_BYTES)]).into_owned()
    }

    /// The same as a row of pg_class.
    pub fn class(&self, major: Major) -> ClassRow {
        let kind = if major >= Major::V18 { 119 } else { 115 };
        ClassRow {
            oid: self.oid(),
            name: self.name(),
            schema: u32_at(&self.fixed, 68),
            relfilenumber: u32_at(&self.fixed, 88),
            tablespace: u32_at(&self.fixed, 92),
            toast: u32_at(&self.fixed, kind - 7),
            is_temporary: self.fixed[kind - 1] == b't',
            kind: self.fixed[kind],
        }
    }
}

/// Whether a row of pg_database says that somebody has begun to drop the database, which nobody can connect to any more
/// (DATCONNLIMIT_INVALID_DB).
pub fn is_being_dropped(content: &[u8], major: Major) -> bool {
    let limit = if major == Major::V14 { 208 } else { 80 };
    content.get(limit..limit + 4) == Some(&(-2_i32).to_le_bytes())
}

/// A relation as pg_class tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassRow {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// The OID of its schema.
    pub schema: u32,
    /// The number of its files.
    pub relfilenumber: u32,
    /// The OID of its tablespace; zero for the database's own.
    pub tablespace: u32,
    /// The OID of the table that has what is too long for its own rows; zero for none.
    pub toast: u32,
    /// Whether it ends with its session, and its rows are in no WAL.
    pub is_temporary: bool,
    /// What it is, as a letter (RELKIND_RELATION and so on).
    pub kind: u8,
}

impl ClassRow {
    /// Whether it is something that people name, rather than a part of it: a table, partitioned or foreign too, a view,
    /// a materialized view; no index, TOAST table, composite type or sequence.
    pub fn is_named(&self) -> bool {
        matches!(self.kind, b'r' | b'p' | b'f' | b'v' | b'm')
    }

    /// Whether it has rows of its own: a table or a materialized view.
    pub fn has_rows(&self) -> bool {
        matches!(self.kind, b'r' | b'm')
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn row(relfilenumber: u32, behind: usize) -> Vec<u8> {
        let mut row = vec![0; 150 + behind];
        row[..4].copy_from_slice(&16_400_u32.to_le_bytes());
        row[4..10].copy_from_slice(b"orders");
        row[68..72].copy_from_slice(&2200_u32.to_le_bytes());
        row[88..92].copy_from_slice(&relfilenumber.to_le_bytes());
        row[114..116].copy_from_slice(b"pr");
        row[118..120].copy_from_slice(b"ti");
        row
    }

    #[test]
    fn a_relation_is_told_by_its_row() {
        let before = CatalogRow::of(&row(16_400, 0)).unwrap();
        let class = before.class(Major::V17);
        assert_eq!((class.oid, class.name.as_str()), (16_400, "orders"));
        assert_eq!((class.schema, class.relfilenumber), (2200, 16_400));
        assert!(class.has_rows() && !class.is_temporary);
        let class = before.class(Major::V18);
        assert!(!class.is_named() && class.is_temporary);
        assert_eq!(CatalogRow::of(&[0; 67]), None);
    }

    #[test]
    fn a_database_is_marked_before_it_is_dropped() {
        let mut row = [0; 300];
        row[80..84].fill(0xFF);
        assert!(!is_being_dropped(&row, Major::V17));
        row[80] = 0xFE;
        assert!(is_being_dropped(&row, Major::V17) && !is_being_dropped(&row, Major::V14));
        assert!(!is_being_dropped(&row[..83], Major::V17));
    }

    #[test]
    fn an_update_takes_over_what_is_the_same() {
        let before = CatalogRow::of(&row(16_400, 0)).unwrap();
        let updated = |after: &[u8], prefix: usize, suffix: usize| {
            let middle = &after[prefix..after.len() - suffix];
            let new = NewRow {
                prefix,
                middle,
                suffix,
            };
            CatalogRow::of_new(Some(&before), &new)
        };
        for (after, prefix, suffix) in [
            (row(16_500, 0), 88, 58),
            (row(16_500, 0), 0, 0),
            (row(16_500, 20), 88, 10),
            (row(16_500, 0), 88, 0),
        ] {
            let expected = CatalogRow::of(&after);
            assert_eq!(
                updated(&after, prefix, suffix),
                expected,
                "{prefix} {suffix}"
            );
        }
        let new = NewRow {
            prefix: 88,
            middle: &[],
            suffix: 0,
        };
        assert_eq!(CatalogRow::of_new(None, &new), None);
    }

    proptest! {
        #[test]
        fn never_panics(before: Vec<u8>, length in 0..300_usize, prefix in 0..70_000_usize, middle: Vec<u8>, suffix in 0..70_000_usize) {
            let before = CatalogRow::of(&[before, vec![1; length]].concat());
            let new = NewRow { prefix, middle: &middle, suffix };
            if let Some(row) = CatalogRow::of_new(before.as_ref(), &new) {
                let _ = row.class(Major::V18);
            }
        }
    }
}
