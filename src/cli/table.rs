//! Tables for eyes: one line for each thing, as wide as the terminal, in its colours.

use std::io::IsTerminal;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Row as Cells};

use crate::error::{Error, Result};
use crate::size::readable;

/// What is printed to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Screen {
    /// Columns of a terminal; `None` where the reader is none.
    pub width: Option<usize>,
    /// Whether it shows colours.
    pub colours: bool,
    /// Whether it can draw lines.
    pub lines: bool,
}

impl Screen {
    /// What stdout is.
    pub(super) fn of_stdout() -> Screen {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let is_terminal = std::io::stdout().is_terminal();
        let size = terminal_size::terminal_size_of(std::io::stdout());
        let is_dumb = variable("TERM").is_none_or(|terminal| terminal == "dumb");
        // As setlocale(3) has it.
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .find_map(variable);
        let locale = locale.unwrap_or_default().to_lowercase();
        Screen {
            width: is_terminal
                .then(|| size.map(|(width, _)| usize::from(width.0)))
                .flatten(),
            colours: is_terminal && !is_dumb && variable("NO_COLOR").is_none(),
            lines: locale.contains("utf-8") || locale.contains("utf8"),
        }
    }

    /// What the last or another branch of a tree begins with.
    pub(super) fn branch(self, is_last: bool) -> &'static str {
        match (self.lines, is_last) {
            (true, true) => "└─ ",
            (true, false) => "├─ ",
            (false, true) => "`- ",
            (false, false) => "|- ",
        }
    }

    /// What stands below the last or another branch, before its own branches.
    pub(super) fn trunk(self, is_last: bool) -> &'static str {
        match (is_last, self.lines) {
            (true, _) => "   ",
            (false, true) => "│  ",
            (false, false) => "|  ",
        }
    }
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    /// Its name, on the command line too; above it, it is in capitals.
    pub name: &'static str,
    /// Numbers are aligned at their ends.
    pub is_number: bool,
    /// Where the terminal is too narrow, columns go by this, the highest first; zero stays.
    pub goes: u8,
}

impl Column {
    /// A column of text.
    pub(super) const fn text(name: &'static str, goes: u8) -> Column {
        Column {
            name,
            is_number: false,
            goes,
        }
    }

    /// A column of numbers.
    pub(super) const fn number(name: &'static str, goes: u8) -> Column {
        Column {
            name,
            is_number: true,
            goes,
        }
    }
}

/// How a line looks where there are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// As all others.
    Plain,
    /// Something is wrong with it.
    Bad,
}

/// One line of a table, and lines below it that no column holds.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// What stands in each column.
    pub cells: Vec<String>,
    /// What stands below.
    pub below: Vec<String>,
    /// How it looks.
    pub look: Look,
}

/// Columns and what stands in them. The last column gives way where the terminal is too narrow.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Row>,
}

