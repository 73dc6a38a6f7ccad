//! Every mode there and back, and every way in which an encrypted file may be damaged.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use proptest::prelude::*;

use super::header::HEADER_BYTES;
use super::*;
use crate::storage::Place;
use crate::stored::bundle;
use crate::stored::coding::Coding;
use crate::stored::compression::{Algorithm, Compression, Compressor};
use crate::stored::reader::{read_hashed, read_whole};
use crate::stored::writer::StoredWriter;

const CHUNK_BYTES: usize = 64 << 10;

fn with_cipher(cipher: Cipher) -> Encryption {
    Encryption {
        cipher,
        key: Arc::new(MasterKey::generate().unwrap()),
    }
}

fn every_cipher() -> impl Iterator<Item = Encryption> {
    Cipher::all().map(with_cipher)
}

fn encrypt(encryption: &Encryption, parts: &[&[u8]]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encryptor = Encryptor::begin(encryption, &mut file).unwrap();
    for part in parts {
        encryptor.push(part, &mut file).unwrap();
    }
    encryptor.finish(&mut file).unwrap();
    file
}

fn decrypt(encryption: &Encryption, file: &[u8]) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    Decryptor::begin(file, &encryption.key)?.read_to_end(&mut content)?;
    Ok(content)
}

/// Bytes that do not repeat.
fn content(bytes: usize) -> Vec<u8> {
    (0..bytes as u32)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// Sizes at which something changes: a block, a chunk, a part of the reader.
fn sizes() -> impl Strategy<Value = usize> {
    let bounds = prop::sample::select(vec![0, 16, 32, CHUNK_BYTES, 2 * CHUNK_BYTES]);
    (bounds, -49_isize..50).prop_map(|(bound, around)| bound.saturating_add_signed(around))
}

proptest! {
    #![proptest_config(crate::chance::cases(24))]

    #[test]
    fn what_was_encrypted_comes_back(size in sizes(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4)) {
        let content = content(size);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(size + 1)).chain([0, size]).collect();
        cuts.sort_unstable();
        let parts: Vec<&[u8]> = cuts.windows(2).map(|cut| &content[cut[0]..cut[1]]).collect();
        for encryption in every_cipher() {
            let file = encrypt(&encryption, &parts);
            prop_assert!(decrypt(&encryption, &file).unwrap() == content, "{}", encryption.cipher);
        }
    }

    #[test]
    fn a_changed_bit_is_noticed_wherever_it_is(size in sizes(), place in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let content = content(size);
        for encryption in every_cipher() {
            let mut file = encrypt(&encryption, &[&content]);
            let place = place.index(file.len());
            file[place] ^= 1_u8 << bit;
            prop_assert!(decrypt(&encryption, &file).is_err(), "{} at {place}", encryption.cipher);
        }
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(rest in prop::collection::vec(any::<u8>(), 0..300)) {
        for encryption in every_cipher() {
            let mut file = encrypt(&encryption, &[]);
            file.truncate(HEADER_BYTES);
            file.extend_from_slice(&rest);
            prop_assert!(decrypt(&encryption, &file).is_err());
            prop_assert!(decrypt(&encryption, &rest).is_err());
        }
    }
}

#[test]
fn every_flipped_byte_every_cut_and_every_byte_too_many_is_noticed() {
    for encryption in every_cipher() {
        let file = encrypt(&encryption, &[&content(100)]);
        for place in 0..file.len() {
            let mut flipped = file.clone();
            flipped[place] ^= 0x41;
            assert!(
                decrypt(&encryption, &flipped).is_err(),
                "{} flipped at {place}",
                encryption.cipher
            );
            assert!(
                decrypt(&encryption, &file[..place]).is_err(),
                "{} cut at {place}",
                encryption.cipher
            );
        }
        for more in [1, 16, 32, 64] {
            let mut longer = file.clone();
            longer.resize(file.len() + more, 0);
            assert!(decrypt(&encryption, &longer).is_err());
        }
    }
}

#[test]
fn chunks_cannot_change_places_be_left_out_or_be_taken_for_the_last() {
    let chunk = CHUNK_BYTES + 16;
    for encryption in every_cipher().filter(|one| one.cipher.mode == Mode::Gcm) {
        let file = encrypt(&encryption, &[&content(3 * CHUNK_BYTES + 5)]);
        let (header, chunks) = file.split_at(HEADER_BYTES);
        let chunks: Vec<&[u8]> = chunks.chunks(chunk).collect();
        assert_eq!(chunks.len(), 4);
        let arranged = |order: &[usize]| {
            let mut file = header.to_vec();
            for &number in order {
                file.extend_from_slice(chunks[number]);
            }
            decrypt(&encryption, &file)
        };
        assert!(arranged(&[0, 1, 2, 3]).is_ok());
        for order in [
            &[1, 0, 2, 3][..],
            &[0, 2, 3],
            &[0, 1, 3],
            &[0, 1, 2],
            &[0, 1, 1, 2, 3],
            &[0, 1, 2, 3, 3],
            &[3],
        ] {
            assert!(arranged(order).is_err(), "{order:?}");
        }
    }
}

#[test]
fn the_content_of_one_file_does_not_pass_under_the_header_of_another() {
    for encryption in every_cipher() {
        let one = encrypt(&encryption, &[&content(100)]);
        let other = encrypt(&encryption, &[&content(100)]);
        assert_ne!(one, other, "the salt is another one each time");
        let mixed = [&one[..HEADER_BYTES], &other[HEADER_BYTES..]].concat();
        assert!(decrypt(&encryption, &mixed).is_err());
    }
}

#[test]
fn after_an_error_a_file_never_ends() {
    for encryption in every_cipher() {
        let mut file = encrypt(&encryption, &[&content(100)]);
        *file.last_mut().unwrap() ^= 1;
        let mut decryptor = Decryptor::begin(&file[..], &encryption.key).unwrap();
        let mut rest = [0; 64];
        for _ in 0..3 {
            assert!(decryptor.read(&mut rest).is_err(), "{}", encryption.cipher);
        }
    }
}

#[test]
fn another_key_is_named() {
    for encryption in every_cipher() {
        let other = with_cipher(encryption.cipher);
        let file = encrypt(&encryption, &[b"secret"]);
        let error = decrypt(&other, &file).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "it was encrypted with the master key {}, not with {}",
                encryption.key.fingerprint(),
                other.key.fingerprint()
            )
        );
    }
}

