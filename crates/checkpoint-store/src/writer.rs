use bytes::Bytes;
use object_store::{ObjectStoreExt, PutPayload, WriteMultipart};
use sha2::{Digest, Sha256};

use crate::checkpoints::Checkpoints;
use crate::seal::{self, SealedFile};
use crate::{Error, names};

/// The size of a part, in bytes: large files are written and read in parts. S3 allows 10,000 parts,
/// so a file can have 83 GB.
pub const PART_BYTES: usize = 8 << 20;
/// Maximal number of parts that are transferred concurrently.
pub const MAX_CONCURRENT_PARTS: usize = 4;

/// Writes the files of a checkpoint.
pub struct CheckpointWriter<'a> {
    checkpoints: &'a Checkpoints,
    /// The name of the checkpoint.
    name: &'a str,
    /// The files that have been written.
    written: Vec<SealedFile>,
}

impl<'a> CheckpointWriter<'a> {
    pub(crate) fn new(checkpoints: &'a Checkpoints, name: &'a str) -> Self {
        Self { checkpoints, name, written: Vec::new() }
    }

    /// Writes a file from chunks of content; only a few parts are in memory at a time. The file is
    /// durable on return.
    ///
    /// # Errors
    /// The name is taken or invalid, or the file cannot be written.
    pub fn add<B: Into<Bytes>>(&mut self, file: &str, chunks: impl IntoIterator<Item = B>) -> Result<(), Error> {
        names::check(file)?;
        if file == seal::SEAL_FILE || self.written.iter().any(|entry| entry.name == file) {
            return Err(Error::Name { name: file.to_owned() });
        }
        let (mut hash, mut size) = (Sha256::new(), 0);
        let chunks = chunks.into_iter().map(Into::into).inspect(|chunk: &Bytes| {
            hash.update(chunk);
            size += chunk.len() as u64;
        });
        self.checkpoints.runtime.block_on(self.upload(file, chunks)).map_err(|error| self.store_error(file, &error))?;
        self.written.push(SealedFile { name: file.to_owned(), size, sha256: format!("{:x}", hash.finalize()) });
        Ok(())
    }

    async fn upload(&self, file: &str, mut chunks: impl Iterator<Item = Bytes>) -> object_store::Result<()> {
        let (store, key) = (&self.checkpoints.store, self.checkpoints.key(self.name, file));
        let (mut first_chunks, mut length) = (Vec::new(), 0);
        while length < PART_BYTES
            && let Some(chunk) = chunks.next()
        {
            length += chunk.len();
            first_chunks.push(chunk);
        }
        if length < PART_BYTES {
            store.put(&key, PutPayload::from_iter(first_chunks)).await?;
            return Ok(());
        }
        let mut upload = WriteMultipart::new_with_chunk_size(store.put_multipart(&key).await?, PART_BYTES);
        for chunk in first_chunks.into_iter().chain(chunks) {
            if let Err(error) = upload.wait_for_capacity(MAX_CONCURRENT_PARTS).await {
                // If the upload cannot be aborted either, so that parts remain, that error is not
                // reported.
                _ = upload.abort().await;
                return Err(error);
            }
            upload.put(chunk);
        }
        upload.finish().await.map(|_| ())
    }

    /// Writes the seal, which completes the checkpoint.
    pub(crate) fn seal(self) -> Result<(), Error> {
        let json_error = |error: serde_json::Error| {
            Error::system(self.checkpoints.location_of(self.name, seal::SEAL_FILE), &error.into())
        };
        let sealed = seal::to_json(&self.written).map_err(json_error)?;
        let key = self.checkpoints.key(self.name, seal::SEAL_FILE);
        let put = self.checkpoints.store.put(&key, sealed.into());
        self.checkpoints.runtime.block_on(put).map(|_| ()).map_err(|error| self.store_error(seal::SEAL_FILE, &error))
    }

    fn store_error(&self, file: &str, error: &object_store::Error) -> Error {
        Error::store(self.checkpoints.location_of(self.name, file), error)
    }
}
