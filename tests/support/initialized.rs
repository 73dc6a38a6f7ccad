//! A cluster as initdb leaves it, made once for each version and kind and then copied.

use std::path::Path;

use super::account::run;
use super::{ground, installed};

/// Makes a stopped cluster in `data` with some options of initdb, which trusts whoever says to be `postgres`. A copy takes
/// a tenth of initdb's time; all that are made with the same options have one system identifier.
pub fn cluster(major: u32, options: &[&str], data: &Path) {
    let kind = options.concat().replace("--", "-").replace('=', "");
    let name = format!("initdb-{major}{kind}-{}", installed::since(major));
    let made = ground::made_once(&name, |made| {
        run(installed::initdb(major, made).args(options));
    });
    ground::copy(&made, data);
}