#[test]
fn nothing_of_the_content_is_in_the_file() {
    for encryption in every_cipher() {
        let file = encrypt(&encryption, &[&[7; 1000]]);
        let repeated = file.windows(16).any(|window| window == [7; 16]);
        assert!(!repeated, "{}", encryption.cipher);
    }
}

fn openssl(arguments: &[&str]) -> Output {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {error}");
    output
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the documentation of the format says, done by OpenSSL 3.
#[test]
fn openssl_derives_the_same_keys_and_decrypts_cbc_and_ctr() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ciphertext");
    let path = path.to_str().unwrap();
    for encryption in every_cipher().filter(|one| one.cipher.mode != Mode::Gcm) {
        for size in [0, 15, 16, 100_000] {
            let content = content(size);
            let file = encrypt(&encryption, &[&content]);
            let master = format!("hexkey:{}", encryption.key.text().trim_end());
            let salt = format!("hexsalt:{}", hexadecimal(&file[20..52]));
            let info = format!("hexinfo:{}", hexadecimal(&file[..20]));
            let derive = [
                "kdf",
                "-keylen",
                "112",
                "-binary",
                "-kdfopt",
                "digest:SHA256",
            ];
            let options = [
                "-kdfopt", &master, "-kdfopt", &salt, "-kdfopt", &info, "HKDF",
            ];
            let keys = openssl(&[&derive[..], &options[..]].concat()).stdout;

            let (authenticated, mac) = file.split_last_chunk::<32>().unwrap();
            fs::write(path, authenticated).unwrap();
            let mac_key = format!("hexkey:{}", hexadecimal(&keys[32..96]));
            let computed = openssl(&[
                "dgst", "-sha256", "-mac", "HMAC", "-macopt", &mac_key, "-binary", path,
            ]);
            assert_eq!(computed.stdout, mac);

            fs::write(path, &authenticated[HEADER_BYTES..]).unwrap();
            let cipher = format!("-{}", encryption.cipher);
            let key_bytes = usize::from(encryption.cipher.key_size.bytes());
            let key = hexadecimal(&keys[..key_bytes]);
            let vector = hexadecimal(&keys[96..]);
            let decrypted = openssl(&[
                "enc", "-d", &cipher, "-K", &key, "-iv", &vector, "-in", path,
            ]);
            assert!(decrypted.stdout == content, "{} {size}", encryption.cipher);
        }
    }
}

