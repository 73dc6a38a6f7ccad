//! The manual pages in `man/`: made of the command line as it is, and of what only a
//! person can write, which lies in `manual/`, one file of roff a page.
//!
//! `PGKEEP_UPDATE=1 cargo test --lib manual` writes them; without the variable the same
//! test fails where a page is not what it should be.
//!
//! A page of a command has the sections NAME, SYNOPSIS, DESCRIPTION, ARGUMENTS, OPTIONS,
//! EXAMPLES, EXIT STATUS and SEE ALSO from here. Its file may add to DESCRIPTION and SEE ALSO, replace the
//! others, and have any more, which stand before the examples.

#![allow(clippy::unwrap_used)]

mod roff;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{self, Stdio};

use clap::{Arg, Command};

use super::help::{self, EXIT_STATUS, GROUPS};
use roff::{escape, literal, prose, tagged};

/// Sections in the order of a page; those of no place here come before EXAMPLES.
const ORDER: [&str; 6] = [
    "NAME",
    "SYNOPSIS",
    "DESCRIPTION",
    "COMMANDS",
    "ARGUMENTS",
    "OPTIONS",
];
const LAST: [&str; 5] = [
    "ENVIRONMENT",
    "FILES",
    "EXAMPLES",
    "EXIT STATUS",
    "SEE ALSO",
];

/// A page of the manual.
struct Page {
    /// Its name and section, such as `pgkeep-backup.1`.
    file: String,
    /// What it says after its head.
    sections: Vec<Section>,
}

/// One `.SH` of a page.
#[derive(Clone)]
struct Section {
    title: String,
    text: String,
}

impl Section {
    fn new(title: &str, text: impl Into<String>) -> Section {
        Section {
            title: title.to_owned(),
            text: text.into(),
        }
    }
}

