//! Build script: tells `pgkeep --version` what the binary was built from.
//!
//! `PGKEEP_BUILD` becomes the target, preceded by the commit in a release build where one
//! is known: from the package's own git repository, or from what `cargo package` wrote down. A debug build
//! leaves git alone, so that a commit does not rebuild it.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What the binary is made of; a change to anything else leaves its commit alone.
const SOURCES: [&str; 4] = ["src", "completions", "Cargo.toml", "Cargo.lock"];

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    let target = env::var("TARGET").unwrap_or_default();
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = is_release.then(|| git_commit().or_else(packaged_commit));
    let build = match commit.flatten() {
        Some(commit) => format!("{commit}, {target}"),
        None => target,
    };
    println!("cargo::rustc-env=PGKEEP_BUILD={build}");
}

/// The commit that is checked out, and whether sources differ from it. None where the
/// package lies in no git repository, or in one that is not its own.
fn git_commit() -> Option<String> {
    let root = git(&["rev-parse", "--show-toplevel"])?;
    let package = env::var("CARGO_MANIFEST_DIR").ok()?;
    if fs::canonicalize(root).ok()? != fs::canonicalize(package).ok()? {
        return None;
    }
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if Path::new(&log).exists() {
        println!("cargo::rerun-if-changed={log}");
    }
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    let commit = git(&["rev-parse", "--short=10", "HEAD"])?;
    let mut status = vec!["status", "--porcelain", "--"];
    status.extend(SOURCES);
    Some(match git(&status)?.as_str() {
        "" => commit,
        _ => format!("{commit} with changes"),
    })
}

/// The commit that `cargo package` put into the archive it made.
fn packaged_commit() -> Option<String> {
    let text = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, after) = text.split_once("\"sha1\"")?;
    let sha1 = after.split('"').nth(1)?;
    sha1.get(..10).map(str::to_owned)
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim_end().to_owned())
}
