use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::{CHECKSUM_BYTES, CHECKSUMS, Error, FEATURES, Manifest};

/// Appends rows to a new or incomplete store.
pub struct Writer {
    folder: PathBuf,
    manifest: Manifest,
    features: File,
    checksums: File,
    /// The number of rows that are on disk.
    rows: u64,
}

impl Writer {
    /// Creates the store that `manifest` describes in `folder`, or continues it.
    ///
    /// # Errors
    /// The folder has a store with another manifest, another process writes to the store, or the
    /// folder cannot be written.
    pub fn open(folder: &Path, manifest: Manifest) -> Result<Self, Error> {
        let file_error = |name: &str| {
            let path = folder.join(name);
            move |source| Error::File { path, source }
        };
        std::fs::create_dir_all(folder).map_err(file_error(""))?;
        let open = |name: &str| {
            let options =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join(name));
            options.map_err(file_error(name))
        };
        let checksums = open(CHECKSUMS)?;
        match checksums.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: folder.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(file_error(CHECKSUMS)(source)),
        }
        match Manifest::read(folder)? {
            None => manifest.write(folder)?,
            Some(stored) => {
                stored.ensure_matches(folder, &manifest)?;
                let (stored, required) = (format!("{:?}", stored.dtype), format!("{:?}", manifest.dtype));
                if stored != required {
                    return Err(Error::Mismatch {
                        path: folder.to_owned(),
                        property: "type of numbers",
                        stored,
                        required,
                    });
                }
            }
        }
        let mut writer = Self { folder: folder.to_owned(), manifest, features: open(FEATURES)?, checksums, rows: 0 };
        writer.rows = writer.count_complete_rows().map_err(file_error(FEATURES))?;
        writer.truncate_files().map_err(file_error(FEATURES))?;
        Ok(writer)
    }

    /// The number of rows that are on disk.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Removes all rows after the first `rows`.
    ///
    /// # Errors
    /// The files cannot be truncated.
    pub fn truncate(&mut self, rows: u64) -> Result<(), Error> {
        self.rows = self.rows.min(rows);
        self.truncate_files().map_err(|source| Error::File { path: self.folder.join(FEATURES), source })
    }

    /// Appends whole rows. They are on disk on return.
    ///
    /// # Errors
    /// The rows cannot be written, e.g. because the disk is full; earlier rows stay intact.
    ///
    /// # Panics
    /// If `bytes` does not consist of whole rows, or has more rows than there are images left.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let length = self.manifest.row_bytes();
        assert!(bytes.len().is_multiple_of(length), "{} bytes are not whole rows of {length} bytes", bytes.len());
        let count = (bytes.len() / length) as u64;
        assert!(self.rows + count <= self.manifest.images, "more rows than images");
        let row_checksums: Vec<u8> = bytes.chunks(length).flat_map(|row| crc32fast::hash(row).to_le_bytes()).collect();
        let file_error = |source| Error::File { path: self.folder.join(FEATURES), source };
        // The checksums are written after the rows, because they mark rows as complete.
        self.features.write_all(bytes).and_then(|()| self.features.sync_data()).map_err(file_error)?;
        self.checksums.write_all(&row_checksums).and_then(|()| self.checksums.sync_data()).map_err(file_error)?;
        self.rows += count;
        Ok(())
    }

    /// Counts the leading rows with a checksum. Rows at the end, which a crash may have damaged,
    /// count only if they match their checksums.
    fn count_complete_rows(&mut self) -> std::io::Result<u64> {
        let length = self.manifest.row_bytes();
        let checksum_count = self.checksums.metadata()?.len() / CHECKSUM_BYTES as u64;
        let mut rows = checksum_count.min(self.features.metadata()?.len() / length as u64).min(self.manifest.images);
        let mut row = vec![0; length];
        let mut checksum = [0; CHECKSUM_BYTES];
        while let Some(last) = rows.checked_sub(1) {
            self.features.seek(SeekFrom::Start(last * length as u64))?;
            self.features.read_exact(&mut row)?;
            self.checksums.seek(SeekFrom::Start(last * CHECKSUM_BYTES as u64))?;
            self.checksums.read_exact(&mut checksum)?;
            if crc32fast::hash(&row).to_le_bytes() == checksum {
                break;
            }
            rows = last;
        }
        Ok(rows)
    }

    /// Truncates the files after the last complete row, and moves their cursors to the end.
    fn truncate_files(&mut self) -> std::io::Result<()> {
        for (file, length) in [(&mut self.features, self.manifest.row_bytes()), (&mut self.checksums, CHECKSUM_BYTES)] {
            let end = self.rows * length as u64;
            file.set_len(end)?;
            file.seek(SeekFrom::Start(end))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::RowFormat;
    use crate::{Dtype, EncoderDescription, MANIFEST, Store};

    fn manifest() -> Manifest {
        let encoder = |sha256: &str| EncoderDescription {
            weights: "w.pt".into(),
            sha256: sha256.into(),
            image_size: 224,
            computation: String::new(),
        };
        let rows = RowFormat { shape: [2, 3, 2], dtype: Dtype::F16 };
        Manifest::new("train".into(), (5, "names".into()), "clip".into(), (encoder("aa"), vec![encoder("bb")]), rows)
    }

    /// Rows of 16 bytes: eight numbers of type f16.
    fn rows(range: std::ops::Range<u8>) -> Vec<u8> {
        range.flat_map(|row| (0..16).map(move |i| row.wrapping_mul(16) + i)).collect()
    }

    fn write_complete_store(folder: &Path) {
        Writer::open(folder, manifest()).unwrap().append(&rows(0..5)).unwrap();
    }

    #[test]
    fn written_rows_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        write_complete_store(folder.path());
        let store = Store::open(folder.path(), &manifest()).unwrap();
        for row in 0..5 {
            assert_eq!(store.row(row).unwrap(), rows(row as u8..row as u8 + 1));
        }
    }

    #[test]
    fn a_store_of_other_weights_is_refused_with_both_hashes() {
        let folder = tempfile::tempdir().unwrap();
        write_complete_store(folder.path());
        let mut other = manifest();
        other.vision.sha256 = "cc".into();
        for error in [Store::open(folder.path(), &other).err(), Writer::open(folder.path(), other.clone()).err()] {
            let text = error.unwrap().to_string();
            assert!(text.contains("another vision encoder: aa, not cc"), "{text}");
        }
        let mut moved = manifest();
        moved.vision.weights = "/elsewhere/w.pt".into();
        assert!(Store::open(folder.path(), &moved).is_ok());
    }

    #[test]
    fn an_incomplete_store_is_refused_and_can_be_completed() {
        let folder = tempfile::tempdir().unwrap();
        Writer::open(folder.path(), manifest()).unwrap().append(&rows(0..2)).unwrap();
        let text = Store::open(folder.path(), &manifest()).err().unwrap().to_string();
        assert!(text.contains("has 2 of 5 images"), "{text}");
        let mut writer = Writer::open(folder.path(), manifest()).unwrap();
        assert_eq!(writer.rows(), 2);
        writer.truncate(1).unwrap();
        writer.append(&rows(1..5)).unwrap();
        assert!(Store::open(folder.path(), &manifest()).is_ok());
    }

    #[test]
    fn a_second_writer_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let _first = Writer::open(folder.path(), manifest()).unwrap();
        assert!(matches!(Writer::open(folder.path(), manifest()), Err(Error::Locked { .. })));
    }

    #[test]
    fn a_damaged_row_is_reported_by_its_index() {
        let folder = tempfile::tempdir().unwrap();
        write_complete_store(folder.path());
        let path = folder.path().join(FEATURES);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3 * 16 + 5] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let store = Store::open(folder.path(), &manifest()).unwrap();
        assert!(store.row(2).is_ok());
        assert!(store.row(3).unwrap_err().to_string().contains("damaged at image 3"));
    }

    proptest! {
        #[test]
        fn a_store_truncated_anywhere_can_be_completed(features in 0..=80_u64, checksums in 0..=20_u64, flip in 0..80_usize) {
            let folder = tempfile::tempdir().unwrap();
            write_complete_store(folder.path());
            for (name, length) in [(FEATURES, features), (CHECKSUMS, checksums)] {
                OpenOptions::new().write(true).open(folder.path().join(name)).unwrap().set_len(length).unwrap();
            }
            // After a crash the last row may have any content.
            let last = (features / 16).min(checksums / 4);
            if last > 0 && flip as u64 / 16 == last - 1 {
                let mut bytes = std::fs::read(folder.path().join(FEATURES)).unwrap();
                bytes[flip] ^= 0x55;
                std::fs::write(folder.path().join(FEATURES), bytes).unwrap();
            }
            let mut writer = Writer::open(folder.path(), manifest()).unwrap();
            let rows_written = writer.rows() as u8;
            writer.append(&rows(rows_written..5)).unwrap();
            let store = Store::open(folder.path(), &manifest()).unwrap();
            for row in 0..5 {
                prop_assert_eq!(store.row(row).unwrap(), rows(row as u8..row as u8 + 1));
            }
        }

        #[test]
        fn an_invalid_manifest_does_not_cause_a_panic(text in ".*", images: u64, tokens: u64, width: u64, embedding: u64) {
            let folder = tempfile::tempdir().unwrap();
            write_complete_store(folder.path());
            let mut sizes = serde_json::to_value(manifest()).unwrap();
            for (key, value) in [("images", images), ("tokens", tokens), ("width", width), ("embedding", embedding)] {
                sizes[key] = value.into();
            }
            for content in [text, sizes.to_string(), "[".repeat(100_000)] {
                std::fs::write(folder.path().join(MANIFEST), content).unwrap();
                prop_assert!(Store::open(folder.path(), &manifest()).is_err());
            }
        }
    }
}
