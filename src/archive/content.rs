//! What a file of the cluster holds, from its first byte to its last, straight from the stored files of the chain.

use std::collections::BTreeMap;
use std::io::{self, Read};

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::page::PAGE_SIZE;
use crate::progress::Progress;
use crate::repository::blocks::Blocks;
use crate::repository::chain::{Chain, Member, Sources, Stored};
use crate::repository::file_list::{Crc32c, FileEntry, FileKind};
use crate::restore::write::{check, checksum, visit_bundle};
use crate::stored::reader::StoredReader;

/// Hands over whole files of the cluster by their places in the list of the newest backup, in any order. For files that the
/// memory can hold.
pub(crate) fn visit_files(
    chain: &Chain,
    places: &[usize],
    interrupt: &Interrupt,
    visit: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut bundles: BTreeMap<(Member, u32), Vec<u32>> = BTreeMap::new();
    for place in places {
        interrupt.check()?;
        let sources = chain.sources(*place);
        let base = sources.base;
        match base.bundle {
            Some(number) => {
                let bundle = bundles.entry((base.member, number)).or_default();
                bundle.push(*place as u32);
            }
            None if sources.is_base() => {
                let path = sources.file.path;
                let stored = chain.stored(base.member, path);
                let content = stored.read_whole()?;
                let expected = (base.size, base.crc32c);
                check(path, checksum(&content), expected, &stored.path)?;
                visit(*place, &content)?;
            }
            None => visit(*place, &rebuilt(chain, &sources, None)?)?,
        }
    }
    for (bundle, mut places) in bundles {
        interrupt.check()?;
        places.sort_unstable();
        visit_bundle(chain, bundle, &places, |place, sources, content| {
            if sources.is_base() {
                visit(place, content)
            } else {
                visit(place, &rebuilt(chain, sources, Some(content))?)
            }
        })?;
    }
    Ok(())
}

fn rebuilt(chain: &Chain, sources: &Sources<'_>, content: Option<&[u8]>) -> Result<Vec<u8>> {
    let ingredients = Ingredients::of(chain, sources);
    let mut rebuilt = ingredients.open(content)?;
    let mut whole = Vec::new();
    rebuilt
        .read_to_end(&mut whole)
        .map_err(|error| Error::from_io(&format!("read {}", sources.file.path), &error))?;
    rebuilt.finish()?;
    Ok(whole)
}

/// Reads a stored file as it is.
pub(super) struct Plain(pub(super) StoredReader);

impl Read for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.fill(buffer).map_err(io::Error::other)
    }
}

/// The stored files that a rebuilt file comes from: what its base and its layers are, and where.
pub(super) struct Ingredients<'a> {
    base: Ingredient<'a>,
    layers: Vec<Ingredient<'a>>,
    length: u32,
}

struct Ingredient<'a> {
    entry: FileEntry<'a>,
    stored: Stored<'a>,
    limit: u32,
    segment_blocks: u32,
}

