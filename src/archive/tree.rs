//! Names, modes and owners in the archive's tar.
//!
//! ```text
//! SERVER-IDENTIFIER/                    the data directory
//! SERVER-IDENTIFIER/pg_tblspc/OID       a link to ../../SERVER-IDENTIFIER-tablespaces/OID
//! SERVER-IDENTIFIER-tablespaces/OID/    a tablespace, which may have been anywhere
//! SERVER-IDENTIFIER-extra/…             further files of the server
//! ```
//!
//! Nothing in it is absolute, so that the cluster starts wherever it is unpacked.

use tar::{EntryType, Header};

use crate::repository::backup_info::BackupInfo;

/// PostgreSQL's own tars name this user too (src/port/tar.c, tarCreateHeader); tar looks for him before it goes by number.
const OWNER: &str = "postgres";

/// How the files of a cluster appear in the tar.
pub(super) struct Tree {
    root: String,
    group_access: bool,
    /// The tablespaces that are folders of their own.
    linked: Vec<u32>,
    now: u64,
}

impl Tree {
    pub(super) fn new(info: &BackupInfo) -> Tree {
        let linked = info
            .tablespaces
            .iter()
            .filter(|tablespace| tablespace.path.is_some())
            .map(|tablespace| tablespace.oid)
            .collect();
        Tree {
            root: format!("{}-{}", info.server, info.backup),
            group_access: info.group_access,
            linked,
            now: seconds(jiff::Timestamp::now().as_second()),
        }
    }

    /// The data directory, which the archive is named after too.
    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// Where a path of PGDATA is, or of a further file of the server.
    pub(super) fn path(&self, path: &str) -> String {
        let root = &self.root;
        if path.starts_with('/') {
            return format!("{root}-extra{path}");
        }
        let tablespace = path
            .strip_prefix("pg_tblspc/")
            .filter(|inside| self.linked.iter().any(|oid| is_below(inside, *oid)));
        match tablespace {
            Some(inside) => format!("{root}-tablespaces/{inside}"),
            None => format!("{root}/{path}"),
        }
    }

    /// Folders that are in no backup's list: the roots, and those of tablespaces.
    pub(super) fn roots(&self) -> Vec<String> {
        let mut roots = vec![self.root.clone()];
        if !self.linked.is_empty() {
            roots.push(format!("{}-tablespaces", self.root));
        }
        let folder = |oid| format!("{}-tablespaces/{oid}", self.root);
        roots.extend(self.linked.iter().map(folder));
        roots
    }

    /// The links to tablespaces: their paths, and what they point to.
    pub(super) fn links(&self) -> impl Iterator<Item = (String, String)> {
        let root = &self.root;
        self.linked.iter().map(move |oid| {
            let link = format!("{root}/pg_tblspc/{oid}");
            (link, format!("../../{root}-tablespaces/{oid}"))
        })
    }

    /// Of a file with so many bytes, last modified so many seconds after 1970.
    pub(super) fn file(&self, size: u64, modified: i64) -> Header {
        let mode = if self.group_access { 0o640 } else { 0o600 };
        let mut header = header(EntryType::Regular, mode, seconds(modified));
        header.set_size(size);
        header
    }

    pub(super) fn directory(&self) -> Header {
        let mode = if self.group_access { 0o750 } else { 0o700 };
        header(EntryType::Directory, mode, self.now)
    }

    pub(super) fn link(&self) -> Header {
        header(EntryType::Symlink, 0o777, self.now)
    }
}

fn header(kind: EntryType, mode: u32, modified: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(modified);
    header.set_uid(rustix::process::geteuid().as_raw().into());
    header.set_gid(rustix::process::getegid().as_raw().into());
    // Too long a name is the only fault, and this one is not.
    let _ = header.set_username(OWNER);
    let _ = header.set_groupname(OWNER);
    header.set_size(0);
    header
}

fn seconds(modified: i64) -> u64 {
    u64::try_from(modified).unwrap_or(0)
}

/// Whether a path in pg_tblspc is a tablespace, or inside it.
fn is_below(path: &str, oid: u32) -> bool {
    let (first, _) = path.split_once('/').unwrap_or((path, ""));
    first == oid.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::backup_info::tests::example;

    #[test]
    fn every_path_has_a_place_below_a_folder_of_the_archive() {
        let tree = Tree::new(&example("20240928065644"));
        let root = "primary-20240928065644";
        for (path, place) in [
            ("base/5/1259", format!("{root}/base/5/1259")),
            (
                "pg_tblspc/16390/PG_17_202406281/5/1",
                format!("{root}-tablespaces/16390/PG_17_202406281/5/1"),
            ),
            ("pg_tblspc/16390", format!("{root}-tablespaces/16390")),
            ("pg_tblspc/163900/x", format!("{root}/pg_tblspc/163900/x")),
            ("pg_tblspc", format!("{root}/pg_tblspc")),
            ("/etc/pg_hba.conf", format!("{root}-extra/etc/pg_hba.conf")),
        ] {
            assert_eq!(tree.path(path), place);
        }
        let links: Vec<_> = tree.links().collect();
        let target = format!("../../{root}-tablespaces/16390");
        assert_eq!(links, [(format!("{root}/pg_tblspc/16390"), target)]);
    }
}
