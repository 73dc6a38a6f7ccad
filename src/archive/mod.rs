//! From a backup to one compressed tar of the cluster that a restore would write.
//!
//! The content of the stored files goes straight into the tar; nothing is unpacked in between. One
//! thread puts the tar together, decoding the stored files one after the other; the others compress it in slices,
//! which is what takes time. `global/pg_control` comes last, so that what was unpacked in part cannot be started.

mod content;
mod output;
mod tree;
mod wal;

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use tar::{Builder, Header};

use crate::error::{Error, Result};
use crate::files::incoming::Incoming;
use crate::interrupt::Interrupt;
use crate::pg::control::CONTROL_FILE;
use crate::pg::label::BACKUP_LABEL_FILE;
use crate::pg::manifest::BACKUP_MANIFEST_FILE;
use crate::progress::Progress;
use crate::repository::chain::{Chain, Sources};
use crate::repository::file_list::FileEntry;
use crate::repository::portions::Portion;
use crate::restore::recovery::{Recovery, SETTINGS_FILE, SourceSettings};
use crate::restore::selection::Selection;
use crate::restore::write::{
    Changed, check, checksum, control_file, is_special, label_file, visit_bundle,
};
use crate::restore::{expect_own_wal, manifest::manifest};
use crate::storage::durable;
use crate::stored::coding::Coding;

pub(crate) use content::visit_files;
use content::{Counted, Ingredients, Plain};
use output::told;
use tree::Tree;
use wal::FoundWal;

pub use wal::NeededWal;

/// What to put into an archive, and where that goes.
pub struct Request<'a> {
    /// The backup, with all that it needs.
    pub chain: &'a Chain,
    /// How the unpacked cluster recovers.
    pub recovery: Recovery,
    /// What it keeps of its source's settings.
    pub source_settings: SourceSettings,
    /// The archived WAL that it needs for that.
    pub wal: Option<NeededWal<'a>>,
    /// The folder for the archive.
    pub directory: PathBuf,
    /// How it is compressed and encrypted.
    pub coding: &'a Coding,
    /// Threads that compress.
    pub workers: usize,
}

/// An archive that was made.
#[derive(Debug)]
pub struct Archived {
    /// Where it lies.
    pub path: PathBuf,
    /// Its bytes.
    pub size: u64,
}

/// Writes the archive; it has its name only once it is whole and on disk.
pub fn run(
    request: &Request<'_>,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Archived> {
    let contents = &request.chain.newest;
    expect_own_wal(contents)?;
    let tree = Tree::new(&contents.info);
    let name = format!("{}.tar{}", tree.root(), request.coding.suffix());
    let path = request.directory.join(name);
    durable::create_folder(&request.directory)?;
    let file = Incoming::create(&path)?;
    let wal = match &request.wal {
        None => None,
        Some(needed) => {
            progress.step("look at the WAL", None);
            Some(needed.find(contents, interrupt)?)
        }
    };
    let wal_bytes = wal.as_ref().map_or(0, FoundWal::bytes);
    progress.step("archive", Some(contents.info.restore_size + wal_bytes));
    let file = output::write(file, request.coding, request.workers, |slicer| {
        let mut archive = Archive {
            request,
            tree: &tree,
            tar: Builder::new(slicer),
            settings: Vec::new(),
            changed: Changed::default(),
            progress,
            interrupt,
        };
        archive.folders()?;
        archive.files(wal.as_ref())?;
        if let Some(wal) = &wal {
            archive.wal(wal)?;
        }
        archive.end()
    })?;
    interrupt.check()?;
    Ok(Archived {
        size: file.publish()?,
        path,
    })
}

/// The tar as it is put together.
struct Archive<'a, W: Write> {
    request: &'a Request<'a>,
    tree: &'a Tree,
    tar: Builder<W>,
    /// `postgresql.auto.conf` as it was in the backup.
    settings: Vec<u8>,
    /// What is not as any backup stores it.
    changed: Changed,
    progress: &'a dyn Progress,
    interrupt: &'a Interrupt,
}

impl<'a, W: Write> Archive<'a, W> {
    fn folders(&mut self) -> Result<()> {
        let list = &self.request.chain.newest.list;
        let roots = self.tree.roots();
        let directories = list.directories.iter().map(|path| self.tree.path(path));
        // A tablespace's own folder is both.
        let inside: Vec<String> = directories
            .filter(|folder| !roots.contains(folder))
            .collect();
        let extra = list.files.iter().filter(|file| file.is_extra());
        let above: BTreeSet<String> = extra
            .flat_map(|file| parents(&self.tree.path(file.path)))
            .collect();
        for folder in roots.into_iter().chain(inside).chain(above) {
            let mut header = self.tree.directory();
            self.append(&mut header, &format!("{folder}/"), &mut std::io::empty())?;
        }
        let links: Vec<(String, String)> = self.tree.links().collect();
        for (link, target) in links {
            let mut header = self.tree.link();
            self.tar
                .append_link(&mut header, link, target)
                .map_err(told)?;
        }
        Ok(())
    }

    /// The files of the backup, but those that come at the end, and WAL that the archive has too.
    fn files(&mut self, wal: Option<&FoundWal<'_>>) -> Result<()> {
        let chain = self.request.chain;
        let replaced: BTreeSet<&str> = wal.into_iter().flat_map(FoundWal::paths).collect();
        for portion in chain.portions(|_| true).iter() {
            match portion {
                Portion::Alone(place) => {
                    let sources = chain.sources(place);
                    if is_special(&sources) || replaced.contains(sources.file.path) {
                        continue;
                    }
                    if sources.is_base() {
                        self.alone(&sources)?;
                    } else {
                        self.rebuilt(place, &sources, None)?;
                    }
                }
                Portion::Bundle(bundle, files) => {
                    visit_bundle(chain, bundle, files, |place, sources, content| {
                        if sources.is_base() {
                            self.bundled(sources.file, content)
                        } else {
                            self.rebuilt(place, sources, Some(content))
                        }
                    })?;
                }
            }
        }
        Ok(())
    }

