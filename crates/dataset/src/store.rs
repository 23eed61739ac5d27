//! Reads tars in folders and S3 buckets through one interface, that of the crate `object_store`.

use std::collections::HashMap;
use std::fmt::{Debug, Formatter};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_storage::{Access, BlockingRuntime};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::runtime::Handle;

use crate::Error;
use crate::tar_reader::ForwardReader;

/// Reads and writes files in folders and objects in buckets. All calls block.
pub struct Stores {
    /// Credentials and settings of buckets.
    access: Access,
    /// The store of all local files.
    folders: Arc<dyn ObjectStore>,
    /// The stores of buckets, by the bucket's name.
    buckets: HashMap<String, Arc<dyn ObjectStore>>,
    runtime: BlockingRuntime,
}

impl Debug for Stores {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Stores").field("buckets", &self.buckets.keys()).finish_non_exhaustive()
    }
}

/// A file or an object in a bucket.
#[derive(Clone, Debug)]
pub struct Object {
    /// The path or URL.
    pub location: String,
    /// The object's name in its store.
    key: Key,
    store: Arc<dyn ObjectStore>,
    is_local: bool,
}

impl Object {
    /// The object whose name is this one's with a suffix.
    pub fn with_suffix(&self, suffix: &str) -> Result<Self, Error> {
        let location = format!("{}{suffix}", self.location);
        let key = Key::parse(format!("{}{suffix}", self.key)).map_err(|error| Error::invalid(&location, error))?;
        Ok(Self { location, key, store: self.store.clone(), is_local: self.is_local })
    }

    fn store_error(&self, error: &object_store::Error) -> Error {
        Error::Store { location: self.location.clone(), problem: describe_error(error) }
    }
}

/// Identifies the content of an object at the time of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The size, in bytes.
    pub size: u64,
    /// The modification time of a file, or the entity tag of an object.
    pub tag: String,
    /// The `If-Match` condition of requests for the same content: a strong entity tag.
    if_match: Option<String>,
}

#[cfg(test)]
impl Version {
    /// A version as reported by a store.
    pub fn new(size: u64, tag: &str) -> Self {
        Self { size, tag: tag.to_owned(), if_match: None }
    }
}

impl Stores {
    /// Creates the stores with these credentials. Sends no request yet.
    ///
    /// # Errors
    /// The operating system cannot create threads.
    pub fn new(access: Access) -> Result<Self, Error> {
        let thread_error = |source| Error::Read { location: "threads for reading tars".to_owned(), source };
        let runtime = BlockingRuntime::new("dataset").map_err(thread_error)?;
        let folders = Arc::new(LocalFileSystem::new());
        Ok(Self { access, folders, buckets: HashMap::new(), runtime })
    }

    /// The file with this path or object with this URL `s3://bucket/key`; it need not exist.
    ///
    /// # Errors
    /// The name is not of this form, its folder does not exist, or the settings for buckets are
    /// invalid.
    pub fn locate(&mut self, name: &str) -> Result<Object, Error> {
        let location = name.to_owned();
        let Some((scheme, rest)) = name.split_once("://") else {
            let key = file_key(Path::new(name)).map_err(|problem| Error::invalid(&location, problem))?;
            return Ok(Object { location, key, store: self.folders.clone(), is_local: true });
        };
        let (bucket, key) = match rest.split_once('/') {
            Some((bucket, key)) if scheme == "s3" && !bucket.is_empty() && !key.is_empty() => (bucket, key),
            _ => return Err(Error::invalid(location, "is neither a path nor of the form s3://bucket/key")),
        };
        let key = Key::parse(key).map_err(|error| Error::invalid(&location, error))?;
        let store = match self.buckets.get(bucket) {
            Some(store) => store.clone(),
            None => {
                let store = self.access.bucket(bucket);
                let store = store
                    .map_err(|error| Error::Store { location: location.clone(), problem: describe_error(&error) })?;
                self.buckets.insert(bucket.to_owned(), store.clone());
                store
            }
        };
        Ok(Object { location, key, store, is_local: false })
    }

    /// The current version of an object.
    pub fn version(&self, object: &Object) -> Result<Version, Error> {
        let meta = self.runtime.block_on(object.store.head(&object.key)).map_err(|error| object.store_error(&error))?;
        Ok(version(object, meta))
    }

    /// The content of an object of at most `limit` bytes; none if it is larger, does not exist, or
    /// is not readable.
    pub fn read_if_small(&self, object: &Object, limit: u64) -> Result<Option<Bytes>, Error> {
        let fetched = self.runtime.block_on(async {
            let response = object.store.get(&object.key).await?;
            if response.meta.size > limit { Ok(None) } else { response.bytes().await.map(Some) }
        });
        match fetched {
            Ok(bytes) => Ok(bytes),
            // A bucket that this process may not list returns `PermissionDenied` for missing
            // objects.
            Err(object_store::Error::NotFound { .. } | object_store::Error::PermissionDenied { .. }) => Ok(None),
            Err(error) => Err(object.store_error(&error)),
        }
    }

