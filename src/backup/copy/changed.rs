//! Copying the blocks that changed: many ranges of many files a query.

use std::borrow::Cow;

use crate::backup::copy::Worker;
use crate::backup::copy::small::store_alone;
use crate::backup::plan::Wanted;
use crate::error::Result;
use crate::parallel::Stop;
use crate::pg::incremental;
use crate::pg::page::PAGE_SIZE;
use crate::repository::store::{SLICE_BYTES, Store};
use crate::server::reading::{ROW_BYTES, Range};

/// A row's worth of blocks.
const ROW_BLOCKS: usize = ROW_BYTES as usize / PAGE_SIZE;

/// Part of an incremental file: its header, or nothing of it, and some blocks.
struct Changed<'a> {
    /// The file's place in the plan.
    file: usize,
    header: Cow<'a, [u8]>,
    blocks: &'a [u32],
}

impl Worker<'_> {
    /// Stores a few blocks of each of some files.
    pub(super) fn copy_changed(&mut self, files: &[u32], stop: &Stop<'_>) -> Result<()> {
        let job = self.job;
        let changed: Vec<Changed<'_>> = files
            .iter()
            .map(|&file| file as usize)
            .filter_map(|file| match job.plan.files.get(file).wanted {
                Wanted::Whole => None,
                Wanted::Blocks(blocks) => Some(Changed {
                    file,
                    header: Cow::Owned(incremental::header(
                        blocks,
                        job.plan.files.get(file).blocks(),
                    )),
                    blocks,
                }),
            })
            .collect();
        self.read_changed(&changed, stop, |store, changed, content| {
            store_alone(store, job.plan.files.get(changed.file), content)
        })
    }

    /// Reads one slice of an incremental file, which begins with `header`, into `self.plain`.
    pub(super) fn read_changed_slice(
        &mut self,
        file: usize,
        header: &[u8],
        blocks: &[u32],
        number: u64,
        stop: &Stop<'_>,
    ) -> Result<()> {
        // Both are whole pages, and the header is less than a slice.
        let in_slice = SLICE_BYTES as usize / PAGE_SIZE;
        let before = header.len() / PAGE_SIZE;
        let first = (number as usize * in_slice).saturating_sub(before);
        let end = ((number as usize + 1) * in_slice - before).min(blocks.len());
        let changed = Changed {
            file,
            header: Cow::Borrowed(if number == 0 { header } else { &[] }),
            blocks: &blocks[first..end],
        };
        self.read_changed(&[changed], stop, |_, _, _| Ok(()))
    }

    /// Reads blocks of files, in `self.plain` one file after the other behind its header, and hands each on. Blocks
    /// that are gone, because the relation was truncated or dropped meanwhile, are
    /// zeros: replay truncates or drops it too.
    fn read_changed(
        &mut self,
        changed: &[Changed<'_>],
        stop: &Stop<'_>,
        mut keep: impl FnMut(&mut Store<'_>, &Changed<'_>, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let job = self.job;
        let mut wanted = Vec::new();
        let mut owners = Vec::new();
        for (owner, part) in changed.iter().enumerate() {
            let path = job.plan.files.get(part.file).path;
            wanted.extend(runs(part.blocks).map(|(block, blocks)| Range {
                path,
                offset: u64::from(block) * PAGE_SIZE as u64,
                length: blocks as u64 * PAGE_SIZE as u64,
            }));
            owners.resize(wanted.len(), owner);
        }
        let plain = &mut self.plain;
        let store = &mut self.store;
        let pages = &mut self.pages;
        let mut suspects = Vec::new();
        let mut doubtful = Vec::new();
        plain.clear();
        self.session.reader()?.read(&wanted, |index, bytes| {
            stop.check()?;
            let owner = owners[index];
            let part = &changed[owner];
            if index == 0 || owners[index - 1] != owner {
                plain.clear();
                plain.extend_from_slice(&part.header);
            }
            let range = &wanted[index];
            let begin = plain.len();
            plain.extend_from_slice(bytes.unwrap_or_default());
            plain.resize(begin + range.length as usize, 0);
            let relation = job.plan.files.get(part.file).relation();
            if let Some(relation) = relation {
                let block = (range.offset / PAGE_SIZE as u64) as u32;
                suspects.extend(pages.look_at(part.file, relation, block, &plain[begin..]));
            }
            job.progress.advance(range.length);
            job.rate.take(range.length, || stop.is_set());
            if owners.get(index + 1) == Some(&owner) {
                return Ok(());
            }
            if suspects.is_empty() {
                return keep(store, part, plain);
            }
            doubtful.push((part, plain.clone(), std::mem::take(&mut suspects)));
            Ok(())
        })?;
        for (part, mut content, suspects) in doubtful {
            self.look_again(suspects, &mut content, |block| {
                let before = part.blocks.partition_point(|listed| *listed < block);
                part.header.len() + before * PAGE_SIZE
            })?;
            keep(&mut self.store, part, &content)?;
            self.plain = content;
        }
        Ok(())
    }
}

/// Blocks that follow each other, as the first and how many, at most a row's worth.
fn runs(mut blocks: &[u32]) -> impl Iterator<Item = (u32, usize)> {
    std::iter::from_fn(move || {
        let first = *blocks.first()?;
        let length = (first..)
            .zip(blocks.iter().take(ROW_BLOCKS))
            .take_while(|(expected, block)| expected == *block)
            .count();
        blocks = &blocks[length..];
        Some((first, length))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_read_together_up_to_a_row() {
        let row = ROW_BLOCKS as u32;
        let blocks: Vec<u32> = [3, 4, 9].into_iter().chain(20..21 + row).collect();
        let runs: Vec<_> = runs(&blocks).collect();
        assert_eq!(runs, [(3, 2), (9, 1), (20, ROW_BLOCKS), (20 + row, 1)]);
    }
}
