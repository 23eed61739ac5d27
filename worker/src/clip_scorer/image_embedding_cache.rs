//! A cache of image embeddings, in one file per evaluator and preprocessing.
//!
//! The first line of the file names everything that the embeddings depend on. Records follow: the
//! SHA-256 of an image and its embedding (little-endian floats). Records are only appended, so an
//! interrupted write does not damage earlier records. An incomplete last record is truncated when
//! the file is opened.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use sha2::{Digest, Sha256};

/// The SHA-256 of an image's bytes.
pub type ImageHash = [u8; 32];

/// An open file of image embeddings.
pub struct ImageEmbeddingCache {
    path: PathBuf,
    embeddings: HashMap<ImageHash, Vec<f32>>,
    /// Locked while the cache is open.
    file: BufWriter<File>,
}

impl ImageEmbeddingCache {
    /// Opens the cache in `folder` for embeddings of `width` numbers each. `description` names what
    /// they depend on: the evaluator's weights, its computation, and the preprocessing. Creates the
    /// folder and the file if they do not exist.
    ///
    /// # Errors
    /// The file cannot be read or written, has another first line, or is in use.
    pub fn open(folder: &Path, description: &str, width: usize) -> Result<Self> {
        let path = folder.join(format!("{}.embeddings", &format!("{:x}", Sha256::digest(description))[..16]));
        let io_error = |error: std::io::Error| anyhow!("{}: {error}", path.display());
        std::fs::create_dir_all(folder).map_err(io_error)?;
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(io_error)?;
        file.try_lock().map_err(|_| anyhow!("{}: another process is using this cache", path.display()))?;
        let header = format!("dico embeddings, {width} numbers each, of {description}\n").into_bytes();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io_error)?;
        if bytes.len() < header.len() && header.starts_with(&bytes) {
            // The file is empty, or ends within its first line.
            file.set_len(0).and_then(|()| file.write_all(&header)).map_err(io_error)?;
            bytes.clone_from(&header);
        }
        let Some(records) = bytes.strip_prefix(header.as_slice()) else {
            bail!("{}: is not a cache of this evaluator: delete it", path.display());
        };
        let record_bytes = size_of::<ImageHash>() + width * size_of::<f32>();
        let complete = records.len() - records.len() % record_bytes;
        if complete < records.len() {
            file.set_len((header.len() + complete) as u64).map_err(io_error)?;
        }
        let embeddings = records[..complete].chunks_exact(record_bytes).filter_map(|record| {
            let (image_hash, numbers) = record.split_first_chunk()?;
            Some((*image_hash, numbers.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
        });
        Ok(Self { embeddings: embeddings.collect(), file: BufWriter::new(file), path })
    }

    /// The embedding of an image; none if it is not in the cache.
    pub fn get(&self, image_hash: &ImageHash) -> Option<&[f32]> {
        self.embeddings.get(image_hash).map(Vec::as_slice)
    }

    /// Adds the embedding of an image.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&mut self, image_hash: &ImageHash, embedding: &[f32]) -> Result<()> {
        let mut record = image_hash.to_vec();
        record.extend(embedding.iter().flat_map(|number| number.to_le_bytes()));
        let written = self.file.write_all(&record);
        written.map_err(|error| anyhow!("{}: {error}", self.path.display()))?;
        self.embeddings.insert(*image_hash, embedding.to_vec());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reopened_cache_has_all_complete_records() {
        let folder = tempfile::tempdir().unwrap();
        let open = || ImageEmbeddingCache::open(folder.path(), "some evaluator", 3).unwrap();
        let mut cache = open();
        assert!(ImageEmbeddingCache::open(folder.path(), "some evaluator", 3).is_err(), "the cache is in use");
        cache.add(&[1; 32], &[0.5, -1.0, 2.0]).unwrap();
        cache.add(&[2; 32], &[1.5, 0.0, 3.0]).unwrap();
        drop(cache);
        let path = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let content = std::fs::read(&path).unwrap();
        for cut in [0, 5, 44] {
            std::fs::write(&path, &content[..content.len() - cut]).unwrap();
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
        assert!(
            ImageEmbeddingCache::open(folder.path(), "some evaluator", 3)
                .map(|_| ())
                .unwrap_err()
                .to_string()
                .contains("delete it")
        );
        // Another evaluator has its own cache.
        assert!(ImageEmbeddingCache::open(folder.path(), "other evaluator", 3).unwrap().get(&[1; 32]).is_none());
    }
}
