//! WebDataset's tars (<https://github.com/webdataset/webdataset>) of images with captions, in folders or buckets.

use runfile::WebDataset;
use storage::Access;

use crate::index::Sample;
use crate::shards::Shards;
use crate::store::Stores;
use crate::{BadImage, DataSet, Error, ImageRef, Item, Split, braces};

/// All splits that `settings` names, without broken samples.
///
/// # Errors
/// A pattern or tar is not in its format or cannot be read.
pub fn load(settings: &WebDataset, access: Access) -> Result<DataSet, Error> {
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
    let mut data = DataSet { shards: Some(shards), ..DataSet::default() };
    for (shard, ((split, tar), samples)) in owners.into_iter().zip(&tars).zip(samples).enumerate() {
        for Sample { key, image, captions, oddities, problem } in samples {
            match (image, problem) {
                (Some(extent), None) => {
                    let image = ImageRef::Member(Shards::member(shard, extent));
                    data.add(split, Item { name: key, id: None, captions, image }, Ok(oddities));
                }
                (_, problem) => {
                    let problem = problem.unwrap_or_else(|| "captions without an image".to_owned());
                    data.left_out.push(BadImage { split, place: format!("{key} in {tar}"), problem });
                }
            }
        }
    }
    Ok(data)
}

#[cfg(test)]
mod tests;
