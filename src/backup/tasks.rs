//! The work of a backup in portions, which workers take one after the other.
//!
//! Portions are dealt out by their numbers, and those of large files are made only then: there is one for every few
//! MiB of a cluster of any size.

use std::ops::Range;

use crate::backup::plan::{PlannedFile, PlannedFiles};
use crate::repository::store::SLICE_BYTES;
use crate::stored::coding::Suffix;

/// What a worker does at a time. Files are told by their places in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task<'a> {
    /// One slice of a large file.
    Slice {
        /// The file.
        file: usize,
        /// Which of its slices, from 0.
        number: u64,
    },
    /// A few blocks of each of some files, each stored by itself.
    Changed {
        /// The files.
        files: &'a [u32],
    },
    /// A large file that has to be from one moment.
    Settled {
        /// The file.
        file: usize,
    },
    /// Many small files: one bundle, or each stored by itself.
    Small {
        /// The files.
        files: &'a [u32],
        /// The bundle's number.
        bundle: Option<u32>,
    },
}

/// All the work, the largest files first.
pub(super) struct Tasks {
    /// The files that are read in slices, each with the number of the task that is behind its last slice.
    sliced: Vec<(u32, u64)>,
    /// The other files, those of one portion next to each other.
    together: Vec<u32>,
    portions: Vec<Portion>,
}

/// Files that are read together.
struct Portion {
    places: Range<usize>,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    /// One file.
    Settled,
    Changed,
    Small {
        bundle: Option<u32>,
    },
}

impl Tasks {
    /// Deals files into tasks, all those whose places are wanted. The first bundle gets the number `bundle`.
    pub(super) fn new(
        files: &PlannedFiles,
        suffix: Suffix,
        is_wanted: impl Fn(usize) -> bool,
        bundle: u32,
    ) -> Tasks {
        let of = |wanted: &dyn Fn(&PlannedFile<'_>) -> bool| -> Vec<u32> {
            (0..)
                .zip(files.iter())
                .filter(|(place, file)| is_wanted(*place as usize) && wanted(file))
                .map(|(place, _)| place)
                .collect()
        };
        let by_size = |places: &mut [u32]| {
            places.sort_by_key(|&place| std::cmp::Reverse(files.get(place as usize).stored_size()));
        };
        let mut sliced = of(&|file| file.is_sliced());
        by_size(&mut sliced);
        let mut slices = 0;
        let sliced = sliced.into_iter().map(|place| {
            slices += files.get(place as usize).slices();
            (place, slices)
        });
        let mut tasks = Tasks {
            sliced: sliced.collect(),
            together: Vec::new(),
            portions: Vec::new(),
        };
        let mut settled = of(&|file| file.is_large() && !file.is_sliced() && !file.is_replayed());
        by_size(&mut settled);
        for place in settled {
            tasks.add(files, vec![place], |_| Kind::Settled);
        }
        let mut changed = of(&|file| file.is_large() && !file.is_sliced() && file.is_replayed());
        by_size(&mut changed);
        tasks.add(files, changed, |_| Kind::Changed);
        let is_bundled = !suffix.is_plain();
        let data = of(&|file| !file.is_large() && !file.is_extra());
        tasks.add(files, data, |number| Kind::Small {
            bundle: is_bundled.then_some(bundle + number),
        });
        let extra = of(&|file| !file.is_large() && file.is_extra());
        tasks.add(files, extra, |_| Kind::Small { bundle: None });
        tasks
    }

    /// Adds portions of these files, each large enough; `kind` says what the one with a number is.
    fn add(&mut self, files: &PlannedFiles, places: Vec<u32>, kind: impl Fn(u32) -> Kind) {
        let first = self.together.len();
        self.together.extend(places);
        let (mut start, mut bytes, mut number) = (first, 0, 0);
        for place in first..self.together.len() {
            let file = files.get(self.together[place] as usize);
            bytes += file.stored_size() + BUNDLE_OVERHEAD;
            if bytes >= SLICE_BYTES || place + 1 == self.together.len() {
                self.portions.push(Portion {
                    places: start..place + 1,
                    kind: kind(number),
                });
                number += 1;
                start = place + 1;
                bytes = 0;
            }
        }
    }

    /// How many bundles there are.
    pub(super) fn bundles(&self) -> u32 {
        let portions = self.portions.iter();
        let bundled = |portion: &&Portion| matches!(portion.kind, Kind::Small { bundle: Some(_) });
        portions.filter(bundled).count() as u32
    }