impl Page {
    fn text(&self) -> String {
        let (name, section) = self.file.rsplit_once('.').unwrap();
        let mut text = format!(
            ".\\\" Made by: PGKEEP_UPDATE=1 cargo test --lib manual\n.TH {} {section} \"\" \"pgkeep {}\" \"Manual of pgkeep\"\n.nr HY 0\n.hy 0\n.ad l\n",
            escape(&name.to_uppercase()),
            env!("CARGO_PKG_VERSION")
        );
        for Section { title, text: body } in &self.sections {
            let body = body.trim().trim_start_matches(".PP\n");
            text.push_str(&format!(".SH {title}\n{body}\n"));
        }
        text
    }
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// What is written by hand for a page.
fn written(page: &str) -> Vec<Section> {
    let text = fs::read_to_string(folder("src/cli/manual").join(format!("{page}.roff")));
    let text = text.unwrap_or_default();
    let sections = text.split_once(".SH ").map_or("", |(_, sections)| sections);
    let sections = sections
        .split("\n.SH ")
        .filter(|section| !section.is_empty());
    sections
        .map(|section| {
            let (title, text) = section.split_once('\n').unwrap();
            Section::new(title.trim_matches('"'), text)
        })
        .collect()
}

/// Puts what was made and what was written together.
fn page(name: &str, made: Vec<Section>) -> Page {
    let mut sections = made;
    sections.retain(|section| !section.text.is_empty());
    for section in written(name) {
        match sections.iter_mut().find(|made| made.title == section.title) {
            Some(made) if section.title == "DESCRIPTION" => {
                made.text = format!("{}\n{}", made.text.trim(), section.text);
            }
            Some(made) if section.title == "SEE ALSO" => {
                made.text = format!("{},\n{}", made.text.trim(), section.text);
            }
            Some(made) => *made = section,
            None => sections.push(section),
        }
    }
    let place = |section: &Section| {
        let title = section.title.as_str();
        let first = ORDER.iter().position(|known| *known == title);
        let last = LAST.iter().position(|known| *known == title);
        first
            .or(last.map(|place| ORDER.len() + 1 + place))
            .unwrap_or(ORDER.len())
    };
    sections.sort_by_key(place);
    Page {
        file: format!("{name}.1"),
        sections,
    }
}

/// Every page there is.
fn pages() -> Vec<Page> {
    let mut root = help::command();
    root.build();
    let mut pages = vec![overview(&root)];
    let named = |command: &&Command| command.get_name() != "help";
    pages.extend(root.get_subcommands().filter(named).map(of_command));
    for (file, title) in [("pgkeep.conf", "5"), ("pgkeep-repository", "7")] {
        pages.push(Page {
            file: format!("{file}.{title}"),
            sections: written(file),
        });
    }
    pages
}

/// pgkeep(1).
fn overview(root: &Command) -> Page {
    let mut commands = String::new();
    for (title, names) in GROUPS {
        let known: Vec<&Command> = names
            .iter()
            .filter_map(|name| root.find_subcommand(name))
            .collect();
        if !known.is_empty() {
            commands.push_str(&format!(".SS {title}\n"));
        }
        for command in known {
            let page = format!("\\fBpgkeep\\-{}\\fR(1)", escape(command.get_name()));
            commands.push_str(&tagged(&page, &prose(&about(command))));
        }
    }
    let options: String = root.get_arguments().map(argument).collect();
    page(
        "pgkeep",
        vec![
            Section::new("NAME", "pgkeep \\- physical backups of PostgreSQL"),
            Section::new(
                "SYNOPSIS",
                "\\fBpgkeep\\fR [\\fIoptions\\fR] \\fIcommand\\fR [\\fIarguments\\fR]",
            ),
            Section::new("COMMANDS", commands),
            Section::new("OPTIONS", options),
            examples(&[String::new()]),
            exit_status(),
            Section::new(
                "SEE ALSO",
                see_also(&["pgkeep.conf(5)", "pgkeep-repository(7)"]),
            ),
        ],
    )
}

/// The page of one command; that of a group is about all in it.
fn of_command(command: &Command) -> Page {
    let name = format!("pgkeep-{}", command.get_name());
    let below: Vec<&Command> = command
        .get_subcommands()
        .filter(|below| below.get_name() != "help")
        .collect();
    let mut made = vec![
        Section::new(
            "NAME",
            format!("{} \\- {}", escape(&name), uncapitalised(&about(command))),
        ),
        Section::new("DESCRIPTION", description(command)),
        exit_status(),
        Section::new("SEE ALSO", see_also(&["pgkeep(1)", "pgkeep.conf(5)"])),
    ];
    if below.is_empty() {
        made.push(Section::new("SYNOPSIS", synopsis(command)));
        made.extend(arguments(command));
        made.push(examples(&[command.get_name().to_owned()]));
    } else {
        let usages: Vec<String> = below.iter().map(|below| synopsis(below)).collect();
        made.push(Section::new("SYNOPSIS", usages.join("\n.br\n")));
        let parts = below.iter().map(|below| {
            let title = format!(".SS {}\n", escape(below.get_name()));
            let details: String = arguments(below).into_iter().map(|part| part.text).collect();
            let description = format!("{}.\n{}", prose(&about(below)), description(below));
            format!("{title}{description}{details}")
        });
        made.push(Section::new("COMMANDS", parts.collect::<String>()));
        let paths = below
            .iter()
            .map(|below| format!("{} {}", command.get_name(), below.get_name()));
        made.push(examples(&paths.collect::<Vec<_>>()));
    }
    page(&name, made)
}

fn about(command: &Command) -> String {
    command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default()
}

fn uncapitalised(sentence: &str) -> String {
    let mut letters = sentence.chars();
    let first = letters.next().map(|first| first.to_lowercase().to_string());
    prose(&format!(
        "{}{}",
        first.unwrap_or_default(),
        letters.as_str()
    ))
}

/// What the long help says beyond the one sentence.
fn description(command: &Command) -> String {
    let long = command.get_long_about().map(ToString::to_string);
    let long = long.unwrap_or_default();
    let paragraphs = long.split("\n\n").skip(1);
    paragraphs
        .map(|paragraph| format!(".PP\n{}\n", prose(paragraph)))
        .collect()
}

/// How a command is typed.
fn synopsis(command: &Command) -> String {
    let path = command.get_bin_name().unwrap();
    if let Some(usage) = command.get_overridden_usage() {
        let usage = usage.to_string();
        let forms = usage.lines().map(|form| {
            let rest = form.trim().trim_start_matches(path);
            let rest = escape(rest).replace("[OPTIONS]", "[\\fIoptions\\fR]");
            let rest = rest.replace('<', "\\fI").replace('>', "\\fR");
            format!("\\fB{}\\fR{rest}", escape(path))
        });
        return forms.collect::<Vec<_>>().join("\n.br\n");
    }
    let mut words = vec![format!("\\fB{}\\fR", escape(path))];
    for option in own_options(command) {
        let (open, close) = if option.is_required_set() {
            ("", "")
        } else {
            ("[", "]")
        };
        words.push(format!("{open}{}{close}", tag(option)));
    }
    words.extend(command.get_positionals().map(tag));
    words.join(" ")
}

/// Options that are not those of every command.
fn own_options(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|option| {
        !option.is_positional() && !option.is_global_set() && option.get_id() != "help"
    })
}

