//! The catalogs of databases as a backup holds them.
//!
//! A backup's pages are of different moments, from its start to its end. Reading WAL from its start on makes up for
//! that, as recovery does.

use std::collections::HashMap;

use crate::archive::visit_files;
use crate::catalogs::{Belief, Catalogs, RelationFiles};
use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::pg::catalog::{PG_CLASS, PG_DATABASE};
use crate::pg::heap_page;
use crate::pg::page::PAGE_SIZE;
use crate::pg::relation_map::{RELATION_MAP_FILE, RelationMap};
use crate::repository::chain::Chain;

/// The file of a catalog, by its place in the list of the backup.
type Places = HashMap<usize, RelationFiles>;

/// Reads those of these databases, by their OIDs; zero for what all databases share.
pub(crate) fn read(
    chain: &Chain,
    is_wanted: &dyn Fn(u32) -> bool,
    catalogs: &mut Catalogs,
    belief: Belief,
    interrupt: &Interrupt,
) -> Result<()> {
    let mut folders = folders(chain);
    folders.retain(|_, (_, database)| is_wanted(*database));
    let places: Vec<usize> = folders.keys().copied().collect();
    let mut relations = Places::new();
    let mut databases = Vec::new();
    visit_files(chain, &places, interrupt, &mut |place, content| {
        let (Some((folder, database)), Some(map)) =
            (folders.get(&place), RelationMap::parse(content))
        else {
            return Ok(());
        };
        catalogs.follow(*database, &map);
        databases.push((folder.clone(), *database));
        for catalog in [PG_CLASS, PG_DATABASE] {
            if let Some(relfilenumber) = map.relfilenumber(catalog) {
                add(chain, &mut relations, folder, *database, relfilenumber);
            }
        }
        Ok(())
    })?;
    read_rows(chain, &relations, catalogs, belief, interrupt)?;
    let mut schemas = Places::new();
    for (folder, database) in databases {
        if let Some(relfilenumber) = catalogs.schemas_file(database) {
            add(chain, &mut schemas, &folder, database, relfilenumber);
        }
    }
    read_rows(chain, &schemas, catalogs, belief, interrupt)
}

/// The files of a catalog of a database that its map tells of.
pub(crate) fn mapped(
    chain: &Chain,
    database: u32,
    catalog: u32,
    interrupt: &Interrupt,
) -> Result<Vec<RelationFiles>> {
    let mut folders = folders(chain);
    folders.retain(|_, (_, one)| *one == database);
    let places: Vec<usize> = folders.into_keys().collect();
    let mut found = Vec::new();
    visit_files(chain, &places, interrupt, &mut |_, content| {
        let map = RelationMap::parse(content);
        let relfilenumber = map.and_then(|map| map.relfilenumber(catalog));
        found.extend(relfilenumber.map(|relfilenumber| RelationFiles {
            database,
            relfilenumber,
        }));
        Ok(())
    })?;
    Ok(found)
}

/// Hands over the contents of all rows of a small catalog, those that were replaced too.
pub(crate) fn visit_rows(
    chain: &Chain,
    files: RelationFiles,
    interrupt: &Interrupt,
    visit: &mut dyn FnMut(&[u8]),
) -> Result<()> {
    let RelationFiles {
        database,
        relfilenumber,
    } = files;
    let mut places = Places::new();
    for (folder, one) in folders(chain).into_values() {
        if one == database {
            add(chain, &mut places, &folder, database, relfilenumber);
        }
    }
    let places: Vec<usize> = places.into_keys().collect();
    visit_files(chain, &places, interrupt, &mut |_, content| {
        let (pages, _) = content.as_chunks::<PAGE_SIZE>();
        for row in pages.iter().flat_map(heap_page::rows) {
            visit(row.content);
        }
        Ok(())
    })
}

/// The places of the databases' maps, with the databases' folders and OIDs.
fn folders(chain: &Chain) -> HashMap<usize, (String, u32)> {
    let files = chain.newest.list.files.iter().enumerate();
    files
        .filter_map(|(place, file)| {
            let (folder, name) = file.path.rsplit_once('/')?;
            if name != RELATION_MAP_FILE {
                return None;
            }
            let database = match folder.rsplit_once('/') {
                None if folder == "global" => 0,
                None => return None,
                Some((_, database)) => database.parse().ok()?,
            };
            Some((place, (folder.to_owned(), database)))
        })
        .collect()
}

fn add(chain: &Chain, places: &mut Places, folder: &str, database: u32, relfilenumber: u32) {
    let files = RelationFiles {
        database,
        relfilenumber,
    };
    // No catalog grows beyond its first file, of 1 GiB.
    let path = format!("{folder}/{relfilenumber}");
    places.extend(
        chain
            .newest
            .list
            .files
            .place(&path)
            .map(|place| (place, files)),
    );
}

fn read_rows(
    chain: &Chain,
    files: &Places,
    catalogs: &mut Catalogs,
    belief: Belief,
    interrupt: &Interrupt,
) -> Result<()> {
    let places: Vec<usize> = files.keys().copied().collect();
    visit_files(chain, &places, interrupt, &mut |place, content| {
        if let Some(files) = files.get(&place) {
            let (pages, _) = content.as_chunks::<PAGE_SIZE>();
            for (block, page) in (0..).zip(pages) {
                catalogs.page(*files, block, page, belief);
            }
        }
        Ok(())
    })
}
