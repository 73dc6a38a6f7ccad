//! A stored file as a stream: compress → encrypt → sha512 → disk, and back.
//!
//! Content is compressed in slices of a few MiB. Each slice becomes a whole
//! frame (zstd, lz4), member (gzip) or stream (bzip2) of its own, and a stored file is these
//! frames one after the other, which every decompressor of the format reads as
//! one. So several workers can compress one large file, and plain tools undo it.

pub mod bundle;
pub mod checksum;
pub mod cipher;
pub mod coding;
pub mod compression;
pub mod encryption;
pub mod master_key;
pub mod reader;
pub mod writer;
