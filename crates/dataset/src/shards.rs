//! Tars with known samples, so that each image can be read without the others.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;

use crate::index::Index;
use crate::store::{Object, Stores, Version};
use crate::{Error, index};

/// Maximal number of tars that are indexed concurrently.
const AT_ONCE: usize = 8;
/// The suffix of a tar's index file, beside the tar.
const ENDING: &str = ".index.json";
/// Indices above this many bytes are not read but rebuilt.
const MAX_INDEX_BYTES: u64 = 256 << 20;

/// An image in a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    shard: usize,
    extent: index::Extent,
}

/// All tars of a data set.
#[derive(Debug)]
pub struct Shards {
    stores: Stores,
    shards: Vec<Shard>,
}

/// A tar, with its version when it was indexed.
#[derive(Debug)]
struct Shard {
    object: Object,
    version: Version,
}

impl Shards {
    /// Opens these tars: reads their indices, or else builds them in one pass and stores them.
    ///
    /// # Errors
    /// A tar or index cannot be read, is truncated or invalid.
    pub fn open(mut stores: Stores, names: &[String]) -> Result<(Self, Vec<Index>), Error> {
        let objects = names.iter().map(|name| stores.locate(name)).collect::<Result<Vec<_>, _>>()?;
        let indexed = Indexer { stores: &stores, unwritable: AtomicBool::new(false) }.all(&objects)?;
        let (versions, indices): (Vec<_>, Vec<_>) = indexed.into_iter().unzip();
        let shards = objects.into_iter().zip(versions).map(|(object, version)| Shard { object, version }).collect();
        Ok((Self { stores, shards }, indices))
    }

    /// The image of a sample in tar number `shard` of the names given to [`open`](Self::open).
    pub fn member(shard: usize, extent: index::Extent) -> Member {
        Member { shard, extent }
    }

    /// The number of an image's tar among the names given to [`open`](Self::open).
    pub fn tar_of(member: &Member) -> usize {
        member.shard
    }

    /// The encoded bytes of an image.
    pub fn read(&self, member: &Member) -> Result<Bytes, Error> {
        let Shard { object, version } = self.shard(member)?;
        let index::Extent { offset, length } = member.extent;
        self.stores.part(object, version, offset..offset.saturating_add(length))
    }

    /// The key and tar of an image, for messages.
    pub fn place(&self, member: &Member, key: &str) -> String {
        self.shard(member).map_or_else(|_| key.to_owned(), |shard| format!("{} in {}", key, shard.object.place))
    }

    fn shard(&self, member: &Member) -> Result<&Shard, Error> {
        self.shards.get(member.shard).ok_or_else(|| Error::image("image", "belongs to another data set"))
    }
}

struct Indexer<'a> {
    stores: &'a Stores,
    /// Whether a warning was logged that indices cannot be stored.
    unwritable: AtomicBool,
}

impl Indexer<'_> {
    /// Indexes the objects, several concurrently. Returns the results in order.
    fn all(&self, objects: &[Object]) -> Result<Vec<(Version, Index)>, Error> {
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let work = || {
            let mut done = Vec::new();
            while !failed.load(Ordering::Relaxed) {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(object) = objects.get(at) else { break };
                let indexed = self.one(object);
                failed.fetch_or(indexed.is_err(), Ordering::Relaxed);
                done.push((at, indexed));
            }
            done
        };
        let mut done = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE.min(objects.len())).map(|_| scope.spawn(work)).collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect::<Vec<_>>()
        });
        done.sort_by_key(|(at, _)| *at);
        done.into_iter().map(|(_, indexed)| indexed).collect()
    }

    fn one(&self, tar: &Object) -> Result<(Version, Index), Error> {
        let version = self.stores.version(tar)?;
        let kept = tar.with_ending(ENDING)?;
        if let Some(bytes) = self.stores.small(&kept, MAX_INDEX_BYTES)?
            && let Some(index) =
                Index::parse(&bytes, &version).map_err(|problem| Error::format(&kept.place, problem))?
        {
            return Ok((version, index));
        }
        tracing::info!("indexing {}", tar.place);
        let pass = self.stores.pass(tar, &version)?;
        let index = Index::build(pass, &version).map_err(|problem| Error::format(&tar.place, problem))?;
        self.keep(&kept, &index);
        Ok((version, index))
    }

    /// Stores an index. Failure is only a warning.
    fn keep(&self, kept: &Object, index: &Index) {
        let written = index.to_json().map_err(|error| Error::format(&kept.place, error));
        if let Err(error) = written.and_then(|json| self.stores.write(kept, json))
            && !self.unwritable.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("every start reads all tars: their indices cannot be kept: {error}");
        }
    }
}
