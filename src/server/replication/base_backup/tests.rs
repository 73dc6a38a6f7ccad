//! Streams that no server sends, and those that one does in the smallest form.

#![allow(clippy::unwrap_used, clippy::panic)]

use super::super::{ReplicationSession, ServerCompression};
use super::*;
use crate::error::Kind;
use crate::server::connect::testing::{message, wire};
use proptest::prelude::*;
use std::io::Read;

fn row(values: &[Option<&str>]) -> Vec<u8> {
    let mut body = (values.len() as u16).to_be_bytes().to_vec();
    for value in values {
        match value {
            None => body.extend(u32::MAX.to_be_bytes()),
            Some(value) => {
                body.extend((value.len() as u32).to_be_bytes());
                body.extend(value.as_bytes());
            }
        }
    }
    message(b'D', &body)
}

fn result(rows: &[Vec<u8>]) -> Vec<u8> {
    let (begin, end) = (message(b'T', b"\0\0"), message(b'C', b"SELECT\0"));
    [begin, rows.concat(), end].concat()
}

const BASE: [Option<&str>; 3] = [None, None, Some("17")];
const TABLESPACE: [Option<&str>; 3] = [Some("16385"), Some("/t"), None];

/// All that comes in front of the stream.
fn beginning(version: &str, tablespaces: &[[Option<&str>; 3]]) -> Vec<u8> {
    let version = [&b"server_version\0"[..], version.as_bytes(), b"\0"].concat();
    let rows: Vec<Vec<u8>> = tablespaces.iter().map(|values| row(values)).collect();
    [
        message(b'S', &version),
        message(b'Z', b"I"),
        result(&[row(&[Some("0/2000028"), Some("1")])]),
        result(&rows),
        message(b'H', b"\0\0\0"),
    ]
    .concat()
}

fn end() -> Vec<u8> {
    [
        message(b'c', b""),
        result(&[row(&[Some("0/2000100"), Some("1")])]),
        message(b'C', b"BASE_BACKUP\0"),
        message(b'Z', b"I"),
    ]
    .concat()
}

fn copy(kind: u8, body: &[u8]) -> Vec<u8> {
    message(b'd', &[&[kind][..], body].concat())
}

fn begin(
    said: Vec<u8>,
    compression: ServerCompression,
) -> std::result::Result<BaseBackup, CommandError> {
    let mut session = ReplicationSession::new(wire(said), "host a".to_owned());
    session.query("SHOW x").unwrap();
    let options = BaseBackupOptions {
        compression,
        ..BaseBackupOptions::new("test")
    };
    session.base_backup(&options)
}

/// A backup of a data directory and a tablespace whose stream is this.
fn backup(stream: &[Vec<u8>]) -> BaseBackup {
    let said = [beginning("18.1", &[TABLESPACE, BASE]), stream.concat()];
    begin(said.concat(), ServerCompression::None).unwrap()
}

fn whole() -> Vec<Vec<u8>> {
    vec![
        copy(b'n', b"16385.tar\0/t\0"),
        copy(b'd', b"one"),
        message(b'N', b"SWARNING\0Mhm\0\0"),
        copy(b'p', &[0; 8]),
        copy(b'd', b""),
        copy(b'd', b"two"),
        copy(b'n', b"base.tar\0\0"),
        copy(b'd', b"three"),
        end(),
    ]
}

/// Reads all that there is.
fn read(mut backup: BaseBackup) -> Result<Vec<(Option<u32>, Vec<u8>)>> {
    let mut found = Vec::new();
    while let Some(mut archive) = backup.next_archive()? {
        let mut content = Vec::new();
        let tablespace = archive.tablespace();
        archive
            .read_to_end(&mut content)
            .map_err(|error| Error::from_io("read", &error))?;
        found.push((tablespace, content));
    }
    backup.finish()?;
    Ok(found)
}

