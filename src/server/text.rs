//! Text as the server has it, in whatever encoding.
//!
//! Every session has `client_encoding = SQL_ASCII`, with which the server sends text as it is, and takes it so where its
//! own encoding allows (mb/mbutils.c, pg_server_to_any and pg_any_to_server). What names a file must come like that: in a
//! database in LATIN1 a conversion would name another file, and a file's name need not be valid in any encoding.

use std::error::Error;
use std::fmt;

use postgres::types::{FromSql, Type};

/// Some text of the server, of which only most is UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerText(Vec<u8>);

impl ServerText {
    /// The text, or itself where that is not UTF-8.
    pub(super) fn utf8(self) -> Result<String, ServerText> {
        String::from_utf8(self.0).map_err(|error| ServerText(error.into_bytes()))
    }
}

/// Where it is not UTF-8, whatever is not ASCII is written like `\xe9`.
impl fmt::Display for ServerText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match str::from_utf8(&self.0) {
            Ok(text) => f.write_str(text),
            Err(_) => self.0.escape_ascii().fmt(f),
        }
    }
}

impl<'a> FromSql<'a> for ServerText {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<ServerText, Box<dyn Error + Sync + Send>> {
        Ok(ServerText(raw.to_vec()))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::TEXT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_utf8_is_shown_all_the_same() {
        let text = |bytes: &[u8]| ServerText(bytes.to_vec());
        assert_eq!(text("café".as_bytes()).to_string(), "café");
        assert_eq!(text("café".as_bytes()).utf8(), Ok("café".to_owned()));
        assert_eq!(text(b"caf\xe9").to_string(), "caf\\xe9");
        assert_eq!(text(b"caf\xe9").utf8(), Err(text(b"caf\xe9")));
    }
}
