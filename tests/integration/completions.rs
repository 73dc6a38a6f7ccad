//! Completion in real shells. bash is on every machine; zsh and fish are tried where
//! they are installed.

use std::path::Path;
use std::process::Command;

use crate::support::account;
use crate::support::pgkeep::{SERVER, binary};
use crate::support::{Cluster, Pgkeep};

/// Calls the completion as bash does: `$1` is the script, then come the words as bash cuts them.
const BASH: &str = r#"
    compopt() { :; }
    source "$1"; shift
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_TYPE=63
    word=${COMP_WORDS[COMP_CWORD]}
    [[ $word == [=:] ]] && word=
    _pgkeep "$1" "$word" "${COMP_WORDS[COMP_CWORD - 1]}"
    printf '%s\n' "${COMPREPLY[@]}"
"#;

/// The same for zsh, with the functions of its completion system that are called.
const ZSH: &str = r#"
    compdef() { :; }
    compset() { :; }
    _files() { print -r -- "files $*" }
    _describe() { print -rl -- "${(@P)3}" }
    source "$1"; shift
    words=("$@") CURRENT=$# PREFIX=${@[-1]}
    _pgkeep
"#;

/// fish completes a whole line by itself.
const FISH: &str = r#"
    source $argv[1]
    set -p PATH (dirname $argv[2])
    complete --do-complete "pgkeep $argv[3..]"
"#;

fn is_installed(shell: &str) -> bool {
    let found = account::command(shell).arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIPPED: {shell} is not installed here");
    }
    found
}

/// Where the scripts are that packages install.
fn script(name: &str) -> String {
    format!("{}/completions/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A copy of the script that the unprivileged account can read.
fn readable_copy(pgkeep: &Pgkeep, name: &str) -> String {
    let text = std::fs::read_to_string(script(name)).unwrap();
    pgkeep.ground().file(name, &text).display().to_string()
}

fn lines(pgkeep: &Pgkeep, command: &mut Command) -> Vec<String> {
    command.env("PGKEEP_CONFIG", pgkeep.configuration());
    let output = account::run(command.current_dir(pgkeep.ground().path()));
    output.lines().map(str::to_owned).collect()
}

fn in_bash(pgkeep: &Pgkeep, words: &[&str]) -> Vec<String> {
    let copy = readable_copy(pgkeep, "pgkeep.bash");
    let mut command = account::command("bash");
    command
        .args(["--norc", "-c", BASH, "bash", &copy])
        .arg(binary())
        .args(words);
    lines(pgkeep, &mut command)
}

#[test]
fn bash_completes_servers_and_backups() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let backup = pgkeep.backup().identifier;
    assert_eq!(in_bash(&pgkeep, &["inf"]), ["info"]);
    assert_eq!(in_bash(&pgkeep, &["info", ""]), [SERVER]);
    assert_eq!(
        in_bash(&pgkeep, &["info", SERVER, &backup[..6]]),
        [&*backup]
    );
    let listed = in_bash(&pgkeep, &["info", SERVER, ""]);
    assert!(listed[2].starts_with(&format!("{backup}  (")), "{listed:?}");
    assert!(listed[2].contains("full"), "{listed:?}");
}

/// bash gives `--config=/a` as three words, and replaces only the last of them.
#[test]
fn bash_completes_words_with_an_equals_sign() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    assert_eq!(in_bash(&pgkeep, &["-F", "j"]), ["json"]);
    assert_eq!(in_bash(&pgkeep, &["--format", "=", "j"]), ["json"]);
    assert_eq!(
        in_bash(&pgkeep, &["--config", "=", "pgkeep.c"]),
        ["pgkeep.conf"]
    );
    let position = ["restore", SERVER, "newest", "time", "=", "2026,action=pau"];
    assert_eq!(in_bash(&pgkeep, &position), ["2026,action=pause"]);
    let position = ["restore", SERVER, "newest", "inclusive", "="];
    assert_eq!(
        in_bash(&pgkeep, &position),
        [
            "on   (with the target itself)",
            "off  (up to just before the target)"
        ]
    );
}

#[test]
fn bash_completes_folders_where_a_folder_is_asked_for() {
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let folder = ["restore", SERVER, "newest", "current", "k"];
    assert_eq!(in_bash(&pgkeep, &folder), ["keep"]);
    let folder = ["restore", SERVER, "newest", "current", "pgkeep.c"];
    assert_eq!(in_bash(&pgkeep, &folder), [""]);
}

#[test]
fn zsh_completes_servers_and_backups() {
    if !is_installed("zsh") {
        return;
    }
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let backup = pgkeep.backup().identifier;
    let copy = readable_copy(&pgkeep, "_pgkeep");
    let ask = |words: &[&str]| {
        let mut command = account::command("zsh");
        command
            .args(["-f", "-c", ZSH, "zsh", &copy])
            .arg(binary())
            .args(words);
        lines(&pgkeep, &mut command)
    };
    assert_eq!(ask(&["info", ""]), [format!("{SERVER}:server")]);
    let backups = ask(&["info", SERVER, &backup[..4]]);
    assert!(backups[0].starts_with(&format!("{backup}:")), "{backups:?}");
    assert_eq!(
        ask(&["restore", SERVER, "newest", "current", ""]),
        ["files -/"]
    );
    assert_eq!(ask(&["-c", ""]), ["files "]);
}

#[test]
fn fish_completes_servers_and_backups() {
    if !is_installed("fish") {
        return;
    }
    let cluster = Cluster::new(17);
    let pgkeep = Pgkeep::of(&cluster);
    let backup = pgkeep.backup().identifier;
    let copy = readable_copy(&pgkeep, "pgkeep.fish");
    let ask = |line: &str| {
        let mut command = account::command("fish");
        let binary = binary().to_str().unwrap();
        command.env("HOME", pgkeep.ground().path());
        command.args(["--no-config", "-c", FISH, &copy, binary, line]);
        lines(&pgkeep, &mut command)
    };
    assert_eq!(ask("info "), [format!("{SERVER}\tserver")]);
    let backups = ask(&format!("info {SERVER} {}", &backup[..4]));
    assert!(
        backups[0].starts_with(&format!("{backup}\t")),
        "{backups:?}"
    );
    assert_eq!(ask("--config=pgkeep.c"), ["--config=pgkeep.conf"]);
    assert_eq!(
        ask(&format!("restore {SERVER} newest current k")),
        ["keep/"]
    );
}

#[test]
fn the_binary_prints_the_scripts_that_packages_install() {
    for (shell, file) in [
        ("bash", "pgkeep.bash"),
        ("zsh", "_pgkeep"),
        ("fish", "pgkeep.fish"),
    ] {
        // Whatever is wrong with the configuration.
        let mut command = account::command(binary());
        command.args(["-c", "/nonexistent", "completions", shell]);
        let printed = account::run(&mut command);
        let file = std::fs::read_to_string(Path::new(&script(file))).unwrap();
        assert_eq!(printed, file);
    }
}
