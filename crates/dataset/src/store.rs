//! Tars in folders and S3 buckets, through one interface: the crate `object_store`.

use std::collections::HashMap;
use std::fmt::{Debug, Formatter};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_io::{Access, Blocking};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::runtime::Handle;

use crate::Error;
use crate::members::Forward;

/// Access to folders and buckets. All calls block.
pub struct Stores {
    access: Access,
    folders: Arc<dyn ObjectStore>,
    buckets: HashMap<String, Arc<dyn ObjectStore>>,
    blocking: Blocking,
}

impl Debug for Stores {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Stores").field("buckets", &self.buckets.keys()).finish_non_exhaustive()
    }
}

/// A file or an object in a bucket.
#[derive(Clone, Debug)]
pub struct Object {
    /// Path or URL.
    pub place: String,
    key: Key,
    store: Arc<dyn ObjectStore>,
    local: bool,
}

impl Object {
    /// The object of the same name with a suffix.
    pub fn with_ending(&self, ending: &str) -> Result<Self, Error> {
        let place = format!("{}{ending}", self.place);
        let key = Key::parse(format!("{}{ending}", self.key)).map_err(|error| Error::format(&place, error))?;
        Ok(Self { place, key, store: self.store.clone(), local: self.local })
    }

    fn failed(&self, error: &object_store::Error) -> Error {
        Error::Store { place: self.place.clone(), problem: describe(error) }
    }
}

/// The version of an object at the time of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The size, in bytes.
    pub size: u64,
    /// Changes with the content: the modification time of a file, or the entity tag of an object.
    pub tag: String,
    /// The condition to send with requests for the same content.
    condition: Option<String>,
}

#[cfg(test)]
impl Version {
    /// A version as reported by a store.
    pub fn of(size: u64, tag: &str) -> Self {
        Self { size, tag: tag.to_owned(), condition: None }
    }
}

impl Stores {
    /// Access with these settings. Sends no request yet.
    ///
    /// # Errors
    /// The operating system cannot create threads.
    pub fn new(access: Access) -> Result<Self, Error> {
        let failed = |source| Error::Read { place: "threads for reading tars".to_owned(), source };
        let blocking = Blocking::new("dataset").map_err(failed)?;
        let folders = Arc::new(LocalFileSystem::new());
        Ok(Self { access, folders, buckets: HashMap::new(), blocking })
    }

    /// The file with this path or object with this URL `s3://bucket/key`; it need not exist.
    ///
    /// # Errors
    /// The name is not of this form, its folder does not exist, or the settings for buckets are
    /// invalid.
    pub fn locate(&mut self, name: &str) -> Result<Object, Error> {
        let place = name.to_owned();
        let Some((scheme, rest)) = name.split_once("://") else {
            let key = file_key(Path::new(name)).map_err(|problem| Error::format(&place, problem))?;
            return Ok(Object { place, key, store: self.folders.clone(), local: true });
        };
        let (bucket, key) = match rest.split_once('/') {
            Some((bucket, key)) if scheme == "s3" && !bucket.is_empty() && !key.is_empty() => (bucket, key),
            _ => return Err(Error::format(place, "is neither a path nor of the form s3://bucket/key")),
        };
        let key = Key::parse(key).map_err(|error| Error::format(&place, error))?;
        let store = match self.buckets.get(bucket) {
            Some(store) => store.clone(),
            None => {
                let store = self.access.bucket(bucket);
                let store = store.map_err(|error| Error::Store { place: place.clone(), problem: describe(&error) })?;
                self.buckets.insert(bucket.to_owned(), store.clone());
                store
            }
        };
        Ok(Object { place, key, store, local: false })
    }

    /// The present version of an object, with its size.
    pub fn version(&self, object: &Object) -> Result<Version, Error> {
        let meta = self.blocking.wait(object.store.head(&object.key)).map_err(|error| object.failed(&error))?;
        Ok(version(object, meta))
    }

