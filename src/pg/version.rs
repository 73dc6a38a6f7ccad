//! The releases of PostgreSQL pgkeep knows, and the numbers each puts into its
//! files.

use std::fmt;

/// A major release, 14 to 18.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Major {
    /// PostgreSQL 14.
    V14,
    /// PostgreSQL 15.
    V15,
    /// PostgreSQL 16.
    V16,
    /// PostgreSQL 17.
    V17,
    /// PostgreSQL 18.
    V18,
}

impl Major {
    /// All of them, oldest first.
    pub const ALL: [Major; 5] = [Major::V14, Major::V15, Major::V16, Major::V17, Major::V18];

    /// The release with this number, 14 to 18.
    pub fn from_number(number: u32) -> Option<Major> {
        Major::ALL
            .into_iter()
            .find(|major| major.number() == number)
    }

    /// 14 to 18.
    pub fn number(self) -> u32 {
        match self {
            Major::V14 => 14,
            Major::V15 => 15,
            Major::V16 => 16,
            Major::V17 => 17,
            Major::V18 => 18,
        }
    }

    /// The format of pg_control (catalog/pg_control.h, PG_CONTROL_VERSION).
    pub fn control_version(self) -> u32 {
        match self {
            Major::V14 | Major::V15 | Major::V16 => 1300,
            Major::V17 => 1700,
            Major::V18 => 1800,
        }
    }

    /// The format of the system catalogs (catalog/catversion.h).
    pub fn catalog_version(self) -> u32 {
        match self {
            Major::V14 => 202107181,
            Major::V15 => 202209061,
            Major::V16 => 202307071,
            Major::V17 => 202406281,
            Major::V18 => 202506291,
        }
    }

    /// The magic number of every WAL page (access/xlog_internal.h,
    /// XLOG_PAGE_MAGIC).
    pub fn wal_page_magic(self) -> u16 {
        match self {
            Major::V14 => 0xD10D,
            Major::V15 => 0xD110,
            Major::V16 => 0xD113,
            Major::V17 => 0xD116,
            Major::V18 => 0xD118,
        }
    }

    /// The version of backup_manifest that this release writes.
    pub fn manifest_version(self) -> u8 {
        if self >= Major::V17 { 2 } else { 1 }
    }

    /// The directory this release keeps its files in, inside a tablespace's
    /// location (common/relpath.h, TABLESPACE_VERSION_DIRECTORY):
    /// `PG_15_202209061`.
    pub fn tablespace_directory(self) -> String {
        format!("PG_{self}_{}", self.catalog_version())
    }
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

/// A release of a server, such as 15.18.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// What is in front of the dot.
    pub major: Major,
    /// What is behind it.
    pub minor: u32,
}

impl Version {
    /// Reads the setting `server_version_num`, 150018 for 15.18; nothing for a
    /// major release that is not known.
    pub fn from_server_version_num(number: u32) -> Option<Version> {
        Some(Version {
            major: Major::from_number(number / 10_000)?,
            minor: number % 10_000,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn reads_server_version_num() {
        let version = Version::from_server_version_num(150_018).unwrap();
        assert_eq!((version.major, version.minor), (Major::V15, 18));
        assert_eq!(version.to_string(), "15.18");
        assert_eq!(Version::from_server_version_num(130_004), None);
        assert_eq!(Version::from_server_version_num(190_000), None);
        assert_eq!(Version::from_server_version_num(90_624), None);
    }

    #[test]
    fn numbers_there_and_back() {
        for major in Major::ALL {
            assert_eq!(Major::from_number(major.number()), Some(major));
        }
        assert_eq!(Major::from_number(13), None);
        assert_eq!(Major::from_number(19), None);
    }

    #[test]
    fn names_the_directory_inside_a_tablespace() {
        assert_eq!(Major::V15.tablespace_directory(), "PG_15_202209061");
    }
}
