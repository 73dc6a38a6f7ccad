//! Result sets of commands, which are small: a row, or one a tablespace.

use crate::pg::lsn::{Lsn, Timeline};
use crate::server::connect::{Fault, Wire, misplaced};
use postgres::fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{DataRowBody, Message};

/// One row; None is NULL.
pub(super) type Row = Vec<Option<Vec<u8>>>;

/// How much may be held of the results of one command, in bytes.
const RESULT_BYTES: usize = 8 << 20;

/// What a row costs besides its bytes.
const ROW_COST: usize = 64;

/// What is left of how much may be held.
pub(super) struct Budget(usize);

impl Default for Budget {
    fn default() -> Budget {
        Budget(RESULT_BYTES)
    }
}

impl Budget {
    /// The values of a row that there is room for.
    pub(super) fn values(&mut self, row: &DataRowBody) -> Result<Row, Fault> {
        let bytes = row.buffer();
        self.0 = self
            .0
            .checked_sub(bytes.len() + ROW_COST)
            .ok_or_else(|| Fault::Garbled("the server sent too many rows".to_owned()))?;
        row.ranges()
            .map(|range| Ok(range.map(|range| bytes[range].to_vec())))
            .collect()
            .map_err(|error| Fault::Garbled(error.to_string()))
    }
}

/// The next result set as a whole.
pub(super) fn rows(wire: &mut Wire) -> Result<Vec<Row>, Fault> {
    let Message::RowDescription(_) = wire.message()? else {
        return Err(misplaced());
    };
    let mut budget = Budget::default();
    let mut rows = Vec::new();
    loop {
        match wire.message()? {
            Message::DataRow(row) => rows.push(budget.values(&row)?),
            Message::CommandComplete(_) => return Ok(rows),
            _ => return Err(misplaced()),
        }
    }
}

/// A value in UTF-8.
pub(super) fn text(value: Vec<u8>) -> Result<String, Fault> {
    String::from_utf8(value).map_err(|error| {
        Fault::Garbled(format!(
            "the server sent \"{}\", which is not UTF-8",
            error.as_bytes().escape_ascii()
        ))
    })
}

/// The next result set where it is a position in the WAL (backup/basebackup_copy.c, SendXlogRecPtrResult()).
pub(super) fn position(wire: &mut Wire) -> Result<(Lsn, Timeline), Fault> {
    let rows = rows(wire)?;
    let garbled =
        || Fault::Garbled("the server gave no position where one was expected".to_owned());
    let [row] = &rows[..] else {
        return Err(garbled());
    };
    let [Some(position), Some(timeline)] = &row[..] else {
        return Err(garbled());
    };
    let position = number(position).ok_or_else(garbled)?;
    let timeline = number(timeline).filter(|timeline| *timeline > 0);
    Ok((position, Timeline(timeline.ok_or_else(garbled)?)))
}

/// A value that can be parsed.
pub(super) fn number<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::server::connect::testing::{message, wire};

    fn result(values: &[&str]) -> Vec<u8> {
        let mut row = (values.len() as u16).to_be_bytes().to_vec();
        for value in values {
            row.extend((value.len() as u32).to_be_bytes());
            row.extend(value.as_bytes());
        }
        [
            message(b'T', b"\0\0"),
            message(b'D', &row),
            message(b'C', b"SELECT\0"),
        ]
        .concat()
    }

    #[test]
    fn positions_are_read_and_nothing_else() {
        let found = position(&mut wire(result(&["1/A0", "3"]))).unwrap();
        assert_eq!(found, (Lsn(0x1_0000_00a0), Timeline(3)));
        let others: [&[&str]; 6] = [
            &[],
            &["1/A0"],
            &["1/A0", "0"],
            &["1/A0", "-1"],
            &["A0", "1"],
            &["1/A0", "1", "1"],
        ];
        for values in others {
            let read = position(&mut wire(result(values)));
            assert!(matches!(read, Err(Fault::Garbled(_))), "{values:?}");
        }
        let early = [message(b'T', b"\0\0"), message(b'Z', b"I")].concat();
        assert!(position(&mut wire(early)).is_err());
    }
}