impl Table {
    /// Those of the columns that are asked for, in that order; all where nothing is said. Nothing is in it yet.
    pub(super) fn new(columns: &[Column]) -> Table {
        Table {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a line.
    pub(super) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// The text to print. `chosen` are the columns that are asked for, in their order; where nothing is, those that fit.
    pub(super) fn render(&self, chosen: &[String], screen: Screen) -> Result<String> {
        let mut shown: Vec<usize> = Vec::new();
        for name in chosen {
            let found = self.columns.iter().position(|column| column.name == name);
            shown.push(found.ok_or_else(|| {
                let names: Vec<&str> = self.columns.iter().map(|column| column.name).collect();
                Error::usage(format!("there is no column {name:?}"))
                    .hint(format!("the columns are {}", names.join(", ")))
            })?);
        }
        if shown.is_empty() {
            shown = self.fitting(screen.width);
        }
        let mut table = self.laid_out(&shown);
        if let (Some(width), Some(last)) = (screen.width, shown.len().checked_sub(1)) {
            table.set_content_arrangement(ContentArrangement::Dynamic);
            table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
            for column in table.column_iter_mut().take(last) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        Ok(self.coloured(&table.trim_fmt(), screen))
    }

    fn laid_out(&self, shown: &[usize]) -> comfy_table::Table {
        let mut table = comfy_table::Table::new();
        table.load_style(NOTHING);
        let one_line = |cells: Vec<String>| {
            let mut row = Cells::from(cells);
            row.max_height(1);
            row
        };
        let headings = shown.iter().map(|column| self.columns[*column].name);
        table.set_header(one_line(headings.map(str::to_uppercase).collect()));
        for row in &self.rows {
            let cell = |column: &usize| row.cells.get(*column).map(|text| printable(text));
            table.add_row(one_line(shown.iter().filter_map(cell).collect()));
        }
        for (column, shown) in table.column_iter_mut().zip(shown) {
            column.set_padding((0, 2));
            if self.columns[*shown].is_number {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }

    /// The columns that fit into so many columns of a terminal, when the last one is cut.
    fn fitting(&self, width: Option<usize>) -> Vec<usize> {
        const LEAST_OF_LAST: usize = 12;
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let Some(width) = width else {
            return shown;
        };
        loop {
            let mut widths = self.laid_out(&shown).column_max_content_widths();
            if let Some(last) = widths.last_mut() {
                *last = (*last).min(LEAST_OF_LAST as u16);
            }
            let needed: usize = widths.iter().map(|width| usize::from(*width) + 2).sum();
            let goes = shown.iter().copied().enumerate();
            let goes = goes.max_by_key(|(_, column)| self.columns[*column].goes);
            match goes {
                Some((place, column)) if needed > width && self.columns[column].goes > 0 => {
                    shown.remove(place);
                }
                _ => return shown,
            }
        }
    }

    /// Gives the lines of a table their colours, and adds what stands below them.
    fn coloured(&self, lines: &str, screen: Screen) -> String {
        const BOLD: &str = "\x1b[1m";
        const RED: &str = "\x1b[31m";
        let mut text = String::new();
        let mut add = |line: &str, look: &str| match (screen.colours, look) {
            (true, BOLD | RED) => text.push_str(&format!("{look}{line}\x1b[0m\n")),
            _ => text.push_str(&format!("{line}\n")),
        };
        let mut lines = lines.lines();
        add(lines.next().unwrap_or_default(), BOLD);
        for (line, row) in lines.zip(&self.rows) {
            let look = match row.look {
                Look::Plain => "",
                Look::Bad => RED,
            };
            add(line, look);
            for (number, below) in row.below.iter().enumerate() {
                let branch = screen.branch(number + 1 == row.below.len());
                add(&format!("{branch}{}", printable(below)), look);
            }
        }
        text
    }
}

/// The text without what would be no letters to a terminal but orders: comments and names of backups come from anybody who
/// could write them.
fn printable(text: &str) -> String {
    let is_order = |letter: char| {
        letter.is_control()
            || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match is_order(letter) {
            true => shown.extend(letter.escape_default()),
            false => shown.push(letter),
        }
    }
    shown
}

/// How long ago something was, to one number.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// How long something took.
pub(super) fn span(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..60 => format!("{}.{} s", seconds, milliseconds % 1000 / 100),
        60..3600 => format!("{}:{:02}", seconds / 60, seconds % 60),
        _ => format!(
            "{}:{:02}:{:02}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        ),
    }
}

/// Bytes a second.
pub(super) fn rate(bytes: u64) -> String {
    format!("{}/s", readable(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const COLUMNS: &[Column] = &[
        Column::text("backup", 0),
        Column::number("size", 0),
        Column::text("wal", 2),
        Column::text("comment", 0),
    ];

    const PLAIN: Screen = Screen {
        width: None,
        colours: false,
        lines: true,
    };

    fn table() -> Table {
        let mut table = Table::new(COLUMNS);
        let rows = [
            ["20260101000000", "1.50GB", "00000001000000000000004F", ""],
            [
                "└─ 20260102000000",
                "9B",
                "",
                "für é\x1b[31m\n\u{202e}x日本, more than fits",
            ],
        ];
        for (number, cells) in rows.iter().enumerate() {
            table.add(Row {
                cells: cells.iter().map(ToString::to_string).collect(),
                below: vec!["look\tat it".to_owned(); number],
                look: if number == 0 { Look::Plain } else { Look::Bad },
            });
        }
        table
    }

    #[test]
    fn columns_stand_below_each_other_and_nothing_gives_orders() {
        let text = table().render(&[], PLAIN).unwrap();
        assert_eq!(
            text,
            "\
BACKUP               SIZE  WAL                       COMMENT
20260101000000     1.50GB  00000001000000000000004F
└─ 20260102000000      9B                            für é\\u{1b}[31m\\n\\u{202e}x日本, more than fits
└─ look\\tat it
"
        );
    }

    #[test]
    fn a_narrow_terminal_has_fewer_columns_and_cuts_the_last() {
        let screen = |width| Screen {
            width: Some(width),
            ..PLAIN
        };
        let text = table().render(&[], screen(60)).unwrap();
        assert!(!text.contains("WAL") && text.contains("COMMENT"), "{text}");
        assert!(text.contains("für") && !text.contains("fits"), "{text}");
        assert_eq!(text.lines().count(), 4, "{text}");
        let wide = table().render(&[], screen(200)).unwrap();
        assert_eq!(wide, table().render(&[], PLAIN).unwrap());
        // Too narrow for anything, it still has a line for each.
        let text = table().render(&[], screen(5)).unwrap();
        assert!(text.contains("20260101000000"), "{text}");
    }

    #[test]
    fn columns_are_chosen_by_their_names() {
        let chosen = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            table().render(&names, PLAIN)
        };
        let text = chosen(&["size", "backup"]).unwrap();
        assert!(
            text.starts_with("  SIZE  BACKUP\n1.50GB  20260101000000\n"),
            "{text}"
        );
        let error = chosen(&["sizes"]).unwrap_err();
        assert!(error.advice().unwrap().contains("backup, size, wal"));
    }

    #[test]
    fn what_is_wrong_is_red_where_there_are_colours() {
        let screen = Screen {
            colours: true,
            ..PLAIN
        };
        let text = table().render(&[], screen).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("\x1b[1mBACKUP"), "{text}");
        assert!(!lines[1].contains('\x1b'), "{text}");
        assert!(lines[2].starts_with("\x1b[31m└─ 2026"), "{text}");
        assert!(lines[3].ends_with("\x1b[0m"), "{text}");
    }

    #[test]
    fn times_are_short() {
        assert_eq!(
            [age(119), age(7199), age(7200), age(172_800)],
            ["119 s", "119 min", "2 h", "2 d"]
        );
        assert_eq!(
            [span(4821), span(83_000), span(3_723_000)],
            ["4.8 s", "1:23", "1:02:03"]
        );
    }
}
