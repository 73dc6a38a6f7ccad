//! How keys are named in the store.
//!
//! A key is a path of any characters, as a file system has it. A name in the store is the same but for what does not
//! come through the protocol's XML whole: control characters, blanks at the ends of a part, and the characters that no
//! XML holds. Those stand as `%` and two hexadecimal digits for each byte, and so does `%` itself, so that every name is
//! that of one key. Azure's store takes `\` for `/`, and does not keep a `.` at the end of a part: they are escaped there.

use std::borrow::Cow;
use std::fmt::Write;

use percent_encoding::percent_decode_str;

use super::settings::Scheme;

/// The name of a key.
pub(super) fn encode(key: &str, scheme: Scheme) -> String {
    let is_azure = scheme == Scheme::Azure;
    let mut name = String::with_capacity(key.len());
    for (number, part) in key.split('/').enumerate() {
        if number > 0 {
            name.push('/');
        }
        let bare = part.trim_matches(' ');
        let front = part.len() - part.trim_start_matches(' ').len();
        for (at, character) in part.char_indices() {
            let is_at_an_end = character == ' ' && (at < front || at >= front + bare.len());
            let is_lost_there =
                is_azure && (character == '\\' || character == '.' && at + 1 == part.len());
            if is_at_an_end || is_lost_there || !is_plain(character) {
                escape(character, &mut name);
            } else {
                name.push(character);
            }
        }
    }
    name
}

/// The key of a name; none where no key has it.
pub(super) fn decode(name: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(name).decode_utf8().ok()
}

fn is_plain(character: char) -> bool {
    !(character.is_control() || matches!(character, '%' | '\u{2028}' | '\u{fffe}' | '\u{ffff}'))
}

fn escape(character: char, name: &mut String) {
    for byte in character.encode_utf8(&mut [0; 4]).bytes() {
        // Writing to a string cannot fail.
        let _ = write!(name, "%{byte:02X}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn usual_names_stay_as_they_are() {
        for key in [
            "primary/backup/20260101T000000Z/data/base/5/16384.zst",
            "a b+c#d?e&f=g/ümlaut/日本",
        ] {
            for scheme in Scheme::ALL {
                assert_eq!(encode(key, scheme), key);
            }
        }
    }

    #[test]
    fn what_xml_would_not_bring_back_is_escaped() {
        let encode = |key| encode(key, Scheme::S3);
        assert_eq!(encode(" a /%41/\n\u{7f}"), "%20a%20/%2541/%0A%7F");
        assert_eq!(encode("  /x"), "%20%20/x");
    }

    #[test]
    fn what_azure_would_not_keep_is_escaped_there() {
        let key = "a\\b/.../.c/d.";
        assert_eq!(encode(key, Scheme::Azure), "a%5Cb/..%2E/.c/d%2E");
        assert_eq!(encode(key, Scheme::S3), key);
    }

    proptest! {
        #[test]
        fn every_key_comes_back(key in "\\PC*|[\\x00-\\x7f/% ]*") {
            for scheme in Scheme::ALL {
                let name = encode(&key, scheme);
                prop_assert_eq!(decode(&name).unwrap(), key.as_str());
            }
        }
    }
}
