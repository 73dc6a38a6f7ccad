//! Backups of the model of relation files, deleted one after the other.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;

use crate::interrupt::Interrupt;
use crate::lifecycle::delete;
use crate::progress::Silent;
use crate::repository::catalogue::Catalogue;
use crate::repository::identifier::Selector;
use crate::restore::tests::{Model, Taken, ground, keys, steps, take};

fn delete(model: &Model, taken: &Taken) {
    let request = delete::Request {
        server: "primary",
        folder: &model.server,
        backup: &Selector::Prefix(taken.identifier.to_string()),
        keys: &keys(),
        force: true,
        workers: 2,
    };
    let deleted = delete::run(&request, &Silent, &Interrupt::default()).unwrap();
    assert!(deleted.broken.is_empty());
}

/// Those that are left are restored as they were, and their stored files are what their lists say.
fn check(model: &Model, left: &[&Taken], ground: &Path) {
    let catalogue = Catalogue::read("primary", &model.server).unwrap();
    assert_eq!(catalogue.backups().len(), left.len());
    let restored = tempfile::tempdir_in(ground).unwrap();
    for taken in left {
        model.check(taken, &catalogue, restored.path());
    }
    let folders = std::fs::read_dir(model.server.backups().local().unwrap()).unwrap();
    let names: BTreeSet<String> = folders
        .map(|folder| folder.unwrap().file_name().into_string().unwrap())
        .collect();
    let expected = left.iter().map(|taken| taken.identifier.to_string());
    assert_eq!(names, expected.collect());
}

proptest! {
    #![proptest_config(crate::chance::cases(14))]

    #[test]
    fn whatever_is_deleted_the_others_stay_as_they_were(
        steps in steps(),
        deletions in prop::collection::vec(any::<prop::sample::Index>(), 1..8),
    ) {
        let ground = ground();
        let model = take(ground.path(), &steps);
        let mut left: Vec<&Taken> = model.taken.iter().collect();
        for deletion in deletions {
            if left.is_empty() {
                break;
            }
            delete(&model, left.remove(deletion.index(left.len())));
            check(&model, &left, ground.path());
        }
    }
}
