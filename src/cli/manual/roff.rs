//! The little of roff that the pages need, man(7).

/// Text in which no character is a command to roff, and each is what it looks like.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '\\' => escaped.push_str("\\e"),
            '-' => escaped.push_str("\\-"),
            '\'' => escaped.push_str("\\(aq"),
            '`' => escaped.push_str("\\(ga"),
            '^' => escaped.push_str("\\(ha"),
            '~' => escaped.push_str("\\(ti"),
            '"' => escaped.push_str("\\(dq"),
            character => escaped.push(character),
        }
    }
    if escaped.starts_with('.') {
        escaped.insert_str(0, "\\&");
    }
    escaped
}

/// A paragraph of a help text: one line, what stands between backticks in bold, and what is
/// in capitals and no abbreviation in italics.
pub(super) fn prose(text: &str) -> String {
    let parts = text.split('`').enumerate().map(|(place, part)| {
        if place % 2 == 1 {
            return format!("\\fB{}\\fR", escape(part));
        }
        let words = part.split_whitespace().map(|word| {
            let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
            if is_placeholder(bare) {
                escape(word).replace(bare, &format!("\\fI{bare}\\fR"))
            } else {
                escape(word)
            }
        });
        let mut line = words.collect::<Vec<_>>().join(" ");
        if part.starts_with(char::is_whitespace) {
            line.insert(0, ' ');
        }
        if part.ends_with(char::is_whitespace) && part.trim() != "" {
            line.push(' ');
        }
        line
    });
    parts.collect()
}

/// Words that stand for a value to type, as SERVER does.
fn is_placeholder(word: &str) -> bool {
    const PLACEHOLDERS: [&str; 14] = [
        "SERVER",
        "BACKUP",
        "PARENT",
        "DIRECTORY",
        "POSITION",
        "FILE",
        "KEY",
        "COMMENT",
        "OLD",
        "NEW",
        "IDENTIFIER",
        "PATH",
        "NAME",
        "COMMAND",
    ];
    PLACEHOLDERS.contains(&word)
}

/// A paragraph that hangs from its tag.
pub(super) fn tagged(tag: &str, text: &str) -> String {
    let text = if text.is_empty() { "\\&" } else { text };
    format!(".TP\n{tag}\n{text}\n")
}

/// A line to type, on a line of its own.
pub(super) fn literal(line: &str) -> String {
    format!(".RS 4\n.EX\n{}\n.EE\n.RE\n", escape(line))
}
