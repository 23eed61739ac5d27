use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::{CHECKSUM, CHECKSUMS, Error, FEATURES, Manifest};

/// Appends rows to a new or incomplete store.
pub struct Writer {
    folder: PathBuf,
    manifest: Manifest,
    features: File,
    checksums: File,
    rows: u64,
}

impl Writer {
    /// Creates the store that `manifest` describes in `folder`, or continues it.
    ///
    /// # Errors
    /// The folder has a store of something else, another process writes to it, or it cannot be
    /// written.
    pub fn open(folder: &Path, manifest: Manifest) -> Result<Self, Error> {
        let failed = |name: &str| {
            let path = folder.join(name);
            move |source| Error::File { path, source }
        };
        std::fs::create_dir_all(folder).map_err(failed(""))?;
        let open = |name: &str| {
            let options =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join(name));
            options.map_err(failed(name))
        };
        let checksums = open(CHECKSUMS)?;
        match checksums.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy { path: folder.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(CHECKSUMS)(source)),
        }
        match Manifest::read(folder)? {
            None => manifest.write(folder)?,
            Some(found) => {
                found.expect(folder, &manifest)?;
                let (found, wanted) = (format!("{:?}", found.dtype), format!("{:?}", manifest.dtype));
                if found != wanted {
                    return Err(Error::Differs { path: folder.to_owned(), what: "type of numbers", found, wanted });
                }
            }
        }
        let mut writer = Self { folder: folder.to_owned(), manifest, features: open(FEATURES)?, checksums, rows: 0 };
        writer.rows = writer.whole_rows().map_err(failed(FEATURES))?;
        writer.seek().map_err(failed(FEATURES))?;
        Ok(writer)
    }

    /// The number of rows that are on disk.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Drops all rows after the first `rows`.
    ///
    /// # Errors
    /// The files cannot be truncated.
    pub fn keep(&mut self, rows: u64) -> Result<(), Error> {
        self.rows = self.rows.min(rows);
        self.seek().map_err(|source| Error::File { path: self.folder.join(FEATURES), source })
    }

    /// Appends whole rows. They are on disk on return.
    ///
    /// # Errors
    /// They cannot be written, e.g. because the disk is full; earlier rows stay intact.
    ///
    /// # Panics
    /// If `bytes` is not a number of whole rows, or has more rows than there are images left.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let length = self.manifest.row_bytes();
        assert!(bytes.len().is_multiple_of(length), "{} bytes are no rows of {length}", bytes.len());
        let count = (bytes.len() / length) as u64;
        assert!(self.rows + count <= self.manifest.images, "more rows than images");
        let sums: Vec<u8> = bytes.chunks(length).flat_map(|row| crc32fast::hash(row).to_le_bytes()).collect();
        let failed = |source| Error::File { path: self.folder.join(FEATURES), source };
        // The row first, then its checksum, which shows that the row is complete.
        self.features.write_all(bytes).and_then(|()| self.features.sync_data()).map_err(failed)?;
        self.checksums.write_all(&sums).and_then(|()| self.checksums.sync_data()).map_err(failed)?;
        self.rows += count;
        Ok(())
    }

    /// The number of leading rows with a checksum. Rows at the end, which a crash may have damaged,
    /// count only if they match their checksum.
    fn whole_rows(&mut self) -> std::io::Result<u64> {
        let length = self.manifest.row_bytes();
        let sums = self.checksums.metadata()?.len() / CHECKSUM as u64;
        let mut rows = sums.min(self.features.metadata()?.len() / length as u64).min(self.manifest.images);
        let mut row = vec![0; length];
        let mut sum = [0; CHECKSUM];
        while let Some(last) = rows.checked_sub(1) {
            self.features.seek(SeekFrom::Start(last * length as u64))?;
            self.features.read_exact(&mut row)?;
            self.checksums.seek(SeekFrom::Start(last * CHECKSUM as u64))?;
            self.checksums.read_exact(&mut sum)?;
            if crc32fast::hash(&row).to_le_bytes() == sum {
                break;
            }
            rows = last;
        }
        Ok(rows)
    }

    /// Truncates the files after the last whole row.
    fn seek(&mut self) -> std::io::Result<()> {
        for (file, length) in [(&mut self.features, self.manifest.row_bytes()), (&mut self.checksums, CHECKSUM)] {
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
    use crate::manifest::Rows;
    use crate::{Dtype, MANIFEST, Store, Tower};

    fn manifest() -> Manifest {
        let tower = |sha256: &str| Tower {
            weights: "w.pt".into(),
            sha256: sha256.into(),
            image_size: 224,
            computation: String::new(),
        };
        let rows = Rows { shape: [2, 3, 2], dtype: Dtype::F16 };
        Manifest::new("train".into(), (5, "names".into()), "clip".into(), (tower("aa"), vec![tower("bb")]), rows)
    }

    fn rows(range: std::ops::Range<u8>) -> Vec<u8> {
        range.flat_map(|row| (0..16).map(move |i| row.wrapping_mul(16) + i)).collect()
    }

    fn complete(folder: &Path) {
        Writer::open(folder, manifest()).unwrap().append(&rows(0..5)).unwrap();
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        complete(folder.path());
        let store = Store::open(folder.path(), &manifest()).unwrap();
        for row in 0..5 {
            assert_eq!(store.row(row).unwrap(), rows(row as u8..row as u8 + 1));
        }
    }

    #[test]
    fn a_store_of_other_weights_is_refused_with_both_hashes() {
        let folder = tempfile::tempdir().unwrap();
        complete(folder.path());
        let mut other = manifest();
        other.vision.sha256 = "cc".into();
        for error in [Store::open(folder.path(), &other).err(), Writer::open(folder.path(), other.clone()).err()] {
            let text = error.unwrap().to_string();
            assert!(text.contains("another vision tower: aa, not cc"), "{text}");
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
        writer.keep(1).unwrap();
        writer.append(&rows(1..5)).unwrap();
        assert!(Store::open(folder.path(), &manifest()).is_ok());
    }

    #[test]
    fn two_writers_do_not_meet() {
        let folder = tempfile::tempdir().unwrap();
        let _first = Writer::open(folder.path(), manifest()).unwrap();
        assert!(matches!(Writer::open(folder.path(), manifest()), Err(Error::Busy { .. })));
    }

    #[test]
    fn a_damaged_row_is_named() {
        let folder = tempfile::tempdir().unwrap();
        complete(folder.path());
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
        fn a_store_cut_anywhere_can_be_completed(features in 0..=80_u64, checksums in 0..=20_u64, flip in 0..80_usize) {
            let folder = tempfile::tempdir().unwrap();
            complete(folder.path());
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
            let done = writer.rows() as u8;
            writer.append(&rows(done..5)).unwrap();
            let store = Store::open(folder.path(), &manifest()).unwrap();
            for row in 0..5 {
                prop_assert_eq!(store.row(row).unwrap(), rows(row as u8..row as u8 + 1));
            }
        }

        #[test]
        fn no_manifest_makes_it_panic(text in ".*", images: u64, tokens: u64, width: u64, embedding: u64) {
            let folder = tempfile::tempdir().unwrap();
            complete(folder.path());
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