impl<'a> Ingredients<'a> {
    pub(super) fn of(chain: &'a Chain, sources: &Sources<'a>) -> Ingredients<'a> {
        let path = sources.file.path;
        let entry = |size, crc32c, kind| FileEntry {
            size,
            crc32c,
            bundle: None,
            kind,
            ..sources.file
        };
        let base = sources.base;
        let stored_base = match base.bundle {
            None => chain.stored(base.member, path),
            Some(number) => chain.bundle(base.member, number),
        };
        let layers = sources.layers.iter().map(|layer| {
            // How long the file was then, the limit has told already.
            let kind = FileKind::Incremental {
                blocks: layer.blocks,
                length: layer.limit,
            };
            let entry = entry(layer.size(), layer.crc32c, kind);
            Ingredient {
                stored: chain.stored(layer.member, &entry.stored_path()),
                entry,
                limit: layer.limit,
                segment_blocks: chain.info(layer.member).relation_segment_blocks,
            }
        });
        Ingredients {
            base: Ingredient {
                entry: entry(base.size, base.crc32c, FileKind::Whole),
                stored: stored_base,
                limit: base.limit,
                segment_blocks: chain.info(base.member).relation_segment_blocks,
            },
            layers: layers.collect(),
            length: (sources.size() / PAGE_SIZE as u64) as u32,
        }
    }

    /// Opens all of them; the base's content is `content` where it came from a bundle.
    pub(super) fn open<'b>(&'b self, content: Option<&'b [u8]>) -> Result<Rebuilt<'b>> {
        let base = match content {
            None => self.base.open()?,
            Some(content) => self.base.in_memory(content)?,
        };
        let layers = self
            .layers
            .iter()
            .map(|layer| Ok((layer.open()?, layer.limit)))
            .collect::<Result<_>>()?;
        Ok(Rebuilt {
            base: (base, self.base.limit),
            layers,
            next: 0,
            length: self.length,
            block: [0; PAGE_SIZE],
            taken: PAGE_SIZE,
        })
    }
}

impl Ingredient<'_> {
    fn open(&self) -> Result<Blocks<'_>> {
        Blocks::open(
            self.entry,
            &self.stored.path,
            self.stored.coding,
            self.segment_blocks,
        )
    }

    fn in_memory<'b>(&'b self, content: &'b [u8]) -> Result<Blocks<'b>> {
        Blocks::of_memory(self.entry, content, &self.stored.path, self.segment_blocks)
    }
}

/// A file put together block by block: each from the newest layer that has it, else from the base, else zeros.
pub(super) struct Rebuilt<'a> {
    /// What counts of each is what lies below its limit.
    base: (Blocks<'a>, u32),
    /// The newest first.
    layers: Vec<(Blocks<'a>, u32)>,
    next: u32,
    length: u32,
    block: [u8; PAGE_SIZE],
    taken: usize,
}

impl Rebuilt<'_> {
    /// Puts the next block into `self.block`.
    fn advance(&mut self) -> Result<()> {
        let number = self.next;
        self.next += 1;
        self.taken = 0;
        for (blocks, limit) in self.layers.iter_mut().chain([&mut self.base]) {
            if number < *limit && blocks.advance_to(number)? {
                self.block.copy_from_slice(blocks.take()?);
                return Ok(());
            }
        }
        self.block.fill(0);
        Ok(())
    }

    /// Reads what does not count, and checks everything that was read.
    pub(super) fn finish(self) -> Result<()> {
        let all = self.layers.into_iter().chain([self.base]);
        all.into_iter().try_for_each(|(blocks, _)| blocks.finish())
    }
}

impl Read for Rebuilt<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == PAGE_SIZE {
            if self.next == self.length {
                return Ok(0);
            }
            self.advance().map_err(io::Error::other)?;
        }
        let read = (&self.block[self.taken..]).read(buffer)?;
        self.taken += read;
        Ok(read)
    }
}

/// Counts what is read, and looks whether to stop.
pub(super) struct Counted<'a, R> {
    source: R,
    progress: &'a dyn Progress,
    interrupt: &'a Interrupt,
    size: u64,
    crc32c: u32,
}

impl<'a, R: Read> Counted<'a, R> {
    pub(super) fn new(source: R, progress: &'a dyn Progress, interrupt: &'a Interrupt) -> Self {
        Counted {
            source,
            progress,
            interrupt,
            size: 0,
            crc32c: 0,
        }
    }

    /// What was read from, how many bytes, and their checksum.
    pub(super) fn finish(self) -> (R, u64, Crc32c) {
        (self.source, self.size, Crc32c(self.crc32c))
    }
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupt.check().map_err(io::Error::other)?;
        let read = self.source.read(buffer)?;
        self.size += read as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &buffer[..read]);
        self.progress.advance(read as u64);
        Ok(read)
    }
}
