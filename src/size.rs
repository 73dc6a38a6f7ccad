//! Sizes in bytes, as people read and write them: `65536`, `8MB`, `1G`.

/// What a size may look like, for messages.
pub const ALLOWED: &str = "a number of bytes, with K, M, G or T for units of 1024";

/// Reads a size in bytes. Units are powers of 1024 as in PostgreSQL and
/// pgmoneta, with or without a final `B`, in any case.
pub fn parse(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let exponent = match unit.trim_start().to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 1,
        "M" | "MB" | "MIB" => 2,
        "G" | "GB" | "GIB" => 3,
        "T" | "TB" | "TIB" => 4,
        _ => return None,
    };
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(1 << (10 * exponent))
}

/// Bytes for people, in powers of 1024 with two decimals, as in `6.54MB`.
pub fn readable(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let mut size = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while size >= 1024.0
        && let Some(larger) = units.next()
    {
        size /= 1024.0;
        unit = Some(larger);
    }
    format!("{size:.2}{}", unit.copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_powers_of_1024() {
        let cases = [
            ("0", Some(0)),
            ("65536", Some(65536)),
            ("12B", Some(12)),
            ("8kB", Some(8 << 10)),
            ("8MB", Some(8 << 20)),
            ("8 M", Some(8 << 20)),
            ("1g", Some(1 << 30)),
            ("2TiB", Some(2 << 40)),
            ("", None),
            ("MB", None),
            ("-1", None),
            ("1.5G", None),
            ("1PB", None),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("99999999999T", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_with_two_decimals() {
        let cases = [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.00kB"),
            (48_799_744, "46.54MB"),
            (u64::MAX, "16.00EB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(readable(bytes), expected);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            let _ = parse(&text);
        }
    }
}
