//! The report: YAML for people, or the same keys as one JSON object.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cli::arguments::Format;
use crate::error::{Error, Kind};
use crate::pg::lsn::Lsn;
use crate::repository::identifier::Identifier;
use crate::size::readable;

/// A value of the report, which knows how it reads in either format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Value {
    /// Any text.
    Text(String),
    /// A number.
    Number(u64),
    /// Bytes: `6.54MB` for people, the number for programs.
    Size(u64),
    /// Half of an LSN: hexadecimal for people, the number for programs.
    LsnHalf(u32),
    /// A span of time: `2 days 03:12:05` for people, seconds for programs.
    Seconds(u64),
    /// A moment or a backup's identifier: fourteen digits.
    Digits(u64),
    /// true or false.
    Flag(bool),
    /// Several values.
    List(Vec<Value>),
    /// Values by their keys.
    Map(Fields),
}

/// Keys and values in the order they are printed.
pub(super) type Fields = Vec<(String, Value)>;

/// One key with its value.
pub(super) fn field(key: &str, value: impl Into<Value>) -> (String, Value) {
    (key.to_owned(), value.into())
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Value {
        Value::Number(number.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Value {
        Value::Number(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Value {
        Value::Flag(flag)
    }
}

impl From<Lsn> for Value {
    fn from(lsn: Lsn) -> Value {
        Value::Text(lsn.to_string())
    }
}

impl From<Identifier> for Value {
    fn from(identifier: Identifier) -> Value {
        Value::Digits(identifier.number())
    }
}

impl From<Fields> for Value {
    fn from(fields: Fields) -> Value {
        Value::Map(fields)
    }
}

impl From<Vec<Value>> for Value {
    fn from(values: Vec<Value>) -> Value {
        Value::List(values)
    }
}

impl Value {
    fn to_json(&self) -> serde_json::Value {
        match self {
            Value::Text(text) => text.as_str().into(),
            Value::Number(number) | Value::Size(number) | Value::Seconds(number) => {
                (*number).into()
            }
            Value::LsnHalf(half) => (*half).into(),
            Value::Digits(digits) => digits.to_string().into(),
            Value::Flag(flag) => (*flag).into(),
            Value::List(values) => values.iter().map(Value::to_json).collect(),
            Value::Map(fields) => fields
                .iter()
                .map(|(key, value)| (key.clone(), value.to_json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }

    fn to_yaml(&self) -> serde_yaml::Value {
        match self {
            Value::Text(text) => text.as_str().into(),
            Value::Number(number) | Value::Digits(number) => (*number).into(),
            Value::Size(bytes) => readable(*bytes).into(),
            Value::Seconds(seconds) => readable_span(*seconds).into(),
            Value::LsnHalf(half) => format!("{half:X}").into(),
            Value::Flag(flag) => (*flag).into(),
            Value::List(values) => values.iter().map(Value::to_yaml).collect(),
            Value::Map(fields) => fields
                .iter()
                .map(|(key, value)| (key.as_str().into(), value.to_yaml()))
                .collect::<serde_yaml::Mapping>()
                .into(),
        }
    }
}

/// What came of a command.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The report's `Response`.
    pub response: Fields,
    /// What to print in place of a report, where the format is text; or the metrics.
    pub plain: Option<String>,
    /// What went wrong, which decides the exit status.
    pub error: Option<Error>,
}

impl Answer {
    /// All went well.
    pub(super) fn success(response: Fields) -> Answer {
        Answer {
            response,
            ..Answer::default()
        }
    }

    /// Nothing came of it.
    pub(super) fn failure(error: Error) -> Answer {
        Answer {
            error: Some(error),
            ..Answer::default()
        }
    }

    /// What went wrong, if that is more than that something is not there.
    pub(super) fn what_failed(&self) -> Option<&Error> {
        self.error
            .as_ref()
            .filter(|error| error.kind() != Kind::Absent)
    }

    /// What to print in place of a report.
    pub(super) fn plain_text(&self, format: Format) -> Option<&str> {
        self.plain.as_deref().filter(|_| match format {
            Format::Text => self.what_failed().is_none(),
            Format::Json => false,
            // What is wrong is among the lines, or among the metrics.
            Format::Table | Format::Tree | Format::Prometheus => true,
        })
    }
}

/// The one thing that goes to stdout.
pub(super) struct Report {
    format: Format,
    fields: Fields,
}

impl Report {
    /// Puts it together.
    pub(super) fn new(
        command: &str,
        format: Format,
        elapsed: Duration,
        request: Fields,
        answer: Answer,
    ) -> Report {
        let now = Identifier::at(Timestamp::now());
        let mut outcome = vec![
            field("Status", answer.error.is_none()),
            field("Time", readable_time(elapsed)),
        ];
        if let Some(error) = &answer.error {
            outcome.push(field("Error", error.message()));
            outcome.extend(error.advice().map(|advice| field("Hint", advice)));
        }
        let header = vec![
            field("ClientVersion", env!("CARGO_PKG_VERSION")),
            field("Command", command),
            field("Output", format.name()),
            field("Timestamp", Value::Digits(now.number())),
        ];
        let mut fields = vec![
            field("Header", header),
            field("Outcome", outcome),
            field("Request", request),
        ];
        if !answer.response.is_empty() {
            fields.push(field("Response", answer.response));
        }
        Report { format, fields }
    }

    /// The text to print.
    pub(super) fn render(self) -> String {
        let fields = Value::Map(self.fields);
        // Made of strings, numbers and maps alone, it can always be written.
        let text = || serde_yaml::to_string(&fields.to_yaml()).unwrap_or_default();
        match self.format {
            Format::Json => format!("{:#}\n", fields.to_json()),
            // Where there is nothing for a table, there is a report.
            Format::Text | Format::Table | Format::Tree => text(),
            // Where there are no metrics, a collector takes it for comments.
            Format::Prometheus => text().lines().map(|line| format!("# {line}\n")).collect(),
        }
    }
}

/// `HH:MM:SS`, with days before it.
fn readable_span(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    match days {
        0 => clock,
        1 => format!("1 day {clock}"),
        days => format!("{days} days {clock}"),
    }
}

/// `HH:MM:SS.mmm`.
fn readable_time(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    format!(
        "{:02}:{:02}:{:02}.{:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        elapsed.subsec_millis()
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::status::StatusReader;

    fn answer() -> Answer {
        Answer::success(vec![
            field("Backup", "20240928065644".parse::<Identifier>().unwrap()),
            field("BackupSize", Value::Size(6_857_687)),
            field("CheckpointLoLSN", Value::LsnHalf(0x4F00_00B8)),
            field("Comments", ""),
            field("Valid", "yes"),
        ])
    }

    #[test]
    fn text_is_for_people() {
        let elapsed = Duration::from_millis(3_723_004);
        let text = Report::new(
            "info",
            Format::Text,
            elapsed,
            vec![field("Server", "primary")],
            answer(),
        )
        .render();
        assert!(text.contains("  Time: 01:02:03.004\n"), "{text}");
        assert!(text.contains("  Backup: 20240928065644\n"), "{text}");
        assert!(text.contains("  BackupSize: 6.54MB\n"), "{text}");
        assert!(text.contains("  CheckpointLoLSN: 4F0000B8\n"), "{text}");
        assert!(text.contains("  Comments: ''\n"), "{text}");
        let parsed: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(parsed["Outcome"]["Status"], serde_yaml::Value::Bool(true));
    }

    #[test]
    fn json_has_raw_numbers() {
        let text = Report::new("info", Format::Json, Duration::ZERO, Vec::new(), answer()).render();
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed["Response"]["BackupSize"], 6_857_687);
        assert_eq!(parsed["Response"]["Backup"], "20240928065644");
        assert_eq!(parsed["Response"]["CheckpointLoLSN"], 0x4F00_00B8);
    }

    #[test]
    fn spans_of_time_read_as_people_say_them() {
        for (seconds, expected) in [
            (0, "00:00:00"),
            (86_399, "23:59:59"),
            (86_400, "1 day 00:00:00"),
            (183_845, "2 days 03:04:05"),
        ] {
            assert_eq!(readable_span(seconds), expected);
        }
    }

    #[test]
    fn a_collector_takes_a_report_for_comments() {
        let answer = Answer::failure(Error::failed("no"));
        let elapsed = Duration::ZERO;
        let text = Report::new("status", Format::Prometheus, elapsed, Vec::new(), answer).render();
        assert!(text.lines().all(|line| line.starts_with("# ")), "{text}");
    }

    #[test]
    fn a_failure_is_reported_too() {
        let answer = Answer::failure(Error::locked("process 7 is working").hint("wait"));
        assert_eq!(StatusReader::Anybody.status_of(&answer), 4);
        let text = Report::new("backup", Format::Text, Duration::ZERO, Vec::new(), answer).render();
        assert!(
            text.contains("  Status: false\n") && text.contains("  Error: process 7 is working\n"),
            "{text}"
        );
    }
}