/// The same for GCM, done by ring, which has no keys of 192 bits.
#[test]
fn ring_derives_the_same_keys_and_decrypts_gcm() {
    struct Bytes(usize);
    impl ring::hkdf::KeyType for Bytes {
        fn len(&self) -> usize {
            self.0
        }
    }
    for (name, algorithm) in [
        ("aes-128-gcm", &ring::aead::AES_128_GCM),
        ("aes-256-gcm", &ring::aead::AES_256_GCM),
    ] {
        let encryption = with_cipher(Cipher::parse(name).unwrap());
        let text = encryption.key.text();
        let master: Vec<u8> = (0..32)
            .map(|byte| u8::from_str_radix(&text[2 * byte..2 * byte + 2], 16).unwrap())
            .collect();
        for size in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5] {
            let content = content(size);
            let mut file = encrypt(&encryption, &[&content]);
            let mut keys = [0; 112];
            ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, &file[20..52])
                .extract(&master)
                .expand(&[&file[..20]], Bytes(keys.len()))
                .unwrap()
                .fill(&mut keys)
                .unwrap();
            let key = ring::aead::UnboundKey::new(algorithm, &keys[..algorithm.key_len()]).unwrap();
            let key = ring::aead::LessSafeKey::new(key);
            let mut decrypted = Vec::new();
            for (number, chunk) in file[HEADER_BYTES..]
                .chunks_mut(CHUNK_BYTES + 16)
                .enumerate()
            {
                let mut nonce = [0; 12];
                nonce[3..11].copy_from_slice(&(number as u64).to_be_bytes());
                nonce[11] = u8::from(chunk.len() < CHUNK_BYTES + 16);
                let nonce = ring::aead::Nonce::assume_unique_for_key(nonce);
                let plain = key.open_in_place(nonce, ring::aead::Aad::empty(), chunk);
                decrypted.extend_from_slice(plain.unwrap());
            }
            assert!(decrypted == content, "{name} {size}");
        }
    }
}

fn store(path: &Path, coding: &Coding, slices: &[&[u8]]) {
    let mut compressor = Compressor::new(coding.compression).unwrap();
    let mut writer = StoredWriter::create(path, coding).unwrap();
    let mut frame = Vec::new();
    for slice in slices {
        compressor.compress(slice, &mut frame).unwrap();
        writer.append(&frame).unwrap();
    }
    writer.finish().unwrap();
}

/// A decompressor must not be content before the encrypted file has proved to be whole.
#[test]
fn under_any_compression_a_stored_file_is_read_to_its_authentic_end() {
    let folder = tempfile::tempdir().unwrap();
    for algorithm in Algorithm::ALL {
        for encryption in ["aes-256-cbc", "aes-256-ctr", "aes-256-gcm"]
            .into_iter()
            .filter_map(Cipher::parse)
            .map(with_cipher)
        {
            let cipher = encryption.cipher;
            let coding = Coding {
                compression: Compression::of(algorithm),
                encryption: Some(encryption),
            };
            let path = folder.path().join(format!("{algorithm}-{cipher}"));
            let slices = [content(500), content(70_000)];
            store(&path, &coding, &[&slices[0], &slices[1]]);
            assert!(read_whole(&path, &coding).unwrap() == slices.concat());

            let file = fs::read(&path).unwrap();
            let mut part = vec![0; 4096];
            let inside = (0..file.len()).step_by(10_007);
            for place in inside.chain(file.len() - 50..file.len()) {
                let mut flipped = file.clone();
                flipped[place] ^= 1;
                fs::write(&path, &flipped).unwrap();
                assert!(
                    read_whole(&path, &coding).is_err(),
                    "{algorithm} {cipher} at {place}"
                );
                let (_, decoded) =
                    read_hashed(&Place::from(&path), &coding, &mut part, |_| ()).unwrap();
                assert!(decoded.is_err(), "{algorithm} {cipher} at {place}");
            }
        }
    }
}

#[test]
fn an_encrypted_bundle_is_a_tar_once_decrypted() {
    let folder = tempfile::tempdir().unwrap();
    let coding = Coding {
        compression: Compression::default(),
        encryption: Cipher::parse("aes-256-gcm").map(with_cipher),
    };
    let mut builder = bundle::BundleBuilder::new(Vec::new());
    builder.add("base/5/112", 0, &[7; 8192]).unwrap();
    let path = folder.path().join("000000.tar.zstd.aes");
    store(&path, &coding, &[&builder.finish().unwrap()]);
    let tar = read_whole(&path, &coding).unwrap();
    let mut members = Vec::new();
    bundle::visit_members(&path.display(), &tar, |member, content| {
        members.push((member.to_owned(), content.len()));
        Ok(())
    })
    .unwrap();
    assert_eq!(members, [("base/5/112".to_owned(), 8192)]);
}
