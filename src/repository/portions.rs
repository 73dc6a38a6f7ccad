//! Stored content in portions that are read in one go.

/// Very many files by their places, dealt into portions.
pub struct Portions<B> {
    /// Files that are stored by themselves, the largest first.
    alone: Vec<u32>,
    /// The files in each bundle, in the order of their places.
    bundles: Vec<(B, Vec<u32>)>,
}

/// Stored content that is read in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Portion<'a, B> {
    /// A file stored by itself.
    Alone(usize),
    /// Small files in one bundle, in the order of their places.
    Bundle(B, &'a [u32]),
}

impl<B: Copy + Ord> Portions<B> {
    /// Deals files: their places, how many bytes are read of each, and the bundle that it is in.
    pub fn new(files: impl Iterator<Item = (usize, u64, Option<B>)>) -> Portions<B> {
        let mut alone = Vec::new();
        let mut bundles: Vec<(B, Vec<u32>)> = Vec::new();
        for (place, bytes, bundle) in files {
            let place = place as u32;
            match bundle {
                None => alone.push((bytes, place)),
                Some(bundle) => {
                    let known = bundles.binary_search_by_key(&bundle, |(known, _)| *known);
                    let at = known.unwrap_or_else(|at| {
                        bundles.insert(at, (bundle, Vec::new()));
                        at
                    });
                    bundles[at].1.push(place);
                }
            }
        }
        alone.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        Portions {
            alone: alone.into_iter().map(|(_, place)| place).collect(),
            bundles,
        }
    }

    /// The portion with a number, from 0; nothing behind the last one.
    pub fn get(&self, number: usize) -> Option<Portion<'_, B>> {
        match self.alone.get(number) {
            Some(place) => Some(Portion::Alone(*place as usize)),
            None => {
                let (bundle, files) = self.bundles.get(number - self.alone.len())?;
                Some(Portion::Bundle(*bundle, files))
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.alone.len() + self.bundles.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, the largest files first.
    pub fn iter(&self) -> impl Iterator<Item = Portion<'_, B>> {
        (0..).map_while(|number| self.get(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_files_come_first_and_those_of_a_bundle_together() {
        let files = [
            (1, 1, None),
            (2, 5, Some(7)),
            (3, 9, None),
            (4, 3, Some(2)),
            (6, 4, Some(7)),
        ];
        let portions = Portions::new(files.into_iter());
        let all: Vec<_> = portions.iter().collect();
        let bundle = |number, files| Portion::Bundle(number, files);
        assert_eq!(
            all,
            [
                Portion::Alone(3),
                Portion::Alone(1),
                bundle(2, &[4]),
                bundle(7, &[2, 6])
            ]
        );
    }
}
