//! One command for many servers, each in a process of its own.
//!
//! What becomes of one server, a crash included, is nothing to the others. Such a process gets the same command line as this
//! one, learns from its environment for which server it is, and hands over what came of it instead of a report. What it
//! has to say on stderr comes with the server's name in front. It has a process group of its own, so that Ctrl-C comes from
//! here alone, once; and it is asked to end when this process dies, however that does.

use std::io::{BufRead, BufReader, Read};
use std::num::NonZero;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use crate::cli::app::App;
use crate::cli::logging;
use crate::cli::report::{Answer, Fields, Value, field};
use crate::error::{Error, Kind, Result};
use crate::interrupt::Interrupt;

/// The variable that tells a process for which server it is: its parent's process, a colon, the name.
const MEMBER: &str = "PGKEEP_MEMBER";

/// How often it is looked whether a process has ended.
const PACE: Duration = Duration::from_millis(20);

/// Which servers are meant, where it may be several.
#[derive(Debug, Args)]
pub(super) struct Servers {
    /// The server's name, or a pattern such as 'prod-*'
    #[arg(required_unless_present = "all")]
    server: Option<String>,
    /// All servers of the configuration
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    jobs: Jobs,
}

/// How many servers have their turn at the same time.
#[derive(Debug, Args)]
pub(super) struct Jobs {
    /// Of several servers, how many at the same time
    #[arg(long, value_name = "N", default_value = "2")]
    jobs: NonZero<usize>,
}

/// What that comes to.
pub(super) enum Chosen {
    /// This one, in this process.
    One(String),
    /// Each of these.
    Several(Vec<String>),
}

impl Servers {
    /// For the report.
    pub(super) fn request(&self) -> Fields {
        let mut request = Vec::new();
        if self.all {
            request.push(field("All", true));
        }
        let server = self.server.iter();
        request.extend(server.map(|server| field("Server", server.as_str())));
        request
    }

    /// Whether all are meant; the first word is none of a server then.
    pub(super) fn all(&self) -> bool {
        self.all
    }

    /// The first word.
    pub(super) fn word(&self) -> Option<&str> {
        self.server.as_deref()
    }

    /// The servers that are meant.
    pub(super) fn chosen(&self, app: &App) -> Result<Chosen> {
        if self.all && self.server.is_some() {
            return Err(Error::usage("say --all, or name a server"));
        }
        chosen(app, self.server.as_deref())
    }

    /// Has each of them done in a process of its own.
    pub(super) fn run(&self, app: &App, names: &[String]) -> Result<Answer> {
        self.jobs.run(app, names)
    }
}

/// The servers that a word means, or all; in a process that is for one of them, that one.
pub(super) fn chosen(app: &App, word: Option<&str>) -> Result<Chosen> {
    if let Some(member) = &app.member {
        return Ok(Chosen::One(member.clone()));
    }
    let names = app.configuration.chosen(word)?;
    Ok(match (word, names.as_slice()) {
        (Some(word), [name]) if name == word => Chosen::One(name.clone()),
        _ => Chosen::Several(names),
    })
}

/// Whether this process is for one of many servers.
pub(super) fn is_member() -> bool {
    member().is_some()
}

/// The server that this process is for, as one of many. It ends when its parent does.
pub(super) fn member() -> Option<String> {
    let variable = std::env::var(MEMBER).ok()?;
    let (parent, server) = variable.split_once(':')?;
    let is_parents = || {
        let parent: Option<i32> = parent.parse().ok();
        parent == getppid().map(|parent| parent.as_raw_nonzero().get())
    };
    // Whoever inherits the variable from such a process is none.
    if !is_parents() || set_parent_process_death_signal(Some(Signal::TERM)).is_err() {
        return None;
    }
    if !is_parents() {
        std::process::exit(1);
    }
    Some(server.to_owned())
}

/// What such a process hands over.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    response: Fields,
    error: Option<String>,
    hint: Option<String>,
}

/// What such a process prints.
pub(super) fn told(answer: &Answer) -> String {
    let told = Told {
        response: answer.response.clone(),
        error: answer
            .error
            .as_ref()
            .map(|error| error.message().to_owned()),
        hint: answer
            .error
            .as_ref()
            .and_then(Error::advice)
            .map(str::to_owned),
    };
    // Made of strings, numbers and maps alone, it can always be written.
    serde_json::to_string(&told).unwrap_or_default()
}

