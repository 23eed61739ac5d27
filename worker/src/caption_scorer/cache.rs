//! A cache of image embeddings, in one file per evaluator.
//!
//! The file begins with a line that names everything the embeddings depend on; then follow records
//! of a key and an embedding (little-endian floats). Records are only appended, so an interrupted
//! write leaves the earlier ones intact; an incomplete last record is truncated when the file is
//! opened.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The SHA-256 of an image's bytes.
pub type Key = [u8; 32];

/// An opened cache.
pub struct Cache {
    path: PathBuf,
    known: HashMap<Key, Vec<f32>>,
    /// Locked for as long as the cache is open.
    file: BufWriter<File>,
}

impl Cache {
    /// Opens the cache for `name` in `folder`, with embeddings of `width` numbers. Creates folder
    /// and file if they do not exist.
    ///
    /// # Errors
    /// The file cannot be read or written, belongs to another evaluator, or is in use.
    pub fn open(folder: &Path, name: &str, width: usize) -> Result<Self, String> {
        let path = folder.join(format!("{}.embeddings", &format!("{:x}", Sha256::digest(name))[..16]));
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        std::fs::create_dir_all(folder).map_err(failed)?;
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(failed)?;
        file.try_lock().map_err(|_| format!("{}: another process is using this cache", path.display()))?;
        let header = format!("dico embeddings, {width} numbers each, of {name}\n").into_bytes();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() < header.len() && header.starts_with(&bytes) {
            // The file is empty, or ends within its first line.
            file.set_len(0).and_then(|()| file.write_all(&header)).map_err(failed)?;
            bytes.clone_from(&header);
        }
        let Some(records) = bytes.strip_prefix(header.as_slice()) else {
            return Err(format!("{}: is no cache of this evaluator: delete it", path.display()));
        };
        let record = size_of::<Key>() + width * size_of::<f32>();
        let whole = records.len() - records.len() % record;
        if whole < records.len() {
            file.set_len((header.len() + whole) as u64).map_err(failed)?;
        }
        let known = records[..whole].chunks_exact(record).filter_map(|record| {
            let (key, numbers) = record.split_first_chunk()?;
            Some((*key, numbers.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
        });
        Ok(Self { known: known.collect(), file: BufWriter::new(file), path })
    }

    /// The embedding of an image; none if it is not in the cache.
    pub fn get(&self, key: &Key) -> Option<&[f32]> {
        self.known.get(key).map(Vec::as_slice)
    }

    /// Adds an embedding.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&mut self, key: &Key, embedding: &[f32]) -> Result<(), String> {
        let mut record = key.to_vec();
        record.extend(embedding.iter().flat_map(|number| number.to_le_bytes()));
        let written = self.file.write_all(&record);
        written.map_err(|error| format!("{}: {error}", self.path.display()))?;
        self.known.insert(*key, embedding.to_vec());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_there_again_and_what_was_cut_off_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Cache::open(folder.path(), "some evaluator", 3).unwrap();
        let mut cache = open();
        assert!(Cache::open(folder.path(), "some evaluator", 3).is_err(), "it is in use");
        cache.add(&[1; 32], &[0.5, -1.0, 2.0]).unwrap();
        cache.add(&[2; 32], &[1.5, 0.0, 3.0]).unwrap();
        drop(cache);
        let path = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 5, 44] {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let cache = open();
            assert_eq!(cache.get(&[1; 32]), Some(&[0.5, -1.0, 2.0][..]));
            assert_eq!(cache.get(&[2; 32]), (cut == 0).then_some(&[1.5, 0.0, 3.0][..]));
        }
        let mut cache = open();
        cache.add(&[3; 32], &[1.0; 3]).unwrap();
        drop(cache);
        assert_eq!(open().get(&[3; 32]), Some(&[1.0; 3][..]));
        std::fs::write(&path, "something else, which is long enough to be a cache of embeddings of some evaluator")
            .unwrap();
        assert!(Cache::open(folder.path(), "some evaluator", 3).map(|_| ()).unwrap_err().contains("delete it"));
        // Another evaluator has its own cache.
        assert!(Cache::open(folder.path(), "other evaluator", 3).unwrap().get(&[1; 32]).is_none());
    }
}