    /// The content of a small object; none if it does not exist, or is not readable.
    pub fn small(&self, object: &Object, limit: u64) -> Result<Option<Bytes>, Error> {
        let fetched = self.blocking.wait(async {
            let found = object.store.get(&object.key).await?;
            if found.meta.size > limit { Ok(None) } else { found.bytes().await.map(Some) }
        });
        match fetched {
            Ok(bytes) => Ok(bytes),
            // Buckets without permission to list return this for missing objects.
            Err(object_store::Error::NotFound { .. } | object_store::Error::PermissionDenied { .. }) => Ok(None),
            Err(error) => Err(object.failed(&error)),
        }
    }

    /// Writes an object atomically.
    pub fn write(&self, object: &Object, content: Vec<u8>) -> Result<(), Error> {
        let written = self.blocking.wait(object.store.put(&object.key, content.into()));
        written.map(|_| ()).map_err(|error| object.failed(&error))
    }

    /// A part of an object. Fails if its version has changed.
    pub fn part(&self, object: &Object, version: &Version, range: Range<u64>) -> Result<Bytes, Error> {
        let length = range.end.saturating_sub(range.start);
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            if_match: version.condition.clone(),
            ..GetOptions::default()
        };
        let fetch = async { object.store.get_opts(&object.key, options).await?.bytes().await };
        let bytes = self.blocking.wait(fetch).map_err(|error| object.failed(&error))?;
        if bytes.len() as u64 != length {
            return Err(Error::format(&object.place, format!("{} bytes instead of {length}: truncated?", bytes.len())));
        }
        Ok(bytes)
    }

    /// A sequential reader of an object. Fails if its version has changed.
    pub fn pass(&self, object: &Object, version: &Version) -> Result<Pass, Error> {
        let options = GetOptions { if_match: version.condition.clone(), ..GetOptions::default() };
        let opened = self.blocking.wait(object.store.get_opts(&object.key, options));
        Ok(match opened.map_err(|error| object.failed(&error))?.payload {
            GetResultPayload::File(file, _) => Pass::File(BufReader::new(file)),
            GetResultPayload::Stream(chunks) => {
                Pass::Stream { chunks, rest: Bytes::new(), handle: self.blocking.handle().clone() }
            }
        })
    }
}

fn version(object: &Object, meta: ObjectMeta) -> Version {
    let modified = meta.last_modified.timestamp_millis().to_string();
    let tag = if object.local { modified } else { meta.e_tag.clone().unwrap_or(modified) };
    // Weak tags never match.
    let condition = meta.e_tag.filter(|tag| !tag.starts_with("W/"));
    Version { size: meta.size, tag, condition }
}

/// Resolves links and `..` in the folder's name, which keys cannot contain.
fn file_key(path: &Path) -> Result<Key, String> {
    let path = std::path::absolute(path).map_err(|error| error.to_string())?;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err("is no file".to_owned());
    };
    let folder = std::fs::canonicalize(folder).map_err(|error| format!("folder {}: {error}", folder.display()))?;
    Key::from_absolute_path(folder.join(name)).map_err(|error| error.to_string())
}

fn describe(error: &object_store::Error) -> String {
    match error {
        object_store::Error::Precondition { .. } => {
            "has changed since it was indexed: stop the run, and serve it with --accept-changes".to_owned()
        }
        other => object_io::describe(other),
    }
}

/// A sequential reader of an object.
pub enum Pass {
    /// A file; skips without reading.
    File(BufReader<File>),
    /// A stream; skips by discarding.
    Stream {
        /// Chunks from the network.
        chunks: BoxStream<'static, object_store::Result<Bytes>>,
        /// Received bytes that were not read yet.
        rest: Bytes,
        /// Waits for the network.
        handle: Handle,
    },
}

impl Forward for Pass {
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

impl Read for Pass {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Stream { chunks, rest, handle } => {
                while rest.is_empty() {
                    match handle.block_on(chunks.next()) {
                        Some(chunk) => *rest = chunk.map_err(|error| std::io::Error::other(describe(&error)))?,
                        None => return Ok(0),
                    }
                }
                let chunk = rest.split_to(rest.len().min(buffer.len()));
                buffer[..chunk.len()].copy_from_slice(&chunk);
                Ok(chunk.len())
            }
        }
    }
}
