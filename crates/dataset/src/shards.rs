//! The shards of a WebDataset: tars with an index of their samples, so that each image can be read
//! without the others.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;

use crate::index::TarIndex;
use crate::store::{Object, Stores, Version};
use crate::{Error, index};

/// Maximal number of tars that are indexed concurrently.
const MAX_CONCURRENT_INDEXERS: usize = 8;
/// The suffix of a tar's index file, beside the tar.
const INDEX_SUFFIX: &str = ".index.json";
/// Maximal size of an index file, in bytes; larger ones are not read but rebuilt.
const MAX_INDEX_BYTES: u64 = 256 << 20;

/// An image in a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarMember {
    /// The index of the tar in [`Shards`].
    shard: usize,
    /// The bytes of the image in the tar.
    extent: index::Extent,
}

/// All shards of a data set.
#[derive(Debug)]
pub struct Shards {
    stores: Stores,
    shards: Vec<Shard>,
}

/// A tar, with the version that was indexed.
#[derive(Debug)]
struct Shard {
    object: Object,
    version: Version,
}

impl Shards {
    /// Opens these tars: reads their index files, or else builds each index in one pass and writes
    /// it.
    ///
    /// # Errors
    /// A tar or index cannot be read, is truncated or invalid.
    pub fn open(mut stores: Stores, names: &[String]) -> Result<(Self, Vec<TarIndex>), Error> {
        let objects = names.iter().map(|name| stores.locate(name)).collect::<Result<Vec<_>, _>>()?;
        let indexed = Indexer { stores: &stores, has_warned: AtomicBool::new(false) }.index_all(&objects)?;
        let (versions, indices): (Vec<_>, Vec<_>) = indexed.into_iter().unzip();
        let shards = objects.into_iter().zip(versions).map(|(object, version)| Shard { object, version }).collect();
        Ok((Self { stores, shards }, indices))
    }

    /// The image at `extent` in the tar with index `shard` among the names given to
    /// [`open`](Self::open).
    pub fn member(shard: usize, extent: index::Extent) -> TarMember {
        TarMember { shard, extent }
    }

    /// The index of an image's tar among the names given to [`open`](Self::open).
    pub fn shard_index(member: &TarMember) -> usize {
        member.shard
    }

    /// The encoded bytes of an image.
    pub fn read(&self, member: &TarMember) -> Result<Bytes, Error> {
        let Shard { object, version } = self.shard(member)?;
        let index::Extent { offset, length } = member.extent;
        self.stores.read_range(object, version, offset..offset.saturating_add(length))
    }

    /// The key and tar of an image, for messages.
    pub fn location(&self, member: &TarMember, key: &str) -> String {
        self.shard(member).map_or_else(|_| key.to_owned(), |shard| format!("{} in {}", key, shard.object.location))
    }

    fn shard(&self, member: &TarMember) -> Result<&Shard, Error> {
        self.shards.get(member.shard).ok_or_else(|| Error::image("image", "belongs to another data set"))
    }
}

/// Reads or builds the indices of tars.
struct Indexer<'a> {
    stores: &'a Stores,
    /// Whether the warning that indices cannot be written was logged.
    has_warned: AtomicBool,
}

impl Indexer<'_> {
    /// Indexes the objects, several concurrently. Returns the results in order.
    fn index_all(&self, objects: &[Object]) -> Result<Vec<(Version, TarIndex)>, Error> {
        let next = AtomicUsize::new(0);
        let has_failed = AtomicBool::new(false);
        let work = || {
            let mut results = Vec::new();
            while !has_failed.load(Ordering::Relaxed) {
                let position = next.fetch_add(1, Ordering::Relaxed);
                let Some(object) = objects.get(position) else { break };
                let result = self.read_or_build(object);
                has_failed.fetch_or(result.is_err(), Ordering::Relaxed);
                results.push((position, result));
            }
            results
        };
        let mut results = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..MAX_CONCURRENT_INDEXERS.min(objects.len())).map(|_| scope.spawn(work)).collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect::<Vec<_>>()
        });
        results.sort_by_key(|(position, _)| *position);
        results.into_iter().map(|(_, result)| result).collect()
    }

    fn read_or_build(&self, tar: &Object) -> Result<(Version, TarIndex), Error> {
        let version = self.stores.version(tar)?;
        let index_file = tar.with_suffix(INDEX_SUFFIX)?;
        if let Some(bytes) = self.stores.read_if_small(&index_file, MAX_INDEX_BYTES)?
            && let Some(index) =
                TarIndex::parse(&bytes, &version).map_err(|problem| Error::invalid(&index_file.location, problem))?
        {
            return Ok((version, index));
        }
        tracing::info!("indexing {}", tar.location);
        let reader = self.stores.reader(tar, &version)?;
        let index = TarIndex::build(reader, &version).map_err(|problem| Error::invalid(&tar.location, problem))?;
        self.write(&index_file, &index);
        Ok((version, index))
    }

    /// Writes an index. An error is logged once and otherwise ignored.
    fn write(&self, index_file: &Object, index: &TarIndex) {
        let written = index.to_json().map_err(|error| Error::invalid(&index_file.location, error));
        if let Err(error) = written.and_then(|json| self.stores.write(index_file, json))
            && !self.has_warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("tar indices cannot be written, so every start reads all tars: {error}");
        }
    }
}
