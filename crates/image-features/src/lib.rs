//! The feature store: the outputs of the frozen encoders for each image of a split. They are
//! computed once (`worker encode`) and read from memory-mapped files.
//!
//! A store is a folder:
//!
//! | file | content |
//! |---|---|
//! | `manifest.json` | the description of the rows: split, images, weights, preprocessing, shape and type; written first |
//! | `features.bin` | a row for each image, in the split's order: hidden states `[tokens, width]`, then the unit embeddings of the evaluators, `[embedding]` together |
//! | `checksums.bin` | the CRC-32 of each row, little-endian; written after the row is on disk, so its length is the number of complete rows |
//!
//! Each row is checked when it is read. A [`Writer`] continues an incomplete store. [`Writer`] and
//! [`Store`] refuse a store that was computed from other weights, images or settings; the message
//! names the difference.

mod manifest;
mod store;
mod writer;

pub use manifest::{Dtype, EncoderDescription, Manifest, RowFormat};
pub use store::Store;
pub use writer::Writer;

use std::path::PathBuf;

/// An error in reading or writing a feature store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("feature store {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The manifest is invalid.
    #[error("feature store {}: {problem}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// The problem, and its position.
        problem: String,
    },
    /// The store was computed from other weights, images or settings than required.
    #[error("feature store {} was made with another {property}: {stored}, not {required}; encode into another folder", path.display())]
    Mismatch {
        /// The store.
        path: PathBuf,
        /// The property that differs.
        property: &'static str,
        /// The store's value.
        stored: String,
        /// The required value.
        required: String,
    },
    /// Rows are missing.
    #[error("feature store {} has {rows} of {images} images: run `worker encode` again to complete it", path.display())]
    Incomplete {
        /// The path of the store.
        path: PathBuf,
        /// The number of rows in the store.
        rows: u64,
        /// The number of rows that are required.
        images: u64,
    },
    /// A row does not match its checksum.
    #[error("feature store {} is damaged at image {row}: remove it and encode again", path.display())]
    Damaged {
        /// The store.
        path: PathBuf,
        /// The index of the row.
        row: u64,
    },
    /// Another process writes to the store.
    #[error("feature store {} is being written by another process", path.display())]
    Locked {
        /// The store.
        path: PathBuf,
    },
}

const MANIFEST: &str = "manifest.json";
const FEATURES: &str = "features.bin";
const CHECKSUMS: &str = "checksums.bin";
/// The size of a checksum, in bytes.
const CHECKSUM_BYTES: usize = 4;