fn arguments(command: &Command) -> Vec<Section> {
    let positional: String = command.get_positionals().map(argument).collect();
    let options: String = own_options(command).map(argument).collect();
    let sections = [
        Section::new("ARGUMENTS", positional),
        Section::new("OPTIONS", options),
    ];
    sections
        .into_iter()
        .filter(|section| !section.text.is_empty())
        .collect()
}

/// What an option or argument takes, as the usage shows it: a name, or the words themselves.
fn value(argument: &Arg) -> String {
    let words = argument.get_possible_values();
    if !words.is_empty() {
        let words = words
            .iter()
            .map(|word| format!("\\fB{}\\fR", escape(word.get_name())));
        return words.collect::<Vec<_>>().join("|");
    }
    let names = argument.get_value_names().unwrap_or_default();
    let names: Vec<String> = names
        .iter()
        .map(|name| {
            // A name that is a form of several words says itself what may be left out.
            if name.contains([' ', '|', '[']) {
                escape(name)
            } else {
                format!("\\fI{}\\fR", escape(name))
            }
        })
        .collect();
    names.join(" ")
}

/// An option or argument as the usage shows it.
fn tag(argument: &Arg) -> String {
    let value = value(argument);
    let takes_value = argument.get_action().takes_values();
    let long = argument
        .get_long()
        .map(|long| format!("\\fB{}\\fR", escape(&format!("--{long}"))));
    let short = argument
        .get_short()
        .map(|short| format!("\\fB\\-{short}\\fR"));
    let names: Vec<String> = short.into_iter().chain(long).collect();
    match (names.is_empty(), takes_value) {
        (true, _) if argument.is_required_set() || value.starts_with('[') => value,
        (true, _) => format!("[{value}]"),
        (false, true) => format!("{} {value}", names.join(", ")),
        (false, false) => names.join(", "),
    }
}

