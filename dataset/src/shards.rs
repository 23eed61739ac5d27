//! Tars whose samples are known, so that any image can be read without the others.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;

use crate::index::Index;
use crate::store::{Object, Stores, Version};
use crate::{Error, index};

/// Tars that are indexed at once.
const AT_ONCE: usize = 8;
/// The index of a tar is beside it, under its name with this ending.
const ENDING: &str = ".index.json";
/// Indices above this many bytes are not read but rebuilt.
const LARGEST_INDEX: u64 = 256 << 20;

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

/// A tar, as it was when its index was made.
#[derive(Debug)]
struct Shard {
    object: Object,
    version: Version,
}

impl Shards {
    /// Finds the samples of these tars: from their indices, or else by reading them once; then the indices are kept.
    ///
    /// # Errors
    /// A tar or index cannot be read, is truncated, or is none.
    pub fn open(mut stores: Stores, names: &[String]) -> Result<(Self, Vec<Index>), Error> {
        let objects = names.iter().map(|name| stores.locate(name)).collect::<Result<Vec<_>, _>>()?;
        let indexed = Indexer { stores: &stores, unwritable: AtomicBool::new(false) }.all(&objects)?;
        let (versions, indices): (Vec<_>, Vec<_>) = indexed.into_iter().unzip();
        let shards = objects.into_iter().zip(versions).map(|(object, version)| Shard { object, version }).collect();
        Ok((Self { stores, shards }, indices))
    }

    /// The image of a sample of the tar at place `shard` among the names given to [`open`](Self::open).
    pub fn member(shard: usize, extent: index::Extent) -> Member {
        Member { shard, extent }
    }

    /// At which place among the names given to [`open`](Self::open) the tar of an image is.
    pub fn tar_of(member: &Member) -> usize {
        member.shard
    }

    /// An image's encoded bytes.
    pub fn read(&self, member: &Member) -> Result<Bytes, Error> {
        let Shard { object, version } = self.shard(member)?;
        let index::Extent { offset, length } = member.extent;
        self.stores.part(object, version, offset..offset.saturating_add(length))
    }

    /// Names an image for people.
    pub fn place(&self, member: &Member, key: &str) -> String {
        self.shard(member).map_or_else(|_| key.to_owned(), |shard| format!("{} in {}", key, shard.object.place))
    }

    fn shard(&self, member: &Member) -> Result<&Shard, Error> {
        self.shards.get(member.shard).ok_or_else(|| Error::image("image", "belongs to another data set"))
    }
}

struct Indexer<'a> {
    stores: &'a Stores,
    /// Whether people have been told that indices cannot be kept.
    unwritable: AtomicBool,
}

impl Indexer<'_> {
    /// In the order of the objects, several at once.
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
        if let Some(bytes) = self.stores.small(&kept, LARGEST_INDEX)?
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

    /// The index is worth a warning, not more, when it cannot be kept.
    fn keep(&self, kept: &Object, index: &Index) {
        let written = index.to_json().map_err(|error| Error::format(&kept.place, error));
        if let Err(error) = written.and_then(|json| self.stores.write(kept, json))
            && !self.unwritable.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("every start reads all tars: their indices cannot be kept: {error}");
        }
    }
}