    /// The task with a number, from 0; nothing behind the last one.
    pub(super) fn get(&self, number: usize) -> Option<Task<'_>> {
        let wanted = number as u64;
        let place = self.sliced.partition_point(|&(_, behind)| behind <= wanted);
        if let Some(&(file, _)) = self.sliced.get(place) {
            let first = place
                .checked_sub(1)
                .map_or(0, |before| self.sliced[before].1);
            return Some(Task::Slice {
                file: file as usize,
                number: wanted - first,
            });
        }
        let slices = self.sliced.last().map_or(0, |&(_, behind)| behind);
        let portion = self.portions.get((wanted - slices) as usize)?;
        let files = &self.together[portion.places.clone()];
        Some(match portion.kind {
            Kind::Settled => Task::Settled {
                file: files[0] as usize,
            },
            Kind::Changed => Task::Changed { files },
            Kind::Small { bundle } => Task::Small { files, bundle },
        })
    }
}

/// Tar's own part of a bundle: a header a file, and what fills its last block.
pub(super) const BUNDLE_OVERHEAD: u64 = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::store::BUNDLED_BYTES;
    use crate::stored::compression::Algorithm;

    const ZSTD: Suffix = Suffix {
        algorithm: Algorithm::Zstd,
        is_encrypted: false,
    };

    fn files(sizes: &[u64]) -> PlannedFiles {
        let paths = (1..).map(|number| format!("base/5/{number}"));
        PlannedFiles::whole(paths.zip(sizes.iter().copied()))
    }

    fn all(tasks: &Tasks) -> Vec<Task<'_>> {
        (0..).map_while(|number| tasks.get(number)).collect()
    }

    #[test]
    fn large_files_come_first_in_slices_and_small_ones_in_bundles() {
        let tasks = Tasks::new(
            &files(&[8192, SLICE_BYTES + 1, 0, 2 * SLICE_BYTES + 8192]),
            ZSTD,
            |_| true,
            0,
        );
        let slice = |file, number| Task::Slice { file, number };
        assert_eq!(
            all(&tasks),
            [
                slice(3, 0),
                slice(3, 1),
                slice(3, 2),
                slice(1, 0),
                slice(1, 1),
                Task::Small {
                    files: &[0, 2],
                    bundle: Some(0)
                },
            ]
        );
    }

    #[test]
    fn a_large_file_that_replay_does_not_mend_is_read_at_once() {
        let files = PlannedFiles::whole([
            ("pg_stat/pgstat.stat", 2 * SLICE_BYTES),
            ("base/5/1", SLICE_BYTES),
        ]);
        let slice = Task::Slice { file: 1, number: 0 };
        assert_eq!(
            all(&Tasks::new(&files, ZSTD, |_| true, 0)),
            [slice, Task::Settled { file: 0 }]
        );
    }

    #[test]
    fn the_slices_of_a_large_cluster_take_no_memory_before_their_turn() {
        const SEGMENTS: usize = 10_000;
        const SEGMENT_BYTES: u64 = 1 << 30;
        let tasks = Tasks::new(&files(&[SEGMENT_BYTES; SEGMENTS]), ZSTD, |_| true, 0);
        let slices = SEGMENT_BYTES / SLICE_BYTES;
        assert_eq!(tasks.sliced.len(), SEGMENTS);
        assert!(tasks.together.is_empty() && tasks.portions.is_empty());
        for (segment, slice) in [(0, 0), (0, slices - 1), (1, 0), (SEGMENTS - 1, slices - 1)] {
            let number = segment * slices as usize + slice as usize;
            let expected = Task::Slice {
                file: segment,
                number: slice,
            };
            assert_eq!(tasks.get(number), Some(expected));
        }
        assert_eq!(tasks.get(SEGMENTS * slices as usize), None);
    }

    #[test]
    fn what_is_encrypted_is_bundled_without_compression_too() {
        let suffix = Suffix {
            is_encrypted: true,
            ..Suffix::PLAIN
        };
        let tasks = Tasks::new(&files(&[8192]), suffix, |_| true, 0);
        assert!(matches!(
            all(&tasks)[..],
            [Task::Small {
                bundle: Some(0),
                ..
            }]
        ));
    }

    #[test]
    fn without_compression_nothing_is_bundled() {
        let tasks = Tasks::new(&files(&[8192]), Suffix::PLAIN, |_| true, 0);
        assert_eq!(
            all(&tasks),
            [Task::Small {
                files: &[0],
                bundle: None
            }]
        );
    }

    #[test]
    fn many_small_files_fill_several_bundles_of_bounded_size() {
        let tasks = Tasks::new(&files(&[BUNDLED_BYTES; 100]), ZSTD, |_| true, 0);
        let bundles: Vec<&[u32]> = all(&tasks)
            .into_iter()
            .filter_map(|task| match task {
                Task::Small {
                    files,
                    bundle: Some(_),
                } => Some(files),
                _ => None,
            })
            .collect();
        assert!(bundles.len() > 1);
        assert!(
            bundles
                .iter()
                .all(|files| files.len() as u64 * BUNDLED_BYTES <= SLICE_BYTES + BUNDLED_BYTES)
        );
        assert_eq!(bundles.iter().map(|files| files.len()).sum::<usize>(), 100);
    }
}
