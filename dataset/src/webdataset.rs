//! WebDataset's tars (<https://github.com/webdataset/webdataset>) of images with captions, in folders or buckets.

use runfile::WebDataset;
use storage::Access;

use crate::index::Sample;
use crate::shards::Shards;
use crate::store::Stores;
use crate::{DataSet, Error, ImageRef, Item, Positives, Split, Splits, braces};

/// All splits that `settings` names.
///
/// # Errors
/// A pattern or tar is not in its format or cannot be read, or a sample is broken while `skip_corrupt` is unset.
pub fn load(settings: &WebDataset, skip_corrupt: bool, access: Access) -> Result<DataSet, Error> {
    let patterns = [
        (Split::Train, Some(&settings.train)),
        (Split::Validation, Some(&settings.validation)),
        (Split::Test, settings.test.as_ref()),
    ];
    let mut tars = Vec::new();
    let mut owners = Vec::new();
    for (split, pattern) in patterns {
        let Some(pattern) = pattern else { continue };
        let names = braces::expand(pattern).map_err(|problem| Error::format(pattern, problem))?;
        owners.resize(owners.len() + names.len(), split);
        tars.extend(names);
    }
    let (shards, samples) = Shards::open(Stores::new(access)?, &tars)?;
    let mut splits = Splits::default();
    let mut skipped = 0;
    for (shard, ((split, tar), samples)) in owners.into_iter().zip(&tars).zip(samples).enumerate() {
        for sample in samples {
            match item(shard, tar, sample) {
                Ok(item) => splits.get_mut(split).push(item),
                Err(error) if skip_corrupt => {
                    tracing::warn!("leaving out {error}");
                    skipped += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(DataSet { splits, skipped, shards: Some(shards), positives: Positives::default() })
}

fn item(shard: usize, tar: &str, sample: Sample) -> Result<Item, Error> {
    match sample {
        Sample { key, image: Some(extent), captions, problem: None } => {
            Ok(Item { name: key, id: None, captions, image: ImageRef::Member(Shards::member(shard, extent)) })
        }
        Sample { key, problem, .. } => {
            let problem = problem.unwrap_or_else(|| "captions without an image".to_owned());
            Err(Error::corrupt(format!("{key} in {tar}"), problem))
        }
    }
}

#[cfg(test)]
mod tests;
