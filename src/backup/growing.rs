//! A list that grows while others read it, and whose items stay where they are.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Items in chunks, each chunk twice as long as the one before.
pub(super) struct Growing<T> {
    length: AtomicUsize,
    chunks: [OnceLock<Box<[OnceLock<T>]>>; CHUNKS],
}

/// The first chunk's length is two to this power.
const FIRST_BITS: u32 = 10;

/// As many as all positions need.
const CHUNKS: usize = (usize::BITS - FIRST_BITS) as usize;

impl<T> Default for Growing<T> {
    fn default() -> Growing<T> {
        Growing {
            length: AtomicUsize::new(0),
            chunks: [const { OnceLock::new() }; CHUNKS],
        }
    }
}

impl<T: Default> Growing<T> {
    /// Adds one, and gives its place.
    pub(super) fn push(&self, item: T) -> usize {
        let place = self.length.fetch_add(1, Ordering::Relaxed);
        // Nobody else has this place, or asks for it before it is told.
        let _ = self.slot(place).set(item);
        place
    }

    /// The one at a place that was given.
    pub(super) fn get(&self, place: usize) -> &T {
        self.slot(place).get_or_init(T::default)
    }

    fn slot(&self, place: usize) -> &OnceLock<T> {
        let number = place + (1 << FIRST_BITS);
        let bits = usize::BITS - 1 - number.leading_zeros();
        let chunk = &self.chunks[(bits - FIRST_BITS) as usize];
        let items = chunk.get_or_init(|| (0..1_usize << bits).map(|_| OnceLock::new()).collect());
        &items[number - (1 << bits)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_item_is_at_its_place_whoever_adds_more() {
        let growing = Growing::<usize>::default();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for number in 0..10_000 {
                        let place = growing.push(number);
                        assert_eq!(*growing.get(place), number);
                    }
                });
            }
        });
        let sum: usize = (0..20_000).map(|place| growing.get(place)).sum();
        assert_eq!(sum, 2 * (0..10_000).sum::<usize>());
    }
}