    /// A file as it is stored by itself.
    fn alone(&mut self, sources: &Sources<'a>) -> Result<()> {
        let (file, base) = (sources.file, sources.base);
        let stored = self.request.chain.stored(base.member, file.path);
        let mut content = self.counted(Plain(stored.open()?));
        if file.path == SETTINGS_FILE {
            content.read_to_end(&mut self.settings).map_err(told)?;
        } else {
            let mut header = self.tree.file(base.size, file.modified);
            self.append(&mut header, &self.tree.path(file.path), &mut content)?;
        }
        let (_, size, crc32c) = content.finish();
        let expected = (base.size, base.crc32c);
        check(file.path, (size, crc32c), expected, &stored.path)
    }

    /// A file as it is in a bundle.
    fn bundled(&mut self, file: FileEntry<'_>, content: &[u8]) -> Result<()> {
        if file.path == SETTINGS_FILE {
            self.settings = content.to_owned();
            return Ok(());
        }
        self.memory(file.path, file.modified, content)
    }

    /// A file put together from what several backups hold.
    fn rebuilt(
        &mut self,
        place: usize,
        sources: &Sources<'a>,
        content: Option<&[u8]>,
    ) -> Result<()> {
        let file = sources.file;
        let ingredients = Ingredients::of(self.request.chain, sources);
        let mut header = self.tree.file(sources.size(), file.modified);
        let mut content = self.counted(ingredients.open(content)?);
        self.append(&mut header, &self.tree.path(file.path), &mut content)?;
        let (rebuilt, size, crc32c) = content.finish();
        rebuilt.finish()?;
        self.changed.insert(place, (size, crc32c));
        Ok(())
    }

    fn wal(&mut self, wal: &FoundWal<'_>) -> Result<()> {
        let size = wal.segment_bytes;
        for (path, segment) in &wal.segments {
            let mut header = self.tree.file(size, jiff::Timestamp::now().as_second());
            let mut content = self.counted(Plain(wal.way.path.open_segment(*segment)?));
            self.append(&mut header, &self.tree.path(path), &mut content)?;
            let (_, found, _) = content.finish();
            if found != size {
                let why = format!("the archived segment of {path} has {found} bytes, not {size}");
                return Err(Error::damage(why));
            }
        }
        for (path, content) in &wal.histories {
            self.new_file(path, content)?;
        }
        Ok(())
    }

    /// What tells the server how to start, the manifest, and at last what lets it.
    fn end(&mut self) -> Result<()> {
        let (chain, recovery) = (self.request.chain, &self.request.recovery);
        let control = control_file(chain)?;
        let label = label_file(chain)?;
        for (path, content) in [(CONTROL_FILE, &control), (BACKUP_LABEL_FILE, &label)] {
            self.changed.insert_path(chain, path, checksum(content));
        }
        self.new_file(BACKUP_LABEL_FILE, &label)?;
        let source = (self.request.source_settings, self.settings.as_slice());
        let settings = recovery.settings_file(source, &chain.newest.info);
        self.new_file(SETTINGS_FILE, &settings)?;
        self.new_file(recovery.signal_file(), b"")?;
        self.manifest()?;
        self.new_file(CONTROL_FILE, &control)?;
        self.tar.finish().map_err(told)
    }

    /// Made twice, as its length comes before it: it has a line a file.
    fn manifest(&mut self) -> Result<()> {
        let chain = self.request.chain;
        let mut length = Length(0);
        let all = Selection::default();
        manifest(chain, &all, &mut self.changed, &mut length, told)?;
        let now = jiff::Timestamp::now().as_second();
        let mut header = self.tree.file(length.0, now);
        let path = self.tree.path(BACKUP_MANIFEST_FILE);
        self.append(&mut header, &path, &mut io::empty())?;
        let target = self.tar.get_mut();
        manifest(chain, &all, &mut self.changed, &mut *target, told)?;
        let filled = length.0.next_multiple_of(TAR_BLOCK);
        io::copy(&mut io::repeat(0).take(filled - length.0), target).map_err(told)?;
        Ok(())
    }

    fn new_file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.memory(path, jiff::Timestamp::now().as_second(), content)
    }

    fn memory(&mut self, path: &str, modified: i64, content: &[u8]) -> Result<()> {
        let mut header = self.tree.file(content.len() as u64, modified);
        let mut content = self.counted(content);
        self.append(&mut header, &self.tree.path(path), &mut content)
    }

    fn counted<R: Read>(&self, content: R) -> Counted<'a, R> {
        Counted::new(content, self.progress, self.interrupt)
    }

    fn append(&mut self, header: &mut Header, path: &str, content: &mut impl Read) -> Result<()> {
        self.tar.append_data(header, path, content).map_err(told)
    }
}

/// Files in a tar are filled up to a multiple of it.
const TAR_BLOCK: u64 = 512;

/// Counts what is written.
struct Length(u64);

impl Write for Length {
    fn write(&mut self, content: &[u8]) -> io::Result<usize> {
        self.0 += content.len() as u64;
        Ok(content.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The folders above a path, from the top.
fn parents(path: &str) -> Vec<String> {
    path.match_indices('/')
        .map(|(end, _)| path[..end].to_owned())
        .collect()
}