/// What became of one server.
struct Outcome {
    server: String,
    status: u8,
    took: Duration,
    told: Told,
}

impl Jobs {
    /// Has this command line done for each of these servers.
    pub(super) fn run(&self, app: &App, names: &[String]) -> Result<Answer> {
        let next = AtomicUsize::new(0);
        let outcomes: Mutex<Vec<Outcome>> = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.get().min(names.len()) {
                // A process is asked to end with the thread that began it, which waits for it here.
                scope.spawn(|| {
                    while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed))
                        && !app.interrupt.is_raised()
                    {
                        let outcome = run_one(name, &app.interrupt);
                        let mut all = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                        all.push(outcome);
                    }
                });
            }
        });
        let mut outcomes = outcomes
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let place = |outcome: &Outcome| names.iter().position(|name| *name == outcome.server);
        outcomes.sort_by_key(place);
        let error = app.interrupt.check().err().or_else(|| worst(&outcomes));
        let failed = outcomes.iter().filter(|outcome| outcome.status != 0);
        Ok(Answer {
            response: vec![
                field("NumberOfServers", names.len() as u64),
                field("NumberOfFailed", failed.count() as u64),
                field(
                    "Servers",
                    outcomes.into_iter().map(describe).collect::<Vec<Value>>(),
                ),
            ],
            error,
            plain: None,
        })
    }
}

fn run_one(server: &str, interrupt: &Interrupt) -> Outcome {
    let began = Instant::now();
    let ended = begin(server).and_then(|child| attend(server, child, interrupt));
    let (status, told) = match ended {
        Ok((status, output)) => match (status.code(), serde_json::from_slice(&output)) {
            (Some(code), Ok(told)) => (u8::try_from(code).unwrap_or(1), told),
            (code, _) => {
                let how = match (code, status.signal()) {
                    (Some(code), _) => format!("ended with status {code}, and told nothing"),
                    (None, signal) => format!("was killed by signal {}", signal.unwrap_or(0)),
                };
                (1, failed(format!("the process for server {server} {how}")))
            }
        },
        Err(error) => (1, failed(error.message().to_owned())),
    };
    Outcome {
        server: server.to_owned(),
        status,
        took: began.elapsed(),
        told,
    }
}

fn failed(error: String) -> Told {
    Told {
        response: Vec::new(),
        error: Some(error),
        hint: None,
    }
}

fn begin(server: &str) -> Result<Child> {
    // Whatever has become of the file meanwhile, it is the same program.
    Command::new("/proc/self/exe")
        .arg0("pgkeep")
        .args(std::env::args_os().skip(1))
        .env(MEMBER, format!("{}:{server}", std::process::id()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| {
            Error::failed(format!(
                "cannot start a process for server {server}: {error}"
            ))
        })
}

/// A process as long as it runs.
struct Running {
    child: Mutex<Option<(Child, bool)>>,
}

impl Running {
    /// Whether it has ended.
    fn ended(&self) -> std::io::Result<Option<ExitStatus>> {
        let mut running = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((child, _)) = running.as_mut() else {
            return Ok(None);
        };
        let ended = child.try_wait()?;
        if ended.is_some() {
            // Its number may be another process's from now on.
            *running = None;
        }
        Ok(ended)
    }

    /// Asks it to end, once: it takes a second time for impatience.
    fn ask_to_end(&self, signal: Signal) {
        let mut running = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((child, is_asked)) = running.as_mut()
            && !std::mem::replace(is_asked, true)
            && let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
        {
            // It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
    }
}

/// Waits for a process, hands on what it says, and asks it to end when it is time to.
fn attend(server: &str, mut child: Child, interrupt: &Interrupt) -> Result<(ExitStatus, Vec<u8>)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let running = Arc::new(Running {
        child: Mutex::new(Some((child, false))),
    });
    let end = |running: &Running| {
        running.ask_to_end(match interrupt.leaves() {
            true => Signal::TERM,
            false => Signal::INT,
        });
    };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for line in stderr
                .into_iter()
                .flat_map(|stderr| BufReader::new(stderr).split(b'\n'))
            {
                let Ok(line) = line else { return };
                logging::tell(&format!("{server}: {}\n", String::from_utf8_lossy(&line)));
            }
        });
        let output = scope.spawn(move || {
            let mut output = Vec::new();
            // What is cut off is no answer.
            let _ = stdout.map(|mut stdout| stdout.read_to_end(&mut output));
            output
        });
        loop {
            if interrupt.is_raised() {
                end(&running);
            }
            let ended = running.ended().map_err(|error| {
                Error::failed(format!(
                    "cannot wait for the process of server {server}: {error}"
                ))
            })?;
            if let Some(status) = ended {
                return Ok((status, output.join().unwrap_or_default()));
            }
            std::thread::sleep(PACE);
        }
    })
}