    /// Writes an object atomically.
    ///
    /// # Errors
    /// The object cannot be written.
    pub fn write(&self, object: &Object, content: Vec<u8>) -> Result<(), Error> {
        let written = self.runtime.block_on(object.store.put(&object.key, content.into()));
        written.map(|_| ()).map_err(|error| object.store_error(&error))
    }

    /// A range of an object's bytes.
    ///
    /// # Errors
    /// The object cannot be read or ends before the end of the range, or its version has changed
    /// and the store has strong entity tags.
    pub fn read_range(&self, object: &Object, version: &Version, range: Range<u64>) -> Result<Bytes, Error> {
        let length = range.end.saturating_sub(range.start);
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            if_match: version.if_match.clone(),
            ..GetOptions::default()
        };
        let fetch = async { object.store.get_opts(&object.key, options).await?.bytes().await };
        let bytes = self.runtime.block_on(fetch).map_err(|error| object.store_error(&error))?;
        if bytes.len() as u64 != length {
            return Err(Error::invalid(
                &object.location,
                format!("{} bytes instead of {length}: truncated?", bytes.len()),
            ));
        }
        Ok(bytes)
    }

    /// A sequential reader of an object. Fails as [`read_range`](Self::read_range) does if the
    /// object's version has changed.
    pub fn reader(&self, object: &Object, version: &Version) -> Result<ObjectReader, Error> {
        let options = GetOptions { if_match: version.if_match.clone(), ..GetOptions::default() };
        let opened = self.runtime.block_on(object.store.get_opts(&object.key, options));
        Ok(match opened.map_err(|error| object.store_error(&error))?.payload {
            GetResultPayload::File(file, _) => ObjectReader::File(BufReader::new(file)),
            GetResultPayload::Stream(chunks) => {
                ObjectReader::Stream { chunks, unread: Bytes::new(), handle: self.runtime.handle().clone() }
            }
        })
    }
}

fn version(object: &Object, meta: ObjectMeta) -> Version {
    let modified = meta.last_modified.timestamp_millis().to_string();
    let tag = if object.is_local { modified } else { meta.e_tag.clone().unwrap_or(modified) };
    // Weak entity tags never match.
    let if_match = meta.e_tag.filter(|tag| !tag.starts_with("W/"));
    Version { size: meta.size, tag, if_match }
}

/// A path that cannot be the key of a file.
#[derive(Debug, thiserror::Error)]
enum FileKeyError {
    /// The working folder is unknown.
    #[error(transparent)]
    Absolute(#[from] std::io::Error),
    /// The path has no file name.
    #[error("is not a file")]
    NotAFile,
    /// The folder does not exist or is not readable.
    #[error("folder {}: {source}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The store does not accept the path.
    #[error(transparent)]
    Path(#[from] object_store::path::Error),
}

/// The key of a file. Resolves symbolic links and `..` in the folder's name, which keys cannot
/// contain.
fn file_key(path: &Path) -> Result<Key, FileKeyError> {
    let path = std::path::absolute(path)?;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(FileKeyError::NotAFile);
    };
    let folder_error = |source| FileKeyError::Folder { folder: folder.to_owned(), source };
    let folder = std::fs::canonicalize(folder).map_err(folder_error)?;
    Ok(Key::from_absolute_path(folder.join(name))?)
}

fn describe_error(error: &object_store::Error) -> String {
    match error {
        object_store::Error::Precondition { .. } => {
            "has changed since it was indexed: stop the run, and serve it with --accept-changes".to_owned()
        }
        other => object_storage::describe_error(other),
    }
}

/// A sequential reader of an object's bytes.
pub enum ObjectReader {
    /// A file; skips without reading.
    File(BufReader<File>),
    /// A stream; skips by discarding.
    Stream {
        /// Chunks from the network.
        chunks: BoxStream<'static, object_store::Result<Bytes>>,
        /// Received bytes that were not read yet.
        unread: Bytes,
        /// The runtime that receives chunks.
        handle: Handle,
    },
}

impl ForwardReader for ObjectReader {
    fn skip(&mut self, bytes: u64) -> std::io::Result<()> {
        match self {
            Self::File(file) => match i64::try_from(bytes) {
                Ok(bytes) => file.seek_relative(bytes),
                Err(_) => file.seek(SeekFrom::End(0)).map(|_| ()),
            },
            Self::Stream { .. } => std::io::copy(&mut self.by_ref().take(bytes), &mut std::io::sink()).map(|_| ()),
        }
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Stream { chunks, unread, handle } => {
                while unread.is_empty() {
                    match handle.block_on(chunks.next()) {
                        Some(chunk) => {
                            *unread = chunk.map_err(|error| std::io::Error::other(describe_error(&error)))?;
                        }
                        None => return Ok(0),
                    }
                }
                let chunk = unread.split_to(unread.len().min(buffer.len()));
                buffer[..chunk.len()].copy_from_slice(&chunk);
                Ok(chunk.len())
            }
        }
    }
}
