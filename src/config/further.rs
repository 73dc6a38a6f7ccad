//! Further places for backups beside the main one: the keys that begin with `repo2_` to `repo9_`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::environment::Environment;
use super::ini::Setting;
use super::origin::{Entry, Origin, Sourced};
use super::retention;
use super::server::{Base, value_of};
use super::settings::{Given, Place, Reader};
use super::store::Store;
use crate::error::{Error, Result};

/// One of the places where a server's backups lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RepositoryName(u8);

impl RepositoryName {
    /// What `base_dir` says.
    pub const MAIN: RepositoryName = RepositoryName(1);

    /// All that there can be.
    pub const ALL: [RepositoryName; 9] = {
        let mut all = [RepositoryName::MAIN; 9];
        let mut place = 0;
        while place < all.len() {
            all[place] = RepositoryName(place as u8 + 1);
            place += 1;
        }
        all
    };

    /// Whether it is the one that `base_dir` says.
    pub fn is_main(self) -> bool {
        self == RepositoryName::MAIN
    }
}

impl Default for RepositoryName {
    fn default() -> RepositoryName {
        RepositoryName::MAIN
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "repo{}", self.0)
    }
}

impl FromStr for RepositoryName {
    type Err = String;

    fn from_str(text: &str) -> Result<RepositoryName, String> {
        let mut all = RepositoryName::ALL.into_iter();
        all.find(|name| name.to_string() == text).ok_or_else(|| {
            "repositories are repo1, the main one, and repo2 to repo9, as configured".to_owned()
        })
    }
}

/// What a section says of one further place.
#[derive(Debug, Clone)]
struct Further {
    base_dir: Given<Place>,
    store: Store,
    retention: Given<retention::Fields>,
    /// The first key of it, and where that stands.
    first: (String, Origin),
}

impl Further {
    fn over(self, main: Option<&Further>) -> Further {
        let Some(main) = main else { return self };
        Further {
            base_dir: self.base_dir.or_else(|| main.base_dir.clone()),
            store: self.store.over(&main.store),
            retention: retention::over(self.retention, main.retention.as_ref()),
            first: self.first,
        }
    }
}

/// All that a section says of further places.
#[derive(Debug, Clone, Default)]
pub(super) struct FurtherPlaces(BTreeMap<RepositoryName, Further>);

/// Splits a key into the place and what it says of it.
fn split(key: &str) -> Option<(&str, &str)> {
    let (place, rest) = key.split_once('_')?;
    let number = place.strip_prefix("repo")?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some((place, rest))
}

/// Whether a key begins as those of a further place do.
pub(super) fn is_key(key: &str) -> bool {
    split(key).is_some()
}

impl Reader<'_> {
    /// Takes a setting of a further place; false if it is none.
    pub(super) fn further(&self, places: &mut FurtherPlaces, setting: &Setting) -> Result<bool> {
        let Some((place, key)) = split(&setting.key) else {
            return Ok(false);
        };
        let Some(name) = place
            .parse()
            .ok()
            .filter(|name: &RepositoryName| !name.is_main())
        else {
            return Err(self.wrong(setting, "is of no place that can be").hint(
                "further places are repo2 to repo9; the keys of the main one have no number",
            ));
        };
        let further = places.0.entry(name).or_insert_with(|| Further {
            base_dir: None,
            store: Store::default(),
            retention: None,
            first: (setting.key.clone(), self.sourced(setting, ()).origin),
        });
        match key {
            "base_dir" => further.base_dir = Some(self.place(setting)?),
            "retention" => further.retention = Some(self.retention(setting)?),
            key if self.store(&mut further.store, key, setting)? => {}
            _ => {
                return Err(self.wrong(setting, "is not a key of this section").hint(format!(
                    "the keys of {name} are {name}_base_dir, {name}_retention, and those that begin with s3_, azure_ or gcs_, as {name}_s3_endpoint"
                )));
            }
        }
        Ok(true)
    }
}

impl FurtherPlaces {
    /// A server's section, and the main one where that says nothing.
    pub(super) fn over(self, main: &FurtherPlaces) -> FurtherPlaces {
        let mut places = main.0.clone();
        for (name, own) in self.0 {
            let place = own.over(main.0.get(&name));
            places.insert(name, place);
        }
        FurtherPlaces(places)
    }

    fn has_base_dir(&self, name: RepositoryName) -> bool {
        let place = self.0.get(&name);
        place.is_some_and(|place| place.base_dir.is_some())
    }

    /// An error where a section has keys of a place for which neither it nor any of the others says where that is.
    pub(super) fn check_all_lie_somewhere(&self, others: &[&FurtherPlaces]) -> Result<()> {
        for (name, Further { first, .. }) in &self.0 {
            let (key, origin) = first;
            let mut sections = [self].into_iter().chain(others.iter().copied());
            if !sections.any(|section| section.has_base_dir(*name)) {
                return Err(Error::usage(format!("{origin}: {key} has no effect here"))
                    .hint(format!("set {name}_base_dir as well")));
            }
        }
        Ok(())
    }

    /// Checks what several keys give together.
    pub(super) fn check(&self) -> Result<()> {
        self.0.iter().try_for_each(|(name, further)| {
            further.store.check(&prefix(*name))?;
            retention::checked(further.retention.as_ref(), &format!("{name}_retention")).map(drop)
        })
    }

    /// Where they are.
    pub(super) fn bases(&self, environment: &Environment) -> BTreeMap<RepositoryName, Base> {
        let base = |further: &Further| {
            let place = value_of(&further.base_dir)?;
            Some(Base::of(place, &further.store, environment))
        };
        let bases = self.0.iter();
        bases
            .filter_map(|(name, further)| Some((*name, base(further)?)))
            .collect()
    }

    /// What is said of each place that is in a store: what matters to such a store, and what does only to others.
    pub(super) fn of_kind(&self) -> impl Iterator<Item = (Vec<Entry>, Vec<Entry>)> {
        self.0.iter().filter_map(|(name, further)| {
            let scheme = value_of(&further.base_dir)?.scheme()?;
            Some(further.store.of_kind(scheme, &prefix(*name)))
        })
    }

    /// How long backups are kept in those that say so.
    pub(super) fn retentions(&self) -> Result<BTreeMap<RepositoryName, retention::Retention>> {
        let mut retentions = BTreeMap::new();
        for (name, further) in &self.0 {
            let key = format!("{name}_retention");
            let kept = retention::checked(further.retention.as_ref(), &key)?;
            retentions.extend(kept.map(|kept| (*name, kept)));
        }
        Ok(retentions)
    }

    /// The lines of `conf ls`.
    pub(super) fn entries(&self) -> Vec<Entry> {
        fn shown<T: fmt::Display>(key: String, given: &Given<T>) -> Option<Entry> {
            let Sourced { value, origin } = given.as_ref()?;
            Some(Entry {
                key,
                value: value.to_string(),
                origin: origin.clone(),
            })
        }
        let mut entries = Vec::new();
        for (name, further) in &self.0 {
            entries.extend(shown(format!("{name}_base_dir"), &further.base_dir));
            entries.extend(shown(format!("{name}_retention"), &further.retention));
            entries.extend(further.store.entries(&prefix(*name)));
        }
        entries
    }
}

fn prefix(name: RepositoryName) -> String {
    format!("{name}_")
}
