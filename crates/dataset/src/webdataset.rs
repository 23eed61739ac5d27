//! WebDataset's tars (<https://github.com/webdataset/webdataset>) of images with captions, in
//! folders or buckets.

use std::collections::BTreeMap;
use std::path::Path;

use config::WebDataset;
use object_storage::Access;

use crate::image_names::coco_id;
use crate::index::{CAPTION_KEYS, Sample, UnknownMembers};
use crate::shards::Shards;
use crate::store::Stores;
use crate::{BadImage, DataSet, Error, ImageRef, Item, Split, brace_expansion, image_names};

/// Maximal number of unknown extensions that a note names.
const MAX_NAMED_EXTENSIONS: usize = 5;

/// Loads the `requested` splits for which `settings` has tars, without invalid samples.
///
/// # Errors
/// A pattern or tar has a wrong format, or cannot be read.
pub fn load(settings: &WebDataset, requested: &[Split], access: Access) -> Result<DataSet, Error> {
    let patterns = [
        (Split::Train, Some(&settings.train)),
        (Split::Validation, Some(&settings.validation)),
        (Split::Test, settings.test.as_ref()),
    ];
    let mut tars = Vec::new();
    let mut split_of_tar = Vec::new();
    for (split, pattern) in patterns {
        let Some(pattern) = pattern.filter(|_| requested.contains(&split)) else { continue };
        let names = brace_expansion::expand(pattern).map_err(|problem| Error::invalid(pattern, problem))?;
        split_of_tar.resize(split_of_tar.len() + names.len(), split);
        tars.extend(names);
    }
    let (shards, indices) = Shards::open(Stores::new(access)?, &tars)?;
    let mut shard_samples: Vec<(Split, usize, Vec<Sample>)> = Vec::with_capacity(tars.len());
    let mut unknown: BTreeMap<(usize, String), UnknownMembers> = BTreeMap::new();
    for (shard, (split, index)) in split_of_tar.into_iter().zip(indices).enumerate() {
        for (extension, UnknownMembers { members, first }) in index.unknown {
            let new = || UnknownMembers { members: 0, first: format!("{first} in {}", tars[shard]) };
            unknown.entry((split as usize, extension)).or_insert_with(new).members += members;
        }
        shard_samples.push((split, shard, index.samples));
    }
    let mut data = DataSet { shards: Some(shards), ..DataSet::default() };
    for split in Split::ALL {
        let unknown_of_split = unknown.iter().filter(|((index, _), _)| *index == split as usize);
        let unknown_of_split: Vec<_> =
            unknown_of_split.map(|((_, extension), unknown)| (extension.as_str(), unknown)).collect();
        data.splits.notes.extend(unknown_members_note(split, &unknown_of_split));
    }
    let lacks_captions =
        Split::ALL.map(|split| samples_of(split, &shard_samples).all(|sample| sample.captions.is_empty()));
    for split in Split::ALL.into_iter().filter(|split| lacks_captions[*split as usize]) {
        let with_json = samples_of(split, &shard_samples).find(|sample| !sample.json_keys.is_empty());
        let note = with_json.map(|sample| {
            let problem = SampleError::NoCaptions { json_keys: sample.json_keys.clone() };
            format!("split `{split}`: {}: {problem}", sample.key)
        });
        data.splits.notes.extend(note);
    }
    for (split, shard, samples) in shard_samples {
        for sample in samples {
            let (location, warnings) = (format!("{} in {}", sample.key, tars[shard]), sample.warnings);
            match item(shard, sample, !lacks_captions[split as usize]) {
                Ok(item) => data.add(split, item, Ok(warnings)),
                Err(error) => data.skipped.push(BadImage { split, location, problem: error.to_string() }),
            }
        }
    }
    let tar_of = |item: &Item| match &item.image {
        ImageRef::TarMember(member) => tars.get(Shards::shard_index(member)).map_or("", String::as_str),
        ImageRef::File(_) => "",
    };
    let file_name =
        |tar: &str| Path::new(tar).file_name().map_or_else(String::new, |name| name.to_string_lossy().into());
    image_names::make_unique(
        &mut data.splits,
        &[&|item| format!("{}/{}", file_name(tar_of(item)), item.path()), &|item| {
            format!("{}/{}", tar_of(item), item.path())
        }],
    );
    Ok(data)
}

/// The samples of all tars of a split.
fn samples_of(split: Split, shard_samples: &[(Split, usize, Vec<Sample>)]) -> impl Iterator<Item = &Sample> {
    shard_samples.iter().filter(move |(sample_split, ..)| *sample_split == split).flat_map(|(.., samples)| samples)
}

/// A note on members with unknown extensions; none if there are no such members.
fn unknown_members_note(split: Split, unknown: &[(&str, &UnknownMembers)]) -> Option<String> {
    if unknown.is_empty() {
        return None;
    }
    let total: u64 = unknown.iter().map(|(_, unknown)| unknown.members).sum();
    let named = unknown.iter().take(MAX_NAMED_EXTENSIONS).map(|(extension, UnknownMembers { members, first })| {
        let extension =
            if extension.is_empty() { "no extension".to_owned() } else { format!("extension `{extension}`") };
        format!("{members} with {extension} ({first} for one)")
    });
    let named = named.collect::<Vec<_>>().join(", ");
    let others = if unknown.len() > MAX_NAMED_EXTENSIONS { ", and others" } else { "" };
    let rule =
        "the extension is all that follows the first dot of a file name; known are jpg, jpeg, png, webp, txt and json";
    Some(format!("split `{split}`: {total} members of its tars are not read: {named}{others}; {rule}"))
}

/// Why a sample cannot be used.
#[derive(Debug, thiserror::Error)]
enum SampleError {
    /// A member is invalid, as the index records.
    #[error("{0}")]
    Invalid(String),
    /// The sample has no image.
    #[error("captions without an image")]
    NoImage,
    /// The sample has no captions although others of its split have some.
    #[error("an image without captions{}", describe_json_keys(json_keys))]
    NoCaptions {
        /// The keys of its `.json` member, if it has one.
        json_keys: Vec<String>,
    },
}

/// Converts a sample of the tar with index `shard` to an item.
fn item(shard: usize, sample: Sample, needs_captions: bool) -> Result<Item, SampleError> {
    let Sample { key, image, captions, id, json_keys, problem, .. } = sample;
    match (image, problem) {
        (_, Some(problem)) => Err(SampleError::Invalid(problem)),
        (None, None) => Err(SampleError::NoImage),
        (Some(_), None) if captions.is_empty() && needs_captions => Err(SampleError::NoCaptions { json_keys }),
        (Some(extent), None) => {
            let id = id.or_else(|| coco_id(&key));
            let item = Item::new(&key, captions, ImageRef::TarMember(Shards::member(shard, extent)));
            Ok(Item { id, ..item })
        }
    }
}

/// Says which keys a `.json` member has and which ones could have captions; empty without keys.
fn describe_json_keys(keys: &[String]) -> String {
    if keys.is_empty() {
        return String::new();
    }
    let quoted = |keys: &[&str]| keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    format!(
        ": its .json has the keys {}, and none of {} is a text or a list of texts",
        quoted(&keys),
        quoted(&CAPTION_KEYS)
    )
}

#[cfg(test)]
mod tests;