#[test]
fn archives_come_apart_at_their_names() {
    let backup = backup(&whole());
    assert_eq!(backup.start(), (Lsn(0x200_0028), Timeline(1)));
    let tablespace = Tablespace {
        oid: 16385,
        location: "/t".into(),
    };
    assert_eq!(backup.tablespaces(), [tablespace]);
    let found = read(backup).unwrap();
    let expected = [(Some(16385), b"onetwo".to_vec()), (None, b"three".to_vec())];
    assert_eq!(found, expected);
}

#[test]
fn what_is_not_read_is_passed_over() {
    let mut first = backup(&whole());
    let mut archive = first.next_archive().unwrap().unwrap();
    archive.read_exact(&mut [0; 2]).unwrap();
    let mut second = first.next_archive().unwrap().unwrap();
    assert_eq!(second.tablespace(), None);
    second.read_exact(&mut [0; 2]).unwrap();
    assert!(first.next_archive().unwrap().is_none());
    assert_eq!(first.finish().unwrap(), (Lsn(0x200_0100), Timeline(1)));
    let unread = backup(&whole());
    assert_eq!(unread.finish().unwrap(), (Lsn(0x200_0100), Timeline(1)));
}

#[test]
fn streams_that_no_server_sends_are_refused() {
    let name = || copy(b'n', b"base.tar\0\0");
    let other = || copy(b'n', b"16385.tar\0/t\0");
    let cases = [
        ("data before a name", vec![copy(b'd', b"x"), end()]),
        ("nothing", vec![end()]),
        ("one archive", vec![name(), end()]),
        ("an archive twice", vec![name(), name(), other(), end()]),
        (
            "an unknown archive",
            vec![name(), copy(b'n', b"1.tar\0/t\0"), end()],
        ),
        ("a slash", vec![copy(b'n', b"../base.tar\0\0"), end()]),
        (
            "an absolute name",
            vec![copy(b'n', b"/base.tar\0\0"), end()],
        ),
        (
            "another compression",
            vec![copy(b'n', b"base.tar.gz\0\0"), end()],
        ),
        ("a name without end", vec![copy(b'n', b"base.tar"), end()]),
        ("no path", vec![copy(b'n', b"base.tar\0"), end()]),
        (
            "a path without end",
            vec![copy(b'n', b"base.tar\0x"), end()],
        ),
        ("a third string", vec![copy(b'n', b"base.tar\0\0\0"), end()]),
        ("a long name", vec![copy(b'n', &[b'a'; 5000]), end()]),
        ("a manifest", vec![name(), copy(b'm', b""), end()]),
        ("an unknown kind", vec![name(), copy(b'x', b""), end()]),
        ("no kind", vec![name(), message(b'd', b""), end()]),
        ("short progress", vec![name(), copy(b'p', b"abc"), end()]),
        ("long progress", vec![name(), copy(b'p', &[0; 9]), end()]),
        ("a row", vec![name(), row(&[None]), end()]),
        ("readiness", vec![name(), message(b'Z', b"I"), end()]),
        (
            "a long end",
            vec![name(), other(), message(b'c', b"x"), end()],
        ),
        (
            "a wrong length",
            vec![name(), b"d\0\0\0\x01".to_vec(), end()],
        ),
        (
            "a huge notice",
            vec![name(), b"N\x7f\xff\xff\xff".to_vec(), end()],
        ),
        (
            "no position",
            vec![name(), other(), message(b'c', b""), message(b'Z', b"I")],
        ),
    ];
    for (what, stream) in cases {
        let error = read(backup(&stream)).unwrap_err();
        assert_eq!(error.kind(), Kind::Failed, "{what}: {error}");
        assert!(!error.is_momentary(), "{what}: {error}");
        let message = error.message();
        assert!(
            message.starts_with("cannot take a base backup from host a: "),
            "{message}"
        );
    }
}