/// An option or argument with all there is to say about it.
fn argument(argument: &Arg) -> String {
    let help = argument.get_long_help().or(argument.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    let paragraphs = help
        .split("\n\n")
        .map(|paragraph| sentence(&prose(paragraph)));
    let mut text = paragraphs.collect::<Vec<_>>().join("\n.IP\n");
    let default = argument.get_default_values().first();
    if let Some(default) = default.filter(|_| argument.get_action().takes_values()) {
        text.push_str(&format!(
            "\nDefault: \\fB{}\\fR.",
            escape(&default.to_string_lossy())
        ));
    }
    let possible = argument.get_possible_values();
    let possible: String = possible
        .iter()
        .filter(|_| argument.get_action().takes_values())
        .map(|value| {
            let help = value.get_help().map(|help| prose(&help.to_string()));
            let name = format!("\\fB{}\\fR", escape(value.get_name()));
            tagged(&name, &sentence(&help.unwrap_or_default()))
        })
        .collect();
    if !possible.is_empty() {
        text.push_str(&format!("\n.RS\n{possible}.RE"));
    }
    tagged(&tag(argument), &text)
}

/// Help texts end without a period; paragraphs do not.
fn sentence(text: &str) -> String {
    if text.is_empty() || text.ends_with(['.', ':']) {
        text.to_owned()
    } else {
        format!("{text}.")
    }
}

/// The examples of commands, given as they are typed.
fn examples(paths: &[String]) -> Section {
    let shown = paths.iter().flat_map(|path| help::examples_of(path));
    let shown =
        shown.map(|example| format!(".PP\n{}:\n{}", prose(example.does), literal(example.line)));
    Section::new("EXAMPLES", shown.collect::<String>())
}

fn exit_status() -> Section {
    let lines = EXIT_STATUS.map(|(status, meaning)| tagged(&format!("\\fB{status}\\fR"), meaning));
    Section::new("EXIT STATUS", format!(".PD 0\n{}.PD", lines.concat()))
}

fn see_also(pages: &[&str]) -> String {
    let pages = pages.iter().map(|page| {
        let (name, section) = page.split_once('(').unwrap();
        format!("\\fB{}\\fR({section}", escape(name))
    });
    pages.collect::<Vec<_>>().join(",\n")
}

#[test]
fn the_manual_is_up_to_date() {
    let folder = folder("man");
    let pages = pages();
    if std::env::var_os("PGKEEP_UPDATE").is_some() {
        fs::create_dir_all(&folder).unwrap();
        for old in fs::read_dir(&folder).unwrap() {
            fs::remove_file(old.unwrap().path()).unwrap();
        }
        for page in &pages {
            fs::write(folder.join(&page.file), page.text()).unwrap();
        }
    }
    let mut there: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut made: Vec<String> = pages.iter().map(|page| page.file.clone()).collect();
    there.sort();
    made.sort();
    assert_eq!(there, made, "run PGKEEP_UPDATE=1 cargo test --lib manual");
    for page in pages {
        let text = fs::read_to_string(folder.join(&page.file)).unwrap();
        assert!(
            text == page.text(),
            "man/{} is not up to date: run PGKEEP_UPDATE=1 cargo test --lib manual",
            page.file
        );
    }
}

/// What was written for a command that is not there any more would be forgotten.
#[test]
fn nothing_is_written_for_a_page_that_is_not_there() {
    let named = GROUPS.iter().flat_map(|(_, names)| *names);
    let mut pages: Vec<String> = named.map(|name| format!("pgkeep-{name}.roff")).collect();
    pages.extend(["pgkeep", "pgkeep.conf", "pgkeep-repository"].map(|name| format!("{name}.roff")));
    for file in fs::read_dir(folder("src/cli/manual")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(name == "roff.rs" || pages.contains(&name), "{name}");
    }
}

/// Whoever renders the pages would stumble over what mandoc takes for an error.
#[test]
fn mandoc_finds_nothing_wrong() {
    for page in pages() {
        let lint = process::Command::new("mandoc")
            .args(["-T", "lint", "-W", "warning"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut lint) = lint else {
            eprintln!("SKIPPED: mandoc is not installed here");
            return;
        };
        let mut input = lint.stdin.take().unwrap();
        input.write_all(page.text().as_bytes()).unwrap();
        drop(input);
        let output = lint.wait_with_output().unwrap();
        let complaints = String::from_utf8(output.stdout).unwrap();
        // The pages have no date, as nobody would keep it true.
        let complaints = complaints
            .lines()
            .filter(|line| !line.contains("missing date"));
        assert_eq!(complaints.collect::<Vec<_>>(), [""; 0], "{}", page.file);
    }
}
