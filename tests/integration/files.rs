//! `encrypt`, `decrypt`, `compress` and `decompress`, interrupted at any moment.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::process::Signal;

use crate::support::pgkeep::Running;
use crate::support::{Cluster, Options, Pgkeep, checks};

const BYTES: usize = 8 << 20;

/// A pgkeep with a key; its server is never asked.
fn pgkeep() -> Pgkeep {
    let cluster = Cluster::stopped(17, &Options::default());
    let pgkeep = Pgkeep::of(&cluster).with("encryption", "aes-256-cbc");
    pgkeep.ok(&["master-key"]);
    pgkeep
}

/// Text of some size that compresses by half or so.
fn content(bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 32);
    let mut number = 1_u64;
    while text.len() < bytes {
        number = number
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        text.push_str(&(number >> 20).to_string());
    }
    text.truncate(bytes);
    text
}

fn spawn(pgkeep: &Pgkeep, verb: &str, file: &Path) -> Running {
    pgkeep.spawn(&[verb, file.to_str().unwrap()])
}

fn names(folder: &Path) -> Vec<String> {
    let files = checks::files(folder).into_iter();
    files
        .map(|file| file.file_name().unwrap().to_str().unwrap().to_owned())
        .collect()
}

/// Ends a verb at moments spread over the time it takes. After each, the old file is there as it was, or
/// the new one, which turns into the old one again.
fn ended_at_any_moment(verb: &str, back: &str, suffix: &str, signal: Signal) {
    let pgkeep = pgkeep();
    let content = content(BYTES);
    let folder = pgkeep.ground().folder("files");
    let old = pgkeep.ground().file("files/backup.tar", &content);
    let new = PathBuf::from(format!("{}{suffix}", old.display()));
    let begin = Instant::now();
    pgkeep.ok(&[verb, old.to_str().unwrap()]);
    let mut whole = begin.elapsed();
    pgkeep.ok(&[back, new.to_str().unwrap()]);
    let mut ended_early = 0;
    for tenth in 0..=12 {
        let running = spawn(&pgkeep, verb, &old);
        std::thread::sleep(whole * tenth / 10);
        running.signal(signal);
        let run = running.wait();
        if old.exists() {
            assert!(fs::read_to_string(&old).unwrap() == content, "{run:?}");
            ended_early += 1;
        } else {
            // It takes less than when it was measured.
            whole = whole * 2 / 3;
        }
        if new.exists() {
            // The old one may be there still: then its removal was what did not happen.
            let copy = folder.join(format!("copy.tar{suffix}"));
            fs::rename(&new, &copy).unwrap();
            let report = pgkeep.ok(&[back, copy.to_str().unwrap()]);
            let copy = PathBuf::from(report.at("Response.File"));
            assert!(fs::read_to_string(&copy).unwrap() == content, "{run:?}");
            fs::rename(&copy, &old).unwrap();
        }
        let mut left = names(&folder);
        if signal == Signal::KILL {
            left.retain(|name| name != &format!("backup.tar{suffix}.incoming"));
        }
        assert_eq!(left, ["backup.tar"], "{run:?}");
    }
    assert!(ended_early > 2, "it was too quick to be interrupted");
    // What a killed one left is in nobody's way.
    pgkeep.ok(&[verb, old.to_str().unwrap()]);
    assert_eq!(names(&folder), [format!("backup.tar{suffix}")]);
}

#[test]
fn encrypt_killed_at_any_moment_leaves_a_whole_file() {
    ended_at_any_moment("encrypt", "decrypt", ".aes", Signal::KILL);
}

#[test]
fn compress_killed_at_any_moment_leaves_a_whole_file() {
    ended_at_any_moment("compress", "decompress", ".zstd", Signal::KILL);
}

#[test]
fn an_interrupted_encrypt_leaves_nothing_beside() {
    ended_at_any_moment("encrypt", "decrypt", ".aes", Signal::INT);
}

#[test]
fn each_verb_reports_what_came_of_it() {
    let pgkeep = pgkeep();
    pgkeep.ground().folder("files");
    let text = content(100_000);
    let file = pgkeep.ground().file("files/backup.tar", &text);
    let mut file = file.display().to_string();
    for (verb, key, value, size) in [
        ("compress", "Compression", "zstd", None),
        ("encrypt", "Encryption", "aes-256-cbc", None),
        ("decrypt", "Encryption", "aes-256-cbc", None),
        ("decompress", "Compression", "zstd", Some(100_000)),
    ] {
        let report = pgkeep.ok(&["--format", "json", verb, &file]);
        assert_eq!(report.at("Header.Command"), verb);
        assert_eq!(report.at("Request.File"), file);
        assert_eq!(report.at(&format!("Response.{key}")), value);
        file = report.at("Response.File");
        let stored = fs::metadata(&file).unwrap().len();
        assert_eq!(report.number("Response.Size"), size.unwrap_or(stored));
    }
    assert!(file.ends_with("files/backup.tar"), "{file}");
    assert!(fs::read_to_string(&file).unwrap() == text);
    let error = pgkeep.run(&["decrypt", &file]).failed(2);
    assert!(error.contains(".aes"), "{error}");
    let error = pgkeep.run(&["encrypt", "/nowhere/file"]).failed(1);
    assert!(error.contains("/nowhere/file"), "{error}");
}