#[test]
fn a_stream_that_breaks_off_is_a_lost_connection_each_time_it_is_asked_for() {
    let stream = whole().concat();
    for length in 0..stream.len() {
        let error = read(backup(&[stream[..length].to_vec()])).unwrap_err();
        assert_eq!(error.kind(), Kind::Server, "{length}: {error}");
        assert!(error.is_momentary(), "{length}: {error}");
    }
    let huge = [
        copy(b'n', b"base.tar\0\0"),
        b"d\x7f\xff\xff\xffdabc".to_vec(),
    ];
    let mut backup = backup(&huge);
    let mut content = Vec::new();
    let mut archive = backup.next_archive().unwrap().unwrap();
    let error = archive.read_to_end(&mut content).unwrap_err();
    assert!(Error::from_io("read", &error).is_momentary());
    assert_eq!(content, b"abc");
    assert!(archive.read(&mut [0]).is_err());
    assert!(backup.next_archive().is_err());
    assert!(backup.finish().unwrap_err().is_momentary());
}

#[test]
fn an_error_of_the_server_in_the_stream_is_told_in_its_words() {
    let stream = [
        copy(b'n', b"base.tar\0\0"),
        copy(b'd', b"abc"),
        message(b'E', b"CXX001\0Mchecksum verification failure\0\0"),
        message(b'Z', b"I"),
    ];
    let error = read(backup(&stream)).unwrap_err();
    assert!(
        error.message().ends_with(": checksum verification failure"),
        "{error}"
    );
}

#[test]
fn what_comes_in_front_of_the_stream_is_checked() {
    let plain = ServerCompression::None;
    let lists: [&[[Option<&str>; 3]]; 7] = [
        &[],
        &[TABLESPACE],
        &[BASE, BASE],
        &[BASE, TABLESPACE, TABLESPACE],
        &[BASE, [Some("0"), Some("/t"), None]],
        &[BASE, [Some("7"), None, None]],
        &[BASE, [Some("7"), Some("/t"), Some("-1")]],
    ];
    for list in lists {
        let error = begin(beginning("18.1", list), plain).err().unwrap();
        assert!(
            error.error().message().contains("malformed"),
            "{list:?} {error:?}"
        );
    }
    let old = begin(beginning("14.9", &[BASE]), plain).err().unwrap();
    assert!(old.error().message().contains("PostgreSQL 14"), "{old:?}");
    assert!(!old.is_unsupported());
}

#[test]
fn a_compression_that_the_server_lacks_is_told_from_other_refusals() {
    let said = |code: &str| {
        let error = ["C", code, "\0Mno\0\0"].concat();
        let said = [
            message(b'S', b"server_version\x0016.1\0"),
            message(b'Z', b"I"),
            message(b'E', error.as_bytes()),
        ];
        begin(said.concat(), ServerCompression::Gzip { level: None })
            .err()
            .unwrap()
    };
    for code in ["0A000", "22023", "42601"] {
        assert!(said(code).is_unsupported(), "{code}");
    }
    for code in ["42501", "58P01"] {
        assert!(!said(code).is_unsupported(), "{code}");
    }
}

#[test]
fn compressed_archives_cut_short_are_an_error() {
    let text = vec![b'a'; 10_000];
    let frame = zstd::encode_all(&text[..], 3).unwrap();
    let stream = |frame: &[u8]| {
        let name = copy(b'n', b"base.tar.zst\0\0");
        let said = [beginning("15.4", &[BASE]), name, copy(b'd', frame), end()];
        let compression = ServerCompression::Zstd {
            level: None,
            workers: None,
        };
        let mut backup = begin(said.concat(), compression).unwrap();
        let mut content = Vec::new();
        let archive = backup.next_archive().unwrap().unwrap();
        let read = archive.decompressed().unwrap().read_to_end(&mut content);
        read.map(|_| content)
    };
    assert_eq!(stream(&frame).unwrap(), text);
    for length in 1..frame.len() {
        assert!(stream(&frame[..length]).is_err(), "{length}");
    }
}

proptest! {
    #[test]
    fn no_stream_makes_it_panic(
        pieces in prop::collection::vec(
            (prop::sample::select(&b"dcnNSEZTDCHA?"[..]), prop::collection::vec(any::<u8>(), 0..20)),
            0..8,
        ),
        tail in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut stream = vec![copy(b'n', b"base.tar\0\0")];
        stream.extend(pieces.iter().map(|(tag, body)| message(*tag, body)));
        stream.push(tail);
        prop_assert!(read(backup(&stream)).is_err());
    }
}