fn describe(outcome: Outcome) -> Value {
    let mut fields = vec![
        field("Server", outcome.server),
        field("Status", outcome.status == 0),
        field("ExitStatus", u32::from(outcome.status)),
        field("Elapsed", Value::Seconds(outcome.took.as_secs())),
    ];
    fields.extend(outcome.told.error.map(|error| field("Error", error)));
    fields.extend(outcome.told.hint.map(|hint| field("Hint", hint)));
    let response = outcome.told.response.into_iter();
    fields.extend(response.filter(|(key, _)| key != "Server"));
    Value::Map(fields)
}

/// Exit statuses, the worst first: damage, what failed, a server that refuses, wrong usage, a lock that somebody holds.
const WORST_FIRST: [Kind; 5] = [
    Kind::Damage,
    Kind::Failed,
    Kind::Server,
    Kind::Usage,
    Kind::Locked,
];

/// The worst of what became of all.
fn worst(outcomes: &[Outcome]) -> Option<Error> {
    let failed = outcomes.iter().filter(|outcome| outcome.status != 0);
    let count = failed.clone().count();
    let rank = |outcome: &&Outcome| {
        let is_it = |kind: &Kind| kind.exit_status() == outcome.status;
        let found = WORST_FIRST.iter().position(is_it);
        // What is none of ours has failed.
        found.unwrap_or(1)
    };
    let worst = failed.min_by_key(rank)?;
    let why = worst.told.error.as_deref().unwrap_or("it failed");
    let message = format!(
        "{count} of {} servers failed, one of them {}: {why}",
        outcomes.len(),
        worst.server
    );
    Some(match WORST_FIRST[rank(&worst)] {
        Kind::Damage => Error::damage(message),
        Kind::Server => Error::server(message),
        Kind::Usage => Error::usage(message),
        Kind::Locked => Error::locked(message),
        Kind::Failed | Kind::Absent => Error::failed(message),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn outcome(server: &str, status: u8) -> Outcome {
        Outcome {
            server: server.to_owned(),
            status,
            took: Duration::ZERO,
            told: failed(format!("why {server} did not")),
        }
    }

    #[test]
    fn the_worst_decides() {
        let worst = |statuses: &[u8]| {
            let names = ["a", "b", "c"];
            let each = names.iter().zip(statuses);
            let outcomes: Vec<Outcome> =
                each.map(|(name, status)| outcome(name, *status)).collect();
            worst(&outcomes).map(|error| (error.kind(), error.message().to_owned()))
        };
        assert_eq!(worst(&[0, 0]), None);
        let (kind, message) = worst(&[4, 5, 0]).unwrap();
        assert_eq!(kind, Kind::Server);
        assert_eq!(
            message,
            "2 of 3 servers failed, one of them b: why b did not"
        );
        assert_eq!(worst(&[1, 3, 5]).unwrap().0, Kind::Damage);
        assert_eq!(worst(&[4, 2]).unwrap().0, Kind::Usage);
        assert_eq!(worst(&[101, 2]).unwrap().0, Kind::Failed);
    }

    #[test]
    fn what_a_process_hands_over_comes_as_it_was() {
        let answer = Answer {
            response: vec![
                field("Size", Value::Size(7)),
                field("Lists", vec![Value::Flag(true), Value::Digits(8)]),
            ],
            error: Some(Error::server("no").hint("do")),
            plain: None,
        };
        let back: Told = serde_json::from_str(&told(&answer)).unwrap();
        assert_eq!(back.response, answer.response);
        assert_eq!(
            (back.error.as_deref(), back.hint.as_deref()),
            (Some("no"), Some("do"))
        );
    }
}
